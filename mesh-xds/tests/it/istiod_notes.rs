//! What is worth noticing in the streams of a real istiod, as the decoder sees it.

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

struct Response {
    step: String,
    message: DeltaDiscoveryResponse,
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
fn responses(client: &Path, kind: ResourceType) -> Vec<Response> {
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
        .filter(|line| line["from"] == "server" && line["type_url"] == kind.url())
        .map(response)
        .collect()
}

fn recording(name: &str, client: &str, kind: ResourceType) -> Option<Vec<Response>> {
    let data = require::data(name)?;
    Some(responses(
        &data.join("istiod").join(name).join(client),
        kind,
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

/// Notes 8 and 9: DENY before ALLOW; on the combined stream a listener comes first, and again for changes
/// that do not touch it.
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
