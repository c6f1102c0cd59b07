//! Meshes of any size, and changes to them.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use mesh_authz::policy::TrustDomains;
use mesh_authz::policy::istio::{AuthorizationPolicy, Rule, Source};
use mesh_core::snapshot::{Snapshot, Source as Caller};
use mesh_core::xds::model::{
    AttachedPolicy, Batch, Health, LoadBalancing, LoadBalancingMode, Locality, LocalityScope,
    Membership, NetworkAddress, Port, Scope, Service, ServiceName, TunnelProtocol, Update,
    Workload,
};

/// How many workloads a service has, other than the large one.
const PER_SERVICE: u32 = 10;
/// How many workloads run on a node.
const PER_NODE: u32 = 30;
/// Nodes are in one of so many zones in turn.
const ZONES: u32 = 3;
/// How many workloads are in a namespace.
const PER_NAMESPACE: u32 = 100;

/// The hostname of a service with many endpoints, all alike.
pub const EVEN: &str = "even.ns-0.svc.cluster.local";
/// The hostname of a service with the same endpoints, which prefers those near the client.
pub const NEAR: &str = "near.ns-0.svc.cluster.local";

/// A mesh of services with ten workloads each, and two services with more.
#[derive(Debug)]
pub struct Mesh {
    /// The mesh.
    pub snapshot: Snapshot,
    workloads: u32,
    endpoints: u32,
}

impl Mesh {
    /// Makes a mesh of `workloads`, of which the first `endpoints` also belong to the two large services,
    /// with one policy for each hundred workloads, of which every tenth binds the mesh.
    ///
    /// # Panics
    ///
    /// When the snapshot rejects one of them.
    pub fn new(workloads: u32, endpoints: u32) -> Self {
        let mut this = Self {
            snapshot: Snapshot::new(),
            workloads,
            endpoints,
        };
        let services = (0..workloads.div_ceil(PER_SERVICE)).map(|at| service(at).into());
        let near = LoadBalancing::new()
            .with_mode(LoadBalancingMode::Failover)
            .with_routing_preference(vec![
                LocalityScope::Network,
                LocalityScope::Region,
                LocalityScope::Zone,
            ]);
        let large = [large(EVEN), large(NEAR).with_load_balancing(near)];
        let members = (0..workloads).map(|at| this.workload(at).into());
        let policies = (0..workloads / 100).map(|at| policy(at, scope(at)));
        let updates: Vec<Update> = services
            .chain(large.map(Update::from))
            .chain(members)
            .chain(policies)
            .collect();
        // As a source sends them, many at a time.
        for part in updates.chunks(1_000) {
            this.apply(&Batch::new(part.to_vec(), Vec::new()));
        }
        assert_eq!(this.snapshot.workload_count(), workloads as usize);
        this
    }

    /// Puts a batch in force.
    ///
    /// # Panics
    ///
    /// When the snapshot rejects a part of it.
    pub fn apply(&mut self, batch: &Batch) {
        let applied = self.snapshot.apply(batch);
        for verdict in &applied.verdicts {
            assert!(verdict.result().is_ok(), "{verdict:?}");
        }
        assert!(!applied.changes.is_empty(), "nothing is different");
        self.snapshot = applied.snapshot;
    }

    /// The workload with this number, as it is from the beginning.
    pub fn workload(&self, at: u32) -> Workload {
        let namespace = format!("ns-{}", at / PER_NAMESPACE);
        let name = format!("app-{at}");
        let mut memberships = vec![Membership::new(service_name(at / PER_SERVICE))];
        if at < self.endpoints {
            memberships.extend([EVEN, NEAR].map(|host| Membership::new(in_first(host))));
        }
        let node = at / PER_NODE;
        let zone = format!("zone-{}", node % ZONES);
        Workload::new(uid(at), namespace, name)
            .with_addresses(vec![ip(at)])
            .with_protocol(TunnelProtocol::Hbone)
            .with_service_account(format!("account-{}", at / PER_SERVICE))
            .with_node(format!("node-{node}"))
            .with_cluster_id("Kubernetes")
            .with_locality(Locality::new("region", zone, ""))
            .with_services(memberships)
    }

    /// A client in the mesh.
    ///
    /// # Panics
    ///
    /// In an empty mesh.
    pub fn caller(&self) -> Caller {
        self.caller_at(self.workloads - 1)
    }

    /// Another client in the same zone, on another node.
    ///
    /// # Panics
    ///
    /// In a mesh of fewer than four nodes.
    pub fn neighbour(&self) -> Caller {
        self.caller_at(self.workloads - 1 - ZONES * PER_NODE)
    }

    fn caller_at(&self, at: u32) -> Caller {
        let caller = self.snapshot.workload(&uid(at)).expect("a workload");
        Caller::new(Arc::clone(caller))
    }

    /// Workloads, spread over those from `from` to `to`.
    fn spread(from: u32, to: u32, count: u32) -> impl Iterator<Item = u32> {
        let step = (to - from) / count;
        assert!(step > 0, "fewer than {count}");
        (0..count).map(move |at| from + at * step)
    }

    /// Changes of one workload each that is no endpoint of the large services: its health, there and back.
    pub fn workload_changes(&self, count: u32) -> Vec<Batch> {
        self.health_changes(self.endpoints, self.workloads, count)
    }

    /// Changes of one endpoint each of the large services: its health, there and back.
    pub fn endpoint_changes(&self, count: u32) -> Vec<Batch> {
        self.health_changes(0, self.endpoints, count)
    }

    fn health_changes(&self, from: u32, to: u32, count: u32) -> Vec<Batch> {
        let of = |health| {
            Self::spread(from, to, count / 2)
                .map(move |at| one(self.workload(at).with_health(health)))
        };
        of(Health::Unhealthy).chain(of(Health::Healthy)).collect()
    }

    /// Batches that add a workload each, then batches that remove them.
    pub fn comings_and_goings(&self, count: u32) -> (Vec<Batch>, Vec<Batch>) {
        let new = || self.workloads..self.workloads + count;
        let comings = new().map(|at| one(self.workload(at))).collect();
        let goings = new().map(|at| {
            let name = Update::from(self.workload(at)).name();
            Batch::new(Vec::new(), vec![name])
        });
        (comings, goings.collect())
    }

    /// Policies for the whole mesh, each in a batch of its own; the second half replaces the first.
    pub fn mesh_wide_policies(&self, count: u32) -> Vec<Batch> {
        let half = count / 2;
        let new = (0..half).map(|at| policy(1_000_000 + at, Scope::Mesh));
        let other = (0..half).map(|at| {
            let mut resource = resource(1_000_000 + at);
            resource.rules.push(allowing("others"));
            attached(&resource, Scope::Mesh)
        });
        new.chain(other)
            .map(|update| Batch::new(vec![update], Vec::new()))
            .collect()
    }
}

fn one(workload: Workload) -> Batch {
    Batch::new(vec![workload.into()], Vec::new())
}

fn uid(at: u32) -> String {
    format!("Kubernetes//Pod/ns-{}/app-{at}", at / PER_NAMESPACE)
}

fn ip(at: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + at).into()
}

fn address(ip: IpAddr) -> NetworkAddress {
    NetworkAddress::new("", ip)
}

fn in_first(hostname: &str) -> ServiceName {
    ServiceName::new("ns-0", hostname)
}

fn large(hostname: &str) -> Service {
    Service::new(in_first(hostname)).with_ports(vec![Port::new(80).with_target_port(8080)])
}

fn service_name(service: u32) -> ServiceName {
    let namespace = service * PER_SERVICE / PER_NAMESPACE;
    let hostname = format!("service-{service}.ns-{namespace}.svc.cluster.local");
    ServiceName::new(format!("ns-{namespace}"), hostname)
}

fn service(at: u32) -> Service {
    Service::new(service_name(at))
        .with_ports(vec![Port::new(80).with_target_port(8080)])
        .with_addresses(vec![address(Ipv4Addr::from(0xac10_0000 + at).into())])
}

fn scope(at: u32) -> Scope {
    match at % 10 {
        0 => Scope::Mesh,
        _ => Scope::Namespace(format!("ns-{at}").into()),
    }
}

fn policy(at: u32, scope: Scope) -> Update {
    attached(&resource(at), scope)
}

fn attached(resource: &AuthorizationPolicy, scope: Scope) -> Update {
    let policy = resource.lower(&TrustDomains::new("cluster.local"));
    let policy = policy.expect("a policy that Istio accepts");
    AttachedPolicy::new(Arc::new(policy), scope).into()
}

fn resource(at: u32) -> AuthorizationPolicy {
    let mut resource = AuthorizationPolicy::new("istio-system", format!("policy-{at}"));
    resource.rules.push(allowing(&format!("ns-{at}")));
    resource
}

fn allowing(namespace: &str) -> Rule {
    let mut source = Source::default();
    source.namespaces = vec![namespace.to_owned()];
    let mut rule = Rule::default();
    rule.from = vec![source];
    rule
}
