use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;

use super::{Baggage, ConnectHeaders, Forwarded, TraceParent};

fn read(lines: &[&str]) -> Option<Baggage> {
    let values: Vec<_> = lines
        .iter()
        .map(|line| HeaderValue::from_bytes(line.as_bytes()).unwrap())
        .collect();
    Baggage::parse(&values)
}

fn full() -> Baggage {
    Baggage::default()
        .with_zone("z")
        .with_region("r")
        .with_canonical_revision("v1")
        .with_canonical_name("reviews")
        .with_workload("Deployment", "reviews-v1")
        .with_namespace("default")
        .with_cluster("Kubernetes")
}

#[test]
fn baggage_has_one_order() {
    assert_eq!(
        full().to_string(),
        "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=reviews-v1,\
         service.name=reviews,service.version=v1,cloud.region=r,cloud.availability_zone=z"
    );
    assert_eq!(read(&[&full().to_string()]), Some(full()));
}

#[test]
fn baggage_leaves_out_what_is_unknown_or_cannot_be_said() {
    assert_eq!(Baggage::default().to_string(), "");
    let odd = Baggage::default()
        .with_cluster("a,k8s.namespace.name=kube-system")
        .with_namespace("a=b")
        .with_region("\u{fc}")
        .with_zone("a b")
        .with_canonical_name("")
        .with_workload("statefulset", "db")
        .with_canonical_revision(None);
    assert_eq!(odd.to_string(), "");
}

#[test]
fn baggage_is_read_as_ztunnel_reads_it() {
    assert_eq!(read(&[]), None);
    assert_eq!(read(&[""]), Some(Baggage::default()));
    let two = read(&[
        "service.name=a,cloud.region=",
        "service.name=b,unknown=c,k8s.job.name=j",
    ])
    .unwrap();
    assert_eq!(two.canonical_name(), Some("b"));
    assert_eq!(
        (two.workload_type(), two.workload_name()),
        (Some("job"), Some("j"))
    );
    assert_eq!(two.region(), None);
    let untrimmed = read(&["service.name=a, service.version=1,service.name=x=y"]).unwrap();
    assert_eq!(
        (untrimmed.canonical_name(), untrimmed.canonical_revision()),
        (Some("x"), None)
    );
    assert_eq!(read(&["service.name=a", "service.name=\u{fc}"]), None);
}

#[test]
fn forwarded_quotes_the_address_and_not_the_host() {
    let v4 = Forwarded::new("10.0.0.1:4321".parse().unwrap());
    assert_eq!(v4.to_string(), "for=\"10.0.0.1:4321\"");
    let v6 = Forwarded::new("[2001:db8::1]:4321".parse().unwrap())
        .with_host("reviews.default.svc.cluster.local");
    assert_eq!(
        v6.to_string(),
        "for=\"[2001:db8::1]:4321\";host=reviews.default.svc.cluster.local"
    );
    assert_eq!(Forwarded::parse(&v6.value()), Some(v6));
}

#[test]
fn forwarded_is_read_leniently() {
    let host = |text: &'static str| {
        let read = Forwarded::parse(&HeaderValue::from_bytes(text.as_bytes()).unwrap());
        read.and_then(|read| read.host().map(str::to_owned))
    };
    assert_eq!(host("for=x; host=\"a.b\";host=c").as_deref(), Some("a.b"));
    assert_eq!(host("host=").as_deref(), None);
    assert_eq!(host("for=\u{fc};host=a").as_deref(), None);
    assert_eq!(host("Host=a").as_deref(), None);
}

#[test]
fn a_host_cannot_smuggle_another_element() {
    let forwarded = Forwarded::new("10.0.0.1:1".parse().unwrap()).with_host("a;for=evil");
    assert_eq!(forwarded.to_string(), "for=\"10.0.0.1:1\"");
}

#[test]
fn traceparent_round_trips() {
    let trace = TraceParent::from_random([1, 2, 3]);
    let text = "00-00000000000000010000000000000002-0000000000000003-00";
    assert_eq!(trace.to_string(), text);
    assert_eq!(TraceParent::parse(&trace.value()), Some(trace));
    assert_ne!(TraceParent::from_random([0; 3]).parent_id(), 0);
    let sampled = text.replace("3-00", "3-01");
    assert!(
        TraceParent::parse(&HeaderValue::from_str(&sampled).unwrap())
            .unwrap()
            .is_sampled()
    );
}

#[test]
fn a_malformed_traceparent_is_none() {
    for text in [
        "",
        "00",
        "00-00000000000000010000000000000002-0000000000000003-0g",
        "00-00000000000000000000000000000000-0000000000000003-00",
        "00-00000000000000010000000000000002-0000000000000000-00",
        "ff-00000000000000010000000000000002-0000000000000003-00",
        "00-0000000000000001000000000000000A-0000000000000003-00",
        "00-0000000000000001000000000000002-00000000000000003-00",
    ] {
        assert_eq!(
            TraceParent::parse(&HeaderValue::from_static(text)),
            None,
            "{text}"
        );
    }
}

#[test]
fn bad_headers_read_as_none() {
    let mut headers = HeaderMap::new();
    headers.insert(
        "baggage",
        HeaderValue::from_bytes(b"service.name=\xff").unwrap(),
    );
    headers.insert("traceparent", HeaderValue::from_static("x"));
    headers.insert("x-forwarded-network", HeaderValue::from_static("east"));
    let read = ConnectHeaders::parse(&headers);
    assert_eq!(
        (read.baggage(), read.forwarded(), read.traceparent()),
        (None, None, None)
    );
    assert_eq!(read.network(), Some("east"));
}

proptest! {
    #[test]
    fn what_is_written_is_what_is_read(cluster in "\\PC{0,12}", namespace in "[ -~]{0,12}", name in "[a-z=,]{0,8}") {
        let baggage = Baggage::default()
            .with_cluster(&*cluster).with_namespace(&*namespace).with_workload("pod", &*name);
        let read = Baggage::parse([&baggage.value()]).unwrap();
        for (sent, read) in [
            (baggage.cluster(), read.cluster()),
            (baggage.namespace(), read.namespace()),
            (baggage.workload_name(), read.workload_name()),
        ] {
            prop_assert!(read.is_none() || read == sent);
        }
    }
}
