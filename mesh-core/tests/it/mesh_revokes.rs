//! A CRL that comes ends what its certificate had.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::authz::Identity;
use mesh_core::hbone::tls::Bundle;
use mesh_core::identity::{CertificateSource, CertificateStream, DevCa};
use rcgen::{
    CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls_pki_types::{CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::AsyncReadExt;
use tokio::sync::watch;

use crate::mesh_world::{PORT, World, echo, ping};

const CLIENT: u64 = 7;
const SERVER: u64 = 8;
const OTHER: u64 = 9;

/// An authority that can revoke: each identity gets a certificate with every CRL, always of its one
/// serial number.
struct Revoking {
    issuer: Arc<CertifiedIssuer<'static, KeyPair>>,
    revoked: watch::Receiver<Vec<u64>>,
}

impl Revoking {
    fn new() -> (watch::Sender<Vec<u64>>, Self) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let (revoke, revoked) = watch::channel(Vec::new());
        let issuer = Arc::new(issuer);
        (revoke, Self { issuer, revoked })
    }
}

fn bundle(
    issuer: &CertifiedIssuer<'static, KeyPair>,
    identity: &Identity,
    revoked: &[u64],
) -> Bundle {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().unwrap())];
    params.serial_number = Some(SerialNumber::from(match identity.service_account() {
        "client" => CLIENT,
        "other" => OTHER,
        _ => SERVER,
    }));
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, issuer).unwrap();
    let of = |serial: &u64| RevokedCertParams {
        serial_number: SerialNumber::from(*serial),
        revocation_time: date_time_ymd(2020, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let crl = CertificateRevocationListParams {
        this_update: date_time_ymd(2020, 1, 1),
        next_update: date_time_ymd(2040, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: revoked.iter().map(of).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let crl: CertificateRevocationListDer<'static> = crl.signed_by(issuer).unwrap().der().clone();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let roots = vec![issuer.der().clone()];
    Bundle::new(vec![leaf.der().clone()], key, roots, &[crl]).unwrap()
}

impl CertificateSource for Revoking {
    fn watch(&self, identity: Identity) -> CertificateStream {
        let issuer = Arc::clone(&self.issuer);
        let mut revoked = self.revoked.clone();
        revoked.mark_changed();
        Box::pin(futures_util::stream::unfold(revoked, move |mut revoked| {
            let (issuer, identity) = (Arc::clone(&issuer), identity.clone());
            async move {
                revoked.changed().await.ok()?;
                let crl = revoked.borrow_and_update().clone();
                Some((Ok(bundle(&issuer, &identity, &crl)), revoked))
            }
        }))
    }
}

async fn a_live_tunnel_ends(net: u8, serial: u64) {
    let (revoke, source) = Revoking::new();
    let ca = DevCa::ephemeral("cluster.local");
    let world = World::with_source(net, ca, source, |node| node);
    let (client, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let target = format!("server:{PORT}");
    let mut live = client.connect(&target).await.unwrap();
    ping(&mut live).await.unwrap();
    // Of somebody else: nothing ends.
    revoke.send_replace(vec![99]);
    tokio::time::sleep(Duration::from_millis(30)).await;
    ping(&mut live).await.unwrap();
    revoke.send_replace(vec![99, serial]);
    let ended = tokio::time::timeout(Duration::from_secs(5), live.read(&mut [0; 1])).await;
    assert!(ended.expect("the live tunnel ends").is_err());
    client.connect(&target).await.unwrap_err();
}

#[tokio::test]
async fn a_client_that_is_revoked_loses_its_tunnels() {
    a_live_tunnel_ends(120, CLIENT).await;
}

#[tokio::test]
async fn a_server_that_is_revoked_loses_its_tunnels() {
    a_live_tunnel_ends(121, SERVER).await;
}

/// an identity is taken from those who live.
#[tokio::test]
async fn a_list_cuts_all_tunnels_of_whom_it_lists_and_nobody_elses() {
    let (revoke, source) = Revoking::new();
    let ca = DevCa::ephemeral("cluster.local");
    let world = World::with_source(122, ca, source, |node| node);
    let (client, server) = world.pair().await;
    let record = world.workload("other", 3);
    world.control.set(vec![record.into()]).await;
    let other = world.mesh("other");
    echo(server.listen(PORT).await.unwrap());
    let target = format!("server:{PORT}");
    let (mut refused, mut admitted) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        for (mesh, streams) in [(&client, &mut refused), (&other, &mut admitted)] {
            let mut stream = mesh.connect(&target).await.unwrap();
            ping(&mut stream).await.unwrap();
            streams.push(stream);
        }
    }
    revoke.send_replace(vec![CLIENT]);
    for stream in &mut refused {
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0; 1])).await;
        assert!(ended.expect("each tunnel ends").is_err());
    }
    for stream in &mut admitted {
        ping(stream).await.unwrap();
    }
    client.connect(&target).await.unwrap_err();
    let mut again = other.connect(&target).await.unwrap();
    ping(&mut again).await.unwrap();
}
