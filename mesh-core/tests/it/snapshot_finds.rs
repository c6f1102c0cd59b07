use mesh_core::snapshot::{ServiceRecord, Snapshot, WorkloadRecord};
use mesh_core::xds::model::{
    Batch, NetworkAddress, NetworkMode, Service, ServiceName, Update, Visibility, Workload,
};
use proptest::prelude::*;

use crate::snapshot_model::{
    HOSTNAMES, NAMESPACES, NETWORKS, batches, play, service_ips, workload_ips,
};

fn uid(workload: Option<&std::sync::Arc<WorkloadRecord>>) -> Option<&str> {
    workload.map(|workload| &**workload.uid())
}

fn name(service: Option<&std::sync::Arc<ServiceRecord>>) -> Option<&ServiceName> {
    service.map(|service| service.name())
}

proptest! {
    #[test]
    fn workloads_like_a_linear_scan(batches in batches()) {
        let (snapshot, naive) = play(&batches);
        for network in NETWORKS {
            for ip in workload_ips() {
                prop_assert_eq!(
                    uid(snapshot.workload_at(network, ip)),
                    naive.workload_at(network, ip).map(Workload::uid)
                );
            }
        }
        for namespace in NAMESPACES {
            for asked in ["one", "two", "three", "four"] {
                prop_assert_eq!(
                    uid(snapshot.workload_named(namespace, asked)),
                    naive.workload_named(namespace, asked).map(Workload::uid)
                );
            }
        }
    }

    #[test]
    fn services_like_a_linear_scan(batches in batches()) {
        let (snapshot, naive) = play(&batches);
        for namespace in ["a", "b", "elsewhere"] {
            for network in NETWORKS {
                for ip in service_ips().into_iter().chain(workload_ips()) {
                    prop_assert_eq!(
                        name(snapshot.service_at(network, ip, namespace)),
                        naive.service_at(network, ip, namespace).map(Service::name),
                        "{} from {}", ip, namespace
                    );
                }
            }
            for hostname in HOSTNAMES {
                prop_assert_eq!(
                    name(snapshot.service_with_hostname(hostname, namespace)),
                    naive.service_with_hostname(hostname, namespace).map(Service::name)
                );
            }
        }
    }
}

fn load(updates: Vec<Update>) -> Snapshot {
    Snapshot::new()
        .apply(&Batch::new(updates, Vec::new()))
        .snapshot
}

fn host(namespace: &str, hostname: &str) -> Service {
    Service::new(ServiceName::new(namespace, hostname))
}

#[test]
fn short_names_as_a_pod_would_complete_them() {
    let snapshot = load(vec![
        host("default", "ratings.default.svc.cluster.local").into(),
        host("db", "mysql.db.svc.cluster.local").into(),
        host("db", "primary.mysql.db.svc.cluster.local").into(),
        host("default", "*.example.com").into(),
        host("default", "api.example.com").into(),
    ]);
    let cases = [
        (
            "ratings",
            "default",
            Some("ratings.default.svc.cluster.local"),
        ),
        (
            "RATINGS",
            "default",
            Some("ratings.default.svc.cluster.local"),
        ),
        ("ratings", "db", None),
        (
            "ratings.default",
            "db",
            Some("ratings.default.svc.cluster.local"),
        ),
        (
            "ratings.default.svc",
            "db",
            Some("ratings.default.svc.cluster.local"),
        ),
        (
            "ratings.default.svc.cluster.local",
            "db",
            Some("ratings.default.svc.cluster.local"),
        ),
        (
            "ratings.default.svc.cluster.local.",
            "db",
            Some("ratings.default.svc.cluster.local"),
        ),
        (
            "primary.mysql",
            "db",
            Some("primary.mysql.db.svc.cluster.local"),
        ),
        (
            "primary.mysql.db",
            "default",
            Some("primary.mysql.db.svc.cluster.local"),
        ),
        (
            "primary.mysql.db.svc",
            "default",
            Some("primary.mysql.db.svc.cluster.local"),
        ),
        ("api.example.com", "default", Some("api.example.com")),
        ("other.example.com", "default", Some("*.example.com")),
        ("a.b.example.com", "default", Some("*.example.com")),
        ("example.com", "default", None),
        // As a resolver writes it that tries its search list first.
        (
            "api.example.com.default.svc.cluster.local",
            "default",
            Some("api.example.com"),
        ),
        ("ratings.default.svc.other.domain", "default", None),
        ("", "default", None),
        (".", "default", None),
    ];
    for (asked, namespace, expected) in cases {
        let found = snapshot.service_by_name(asked, namespace, "cluster.local");
        assert_eq!(
            found.map(|service| service.hostname()),
            expected,
            "{asked} in {namespace}"
        );
    }
    let found = snapshot.service_by_name("ratings", "default", "other.domain");
    assert!(found.is_none());
}

#[test]
fn the_own_namespace_then_the_owner_among_services_of_one_name() {
    let at = |namespace: &str| {
        host(namespace, "api.example.com")
            .with_addresses(vec![NetworkAddress::new("", "10.1.0.1".parse().unwrap())])
    };
    let snapshot = load(vec![
        at("b").into(),
        at("c").with_canonical(true).into(),
        at("a").with_visibility(Visibility::Namespace).into(),
    ]);
    for (client, expected) in [("a", "a"), ("b", "b"), ("c", "c"), ("d", "c")] {
        let by_name = snapshot
            .service_with_hostname("api.example.com", client)
            .unwrap();
        let by_address = snapshot
            .service_at("", "10.1.0.1".parse().unwrap(), client)
            .unwrap();
        assert_eq!(by_name.namespace(), expected);
        assert_eq!(by_address.namespace(), expected);
    }
}

#[test]
fn an_own_namespaces_range_beats_a_longer_one() {
    let range = |namespace: &str, range: &str| {
        host(namespace, &format!("{namespace}.example.com"))
            .with_addresses(vec![NetworkAddress::cidr("", range.parse().unwrap())])
    };
    let snapshot = load(vec![
        range("a", "10.1.0.0/16").into(),
        range("b", "10.1.0.0/24").into(),
    ]);
    let at = |client: &str| {
        snapshot
            .service_at("", "10.1.0.9".parse().unwrap(), client)
            .unwrap()
            .namespace()
    };
    assert_eq!((at("a"), at("b"), at("c")), ("a", "b", "b"));
}

#[test]
fn ipv4_in_ipv6_is_ipv4() {
    let pod = Workload::new("uid", "default", "a")
        .with_addresses(vec!["::ffff:10.0.0.1".parse().unwrap()]);
    let service = host("default", "a.example.com").with_addresses(vec![NetworkAddress::new(
        "",
        "::ffff:10.1.0.1".parse().unwrap(),
    )]);
    let snapshot = load(vec![pod.into(), service.into()]);
    for ip in ["10.0.0.1", "::ffff:10.0.0.1"] {
        assert!(snapshot.workload_at("", ip.parse().unwrap()).is_some());
    }
    for ip in ["10.1.0.1", "::ffff:10.1.0.1"] {
        assert!(
            snapshot
                .service_at("", ip.parse().unwrap(), "default")
                .is_some()
        );
    }
}

#[test]
fn hosts_addresses_are_nobodys() {
    let pod = Workload::new("uid", "default", "a")
        .with_addresses(vec!["10.0.0.1".parse().unwrap()])
        .with_network_mode(NetworkMode::HostNetwork);
    let snapshot = load(vec![pod.into()]);
    assert!(
        snapshot
            .workload_at("", "10.0.0.1".parse().unwrap())
            .is_none()
    );
    assert!(snapshot.workload_named("default", "a").is_some());
}

#[test]
fn names_near_a_name_that_is_not_there() {
    let pods = [
        "reviews-v1",
        "reviews-v2",
        "reviews-v3",
        "ratings-v1",
        "productpage-v1",
    ];
    let pods = pods.map(|name| Workload::new(format!("uid-{name}"), "default", name).into());
    let snapshot = load(pods.to_vec());
    let near = |name: &str| -> Vec<String> {
        let near = snapshot.names_near("default", name);
        near.iter().map(|name| name.to_string()).collect()
    };
    assert_eq!(
        near("review-v1"),
        ["reviews-v1", "reviews-v2", "reviews-v3"]
    );
    assert_eq!(near("productpage"), ["productpage-v1"]);
    assert_eq!(near("mysql"), Vec::<String>::new());
    assert!(snapshot.names_near("elsewhere", "reviews-v1").is_empty());
}
