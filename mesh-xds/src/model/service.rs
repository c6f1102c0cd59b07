//! A service: a name and virtual addresses for a set of workloads.

use std::fmt;
use std::sync::Arc;

use mesh_authz::Identity;

use super::{GatewayAddress, NetworkAddress};

/// A name, virtual addresses and ports for a set of workloads (the `Service` message of Istio's
/// `workload.proto`). Workloads say themselves which services they belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    name: ServiceName,
    object_name: Arc<str>,
    addresses: Vec<NetworkAddress>,
    ports: Vec<Port>,
    subject_alt_names: Vec<Identity>,
    waypoint: Option<GatewayAddress>,
    weighted_waypoints: Vec<WeightedWaypoint>,
    load_balancing: LoadBalancing,
    ip_families: IpFamilies,
    canonical: bool,
    visibility: Visibility,
}

impl Service {
    /// Makes a service of its unique name; all else has a default.
    ///
    /// The object name is the first label of the hostname until it is set.
    pub fn new(name: ServiceName) -> Self {
        let object_name = name.hostname().split('.').next().unwrap_or_default().into();
        Self {
            name,
            object_name,
            addresses: Vec::new(),
            ports: Vec::new(),
            subject_alt_names: Vec::new(),
            waypoint: None,
            weighted_waypoints: Vec::new(),
            load_balancing: LoadBalancing::default(),
            ip_families: IpFamilies::default(),
            canonical: false,
            visibility: Visibility::default(),
        }
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        self.name.namespace()
    }

    /// The hostname that clients use; may begin with a wildcard label.
    pub fn hostname(&self) -> &str {
        self.name.hostname()
    }

    /// The port that clients use, when the service has it.
    pub fn port(&self, service_port: u16) -> Option<&Port> {
        self.ports
            .iter()
            .find(|port| port.service_port() == service_port)
    }

    /// The unique name: namespace and hostname.
    pub fn name(&self) -> &ServiceName {
        &self.name
    }

    /// The Kubernetes object's own name.
    pub fn object_name(&self) -> &str {
        &self.object_name
    }

    /// Its virtual addresses, or networks of them.
    pub fn addresses(&self) -> &[NetworkAddress] {
        &self.addresses
    }

    /// Its ports.
    pub fn ports(&self) -> &[Port] {
        &self.ports
    }

    /// Identities that its endpoints may have beside their own.
    pub fn subject_alt_names(&self) -> &[Identity] {
        &self.subject_alt_names
    }

    /// The waypoint in front of it.
    pub fn waypoint(&self) -> Option<&GatewayAddress> {
        self.waypoint.as_ref()
    }

    /// Waypoints to choose from by weight; without any weight above zero, [`waypoint`](Self::waypoint) counts.
    pub fn weighted_waypoints(&self) -> &[WeightedWaypoint] {
        &self.weighted_waypoints
    }

    /// Which endpoints are preferred. Default: all alike, healthy ones only.
    pub fn load_balancing(&self) -> &LoadBalancing {
        &self.load_balancing
    }

    /// Which families of address its clients may use. Default: whichever.
    pub fn ip_families(&self) -> IpFamilies {
        self.ip_families
    }

    /// Whether this service owns its hostname, among several with the same one. Default: no.
    pub fn canonical(&self) -> bool {
        self.canonical
    }

    /// Who may see it. Default: everybody.
    pub fn visibility(&self) -> Visibility {
        self.visibility
    }
}

/// Setters.
impl Service {
    /// Sets [`object_name`](Self::object_name).
    #[must_use]
    pub fn with_object_name(mut self, object_name: impl Into<Arc<str>>) -> Self {
        self.object_name = object_name.into();
        self
    }

    /// Sets [`addresses`](Self::addresses).
    #[must_use]
    pub fn with_addresses(mut self, addresses: Vec<NetworkAddress>) -> Self {
        self.addresses = addresses;
        self
    }

    /// Sets [`ports`](Self::ports).
    #[must_use]
    pub fn with_ports(mut self, ports: Vec<Port>) -> Self {
        self.ports = ports;
        self
    }

    /// Sets [`subject_alt_names`](Self::subject_alt_names).
    #[must_use]
    pub fn with_subject_alt_names(mut self, subject_alt_names: Vec<Identity>) -> Self {
        self.subject_alt_names = subject_alt_names;
        self
    }

    /// Sets [`waypoint`](Self::waypoint).
    #[must_use]
    pub fn with_waypoint(mut self, waypoint: GatewayAddress) -> Self {
        self.waypoint = Some(waypoint);
        self
    }

    /// Sets [`weighted_waypoints`](Self::weighted_waypoints).
    #[must_use]
    pub fn with_weighted_waypoints(mut self, weighted_waypoints: Vec<WeightedWaypoint>) -> Self {
        self.weighted_waypoints = weighted_waypoints;
        self
    }

    /// Sets [`load_balancing`](Self::load_balancing).
    #[must_use]
    pub fn with_load_balancing(mut self, load_balancing: LoadBalancing) -> Self {
        self.load_balancing = load_balancing;
        self
    }

    /// Sets [`ip_families`](Self::ip_families).
    #[must_use]
    pub fn with_ip_families(mut self, ip_families: IpFamilies) -> Self {
        self.ip_families = ip_families;
        self
    }

    /// Sets [`canonical`](Self::canonical).
    #[must_use]
    pub fn with_canonical(mut self, canonical: bool) -> Self {
        self.canonical = canonical;
        self
    }

    /// Sets [`visibility`](Self::visibility).
    #[must_use]
    pub fn with_visibility(mut self, visibility: Visibility) -> Self {
        self.visibility = visibility;
        self
    }
}

/// Names a service: `<namespace>/<hostname>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    namespace: Arc<str>,
    hostname: Arc<str>,
}

impl ServiceName {
    /// Makes a name of its two parts.
    pub fn new(namespace: impl Into<Arc<str>>, hostname: impl Into<Arc<str>>) -> Self {
        Self {
            namespace: namespace.into(),
            hostname: hostname.into(),
        }
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The [`namespace`](Self::namespace), to be kept without a copy of it.
    pub fn shared_namespace(&self) -> &Arc<str> {
        &self.namespace
    }

    /// The hostname.
    pub fn hostname(&self) -> &str {
        &self.hostname
    }

    /// The [`hostname`](Self::hostname), to be kept without a copy of it.
    pub fn shared_hostname(&self) -> &Arc<str> {
        &self.hostname
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// One port of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Port {
    service_port: u16,
    target_port: Option<u16>,
    app_protocol: AppProtocol,
}

impl Port {
    /// Makes a port whose target each workload says.
    pub fn new(service_port: u16) -> Self {
        Self {
            service_port,
            target_port: None,
            app_protocol: Default::default(),
        }
    }

    /// Sets [`target_port`](Self::target_port).
    #[must_use]
    pub fn with_target_port(mut self, target_port: u16) -> Self {
        self.target_port = Some(target_port);
        self
    }

    /// Sets [`app_protocol`](Self::app_protocol).
    #[must_use]
    pub fn with_app_protocol(mut self, app_protocol: AppProtocol) -> Self {
        self.app_protocol = app_protocol;
        self
    }

    /// The port that clients of the service use.
    pub fn service_port(&self) -> u16 {
        self.service_port
    }

    /// The port that an endpoint has it on; unset, each workload says its own (a named port).
    pub fn target_port(&self) -> Option<u16> {
        self.target_port
    }

    /// What is spoken on it. Default: unknown.
    pub fn app_protocol(&self) -> AppProtocol {
        self.app_protocol
    }
}

/// What is spoken on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum AppProtocol {
    /// Not known.
    #[default]
    Unknown,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// Some stream of bytes, not to be looked into.
    Tcp,
    /// TLS of the application's own.
    Tls,
}

/// A waypoint with its share of the traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightedWaypoint {
    gateway: GatewayAddress,
    weight: u32,
}

impl WeightedWaypoint {
    /// Makes a weighted waypoint.
    pub fn new(gateway: GatewayAddress, weight: u32) -> Self {
        Self { gateway, weight }
    }

    /// The waypoint.
    pub fn gateway(&self) -> &GatewayAddress {
        &self.gateway
    }

    /// Its share, relative to the other weights.
    pub fn weight(&self) -> u32 {
        self.weight
    }
}

/// Which endpoints of a service are preferred.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoadBalancing {
    routing_preference: Vec<LocalityScope>,
    mode: LoadBalancingMode,
    health_policy: HealthPolicy,
}

impl LoadBalancing {
    /// Makes the default: no preference, healthy endpoints only.
    pub fn new() -> Self {
        Self {
            routing_preference: Vec::new(),
            mode: Default::default(),
            health_policy: Default::default(),
        }
    }

    /// Sets [`routing_preference`](Self::routing_preference).
    #[must_use]
    pub fn with_routing_preference(mut self, routing_preference: Vec<LocalityScope>) -> Self {
        self.routing_preference = routing_preference;
        self
    }

    /// Sets [`mode`](Self::mode).
    #[must_use]
    pub fn with_mode(mut self, mode: LoadBalancingMode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets [`health_policy`](Self::health_policy).
    #[must_use]
    pub fn with_health_policy(mut self, health_policy: HealthPolicy) -> Self {
        self.health_policy = health_policy;
        self
    }

    /// What an endpoint should have in common with its client, most important first.
    pub fn routing_preference(&self) -> &[LocalityScope] {
        &self.routing_preference
    }

    /// What the preference means. Default: nothing.
    pub fn mode(&self) -> LoadBalancingMode {
        self.mode
    }

    /// Which endpoints may be used. Default: healthy ones.
    pub fn health_policy(&self) -> HealthPolicy {
        self.health_policy
    }
}

/// What an endpoint can have in common with its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum LocalityScope {
    /// Nothing in particular.
    #[default]
    Unspecified,
    /// The region.
    Region,
    /// The zone.
    Zone,
    /// The subzone.
    Subzone,
    /// The node.
    Node,
    /// The cluster.
    Cluster,
    /// The network.
    Network,
}

/// What a routing preference means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum LoadBalancingMode {
    /// Nothing: any endpoint.
    #[default]
    Standard,
    /// Only endpoints that have all of it in common.
    Strict,
    /// The endpoints that have most in common.
    Failover,
    /// No endpoint is chosen: the address that was asked for is dialled.
    Passthrough,
}

/// Which endpoints may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum HealthPolicy {
    /// Healthy ones.
    #[default]
    OnlyHealthy,
    /// All.
    AllowAll,
}

/// The families of address that a service uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum IpFamilies {
    /// Not said.
    #[default]
    Automatic,
    /// IPv4.
    Ipv4Only,
    /// IPv6.
    Ipv6Only,
    /// Both.
    Dual,
}

/// Who may see a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Visibility {
    /// Everybody.
    #[default]
    Public,
    /// Workloads of its own namespace.
    Namespace,
}
