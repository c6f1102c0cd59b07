//! Servers that are known by a name: a control plane, as istiod is one.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_hbone::tls::{NamedClient, NamedStream, Options, VerifyError};
use mesh_hbone::{Error, ErrorKind, Side};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, SanType};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::authority::{Authority, CLIENT, SERVER, leaf_params, provider};
use crate::foreign;

const NAME: &str = "istiod.istio-system.svc";

/// What istiod's own certificate has: names, no URI.
fn params(names: &[&str]) -> CertificateParams {
    let mut params = leaf_params(&[]);
    params.subject_alt_names = names
        .iter()
        .map(|name| match name.parse() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName((*name).try_into().unwrap()),
        })
        .collect();
    params
}

/// Takes a client's certificate if there is one, and refuses one that is not of `root`.
fn server(root: &Authority, params: &CertificateParams) -> ServerConfig {
    let crypto = Arc::new(foreign::crypto());
    let mut roots = RootCertStore::empty();
    roots.add(root.der()).unwrap();
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto.clone())
        .allow_unauthenticated()
        .build()
        .unwrap();
    let leaf = root.issue(params);
    let mut config = ServerConfig::builder_with_provider(crypto)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(leaf.chain, leaf.key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

fn client(roots: &[&Authority]) -> NamedClient {
    let roots: Vec<CertificateDer<'_>> = roots.iter().map(|root| root.der()).collect();
    NamedClient::new(&provider(), &roots, Options::default()).unwrap()
}

type Near = Result<NamedStream<DuplexStream>, Error>;
type Far = std::io::Result<TlsStream<DuplexStream>>;

async fn shake(client: &NamedClient, names: &[&str], server: ServerConfig) -> (Near, Far) {
    let (near, far) = duplex(64 * 1024);
    let acceptor = TlsAcceptor::from(Arc::new(server));
    tokio::join!(client.connect(near, names), acceptor.accept(far))
}

#[tokio::test]
async fn a_server_of_the_root_and_the_name_is_believed() {
    let root = Authority::root("istio");
    let server = server(&root, &params(&["istio-pilot.istio-system.svc", NAME]));
    let (near, far) = shake(&client(&[&root]), &[NAME], server).await;
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    let session = far.get_ref().1;
    assert_eq!(session.server_name(), Some(NAME), "a gateway routes by it");
    assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(session.peer_certificates(), None);

    near.write_all(b"ping").await.unwrap();
    near.shutdown().await.unwrap();
    let mut said = Vec::new();
    far.read_to_end(&mut said).await.unwrap();
    assert_eq!(said, b"ping");
    far.write_all(b"pong").await.unwrap();
    far.shutdown().await.unwrap();
    said.clear();
    near.read_to_end(&mut said).await.unwrap();
    assert_eq!(said, b"pong");
}

#[tokio::test]
async fn another_name_is_refused_and_both_are_named() {
    let root = Authority::root("istio");
    let server = server(&root, &params(&["istiod-canary.istio-system.svc"]));
    let (near, far) = shake(&client(&[&root]), &[NAME, "istiod.example"], server).await;
    let error = near.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedIdentity);
    assert_eq!(error.side(), Side::Upstream);
    assert_eq!(
        error.verification().unwrap().to_string(),
        "its certificate is for [\"istiod-canary.istio-system.svc\"], \
         expected one of [\"istiod.istio-system.svc\", \"istiod.example\"]"
    );
    assert!(far.is_err());
}

#[tokio::test]
async fn any_of_the_expected_names_will_do_and_addresses_are_names() {
    let root = Authority::root("istio");
    for (has, wants) in [
        (&["istiod.example"][..], &[NAME, "istiod.example"][..]),
        (&["10.0.0.1"], &["10.0.0.1"]),
        (&["fd00::1"], &["fd00::1"]),
    ] {
        let (near, far) = shake(&client(&[&root]), wants, server(&root, &params(has))).await;
        assert!(near.is_ok() && far.is_ok(), "{wants:?}: {near:?}");
    }
}

#[tokio::test]
async fn another_root_is_refused_and_both_are_named() {
    let (ours, theirs) = (Authority::root("istio"), Authority::root("istio"));
    let (near, _far) = shake(
        &client(&[&ours]),
        &[NAME],
        server(&theirs, &params(&[NAME])),
    )
    .await;
    let error = near.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownIssuer);
    let Some(VerifyError::UnknownIssuer { roots, issuer, .. }) = error.verification() else {
        panic!("{error:?}");
    };
    assert_eq!(*roots, client(&[&ours]).root_fingerprints());
    assert_eq!(issuer, "O=istio");
}

#[tokio::test]
async fn an_old_and_a_new_root_are_believed_while_both_are_given() {
    let (old, new) = (Authority::root("old"), Authority::root("new"));
    let both = client(&[&old, &new]);
    for root in [&old, &new] {
        let (near, _far) = shake(&both, &[NAME], server(root, &params(&[NAME]))).await;
        assert!(near.is_ok(), "{near:?}");
    }
}

#[tokio::test]
async fn a_certificate_for_clients_or_out_of_its_time_is_refused() {
    let root = Authority::root("istio");
    let mut of_client = params(&[NAME]);
    of_client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let (near, _far) = shake(&client(&[&root]), &[NAME], server(&root, &of_client)).await;
    assert_eq!(near.unwrap_err().kind(), ErrorKind::BadKeyUsage);

    let later = || SystemTime::UNIX_EPOCH + Duration::from_secs(90_000_000_000);
    let options = Options::default().clock(later);
    let late = NamedClient::new(&provider(), &[root.der()], options).unwrap();
    let (near, _far) = shake(&late, &[NAME], server(&root, &params(&[NAME]))).await;
    assert_eq!(near.unwrap_err().kind(), ErrorKind::Expired);
}

#[tokio::test]
async fn a_certificate_is_presented_if_there_is_one() {
    let root = Authority::root("istio");
    let leaf = root.leaf(CLIENT);
    let bundle = leaf.bundle(&[&root]).unwrap();
    let client = client(&[&root]).with_certificate(&bundle).unwrap();
    let (near, far) = shake(&client, &[NAME], server(&root, &params(&[NAME]))).await;
    assert!(near.is_ok());
    let far = far.unwrap();
    assert_eq!(far.get_ref().1.peer_certificates(), Some(&leaf.chain[..]));
}

#[tokio::test]
async fn a_certificate_that_the_server_refuses_shows_on_the_first_read() {
    let root = Authority::root("istio");
    let other = Authority::root("other");
    let bundle = other.leaf(CLIENT).bundle(&[&other]).unwrap();
    let client = client(&[&root]).with_certificate(&bundle).unwrap();
    let (near, far) = shake(&client, &[NAME], server(&root, &params(&[NAME]))).await;
    assert!(far.is_err());
    let error = near.unwrap().read_u8().await.unwrap_err();
    let error = error.get_ref().unwrap().downcast_ref::<Error>().unwrap();
    assert_eq!(error.kind(), ErrorKind::Refused);
}

#[tokio::test]
async fn what_cannot_be_is_said_before_anything_is_sent() {
    let root = Authority::root("istio");
    let error = NamedClient::new(&provider(), &[], Options::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidBundle);
    let rubbish = CertificateDer::from(vec![1, 2, 3]);
    let error = NamedClient::new(&provider(), &[rubbish], Options::default()).unwrap_err();
    assert!(error.to_string().ends_with("root 0"), "{error}");

    let (near, mut far) = duplex(1024);
    let error = client(&[&root]).connect(near, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidSettings);
    assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 0);
    let (near, _far) = duplex(1024);
    let error = client(&[&root]).connect(near, &["-"]).await.unwrap_err();
    assert!(error.to_string().contains("server name \"-\""), "{error}");
    // A workload's certificate has no such name.
    let (near, _far) = shake(
        &client(&[&root]),
        &[NAME],
        server(&root, &leaf_params(&[SERVER])),
    )
    .await;
    assert_eq!(near.unwrap_err().kind(), ErrorKind::UnexpectedIdentity);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_given_up() {
    let root = Authority::root("istio");
    let (near, _far) = duplex(1024);
    let error = client(&[&root]).connect(near, &[NAME]).await.unwrap_err();
    assert!(error.is_timeout() && error.is_retry_safe());
}
