//! Names and addresses of things in the mesh.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::ServiceName;

/// Names a Kubernetes object of a known kind: `<namespace>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    namespace: Arc<str>,
    name: Arc<str>,
}

impl ObjectName {
    /// Makes a name of its two parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name in the namespace.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Names a Kubernetes object of any kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ObjectRef {
    group: Arc<str>,
    kind: Arc<str>,
    name: ObjectName,
}

impl ObjectRef {
    /// Makes a reference; the core group is empty.
    pub fn new(group: impl Into<Arc<str>>, kind: impl Into<Arc<str>>, name: ObjectName) -> Self {
        Self {
            group: group.into(),
            kind: kind.into(),
            name,
        }
    }

    /// The API group; empty for the core group.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// The kind, for example `Service`.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Namespace and name.
    pub fn name(&self) -> &ObjectName {
        &self.name
    }
}

/// An address, or a range of them, in one of the mesh's networks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NetworkAddress {
    network: Arc<str>,
    range: IpNet,
}

impl NetworkAddress {
    /// Makes a single address; the default network is empty.
    pub fn new(network: impl Into<Arc<str>>, ip: IpAddr) -> Self {
        Self {
            network: network.into(),
            range: ip.into(),
        }
    }

    /// Makes a range of addresses. Bits after the prefix are cleared.
    pub fn cidr(network: impl Into<Arc<str>>, range: IpNet) -> Self {
        Self {
            network: network.into(),
            range: range.trunc(),
        }
    }

    /// The network; empty is the default one.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// The address, unless this is a range of several.
    pub fn ip(&self) -> Option<IpAddr> {
        (self.range.prefix_len() == self.range.max_prefix_len()).then(|| self.range.addr())
    }

    /// The range; of a single address, a range of one.
    pub fn range(&self) -> IpNet {
        self.range
    }
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip() {
            Some(ip) => write!(f, "{}/{ip}", self.network),
            None => write!(f, "{}/{}", self.network, self.range),
        }
    }
}

/// Where a gateway or waypoint is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GatewayAddress {
    destination: GatewayDestination,
    hbone_mtls_port: u16,
}

impl GatewayAddress {
    /// Makes an address with the port of its HBONE listener; 0 leaves the port to the destination.
    pub fn new(destination: GatewayDestination, hbone_mtls_port: u16) -> Self {
        Self {
            destination,
            hbone_mtls_port,
        }
    }

    /// The service, workload or address.
    pub fn destination(&self) -> &GatewayDestination {
        &self.destination
    }

    /// The port of its HBONE listener; 0 when nobody said one.
    pub fn hbone_mtls_port(&self) -> u16 {
        self.hbone_mtls_port
    }
}

/// What stands for a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GatewayDestination {
    /// A service by name, else a workload with that hostname.
    Hostname(ServiceName),
    /// A service's or a workload's address.
    Address {
        /// The network; empty is the default one.
        network: Arc<str>,
        /// The address.
        ip: IpAddr,
    },
}

impl fmt::Display for GatewayDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hostname(name) => name.fmt(f),
            Self::Address { network, ip } => write!(f, "{network}/{ip}"),
        }
    }
}
