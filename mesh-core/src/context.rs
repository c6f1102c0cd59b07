//! What is known of a connection, handed to every request on it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use mesh_authz::{Attribute, Attributes, Identity};

use crate::telemetry::Labels;

/// Describes the connection that a request came on: its ends and who its peer proved to be.
///
/// Listeners attach one to each connection and the HTTP layers put it in the request's extensions:
/// `request.extensions().get::<ConnectionContext>()`, axum's `Extension<ConnectionContext>`, tonic's
/// `Request::extensions()`. Cloning is one reference count.
///
/// # Examples
///
/// ```
/// use mesh_core::{ConnectionContext, authz::Identity};
///
/// let context = ConnectionContext::tunnel(
///     "10.0.0.7:51000".parse().unwrap(),
///     "10.0.0.9:9080".parse().unwrap(),
///     Identity::new("cluster.local", "default", "bookinfo-reviews")?,
/// );
/// assert_eq!(context.identity().unwrap().service_account(), "bookinfo-reviews");
/// # Ok::<(), mesh_core::authz::InvalidIdentity>(())
/// ```
#[derive(Clone)]
pub struct ConnectionContext {
    inner: Arc<Inner>,
}

struct Inner {
    source: SocketAddr,
    destination: SocketAddr,
    identity: Option<Identity>,
    labels: OnceLock<Labels>,
}

impl ConnectionContext {
    /// Describes a connection that came through a tunnel from a peer whose certificate proved `identity`.
    pub fn tunnel(source: SocketAddr, destination: SocketAddr, identity: Identity) -> Self {
        Self::new(source, destination, Some(identity))
    }

    /// Describes a connection that came in plaintext: its peer has no identity.
    pub fn plaintext(source: SocketAddr, destination: SocketAddr) -> Self {
        Self::new(source, destination, None)
    }

    fn new(source: SocketAddr, destination: SocketAddr, identity: Option<Identity>) -> Self {
        let labels = OnceLock::new();
        Self {
            inner: Arc::new(Inner {
                source,
                destination,
                identity,
                labels,
            }),
        }
    }

    /// Keeps the connection's labels, which its requests are counted under. The first ones stay.
    pub(crate) fn set_labels(&self, labels: Labels) {
        let _ = self.inner.labels.set(labels);
    }

    /// The connection's labels; without a listener's, all that is known is the peer.
    #[cfg(feature = "http")]
    pub(crate) fn labels_or_peer(&self) -> Labels {
        self.inner
            .labels
            .get()
            .cloned()
            .unwrap_or_else(|| crate::layers::peer_labels(self))
    }

    /// The address of the connection's peer: of the tunnel's other end where there is a tunnel.
    pub fn source(&self) -> SocketAddr {
        self.inner.source
    }

    /// The application's address that was asked for, with its own port (never the tunnel's).
    pub fn destination(&self) -> SocketAddr {
        self.inner.destination
    }

    /// The peer's identity; `None` for plaintext.
    pub fn identity(&self) -> Option<&Identity> {
        self.inner.identity.as_ref()
    }

    /// The peer's identity for logs, where `plaintext` says more than nothing.
    pub(crate) fn who(&self) -> String {
        let identity = self.identity().map(ToString::to_string);
        identity.unwrap_or_else(|| "plaintext".to_owned())
    }

    /// Whether the connection came through a tunnel with mutual TLS.
    pub fn is_mutual_tls(&self) -> bool {
        self.inner.identity.is_some()
    }

    /// What policies can ask of the connection.
    pub fn attributes(&self) -> Attributes<'_> {
        Attributes::new(self.inner.source, self.inner.destination)
            .with_identity(Attribute::from(self.inner.identity.as_ref()))
    }
}

impl fmt::Debug for ConnectionContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionContext")
            .field("source", &self.inner.source)
            .field("destination", &self.inner.destination)
            .field("identity", &self.inner.identity)
            .finish()
    }
}
