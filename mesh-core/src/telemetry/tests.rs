use std::error::Error;
use std::fmt::{self, Write as _};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, StatusCode};
use mesh_authz::Identity;
use mesh_xds::model::{Locality, Workload};
use proptest::prelude::*;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::{Layer, Registry};

use super::sanitize::{MAX_FIELD, sanitize};
use super::*;
use crate::{ErrorKind, ResponseFlag};

/// Writes every event as a line: level, target, then fields in the order in which they come.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

struct Line(String);

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        write!(self.0, " {}={value:?}", field.name()).unwrap();
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, " {}={value:?}", field.name()).unwrap();
    }
}

impl<S: tracing::Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut line = Line(format!("{} {}", metadata.level(), metadata.target()));
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }
}

fn logged(what: impl FnOnce()) -> Vec<String> {
    let lines = Lines::default();
    tracing::subscriber::with_default(Registry::default().with(lines.clone()), what);
    Arc::into_inner(lines.0).unwrap().into_inner().unwrap()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn peer(name: &str) -> Peer {
    Peer::new(format!("{name}-v1"), "default")
        .with_canonical_service(name)
        .with_cluster("Kubernetes")
        .with_principal(Identity::new("cluster.local", "default", name).unwrap())
}

fn labels(reporter: Reporter, security: SecurityPolicy) -> Labels {
    let service =
        DestinationService::new("reviews.default.svc.cluster.local", "reviews", "default");
    Labels::new(
        reporter,
        peer("productpage").with_instance("productpage-v1-abc"),
        peer("reviews"),
        Some(service),
        security,
    )
}

fn record(reporter: Reporter) -> AccessLog {
    AccessLog::new(
        &labels(reporter, SecurityPolicy::MutualTls),
        address("10.0.0.7:51000"),
        address("10.0.0.9:15008"),
    )
    .with_hbone_address("10.0.0.9:9080")
}

const ENDS: &str = "src.addr=10.0.0.7:51000 \
     src.workload=\"productpage-v1-abc\" src.namespace=\"default\" \
     src.identity=\"spiffe://cluster.local/ns/default/sa/productpage\" src.cluster=\"Kubernetes\" \
     dst.addr=10.0.0.9:15008 dst.hbone_addr=\"10.0.0.9:9080\" \
     dst.service=\"reviews.default.svc.cluster.local\" \
     dst.workload=\"reviews\" dst.namespace=\"default\" \
     dst.identity=\"spiffe://cluster.local/ns/default/sa/reviews\" dst.cluster=\"Kubernetes\"";

#[derive(Debug)]
struct Outer(io::Error);

impl fmt::Display for Outer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("receive")
    }
}

impl Error for Outer {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

#[test]
fn a_connection_is_logged_in_ztunnels_fields_and_order() {
    let lines = logged(|| {
        let log = record(Reporter::Source);
        log.opened();
        log.complete(Traffic::new(120, 4096), Duration::from_micros(13_900));
    });
    assert_eq!(
        lines,
        [
            format!("DEBUG mesh::access message=connection opened {ENDS} direction=\"outbound\""),
            format!(
                "INFO mesh::access message=connection complete {ENDS} direction=\"outbound\" \
                 bytes_sent=120 bytes_recv=4096 duration=\"13ms\""
            ),
        ]
    );
}

#[test]
fn bytes_in_the_log_are_sent_and_received_by_this_end() {
    let lines = logged(|| {
        let error = Outer(io::Error::other("reset\nby peer"));
        record(Reporter::Destination).failed(Traffic::new(120, 4096), Duration::ZERO, &error);
    });
    assert_eq!(
        lines,
        [format!(
            "ERROR mesh::access message=connection complete {ENDS} direction=\"inbound\" \
             bytes_sent=4096 bytes_recv=120 duration=\"0ms\" error=\"receive: reset\\\\x0aby peer\""
        )]
    );
}

#[test]
fn a_refused_connection_says_little_and_an_unproven_identity_is_not_said() {
    let (source, destination) = (address("10.0.0.7:51000"), address("10.0.0.9:15008"));
    let lines = logged(|| {
        let error = io::Error::other("tls handshake error");
        AccessLog::refused(Reporter::Destination, source, destination, &error);
        let plaintext = labels(Reporter::Destination, SecurityPolicy::Unknown);
        AccessLog::new(&plaintext, source, destination).opened();
    });
    assert_eq!(
        lines[0],
        "WARN mesh::access message=connection failed src.addr=10.0.0.7:51000 \
         dst.addr=10.0.0.9:15008 direction=\"inbound\" error=\"tls handshake error\""
    );
    assert!(lines[1].contains("src.workload="));
    assert!(!lines[1].contains("identity"), "{}", lines[1]);
    assert!(!lines[1].contains("hbone_addr"), "{}", lines[1]);
}

#[test]
fn a_request_is_logged_in_istios_words() {
    let request = Request::post("/ratings/0?user=a%0Ab")
        .header(
            "host",
            HeaderValue::from_bytes(b"ratings\xff:9080").unwrap(),
        )
        .header("x-request-id", "id-1\t2")
        .body(())
        .unwrap();
    let labels = Labels::new(
        Reporter::Destination,
        Peer::unknown(),
        peer("ratings"),
        None,
        SecurityPolicy::MutualTls,
    );
    let lines = logged(|| {
        let log = RequestLog::new(&labels, address("10.0.0.7:51000"), &request)
            .with_destination(address("10.0.0.9:9080"));
        let took = Duration::from_millis(2);
        log.complete(&RequestOutcome::new(
            RequestProtocol::Http,
            StatusCode::CREATED,
            took,
        ));
        let gone = RequestOutcome::abandoned(RequestProtocol::Http, took);
        log.failed(&gone, &io::Error::other("gone"));
    });
    let common = "src.addr=10.0.0.7:51000 dst.addr=10.0.0.9:9080 \
         dst.workload=\"ratings\" dst.namespace=\"default\" \
         dst.identity=\"spiffe://cluster.local/ns/default/sa/ratings\" dst.cluster=\"Kubernetes\" \
         direction=\"inbound\" method=\"POST\" path=\"/ratings/0?user=a%0Ab\" protocol=\"HTTP/1.1\" \
         authority=\"ratings\u{fffd}:9080\" request_id=\"id-1\\\\x092\"";
    assert_eq!(
        lines,
        [
            format!(
                "INFO mesh::access message=request complete {common} response_code=201 \
                 response_flags=\"-\" duration=\"2ms\""
            ),
            format!(
                "ERROR mesh::access message=request complete {common} response_code=0 \
                 response_flags=\"DC\" duration=\"2ms\" error=\"gone\""
            ),
        ]
    );
}

#[test]
fn control_characters_are_escaped() {
    for (value, expected) in [
        ("reviews.default", "reviews.default"),
        ("a\nb\r\0\x1b[31m", "a\\x0ab\\x0d\\x00\\x1b[31m"),
        ("back\\x0a", "back\\\\x0a"),
        ("\u{85}\u{7f}", "\\x85\\x7f"),
        ("\u{2028}\u{202e}", "\\u{2028}\\u{202e}"),
        ("é\"quoted\"", "é\"quoted\""),
    ] {
        assert_eq!(sanitize(value), expected, "{value:?}");
    }
}

proptest! {
    #[test]
    fn a_field_is_short_and_clean_whatever_comes(value in "(?s)[.a\\\\\0-\u{1f}é\u{2028}]{0,1500}") {
        let clean = sanitize(&value);
        prop_assert!(clean.len() <= MAX_FIELD);
        let bad = |c: char| c.is_control() || c == '\u{2028}';
        prop_assert!(!clean.chars().any(bad));
        // Nothing is lost that would fit.
        let whole: usize = value.chars().map(|c| sanitize(c.encode_utf8(&mut [0; 4])).len()).sum();
        prop_assert_eq!(clean.len() == whole, whole <= MAX_FIELD);
        prop_assert_eq!(clean.ends_with('…'), whole > MAX_FIELD);
    }

    #[test]
    fn trace_contexts_read_back(random in any::<[u8; 24]>(), sampled in any::<bool>()) {
        let context = TraceContext::from_random(random).with_sampled(sampled);
        prop_assert_eq!(TraceContext::parse(&context.to_string()).unwrap(), context);
        prop_assert_eq!(context.to_string().len(), 55);
        prop_assert_eq!(context.is_sampled(), sampled);
    }

    #[test]
    fn no_traceparent_panics(value in "(?s).{0,80}") {
        let _ = TraceContext::parse(&value);
    }
}

#[test]
fn traceparents_are_read_by_the_standard() {
    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let later = format!("cc{}-what-the-future-will-be-like", &GOOD[2..]);
    for good in [GOOD, &later, &GOOD.replace("00-4", "01-4")] {
        let context = TraceContext::parse(good).unwrap();
        assert_eq!(context.to_string(), GOOD, "{good}");
        assert_eq!(context.trace_id()[..2], [0x4b, 0xf9]);
        assert_eq!(context.parent_id()[6..], [0x02, 0xb7]);
    }
    for (bad, part) in [
        ("", "length"),
        (&GOOD[..54], "length"),
        (&format!("{GOOD}-"), "length"),
        (&format!("{GOOD}0").replace("00-4", "01-4"), "length"),
        (&GOOD.replace("00-4", "ff-4"), "version"),
        (&GOOD.replace("00-4", "0x-4"), "version"),
        (&GOOD.replace("-00f", "_00f"), "separator"),
        (&GOOD.replace("4bf9", "4BF9"), "trace id"),
        (
            &GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            "trace id",
        ),
        (
            &GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            "parent id",
        ),
        (&GOOD.replace("00f0", "00g0"), "parent id"),
        (&GOOD.replace("-01", "-0+"), "flags"),
        (
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902é-01",
            "parent id",
        ),
    ] {
        let error = TraceContext::parse(bad).unwrap_err();
        assert_eq!(error.part(), part, "{bad}");
    }
}

#[test]
fn ids_of_all_zeros_are_never_made() {
    let context = TraceContext::from_random([0; 24]);
    assert!(TraceContext::parse(&context.to_string()).is_ok());
}

#[test]
fn a_trace_that_came_is_left_alone_and_one_that_did_not_is_begun() {
    let mut headers = HeaderMap::new();
    let came = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    headers.insert("traceparent", HeaderValue::from_static(came));
    headers.insert("tracestate", HeaderValue::from_static("congo=t61rcWkgMzE"));
    let before = headers.clone();
    let never = || -> [u8; 24] { panic!("no trace has to begin") };
    assert_eq!(TraceContext::ensure(&mut headers, never).to_string(), came);
    assert_eq!(headers, before);

    // Two of them are none: which one is the caller's cannot be told.
    headers.append("traceparent", HeaderValue::from_static(came));
    assert_eq!(TraceContext::of(&headers), None);
    let begun = TraceContext::ensure(&mut headers, || [7; 24]);
    assert!(!begun.is_sampled());
    assert_eq!(TraceContext::of(&headers), Some(begun));
    assert_eq!(
        headers.len(),
        1,
        "tracestate goes with its trace: {headers:?}"
    );
}

#[test]
fn errors_have_ztunnels_flags() {
    for (kind, flag) in [
        (ErrorKind::Denied, "DENY"),
        (ErrorKind::ConnectTimeout, "NETWORK_POLICY"),
        (ErrorKind::Identity, "IDENTITY_ERROR"),
        (ErrorKind::TlsHandshake, "CONNECT"),
        (
            ErrorKind::TunnelRefused(StatusCode::UNAUTHORIZED),
            "CONNECT",
        ),
        (ErrorKind::Draining, "CONNECT"),
        (ErrorKind::Reset, "CONNECT"),
    ] {
        assert_eq!(ConnectionFlag::from(kind).as_str(), flag, "{kind:?}");
    }
    let took = Duration::ZERO;
    let outcome = RequestOutcome::new(RequestProtocol::Http, StatusCode::BAD_GATEWAY, took);
    assert_eq!(outcome.flags(), "-");
    assert_eq!(outcome.with_flag(ResponseFlag::NoRouteFound).flags(), "NR");
}

#[test]
fn grpc_is_told_by_its_content_type() {
    let mut headers = HeaderMap::new();
    for (value, protocol) in [
        ("application/grpc", RequestProtocol::Grpc),
        ("application/grpc+proto", RequestProtocol::Grpc),
        ("application/json", RequestProtocol::Http),
    ] {
        headers.insert("content-type", HeaderValue::from_static(value));
        assert_eq!(RequestProtocol::of(&headers), protocol, "{value}");
    }
}

#[test]
fn a_workload_of_the_model_becomes_a_peer() {
    let workload = Workload::new(
        "Kubernetes//Pod/default/reviews-abc",
        "default",
        "reviews-abc",
    )
    .with_workload_name("reviews")
    .with_canonical_name("reviews-canonical")
    .with_canonical_revision("v2")
    .with_locality(Locality::new("eu", "", ""));
    let peer = Peer::from(&workload);
    assert_eq!(peer.workload(), Some("reviews"));
    assert_eq!(peer.namespace(), Some("default"));
    assert_eq!(peer.app(), Some("reviews-canonical"));
    assert_eq!(peer.version(), Some("v2"));
    assert_eq!(peer.cluster(), Some("Kubernetes"));
    assert_eq!(peer.instance(), Some("reviews-abc"));
    assert_eq!((peer.region(), peer.zone()), (Some("eu"), None));
    assert_eq!(peer.principal(), None);
    let unversioned = Peer::from(&workload.with_canonical_revision(""));
    assert_eq!(unversioned.canonical_revision(), Some("latest"));
    assert_eq!(unversioned.version(), Some("latest"));
    assert_eq!(Peer::unknown().canonical_revision(), None);
}
