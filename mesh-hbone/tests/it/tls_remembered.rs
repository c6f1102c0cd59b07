//! Peers that come back: less work, the same answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use mesh_hbone::ErrorKind;
use mesh_hbone::tls::{Bundle, Credentials, Options};
use rcgen::{SerialNumber, date_time_ymd};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};

use crate::authority::{Authority, CLIENT, Leaf, SERVER, leaf_params};
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

#[tokio::test]
async fn signatures_on_certificates_that_come_back_are_looked_at_once_unless_none_is_remembered() {
    for (remembered, expected) in [(Some(0), 3), (Some(2), 1), (None, 1)] {
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
        let root = Authority::root("root");
        let bundle = root.leaf(SERVER).bundle(&[&root]).unwrap();
        let mut options = Options::default();
        if let Some(remembered) = remembered {
            options = options.remembered_certificates(remembered);
        }
        let server = Credentials::new(Arc::new(crypto).into(), bundle, options).unwrap();
        let leaf = root.leaf(CLIENT);
        for _ in 0..3 {
            judge_client(&server, &leaf).await.unwrap();
        }
        assert_eq!(count.load(Ordering::Relaxed), expected, "{remembered:?}");
    }
}
