//! Peers that come back: less work, the same answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use mesh_hbone::ErrorKind;
use mesh_hbone::tls::{Bundle, Credentials, Options, Provider, accept, connect};
use rcgen::{SerialNumber, date_time_ymd};
use rustls::HandshakeKind;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::authority::{Authority, CLIENT, Leaf, SERVER, id, leaf_params};
use crate::foreign;
use crate::tls_verification::{judge_client, judge_server};

const YEAR_2030: u64 = 1_893_456_000;
const YEAR: u64 = 365 * 86_400;

fn leaf(root: &Authority) -> Leaf {
    let mut params = leaf_params(&[CLIENT]);
    params.serial_number = Some(SerialNumber::from(42_u64));
    params.not_before = date_time_ymd(2030, 1, 1);
    params.not_after = date_time_ymd(2031, 1, 1);
    root.issue(&params)
}

#[tokio::test]
async fn a_peer_that_was_good_before_is_refused_when_it_no_longer_is() {
    let root = Authority::root("root");
    let now = Arc::new(AtomicU64::new(YEAR_2030));
    let clock = {
        let now = Arc::clone(&now);
        move || SystemTime::UNIX_EPOCH + Duration::from_secs(now.load(Ordering::Relaxed))
    };
    let server = root.credentials_with(SERVER, Options::default().clock(clock));
    let leaf = leaf(&root);
    let kind = async || judge_client(&server, &leaf).await.unwrap_err().kind();
    let swap = |bundle: Bundle| server.replace(bundle).unwrap();
    judge_client(&server, &leaf).await.unwrap();

    now.store(YEAR_2030 + YEAR + 1, Ordering::Relaxed);
    assert_eq!(kind().await, ErrorKind::Expired);
    now.store(YEAR_2030 - 1, Ordering::Relaxed);
    assert_eq!(kind().await, ErrorKind::NotYetValid);
    now.store(YEAR_2030, Ordering::Relaxed);
    judge_client(&server, &leaf).await.unwrap();

    let own = root.leaf(SERVER);
    swap(own.bundle_with(&[&root], &[root.crl(&[42])]).unwrap());
    assert_eq!(kind().await, ErrorKind::Revoked);
    // Of the same name, with another key.
    let impostor = Authority::root("root");
    swap(own.bundle_with(&[&impostor], &[]).unwrap());
    assert_eq!(kind().await, ErrorKind::UnknownIssuer);
    swap(own.bundle_with(&[&root], &[]).unwrap());
    judge_client(&server, &leaf).await.unwrap();
}

/// The same certificate in the hands of somebody without its key.
#[tokio::test]
async fn a_certificate_that_is_known_proves_nothing_without_its_key() {
    let root = Authority::root("root");
    let client = root.credentials(CLIENT);
    let server = root.leaf(SERVER);
    judge_server(&client, &server, SERVER).await.unwrap();
    let stolen = Leaf {
        chain: server.chain.clone(),
        key: root.leaf(SERVER).key,
    };
    judge_server(&client, &stolen, SERVER).await.unwrap_err();
}

/// Counts what is verified of chains; the proof of a key has a table of its own.
#[derive(Debug)]
struct Counting(
    &'static dyn SignatureVerificationAlgorithm,
    &'static AtomicUsize,
);

impl SignatureVerificationAlgorithm for Counting {
    fn verify_signature(&self, key: &[u8], said: &[u8], by: &[u8]) -> Result<(), InvalidSignature> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.verify_signature(key, said, by)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.0.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.0.signature_alg_id()
    }
}

/// A provider, and how many signatures on certificates were verified by it.
pub(crate) fn counting() -> (Provider, &'static AtomicUsize) {
    let count: &'static AtomicUsize = Box::leak(Box::default());
    let mut crypto = foreign::crypto();
    let WebPkiSupportedAlgorithms { all, mapping } = crypto.signature_verification_algorithms;
    let counting = all.iter().map(|algorithm| {
        let counting: &'static Counting = Box::leak(Box::new(Counting(*algorithm, count)));
        counting as &'static dyn SignatureVerificationAlgorithm
    });
    crypto.signature_verification_algorithms = WebPkiSupportedAlgorithms {
        all: Vec::leak(counting.collect()),
        mapping,
    };
    (Arc::new(crypto).into(), count)
}

#[tokio::test]
async fn signatures_on_certificates_that_come_back_are_looked_at_once_unless_none_is_remembered() {
    for (remembered, expected) in [(Some(0), 3), (Some(2), 1), (None, 1)] {
        let (provider, count) = counting();
        let root = Authority::root("root");
        let bundle = root.leaf(SERVER).bundle(&[&root]).unwrap();
        let mut options = Options::default();
        if let Some(remembered) = remembered {
            options = options.remembered_certificates(remembered);
        }
        let server = Credentials::new(provider, bundle, options).unwrap();
        let leaf = root.leaf(CLIENT);
        for _ in 0..3 {
            judge_client(&server, &leaf).await.unwrap();
        }
        assert_eq!(count.load(Ordering::Relaxed), expected, "{remembered:?}");
    }
}

/// Whether a handshake with a stock client took up an earlier one, and with how many tickets it was left.
async fn stock_client<IO>(
    client: &TlsConnector,
    near: DuplexStream,
    far: impl Future<Output = IO>,
) -> (bool, u32)
where
    IO: AsyncWrite + Unpin,
{
    let says = async {
        let mut far = far.await;
        far.write_all(b"x").await.unwrap();
        far.flush().await.unwrap();
        far
    };
    let (near, _far) = tokio::join!(client.connect(foreign::name(), near), says);
    let mut near = near.unwrap();
    // Tickets come before what the server says.
    near.read_exact(&mut [0; 1]).await.unwrap();
    let connection = near.get_ref().1;
    let kind = connection.handshake_kind().unwrap();
    (
        kind == HandshakeKind::Resumed,
        connection.tls13_tickets_received(),
    )
}

/// The types of the extensions of a ClientHello in one record.
fn extensions(hello: &[u8]) -> Vec<u16> {
    // Record, message, version and random; then three lists and the extensions.
    let mut rest = &hello[5 + 4 + 2 + 32..];
    for width in [1, 2, 1] {
        let length = rest[..width]
            .iter()
            .fold(0, |length, byte| length << 8 | usize::from(*byte));
        rest = &rest[width + length..];
    }
    rest = &rest[2..];
    let mut types = Vec::new();
    while let [a, b, long, short, ..] = *rest {
        types.push(u16::from_be_bytes([a, b]));
        rest = &rest[4 + usize::from(u16::from_be_bytes([long, short]))..];
    }
    types
}

/// S-12, CVE-2022-21654. Every peer is judged by the rules of now.
#[tokio::test]
async fn no_session_is_resumed_by_our_server_or_our_client() {
    let root = Authority::root("root");
    let (ours, leaf) = (root.credentials(SERVER), root.leaf(CLIENT));
    let theirs = TlsAcceptor::from(Arc::new(foreign::server(&root.leaf(SERVER))));
    let remembers = || TlsConnector::from(Arc::new(foreign::client(Some(&leaf))));

    // Our server gives nothing to come back with.
    let client = remembers();
    for _ in 0..2 {
        let (near, far) = duplex(64 * 1024);
        let far = async { accept(far, &ours).await.unwrap() };
        assert_eq!(stock_client(&client, near, far).await, (false, 0));
    }
    // One that gives tickets is come back to with them; they are worth nothing to ours.
    let client = remembers();
    for again in [false, true] {
        let (near, far) = duplex(64 * 1024);
        let far = async { theirs.accept(far).await.unwrap() };
        let (resumed, tickets) = stock_client(&client, near, far).await;
        assert_eq!(resumed, again);
        assert!(tickets > 0);
    }
    let (near, far) = duplex(64 * 1024);
    let far = async { accept(far, &ours).await.unwrap() };
    assert_eq!(stock_client(&client, near, far).await, (false, 0));

    // Our client comes back without the tickets that it was given.
    let (client, expected) = (root.credentials(CLIENT), [id(SERVER)]);
    for _ in 0..2 {
        let (near, far) = duplex(64 * 1024);
        let (near, far) = tokio::join!(connect(near, &client, &expected), theirs.accept(far));
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        far.write_all(b"x").await.unwrap();
        near.read_exact(&mut [0; 1]).await.unwrap();
        let kind = far.get_ref().1.handshake_kind();
        assert!(
            kind.is_some_and(|kind| kind != HandshakeKind::Resumed),
            "{kind:?}"
        );
    }
    let (near, mut far) = duplex(64 * 1024);
    let connecting = tokio::spawn(async move { connect(near, &client, &expected).await });
    let mut hello = vec![0; 4096];
    let count = far.read(&mut hello).await.unwrap();
    connecting.abort();
    let extensions = extensions(&hello[..count]);
    const SUPPORTED_VERSIONS: u16 = 43;
    const PRE_SHARED_KEY: u16 = 41;
    const EARLY_DATA: u16 = 42;
    assert!(extensions.contains(&SUPPORTED_VERSIONS), "{extensions:?}");
    assert!(!extensions.contains(&PRE_SHARED_KEY), "{extensions:?}");
    assert!(!extensions.contains(&EARLY_DATA), "{extensions:?}");
}
