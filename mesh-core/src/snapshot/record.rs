//! What the snapshot keeps of a workload and of a service.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_authz::Identity;
use mesh_authz::policy::PolicyName;
use mesh_xds::model::{
    AppProtocol, ApplicationProtocol, GatewayAddress, Health, HealthPolicy, IpFamilies,
    LoadBalancingMode, LocalityScope, NetworkAddress, NetworkMode, ObjectName, Rejection, Service,
    ServiceName, TunnelProtocol, Visibility, Workload, WorkloadType,
};

/// One workload as the snapshot keeps it.
///
/// Workloads that differ only in name, address, health and capacity share all else, as the replicas
/// of one deployment do; workloads of one node share their place.
#[derive(Clone, PartialEq, Eq)]
pub struct WorkloadRecord {
    pub(super) uid: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) hostname: Option<Arc<str>>,
    pub(super) addresses: Box<[IpAddr]>,
    pub(super) place: Arc<Place>,
    pub(super) profile: Arc<Profile>,
    pub(super) capacity: u32,
    pub(super) hbone_port: u16,
    pub(super) health: Health,
}

/// Where a workload runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) network: Arc<str>,
    pub(super) cluster: Arc<str>,
    pub(super) region: Arc<str>,
    pub(super) zone: Arc<str>,
    pub(super) subzone: Arc<str>,
    pub(super) node: Arc<str>,
}

impl Place {
    pub(super) fn scope(&self, scope: LocalityScope) -> &str {
        match scope {
            LocalityScope::Region => &self.region,
            LocalityScope::Zone => &self.zone,
            LocalityScope::Subzone => &self.subzone,
            LocalityScope::Node => &self.node,
            LocalityScope::Cluster => &self.cluster,
            LocalityScope::Network => &self.network,
            // Nothing in particular is common to all.
            _ => "",
        }
    }
}

/// What the replicas of a workload have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Profile {
    pub(super) namespace: Arc<str>,
    pub(super) trust_domain: Arc<str>,
    pub(super) service_account: Arc<str>,
    pub(super) identity: Option<Identity>,
    pub(super) protocol: TunnelProtocol,
    pub(super) network_mode: NetworkMode,
    pub(super) canonical_name: Arc<str>,
    pub(super) canonical_revision: Arc<str>,
    pub(super) workload_type: WorkloadType,
    pub(super) workload_name: Arc<str>,
    pub(super) native_tunnel: bool,
    pub(super) application_tunnel: Option<(ApplicationProtocol, Option<u16>)>,
    pub(super) policies: Box<[PolicyName]>,
    pub(super) request_authentications: Box<[ObjectName]>,
    pub(super) waypoint: Option<GatewayAddress>,
    pub(super) network_gateway: Option<GatewayAddress>,
    pub(super) memberships: Box<[MembershipRecord]>,
}

impl Profile {
    pub(super) fn lists_any(&self) -> bool {
        !self.policies.is_empty() || !self.request_authentications.is_empty()
    }
}

/// That a workload is an endpoint of a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MembershipRecord {
    service: ServiceName,
    ports: Box<[(u16, u16)]>,
    health: Option<Health>,
}

impl MembershipRecord {
    /// The service.
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// Pairs of service port and this workload's own port for it.
    pub fn ports(&self) -> &[(u16, u16)] {
        &self.ports
    }

    pub(super) fn target_port(&self, service_port: u16) -> Option<u16> {
        let (_, target) = self.ports.iter().find(|(port, _)| *port == service_port)?;
        Some(*target)
    }
}

impl WorkloadRecord {
    /// The name that is unique in the mesh.
    pub fn uid(&self) -> &Arc<str> {
        &self.uid
    }

    /// The name in its namespace: of the Pod or WorkloadEntry.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The namespace.
    pub fn namespace(&self) -> &Arc<str> {
        &self.profile.namespace
    }

    /// Its addresses.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// The DNS name to find its address by, of a workload without addresses.
    pub fn hostname(&self) -> Option<&Arc<str>> {
        self.hostname.as_ref()
    }

    /// The network that its addresses belong to.
    pub fn network(&self) -> &Arc<str> {
        &self.place.network
    }

    /// Whether its addresses are the host's.
    pub fn network_mode(&self) -> NetworkMode {
        self.profile.network_mode
    }

    /// How it takes connections.
    pub fn protocol(&self) -> TunnelProtocol {
        self.profile.protocol
    }

    /// The port on which it accepts tunnels.
    pub fn hbone_port(&self) -> u16 {
        self.hbone_port
    }

    /// Its identity. A workload that takes tunnels always has one.
    pub fn identity(&self) -> Option<&Identity> {
        self.profile.identity.as_ref()
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &Arc<str> {
        &self.profile.trust_domain
    }

    /// The service account.
    pub fn service_account(&self) -> &Arc<str> {
        &self.profile.service_account
    }

    /// The node that it runs on.
    pub fn node(&self) -> &Arc<str> {
        &self.place.node
    }

    /// The cluster that it runs in.
    pub fn cluster_id(&self) -> &Arc<str> {
        &self.place.cluster
    }

    /// The region.
    pub fn region(&self) -> &Arc<str> {
        &self.place.region
    }

    /// The zone.
    pub fn zone(&self) -> &Arc<str> {
        &self.place.zone
    }

    /// The subzone.
    pub fn subzone(&self) -> &Arc<str> {
        &self.place.subzone
    }

    /// The name under which metrics count it.
    pub fn canonical_name(&self) -> &Arc<str> {
        &self.profile.canonical_name
    }

    /// The revision under which metrics count it.
    pub fn canonical_revision(&self) -> &Arc<str> {
        &self.profile.canonical_revision
    }

    /// What kind of object made it.
    pub fn workload_type(&self) -> WorkloadType {
        self.profile.workload_type
    }

    /// The name of the object that made it.
    pub fn workload_name(&self) -> &Arc<str> {
        &self.profile.workload_name
    }

    /// Whether the application itself speaks HBONE.
    pub fn native_tunnel(&self) -> bool {
        self.profile.native_tunnel
    }

    /// The application's own tunnel: its protocol, and its port when there is one.
    pub fn application_tunnel(&self) -> Option<(ApplicationProtocol, Option<u16>)> {
        self.profile.application_tunnel
    }

    /// The policies that it lists.
    pub fn authorization_policies(&self) -> &[PolicyName] {
        &self.profile.policies
    }

    /// The request authentications that it lists.
    pub fn request_authentications(&self) -> &[ObjectName] {
        &self.profile.request_authentications
    }

    /// Whether it can take connections.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Its share of the connections; 0 is none.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The waypoint in front of it.
    pub fn waypoint(&self) -> Option<&GatewayAddress> {
        self.profile.waypoint.as_ref()
    }

    /// The gateway through which other networks reach it.
    pub fn network_gateway(&self) -> Option<&GatewayAddress> {
        self.profile.network_gateway.as_ref()
    }

    /// The services that it is an endpoint of.
    pub fn memberships(&self) -> &[MembershipRecord] {
        &self.profile.memberships
    }

    /// The membership in a service.
    pub fn membership(&self, service: &ServiceName) -> Option<&MembershipRecord> {
        let mut memberships = self.profile.memberships.iter();
        memberships.find(|membership| membership.service == *service)
    }

    pub(super) fn application_tunnel_port(&self) -> Option<u16> {
        self.profile.application_tunnel?.1
    }

    pub(super) fn health_in(&self, membership: &MembershipRecord) -> Health {
        membership.health.unwrap_or(self.health)
    }

    /// Workloads that claim one address or name are preferred in this order (ztunnel's `//Pod/` first,
    /// then HBONE); the uid makes it total.
    pub(super) fn precedence(&self) -> (bool, bool, &str) {
        let pod = self.uid.contains("//Pod/");
        let hbone = self.profile.protocol == TunnelProtocol::Hbone;
        (!pod, !hbone, &self.uid)
    }
}

impl fmt::Debug for WorkloadRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadRecord")
            .field("uid", &self.uid)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// One service as the snapshot keeps it.
#[derive(Clone, PartialEq, Eq)]
pub struct ServiceRecord {
    name: ServiceName,
    object_name: Arc<str>,
    addresses: Box<[NetworkAddress]>,
    ports: Box<[ServicePort]>,
    subject_alt_names: Box<[Identity]>,
    waypoint: Option<GatewayAddress>,
    weighted_waypoints: Box<[(GatewayAddress, u32)]>,
    routing_preference: Arc<[LocalityScope]>,
    mode: LoadBalancingMode,
    health_policy: HealthPolicy,
    ip_families: IpFamilies,
    canonical: bool,
    visibility: Visibility,
}

/// One port of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServicePort {
    service_port: u16,
    target_port: Option<u16>,
    app_protocol: AppProtocol,
}

impl ServicePort {
    /// The port that clients use.
    pub fn service_port(&self) -> u16 {
        self.service_port
    }

    /// The port that endpoints have it on; unset, each says its own.
    pub fn target_port(&self) -> Option<u16> {
        self.target_port
    }

    /// What is spoken on it.
    pub fn app_protocol(&self) -> AppProtocol {
        self.app_protocol
    }
}

impl ServiceRecord {
    /// The unique name: namespace and hostname.
    pub fn name(&self) -> &ServiceName {
        &self.name
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        self.name.namespace()
    }

    /// The hostname.
    pub fn hostname(&self) -> &str {
        self.name.hostname()
    }

    /// The Kubernetes object's own name.
    pub fn object_name(&self) -> &Arc<str> {
        &self.object_name
    }

    /// Its virtual addresses, networks of them included.
    pub fn addresses(&self) -> &[NetworkAddress] {
        &self.addresses
    }

    /// Its ports.
    pub fn ports(&self) -> &[ServicePort] {
        &self.ports
    }

    /// The port that clients use, when the service has it.
    pub fn port(&self, service_port: u16) -> Option<&ServicePort> {
        let mut ports = self.ports.iter();
        ports.find(|port| port.service_port == service_port)
    }

    /// Identities that its endpoints may have beside their own.
    pub fn subject_alt_names(&self) -> &[Identity] {
        &self.subject_alt_names
    }

    /// The waypoint in front of it.
    pub fn waypoint(&self) -> Option<&GatewayAddress> {
        self.waypoint.as_ref()
    }

    /// Waypoints with their weights.
    pub fn weighted_waypoints(&self) -> &[(GatewayAddress, u32)] {
        &self.weighted_waypoints
    }

    /// Whether connections to it go through a waypoint.
    pub fn has_waypoint(&self) -> bool {
        self.waypoint.is_some()
            || self
                .weighted_waypoints
                .iter()
                .any(|(_, weight)| *weight > 0)
    }

    /// What an endpoint should have in common with its client, most important first.
    pub fn routing_preference(&self) -> &[LocalityScope] {
        &self.routing_preference
    }

    /// What the preference means.
    pub fn load_balancing_mode(&self) -> LoadBalancingMode {
        self.mode
    }

    /// Which endpoints may be used.
    pub fn health_policy(&self) -> HealthPolicy {
        self.health_policy
    }

    /// Which families of address its clients may use.
    pub fn ip_families(&self) -> IpFamilies {
        self.ip_families
    }

    /// Whether it owns its hostname among several.
    pub fn canonical(&self) -> bool {
        self.canonical
    }

    /// Who may see it.
    pub fn visibility(&self) -> Visibility {
        self.visibility
    }

    /// Whether a client in this namespace may see it.
    pub fn visible_to(&self, namespace: &str) -> bool {
        self.visibility == Visibility::Public || self.namespace() == namespace
    }

    /// The order in which endpoints are kept: by what the mode makes count.
    pub(super) fn preference(&self) -> Arc<[LocalityScope]> {
        match self.mode {
            LoadBalancingMode::Strict | LoadBalancingMode::Failover => {
                Arc::clone(&self.routing_preference)
            }
            _ => Arc::default(),
        }
    }

    /// Its address for a client of this network; of this family before others.
    pub(super) fn virtual_ip(&self, network: &str, families: &[bool]) -> Option<IpAddr> {
        let own = || {
            let addresses = self.addresses.iter();
            addresses
                .filter(|address| address.network() == network)
                .filter_map(NetworkAddress::ip)
        };
        let mut families = families.iter();
        families.find_map(|v4| own().find(|ip| ip.is_ipv4() == *v4))
    }
}

impl fmt::Debug for ServiceRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceRecord")
            .field("name", &self.name)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// A workload's parts, checked, before the shared ones are shared.
pub(super) struct WorkloadParts {
    pub(super) place: Place,
    pub(super) profile: Profile,
}

impl WorkloadParts {
    /// # Errors
    ///
    /// Names the field that is wrong and what was expected there.
    pub(super) fn new(workload: &Workload) -> Result<Self, Rejection> {
        expect(!workload.uid().is_empty(), "uid", "not to be empty")?;
        for ip in workload.addresses() {
            let ip = ip.to_canonical();
            expect(
                !ip.is_unspecified() && !ip.is_multicast(),
                &format!("address {ip}"),
                "the address of one host",
            )?;
        }
        let hbone = workload.protocol() == TunnelProtocol::Hbone;
        let identity = match workload.identity() {
            Ok(identity) => Some(identity),
            // Nobody asks a workload that takes no tunnels who it is.
            Err(_) if !hbone => None,
            Err(error) => return Err(Rejection::new(format!("identity: {error}"))),
        };
        expect(
            !hbone || workload.hbone_port() != 0,
            "hbone_port",
            "1 to 65535",
        )?;
        check_gateway("waypoint", workload.waypoint())?;
        check_gateway("network_gateway", workload.network_gateway())?;
        let mut services = HashSet::with_capacity(workload.services().len());
        let memberships = workload.services().iter().map(|membership| {
            expect(
                services.insert(membership.service()),
                &format!("services: {}", membership.service()),
                "to be there once",
            )?;
            check_ports("services", membership.ports())?;
            let ports = membership.ports().iter();
            Ok(MembershipRecord {
                service: membership.service().clone(),
                ports: ports
                    .filter_map(|port| Some((port.service_port(), port.target_port()?)))
                    .collect(),
                health: membership.health(),
            })
        });
        let locality = workload.locality();
        let tunnel = workload.application_tunnel();
        Ok(Self {
            place: Place {
                network: workload.network().into(),
                cluster: workload.cluster_id().into(),
                region: locality.region().into(),
                zone: locality.zone().into(),
                subzone: locality.subzone().into(),
                node: workload.node().into(),
            },
            profile: Profile {
                namespace: workload.namespace().into(),
                trust_domain: workload.trust_domain().into(),
                service_account: workload.service_account().into(),
                identity,
                protocol: workload.protocol(),
                network_mode: workload.network_mode(),
                canonical_name: workload.canonical_name().into(),
                canonical_revision: workload.canonical_revision().into(),
                workload_type: workload.workload_type(),
                workload_name: workload.workload_name().into(),
                native_tunnel: workload.native_tunnel(),
                application_tunnel: tunnel.map(|tunnel| (tunnel.protocol(), tunnel.port())),
                policies: distinct(workload.authorization_policies()),
                request_authentications: distinct(workload.request_authentications()),
                waypoint: workload.waypoint().cloned(),
                network_gateway: workload.network_gateway().cloned(),
                memberships: memberships.collect::<Result<_, _>>()?,
            },
        })
    }
}

impl ServiceRecord {
    /// # Errors
    ///
    /// Names the field that is wrong and what was expected there.
    pub(super) fn new(service: &Service) -> Result<Self, Rejection> {
        expect(
            !service.hostname().is_empty(),
            "hostname",
            "not to be empty",
        )?;
        check_ports("ports", service.ports())?;
        check_gateway("waypoint", service.waypoint())?;
        for weighted in service.weighted_waypoints() {
            check_gateway("weighted_waypoints", Some(weighted.gateway()))?;
        }
        let ports = service.ports().iter().map(|port| ServicePort {
            service_port: port.service_port(),
            target_port: port.target_port(),
            app_protocol: port.app_protocol(),
        });
        let weighted = service.weighted_waypoints().iter();
        let balancing = service.load_balancing();
        Ok(Self {
            name: service.name().clone(),
            object_name: service.object_name().into(),
            addresses: service.addresses().iter().map(canonical).collect(),
            ports: ports.collect(),
            subject_alt_names: service.subject_alt_names().into(),
            waypoint: service.waypoint().cloned(),
            weighted_waypoints: weighted
                .map(|weighted| (weighted.gateway().clone(), weighted.weight()))
                .collect(),
            routing_preference: balancing.routing_preference().into(),
            mode: balancing.mode(),
            health_policy: balancing.health_policy(),
            ip_families: service.ip_families(),
            canonical: service.canonical(),
            visibility: service.visibility(),
        })
    }
}

/// An IPv4 address written as IPv6 is the IPv4 address.
fn canonical(address: &NetworkAddress) -> NetworkAddress {
    match address.ip() {
        Some(ip) => NetworkAddress::new(address.network(), ip.to_canonical()),
        None => NetworkAddress::cidr(address.network(), IpNet::trunc(&address.range())),
    }
}

fn distinct<T: Clone + Eq + Hash>(names: &[T]) -> Box<[T]> {
    let mut seen = HashSet::with_capacity(names.len());
    names
        .iter()
        .filter(|name| seen.insert(*name))
        .cloned()
        .collect()
}

fn check_ports(field: &str, ports: &[mesh_xds::model::Port]) -> Result<(), Rejection> {
    for port in ports {
        expect(
            port.service_port() != 0 && port.target_port() != Some(0),
            field,
            "ports from 1 to 65535",
        )?;
    }
    Ok(())
}

fn check_gateway(field: &str, gateway: Option<&GatewayAddress>) -> Result<(), Rejection> {
    expect(
        gateway.is_none_or(|gateway| gateway.hbone_mtls_port() != 0),
        field,
        "a port from 1 to 65535",
    )
}

fn expect(holds: bool, field: &str, expected: &str) -> Result<(), Rejection> {
    if holds {
        Ok(())
    } else {
        Err(Rejection::new(format!("{field}: expected {expected}")))
    }
}
