//! Who calls: what the caller shows, and who judges it.

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;

use http::header::AUTHORIZATION;
use http::{Extensions, HeaderMap};
use mesh_authz::Identity;

/// What a caller shows to prove who it is.
#[derive(Clone)]
pub struct Credentials {
    token: Option<String>,
    certificate: Option<Identity>,
    cluster: Option<String>,
    remote: Option<IpAddr>,
}

impl Credentials {
    pub(super) fn of(headers: &HeaderMap, extensions: &Extensions) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let token = text(AUTHORIZATION.as_str()).and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme
                .eq_ignore_ascii_case("bearer")
                .then(|| token.trim().to_owned())
        });
        Self {
            token,
            certificate: extensions.get::<Peer>().map(|peer| peer.identity.clone()),
            cluster: text("clusterid").map(str::to_owned),
            remote: extensions.get::<Remote>().map(|remote| remote.address),
        }
    }

    /// The bearer token.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Whom the client certificate of its connection names: see [`Peer`].
    pub fn certificate(&self) -> Option<&Identity> {
        self.certificate.as_ref()
    }

    /// The header `clusterid`: the cluster whose tokens it has.
    pub fn cluster(&self) -> Option<&str> {
        self.cluster.as_deref()
    }
}

impl Credentials {
    /// Where its connection comes from, if that is known.
    pub(super) fn remote(&self) -> Option<IpAddr> {
        self.remote
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("certificate", &self.certificate)
            .field("cluster", &self.cluster)
            .finish()
    }
}

/// Whom a connection's client certificate names. Whoever accepts connections verifies the certificate and
/// puts this among the extensions of each request; without it there is no certificate.
#[derive(Debug, Clone)]
pub struct Peer {
    identity: Identity,
}

impl Peer {
    /// Takes what was verified.
    pub fn new(identity: Identity) -> Self {
        Self { identity }
    }
}

/// Where a connection comes from. Whoever accepts connections may put this among the extensions of each request:
/// nothing is decided by it, a caller that is turned away is named by it.
#[derive(Debug, Clone, Copy)]
pub struct Remote {
    address: IpAddr,
}

impl Remote {
    /// Takes the other end's address.
    pub fn new(address: IpAddr) -> Self {
        Self { address }
    }
}

/// Judges callers.
///
/// istiod takes a certificate that it can verify for proof, and else asks Kubernetes about the token.
///
/// # Examples
///
/// ```
/// use mesh_xds::serve::{Authenticator, Authenticating, Credentials, Unauthenticated};
///
/// /// Takes what the transport verified, and no tokens.
/// struct CertificatesOnly;
///
/// impl Authenticator for CertificatesOnly {
///     fn authenticate<'a>(&'a self, caller: &'a Credentials) -> Authenticating<'a> {
///         let found = caller.certificate().cloned();
///         Box::pin(async { found.ok_or(Unauthenticated::new("no certificate")) })
///     }
/// }
/// ```
pub trait Authenticator: Send + Sync + 'static {
    /// Finds out who calls. Asked when a stream opens and for each certificate.
    fn authenticate<'a>(&'a self, caller: &'a Credentials) -> Authenticating<'a>;

    /// Whether `caller` is given certificates of `other`, as a node's proxy is of the workloads on its node.
    /// Default: no.
    fn may_speak_for(&self, caller: &Identity, other: &Identity) -> bool {
        let _ = (caller, other);
        false
    }
}

/// The future of an [`Authenticator`].
pub type Authenticating<'a> =
    Pin<Box<dyn Future<Output = Result<Identity, Unauthenticated>> + Send + 'a>>;

/// A caller did not prove who it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unauthenticated {
    reason: String,
}

impl Unauthenticated {
    /// The reason is sent to the caller.
    pub fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
        }
    }
}
