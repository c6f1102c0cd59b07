//! Inbound listeners as a server makes them: the policies of a port whole, for who runs it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use mesh_authz::matcher::StringMatch;
use mesh_authz::policy::{Action, Expr, Matcher, Policy, PolicyName, Rule};
use mesh_xds::decode::{Decoder, ResourceType};
use mesh_xds::file::{Loader, Settings};
use mesh_xds::model::{
    AttachedPolicy, Batch, InboundListener, Membership, Port, ResourceName, Scope, ServiceName,
    Update, Workload,
};
use mesh_xds::serve::Server;
use prost::Message;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::decode_rbac_goldens::compare;
use crate::istiod_recordings::{change, steps};
use crate::proto::envoy::config::core::v3::Node;
use crate::proto::envoy::config::listener::v3::{Listener, filter};
use crate::proto::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use crate::proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_filter,
};
use crate::proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryRequest};
use crate::proto::type_url;
use crate::require;
use crate::serve::{Stream, Tokens, node_of, open_as, serve};

const NAME: &str = "xds.istio.io/grpc/lds/inbound/10.10.2.11:9080";

fn sdk_node() -> Node {
    let metadata = [
        ("NAMESPACE", "default"),
        ("GENERATOR", "grpc"),
        ("ENABLE_HBONE", "true"),
    ];
    let id = "sidecar~10.10.2.11~details-v1-1.default~default.svc.cluster.local";
    node_of(id, &metadata)
}

async fn open_sdk(server: &Server, token: &str) -> Stream {
    let uri = serve(server, None).await;
    open_as(&uri, token, sdk_node()).await.unwrap()
}

async fn asked(server: &Server, token: &str, name: &str) -> DeltaDiscoveryResponse {
    let mut stream = open_sdk(server, token).await;
    stream.ask(type_url::LISTENER, &[name]).await;
    stream.next().await
}

fn value(response: &DeltaDiscoveryResponse) -> &[u8] {
    assert_eq!(response.type_url, type_url::LISTENER);
    let [one] = &*response.resources else {
        panic!("one listener, {response:?}");
    };
    assert_eq!(one.name, NAME);
    &one.resource.as_ref().unwrap().value
}

fn read(value: &[u8]) -> Arc<InboundListener> {
    let update = Decoder::new().decode(ResourceType::Listener, NAME, value);
    match update.unwrap().unwrap() {
        Update::InboundListener(listener) => listener,
        other => panic!("{other:?}"),
    }
}

/// Details with a port that a service has.
fn details() -> Workload {
    let service = ServiceName::new("default", "details.default.svc.cluster.local");
    let port = Port::new(80).with_target_port(9080);
    Workload::new("Kubernetes//Pod/default/details", "default", "details")
        .with_service_account("details")
        .with_addresses(vec![[10, 10, 2, 11].into()])
        .with_services(vec![Membership::new(service).with_ports(vec![port])])
}

/// Policies that bind the whole mesh, as a server renders them.
pub(crate) async fn rendered(policies: &[Arc<Policy>]) -> Arc<InboundListener> {
    let server = Server::builder(Tokens).build();
    let attached = |policy: &Arc<Policy>| AttachedPolicy::new(Arc::clone(policy), Scope::Mesh);
    let mut updates: Vec<Update> = policies.iter().map(|one| attached(one).into()).collect();
    updates.push(details().into());
    server.apply(Batch::new(updates, Vec::new()));
    read(value(&asked(&server, "default/details", NAME).await))
}

/// What a recording has last said of the listener in each of its steps.
fn recorded(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let lines = fs::read_to_string(folder.join("stream.jsonl")).unwrap();
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut found = BTreeMap::new();
    for line in lines.filter(|line| line["from"] == "server") {
        let file = line["file"].as_str().unwrap();
        let bytes = fs::read(folder.join(format!("{file}.pb"))).unwrap();
        let message = DeltaDiscoveryResponse::decode(&*bytes).unwrap();
        if message.type_url == type_url::LISTENER && !message.resources.is_empty() {
            let step = line["step"].as_str().unwrap().to_owned();
            found.insert(step, value(&message).to_vec());
        }
    }
    found
}

/// A listener without the rules of its filters, and the actions that those have.
fn frame(value: &[u8]) -> (Listener, HttpConnectionManager, Vec<i32>) {
    let mut listener = Listener::decode(value).unwrap();
    let filters = listener
        .filter_chains
        .iter_mut()
        .flat_map(|one| &mut one.filters);
    let mut managers = filters.map(|one| match &mut one.config_type {
        Some(filter::ConfigType::TypedConfig(config)) => {
            let value = std::mem::take(&mut config.value);
            HttpConnectionManager::decode(&*value).unwrap()
        }
        other => panic!("{other:?}"),
    });
    let mut manager = managers.next().unwrap();
    assert!(managers.next().is_none());
    drop(managers);
    let mut actions = Vec::new();
    for one in &mut manager.http_filters {
        if let Some(http_filter::ConfigType::TypedConfig(config)) = &mut one.config_type
            && config.type_url == type_url::HTTP_RBAC
        {
            let value = std::mem::take(&mut config.value);
            let rbac = HttpRbac::decode(&*value).unwrap();
            actions.push(rbac.rules.unwrap().action);
        }
    }
    (listener, manager, actions)
}

#[tokio::test]
async fn details_have_the_listener_that_istiod_gave_them() {
    let test = "details_have_the_listener_that_istiod_gave_them";
    let Some(data) = require::data(test) else {
        return;
    };
    let root = data.join("istiod/bookinfo");
    let recorded = recorded(&root.join("sdk"));
    let server = Server::builder(Tokens).build();
    let mut loader = Loader::new(Settings::default());
    let mut documents = BTreeMap::new();
    let (mut theirs, mut decided, mut told) = (None, [0; 2], 0);
    for (step, manifest) in steps(&root.join("manifests")) {
        change(&mut documents, &step, &manifest);
        let text = documents
            .values()
            .cloned()
            .collect::<Vec<_>>()
            .join("\n---\n");
        let loaded = loader.load(vec![("all.yaml".into(), text.into())]);
        server.apply(loaded.into_parts().0);
        let name = step.split('.').next().unwrap();
        let said = recorded
            .iter()
            .find(|(of, _)| of.split('.').next() == Some(name));
        if let Some((_, said)) = said {
            theirs = Some(said.clone());
            told += 1;
        }
        let theirs = theirs.as_ref().expect("the first step has one");
        let response = asked(&server, "default/bookinfo-details", NAME).await;
        let ours = value(&response);
        assert_eq!(frame(ours), frame(theirs), "{step}");
        let (ours, theirs) = (read(ours), read(theirs));
        let (done, _) = compare(&step, ours.policies(), theirs.policies());
        decided = [0, 1].map(|at| decided[at] + done[at]);
        let names = ours.policies().iter().map(|one| one.name().to_string());
        let known = |name: &String| documents.keys().any(|key| key.ends_with(name.as_str()));
        assert!(names.into_iter().all(|name| known(&name)), "{ours:?}");
    }
    assert_eq!(told, recorded.len(), "every step of the recording");
    assert!(decided.iter().all(|count| *count > 100), "{decided:?}");
}

fn methods(allowed: &str) -> AttachedPolicy {
    let method = Matcher::Method(StringMatch::Exact(allowed.into()));
    let rules = vec![Rule::new(Expr::Is(method))];
    let policy = Policy::new(PolicyName::new("default", "p"), Action::Allow, rules);
    AttachedPolicy::new(policy.into(), Scope::Namespace("default".into()))
}

#[tokio::test]
async fn only_who_runs_a_port_that_a_service_names_gets_its_listener() {
    let server = Server::builder(Tokens).build();
    server.apply(Batch::new(
        vec![methods("GET").into(), details().into()],
        Vec::new(),
    ));
    assert_eq!(
        asked(&server, "default/details", NAME)
            .await
            .resources
            .len(),
        1
    );
    let other_port = "xds.istio.io/grpc/lds/inbound/10.10.2.11:9081";
    let other_address = "xds.istio.io/grpc/lds/inbound/10.10.2.12:9080";
    for (token, name) in [
        ("default/other", NAME),
        ("default/details", other_port),
        ("default/details", other_address),
        ("default/details", "nonsense"),
    ] {
        let answer = asked(&server, token, name).await;
        assert_eq!(answer.removed_resources, [name], "{token}");
        assert!(answer.resources.is_empty());
    }
    // As another kind of client nobody gets any.
    let id = sdk_node().id;
    let uri = serve(&server, None).await;
    for (id, metadata) in [
        (&*id, [("GENERATOR", "grpc"), ("ENABLE_HBONE", "false")]),
        (&*id, [("GENERATOR", "other"), ("ENABLE_HBONE", "true")]),
        (
            "ztunnel~10.10.2.11~a.default~default.svc.cluster.local",
            [("GENERATOR", "grpc"), ("ENABLE_HBONE", "true")],
        ),
    ] {
        let node = node_of(id, &metadata);
        let mut stream = open_as(&uri, "default/details", node).await.unwrap();
        stream.ask(type_url::LISTENER, &[NAME]).await;
        assert_eq!(
            stream.next().await.removed_resources,
            [NAME],
            "{metadata:?}"
        );
    }
}

#[tokio::test]
async fn a_listener_follows_its_policies_and_its_port() {
    let server = Server::builder(Tokens).build();
    server.apply(Batch::new(
        vec![methods("GET").into(), details().into()],
        Vec::new(),
    ));
    let mut stream = open_sdk(&server, "default/details").await;
    stream.ask(type_url::LISTENER, &[NAME]).await;
    let mut response = stream.next().await;
    let methods_of = |response: &DeltaDiscoveryResponse| {
        let listener = read(value(response));
        let rules = listener.policies().iter().flat_map(|one| one.rules());
        let rules = rules.map(|rule| format!("{:?}", rule.when()));
        rules.collect::<String>()
    };
    assert!(methods_of(&response).contains("GET"));
    // Of which the ambient stream shows nothing.
    for method in ["PUT", "POST"] {
        stream
            .say(type_url::LISTENER, &[], Some(&response.nonce), None)
            .await;
        server.apply(Batch::new(vec![methods(method).into()], Vec::new()));
        response = stream.next().await;
        assert!(methods_of(&response).contains(method));
    }
    stream
        .say(type_url::LISTENER, &[], Some(&response.nonce), None)
        .await;
    // Who asks anew has forgotten it.
    stream.ask(type_url::LISTENER, &[NAME]).await;
    response = stream.next().await;
    assert!(methods_of(&response).contains("POST"));
    stream
        .say(type_url::LISTENER, &[], Some(&response.nonce), None)
        .await;
    let gone = ResourceName::Policy(PolicyName::new("default", "p"));
    server.apply(Batch::new(Vec::new(), vec![gone]));
    response = stream.next().await;
    assert_eq!(read(value(&response)).policies().len(), 0);
    stream
        .say(type_url::LISTENER, &[], Some(&response.nonce), None)
        .await;
    let alone = details().with_services(Vec::new());
    server.apply(Batch::new(vec![alone.into()], Vec::new()));
    response = stream.next().await;
    assert_eq!(response.removed_resources, [NAME]);
    // And comes back with it.
    stream
        .say(type_url::LISTENER, &[], Some(&response.nonce), None)
        .await;
    server.apply(Batch::new(vec![details().into()], Vec::new()));
    assert_eq!(read(value(&stream.next().await)).policies().len(), 0);
}

#[tokio::test]
async fn a_listed_policy_that_nobody_has_refuses() {
    let server = Server::builder(Tokens).build();
    let missing = PolicyName::new("default", "missing");
    let strict = PolicyName::new("istio-system", "istio_converted_static_strict");
    let workload = details().with_authorization_policies(vec![missing, strict]);
    server.apply(Batch::new(vec![workload.into()], Vec::new()));
    let listener = read(value(&asked(&server, "default/details", NAME).await));
    let [policy] = listener.policies() else {
        panic!("{listener:?}");
    };
    assert_eq!(policy.name().to_string(), "default/missing");
    assert_eq!(policy.action(), &Action::Deny);
    assert_eq!(policy.rules()[0].when(), &Expr::TRUE);
}

/// Another one at the address of details, whose policy its listener has rather than theirs, and what ends that.
fn twin_that_leaves() -> (Workload, [Batch; 3]) {
    let twin = |ip: [u8; 4]| {
        Workload::new("Kubernetes//Pod/default/other", "default", "other")
            .with_service_account("details")
            .with_addresses(vec![ip.into()])
            .with_services(details().services().to_vec())
            .with_authorization_policies(vec![PolicyName::new("default", "missing")])
    };
    let here = twin([10, 10, 2, 11]);
    let gone = ResourceName::Workload(here.uid().into());
    let moved = twin([10, 10, 2, 12]).into();
    let frees = here.clone().with_authorization_policies(Vec::new());
    let changes = [
        Batch::new(Vec::new(), vec![gone]),
        Batch::new(vec![moved], Vec::new()),
        Batch::new(vec![frees.into()], Vec::new()),
    ];
    (here, changes)
}

#[tokio::test]
async fn the_policies_of_who_leaves_an_address_leave_its_listener() {
    let (twin, changes) = twin_that_leaves();
    for change in changes {
        let server = Server::builder(Tokens).build();
        let both = vec![details().into(), twin.clone().into()];
        server.apply(Batch::new(both, Vec::new()));
        let mut stream = open_sdk(&server, "default/details").await;
        stream.ask(type_url::LISTENER, &[NAME]).await;
        let response = stream.next().await;
        assert_eq!(read(value(&response)).policies().len(), 1);
        stream
            .say(type_url::LISTENER, &[], Some(&response.nonce), None)
            .await;
        server.apply(change);
        assert_eq!(read(value(&stream.next().await)).policies().len(), 0);
    }
}

#[tokio::test]
async fn the_policies_of_who_leaves_an_address_leave_the_state_of_the_world() {
    let (twin, changes) = twin_that_leaves();
    for change in changes {
        let server = Server::builder(Tokens).build();
        let both = vec![details().into(), twin.clone().into()];
        server.apply(Batch::new(both, Vec::new()));
        let peer = "spiffe://td/ns/default/sa/details".parse().unwrap();
        let uri = serve(&server, Some(peer)).await;
        let endpoint = tonic::transport::Endpoint::from(uri);
        let mut client = AggregatedDiscoveryServiceClient::new(endpoint.connect().await.unwrap());
        let (requests, sent) = mpsc::channel(8);
        let responses = client.stream_aggregated_resources(ReceiverStream::new(sent));
        let mut request = DiscoveryRequest {
            node: Some(sdk_node()),
            type_url: type_url::LISTENER.to_owned(),
            resource_names: vec![NAME.to_owned()],
            ..Default::default()
        };
        requests.send(request.clone()).await.unwrap();
        let mut responses = responses.await.unwrap().into_inner();
        let first = responses.message().await.unwrap().unwrap();
        assert_eq!(read(&first.resources[0].value).policies().len(), 1);
        request.response_nonce = first.nonce;
        requests.send(request).await.unwrap();
        server.apply(change);
        let second = responses.message().await.unwrap().unwrap();
        assert_eq!(read(&second.resources[0].value).policies().len(), 0);
    }
}

#[tokio::test]
async fn a_listener_has_a_listed_policy_that_nobody_is_sent() {
    let server = Server::builder(Tokens).build();
    let name = PolicyName::new("default", "waypoint");
    let policy = Policy::new(name.clone(), Action::Deny, vec![Rule::new(Expr::TRUE)]);
    let policy = AttachedPolicy::new(policy.into(), Scope::Targets(Vec::new()));
    let updates = vec![policy.into(), details().into()];
    server.apply(Batch::new(updates, Vec::new()));
    let mut stream = open_sdk(&server, "default/details").await;
    stream.ask(type_url::LISTENER, &[NAME]).await;
    let response = stream.next().await;
    assert_eq!(read(value(&response)).policies().len(), 0);
    stream
        .say(type_url::LISTENER, &[], Some(&response.nonce), None)
        .await;
    // Of which the ambient stream shows nothing.
    let listed = details().with_authorization_policies(vec![name]);
    server.apply(Batch::new(vec![listed.into()], Vec::new()));
    assert_eq!(read(value(&stream.next().await)).policies().len(), 1);
}
