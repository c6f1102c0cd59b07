//! What a control plane says of one port of a workload: its policies, whole.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_authz::matcher::PathNormalization;
use mesh_authz::policy::{Action, Expr, Policy, PolicyName, Rule};

/// The policies of one port of a workload, parts that need a request included.
///
/// Over xDS an ambient workload's policies arrive without those parts; a listener brings them whole. On
/// its port they take the place of every policy of the workload but those that istiod makes of
/// PeerAuthentication, which no listener has: [`keeps`](Self::keeps) tells them apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundListener {
    address: SocketAddr,
    policies: Vec<Arc<Policy>>,
    path_normalization: Option<PathNormalization>,
    closed: Option<Arc<str>>,
}

/// An IPv4 address in an IPv6 one is the IPv4 address.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl InboundListener {
    /// What discovery names a listener before its address: istiod's word for those of proxyless servers.
    ///
    /// # Examples
    ///
    /// ```
    /// use mesh_xds::model::InboundListener;
    ///
    /// let name = format!("{}10.0.0.1:9080", InboundListener::NAME);
    /// assert_eq!(name, "xds.istio.io/grpc/lds/inbound/10.0.0.1:9080");
    /// ```
    pub const NAME: &str = "xds.istio.io/grpc/lds/inbound/";

    /// The address and port in the name that discovery has for a listener.
    #[cfg(any(feature = "client", feature = "server"))]
    pub(crate) fn address_in(name: &str) -> Option<SocketAddr> {
        let address = name.strip_prefix(Self::NAME)?.parse().ok()?;
        Some(canonical(address))
    }

    /// Makes the listener of an address and port, with all policies that bind it.
    pub fn new(address: SocketAddr, policies: Vec<Arc<Policy>>) -> Self {
        Self {
            address: canonical(address),
            policies,
            path_normalization: None,
            closed: None,
        }
    }

    /// Makes a listener that denies every request, for one of which something cannot be understood that
    /// could refuse a request. The reason becomes the name of the policy that denies.
    pub fn closed_because(address: SocketAddr, reason: impl Into<Arc<str>>) -> Self {
        let reason = reason.into();
        let name = PolicyName::new("", Arc::clone(&reason));
        let closed = Policy::new(name, Action::Deny, vec![Rule::new(Expr::TRUE)]);
        Self {
            closed: Some(reason),
            ..Self::new(address, vec![Arc::new(closed)])
        }
    }

    /// Sets [`path_normalization`](Self::path_normalization).
    #[must_use]
    pub fn with_path_normalization(mut self, path_normalization: PathNormalization) -> Self {
        self.path_normalization = Some(path_normalization);
        self
    }

    /// Address and port of the workload.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All policies of the port, in the order in which they decide.
    pub fn policies(&self) -> &[Arc<Policy>] {
        &self.policies
    }

    /// How paths are made comparable before policies see them; unset where the listener does not say,
    /// as istiod's for proxyless servers do not.
    pub fn path_normalization(&self) -> Option<PathNormalization> {
        self.path_normalization
    }

    /// Why every request is denied, if that is so because the listener was not understood.
    pub fn closed(&self) -> Option<&str> {
        self.closed.as_deref()
    }

    /// Whether a policy of the workload stays in force on a port that has a listener: one of those that
    /// istiod converts from PeerAuthentication, which are on the ambient stream only.
    pub fn keeps(name: &PolicyName) -> bool {
        let name = name.name();
        name == "istio_converted_static_strict"
            || name.starts_with("converted_peer_authentication_")
    }
}
