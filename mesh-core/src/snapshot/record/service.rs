use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_authz::Identity;
use mesh_xds::model::{
    AppProtocol, GatewayAddress, HealthPolicy, IpFamilies, LoadBalancingMode, LocalityScope,
    NetworkAddress, Rejection, Service, ServiceName, Visibility,
};

use super::{check_gateway, check_ports, expect};

/// One service as the snapshot keeps it.
#[derive(Clone, PartialEq, Eq)]
pub struct ServiceRecord {
    name: ServiceName,
    object_name: Arc<str>,
    addresses: Box<[NetworkAddress]>,
    ports: Box<[ServicePort]>,
    subject_alt_names: Box<[Identity]>,
    waypoint: Option<Box<GatewayAddress>>,
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
        self.waypoint.as_deref()
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
    pub(in crate::snapshot) fn preference(&self) -> Arc<[LocalityScope]> {
        match self.mode {
            LoadBalancingMode::Strict | LoadBalancingMode::Failover => {
                Arc::clone(&self.routing_preference)
            }
            _ => Arc::default(),
        }
    }

    /// Its address for a client of this network; of this family before others.
    pub(in crate::snapshot) fn virtual_ip(
        &self,
        network: &str,
        families: &[bool],
    ) -> Option<IpAddr> {
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

impl ServiceRecord {
    /// With a name that is equal, and kept already.
    pub(in crate::snapshot) fn named(self, name: &ServiceName) -> Self {
        Self {
            name: name.clone(),
            ..self
        }
    }

    /// # Errors
    ///
    /// Names the field that is wrong and what was expected there.
    pub(in crate::snapshot) fn new(service: &Service) -> Result<Self, Rejection> {
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
            waypoint: service.waypoint().cloned().map(Box::new),
            weighted_waypoints: weighted
                .map(|weighted| (weighted.gateway().clone(), weighted.weight()))
                .collect(),
            // Of an empty list there is one allocation for all.
            routing_preference: match balancing.routing_preference() {
                [] => Arc::default(),
                scopes => scopes.into(),
            },
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
    let network = match address.network() {
        "" => Arc::default(),
        network => Arc::from(network),
    };
    match address.ip() {
        Some(ip) => NetworkAddress::new(network, ip.to_canonical()),
        None => NetworkAddress::cidr(network, IpNet::trunc(&address.range())),
    }
}
