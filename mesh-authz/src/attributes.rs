use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, Method};

use crate::Identity;
use crate::matcher;

/// What is known of one attribute.
///
/// Absent and unknown differ: a plaintext caller has no identity, and a matcher on it is false; the
/// method of a request that is yet to come is unknown, and a matcher on it is neither true nor false.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(
    clippy::exhaustive_enums,
    reason = "the three cases are the whole of three-valued logic"
)]
pub enum Attribute<T> {
    /// The value is known.
    Present(T),
    /// There is known to be none.
    Absent,
    /// It is not known yet.
    #[default]
    Unknown,
}

impl<T> From<Option<T>> for Attribute<T> {
    /// `None` is absent, not unknown.
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Absent, Self::Present)
    }
}

/// What a decision is made about, borrowed from the connection and the request.
///
/// A new value knows the connection's addresses; what a request would tell is unknown until
/// [`with_request`](Self::with_request), and the TLS server name until [`with_sni`](Self::with_sni).
///
/// # Examples
///
/// ```
/// use mesh_authz::{Attribute, Attributes, Identity};
///
/// let caller = Identity::new("cluster.local", "default", "bookinfo-reviews")?;
/// let attributes = Attributes::new("10.0.0.7:51000".parse().unwrap(), "10.0.0.9:9080".parse().unwrap())
///     .with_identity(Attribute::Present(&caller));
/// # let _ = attributes;
/// # Ok::<(), mesh_authz::InvalidIdentity>(())
/// ```
#[derive(Debug, Clone)]
pub struct Attributes<'a> {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) identity: Attribute<&'a Identity>,
    pub(crate) sni: Attribute<&'a str>,
    pub(crate) request: Attribute<RequestAttributes<'a>>,
}

impl<'a> Attributes<'a> {
    /// Describes a connection from `source` to `destination` (its real port, not the tunnel's) whose
    /// peer has no identity: [`with_identity`](Self::with_identity) gives it one.
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            source: canonical(source),
            destination: canonical(destination),
            identity: Attribute::Absent,
            sni: Attribute::Unknown,
            request: Attribute::Unknown,
        }
    }

    /// The connection's peer.
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// What the connection or the tunnel was opened to.
    pub fn destination(&self) -> SocketAddr {
        self.destination
    }

    /// The peer's identity.
    pub fn identity(&self) -> Attribute<&'a Identity> {
        self.identity
    }

    /// The TLS server name seen inside the tunnel.
    pub fn sni(&self) -> Attribute<&'a str> {
        self.sni
    }

    /// What the request tells.
    pub fn request(&self) -> &Attribute<RequestAttributes<'a>> {
        &self.request
    }

    /// Sets the peer's identity as its certificate proved it.
    #[must_use]
    pub fn with_identity(mut self, identity: Attribute<&'a Identity>) -> Self {
        self.identity = identity;
        self
    }

    /// Sets the TLS server name seen inside the tunnel.
    ///
    /// Unknown unless somebody has looked, so that a DENY rule on it denies and an ALLOW rule on it does
    /// not allow; absent is for whoever has seen that the connection begins without TLS, as one does
    /// on which a request was read in plain. Envoy has an empty name there, which no value matches.
    #[must_use]
    pub fn with_sni(mut self, sni: Attribute<&'a str>) -> Self {
        self.sni = sni;
        self
    }

    /// Sets what the request tells.
    #[must_use]
    pub fn with_request(mut self, request: RequestAttributes<'a>) -> Self {
        self.request = Attribute::Present(request);
        self
    }
}

/// What an HTTP request tells: everything here is known, an absent value is known to be absent.
#[derive(Debug, Clone)]
pub struct RequestAttributes<'a> {
    pub(crate) method: &'a Method,
    pub(crate) host: Option<&'a str>,
    path: &'a str,
    /// Without its query.
    pub(crate) path_alone: &'a str,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) remote_ip: Option<IpAddr>,
}

impl<'a> RequestAttributes<'a> {
    /// Describes a request. `host` is its authority with the port, if it has one; `path` is
    /// normalised already and may carry a query, which is not compared.
    pub fn new(
        method: &'a Method,
        host: Option<&'a str>,
        path: &'a str,
        headers: &'a HeaderMap,
    ) -> Self {
        Self {
            method,
            host,
            path,
            path_alone: matcher::without_query(path),
            headers,
            remote_ip: None,
        }
    }

    /// The method.
    pub fn method(&self) -> &'a Method {
        self.method
    }

    /// The authority, port included.
    pub fn host(&self) -> Option<&'a str> {
        self.host
    }

    /// The path.
    pub fn path(&self) -> &'a str {
        self.path
    }

    /// The headers.
    pub fn headers(&self) -> &'a HeaderMap {
        self.headers
    }

    /// The original client's address, where it is known to differ from the connection's source.
    pub fn remote_ip(&self) -> Option<IpAddr> {
        self.remote_ip
    }

    /// Sets the original client's address; the connection's source stands for it otherwise.
    #[must_use]
    pub fn with_remote_ip(mut self, remote_ip: IpAddr) -> Self {
        self.remote_ip = Some(remote_ip.to_canonical());
        self
    }
}

/// An IPv4-mapped IPv6 address is the IPv4 address, for every comparison.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[cfg(test)]
mod tests;
