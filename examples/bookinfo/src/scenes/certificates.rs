use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::stage::{Stage, request};
use crate::BoxError;

/// Requests on long-lived tunnels and on new ones, through at least two renewals of every certificate.
pub(super) async fn rotate(stage: &Stage) -> Result<Vec<String>, BoxError> {
    let details = stage.cluster.mesh("details-v1");
    let client = stage.productpage();
    let mut serials = BTreeSet::new();
    let (mut kept, mut fresh) = (0_u32, 0_u32);
    let deadline = Instant::now() + Duration::from_secs(40);
    while serials.len() < 3 {
        if Instant::now() > deadline {
            return Err(format!("only {} certificates within 40 s", serials.len()).into());
        }
        let certificate = details.certificate().ok_or("details has no certificate")?;
        serials.insert(certificate.serial_number().to_owned());
        // On tunnels that were opened under an earlier certificate.
        for _ in 0..20 {
            expect_ok(&client).await?;
            kept += 1;
        }
        // On a tunnel of its own: a new handshake with today's certificates at both ends.
        let cluster = &stage.cluster;
        let caller = cluster.another("productpage-v1", "bookinfo-productpage")?;
        expect_ok(&caller.http_client()).await?;
        fresh += 1;
    }
    Ok(vec![format!(
        "{} certificates, {kept} requests on lasting tunnels, {fresh} new tunnels, 0 failed",
        serials.len()
    )])
}

async fn expect_ok(client: &mesh_core::MeshClient) -> Result<(), BoxError> {
    let (status, body) = request(client, "GET", "http://details:9080/details/0").await?;
    if status == 200 {
        Ok(())
    } else {
        Err(format!("a request failed during rotation: {status}: {body}").into())
    }
}
