//! A naive mesh to compare the snapshot with: sorted maps, read by linear scans, and random changes to it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use mesh_core::snapshot::Snapshot;
use mesh_core::xds::model::{
    ApplicationProtocol, ApplicationTunnel, Batch, Health, HealthPolicy, IpFamilies, LoadBalancing,
    LoadBalancingMode, Locality, LocalityScope, Membership, NetworkAddress, NetworkMode, Port,
    ResourceName, Service, ServiceName, TunnelProtocol, Update, Visibility, Workload,
};
use proptest::prelude::*;

pub(crate) const NETWORKS: [&str; 2] = ["", "far"];
pub(crate) const NAMESPACES: [&str; 2] = ["a", "b"];
pub(crate) const HOSTNAMES: [&str; 4] = [
    "ratings.a.svc.cluster.local",
    "ratings.b.svc.cluster.local",
    "api.example.com",
    "*.example.com",
];
pub(crate) const PORTS: [u16; 2] = [80, 443];

pub(crate) fn workload_ips() -> Vec<IpAddr> {
    ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2"]
        .map(|ip| ip.parse().unwrap())
        .to_vec()
}

pub(crate) fn service_ips() -> Vec<IpAddr> {
    ["10.1.0.1", "10.1.0.2", "10.1.128.1", "fd01::1"]
        .map(|ip| ip.parse().unwrap())
        .to_vec()
}

fn ranges() -> Vec<IpNet> {
    [
        "10.1.0.0/16",
        "10.1.0.0/17",
        "10.1.0.0/30",
        "10.1.128.0/17",
        "fd01::/64",
        "0.0.0.0/0",
    ]
    .map(|range| range.parse().unwrap())
    .to_vec()
}

/// The mesh as maps of what was last said.
#[derive(Debug, Clone, Default)]
pub(crate) struct Naive {
    pub(crate) workloads: BTreeMap<String, Workload>,
    pub(crate) services: BTreeMap<ServiceName, Service>,
}

#[derive(Debug, Clone)]
pub(crate) enum Change {
    Put(Update),
    Remove(ResourceName),
}

impl Naive {
    pub(crate) fn change(&mut self, change: &Change) {
        match change {
            Change::Put(Update::Workload(workload)) => {
                let uid = workload.uid().to_owned();
                self.workloads.insert(uid, Workload::clone(workload));
            }
            Change::Put(Update::Service(service)) => {
                let name = service.name().clone();
                self.services.insert(name, Service::clone(service));
            }
            Change::Remove(ResourceName::Workload(uid)) => {
                self.workloads.remove(&**uid);
            }
            Change::Remove(ResourceName::Service(name)) => {
                self.services.remove(name);
            }
            other => panic!("not generated: {other:?}"),
        }
    }

    /// All of it in one batch.
    pub(crate) fn load(&self) -> Snapshot {
        let workloads = self.workloads.values().rev().cloned().map(Update::from);
        let services = self.services.values().cloned().map(Update::from);
        let updates = workloads.chain(services).collect();
        Snapshot::new()
            .apply(&Batch::new(updates, Vec::new()))
            .snapshot
    }

    pub(crate) fn workload_at(&self, network: &str, ip: IpAddr) -> Option<&Workload> {
        let all = self.workloads.values().filter(|workload| {
            workload.network() == network
                && workload.network_mode() == NetworkMode::Standard
                && workload.addresses().contains(&ip)
        });
        all.min_by_key(|workload| precedence(workload))
    }

    pub(crate) fn workload_named(&self, namespace: &str, name: &str) -> Option<&Workload> {
        let all = self.workloads.values();
        all.filter(|workload| workload.namespace() == namespace && workload.name() == name)
            .min_by_key(|workload| precedence(workload))
    }

    pub(crate) fn service_with_hostname(
        &self,
        hostname: &str,
        namespace: &str,
    ) -> Option<&Service> {
        let all = self.services.values();
        best(
            all.filter(|service| service.hostname() == hostname),
            namespace,
        )
    }

    pub(crate) fn service_at(
        &self,
        network: &str,
        ip: IpAddr,
        namespace: &str,
    ) -> Option<&Service> {
        let all = || self.services.values();
        let has = |service: &&Service| {
            let mut addresses = service.addresses().iter();
            addresses.any(|own| own.network() == network && own.ip() == Some(ip))
        };
        best(all().filter(has), namespace).or_else(|| {
            let ranked = all()
                .filter(|service| visible(service, namespace))
                .filter_map(|service| {
                    let ranges = service.addresses().iter().filter(|own| {
                        own.network() == network && own.ip().is_none() && own.range().contains(&ip)
                    });
                    let length = ranges.map(|own| own.range().prefix_len()).max()?;
                    let own = service.namespace() == namespace;
                    let public = service.visibility() == Visibility::Public;
                    let rank = (own, length, service.canonical(), public);
                    Some((rank, Reverse(service.name()), service))
                });
            let found = ranked.max_by_key(|(rank, name, _)| (*rank, *name));
            found.map(|(_, _, service)| service)
        })
    }

    pub(crate) fn endpoints<'a>(
        &'a self,
        service: &'a ServiceName,
    ) -> impl Iterator<Item = (&'a Workload, &'a Membership)> {
        self.workloads.values().filter_map(move |workload| {
            let mut memberships = workload.services().iter();
            Some((workload, memberships.find(|own| own.service() == service)?))
        })
    }
}

fn precedence(workload: &Workload) -> (bool, bool, &str) {
    let pod = workload.uid().contains("//Pod/");
    let hbone = workload.protocol() == TunnelProtocol::Hbone;
    (!pod, !hbone, workload.uid())
}

fn visible(service: &Service, namespace: &str) -> bool {
    service.visibility() == Visibility::Public || service.namespace() == namespace
}

fn best<'a>(services: impl Iterator<Item = &'a Service>, namespace: &str) -> Option<&'a Service> {
    let visible = services.filter(|service| visible(service, namespace));
    visible.min_by_key(|service| {
        let own = service.namespace() == namespace;
        (
            !own,
            !service.canonical(),
            service.visibility() != Visibility::Public,
            service.name(),
        )
    })
}

pub(crate) fn any_of<T: Clone + std::fmt::Debug + 'static>(
    values: impl Into<Vec<T>>,
) -> impl Strategy<Value = T> {
    prop::sample::select(values.into())
}

fn some_of<T: Clone + std::fmt::Debug + 'static>(
    values: Vec<T>,
    most: usize,
) -> impl Strategy<Value = Vec<T>> {
    prop::sample::subsequence(values, 0..=most).prop_shuffle()
}

fn service_name() -> impl Strategy<Value = ServiceName> {
    (any_of(NAMESPACES), any_of(HOSTNAMES))
        .prop_map(|(namespace, host)| ServiceName::new(namespace, host))
}

fn ports() -> impl Strategy<Value = Vec<Port>> {
    let port = |port: u16| {
        prop_oneof![
            Just(None),
            Just(Some(Port::new(port))),
            (8080..8083_u16).prop_map(move |target| Some(Port::new(port).with_target_port(target))),
        ]
    };
    PORTS
        .map(port)
        .prop_map(|ports| ports.into_iter().flatten().collect())
}

fn locality() -> impl Strategy<Value = Locality> {
    let part = || any_of(["1", "2"]);
    (part(), part(), part())
        .prop_map(|(region, zone, subzone)| Locality::new(region, zone, subzone))
}

pub(crate) fn workload() -> impl Strategy<Value = Workload> {
    let names = (
        any_of([
            "Kubernetes//Pod",
            "Kubernetes/networking.istio.io/WorkloadEntry",
        ]),
        any_of(NAMESPACES),
        any_of(["one", "two", "three"]),
        // What a uid belongs to is chosen apart, so that uids move between addresses.
        0..2_usize,
    );
    let place = (
        any_of([NETWORKS[0], NETWORKS[0], NETWORKS[1]]),
        locality(),
        any_of(["x", "y"]),
    );
    let addresses = (
        some_of(workload_ips(), 2),
        any_of(["", "", "db.example.org"]),
        any_of([
            NetworkMode::Standard,
            NetworkMode::Standard,
            NetworkMode::HostNetwork,
        ]),
    );
    let health = any_of([Health::Healthy, Health::Healthy, Health::Unhealthy]);
    let memberships = prop::collection::btree_map(
        service_name(),
        (ports(), prop::option::weighted(0.2, health.boxed())),
        0..3,
    );
    let health = any_of([Health::Healthy, Health::Healthy, Health::Unhealthy]);
    let protocol = any_of([TunnelProtocol::None, TunnelProtocol::Hbone]);
    let tunnel = prop::option::weighted(0.2, any_of([None, Some(15088)]));
    (
        names,
        place,
        addresses,
        memberships,
        (health, 0..4_u32, protocol, tunnel),
    )
        .prop_map(|(names, place, addresses, memberships, rest)| {
            let (kind, namespace, name, number) = names;
            let memberships = memberships.into_iter().map(|(service, (ports, health))| {
                let membership = Membership::new(service).with_ports(ports);
                health.into_iter().fold(membership, Membership::with_health)
            });
            let workload = Workload::new(
                format!("{kind}/{namespace}/{name}-{number}"),
                namespace,
                name,
            )
            .with_network(place.0)
            .with_locality(place.1)
            .with_node(place.2)
            .with_addresses(addresses.0)
            .with_hostname(addresses.1)
            .with_network_mode(addresses.2)
            .with_services(memberships.collect())
            .with_health(rest.0)
            .with_capacity(rest.1)
            .with_protocol(rest.2);
            let tunnels = rest.3.into_iter();
            tunnels.fold(workload, |workload, port| {
                let tunnel = ApplicationTunnel::new(ApplicationProtocol::Proxy);
                let tunnel = port.into_iter().fold(tunnel, ApplicationTunnel::with_port);
                workload.with_application_tunnel(tunnel)
            })
        })
}

pub(crate) fn service() -> impl Strategy<Value = Service> {
    let address = prop_oneof![
        (any_of(NETWORKS), any_of(service_ips()))
            .prop_map(|(network, ip)| NetworkAddress::new(network, ip)),
        (any_of(NETWORKS), any_of(ranges()))
            .prop_map(|(network, range)| NetworkAddress::cidr(network, range)),
    ];
    let scopes = vec![
        LocalityScope::Network,
        LocalityScope::Region,
        LocalityScope::Zone,
        LocalityScope::Subzone,
        LocalityScope::Node,
        LocalityScope::Cluster,
    ];
    let balancing = (
        prop_oneof![
            some_of(scopes.clone(), 4),
            prop::sample::subsequence(scopes, 0..=4)
        ],
        any_of([
            LoadBalancingMode::Standard,
            LoadBalancingMode::Strict,
            LoadBalancingMode::Failover,
            LoadBalancingMode::Failover,
        ]),
        any_of([
            HealthPolicy::OnlyHealthy,
            HealthPolicy::OnlyHealthy,
            HealthPolicy::AllowAll,
        ]),
    );
    let families = any_of([
        IpFamilies::Automatic,
        IpFamilies::Ipv4Only,
        IpFamilies::Ipv6Only,
        IpFamilies::Dual,
    ]);
    (
        service_name(),
        prop::collection::vec(address, 0..3),
        ports(),
        balancing,
        (
            families,
            any::<bool>(),
            any_of([
                Visibility::Public,
                Visibility::Public,
                Visibility::Namespace,
            ]),
        ),
    )
        .prop_map(
            |(name, addresses, ports, balancing, (families, canonical, visibility))| {
                let balancing = LoadBalancing::new()
                    .with_routing_preference(balancing.0)
                    .with_mode(balancing.1)
                    .with_health_policy(balancing.2);
                Service::new(name)
                    .with_addresses(addresses)
                    .with_ports(ports)
                    .with_load_balancing(balancing)
                    .with_ip_families(families)
                    .with_canonical(canonical)
                    .with_visibility(visibility)
            },
        )
}

fn change() -> impl Strategy<Value = Change> {
    let put = prop_oneof![
        3 => workload().prop_map(Update::from),
        2 => service().prop_map(Update::from),
    ];
    prop_oneof![
        4 => put.clone().prop_map(Change::Put),
        1 => put.prop_map(|update| Change::Remove(update.name())),
    ]
}

/// Batches with, in each, one change per name at most.
pub(crate) fn batches() -> impl Strategy<Value = Vec<Vec<Change>>> {
    let batch = prop::collection::vec(change(), 1..12).prop_map(|changes| {
        let named = changes.into_iter().map(|change| match change {
            Change::Put(update) => (update.name(), Change::Put(update)),
            Change::Remove(name) => (name.clone(), Change::Remove(name)),
        });
        let changes: BTreeMap<_, _> = named.collect();
        changes.into_values().collect()
    });
    prop::collection::vec(batch, 1..10)
}

pub(crate) fn batch_of(changes: &[Change]) -> Batch {
    let mut updates = Vec::new();
    let mut removed = Vec::new();
    for change in changes {
        match change {
            Change::Put(update) => updates.push(update.clone()),
            Change::Remove(name) => removed.push(name.clone()),
        }
    }
    Batch::new(updates, removed)
}

/// Applies all batches to both.
pub(crate) fn play(batches: &[Vec<Change>]) -> (Snapshot, Naive) {
    let mut snapshot = Snapshot::new();
    let mut naive = Naive::default();
    for changes in batches {
        let applied = snapshot.apply(&batch_of(changes));
        for verdict in &applied.verdicts {
            assert_eq!(verdict.result(), Ok(()));
        }
        snapshot = applied.snapshot;
        changes.iter().for_each(|change| naive.change(change));
    }
    (snapshot, naive)
}
