//! Manifests become what a real istiod made of them, step by step.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_authz::matcher::StringMatch;
use mesh_authz::policy::ztunnel::{
    Authorization, Clause, EmptyMatch, Match, Network, Rule, ServiceAccount,
};
use mesh_authz::policy::{Action, PolicyName};
use mesh_authz::{Attribute, Attributes, Identity, PolicySet};
use mesh_xds::file::{Loader, Settings};
use mesh_xds::model::*;
use serde_json::Value;

use crate::require;

#[test]
fn bookinfo() {
    replay("bookinfo");
}

#[test]
fn every_field_of_the_workload_api() {
    replay("networks");
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

impl Exceptions {
    fn of(recording: &str) -> Self {
        let names: &[&str] = match recording {
            "bookinfo" => &[POD_BY_LABEL, NO_LABELS],
            _ => &[
                NO_LABELS,
                NAMED_PORT,
                EXPORT_TO,
                MISSING_WAYPOINT,
                WHOLE_POLICIES,
            ],
        };
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

    fn finish(&self) {
        let unmet: Vec<_> = self.0.iter().filter(|(_, met)| !**met).collect();
        assert!(unmet.is_empty(), "exceptions that nothing needs: {unmet:?}");
    }
}

fn replay(recording: &str) {
    let Some(data) = require::data(&format!("istiod_recordings::{recording}")) else {
        return;
    };
    let root = data.join("istiod").join(recording);
    let steps = steps(&root.join("manifests"));
    let mut exceptions = Exceptions::of(recording);
    let mut expected = Expected::default();
    let mut documents = BTreeMap::new();
    let mut loader = Loader::new(Settings::default());
    // Applying the batches must give the same as reading everything.
    let mut applied: BTreeMap<ResourceName, Update> = BTreeMap::new();
    for (step, manifest) in steps {
        change(&mut documents, &step, &manifest);
        expected.advance(&root.join("ztunnel"), &step);
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
        expected.compare(&step, &applied, &mut exceptions);
    }
    exceptions.finish();
}

/// The base and the numbered changes, in order.
fn steps(folder: &Path) -> Vec<(String, String)> {
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
fn change(documents: &mut BTreeMap<String, String>, step: &str, manifest: &str) {
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

/// What istiod has said so far.
#[derive(Default)]
struct Expected {
    addresses: BTreeMap<String, Value>,
    policies: BTreeMap<String, Value>,
}

impl Expected {
    fn advance(&mut self, client: &Path, step: &str) {
        let stream = fs::read_to_string(client.join("stream.jsonl")).unwrap();
        for line in stream.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            if line["from"] != "server" || line["step"] != step {
                continue;
            }
            let file = format!("{}.json", line["file"].as_str().unwrap());
            let message: Value =
                serde_json::from_str(&fs::read_to_string(client.join(file)).unwrap()).unwrap();
            let state = match line["type_url"].as_str().unwrap().ends_with("Address") {
                true => &mut self.addresses,
                false => &mut self.policies,
            };
            for resource in list(&message["resources"]) {
                state.insert(text(&resource["name"]), resource["resource"].clone());
            }
            for name in list(&message["removedResources"]) {
                state.remove(name.as_str().unwrap());
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
        let mut found = BTreeSet::new();
        let mut differences = Vec::new();
        for update in applied.values() {
            let (name, ours, theirs) = match update {
                Update::Workload(ours) => {
                    let name = ours.uid().to_owned();
                    let Some(theirs) = self.addresses.get(&name) else {
                        panic!("{step}: istiod has no {name}");
                    };
                    let mut theirs = workload(&theirs["workload"]);
                    if let (Some(way), None) = (ours.waypoint(), theirs.waypoint()) {
                        theirs = theirs.with_waypoint(exceptions.missing_waypoint(way));
                    }
                    let (ours, theirs) = except(ours, theirs, &withheld, exceptions);
                    (name, format!("{ours:#?}"), format!("{theirs:#?}"))
                }
                Update::Service(ours) => {
                    let name = ours.name().to_string();
                    let Some(theirs) = self.addresses.get(&name) else {
                        panic!("{step}: istiod has no {name}");
                    };
                    let mut theirs = service(&theirs["service"]);
                    if name == "bank/pinned.example.org" {
                        exceptions.meet(EXPORT_TO);
                        theirs = theirs.with_visibility(Visibility::Namespace);
                    }
                    if let (Some(way), None) = (ours.waypoint(), theirs.waypoint()) {
                        theirs = theirs.with_waypoint(exceptions.missing_waypoint(way));
                    }
                    (name, format!("{ours:#?}"), format!("{theirs:#?}"))
                }
                _ => continue,
            };
            found.insert(name.clone());
            if ours != theirs {
                differences.push(format!("{step}: {name}\n{}", difference(&ours, &theirs)));
            }
        }
        assert!(differences.is_empty(), "{}", differences.join("\n"));
        let missing: Vec<_> = self
            .addresses
            .keys()
            .filter(|name| !found.contains(*name))
            .collect();
        assert!(missing.is_empty(), "{step}: only istiod has {missing:?}");
        self.compare_policies(step, applied, &withheld, exceptions);
    }

    fn compare_policies(
        &self,
        step: &str,
        applied: &BTreeMap<ResourceName, Update>,
        withheld: &BTreeSet<PolicyName>,
        exceptions: &mut Exceptions,
    ) {
        let mut found = BTreeSet::new();
        for update in applied.values() {
            let Update::Policy(ours) = update else {
                continue;
            };
            let name = ours.policy().name();
            if matches!(ours.scope(), Scope::Targets(_)) {
                // Only waypoints get those, in their listeners.
                assert!(!self.policies.contains_key(&name.to_string()));
                continue;
            }
            if withheld.contains(name) {
                exceptions.meet(WHOLE_POLICIES);
                assert!(!self.policies.contains_key(&name.to_string()));
                continue;
            }
            let Some(theirs) = self.policies.get(&name.to_string()) else {
                panic!("{step}: istiod has no policy {name}");
            };
            found.insert(name.to_string());
            let scope = match text(&theirs["scope"]).as_str() {
                "WORKLOAD_SELECTOR" => Scope::Workload,
                "NAMESPACE" => Scope::Namespace(name.namespace().into()),
                _ => Scope::Mesh,
            };
            assert_eq!(*ours.scope(), scope, "{step}: {name}");
            let theirs = authorization(theirs).lower(EmptyMatch::AsLost).unwrap();
            assert_eq!(ours.policy().action(), theirs.action(), "{step}: {name}");
            assert_same_decisions(ours.policy(), Arc::new(theirs), step);
        }
        let missing: Vec<_> = self
            .policies
            .keys()
            .filter(|name| !found.contains(*name))
            .collect();
        assert!(missing.is_empty(), "{step}: only istiod has {missing:?}");
    }
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

/// Decides about connections at every corner that the recorded policies have.
fn assert_same_decisions(
    ours: &Arc<mesh_authz::policy::Policy>,
    theirs: Arc<mesh_authz::policy::Policy>,
    step: &str,
) {
    let identities = [
        ("cluster.local", "shop", "store"),
        ("cluster.local", "shop", "cart"),
        ("cluster.local", "shop", "evil"),
        ("cluster.local", "bank", "report"),
        ("cluster.local", "bank", "store"),
        ("cluster.local", "bank-2", "store"),
        ("cluster.local", "a-test", "other"),
        ("far.example", "x", "y"),
        ("far.example", "a", "b"),
        ("far.example", "x", "store"),
        ("cluster.local", "outside", "plain"),
        ("cluster.local", "quarantine", "x"),
        ("cluster.local", "legacy", "legacy"),
        ("cluster.local", "default", "netshoot"),
        ("cluster.local", "default", "bookinfo-productpage"),
    ];
    let mut callers: Vec<_> = identities
        .iter()
        .map(|(td, ns, sa)| Some(Identity::new(td, ns, sa).unwrap()))
        .collect();
    callers.push(None);
    let sources = [
        "10.20.1.5",
        "10.20.1.77",
        "10.20.7.1",
        "10.9.9.9",
        "10.10.1.1",
        "192.0.2.9",
        "fd20::5",
        "8.8.8.8",
    ];
    let destinations = ["10.20.1.2", "10.10.3.60"];
    let ports = [1, 3306, 5432, 5433, 6000, 8080, 9000, 9080];
    let ours = PolicySet::new([Arc::clone(ours)]);
    let theirs = PolicySet::new([theirs]);
    let mut both = BTreeSet::new();
    for caller in &callers {
        for source in sources {
            for destination in destinations {
                for port in ports {
                    let source = SocketAddr::new(source.parse().unwrap(), 40000);
                    let destination = SocketAddr::new(destination.parse().unwrap(), port);
                    let attributes = Attributes::new(source, destination)
                        .with_identity(Attribute::from(caller.as_ref()));
                    let decided = ours.evaluate_l4(&attributes).is_allowed();
                    assert_eq!(
                        decided,
                        theirs.evaluate_l4(&attributes).is_allowed(),
                        "{step}: {:?} decides otherwise about {caller:?} from {source} to {destination}",
                        ours.policies()[0]
                    );
                    both.insert(decided);
                }
            }
        }
    }
    let rules = ours.policies()[0].rules();
    let constant = rules.is_empty() || rules.iter().all(|rule| rule.needs_request());
    assert!(
        both.len() == 2 || constant,
        "the corners miss {:?}",
        ours.policies()[0]
    );
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn number(value: &Value) -> u16 {
    value.as_u64().unwrap_or_default().try_into().unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    let text = text(value);
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let mut bytes = Vec::new();
    for chunk in text.trim_end_matches('=').as_bytes().chunks(4) {
        let bits = chunk
            .iter()
            .fold(0_u32, |bits, byte| bits << 6 | u32::from(digit(*byte)));
        let bits = bits << (6 * (4 - chunk.len()));
        bytes.extend(&bits.to_be_bytes()[1..chunk.len()]);
    }
    bytes
}

fn ip(value: &Value) -> IpAddr {
    let bytes = bytes(value);
    match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => v4.into(),
        Err(_) => <[u8; 16]>::try_from(bytes).unwrap().into(),
    }
}

fn gateway(value: &Value) -> Option<GatewayAddress> {
    let hostname = &value["hostname"];
    let address = &value["address"];
    let destination = if hostname.is_object() {
        GatewayDestination::Hostname(ServiceName::new(
            text(&hostname["namespace"]),
            text(&hostname["hostname"]),
        ))
    } else if address.is_object() {
        GatewayDestination::Address {
            network: text(&address["network"]).into(),
            ip: ip(&address["address"]),
        }
    } else {
        return None;
    };
    Some(GatewayAddress::new(
        destination,
        number(&value["hboneMtlsPort"]),
    ))
}

fn ports(value: &Value) -> Vec<Port> {
    let port = |value: &Value| {
        let port = Port::new(number(&value["servicePort"])).with_app_protocol(
            match text(&value["appProtocol"]).as_str() {
                "" => AppProtocol::Unknown,
                "HTTP11" => AppProtocol::Http11,
                "HTTP2" => AppProtocol::Http2,
                "GRPC" => AppProtocol::Grpc,
                "TCP" => AppProtocol::Tcp,
                "TLS" => AppProtocol::Tls,
                other => panic!("{other}"),
            },
        );
        match number(&value["targetPort"]) {
            0 => port,
            target => port.with_target_port(target),
        }
    };
    list(value).iter().map(port).collect()
}

fn workload(value: &Value) -> Workload {
    let empty = serde_json::Map::new();
    let mut services: Vec<_> = value["services"]
        .as_object()
        .unwrap_or(&empty)
        .iter()
        .map(|(name, value)| {
            let (namespace, hostname) = name.split_once('/').unwrap();
            Membership::new(ServiceName::new(namespace, hostname))
                .with_ports(ports(&value["ports"]))
        })
        .collect();
    services.sort_by(|a, b| a.service().cmp(b.service()));
    let policies = list(&value["authorizationPolicies"]).iter().map(|name| {
        let (namespace, name) = name.as_str().unwrap().split_once('/').unwrap();
        PolicyName::new(namespace, name)
    });
    let or = |name: &str, default: &str| match text(&value[name]) {
        empty if empty.is_empty() => default.to_owned(),
        text => text,
    };
    let locality = &value["locality"];
    let mut built = Workload::new(
        text(&value["uid"]),
        text(&value["namespace"]),
        text(&value["name"]),
    )
    .with_addresses(list(&value["addresses"]).iter().map(ip).collect())
    .with_network(text(&value["network"]))
    .with_trust_domain(or("trustDomain", "cluster.local"))
    .with_service_account(or("serviceAccount", "default"))
    .with_hostname(text(&value["hostname"]))
    .with_node(text(&value["node"]))
    .with_cluster_id(or("clusterId", "Kubernetes"))
    .with_locality(Locality::new(
        text(&locality["region"]),
        text(&locality["zone"]),
        text(&locality["subzone"]),
    ))
    .with_canonical_name(text(&value["canonicalName"]))
    .with_canonical_revision(text(&value["canonicalRevision"]))
    .with_workload_name(text(&value["workloadName"]))
    .with_native_tunnel(value["nativeTunnel"] == true)
    .with_authorization_policies(policies.collect())
    .with_capacity(value["capacity"].as_u64().unwrap_or(1).try_into().unwrap())
    .with_services(services);
    if value["tunnelProtocol"] == "HBONE" {
        built = built.with_protocol(TunnelProtocol::Hbone);
    }
    if value["networkMode"] == "HOST_NETWORK" {
        built = built.with_network_mode(NetworkMode::HostNetwork);
    }
    if value["status"] == "UNHEALTHY" {
        built = built.with_health(Health::Unhealthy);
    }
    match text(&value["workloadType"]).as_str() {
        "POD" => built = built.with_workload_type(WorkloadType::Pod),
        "" => {}
        other => panic!("{other}"),
    }
    if let Some(waypoint) = gateway(&value["waypoint"]) {
        built = built.with_waypoint(waypoint);
    }
    if let Some(gateway) = gateway(&value["networkGateway"]) {
        built = built.with_network_gateway(gateway);
    }
    built
}

fn service(value: &Value) -> Service {
    let address = |value: &Value| {
        let network = text(&value["network"]);
        let ip = ip(&value["address"]);
        match value["length"].as_u64() {
            Some(length) => {
                let range = IpNet::new(ip, length.try_into().unwrap()).unwrap();
                NetworkAddress::cidr(network, range)
            }
            None => NetworkAddress::new(network, ip),
        }
    };
    let balancing = &value["loadBalancing"];
    let scopes = list(&balancing["routingPreference"])
        .iter()
        .map(|scope| match scope.as_str() {
            Some("NETWORK") => LocalityScope::Network,
            Some("REGION") => LocalityScope::Region,
            Some("ZONE") => LocalityScope::Zone,
            Some("SUBZONE") => LocalityScope::Subzone,
            Some("NODE") => LocalityScope::Node,
            other => panic!("{other:?}"),
        });
    let balancing = LoadBalancing::new()
        .with_routing_preference(scopes.collect())
        .with_mode(match text(&balancing["mode"]).as_str() {
            "" => LoadBalancingMode::Standard,
            "STRICT" => LoadBalancingMode::Strict,
            "FAILOVER" => LoadBalancingMode::Failover,
            "PASSTHROUGH" => LoadBalancingMode::Passthrough,
            other => panic!("{other}"),
        })
        .with_health_policy(match text(&balancing["healthPolicy"]).as_str() {
            "" => HealthPolicy::OnlyHealthy,
            "ALLOW_ALL" => HealthPolicy::AllowAll,
            other => panic!("{other}"),
        });
    let names = list(&value["subjectAltNames"]).iter();
    let mut built = Service::new(ServiceName::new(
        text(&value["namespace"]),
        text(&value["hostname"]),
    ))
    .with_object_name(text(&value["name"]))
    .with_addresses(list(&value["addresses"]).iter().map(address).collect())
    .with_ports(ports(&value["ports"]))
    .with_subject_alt_names(names.map(|name| text(name).parse().unwrap()).collect())
    .with_load_balancing(balancing)
    .with_canonical(value["canonical"] == true)
    .with_ip_families(match text(&value["ipFamilies"]).as_str() {
        "" => IpFamilies::Automatic,
        "DUAL" => IpFamilies::Dual,
        other => panic!("{other}"),
    });
    if let Some(waypoint) = gateway(&value["waypoint"]) {
        built = built.with_waypoint(waypoint);
    }
    built
}

/// The recorder wrote the fields' older names: groups of rules of matches.
fn authorization(value: &Value) -> Authorization {
    let mut built = Authorization::new(text(&value["namespace"]), text(&value["name"]));
    if value["action"] == "DENY" {
        built.action = Action::Deny;
    }
    for group in list(&value["groups"]) {
        let mut rule = Rule::default();
        for clause in list(&group["rules"]) {
            let mut built = Clause::default();
            built.matches = list(&clause["matches"]).iter().map(one_match).collect();
            rule.clauses.push(built);
        }
        built.rules.push(rule);
    }
    built
}

fn one_match(value: &Value) -> Match {
    let strings = |name: &str| -> Vec<StringMatch> {
        let read = |value: &Value| {
            if value["presence"].is_object() {
                StringMatch::Present
            } else if let Some(exact) = value["exact"].as_str() {
                StringMatch::Exact(exact.into())
            } else if let Some(prefix) = value["prefix"].as_str() {
                StringMatch::Prefix(prefix.into())
            } else {
                StringMatch::Suffix(text(&value["suffix"]).into())
            }
        };
        list(&value[name]).iter().map(read).collect()
    };
    let networks = |name: &str| -> Vec<Network> {
        let read = |value: &Value| Network::Bytes {
            address: bytes(&value["address"]),
            length: u32::from(number(&value["length"])),
        };
        list(&value[name]).iter().map(read).collect()
    };
    let ports = |name: &str| -> Vec<u32> {
        list(&value[name])
            .iter()
            .map(|port| u32::from(number(port)))
            .collect()
    };
    let accounts = |name: &str| -> Vec<ServiceAccount> {
        let read = |value: &Value| {
            ServiceAccount::new(text(&value["namespace"]), text(&value["serviceAccount"]))
        };
        list(&value[name]).iter().map(read).collect()
    };
    let mut built = Match::default();
    built.namespaces = strings("namespaces");
    built.not_namespaces = strings("notNamespaces");
    built.principals = strings("principals");
    built.not_principals = strings("notPrincipals");
    built.source_ips = networks("sourceIps");
    built.not_source_ips = networks("notSourceIps");
    built.destination_ips = networks("destinationIps");
    built.not_destination_ips = networks("notDestinationIps");
    built.destination_ports = ports("destinationPorts");
    built.not_destination_ports = ports("notDestinationPorts");
    built.service_accounts = accounts("serviceAccounts");
    built.not_service_accounts = accounts("notServiceAccounts");
    built
}
