//! Hosts that register with a server, over sockets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use mesh_xds::file::{Loader, Settings};
use mesh_xds::model::{
    Batch, Health, Locality, NetworkAddress, ObjectName, Service, ServiceName, Update, Workload,
    WorkloadGroup,
};
use mesh_xds::serve::{HostEntry, Registrations, Server, ServerBuilder};
use tonic::{Code, Status};

use crate::proto::envoy::config::core::v3::{Locality as WireLocality, Node};
use crate::proto::google::protobuf::{ListValue, Struct, Value, value::Kind};
use crate::proto::type_url;
use crate::serve::{Stream, Tokens, node_of, open_as, serve};

/// As long as a test waits for what should not happen, and longer than a stream's end takes to be seen.
const GRACE: Duration = Duration::from_millis(300);

fn server() -> Server {
    let server = Server::builder(Tokens)
        .registration_grace(GRACE)
        .host_return(Duration::ZERO)
        .health_interval(Duration::ZERO)
        .build();
    server.apply(Batch::default());
    let group = |name: &str| {
        let name = ObjectName::new("default", name);
        WorkloadGroup::new(name).with_service_account("forum")
    };
    server.set_workload_groups(vec![group("forum"), group("probed").with_probe(true)]);
    server
}

fn node(kind: &str, metadata: &[(&str, &str)]) -> Node {
    let id = format!("{kind}~10.0.0.9~vm.default~default.svc.cluster.local");
    let own = [("AUTO_REGISTER_GROUP", "forum")];
    let all: BTreeMap<&str, &str> = own.iter().chain(metadata).copied().collect();
    node_of(&id, &all.into_iter().collect::<Vec<_>>())
}

fn put(mut node: Node, key: &str, kind: Kind) -> Node {
    let fields = &mut node.metadata.as_mut().unwrap().fields;
    fields.insert(key.to_owned(), Value { kind: Some(kind) });
    node
}

fn text(text: &str) -> Value {
    let kind = Some(Kind::StringValue(text.to_owned()));
    Value { kind }
}

/// Opens a stream of the host; whether it is registered is seen with the first answer.
async fn join(uri: &Uri, node: Node) -> Result<Stream, Status> {
    let mut stream = open_as(uri, "default/forum", node).await?;
    stream.ask(type_url::ADDRESS, &["*"]).await;
    stream.try_next().await?;
    Ok(stream)
}

async fn refused(uri: &Uri, token: &str, node: Node) -> (Code, String) {
    let mut stream = open_as(uri, token, node).await.unwrap();
    stream.ask(type_url::ADDRESS, &["*"]).await;
    let status = stream.try_next().await.expect_err("a refusal");
    (status.code(), status.message().to_owned())
}

async fn entries(registrations: &mut Registrations, count: usize) -> Vec<HostEntry> {
    loop {
        registrations.changed().await;
        let entries = registrations.entries();
        if entries.len() == count {
            return entries;
        }
    }
}

#[tokio::test]
async fn hosts_of_both_kinds_register_with_what_they_say() {
    let server = server();
    let uri = serve(&server, None).await;
    let mut registrations = server.registrations();
    let labels = Struct {
        fields: [("version".to_owned(), text("v2"))].into(),
    };
    let sidecar = node(
        "sidecar",
        &[("INSTANCE_IPS", "10.0.0.1,10.0.0.2"), ("NETWORK", "vm-net")],
    );
    let mut sidecar = put(sidecar, "LABELS", Kind::StructValue(labels));
    sidecar.locality = Some(WireLocality {
        region: "r".to_owned(),
        zone: "z".to_owned(),
        sub_zone: String::new(),
    });
    let _first = join(&uri, sidecar).await.unwrap();
    let entry = entries(&mut registrations, 1).await.remove(0);
    assert_eq!(
        entry.name(),
        &ObjectName::new("default", "forum-10.0.0.1-vm-net")
    );
    assert_eq!((entry.network(), entry.health()), ("vm-net", None));
    assert_eq!(entry.labels().get("version").map(|one| &**one), Some("v2"));
    assert!(!entry.labels().contains_key("networking.istio.io/tunnel"));
    assert_eq!(entry.locality(), &Locality::new("r", "z", ""));

    // One address that is none: that of the node's id counts.
    let ztunnel = node("ztunnel", &[("INSTANCE_IPS", "10.0.0.3,nonsense")]);
    let _second = join(&uri, ztunnel).await.unwrap();
    let sidecar = node(
        "sidecar",
        &[("INSTANCE_IPS", "10.0.0.4"), ("ENABLE_HBONE", "true")],
    );
    let _third = join(&uri, sidecar).await.unwrap();
    let found = entries(&mut registrations, 3).await;
    let names: Vec<_> = found.iter().map(|one| one.name().name()).collect();
    assert_eq!(
        names,
        ["forum-10.0.0.1-vm-net", "forum-10.0.0.4", "forum-10.0.0.9"]
    );
    for entry in &found[1..] {
        let tunnel = entry.labels().get("networking.istio.io/tunnel");
        assert_eq!(tunnel.map(|one| &**one), Some("http"));
    }
}

#[tokio::test]
async fn who_may_not_register_has_no_stream() {
    let server = server();
    let other = Workload::new("Kubernetes//Pod/default/other", "default", "other");
    let other = other.with_addresses(vec![[10, 0, 0, 7].into()]);
    let service = Service::new(ServiceName::new("default", "vip.example"));
    let service = service.with_addresses(vec![NetworkAddress::new("", [10, 0, 0, 8].into())]);
    server.apply(Batch::new(vec![other.into(), service.into()], Vec::new()));
    let uri = serve(&server, None).await;
    let forum = "default/forum";
    let with = |key, kind| put(node("sidecar", &[]), key, kind);
    let located = |zone: &str| Node {
        locality: Some(WireLocality {
            zone: zone.to_owned(),
            ..WireLocality::default()
        }),
        ..node("sidecar", &[])
    };
    let list = Kind::ListValue(ListValue {
        values: vec![text("10.0.0.1")],
    });
    let nothing = node("sidecar", &[("AUTO_REGISTER_GROUP", "nothing")]);
    let theirs = node("sidecar", &[("INSTANCE_IPS", "10.0.0.7")]);
    for (token, node, code, words) in [
        (
            forum,
            nothing,
            Code::FailedPrecondition,
            "no WorkloadGroup default/nothing",
        ),
        (
            "default/other",
            node("sidecar", &[]),
            Code::PermissionDenied,
            "\"forum\"",
        ),
        (
            forum,
            theirs,
            Code::AlreadyExists,
            "10.0.0.7 is that of workload Kubernetes//Pod/default/other",
        ),
        (
            forum,
            node("sidecar", &[("INSTANCE_IPS", "::ffff:10.0.0.7")]),
            Code::AlreadyExists,
            "10.0.0.7 is that of workload",
        ),
        (
            forum,
            node("sidecar", &[("INSTANCE_IPS", "10.0.0.8")]),
            Code::AlreadyExists,
            "10.0.0.8 is that of service default/vip.example",
        ),
        (
            forum,
            node("sidecar", &[("INSTANCE_IPS", "0.0.0.0")]),
            Code::InvalidArgument,
            "INSTANCE_IPS: expected an address that one host can have, found 0.0.0.0",
        ),
        (
            forum,
            node("sidecar", &[("INSTANCE_IPS", "ff02::1")]),
            Code::InvalidArgument,
            "found ff02::1",
        ),
        (
            forum,
            node("sidecar", &[("NETWORK", "a/b")]),
            Code::InvalidArgument,
            "node.metadata.NETWORK: expected a name",
        ),
        (
            forum,
            located(&"z".repeat(64)),
            Code::InvalidArgument,
            "node.locality.zone: expected at most 63 bytes",
        ),
        (
            forum,
            located("a/b"),
            Code::InvalidArgument,
            "node.locality.zone",
        ),
        (
            forum,
            with("INSTANCE_IPS", list.clone()),
            Code::InvalidArgument,
            "INSTANCE_IPS: expected addresses in one text",
        ),
        (forum, with("LABELS", list), Code::InvalidArgument, "LABELS"),
        (
            forum,
            with("AUTO_REGISTER_GROUP", Kind::NumberValue(1.0)),
            Code::InvalidArgument,
            "AUTO_REGISTER_GROUP",
        ),
        (
            "other/forum",
            node("sidecar", &[]),
            Code::PermissionDenied,
            "",
        ),
    ] {
        let (found, message) = refused(&uri, token, node).await;
        assert_eq!(found, code, "{message}");
        assert!(message.contains(words), "{message}");
    }
    assert_eq!(server.registrations().entries(), []);
}

#[tokio::test]
async fn a_host_whose_address_is_somebody_elses_by_now_does_not_come_back() {
    let server = server();
    let uri = serve(&server, None).await;
    let _stream = join(&uri, node("sidecar", &[])).await.unwrap();
    assert_eq!(server.registrations().entries().len(), 1);
    server.set_workload_groups(Vec::new());
    let other = Workload::new("Kubernetes//Pod/default/other", "default", "other");
    let other = other.with_addresses(vec![[10, 0, 0, 9].into()]);
    server.apply(Batch::new(vec![other.into()], Vec::new()));
    let group = WorkloadGroup::new(ObjectName::new("default", "forum"));
    server.set_workload_groups(vec![group]);
    assert_eq!(server.registrations().entries(), []);
}

/// A server with the groups of two service accounts.
fn bounded(set: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Server {
    let server = set(Server::builder(Tokens)).build();
    server.apply(Batch::default());
    let groups = ["forum", "shop"].map(|account| {
        let name = ObjectName::new("default", account);
        WorkloadGroup::new(name).with_service_account(account)
    });
    server.set_workload_groups(groups.to_vec());
    server
}

fn host(account: &str, address: &str) -> Node {
    let metadata = [("AUTO_REGISTER_GROUP", account), ("INSTANCE_IPS", address)];
    node("sidecar", &metadata)
}

#[tokio::test]
async fn no_more_hosts_are_registered_than_set() {
    let server = bounded(|server| server.max_hosts(1));
    let uri = serve(&server, None).await;
    let first = host("forum", "10.0.0.1");
    let _first = join(&uri, first.clone()).await.unwrap();
    let (code, message) = refused(&uri, "default/shop", host("shop", "10.0.0.2")).await;
    assert_eq!(code, Code::ResourceExhausted, "{message}");
    assert!(message.contains("more than 1 hosts"), "{message}");
    // One that is registered comes back.
    join(&uri, first).await.unwrap();
    assert_eq!(server.registrations().entries().len(), 1);
}

#[tokio::test]
async fn an_identity_registers_no_more_hosts_than_set_and_keeps_out_nobody_else() {
    let server = bounded(|server| server.max_hosts_per_identity(1));
    let uri = serve(&server, None).await;
    let _first = join(&uri, host("forum", "10.0.0.1")).await.unwrap();
    let (code, message) = refused(&uri, "default/forum", host("forum", "10.0.0.2")).await;
    assert_eq!(code, Code::ResourceExhausted, "{message}");
    let words = "more than 1 hosts of spiffe://cluster.local/ns/default/sa/forum";
    assert!(message.contains(words), "{message}");
    let mut other = open_as(&uri, "default/shop", host("shop", "10.0.0.3"))
        .await
        .unwrap();
    other.ask(type_url::ADDRESS, &["*"]).await;
    other.next().await;
    assert_eq!(server.registrations().entries().len(), 2);
}

#[tokio::test]
async fn a_request_that_is_too_large_is_told_as_istiod_does() {
    let server = Server::builder(Tokens).max_request_size(1 << 10).build();
    let uri = serve(&server, None).await;
    let long = node("sidecar", &[("LONG", &"x".repeat(2 << 10))]);
    let (code, message) = refused(&uri, "default/forum", long).await;
    assert_eq!(code, Code::ResourceExhausted, "{message}");
}

#[tokio::test]
async fn a_host_reports_and_leaves() {
    let server = server();
    let uri = serve(&server, None).await;
    let mut registrations = server.registrations();
    let probed = || node("sidecar", &[("AUTO_REGISTER_GROUP", "probed")]);
    let stream = join(&uri, probed()).await.unwrap();
    let entry = entries(&mut registrations, 1).await.remove(0);
    let uid = entry.uid();
    assert_eq!(entry.health(), Some(Err("no report yet")));
    stream.say(type_url::HEALTH, &[], None, None).await;
    assert_eq!(
        entries(&mut registrations, 1).await[0].health(),
        Some(Ok(()))
    );
    stream.say(type_url::HEALTH, &[], None, Some("down")).await;
    assert_eq!(
        entries(&mut registrations, 1).await[0].health(),
        Some(Err("down"))
    );

    // A second stream takes the place of the first one.
    let second = join(&uri, probed()).await.unwrap();
    drop(stream);
    while server.clients().len() > 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let waited = tokio::time::timeout(GRACE * 2, registrations.changed()).await;
    assert!(waited.is_err(), "nothing changed");
    drop(second);
    assert_eq!(entries(&mut registrations, 0).await, []);
    let _third = join(&uri, probed()).await.unwrap();
    let entry = entries(&mut registrations, 1).await.remove(0);
    assert_ne!(entry.uid(), uid);
    assert_eq!(entry.health(), Some(Err("no report yet")));
}

const GROUP: &str = r#"
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: forum, namespace: bank}
spec:
  metadata:
    labels: {version: v2}
    annotations: {hbone-port: "15108"}
  template:
    labels: {app: forum, version: v1}
    serviceAccount: teller
    network: vm-net
    locality: r/z/s
    weight: 7
    ports: {http: 8080}
  probe:
    periodSeconds: 1
    tcpSocket: {port: 8080}
"#;

#[test]
fn a_group_is_a_template_and_no_resource() {
    let mut loader = Loader::new(Settings::default());
    let loaded = loader.load(vec![("mesh.yaml".into(), GROUP.into())]);
    assert!(loaded.problems().is_empty(), "{:?}", loaded.problems());
    assert!(loaded.batch().is_empty());
    let groups: Vec<_> = loader.workload_groups().collect();
    let [group] = &*groups else {
        panic!("{groups:?}");
    };
    let texts = |of: &[(&str, &str)]| -> BTreeMap<Arc<str>, Arc<str>> {
        let pairs = of
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()));
        pairs.collect()
    };
    let expected = WorkloadGroup::new(ObjectName::new("bank", "forum"))
        .with_labels(texts(&[("app", "forum"), ("version", "v2")]))
        .with_annotations(texts(&[("hbone-port", "15108")]))
        .with_service_account("teller")
        .with_network("vm-net")
        .with_locality(Locality::new("r", "z", "s"))
        .with_weight(7)
        .with_ports(vec![("http".into(), 8080)])
        .with_probe(true);
    assert_eq!(**group, expected);

    // One that is wrong keeps its last good version, and says what is wrong.
    let wrong = GROUP.replace("serviceAccount: teller", "serviceAccount: 'a/b'");
    let loaded = loader.load(vec![("mesh.yaml".into(), wrong.into())]);
    let problems: Vec<_> = loaded.problems().iter().map(ToString::to_string).collect();
    assert!(problems[0].contains("serviceAccount"), "{problems:?}");
    assert_eq!(loader.workload_groups().next(), Some(&expected));
}

#[test]
fn an_entry_of_a_group_is_named_for_it() {
    let entry = r#"
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: forum-10.0.0.1
  namespace: bank
  ownerReferences:
  - {apiVersion: networking.istio.io/v1, kind: WorkloadGroup, name: forum, controller: true}
spec: {address: 10.0.0.1, serviceAccount: teller}
status:
  conditions:
  - {type: Healthy, status: "False", message: down}
"#;
    let mut loader = Loader::new(Settings::default());
    let loaded = loader.load(vec![("mesh.yaml".into(), entry.into())]);
    assert!(loaded.problems().is_empty(), "{:?}", loaded.problems());
    let [Update::Workload(workload)] = loaded.batch().updates() else {
        panic!("{loaded:?}");
    };
    assert_eq!(workload.name(), "forum-10.0.0.1");
    assert_eq!(
        (workload.workload_name(), workload.canonical_name()),
        ("forum", "forum")
    );
    assert_eq!(workload.health(), Health::Unhealthy);
}
