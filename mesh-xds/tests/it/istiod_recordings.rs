//! Manifests become what a real istiod made of them, step by step.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use mesh_authz::policy::{Action, PolicyName};
use mesh_xds::decode::{Decoder, ResourceType};
use mesh_xds::file::{Loader, Settings};
use mesh_xds::model::*;
use prost::Message;
use serde_json::Value;

use crate::asked::Demand;
use crate::corners::assert_same_decisions;
use crate::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::require;

#[test]
fn bookinfo() {
    replay("bookinfo", "ztunnel", &[POD_BY_LABEL, NO_LABELS]);
}

#[test]
fn bookinfo_to_the_sdk() {
    replay("bookinfo", "sdk", &[POD_BY_LABEL, NO_LABELS]);
}

#[test]
fn bookinfo_on_demand() {
    replay("bookinfo", "ondemand", &[]);
}

#[test]
fn every_field_of_the_workload_api() {
    let exceptions = [
        NO_LABELS,
        NAMED_PORT,
        EXPORT_TO,
        MISSING_WAYPOINT,
        WHOLE_POLICIES,
    ];
    replay("networks", "ztunnel", &exceptions);
}

#[test]
fn every_field_on_demand() {
    let exceptions = [NAMED_PORT, MISSING_WAYPOINT, WHOLE_POLICIES];
    replay("networks", "ondemand", &exceptions);
}

#[test]
fn of_other_networks_the_gateways() {
    let exceptions = [
        NO_LABELS,
        NAMED_PORT,
        EXPORT_TO,
        MISSING_WAYPOINT,
        WHOLE_POLICIES,
        OTHER_NETWORKS,
    ];
    replay("networks-multicluster", "ztunnel", &exceptions);
}

#[test]
fn of_other_networks_the_gateways_on_demand() {
    let exceptions = [NAMED_PORT, MISSING_WAYPOINT, WHOLE_POLICIES, OTHER_NETWORKS];
    replay("networks-multicluster", "ondemand", &exceptions);
}

/// Where our conversion differs from the recordings on purpose. Each must be met at least once.
struct Exceptions(BTreeMap<&'static str, bool>);

const POD_BY_LABEL: &str =
    "a Pod without istio-cni's annotation is enrolled by its namespace's label";
const NO_LABELS: &str = "istiod lets every selector choose an endpoint that has no labels";
const NAMED_PORT: &str =
    "a container's port without protocol is TCP; nobody had filled it in for istiod";
const EXPORT_TO: &str = "exportTo [.] of a ServiceEntry is visibility Namespace";
const MISSING_WAYPOINT: &str = "a waypoint that a label names and no Gateway makes stays in the way; istiod lets callers around it";
const WHOLE_POLICIES: &str = "istiod withholds AUDIT, CUSTOM and dry-run policies";

const OTHER_NETWORKS: &str =
    "istiod withholds the workloads of other networks, but for their gateways";

impl Exceptions {
    fn new(names: &[&'static str]) -> Self {
        Self(names.iter().map(|name| (*name, false)).collect())
    }

    fn meet(&mut self, name: &'static str) {
        *self
            .0
            .get_mut(name)
            .unwrap_or_else(|| panic!("unexpected: {name}")) = true;
    }

    /// The waypoint that only we have, if it is the one that is gone.
    fn missing_waypoint(&mut self, ours: &GatewayAddress) -> GatewayAddress {
        let gone = ServiceName::new("shop", "shop-way.shop.svc.cluster.local");
        let gone = GatewayAddress::new(GatewayDestination::Hostname(gone), 15008);
        assert_eq!(*ours, gone);
        self.meet(MISSING_WAYPOINT);
        gone
    }

    /// What istiod has not sent.
    fn lacks(&mut self, update: &Update, step: &str) {
        match update {
            Update::Workload(workload)
                if self.0.contains_key(OTHER_NETWORKS) && workload.network() != "net-1" =>
            {
                self.meet(OTHER_NETWORKS);
            }
            _ => panic!("{step}: istiod has no {}", update.name()),
        }
    }

    fn finish(&self) {
        let unmet: Vec<_> = self.0.iter().filter(|(_, met)| !**met).collect();
        assert!(unmet.is_empty(), "exceptions that nothing needs: {unmet:?}");
    }
}

fn replay(recording: &str, client: &str, exceptions: &[&'static str]) {
    let Some(data) = require::data(recording) else {
        return;
    };
    let root = data.join("istiod").join(recording);
    let steps = steps(&root.join("manifests"));
    let mut exceptions = Exceptions::new(exceptions);
    let mut expected = Expected::default();
    let mut documents = BTreeMap::new();
    let mut loader = Loader::new(Settings::default());
    // Applying the batches must give the same as reading everything.
    let mut applied: BTreeMap<ResourceName, Update> = BTreeMap::new();
    for (step, manifest) in steps {
        change(&mut documents, &step, &manifest);
        let text: Vec<_> = documents.values().cloned().collect();
        let loaded = loader.load(vec![("mesh.yaml".into(), text.join("\n---\n").into())]);
        for problem in loaded.problems() {
            let message = "there is no Gateway shop/shop-way;";
            assert!(problem.message().starts_with(message), "{step}: {problem}");
            exceptions.meet(MISSING_WAYPOINT);
        }
        for name in loaded.batch().removed() {
            assert!(
                applied.remove(name).is_some(),
                "{step}: {name} removed twice"
            );
        }
        for update in loaded.batch().updates() {
            let before = applied.insert(update.name(), update.clone());
            assert_ne!(before.as_ref(), Some(update), "{step}: sent unchanged");
        }
        if client == "ondemand" && expected.demand.is_none() {
            expected.demand = Some(Demand::new(&root, client, &applied));
        }
        expected.advance(&root.join(client), &step);
        expected.compare(&step, &applied, &mut exceptions);
    }
    exceptions.finish();
}

/// The base and the numbered changes, in order.
pub(crate) fn steps(folder: &Path) -> Vec<(String, String)> {
    let mut steps: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.ends_with("mesh.yaml"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect();
    // The numbered ones sort before "base".
    steps.sort_by_key(|(name, _)| (name != "base", name.clone()));
    steps
}

/// `kubectl apply` or `delete` of a file to the documents that stand.
pub(crate) fn change(documents: &mut BTreeMap<String, String>, step: &str, manifest: &str) {
    for document in manifest.split("\n---\n") {
        let field = |indent: &str, name: &str| {
            let start = format!("{indent}{name}: ");
            let line = document.lines().find_map(|line| line.strip_prefix(&start));
            line.unwrap_or_default().to_owned()
        };
        let key = format!(
            "{} {}/{}",
            field("", "kind"),
            field("  ", "namespace"),
            field("  ", "name")
        );
        if step.ends_with(".delete") {
            assert!(documents.remove(&key).is_some(), "{step}: no {key}");
        } else {
            documents.insert(key, document.to_owned());
        }
    }
}

/// What istiod has said so far, message by message.
#[derive(Default)]
struct Expected {
    said: BTreeMap<ResourceName, Update>,
    /// Of a client that asks for addresses by name.
    demand: Option<Demand>,
}

impl Expected {
    fn advance(&mut self, client: &Path, step: &str) {
        let stream = fs::read_to_string(client.join("stream.jsonl")).unwrap();
        for line in stream.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            if line["step"] != step {
                continue;
            }
            let file = client.join(format!("{}.pb", line["file"].as_str().unwrap()));
            let bytes = fs::read(file).unwrap();
            if line["from"] == "client" {
                let request = DeltaDiscoveryRequest::decode(&*bytes).unwrap();
                let names = request.resource_names_subscribe.into_iter();
                if let Some(demand) = &mut self.demand {
                    // It begins with a subscription to nothing: to all, and not to all.
                    demand.names.extend(names.filter(|name| name != "*"));
                }
                continue;
            }
            let message = DeltaDiscoveryResponse::decode(&*bytes).unwrap();
            let kind = ResourceType::from_url(&message.type_url).unwrap();
            for resource in &message.resources {
                let bytes = &resource.resource.as_ref().unwrap().value;
                let update = Decoder::new().decode(kind, &resource.name, bytes);
                let update = update.unwrap_or_else(|error| panic!("{}: {error}", resource.name));
                let update = update.expect("it has a place in the model");
                self.said.insert(update.name(), update);
            }
            for name in message
                .removed_resources
                .iter()
                .flat_map(|name| kind.removed(name))
            {
                self.said.remove(&name);
            }
        }
    }

    fn compare(
        &self,
        step: &str,
        applied: &BTreeMap<ResourceName, Update>,
        exceptions: &mut Exceptions,
    ) {
        let withheld = withheld(applied);
        let answered = self.demand.as_ref().map(|demand| demand.answered(applied));
        let is_answered = |name| answered.as_ref().is_none_or(|names| names.contains(name));
        let mut differences = Vec::new();
        for (name, ours) in applied {
            let (ours, theirs) = match (ours, self.said.get(name)) {
                (Update::Workload(ours), Some(Update::Workload(theirs))) => {
                    let mut theirs = Workload::clone(theirs);
                    if let (Some(way), None) = (ours.waypoint(), theirs.waypoint()) {
                        theirs = theirs.with_waypoint(exceptions.missing_waypoint(way));
                    }
                    let (ours, theirs) = except(ours, theirs, &withheld, exceptions);
                    (format!("{ours:#?}"), format!("{theirs:#?}"))
                }
                (Update::Service(ours), Some(Update::Service(theirs))) => {
                    let mut theirs = Service::clone(theirs);
                    if ours.hostname() == "pinned.example.org" {
                        exceptions.meet(EXPORT_TO);
                        theirs = theirs.with_visibility(Visibility::Namespace);
                    }
                    if let (Some(way), None) = (ours.waypoint(), theirs.waypoint()) {
                        theirs = theirs.with_waypoint(exceptions.missing_waypoint(way));
                    }
                    (format!("{ours:#?}"), format!("{theirs:#?}"))
                }
                (Update::Workload(_) | Update::Service(_), None) => {
                    if is_answered(name) {
                        exceptions.lacks(ours, step);
                    }
                    continue;
                }
                (Update::Policy(ours), theirs) => {
                    compare_policy(step, ours, theirs, &withheld, exceptions);
                    continue;
                }
                _ => continue,
            };
            if ours != theirs {
                differences.push(format!("{step}: {name}\n{}", difference(&ours, &theirs)));
            }
        }
        assert!(differences.is_empty(), "{}", differences.join("\n"));
        for (name, theirs) in &self.said {
            match theirs {
                // Files have no such thing: what they say is asked of the whole in mesh-core.
                Update::InboundListener(listener) => assert_eq!(listener.closed(), None),
                Update::Workload(gateway) if gateway.uid().starts_with("NetworkGateway/") => {
                    if !applied.contains_key(name) {
                        exceptions.meet(OTHER_NETWORKS);
                    }
                }
                Update::Policy(_) => {
                    assert!(applied.contains_key(name), "{step}: only istiod has {name}");
                }
                _ => {
                    assert!(applied.contains_key(name), "{step}: only istiod has {name}");
                    assert!(is_answered(name), "{step}: nobody asked for {name}");
                }
            }
        }
    }
}

fn compare_policy(
    step: &str,
    ours: &AttachedPolicy,
    theirs: Option<&Update>,
    withheld: &BTreeSet<PolicyName>,
    exceptions: &mut Exceptions,
) {
    let name = ours.policy().name();
    // Only waypoints get those, in their listeners.
    if matches!(ours.scope(), Scope::Targets(_)) {
        assert!(theirs.is_none(), "{step}: {name}");
        return;
    }
    if withheld.contains(name) {
        exceptions.meet(WHOLE_POLICIES);
        assert!(theirs.is_none(), "{step}: {name}");
        return;
    }
    let Some(Update::Policy(theirs)) = theirs else {
        panic!("{step}: istiod has no policy {name}");
    };
    assert_eq!(ours.scope(), theirs.scope(), "{step}: {name}");
    let action = theirs.policy().action();
    assert_eq!(ours.policy().action(), action, "{step}: {name}");
    assert_same_decisions(ours.policy(), theirs.policy(), step);
}

/// Policies that istiod sends to nobody on the ambient stream.
fn withheld(applied: &BTreeMap<ResourceName, Update>) -> BTreeSet<PolicyName> {
    let policies = applied.values().filter_map(|update| match update {
        Update::Policy(policy) => Some(policy.policy()),
        _ => None,
    });
    policies
        .filter(|policy| {
            policy.dry_run() || matches!(policy.action(), Action::Audit | Action::Custom { .. })
        })
        .map(|policy| policy.name().clone())
        .collect()
}

/// Takes the deliberate differences out of a workload.
fn except(
    ours: &Workload,
    mut theirs: Workload,
    withheld: &BTreeSet<PolicyName>,
    exceptions: &mut Exceptions,
) -> (Workload, Workload) {
    let mut policies = ours.authorization_policies().to_vec();
    policies.retain(|name| {
        let kept = !withheld.contains(name);
        if !kept {
            exceptions.meet(WHOLE_POLICIES);
        }
        kept
    });
    policies.sort();
    // The ambient stream has no such thing.
    let mut ours = ours
        .clone()
        .with_authorization_policies(policies)
        .with_request_authentications(Vec::new());
    let mut policies = theirs.authorization_policies().to_vec();
    policies.sort();
    if ours.uid().contains("/ServiceEntry/") {
        let converted = |name: &PolicyName| name.name().contains("converted");
        let (chosen, rest): (Vec<_>, Vec<_>) = policies
            .into_iter()
            .partition(|name| !converted(name) && !ours.authorization_policies().contains(name));
        if !chosen.is_empty() {
            exceptions.meet(NO_LABELS);
        }
        policies = rest;
    }
    theirs = theirs.with_authorization_policies(policies);
    if ours.uid() == "Kubernetes//Pod/default/netshoot" {
        exceptions.meet(POD_BY_LABEL);
        assert_eq!(ours.protocol(), TunnelProtocol::Hbone);
        ours = ours.with_protocol(TunnelProtocol::None);
    }
    if ours.uid().starts_with("Kubernetes//Pod/shop/store-") {
        exceptions.meet(NAMED_PORT);
        let services = ours.services().iter().map(|membership| {
            let ports = membership.ports().iter().copied();
            let ports = ports.filter(|port| port.service_port() != 81);
            Membership::new(membership.service().clone()).with_ports(ports.collect())
        });
        let services = services.collect();
        ours = ours.with_services(services);
    }
    (ours, theirs)
}

fn difference(ours: &str, theirs: &str) -> String {
    let theirs_lines: BTreeSet<_> = theirs.lines().collect();
    let ours_lines: BTreeSet<_> = ours.lines().collect();
    let only = |lines: &str, others: &BTreeSet<&str>, sign: &str| -> Vec<String> {
        lines
            .lines()
            .filter(|line| !others.contains(line))
            .map(|line| format!("  {sign} {}", line.trim()))
            .collect()
    };
    let mut all = only(ours, &theirs_lines, "ours  ");
    all.extend(only(theirs, &ours_lines, "istiod"));
    if all.is_empty() {
        return format!("order differs: {ours}\n{theirs}");
    }
    all.join("\n")
}
