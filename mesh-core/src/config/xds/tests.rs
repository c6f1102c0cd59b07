use super::*;
use crate::WorkloadId;

fn details() -> WorkloadId {
    WorkloadId::new("default", "details-v1-1", "bookinfo-details")
}

fn own() -> Vec<IpAddr> {
    vec!["10.10.2.11".parse().unwrap(), "fd00::11".parse().unwrap()]
}

/// As the recorded client of a real istiod said it, and the keys that it did without.
#[test]
fn a_workload_says_what_istiod_wants_to_know() {
    let xds = Xds::istiod("istiod:15012")
        .cluster_id("Kubernetes")
        .labels([("app", "details"), ("version", "v1")]);
    let node = xds.node(Some(&details()), &own(), "", None);
    assert_eq!(
        node.id(),
        "sidecar~10.10.2.11~details-v1-1.default~default.svc.cluster.local"
    );
    let expected = mesh_xds::ads::Node::new(node.id())
        .with_metadata("NAME", "details-v1-1")
        .with_metadata("NAMESPACE", "default")
        .with_metadata("SERVICE_ACCOUNT", "bookinfo-details")
        .with_metadata("INSTANCE_IPS", "10.10.2.11,fd00::11")
        .with_metadata("CLUSTER_ID", "Kubernetes")
        .with_metadata("GENERATOR", "grpc")
        .with_metadata("ENABLE_HBONE", "true")
        .with_metadata(
            "ISTIO_VERSION",
            concat!("mesh-core-", env!("CARGO_PKG_VERSION")),
        )
        .with_metadata("PROXY_CONFIG", NodeValue::Map([].into()))
        .with_metadata(
            "LABELS",
            NodeValue::map([("app", "details"), ("version", "v1")]),
        );
    assert_eq!(node, expected);
}

/// It crashes istiod.
#[test]
fn the_proxy_of_a_host_never_names_a_generator() {
    let xds = Xds::istiod("istiod:15012")
        .node_proxy("istio-system", "ztunnel-a")
        .metadata("GENERATOR", "grpc")
        .metadata("NODE_NAME", "node-a");
    let node = xds.node(None, &own()[..1], "net-1", None);
    let expected = mesh_xds::ads::Node::new(
        "ztunnel~10.10.2.11~ztunnel-a.istio-system~istio-system.svc.cluster.local",
    )
    .with_metadata("NAME", "ztunnel-a")
    .with_metadata("NAMESPACE", "istio-system")
    .with_metadata("INSTANCE_IPS", "10.10.2.11")
    .with_metadata("NETWORK", "net-1")
    .with_metadata("NODE_NAME", "node-a")
    .with_metadata(
        "ISTIO_VERSION",
        concat!("mesh-core-", env!("CARGO_PKG_VERSION")),
    )
    .with_metadata("PROXY_CONFIG", NodeValue::Map([].into()));
    assert_eq!(node, expected);
}

/// istiod takes no health of a host that did not say so, and what the files say goes before.
#[test]
fn a_probe_is_told_in_the_settings_of_the_proxy() {
    let probe = crate::health::Probe::tcp(8080);
    let config = |xds: Xds| {
        let node = xds.node(Some(&details()), &own(), "", Some(&probe));
        format!("{node:?}")
    };
    let said = config(Xds::istiod("istiod:15012"));
    assert!(
        said.contains(r#""readinessProbe": Map({"failureThreshold": Number(1.0)"#),
        "{said}"
    );
    let mut file = NodeValue::map([("readinessProbe", "of the file")]);
    let said = config(Xds::istiod("istiod:15012").metadata("PROXY_CONFIG", file.clone()));
    assert!(said.contains(&format!("{file:?}")), "{said}");
    file = NodeValue::map([("concurrency", 2.0)]);
    let said = config(Xds::istiod("istiod:15012").metadata("PROXY_CONFIG", file));
    assert!(
        said.contains(r#""concurrency": Number(2.0), "readinessProbe": Map"#),
        "{said}"
    );
}
