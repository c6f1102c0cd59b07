//! What is asked of resolution, and what it answers.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_authz::Identity;
use mesh_xds::model::{GatewayDestination, ServiceName};

use super::record::{ServiceRecord, WorkloadRecord};

/// Who asks: a workload of this process, as the snapshot that is asked has it.
#[derive(Debug, Clone)]
pub struct Source {
    pub(super) workload: Arc<WorkloadRecord>,
    cluster_domain: Option<Arc<str>>,
}

impl Source {
    /// Asks as this workload, in a cluster whose domain is `cluster.local`.
    pub fn new(workload: Arc<WorkloadRecord>) -> Self {
        Self {
            workload,
            cluster_domain: None,
        }
    }

    /// Sets the domain that short names of services are completed with. Default: `cluster.local`.
    #[must_use]
    pub fn with_cluster_domain(mut self, cluster_domain: impl Into<Arc<str>>) -> Self {
        self.cluster_domain = Some(cluster_domain.into());
        self
    }

    /// The workload.
    pub fn workload(&self) -> &Arc<WorkloadRecord> {
        &self.workload
    }

    /// The domain that short names of services are completed with.
    pub fn cluster_domain(&self) -> &str {
        self.cluster_domain.as_deref().unwrap_or("cluster.local")
    }
}

/// Where somebody wants to connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(
    clippy::exhaustive_enums,
    reason = "a destination is an address or a name, in every protocol there is"
)]
pub enum Target<'a> {
    /// An address: a service's virtual one or a workload's.
    Addr(SocketAddr),
    /// A name as people write it, for example `ratings`; an address in text is that address.
    Host {
        /// The name, without port.
        name: &'a str,
        /// The port.
        port: u16,
    },
}

/// The answer of [`Snapshot::resolve`](super::Snapshot::resolve).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Resolution {
    /// Connect like this.
    Found(Route),
    /// A waypoint that connections have to go through is not known yet: wait for it, then ask a newer
    /// snapshot. To go without it would pass by its policies.
    Missing(GatewayDestination),
    /// The mesh knows the destination, and there is no way to it.
    Refused(Refusal),
    /// The mesh does not know the destination.
    Unknown,
}

/// Why there is no way to a destination that the mesh knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// No endpoint can be used.
    #[error("{service} port {port} has no endpoint that can be used")]
    NoHealthyUpstream {
        /// The service.
        service: ServiceName,
        /// The service's port.
        port: u16,
    },
    /// The service has no such port.
    #[error("service {service} has no port {port}")]
    NoSuchPort {
        /// The service.
        service: ServiceName,
        /// The port that was asked for.
        port: u16,
    },
    /// The workload has neither an address nor a hostname.
    #[error("workload {uid} has no address")]
    NoAddress {
        /// The workload.
        uid: Arc<str>,
    },
    /// The way leads to another network, through a gateway: not supported yet.
    #[error(
        "workload {uid} is in the network {network:?}, and other networks are not supported yet"
    )]
    UnsupportedNetwork {
        /// The workload.
        uid: Arc<str>,
        /// Its network.
        network: Arc<str>,
    },
    /// Nothing says who the waypoint has to be.
    #[error("waypoint {uid} has no identity")]
    NoIdentity {
        /// The waypoint's workload.
        uid: Arc<str>,
    },
}

/// Names an endpoint, so that the next attempt can avoid it: the uid of its workload.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EndpointId(Arc<str>);

impl EndpointId {
    /// Names the endpoint that is the workload with this uid.
    pub fn new(uid: impl Into<Arc<str>>) -> Self {
        Self(uid.into())
    }

    /// The uid.
    pub fn uid(&self) -> &Arc<str> {
        &self.0
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How to connect, and whom that reaches.
#[derive(Debug, Clone)]
pub struct Route {
    pub(super) hop: Hop,
    pub(super) workload: Option<Arc<WorkloadRecord>>,
    pub(super) service: Option<Arc<ServiceRecord>>,
    pub(super) waypoint: bool,
}

impl Route {
    /// The way to an address that the mesh does not know: plain TCP.
    pub(crate) fn passthrough(address: SocketAddr) -> Self {
        Self {
            hop: Hop::Passthrough(address),
            workload: None,
            service: None,
            waypoint: false,
        }
    }

    /// How to connect.
    pub fn hop(&self) -> &Hop {
        &self.hop
    }

    /// The workload that the connection is made to, for telemetry: the waypoint where there is one.
    pub fn workload(&self) -> Option<&Arc<WorkloadRecord>> {
        self.workload.as_ref()
    }

    /// The service that was asked for.
    pub fn service(&self) -> Option<&Arc<ServiceRecord>> {
        self.service.as_ref()
    }

    /// Whether it leads through a waypoint.
    pub fn is_through_waypoint(&self) -> bool {
        self.waypoint
    }

    /// The endpoint to exclude from the next attempt when this one fails.
    pub fn endpoint(&self) -> Option<EndpointId> {
        let workload = self.workload.as_ref()?;
        Some(EndpointId(Arc::clone(workload.uid())))
    }

    /// The same route to an address that [`Hop::Resolve`]'s hostname stands for; any other is unchanged.
    #[must_use]
    pub fn with_address(self, ip: IpAddr) -> Self {
        let hop = match self.hop {
            Hop::Resolve(lookup) => lookup.at(ip),
            hop => hop,
        };
        Self { hop, ..self }
    }
}

/// How to connect.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Hop {
    /// Through a tunnel. When that fails, nothing else may be tried in its place.
    Hbone(Tunnelled),
    /// Plain TCP to a workload that the configuration marks as taking no tunnels.
    Plain(SocketAddr),
    /// Plain TCP to the address that was asked for: the mesh takes no part.
    Passthrough(SocketAddr),
    /// The same after looking up a hostname: see [`Route::with_address`].
    Resolve(Lookup),
}

/// A connection through a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tunnelled {
    pub(super) next_hop: SocketAddr,
    pub(super) authority: Authority,
    pub(super) identities: Vec<Identity>,
}

impl Tunnelled {
    /// Where to open the tunnel.
    pub fn next_hop(&self) -> SocketAddr {
        self.next_hop
    }

    /// What to ask it for.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Who the other end may be: any of these; never empty.
    pub fn identities(&self) -> &[Identity] {
        &self.identities
    }
}

/// What a tunnel is asked for: `ip:port`, or `hostname:port` where the waypoint is to look it up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "as in RFC 9110, section 9.3.6")]
pub enum Authority {
    /// An address.
    Addr(SocketAddr),
    /// A hostname and a port.
    Host(Arc<str>, u16),
}

impl Authority {
    /// The port.
    pub fn port(&self) -> u16 {
        match self {
            Self::Addr(addr) => addr.port(),
            Self::Host(_, port) => *port,
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => addr.fmt(f),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// A hostname to look up before connecting.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lookup {
    pub(super) hostname: Arc<str>,
    pub(super) port: u16,
    pub(super) then: Then,
}

/// What to do with the address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Then {
    /// Open a tunnel on this port of it; without an authority, ask for the address itself.
    Hbone {
        hbone_port: u16,
        authority: Option<Authority>,
        identities: Vec<Identity>,
    },
    Plain,
    Passthrough,
}

impl Lookup {
    /// The hostname.
    pub fn hostname(&self) -> &Arc<str> {
        &self.hostname
    }

    /// The application's port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How to connect now that the hostname stands for this address.
    fn at(self, ip: IpAddr) -> Hop {
        let addr = SocketAddr::new(ip, self.port);
        match self.then {
            Then::Hbone {
                hbone_port,
                authority,
                identities,
            } => Hop::Hbone(Tunnelled {
                next_hop: SocketAddr::new(ip, hbone_port),
                authority: authority.unwrap_or(Authority::Addr(addr)),
                identities,
            }),
            Then::Plain => Hop::Plain(addr),
            Then::Passthrough => Hop::Passthrough(addr),
        }
    }
}
