//! What is worth noticing in the streams of a real istiod, as the decoder sees it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use mesh_authz::policy::ztunnel::EmptyMatch;
use mesh_authz::policy::{Action, Policy};
use mesh_authz::{Attribute, Attributes, Identity, PolicySet};
use mesh_xds::decode::{Decoder, ResourceType};
use mesh_xds::model::*;
use prost::Message;
use serde_json::Value;

use crate::proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use crate::require;

pub(crate) struct Response {
    pub(crate) step: String,
    pub(crate) message: DeltaDiscoveryResponse,
}

impl Response {
    fn kind(&self) -> ResourceType {
        ResourceType::from_url(&self.message.type_url).unwrap()
    }

    fn updates(&self, decoder: Decoder) -> Vec<Option<Update>> {
        let resources = self.message.resources.iter();
        let decode = resources.map(|resource| {
            let bytes = &resource.resource.as_ref().unwrap().value;
            decoder.decode(self.kind(), &resource.name, bytes).unwrap()
        });
        decode.collect()
    }
}

/// What the server said of one type; as the delta response that it is, or that it would be.
pub(crate) fn responses(client: &Path, url: &str) -> Vec<Response> {
    let stream = fs::read_to_string(client.join("stream.jsonl")).unwrap();
    let lines = stream
        .lines()
        .map(|line| -> Value { serde_json::from_str(line).unwrap() });
    let response = |line: Value| {
        let bytes =
            fs::read(client.join(format!("{}.pb", line["file"].as_str().unwrap()))).unwrap();
        let whole = client
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("proxyless");
        let message = if whole {
            let world = DiscoveryResponse::decode(&*bytes).unwrap();
            let mut message = DeltaDiscoveryResponse {
                type_url: world.type_url,
                ..Default::default()
            };
            message.resources = world
                .resources
                .into_iter()
                .map(
                    |resource| crate::proto::envoy::service::discovery::v3::Resource {
                        resource: Some(resource),
                        ..Default::default()
                    },
                )
                .collect();
            message
        } else {
            DeltaDiscoveryResponse::decode(&*bytes).unwrap()
        };
        let step = line["step"].as_str().unwrap().to_owned();
        Response { step, message }
    };
    lines
        .filter(|line| line["from"] == "server" && line["type_url"] == url)
        .map(response)
        .collect()
}

fn recording(name: &str, client: &str, kind: ResourceType) -> Option<Vec<Response>> {
    let data = require::data(name)?;
    Some(responses(
        &data.join("istiod").join(name).join(client),
        kind.url(),
    ))
}

fn workloads(response: &Response) -> Vec<Workload> {
    let updates = response.updates(Decoder::new()).into_iter().flatten();
    let workload = |update| match update {
        Update::Workload(workload) => Some(workload),
        _ => None,
    };
    updates.filter_map(workload).collect()
}

fn services(response: &Response) -> Vec<Service> {
    let updates = response.updates(Decoder::new()).into_iter().flatten();
    let service = |update| match update {
        Update::Service(service) => Some(Service::clone(&service)),
        _ => None,
    };
    updates.filter_map(service).collect()
}

/// Notes 1 and 2: nobody asked for the first ones; one name brings several; the form that was asked
/// for is an alias; what is unknown is removed.
#[test]
fn on_demand() {
    let Some(all) = recording("bookinfo", "ondemand", ResourceType::Address) else {
        return;
    };
    let first = workloads(&all[0]);
    assert!(!first.is_empty() && first.iter().all(|workload| workload.node() == "node-b"));

    let reviews = ServiceName::new("default", "reviews.default.svc.cluster.local");
    assert_eq!(services(&all[1])[0].name(), &reviews);
    let endpoints = workloads(&all[1]);
    assert_eq!(endpoints.len(), 3);
    assert!(
        endpoints
            .iter()
            .all(|one| one.services().iter().any(|own| *own.service() == reviews))
    );

    let by_address = &all[2].message.resources;
    let asked = by_address
        .iter()
        .find(|resource| resource.aliases.iter().any(|alias| alias == "/10.200.1.30"));
    assert_eq!(
        asked.unwrap().name,
        "default/ratings.default.svc.cluster.local"
    );
    assert_eq!(
        services(&all[2])[0].addresses()[0].to_string(),
        "/10.200.1.30"
    );
    assert_eq!(
        with_workloads(&all[2]),
        [("ratings.default.svc.cluster.local".to_owned(), 1)]
    );

    let unknown: Vec<_> = all
        .iter()
        .filter(|response| response.step == "base" && response.message.resources.is_empty())
        .collect();
    let names = unknown
        .iter()
        .flat_map(|response| &response.message.removed_resources);
    let names: Vec<_> = names.collect();
    assert_eq!(
        names,
        ["/10.99.99.99", "default/nowhere.default.svc.cluster.local"]
    );
    for name in names {
        assert!(
            ResourceType::Address
                .removed(name)
                .contains(&ResourceName::Workload(name.as_str().into()))
        );
    }
}

/// Each service of an answer, and how many of the workloads beside it are its own; there are no others.
fn with_workloads(response: &Response) -> Vec<(String, usize)> {
    let workloads = workloads(response);
    let services = services(response);
    let is_of = |workload: &Workload, service: &Service| {
        let mut memberships = workload.services().iter();
        memberships.any(|own| own.service() == service.name())
    };
    for workload in &workloads {
        let mut services = services.iter();
        let any = services.any(|service| is_of(workload, service));
        assert!(any, "{} is of none of them", workload.uid());
    }
    let count = |service: &Service| {
        let own = workloads.iter().filter(|one| is_of(one, service));
        (service.hostname().to_owned(), own.count())
    };
    services.iter().map(count).collect()
}

/// Note 2: an address brings the service of which it is, under its own name, with that service's workloads.
#[test]
fn an_address_brings_its_service_and_the_workloads() {
    let Some(all) = recording("networks", "ondemand", ResourceType::Address) else {
        return;
    };
    for (number, asked, service, workloads) in [
        (2, "net-1/fd30::1", "store.shop.svc.cluster.local", 3),
        (5, "net-1/10.31.0.1", "vault-alt.bank.mesh", 2),
    ] {
        let resources = &all[number].message.resources;
        let aliased = resources
            .iter()
            .filter(|one| one.aliases.iter().any(|alias| alias == asked));
        let names: Vec<_> = aliased.map(|one| one.name.as_str()).collect();
        let [name] = names[..] else {
            panic!("{asked}: {names:?}");
        };
        assert!(name.ends_with(service) && name != asked, "{name}");
        assert_eq!(
            with_workloads(&all[number]),
            [(service.to_owned(), workloads)]
        );
    }
}

/// Note 3: every name that istiod has says of what it is, and a removal by it removes what came by it.
#[test]
fn names_say_of_what_they_are() {
    let mut forms = BTreeMap::<&str, usize>::new();
    for (recorded, client) in [
        ("bookinfo", "ztunnel"),
        ("bookinfo", "ondemand"),
        ("bookinfo", "sdk"),
        ("networks", "ztunnel"),
        ("networks", "ondemand"),
        ("networks-multicluster", "ztunnel"),
        ("networks-multicluster", "ondemand"),
    ] {
        for kind in ResourceType::ALL {
            let Some(all) = recording(recorded, client, kind) else {
                return;
            };
            for response in &all {
                let updates = response.updates(Decoder::new());
                for (resource, update) in response.message.resources.iter().zip(updates) {
                    let (name, update) = (resource.name.as_str(), update.unwrap());
                    *forms.entry(form(name, &update)).or_default() += 1;
                    let removed = kind.removed(name);
                    assert!(removed.contains(&update.name()), "{name}: {removed:?}");
                }
            }
        }
    }
    let all = [
        "gateway",
        "listener",
        "pod",
        "policy",
        "service",
        "service entry",
        "workload entry",
    ];
    assert_eq!(forms.keys().copied().collect::<Vec<_>>(), all, "{forms:?}");
}

/// Which form a name has, of which each part is what the resource says.
fn form(name: &str, update: &Update) -> &'static str {
    let parts: Vec<_> = name.split('/').collect();
    match update {
        Update::Workload(workload) => {
            assert_eq!(workload.uid(), name);
            let (namespace, own) = (workload.namespace(), workload.name());
            let address = || workload.addresses().first().map(ToString::to_string);
            match parts[..] {
                ["Kubernetes", "", "Pod", in_namespace, pod] => {
                    assert_eq!((in_namespace, pod), (namespace, own));
                    "pod"
                }
                [
                    "Kubernetes",
                    "networking.istio.io",
                    "WorkloadEntry",
                    in_namespace,
                    entry,
                ] => {
                    assert_eq!((in_namespace, entry), (namespace, own));
                    "workload entry"
                }
                [
                    "Kubernetes",
                    "networking.istio.io",
                    "ServiceEntry",
                    in_namespace,
                    _,
                    endpoint,
                ] => {
                    assert_eq!(in_namespace, namespace);
                    let address = address().unwrap_or_else(|| workload.hostname().to_owned());
                    assert_eq!(endpoint, address);
                    "service entry"
                }
                ["NetworkGateway", network, ip, port] => {
                    assert_eq!(network, workload.network());
                    assert_eq!(Some(ip), address().as_deref());
                    assert_eq!(port.parse(), Ok(workload.hbone_port()));
                    "gateway"
                }
                _ => panic!("{name}"),
            }
        }
        Update::Service(service) => {
            assert_eq!(parts, [service.namespace(), service.hostname()]);
            "service"
        }
        Update::Policy(policy) => {
            let own = policy.policy().name();
            assert_eq!(parts, [own.namespace(), own.name()]);
            "policy"
        }
        Update::InboundListener(listener) => {
            let address = name.strip_prefix("xds.istio.io/grpc/lds/inbound/");
            assert_eq!(address, Some(&*listener.address().to_string()));
            "listener"
        }
        other => panic!("{other:?}"),
    }
}

/// Note 4: a policy brings the workloads that it selects again, and absence removes nothing.
#[test]
fn a_change_sends_more_than_it_touched() {
    let Some(all) = recording("bookinfo", "ztunnel", ResourceType::Address) else {
        return;
    };
    let last = all
        .iter()
        .find(|response| response.step == "08-details-deny-l7.apply")
        .unwrap();
    assert!(last.message.removed_resources.is_empty());
    let again = workloads(last);
    assert_eq!(again.len(), last.message.resources.len());
    let details = again
        .iter()
        .find(|workload| workload.name() == "details-v1-1")
        .unwrap();
    assert_eq!(details.authorization_policies().len(), 2);
    assert!(workloads(&all[0]).len() > again.len());
}

/// Note 5.
#[test]
fn hosts_addresses_and_ports_of_every_form() {
    let Some(all) = recording("networks", "ztunnel", ResourceType::Address) else {
        return;
    };
    let (services, workloads) = (services(&all[0]), workloads(&all[0]));
    assert!(
        services
            .iter()
            .any(|service| service.hostname().starts_with("*."))
    );
    let ranges = services
        .iter()
        .filter(|service| service.addresses().iter().any(|one| one.ip().is_none()));
    let modes: Vec<_> = ranges
        .map(|service| service.load_balancing().mode())
        .collect();
    assert!(modes.contains(&LoadBalancingMode::Passthrough), "{modes:?}");
    let named = services.iter().find(|service| {
        service
            .ports()
            .iter()
            .any(|port| port.target_port().is_none())
    });
    let named = named.unwrap();
    let of = |workload: &&Workload| {
        workload
            .services()
            .iter()
            .any(|own| own.service() == named.name())
    };
    let endpoint = workloads.iter().find(of).unwrap();
    let own = endpoint
        .services()
        .iter()
        .find(|own| own.service() == named.name())
        .unwrap();
    assert!(
        own.ports().iter().all(|port| port.target_port().is_some()),
        "each says its own"
    );
    let nameless = workloads
        .iter()
        .filter(|workload| workload.addresses().is_empty());
    assert!(
        nameless.clone().count() > 0
            && nameless
                .clone()
                .all(|workload| !workload.hostname().is_empty())
    );
}

/// Note 6.
#[test]
fn policies_arrive_converted_emptied_and_widened() {
    let kind = ResourceType::Authorization;
    let Some(all) = recording("bookinfo", "ztunnel", kind) else {
        return;
    };
    let policies = |decoder| -> Vec<std::sync::Arc<Policy>> {
        let updates = all
            .iter()
            .flat_map(|response| response.updates(decoder))
            .flatten();
        let policy = |update| match update {
            Update::Policy(policy) => Some(policy.policy().clone()),
            _ => None,
        };
        updates.filter_map(policy).collect()
    };
    let find = |decoder, name: &str| {
        let mut policies = policies(decoder).into_iter();
        policies
            .find(|policy| policy.name().to_string() == name)
            .unwrap_or_else(|| panic!("{name}"))
    };
    let sdk = Decoder::new();
    let strict = find(sdk, "istio-system/istio_converted_static_strict");
    assert!(InboundListener::keeps(strict.name()) && *strict.action() == Action::Deny);
    let emptied = find(sdk, "default/details-l7-selector");
    assert!(*emptied.action() == Action::Allow && emptied.rules().is_empty());
    let denies = |decoder, account| {
        let caller = Identity::new("cluster.local", "default", account).unwrap();
        let set = PolicySet::new([find(decoder, "default/details-deny-l7")]);
        let attributes = Attributes::new(
            "10.10.1.10:1".parse().unwrap(),
            "10.10.2.11:9080".parse().unwrap(),
        );
        !set.evaluate_l4(&attributes.with_identity(Attribute::Present(&caller)))
            .is_allowed()
    };
    let widened = ["bookinfo-productpage", "netshoot"].map(|account| denies(sdk, account));
    assert_eq!(widened, [false, true]);
    let ztunnel = sdk.with_empty_match(EmptyMatch::NeverMatches);
    assert!(!denies(ztunnel, "netshoot"), "as in istio/ztunnel");
    for policy in policies(sdk) {
        let withheld =
            matches!(policy.action(), Action::Audit | Action::Custom { .. }) || policy.dry_run();
        assert!(!withheld, "{}", policy.name());
    }

    let Some(all) = recording("networks", "ztunnel", kind) else {
        return;
    };
    let names = all[0]
        .message
        .resources
        .iter()
        .map(|resource| resource.name.as_str());
    let converted = names.filter(|name| name.contains("/converted_peer_authentication_"));
    assert!(converted.count() > 0);
}

/// Notes 7 and 8: a waypoint's and a client's listeners are nobody's inbound listener here; one that was
/// asked for by the unspecified address is one, which no workload has (the snapshot refuses it).
#[test]
fn other_listeners_have_no_place_in_the_model() {
    let kind = ResourceType::Listener;
    let waypoint = recording("bookinfo", "waypoint", kind);
    let client = recording("bookinfo", "proxyless", kind);
    let (Some(waypoint), Some(client)) = (waypoint, client) else {
        return;
    };
    let all = waypoint.iter().chain(&client);
    let updates: Vec<_> = all
        .flat_map(|response| response.updates(Decoder::new()))
        .collect();
    let inbound: Vec<_> = updates.iter().flatten().map(Update::name).collect();
    assert!(updates.len() > 4 * inbound.len() && !inbound.is_empty());
    let unspecified = ResourceName::InboundListener("0.0.0.0:9080".parse().unwrap());
    assert!(
        inbound.iter().all(|name| *name == unspecified),
        "{inbound:?}"
    );
}

/// Notes 8 and 9: DENY before ALLOW; on the combined stream a listener comes again for changes that do not touch it,
/// and what PeerAuthentication became is in none.
#[test]
fn inbound_listeners() {
    let kind = ResourceType::Listener;
    let (Some(server), Some(sdk)) = (
        recording("bookinfo", "proxyless-server", kind),
        recording("bookinfo", "sdk", kind),
    ) else {
        return;
    };
    let inbound = |all: &[Response]| -> Vec<InboundListener> {
        let updates = all
            .iter()
            .flat_map(|response| response.updates(Decoder::new()))
            .flatten();
        let listener = |update| match update {
            Update::InboundListener(listener) => InboundListener::clone(&listener),
            other => panic!("{other:?}"),
        };
        updates.map(listener).collect()
    };
    let (server, listeners) = (inbound(&server), inbound(&sdk));
    for listener in server.iter().chain(&listeners) {
        assert_eq!(listener.closed(), None);
        let mut names = listener.policies().iter().map(|policy| policy.name());
        assert!(names.all(|name| !InboundListener::keeps(name)));
        let actions: Vec<_> = listener
            .policies()
            .iter()
            .map(|policy| policy.action().clone())
            .collect();
        assert!(
            actions.is_sorted_by_key(|action| *action == Action::Allow)
                && actions.contains(&Action::Allow),
            "{actions:?}"
        );
    }
    assert!(
        server
            .iter()
            .any(|listener| listener.address().to_string() == "10.10.2.11:9080")
    );
    assert_eq!(listeners.len(), 9);
    // Only the last step touches it.
    let (last, before) = listeners.split_last().unwrap();
    assert!(before.iter().all(|listener| *listener == before[0]));
    assert_ne!(last, &before[0]);
    assert_eq!(last.policies().len(), before[0].policies().len() + 1);
}

/// Note 9: in an update the listener comes before the addresses and policies. At first all come in the order in
/// which they were asked for.
#[test]
fn on_the_combined_stream_the_listener_comes_first() {
    let Some(data) = require::data("on_the_combined_stream_the_listener_comes_first") else {
        return;
    };
    let stream = fs::read_to_string(data.join("istiod/bookinfo/sdk/stream.jsonl")).unwrap();
    let mut steps = BTreeMap::<String, Vec<ResourceType>>::new();
    for line in stream.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        if line["from"] == "server" {
            let kind = ResourceType::from_url(line["type_url"].as_str().unwrap()).unwrap();
            let step = line["step"].as_str().unwrap().to_owned();
            steps.entry(step).or_default().push(kind);
        }
    }
    let (address, policy) = (ResourceType::Address, ResourceType::Authorization);
    let first = steps.remove("base").unwrap();
    assert_eq!(first, [address, policy, ResourceType::Listener]);
    let order = [ResourceType::Listener, address, policy];
    for (step, kinds) in &steps {
        assert_eq!(*kinds, order[..kinds.len()], "{step}");
    }
    let whole = steps.values().filter(|kinds| kinds.len() == order.len());
    assert_eq!((steps.len(), whole.count()), (8, 3));
}
