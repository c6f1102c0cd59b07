use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_authz::Identity;
use mesh_authz::policy::PolicyName;
use mesh_xds::model::{
    ApplicationProtocol, GatewayAddress, Health, LocalityScope, NetworkMode, ObjectName, Rejection,
    ServiceName, TunnelProtocol, Workload, WorkloadType,
};

use super::{check_gateway, check_ports, expect};

/// One workload as the snapshot keeps it.
///
/// Workloads that differ only in name, address, health and capacity share all else, as the replicas
/// of one deployment do; workloads of one node share their place.
#[derive(Clone, PartialEq, Eq)]
pub struct WorkloadRecord {
    pub(in crate::snapshot) uid: Arc<str>,
    pub(in crate::snapshot) addresses: Addresses,
    pub(in crate::snapshot) rare: Option<Box<Rare>>,
    pub(in crate::snapshot) place: Arc<Place>,
    pub(in crate::snapshot) profile: Arc<Profile>,
    pub(in crate::snapshot) capacity: u32,
    pub(in crate::snapshot) hbone_port: u16,
    pub(in crate::snapshot) health: Health,
    /// Of the last part of the uid; 0 where it is not known.
    pub(in crate::snapshot) name_length: u8,
}

/// The addresses of a workload: most have one, kept in place.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::snapshot) enum Addresses {
    One(IpAddr),
    /// None or several.
    Other(Box<[IpAddr]>),
}

impl Addresses {
    pub(in crate::snapshot) fn new(addresses: &[IpAddr]) -> Self {
        match addresses {
            [one] => Self::One(one.to_canonical()),
            other => Self::Other(other.iter().map(IpAddr::to_canonical).collect()),
        }
    }

    fn as_slice(&self) -> &[IpAddr] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Other(other) => other,
        }
    }
}

/// What few workloads have.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::snapshot) struct Rare {
    /// A name that is not the last part of the uid.
    name: Option<Arc<str>>,
    hostname: Option<Arc<str>>,
    /// Since which version it has listed each name of the profile's lists, without a break.
    listed: Box<[u64]>,
}

impl Rare {
    pub(in crate::snapshot) fn new(workload: &Workload, listed: Box<[u64]>) -> Option<Box<Self>> {
        let name = workload.own_name().cloned();
        let hostname = workload.hostname();
        let hostname = (!hostname.is_empty()).then(|| hostname.into());
        let any = name.is_some() || hostname.is_some() || !listed.is_empty();
        any.then(|| {
            Box::new(Self {
                name,
                hostname,
                listed,
            })
        })
    }
}

/// Where a workload runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::snapshot) struct Place {
    pub(in crate::snapshot) network: Arc<str>,
    pub(in crate::snapshot) cluster: Arc<str>,
    pub(in crate::snapshot) region: Arc<str>,
    pub(in crate::snapshot) zone: Arc<str>,
    pub(in crate::snapshot) subzone: Arc<str>,
    pub(in crate::snapshot) node: Arc<str>,
}

impl Place {
    pub(in crate::snapshot) fn scope(&self, scope: LocalityScope) -> &str {
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
pub(in crate::snapshot) struct Profile {
    pub(in crate::snapshot) namespace: Arc<str>,
    pub(in crate::snapshot) trust_domain: Arc<str>,
    pub(in crate::snapshot) service_account: Arc<str>,
    pub(in crate::snapshot) identity: Option<Identity>,
    pub(in crate::snapshot) protocol: TunnelProtocol,
    pub(in crate::snapshot) network_mode: NetworkMode,
    pub(in crate::snapshot) canonical_name: Arc<str>,
    pub(in crate::snapshot) canonical_revision: Arc<str>,
    pub(in crate::snapshot) workload_type: WorkloadType,
    pub(in crate::snapshot) workload_name: Arc<str>,
    pub(in crate::snapshot) native_tunnel: bool,
    pub(in crate::snapshot) application_tunnel: Option<(ApplicationProtocol, Option<u16>)>,
    pub(in crate::snapshot) policies: Box<[PolicyName]>,
    pub(in crate::snapshot) request_authentications: Box<[ObjectName]>,
    /// Few have either.
    pub(in crate::snapshot) waypoint: Option<Box<GatewayAddress>>,
    pub(in crate::snapshot) network_gateway: Option<Box<GatewayAddress>>,
    pub(in crate::snapshot) memberships: Box<[MembershipRecord]>,
}

impl Profile {
    pub(in crate::snapshot) fn lists_any(&self) -> bool {
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

    /// With a name that is equal, and kept already.
    pub(in crate::snapshot) fn name(&mut self, service: &ServiceName) {
        self.service = service.clone();
    }

    /// Pairs of service port and this workload's own port for it.
    pub fn ports(&self) -> &[(u16, u16)] {
        &self.ports
    }

    /// What the service knows of its health; unset, the workload's own counts.
    pub fn health(&self) -> Option<Health> {
        self.health
    }

    pub(in crate::snapshot) fn target_port(&self, service_port: u16) -> Option<u16> {
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
    pub fn name(&self) -> &str {
        let own = self.rare.as_ref().and_then(|rare| rare.name.as_deref());
        own.unwrap_or_else(|| match self.name_length {
            0 => last_part(&self.uid),
            length => &self.uid[self.uid.len() - usize::from(length)..],
        })
    }

    /// Names are compared often, and need not be looked for each time.
    pub(in crate::snapshot) fn name_length(uid: &str) -> u8 {
        last_part(uid).len().try_into().unwrap_or_default()
    }

    /// The namespace.
    pub fn namespace(&self) -> &Arc<str> {
        &self.profile.namespace
    }

    /// Its addresses.
    pub fn addresses(&self) -> &[IpAddr] {
        self.addresses.as_slice()
    }

    /// The DNS name to find its address by, of a workload without addresses.
    pub fn hostname(&self) -> Option<&Arc<str>> {
        self.rare.as_ref()?.hostname.as_ref()
    }

    /// Since which version it has listed each name of the profile's lists.
    pub(in crate::snapshot) fn listed(&self) -> &[u64] {
        self.rare.as_ref().map_or(&[], |rare| &rare.listed)
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
        self.profile.waypoint.as_deref()
    }

    /// The gateway through which other networks reach it.
    pub fn network_gateway(&self) -> Option<&GatewayAddress> {
        self.profile.network_gateway.as_deref()
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

    pub(in crate::snapshot) fn application_tunnel_port(&self) -> Option<u16> {
        self.profile.application_tunnel?.1
    }

    pub(in crate::snapshot) fn health_in(&self, membership: &MembershipRecord) -> Health {
        membership.health.unwrap_or(self.health)
    }

    /// Workloads that claim one address or name are preferred in this order (ztunnel's `//Pod/` first,
    /// then HBONE); the uid makes it total.
    pub(in crate::snapshot) fn precedence(&self) -> (bool, bool, &str) {
        let pod = self.uid.contains("//Pod/");
        let hbone = self.profile.protocol == TunnelProtocol::Hbone;
        (!pod, !hbone, &self.uid)
    }
}

impl fmt::Debug for WorkloadRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadRecord")
            .field("uid", &self.uid)
            .field("addresses", &self.addresses())
            .finish_non_exhaustive()
    }
}

impl WorkloadRecord {
    /// Whether what is the workload's own is right: the rest is checked with its [`Profile`].
    ///
    /// # Errors
    ///
    /// Names the field that is wrong and what was expected there.
    pub(in crate::snapshot) fn check(workload: &Workload) -> Result<(), Rejection> {
        expect(!workload.uid().is_empty(), "uid", "not to be empty")?;
        for ip in workload.addresses() {
            let ip = ip.to_canonical();
            if ip.is_unspecified() || ip.is_multicast() {
                let field = format!("address {ip}");
                return expect(false, &field, "the address of one host");
            }
        }
        let hbone = workload.protocol() == TunnelProtocol::Hbone;
        expect(
            !hbone || workload.hbone_port() != 0,
            "hbone_port",
            "1 to 65535",
        )
    }
}

impl Place {
    pub(in crate::snapshot) fn of(workload: &Workload) -> Self {
        let (place, locality) = (workload.place(), workload.locality());
        Self {
            network: Arc::clone(place.network()),
            cluster: Arc::clone(place.cluster_id()),
            region: locality.region().into(),
            zone: locality.zone().into(),
            subzone: locality.subzone().into(),
            node: Arc::clone(place.node()),
        }
    }
}

impl Profile {
    /// # Errors
    ///
    /// Names the field that is wrong and what was expected there.
    pub(in crate::snapshot) fn of(workload: &Workload) -> Result<Self, Rejection> {
        let hbone = workload.protocol() == TunnelProtocol::Hbone;
        let identity = match workload.identity() {
            Ok(identity) => Some(identity),
            // Nobody asks a workload that takes no tunnels who it is.
            Err(_) if !hbone => None,
            Err(error) => return Err(Rejection::new(format!("identity: {error}"))),
        };
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
        let profile = workload.profile();
        // The parts of a deployment's pods often have one name: one allocation for all of them.
        let service_account = Arc::clone(profile.service_account());
        let named = |text: &Arc<str>| {
            let of = if *service_account == **text {
                &service_account
            } else {
                text
            };
            Arc::clone(of)
        };
        let tunnel = workload.application_tunnel();
        Ok(Self {
            namespace: Arc::clone(profile.namespace()),
            trust_domain: Arc::clone(profile.trust_domain()),
            service_account: Arc::clone(&service_account),
            identity,
            protocol: workload.protocol(),
            network_mode: workload.network_mode(),
            canonical_name: named(profile.canonical_name()),
            canonical_revision: Arc::clone(profile.canonical_revision()),
            workload_type: workload.workload_type(),
            workload_name: named(profile.workload_name()),
            native_tunnel: workload.native_tunnel(),
            application_tunnel: tunnel.map(|tunnel| (tunnel.protocol(), tunnel.port())),
            policies: distinct(workload.authorization_policies()),
            request_authentications: distinct(workload.request_authentications()),
            waypoint: workload.waypoint().cloned().map(Box::new),
            network_gateway: workload.network_gateway().cloned().map(Box::new),
            memberships: memberships.collect::<Result<_, _>>()?,
        })
    }
}

/// What is behind the last `/`.
fn last_part(uid: &str) -> &str {
    uid.rsplit_once('/').map_or(uid, |(_, name)| name)
}

fn distinct<T: Clone + Eq + Hash>(names: &[T]) -> Box<[T]> {
    let mut seen = HashSet::with_capacity(names.len());
    names
        .iter()
        .filter(|name| seen.insert(*name))
        .cloned()
        .collect()
}
