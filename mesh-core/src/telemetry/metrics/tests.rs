use std::collections::BTreeMap;
use std::time::Duration;

use mesh_authz::Identity;
use proptest::prelude::*;

use super::*;
use crate::ResponseFlag;
use crate::telemetry::{DestinationService, Peer, SecurityPolicy};
use http::StatusCode;

fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "default", account).unwrap()
}

fn productpage() -> Peer {
    Peer::new("productpage-v1", "default")
        .with_canonical_service("productpage")
        .with_canonical_revision("v1")
        .with_cluster("Kubernetes")
        .with_locality("eu", "eu-1")
        .with_principal(identity("bookinfo-productpage"))
}

fn reviews() -> Peer {
    Peer::new("reviews-v2", "default")
        .with_canonical_service("reviews")
        .with_canonical_revision("v2")
        .with_cluster("Kubernetes")
        .with_principal(identity("bookinfo-reviews"))
}

fn labels(reporter: Reporter) -> Labels {
    let service =
        DestinationService::new("reviews.default.svc.cluster.local", "reviews", "default");
    Labels::new(
        reporter,
        productpage(),
        reviews(),
        Some(service),
        SecurityPolicy::MutualTls,
    )
}

fn anonymous(workload: &str) -> Labels {
    Labels::new(
        Reporter::Destination,
        Peer::new(workload, "default"),
        Peer::unknown(),
        None,
        SecurityPolicy::Unknown,
    )
}

/// The lines of one sample name: labels and value.
fn samples(metrics: &Metrics, name: &str) -> Vec<(BTreeMap<String, String>, f64)> {
    parse(&metrics.encode())
        .into_iter()
        .filter(|sample| sample.0 == name)
        .map(|(_, labels, value)| (labels.into_iter().collect(), value))
        .collect()
}

fn total(metrics: &Metrics, name: &str) -> f64 {
    samples(metrics, name).iter().map(|(_, value)| value).sum()
}

type Sample = (String, Vec<(String, String)>, f64);

/// Reads OpenMetrics text by the letter of its grammar; panics on anything else.
fn parse(text: &str) -> Vec<Sample> {
    let body = text.strip_suffix("# EOF\n").expect("ends with # EOF");
    let mut samples = Vec::new();
    for line in body.split_terminator('\n') {
        if let Some(comment) = line.strip_prefix("# ") {
            assert!(
                comment.starts_with("HELP ") || comment.starts_with("TYPE "),
                "{line}"
            );
            continue;
        }
        let name_end = line
            .find(['{', ' '])
            .expect("a name, then labels or a value");
        let (name, mut rest) = line.split_at(name_end);
        let mut labels = Vec::new();
        if let Some(mut inside) = rest.strip_prefix('{') {
            loop {
                let (key, after) = inside.split_once("=\"").expect("a label");
                let mut value = String::new();
                let mut chars = after.char_indices();
                let end = loop {
                    match chars.next().expect("a closing quote") {
                        (at, '"') => break at,
                        (_, '\\') => value.push(match chars.next().expect("an escape").1 {
                            'n' => '\n',
                            c @ ('\\' | '"') => c,
                            other => panic!("escape {other:?}"),
                        }),
                        (_, c) => value.push(c),
                    }
                };
                labels.push((key.to_owned(), value));
                inside = &after[end + 1..];
                if let Some(next) = inside.strip_prefix(',') {
                    inside = next;
                } else {
                    rest = inside.strip_prefix('}').expect("a closing brace");
                    break;
                }
            }
        }
        let value = rest
            .strip_prefix(' ')
            .expect("a value")
            .parse()
            .expect("a number");
        samples.push((name.to_owned(), labels, value));
    }
    samples
}

#[test]
fn names_labels_and_their_order_are_ztunnels() {
    let metrics = Metrics::new();
    let connection = metrics.tcp_opened(&labels(Reporter::Source));
    connection.add_received(120);
    connection.add_sent(4096);
    connection.close(ConnectionFlag::Denied);
    let common = |flags: &str| {
        format!(
            "reporter=\"source\",\
             source_workload=\"productpage-v1\",\
             source_canonical_service=\"productpage\",\
             source_canonical_revision=\"v1\",\
             source_workload_namespace=\"default\",\
             source_principal=\"spiffe://cluster.local/ns/default/sa/bookinfo-productpage\",\
             source_app=\"productpage\",\
             source_version=\"v1\",\
             source_cluster=\"Kubernetes\",\
             destination_service=\"reviews.default.svc.cluster.local\",\
             destination_service_namespace=\"default\",\
             destination_service_name=\"reviews\",\
             destination_workload=\"reviews-v2\",\
             destination_canonical_service=\"reviews\",\
             destination_canonical_revision=\"v2\",\
             destination_workload_namespace=\"default\",\
             destination_principal=\"spiffe://cluster.local/ns/default/sa/bookinfo-reviews\",\
             destination_app=\"reviews\",\
             destination_version=\"v2\",\
             destination_cluster=\"Kubernetes\",\
             request_protocol=\"tcp\",\
             response_flags=\"{flags}\",\
             connection_security_policy=\"mutual_tls\",\
             source_region=\"eu\",\
             source_zone=\"eu-1\",\
             destination_region=\"unknown\",\
             destination_zone=\"unknown\""
        )
    };
    let (open, denied) = (common("-"), common("DENY"));
    let expected = format!(
        "# HELP istio_tcp_connections_opened The total number of TCP connections opened.\n\
         # TYPE istio_tcp_connections_opened counter\n\
         istio_tcp_connections_opened_total{{{open}}} 1\n\
         # HELP istio_tcp_received_bytes The size of total bytes received during request in case of a TCP connection.\n\
         # TYPE istio_tcp_received_bytes counter\n\
         istio_tcp_received_bytes_total{{{open}}} 120\n\
         # HELP istio_tcp_sent_bytes The size of total bytes sent during response in case of a TCP connection.\n\
         # TYPE istio_tcp_sent_bytes counter\n\
         istio_tcp_sent_bytes_total{{{open}}} 4096\n\
         # HELP istio_tcp_connections_closed The total number of TCP connections closed.\n\
         # TYPE istio_tcp_connections_closed counter\n\
         istio_tcp_connections_closed_total{{{denied}}} 1\n\
         # HELP istio_tcp_connections_failed The total number of TCP connections that failed (unstable).\n\
         # TYPE istio_tcp_connections_failed counter\n\
         istio_tcp_connections_failed_total{{{denied}}} 1\n\
         # HELP istio_build Istio component build info.\n\
         # TYPE istio_build gauge\n\
         istio_build{{component=\"mesh-core\",tag=\"{version}\"}} 1\n\
         # EOF\n",
        version = env!("CARGO_PKG_VERSION"),
    );
    assert_eq!(metrics.encode(), expected);
}

#[test]
fn request_metrics_have_istios_labels_in_order() {
    let metrics = Metrics::new();
    let outcome = RequestOutcome::new(
        RequestProtocol::Grpc,
        StatusCode::OK,
        Duration::from_millis(7),
    )
    .with_grpc_status(14)
    .with_flag(ResponseFlag::UpstreamConnectionFailure);
    metrics.request(&labels(Reporter::Destination), &outcome);
    let parsed = parse(&metrics.encode());
    let (_, labels, value) = &parsed[0];
    assert_eq!(
        (parsed[0].0.as_str(), *value),
        ("istio_requests_total", 1.0)
    );
    let got: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (&**k, &**v)).collect();
    assert_eq!(
        got,
        [
            ("reporter", "destination"),
            ("source_workload", "productpage-v1"),
            ("source_canonical_service", "productpage"),
            ("source_canonical_revision", "v1"),
            ("source_workload_namespace", "default"),
            (
                "source_principal",
                "spiffe://cluster.local/ns/default/sa/bookinfo-productpage"
            ),
            ("source_app", "productpage"),
            ("source_version", "v1"),
            ("source_cluster", "Kubernetes"),
            ("destination_workload", "reviews-v2"),
            ("destination_workload_namespace", "default"),
            (
                "destination_principal",
                "spiffe://cluster.local/ns/default/sa/bookinfo-reviews"
            ),
            ("destination_app", "reviews"),
            ("destination_version", "v2"),
            ("destination_service", "reviews.default.svc.cluster.local"),
            ("destination_canonical_service", "reviews"),
            ("destination_canonical_revision", "v2"),
            ("destination_service_name", "reviews"),
            ("destination_service_namespace", "default"),
            ("destination_cluster", "Kubernetes"),
            ("request_protocol", "grpc"),
            ("response_code", "200"),
            ("grpc_response_status", "14"),
            ("response_flags", "UF"),
            ("connection_security_policy", "mutual_tls"),
        ]
    );
}

#[test]
fn what_is_missing_is_unknown_and_localities_need_a_workload() {
    let metrics = Metrics::new();
    let nobody = Labels::new(
        Reporter::Source,
        Peer::unknown(),
        Peer::unknown(),
        Some(DestinationService::passthrough()),
        SecurityPolicy::Unknown,
    );
    metrics.tcp_opened(&nobody).close(ConnectionFlag::None);
    let (labels, _) = &samples(&metrics, "istio_tcp_connections_opened_total")[0];
    assert_eq!(labels["source_principal"], "unknown");
    assert_eq!(labels["destination_service"], "unknown");
    assert_eq!(labels["destination_service_name"], "PassthroughCluster");
    assert_eq!(labels["connection_security_policy"], "unknown");
    assert_eq!(labels.len(), 23);

    metrics
        .tcp_opened(&anonymous(""))
        .close(ConnectionFlag::None);
    let known = samples(&metrics, "istio_tcp_connections_opened_total")
        .into_iter()
        .find(|(labels, _)| labels["reporter"] == "destination")
        .unwrap();
    assert_eq!(known.0["source_workload"], "unknown");
    assert_eq!(known.0.len(), 27);
}

#[test]
fn received_is_what_the_client_sent_at_both_ends() {
    let metrics = Metrics::new();
    for reporter in [Reporter::Source, Reporter::Destination] {
        let connection = metrics.tcp_opened(&labels(reporter));
        connection.add_received(10);
        connection.add_sent(1000);
        assert_eq!(
            connection.close(ConnectionFlag::None),
            Traffic::new(10, 1000)
        );
    }
    for (name, expected) in [
        ("istio_tcp_received_bytes_total", 10.0),
        ("istio_tcp_sent_bytes_total", 1000.0),
    ] {
        let values: Vec<f64> = samples(&metrics, name).iter().map(|(_, v)| *v).collect();
        assert_eq!(values, [expected, expected], "{name}");
    }
}

#[test]
fn a_connection_opens_under_no_flag_and_closes_under_its_last() {
    let metrics = Metrics::new();
    let labels = labels(Reporter::Destination);
    let first = metrics.tcp_opened(&labels);
    let second = metrics.tcp_opened(&labels);
    let dropped = metrics.tcp_opened(&labels);
    assert_eq!(total(&metrics, "istio_tcp_connections_closed_total"), 0.0);
    first.close(ConnectionFlag::None);
    second.close(ConnectionFlag::Denied);
    drop(dropped);
    metrics.tcp_refused(&labels, ConnectionFlag::IdentityError);

    let by_flag = |name: &str| -> BTreeMap<String, f64> {
        samples(&metrics, name)
            .into_iter()
            .map(|(labels, value)| (labels["response_flags"].clone(), value))
            .collect()
    };
    let expected = |flags: &[(&str, f64)]| -> BTreeMap<String, f64> {
        flags.iter().map(|(f, v)| ((*f).to_owned(), *v)).collect()
    };
    assert_eq!(
        by_flag("istio_tcp_connections_opened_total"),
        expected(&[("-", 3.0)])
    );
    assert_eq!(
        by_flag("istio_tcp_connections_closed_total"),
        expected(&[
            ("-", 1.0),
            ("CONNECT", 1.0),
            ("DENY", 1.0),
            ("IDENTITY_ERROR", 1.0)
        ])
    );
    assert_eq!(
        by_flag("istio_tcp_connections_failed_total"),
        expected(&[("CONNECT", 1.0), ("DENY", 1.0), ("IDENTITY_ERROR", 1.0)])
    );
}

#[test]
fn durations_fall_in_the_bucket_whose_bound_they_do_not_pass() {
    let metrics = Metrics::new();
    let labels = labels(Reporter::Source);
    for micros in [0, 500, 501, 1_000, 4_000_000_000] {
        let took = Duration::from_micros(micros);
        let outcome = RequestOutcome::new(RequestProtocol::Http, StatusCode::OK, took);
        metrics.request(&labels, &outcome);
    }
    let buckets = samples(&metrics, "istio_request_duration_milliseconds_bucket");
    assert_eq!(buckets.len(), 20);
    let at = |le: &str| buckets.iter().find(|(l, _)| l["le"] == le).unwrap().1;
    assert_eq!((at("0.5"), at("1.0"), at("5.0")), (2.0, 4.0, 4.0));
    assert_eq!((at("3600000.0"), at("+Inf")), (4.0, 5.0));
    assert_eq!(
        total(&metrics, "istio_request_duration_milliseconds_count"),
        5.0
    );
    assert_eq!(
        total(&metrics, "istio_request_duration_milliseconds_sum"),
        4_000_002.001
    );
    assert_eq!(total(&metrics, "istio_requests_total"), 5.0);
}

#[test]
fn a_grpc_status_that_no_one_defined_makes_one_series_only() {
    let metrics = Metrics::new();
    for status in [17, 18, u32::MAX] {
        let outcome = RequestOutcome::new(RequestProtocol::Grpc, StatusCode::OK, Duration::ZERO);
        metrics.request(&labels(Reporter::Source), &outcome.with_grpc_status(status));
    }
    let lines = samples(&metrics, "istio_requests_total");
    assert_eq!(lines.len(), 1);
    assert_eq!(
        (&*lines[0].0["grpc_response_status"], lines[0].1),
        ("unknown", 3.0)
    );
}

#[test]
fn pods_of_one_workload_share_their_series() {
    let metrics = Metrics::new();
    for pod in ["reviews-v2-abc", "reviews-v2-def"] {
        let labels = Labels::new(
            Reporter::Destination,
            Peer::unknown(),
            reviews().with_instance(pod),
            None,
            SecurityPolicy::Unknown,
        );
        metrics.tcp_opened(&labels).close(ConnectionFlag::None);
    }
    let lines = samples(&metrics, "istio_tcp_connections_opened_total");
    assert_eq!((lines.len(), lines[0].1), (1, 2.0));
}

#[test]
fn what_finds_no_room_is_counted_as_overflow() {
    // Two connections' series: 3 opened and 1 closed each.
    let metrics = Metrics::with_settings(MetricsSettings::default().with_max_series(8));
    for peer in 0..100 {
        let connection = metrics.tcp_opened(&anonymous(&format!("w{peer}")));
        connection.add_received(7);
        connection.close(ConnectionFlag::None);
        let outcome = RequestOutcome::new(RequestProtocol::Http, StatusCode::OK, Duration::ZERO);
        metrics.request(&anonymous(&format!("w{peer}")), &outcome);
    }
    assert!(metrics.series() <= 8, "{}", metrics.series());
    assert_eq!(total(&metrics, "istio_tcp_connections_opened_total"), 100.0);
    assert_eq!(total(&metrics, "istio_tcp_connections_closed_total"), 100.0);
    assert_eq!(total(&metrics, "istio_tcp_received_bytes_total"), 700.0);
    assert_eq!(total(&metrics, "istio_requests_total"), 100.0);
    assert_eq!(
        total(&metrics, "istio_request_duration_milliseconds_count"),
        100.0
    );
    let overflow: Vec<_> = samples(&metrics, "istio_tcp_connections_opened_total")
        .into_iter()
        .filter(|(labels, _)| labels["source_workload"] == "overflow")
        .collect();
    assert_eq!(overflow.len(), 1);
    let (labels, _) = &overflow[0];
    assert_eq!(labels["reporter"], "destination");
    assert_eq!(labels["request_protocol"], "tcp");
    assert_eq!(labels["response_flags"], "overflow");
    // A scrape merges series by their label names: they are the same as of any other line.
    let other = samples(&metrics, "istio_tcp_connections_opened_total");
    assert!(other.iter().all(|(l, _)| l.keys().eq(labels.keys())));
}

#[test]
fn counts_are_conserved_under_contention() {
    let metrics = Metrics::with_settings(MetricsSettings::default().with_max_series(40));
    let threads = 8;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let metrics = &metrics;
            scope.spawn(move || {
                for i in 0..200 {
                    let labels = anonymous(&format!("w{}", (i + thread) % 50));
                    let connection = metrics.tcp_opened(&labels);
                    connection.add_sent(3);
                    connection.close(ConnectionFlag::Denied);
                }
            });
        }
    });
    let expected = f64::from(threads * 200);
    assert_eq!(
        total(&metrics, "istio_tcp_connections_opened_total"),
        expected
    );
    assert_eq!(
        total(&metrics, "istio_tcp_connections_closed_total"),
        expected
    );
    assert_eq!(
        total(&metrics, "istio_tcp_connections_failed_total"),
        expected
    );
    assert_eq!(
        total(&metrics, "istio_tcp_sent_bytes_total"),
        3.0 * expected
    );
    assert!(metrics.series() <= 40);
}

#[test]
fn idle_series_are_forgotten_and_live_ones_stay() {
    let minute = Duration::from_secs(60);
    let start = Instant::now();
    let metrics = Metrics::new();
    let live = metrics.tcp_opened(&anonymous("live"));
    metrics
        .tcp_opened(&anonymous("gone"))
        .close(ConnectionFlag::Denied);
    let outcome = RequestOutcome::new(RequestProtocol::Http, StatusCode::OK, Duration::ZERO);
    metrics.request(&anonymous("gone"), &outcome);
    assert_eq!(metrics.series(), 3 + 3 + 2 + 4);

    // The first call finds everything used, the second begins the idle time.
    assert_eq!(metrics.evict_idle(start), 0);
    assert_eq!(metrics.evict_idle(start + minute), 0);
    assert_eq!(metrics.evict_idle(start + 10 * minute), 0);
    assert_eq!(metrics.evict_idle(start + 11 * minute), 9);
    assert_eq!(metrics.series(), 3);

    live.add_received(5);
    assert_eq!(total(&metrics, "istio_tcp_received_bytes_total"), 5.0);
    live.close(ConnectionFlag::None);
    assert_eq!(metrics.evict_idle(start + 12 * minute), 0);
    assert_eq!(metrics.evict_idle(start + 22 * minute), 3);
    assert_eq!(metrics.evict_idle(start + 32 * minute), 1);
    assert_eq!(metrics.series(), 0);
    // There is room again.
    metrics
        .tcp_opened(&anonymous("gone"))
        .close(ConnectionFlag::None);
    assert_eq!(metrics.series(), 4);
}

#[test]
fn use_restarts_the_idle_time() {
    let minute = Duration::from_secs(60);
    let start = Instant::now();
    let metrics = Metrics::new();
    let outcome = RequestOutcome::new(RequestProtocol::Http, StatusCode::OK, Duration::ZERO);
    metrics.request(&anonymous("w"), &outcome);
    for i in 0..30 {
        assert_eq!(metrics.evict_idle(start + i * minute), 0);
        if i % 5 == 0 {
            metrics.request(&anonymous("w"), &outcome);
        }
    }
    assert_eq!(total(&metrics, "istio_requests_total"), 7.0);
}

#[test]
fn nothing_counted_is_nothing_but_the_build() {
    let metrics = Metrics::with_settings(MetricsSettings::default().with_build("ztunnel", "1.2"));
    assert_eq!(
        metrics.encode(),
        "# HELP istio_build Istio component build info.\n\
         # TYPE istio_build gauge\n\
         istio_build{component=\"ztunnel\",tag=\"1.2\"} 1\n\
         # EOF\n"
    );
}

#[test]
fn an_applications_registry_shows_them_beside_its_own() {
    let metrics = Metrics::new();
    let mut registry = Registry::default();
    let own = prometheus_client::metrics::counter::Counter::<u64>::default();
    registry.register("app_orders", "Orders", own.clone());
    metrics.register(&mut registry);
    own.inc();
    metrics
        .tcp_opened(&anonymous("w"))
        .close(ConnectionFlag::None);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let names: Vec<String> = parse(&text).into_iter().map(|sample| sample.0).collect();
    assert!(names.contains(&"app_orders_total".to_owned()));
    assert!(names.contains(&"istio_tcp_connections_opened_total".to_owned()));
}

proptest! {
    #[test]
    fn hostile_labels_read_back_as_they_were(
        value in "(?s).{0,80}",
        long in "[a-zé\"\\\\\n]{250,300}",
    ) {
        let metrics = Metrics::new();
        let source = Peer::new(&*value, &*long).with_cluster("\",evil=\"1\"} 7\n# EOF\n");
        let labels = Labels::new(
            Reporter::Destination, source, Peer::unknown(), None, SecurityPolicy::Unknown);
        metrics.tcp_opened(&labels).close(ConnectionFlag::None);
        let lines = samples(&metrics, "istio_tcp_connections_opened_total");
        prop_assert_eq!(lines.len(), 1);
        let got = &lines[0].0;
        let expected = if value.is_empty() { "unknown" } else { &*value };
        prop_assert_eq!(&*got["source_workload"], expected);
        prop_assert_eq!(&*got["source_cluster"], "\",evil=\"1\"} 7\n# EOF\n");
        let kept = &got["source_workload_namespace"];
        prop_assert!(long.starts_with(&**kept) && kept.len() > 252 - 4 && kept.len() <= 256);
        prop_assert_eq!(got.len(), 27);
    }
}
