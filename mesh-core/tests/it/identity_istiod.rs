//! Certificates from istiod: what is asked, how one proves who asks, and what is said when it fails.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use mesh_core::ControlPlane;
use mesh_core::authz::Identity;
use mesh_core::hbone::tls::{Bundle, Fingerprint};
use mesh_core::identity::{CertificateSource, CertificateStream, Error, ErrorKind, Istiod};
use rcgen::PublicKeyData;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use tokio::time::{Instant, timeout};
use tonic::Code;

use crate::identity_renewal::{reviews, wall_clock};
use crate::istiod::{self, Mood};
use crate::memory_network::{ADDRESS, pair, ping};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A host's files, and an istiod.
struct Place {
    dir: tempfile::TempDir,
    istiod: Arc<istiod::Istiod>,
}

impl Place {
    fn new() -> Self {
        Self::with(istiod::Istiod::start(DAY, wall_clock()))
    }

    fn with(istiod: Arc<istiod::Istiod>) -> Self {
        let place = Self {
            dir: tempfile::tempdir().unwrap(),
            istiod,
        };
        place.write("root-cert.pem", &place.istiod.root_pem());
        let token = place.istiod.token("reviews", DAY * 365);
        place.write("istio-token", &token);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    fn control_plane(&self) -> ControlPlane {
        self.istiod
            .control_plane()
            .root_cert_file(self.path("root-cert.pem"))
            .token_file(self.path("istio-token"))
    }

    fn source(&self) -> Istiod {
        Istiod::new(self.control_plane()).rng(7)
    }

    /// For tests of days, in which looking at files each second takes long.
    fn slow_source(&self) -> Istiod {
        self.source().poll_interval(Duration::from_secs(600))
    }

    async fn error(&self) -> Error {
        next(&mut self.source().watch(reviews())).await.unwrap_err()
    }
}

async fn next(certificates: &mut CertificateStream) -> Result<Bundle, Error> {
    certificates.next().await.expect("the source goes on")
}

/// The error with all its sources, as it is logged.
fn report(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        text += &format!(": {source}");
        next = source.source();
    }
    text
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_is_what_istiod_wants_to_be_asked() {
    let place = Place::new();
    place.write("istio-token", "token-0\n");
    let control_plane = place.control_plane().cluster_id("cluster1");
    let control_plane = control_plane.header("x-tenant", "ours");
    let source = Istiod::new(control_plane).ttl(12 * HOUR);
    let bundle = next(&mut source.watch(reviews())).await.unwrap();
    assert_eq!(*bundle.identity(), reviews());
    assert_eq!(bundle.roots(), [place.istiod.root()]);

    let [call] = &place.istiod.calls()[..] else {
        panic!("one call");
    };
    assert_eq!(call.authorization.as_deref(), Some("Bearer token-0"));
    assert_eq!(call.cluster.as_deref(), Some("cluster1"));
    assert_eq!(call.tenant.as_deref(), Some("ours"));
    assert_eq!(
        call.peer, None,
        "no certificate is shown where a token does"
    );
    assert_eq!(call.ask.validity, 43_200);
    assert_eq!(call.ask.metadata, None);

    let der = CertificateSigningRequestDer::from_pem_slice(call.ask.csr.as_bytes()).unwrap();
    let csr = call.ask.signing_request();
    let names: Vec<_> = csr.params.subject_alt_names.clone();
    let uri = reviews().to_string().try_into().unwrap();
    assert_eq!(names, [rcgen::SanType::URI(uri)]);
    assert!(csr.params.distinguished_name.iter().next().is_none());
    let algorithm = PublicKeyData::algorithm(&csr.public_key);
    assert_eq!(*algorithm, rcgen::PKCS_ECDSA_P256_SHA256);
    // subjectAltName, then BOOLEAN TRUE: critical.
    let critical = [0x55, 0x1d, 0x11, 0x01, 0x01, 0xff];
    assert!(der.windows(6).any(|window| window == critical));
}

#[tokio::test(start_paused = true)]
async fn an_istiod_that_takes_its_time_is_waited_for_as_long_as_set() {
    let place = Place::new();
    let seconds = Duration::from_secs;
    let fails = async |source: Istiod| {
        let begin = Instant::now();
        let error = next(&mut source.watch(reviews())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        begin.elapsed()
    };
    place.istiod.be(Mood::After(HOUR));
    assert_eq!(
        fails(place.source().fetch_timeout(seconds(3))).await,
        seconds(3)
    );
    // Nor does it take connections.
    let control_plane = place.control_plane().dialer(|_| std::future::pending());
    let control_plane = control_plane.connect_timeout(seconds(2));
    assert_eq!(fails(Istiod::new(control_plane)).await, seconds(2));
}

#[tokio::test(start_paused = true)]
async fn pauses_after_failures_are_as_long_as_set() {
    let place = Place::new();
    place.istiod.be(Mood::Status(Code::Unavailable, "later"));
    let moment = Duration::from_millis(2);
    let source = place.source().backoff(moment, moment);
    let mut watch = source.watch(reviews());
    let begin = Instant::now();
    for _ in 0..20 {
        next(&mut watch).await.unwrap_err();
    }
    // The first pauses of the default are a second and more.
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn files_are_looked_at_as_often_as_set() {
    let place = Place::new();
    let seconds = Duration::from_secs;
    let source = place.source().poll_interval(seconds(100));
    let mut watch = source.watch(reviews());
    let first = next(&mut watch).await.unwrap();
    let other = istiod::Istiod::start(DAY, wall_clock());
    place.write(
        "root-cert.pem",
        &(place.istiod.root_pem() + &other.root_pem()),
    );
    let begin = Instant::now();
    let both = next(&mut watch).await.unwrap();
    assert_eq!(both.chain(), first.chain());
    assert_eq!(both.roots(), [place.istiod.root(), other.root()]);
    // Two looks in a row have to find the same.
    let took = begin.elapsed();
    assert!((seconds(100)..=seconds(200)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_token_is_sent_only_where_there_is_to_be_one() {
    let place = Place::new();
    let source = Istiod::new(place.control_plane().without_token());
    let error = next(&mut source.watch(reviews())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Token);
    let none = "none is configured, and there is no valid certificate in its place";
    assert_eq!(error.detail(), none);
    assert!(place.istiod.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_nodes_proxy_asks_for_others() {
    let place = Place::new();
    let source = place.slow_source().for_node();
    for account in ["ratings", "details"] {
        let identity = Identity::new("cluster.local", "default", account).unwrap();
        let bundle = next(&mut source.watch(identity.clone())).await.unwrap();
        assert_eq!(*bundle.identity(), identity);
        let calls = place.istiod.calls();
        let metadata = calls.last().unwrap().ask.metadata.clone().unwrap();
        let fields: Vec<_> = metadata.fields.into_iter().collect();
        assert_eq!(fields.len(), 1);
        assert_eq!(fields[0].0, "ImpersonatedIdentity");
        assert_eq!(fields[0].1.string, identity.to_string());
    }

    // A certificate speaks for itself only: it is not tried for others.
    let mut watch = source.watch(Identity::new("cluster.local", "default", "ratings").unwrap());
    next(&mut watch).await.unwrap();
    place.write("istio-token", "expired");
    let calls = place.istiod.calls().len();
    let error = next(&mut watch).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    let calls = place.istiod.calls().split_off(calls);
    assert!(calls.iter().all(|call| call.peer.is_none()));
}

#[tokio::test(start_paused = true)]
async fn without_impersonation_the_token_decides_whose_certificate_it_is() {
    let place = Place::new();
    let eve = Identity::new("cluster.local", "default", "eve").unwrap();
    let error = next(&mut place.source().watch(eve)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongIdentity);
    assert_eq!(
        error.detail(),
        "expected a certificate of spiffe://cluster.local/ns/default/sa/eve, \
         got one of spiffe://cluster.local/ns/default/sa/reviews"
    );
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_missing_or_refused_is_named_and_a_new_one_heals() {
    let place = Place::new();
    let path = place.path("istio-token").display().to_string();
    place.remove("istio-token");
    let source = place.source();
    let mut watch = source.watch(reviews());
    let error = next(&mut watch).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("token cannot be used: token file {path} is missing")
    );
    for (content, problem) in [
        ("\n", "is empty"),
        ("a b", "holds no token: expected a JWT on one line"),
    ] {
        place.write("istio-token", content);
        assert_eq!(
            place.error().await.detail(),
            format!("token file {path} {problem}")
        );
    }
    place.write("istio-token", "stolen");
    let error = place.error().await;
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert_eq!(
        error.detail(),
        "istiod.istio-system.svc:15012 refused the token: \
         The request does not have valid authentication credentials: authentication failure"
    );

    // After many failures the pauses are long; a new token ends them.
    while let Ok(item) = timeout(Duration::from_secs(30), watch.next()).await {
        assert!(item.unwrap().is_err());
    }
    place.write("istio-token", &place.istiod.token("reviews", DAY));
    let begin = Instant::now();
    while next(&mut watch).await.is_err() {}
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
}

/// V006.
#[tokio::test(start_paused = true)]
async fn an_istiod_that_is_not_to_be_believed_is_named_with_the_reason() {
    let place = Place::new();
    let path = place.path("root-cert.pem").display().to_string();
    let other = istiod::Istiod::start(DAY, wall_clock());
    place.write("root-cert.pem", &other.root_pem());
    let error = place.error().await;
    assert_eq!(error.kind(), ErrorKind::Untrusted);
    assert!(error.detail().contains("root does not match"), "{error}");
    let text = report(&error);
    for part in [&path, &Fingerprint::of(&other.root()).to_string()] {
        assert!(text.contains(part), "{text}");
    }
    assert!(place.istiod.calls().is_empty(), "no token for a stranger");

    place.remove("root-cert.pem");
    let error = place.error().await;
    assert_eq!(
        error.detail(),
        format!("root certificate file {path} is missing")
    );
    place.write("root-cert.pem", "garbage");
    let error = place.error().await;
    assert!(
        error
            .detail()
            .starts_with(&format!("root certificate file {path}: expected")),
        "{error}"
    );

    let place = Place::with(istiod::Istiod::start_as(
        "istiod.example",
        DAY,
        wall_clock(),
    ));
    let error = place.error().await;
    assert_eq!(error.kind(), ErrorKind::Untrusted);
    let text = report(&error);
    assert!(
        text.contains("[\"istiod.example\"], expected one of [\"istiod.istio-system.svc\"]"),
        "{text}"
    );
    let control_plane = place.control_plane().server_names(["istiod.example"]);
    next(&mut Istiod::new(control_plane).watch(reviews()))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_none_are_failures_and_the_next_is_used() {
    let place = Place::new();
    next(&mut place.source().watch(reviews())).await.unwrap();
    for (mood, kind, what) in [
        (
            Mood::Nothing,
            ErrorKind::Invalid,
            "the answer has no certificate",
        ),
        (
            Mood::NoRoot,
            ErrorKind::Invalid,
            "the answer has no root certificate",
        ),
        (
            Mood::Garbage,
            ErrorKind::Invalid,
            "the certificate in the answer",
        ),
        (
            Mood::Another,
            ErrorKind::Invalid,
            "it is for another key than ours",
        ),
        (
            Mood::Status(Code::Unavailable, "starting"),
            ErrorKind::Unavailable,
            "starting",
        ),
        (
            Mood::Status(Code::Internal, "broken"),
            ErrorKind::Unavailable,
            "broken",
        ),
        (
            Mood::Status(Code::PermissionDenied, "not you"),
            ErrorKind::Refused,
            "not you",
        ),
        (
            Mood::After(HOUR),
            ErrorKind::Unavailable,
            "no answer within 10s",
        ),
    ] {
        place.istiod.be(mood.clone());
        let source = place.source();
        let mut watch = source.watch(reviews());
        let error = next(&mut watch).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{mood:?}: {error}");
        assert!(error.detail().contains(what), "{mood:?}: {error}");
        place.istiod.be(None);
        assert_eq!(*next(&mut watch).await.unwrap().identity(), reviews());
    }
    // Slow is not too slow.
    place.istiod.be(Mood::After(Duration::from_secs(8)));
    next(&mut place.source().watch(reviews())).await.unwrap();
}

/// The last element has the roots, of which those that cannot be read are left out; what is between it and the
/// first leads to them.
#[tokio::test(start_paused = true)]
async fn an_intermediate_is_shown_to_peers_and_no_root() {
    let place = Place::new();
    place.istiod.be(Mood::Intermediate);
    let bundle = next(&mut place.source().watch(reviews())).await.unwrap();
    assert_eq!(*bundle.identity(), reviews());
    let [_, intermediate] = bundle.chain() else {
        panic!("{} certificates", bundle.chain().len());
    };
    assert_ne!(*intermediate, place.istiod.root());
    assert_eq!(bundle.roots(), [place.istiod.root()]);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_permitted_is_not_asked_for_again_and_again() {
    let place = Place::new();
    place
        .istiod
        .be(Mood::Status(Code::PermissionDenied, "not you"));
    let source = place.slow_source();
    let mut watch = source.watch(reviews());
    let begin = Instant::now();
    for _ in 0..60 {
        let error = next(&mut watch).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
    }
    assert!(begin.elapsed() >= HOUR / 2, "{:?}", begin.elapsed());
    assert!(begin.elapsed() <= HOUR, "{:?}", begin.elapsed());
    let settings = "an address without a port";
    let source = Istiod::new(ControlPlane::new(settings).token_file(place.path("istio-token")));
    let error = next(&mut source.watch(reviews())).await.unwrap_err();
    assert!(
        error.is_final() && error.detail().contains(settings),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_certificate_does_in_place_of_the_token() {
    let place = Place::new();
    let source = place.slow_source();
    let mut watch = source.watch(reviews());
    next(&mut watch).await.unwrap();
    // Refused, then missing, then there again.
    place.write("istio-token", "expired");
    let second = next(&mut watch).await.unwrap();
    place.remove("istio-token");
    let third = next(&mut watch).await.unwrap();
    assert_ne!(second.chain(), third.chain());
    place.write("istio-token", &place.istiod.token("reviews", DAY));
    next(&mut watch).await.unwrap();
    let calls = place.istiod.calls();
    let how: Vec<_> = calls
        .iter()
        .map(|call| (call.authorization.as_deref(), call.peer.is_some()))
        .collect();
    assert_eq!(
        how,
        [
            (Some("Bearer token-0"), false),
            (Some("Bearer expired"), false),
            (None, true),
            (None, true),
            (Some("Bearer token-1"), false),
        ]
    );
    assert!(
        calls
            .iter()
            .all(|call| call.peer.as_ref().is_none_or(|peer| *peer == reviews()))
    );
    // No key is asked for twice.
    let keys: HashSet<_> = calls
        .iter()
        .map(|call| call.ask.signing_request().public_key.der_bytes().to_vec())
        .collect();
    assert_eq!(keys.len(), calls.len());

    // By its setting, it does not.
    place.write("istio-token", &place.istiod.token("reviews", HOUR));
    let source = place.slow_source().renew_by_certificate(false);
    let mut watch = source.watch(reviews());
    next(&mut watch).await.unwrap();
    let error = next(&mut watch).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
}

#[tokio::test(start_paused = true)]
async fn a_root_that_came_with_a_certificate_is_enough_to_believe_istiod() {
    let place = Place::new();
    let source = place.slow_source();
    let mut watch = source.watch(reviews());
    next(&mut watch).await.unwrap();
    place.remove("root-cert.pem");
    next(&mut watch).await.unwrap();

    // Both of them, while istiod says so.
    let new = istiod::Istiod::start(DAY, wall_clock());
    place.istiod.trust_too(&new.root_pem());
    let both = loop {
        let bundle = next(&mut watch).await.unwrap();
        if bundle.roots().len() > 1 {
            break bundle;
        }
    };
    assert_eq!(both.roots(), [place.istiod.root(), new.root()]);
}

#[tokio::test(start_paused = true)]
async fn roots_of_workloads_never_stand_in_for_those_of_the_control_plane_alone() {
    let place = Place::new();
    place.write("server.pem", &place.istiod.root_pem());
    let path = place.path("server.pem");
    let control_plane = place.control_plane().server_root_cert_file(&path);
    let source = Istiod::new(control_plane)
        .rng(7)
        .poll_interval(Duration::from_secs(600));
    let mut watch = source.watch(reviews());
    let first = next(&mut watch).await.unwrap();
    assert_eq!(first.roots(), [place.istiod.root()], "it signed the server");
    let asked = place.istiod.calls().len();

    place.remove("server.pem");
    let error = failure(&mut watch).await;
    assert_eq!(
        error.detail(),
        format!("root certificate file {} is missing", path.display())
    );
    place.write("server.pem", "garbage");
    let error = failure(&mut watch).await;
    assert!(error.detail().contains("server.pem: expected"), "{error}");
    let other = istiod::Istiod::start(DAY, wall_clock());
    place.write("server.pem", &other.root_pem());
    let error = failure(&mut watch).await;
    assert_eq!(error.kind(), ErrorKind::Untrusted);
    assert_eq!(place.istiod.calls().len(), asked, "no token for a workload");
}

/// The next error; a certificate that is told again, as the files change, is none.
async fn failure(certificates: &mut CertificateStream) -> Error {
    for _ in 0..3 {
        if let Err(error) = next(certificates).await {
            return error;
        }
    }
    panic!("the certificate was renewed");
}

/// One source for both ends of a connection, each with its own token.
struct Both {
    client: Istiod,
    server: Istiod,
    given: Arc<Given>,
}

/// The certificates that each end was given.
#[derive(Default)]
struct Given {
    client: Mutex<HashSet<Vec<u8>>>,
    server: Mutex<HashSet<Vec<u8>>>,
}

impl Given {
    fn each(&self) -> [usize; 2] {
        [&self.client, &self.server].map(|given| given.lock().unwrap().len())
    }
}

impl CertificateSource for Both {
    fn watch(&self, identity: Identity) -> CertificateStream {
        let is_client = identity.service_account() == "client";
        let given = Arc::clone(&self.given);
        let source = match is_client {
            true => &self.client,
            false => &self.server,
        };
        let certificates = source.watch(identity).inspect(move |item| {
            let given = match is_client {
                true => &given.client,
                false => &given.server,
            };
            if let Ok(bundle) = item {
                given.lock().unwrap().insert(bundle.chain()[0].to_vec());
            }
        });
        Box::pin(certificates)
    }
}

/// The token lives five seconds, certificates ten: everything after the first runs on certificates,
/// and a restart on what was kept.
#[tokio::test(start_paused = true)]
async fn a_short_token_is_enough_for_twenty_rotations_and_a_restart() {
    let clock = wall_clock();
    let istiod = istiod::Istiod::start(Duration::from_secs(10), clock.clone());
    let place = Place::with(istiod);
    for account in ["client", "server"] {
        let token = place.istiod.token(account, Duration::from_secs(5));
        place.write(&format!("token-{account}"), &token);
    }
    let source = |account: &str| {
        let token = place.path(&format!("token-{account}"));
        Istiod::new(place.control_plane().token_file(token)).state_dir(place.path("state"))
    };
    let mut requests = 0;
    let given = Arc::new(Given::default());
    for rotations in [10, 20] {
        let both = Both {
            client: source("client"),
            server: source("server"),
            given: Arc::clone(&given),
        };
        let (client, _server) = pair(both, clock.clone()).await;
        let mut long = client.connect(ADDRESS).await.unwrap();
        // Of both: the first certificate is none of a rotation.
        while given.each().iter().any(|given| *given <= rotations) {
            ping(&mut long).await.unwrap();
            let mut stream = client.connect(ADDRESS).await.unwrap();
            ping(&mut stream).await.unwrap();
            requests += 1;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
    assert!(requests >= 150, "{requests}");
    let calls = place.istiod.calls();
    let by_token = calls.iter().filter(|call| call.authorization.is_some());
    let first: Vec<_> = calls.iter().take(2).map(|call| call.peer.clone()).collect();
    assert_eq!(first, [None, None]);
    assert!(by_token.count() > 20, "the token is tried first, each time");
}
