//! Certificates change under traffic, and nobody notices.

#[path = "../../../../tests/it/memory_network.rs"]
mod memory_network;

use std::fs;

use memory_network::{ADDRESS, pair, ping};
use tokio::io::AsyncReadExt;

use super::*;

fn clock(source: &Istiod) -> impl Fn() -> SystemTime + Send + Sync + use<> {
    let control_plane = source.settings.control_plane.clone();
    move || control_plane.now()
}

/// each certificate lives ten seconds. Keys are reused: what is tested is the exchange of
/// certificates, and 10 000 keys would only make it slow.
#[tokio::test(start_paused = true)]
async fn ten_thousand_rotations_under_traffic_fail_no_request() {
    let service = Service {
        life: Duration::from_secs(10),
        takes: Duration::from_millis(20),
        ..Service::new()
    };
    let source = service.source(|istiod| istiod);
    let (client, _server) = pair(source.clone(), clock(&source)).await;
    // One tunnel lives through all of it.
    let mut long = client.connect(ADDRESS).await.unwrap();
    let mut requests = 0;
    while service.issued() < 10_000 {
        ping(&mut long).await.unwrap();
        let mut stream = client.connect(ADDRESS).await.unwrap();
        ping(&mut stream).await.unwrap();
        requests += 1;
        // The authority fails now and then, for less than what is left of a certificate.
        let fails = requests % 50 == 0;
        service.fail(fails.then_some(ErrorKind::Unavailable));
        tokio::time::sleep(Duration::from_millis(2500)).await;
        service.fail(None);
        tokio::time::sleep(Duration::from_millis(2500)).await;
    }
    assert!(requests > 4000, "{requests}");
    assert!(service.asked() > service.issued(), "some failed");
}

#[tokio::test(start_paused = true)]
async fn a_list_that_comes_ends_what_its_certificate_had() {
    let dir = tempfile::tempdir().unwrap();
    let crls = dir.path().join("crl.pem");
    fs::write(&crls, "").unwrap();
    let service = Service::new();
    let source = service.source(|istiod| istiod.crls(&crls).poll_interval(Duration::from_secs(1)));
    let (client, server) = pair(source.clone(), clock(&source)).await;
    let mut stream = client.connect(ADDRESS).await.unwrap();
    ping(&mut stream).await.unwrap();
    let mut own = source.watch(identity("client"));
    let serial = next(&mut own).await.unwrap().serial_number().to_owned();
    fs::write(&crls, service.issuer.crl(&[&serial])).unwrap();
    let begin = Instant::now();
    stream.read_u8().await.unwrap_err();
    assert!(begin.elapsed() <= Duration::from_secs(3));
    client.connect(ADDRESS).await.unwrap_err();
    drop(server);
}
