//! A workload: one instance that has an identity and takes connections.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_authz::policy::PolicyName;
use mesh_authz::{Identity, InvalidIdentity};

use super::{GatewayAddress, ObjectName, Port, ServiceName};

/// The port on which a workload accepts HBONE unless it says another (Istio's inbound port).
pub const HBONE_PORT: u16 = 15008;

/// One instance of an application, with its identity, its place and what it is an endpoint of
/// (the `Workload` message of Istio's `workload.proto`, without its wire form).
///
/// What replicas have in common is in [`Profile`](WorkloadProfile) and [`Place`](WorkloadPlace), which clones share, and
/// those that were decoded together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    uid: Arc<str>,
    /// Unless it is the last part of the uid, as a pod's is.
    name: Option<Arc<str>>,
    addresses: Addresses,
    hostname: Option<Arc<str>>,
    place: Arc<WorkloadPlace>,
    profile: Arc<WorkloadProfile>,
    capacity: u32,
    hbone_port: u16,
    health: Health,
}

/// Most workloads have one address, which needs no allocation of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Addresses {
    One(IpAddr),
    /// None or several.
    Other(Vec<IpAddr>),
}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let mut addresses = addresses.into_iter();
        match (addresses.next(), addresses.next()) {
            (Some(one), None) => Self::One(one),
            (first, second) => {
                let first = first.into_iter().chain(second);
                Self::Other(first.chain(addresses).collect())
            }
        }
    }
}

/// Where a workload is, which those of one node have in common. Equal ones may be one value, or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadPlace {
    network: Arc<str>,
    cluster_id: Arc<str>,
    locality: Locality,
    node: Arc<str>,
}

/// What the replicas of a workload have in common. Equal ones may be one value, or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadProfile {
    namespace: Arc<str>,
    network_mode: NetworkMode,
    protocol: TunnelProtocol,
    trust_domain: Arc<str>,
    service_account: Arc<str>,
    canonical_name: Arc<str>,
    canonical_revision: Arc<str>,
    workload_type: WorkloadType,
    workload_name: Arc<str>,
    native_tunnel: bool,
    application_tunnel: Option<ApplicationTunnel>,
    authorization_policies: Vec<PolicyName>,
    request_authentications: Vec<ObjectName>,
    waypoint: Option<GatewayAddress>,
    network_gateway: Option<GatewayAddress>,
    services: Vec<Membership>,
}

impl Workload {
    /// Makes a workload of its unique name, its namespace and its own name; all else has a default.
    pub fn new(
        uid: impl Into<Arc<str>>,
        namespace: impl Into<Arc<str>>,
        name: impl Into<Arc<str>>,
    ) -> Self {
        let empty: Arc<str> = Arc::default();
        let place = WorkloadPlace {
            network: Arc::clone(&empty),
            cluster_id: "Kubernetes".into(),
            locality: Locality::default(),
            node: Arc::clone(&empty),
        };
        let profile = WorkloadProfile {
            namespace: namespace.into(),
            network_mode: NetworkMode::default(),
            protocol: TunnelProtocol::default(),
            trust_domain: "cluster.local".into(),
            service_account: "default".into(),
            canonical_name: Arc::clone(&empty),
            canonical_revision: Arc::clone(&empty),
            workload_type: WorkloadType::default(),
            workload_name: empty,
            native_tunnel: false,
            application_tunnel: None,
            authorization_policies: Vec::new(),
            request_authentications: Vec::new(),
            waypoint: None,
            network_gateway: None,
            services: Vec::new(),
        };
        let (uid, name) = (uid.into(), name.into());
        Self {
            name: (last_part(&uid) != &*name).then_some(name),
            uid,
            addresses: Addresses::Other(Vec::new()),
            hostname: None,
            place: Arc::new(place),
            profile: Arc::new(profile),
            capacity: 1,
            hbone_port: HBONE_PORT,
            health: Health::default(),
        }
    }

    /// Makes a workload that shares its place with one and its profile with another.
    #[cfg(feature = "client")]
    pub(crate) fn replica(
        uid: &str,
        name: &str,
        addresses: Addresses,
        place: Arc<WorkloadPlace>,
        profile: Arc<WorkloadProfile>,
    ) -> Self {
        Self {
            uid: uid.into(),
            name: (!is_last_part(uid, name)).then(|| name.into()),
            addresses,
            hostname: None,
            place,
            profile,
            capacity: 1,
            hbone_port: HBONE_PORT,
            health: Health::default(),
        }
    }

    /// Where it is.
    pub fn place(&self) -> &Arc<WorkloadPlace> {
        &self.place
    }

    /// What it has in common with its replicas.
    pub fn profile(&self) -> &Arc<WorkloadProfile> {
        &self.profile
    }

    /// The identity that the workload must prove.
    ///
    /// # Errors
    ///
    /// [`InvalidIdentity`] when namespace, trust domain or service account cannot stand in a SPIFFE id.
    pub fn identity(&self) -> Result<Identity, InvalidIdentity> {
        Identity::new(
            &self.profile.trust_domain,
            &self.profile.namespace,
            &self.profile.service_account,
        )
    }

    /// Whether it should get traffic of the given service: as the membership says, else as it says itself.
    pub fn health_in(&self, membership: &Membership) -> Health {
        membership.health().unwrap_or(self.health)
    }

    /// The name that no other workload has: `<cluster>/<group>/<kind>/<namespace>/<name>[/<section>]`; a pod's is `<cluster>//Pod/<namespace>/<name>`.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The [`uid`](Self::uid), to be kept without a copy of it.
    pub fn shared_uid(&self) -> &Arc<str> {
        &self.uid
    }

    /// Takes the same uid from where it is already.
    #[cfg(feature = "client")]
    pub(crate) fn share_uid(&mut self, uid: &Arc<str>) {
        debug_assert_eq!(self.uid, *uid, "the same uid");
        self.uid = Arc::clone(uid);
    }

    /// The [`name`](Self::name), unless it is the last part of the uid.
    pub fn own_name(&self) -> Option<&Arc<str>> {
        self.name.as_ref()
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.profile.namespace
    }

    /// The pod's or the WorkloadEntry's own name.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_else(|| last_part(&self.uid))
    }

    /// The addresses it answers on; none when only [`hostname`](Self::hostname) tells where it is.
    pub fn addresses(&self) -> &[IpAddr] {
        match &self.addresses {
            Addresses::One(one) => std::slice::from_ref(one),
            Addresses::Other(other) => other,
        }
    }

    /// The network that the addresses are of; empty is the default network.
    pub fn network(&self) -> &str {
        &self.place.network
    }

    /// Whether the addresses are its own or the host's. Default: its own.
    pub fn network_mode(&self) -> NetworkMode {
        self.profile.network_mode
    }

    /// How it takes connections. Default: plain TCP.
    pub fn protocol(&self) -> TunnelProtocol {
        self.profile.protocol
    }

    /// The port of its HBONE listener. Default: 15008, the only one that Istio knows; files may say another.
    pub fn hbone_port(&self) -> u16 {
        self.hbone_port
    }

    /// The trust domain of its identity. Default: `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        &self.profile.trust_domain
    }

    /// The service account of its identity. Default: `default`.
    pub fn service_account(&self) -> &str {
        &self.profile.service_account
    }

    /// The DNS name to resolve where there is no address; otherwise informative. Default: empty.
    pub fn hostname(&self) -> &str {
        self.hostname.as_deref().unwrap_or_default()
    }

    /// The name of the node that it runs on. Default: empty.
    pub fn node(&self) -> &str {
        &self.place.node
    }

    /// The cluster that it belongs to. Default: `Kubernetes`.
    pub fn cluster_id(&self) -> &str {
        &self.place.cluster_id
    }

    /// Where it runs. Default: unknown.
    pub fn locality(&self) -> &Locality {
        &self.place.locality
    }

    /// The name that metrics give the application. Default: empty.
    pub fn canonical_name(&self) -> &str {
        &self.profile.canonical_name
    }

    /// The version that metrics give the application. Default: empty.
    pub fn canonical_revision(&self) -> &str {
        &self.profile.canonical_revision
    }

    /// The kind of the controller that made it. Default: Deployment, as on the wire.
    pub fn workload_type(&self) -> WorkloadType {
        self.profile.workload_type
    }

    /// The name of the controller that made it. Default: empty.
    pub fn workload_name(&self) -> &str {
        &self.profile.workload_name
    }

    /// Whether it speaks HBONE itself, without a proxy in front. Default: no.
    pub fn native_tunnel(&self) -> bool {
        self.profile.native_tunnel
    }

    /// What it expects inside the tunnel beside the bytes, when it does.
    pub fn application_tunnel(&self) -> Option<&ApplicationTunnel> {
        self.profile.application_tunnel.as_ref()
    }

    /// The policies of scope [`Scope::Workload`](crate::model::Scope::Workload) that bind it.
    pub fn authorization_policies(&self) -> &[PolicyName] {
        &self.profile.authorization_policies
    }

    /// The request authentications of scope [`Scope::Workload`](crate::model::Scope::Workload) that bind it.
    pub fn request_authentications(&self) -> &[ObjectName] {
        &self.profile.request_authentications
    }

    /// Whether it should get traffic. Default: healthy.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Its weight among the endpoints of a service; 0 never gets traffic. Default: 1.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The waypoint in front of it, for traffic that is addressed to it and not to a service.
    pub fn waypoint(&self) -> Option<&GatewayAddress> {
        self.profile.waypoint.as_ref()
    }

    /// The gateway through which it is reached from other networks.
    pub fn network_gateway(&self) -> Option<&GatewayAddress> {
        self.profile.network_gateway.as_ref()
    }

    /// The services that it is an endpoint of.
    pub fn services(&self) -> &[Membership] {
        &self.profile.services
    }
}

/// Setters.
impl Workload {
    /// Sets [`addresses`](Self::addresses).
    #[must_use]
    pub fn with_addresses(mut self, addresses: Vec<IpAddr>) -> Self {
        self.addresses = addresses.into_iter().collect();
        self
    }

    /// Sets [`network`](Self::network).
    #[must_use]
    pub fn with_network(mut self, network: impl Into<Arc<str>>) -> Self {
        Arc::make_mut(&mut self.place).network = network.into();
        self
    }

    /// Sets [`network_mode`](Self::network_mode).
    #[must_use]
    pub fn with_network_mode(mut self, network_mode: NetworkMode) -> Self {
        Arc::make_mut(&mut self.profile).network_mode = network_mode;
        self
    }

    /// Sets [`protocol`](Self::protocol).
    #[must_use]
    pub fn with_protocol(mut self, protocol: TunnelProtocol) -> Self {
        Arc::make_mut(&mut self.profile).protocol = protocol;
        self
    }

    /// Sets [`hbone_port`](Self::hbone_port).
    #[must_use]
    pub fn with_hbone_port(mut self, hbone_port: u16) -> Self {
        self.hbone_port = hbone_port;
        self
    }

    /// Sets [`trust_domain`](Self::trust_domain).
    #[must_use]
    pub fn with_trust_domain(mut self, trust_domain: impl Into<Arc<str>>) -> Self {
        Arc::make_mut(&mut self.profile).trust_domain = trust_domain.into();
        self
    }

    /// Sets [`service_account`](Self::service_account).
    #[must_use]
    pub fn with_service_account(mut self, service_account: impl Into<Arc<str>>) -> Self {
        Arc::make_mut(&mut self.profile).service_account = service_account.into();
        self
    }

    /// Sets [`hostname`](Self::hostname).
    #[must_use]
    pub fn with_hostname(mut self, hostname: impl Into<Arc<str>>) -> Self {
        let hostname = hostname.into();
        self.hostname = (!hostname.is_empty()).then_some(hostname);
        self
    }

    /// Sets [`node`](Self::node).
    #[must_use]
    pub fn with_node(mut self, node: impl Into<Arc<str>>) -> Self {
        Arc::make_mut(&mut self.place).node = node.into();
        self
    }

    /// Sets [`cluster_id`](Self::cluster_id).
    #[must_use]
    pub fn with_cluster_id(mut self, cluster_id: impl Into<Arc<str>>) -> Self {
        Arc::make_mut(&mut self.place).cluster_id = cluster_id.into();
        self
    }

    /// Sets [`locality`](Self::locality).
    #[must_use]
    pub fn with_locality(mut self, locality: Locality) -> Self {
        Arc::make_mut(&mut self.place).locality = locality;
        self
    }

    /// Sets [`canonical_name`](Self::canonical_name).
    #[must_use]
    pub fn with_canonical_name(mut self, canonical_name: impl Into<Arc<str>>) -> Self {
        Arc::make_mut(&mut self.profile).canonical_name = canonical_name.into();
        self
    }

    /// Sets [`canonical_revision`](Self::canonical_revision).
    #[must_use]
    pub fn with_canonical_revision(mut self, canonical_revision: impl Into<Arc<str>>) -> Self {
        Arc::make_mut(&mut self.profile).canonical_revision = canonical_revision.into();
        self
    }

    /// Sets [`workload_type`](Self::workload_type).
    #[must_use]
    pub fn with_workload_type(mut self, workload_type: WorkloadType) -> Self {
        Arc::make_mut(&mut self.profile).workload_type = workload_type;
        self
    }

    /// Sets [`workload_name`](Self::workload_name).
    #[must_use]
    pub fn with_workload_name(mut self, workload_name: impl Into<Arc<str>>) -> Self {
        Arc::make_mut(&mut self.profile).workload_name = workload_name.into();
        self
    }

    /// Sets [`native_tunnel`](Self::native_tunnel).
    #[must_use]
    pub fn with_native_tunnel(mut self, native_tunnel: bool) -> Self {
        Arc::make_mut(&mut self.profile).native_tunnel = native_tunnel;
        self
    }

    /// Sets [`application_tunnel`](Self::application_tunnel).
    #[must_use]
    pub fn with_application_tunnel(mut self, application_tunnel: ApplicationTunnel) -> Self {
        Arc::make_mut(&mut self.profile).application_tunnel = Some(application_tunnel);
        self
    }

    /// Sets [`authorization_policies`](Self::authorization_policies).
    #[must_use]
    pub fn with_authorization_policies(mut self, authorization_policies: Vec<PolicyName>) -> Self {
        Arc::make_mut(&mut self.profile).authorization_policies = authorization_policies;
        self
    }

    /// Sets [`request_authentications`](Self::request_authentications).
    #[must_use]
    pub fn with_request_authentications(
        mut self,
        request_authentications: Vec<ObjectName>,
    ) -> Self {
        Arc::make_mut(&mut self.profile).request_authentications = request_authentications;
        self
    }

    /// Sets [`health`](Self::health).
    #[must_use]
    pub fn with_health(mut self, health: Health) -> Self {
        self.health = health;
        self
    }

    /// Sets [`capacity`](Self::capacity).
    #[must_use]
    pub fn with_capacity(mut self, capacity: u32) -> Self {
        self.capacity = capacity;
        self
    }

    /// Sets [`waypoint`](Self::waypoint).
    #[must_use]
    pub fn with_waypoint(mut self, waypoint: GatewayAddress) -> Self {
        Arc::make_mut(&mut self.profile).waypoint = Some(waypoint);
        self
    }

    /// Sets [`network_gateway`](Self::network_gateway).
    #[must_use]
    pub fn with_network_gateway(mut self, network_gateway: GatewayAddress) -> Self {
        Arc::make_mut(&mut self.profile).network_gateway = Some(network_gateway);
        self
    }

    /// Sets [`services`](Self::services).
    #[must_use]
    pub fn with_services(mut self, services: Vec<Membership>) -> Self {
        Arc::make_mut(&mut self.profile).services = services;
        self
    }
}

/// Texts that may be kept without a copy; all else by way of the [`Workload`].
impl WorkloadPlace {
    /// See [`Workload::network`].
    pub fn network(&self) -> &Arc<str> {
        &self.network
    }

    /// See [`Workload::cluster_id`].
    pub fn cluster_id(&self) -> &Arc<str> {
        &self.cluster_id
    }

    /// See [`Workload::node`].
    pub fn node(&self) -> &Arc<str> {
        &self.node
    }
}

/// Texts that may be kept without a copy; all else by way of the [`Workload`].
impl WorkloadProfile {
    /// See [`Workload::namespace`].
    pub fn namespace(&self) -> &Arc<str> {
        &self.namespace
    }

    /// See [`Workload::trust_domain`].
    pub fn trust_domain(&self) -> &Arc<str> {
        &self.trust_domain
    }

    /// See [`Workload::service_account`].
    pub fn service_account(&self) -> &Arc<str> {
        &self.service_account
    }

    /// See [`Workload::canonical_name`].
    pub fn canonical_name(&self) -> &Arc<str> {
        &self.canonical_name
    }

    /// See [`Workload::canonical_revision`].
    pub fn canonical_revision(&self) -> &Arc<str> {
        &self.canonical_revision
    }

    /// See [`Workload::workload_name`].
    pub fn workload_name(&self) -> &Arc<str> {
        &self.workload_name
    }
}

/// Whether it is what is behind the last `/`.
#[cfg(feature = "client")]
fn is_last_part(uid: &str, name: &str) -> bool {
    let before = uid.strip_suffix(name);
    before.is_some_and(|before| before.is_empty() || before.ends_with('/')) && !name.contains('/')
}

/// What is behind the last `/`.
fn last_part(uid: &str) -> &str {
    uid.rsplit_once('/').map_or(uid, |(_, name)| name)
}

/// How a workload takes connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum TunnelProtocol {
    /// As they are.
    #[default]
    None,
    /// Through HBONE, mutually authenticated.
    Hbone,
}

/// Whose addresses a workload has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum NetworkMode {
    /// Its own.
    #[default]
    Standard,
    /// The host's, shared with others: no address leads to this workload alone.
    HostNetwork,
}

/// Whether a workload should get traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Health {
    /// It should.
    #[default]
    Healthy,
    /// Only where a service asks for unhealthy endpoints too.
    Unhealthy,
}

/// The kind of controller that made a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum WorkloadType {
    /// A Deployment, or anything that runs on.
    #[default]
    Deployment,
    /// A CronJob.
    CronJob,
    /// Nobody: a pod by itself.
    Pod,
    /// A Job.
    Job,
}

/// Where a workload runs; an empty part is unknown.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Locality {
    region: Arc<str>,
    zone: Arc<str>,
    subzone: Arc<str>,
}

impl Locality {
    /// Makes a locality.
    pub fn new(
        region: impl Into<Arc<str>>,
        zone: impl Into<Arc<str>>,
        subzone: impl Into<Arc<str>>,
    ) -> Self {
        Self {
            region: region.into(),
            zone: zone.into(),
            subzone: subzone.into(),
        }
    }

    /// The region.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The zone in the region.
    pub fn zone(&self) -> &str {
        &self.zone
    }

    /// The part of the zone.
    pub fn subzone(&self) -> &str {
        &self.subzone
    }
}

/// What a workload expects inside the tunnel, beside the bytes of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplicationTunnel {
    protocol: ApplicationProtocol,
    port: Option<u16>,
}

impl ApplicationTunnel {
    /// Makes a tunnel that keeps the port.
    pub fn new(protocol: ApplicationProtocol) -> Self {
        Self {
            protocol,
            port: None,
        }
    }

    /// Sets [`port`](Self::port).
    #[must_use]
    pub fn with_port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// The protocol.
    pub fn protocol(&self) -> ApplicationProtocol {
        self.protocol
    }

    /// The port to use in place of the one that was asked for.
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

/// A protocol inside the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ApplicationProtocol {
    /// Nothing beside the bytes.
    #[default]
    None,
    /// The PROXY protocol, version 2.
    Proxy,
}

/// That a workload is an endpoint of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    service: ServiceName,
    ports: Vec<Port>,
    health: Option<Health>,
}

impl Membership {
    /// Makes a membership without ports.
    pub fn new(service: ServiceName) -> Self {
        Self {
            service,
            ports: Vec::new(),
            health: None,
        }
    }

    /// Sets [`ports`](Self::ports).
    #[must_use]
    pub fn with_ports(mut self, ports: Vec<Port>) -> Self {
        self.ports = ports;
        self
    }

    /// Sets [`health`](Self::health).
    #[must_use]
    pub fn with_health(mut self, health: Health) -> Self {
        self.health = Some(health);
        self
    }

    /// The service.
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// The ports of the service and where this workload has them.
    pub fn ports(&self) -> &[Port] {
        &self.ports
    }

    /// What the service knows of its health; unset, the workload's own counts.
    pub fn health(&self) -> Option<Health> {
        self.health
    }
}
