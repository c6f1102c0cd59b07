//! Tells every request who its peer proved to be.

use std::task::{Context, Poll};

use http::header::HeaderName;
use http::{Extensions, HeaderMap, Request, Response};
use mesh_authz::Identity;
use tower_layer::Layer;
use tower_service::Service;
use tracing::error;

use super::reply::{Reply, ReplyBody, ReplyFuture, is_grpc};
use crate::{ConnectionContext, ErrorKind};

/// Who sent a request; in every request's extensions behind [`IdentifyLayer`].
///
/// # Examples
///
/// ```
/// use axum::Extension;
/// use mesh_core::layers::PeerIdentity;
///
/// async fn hello(Extension(peer): Extension<PeerIdentity>) -> String {
///     match peer.identity() {
///         Some(identity) => format!("hello {}", identity.service_account()),
///         None => "hello, whoever you are".to_owned(),
///     }
/// }
/// # let _ = axum::Router::<()>::new().route("/", axum::routing::get(hello));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    identity: Option<Identity>,
}

impl PeerIdentity {
    /// The identity that the peer's certificate proved; `None` for plaintext.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }
}

impl From<&ConnectionContext> for PeerIdentity {
    fn from(context: &ConnectionContext) -> Self {
        Self {
            identity: context.identity().cloned(),
        }
    }
}

/// Gives requests their [`ConnectionContext`] and [`PeerIdentity`] and takes away the headers that
/// only the mesh may set.
///
/// [`for_connection`](Self::for_connection) is for servers that build a service per connection;
/// [`new`](Self::new) for those that put the context in the request's extensions themselves, as
/// tonic does with its connect info. A request without a context is answered 500 with a log line:
/// it is never taken for an anonymous one.
///
/// Headers removed from every request: `x-forwarded-client-cert`, `x-envoy-peer-metadata` and
/// `x-envoy-peer-metadata-id`, which would tell another peer's identity. From a plaintext peer also
/// every other `x-envoy-…` and `x-istio-…`, which the mesh trusts among its own.
///
/// # Examples
///
/// ```
/// use mesh_core::{ConnectionContext, layers::IdentifyLayer};
///
/// let peer = ConnectionContext::plaintext("10.0.0.7:51000".parse()?, "10.0.0.9:9080".parse()?);
/// let app = axum::Router::<()>::new().layer(IdentifyLayer::for_connection(peer));
/// # let _ = app;
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct IdentifyLayer {
    context: Option<ConnectionContext>,
}

impl IdentifyLayer {
    /// Takes the context from each request's extensions.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives each request `context`, whatever its extensions held.
    pub fn for_connection(context: ConnectionContext) -> Self {
        Self {
            context: Some(context),
        }
    }
}

impl<S> Layer<S> for IdentifyLayer {
    type Service = Identify<S>;

    fn layer(&self, inner: S) -> Identify<S> {
        Identify {
            inner,
            context: self.context.clone(),
        }
    }
}

/// The service of [`IdentifyLayer`].
#[derive(Debug, Clone)]
pub struct Identify<S> {
    inner: S,
    context: Option<ConnectionContext>,
}

super::accessors!(Identify);

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Identify<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
{
    type Response = Response<ReplyBody<ResBody>>;
    type Error = S::Error;
    type Future = ReplyFuture<S::Future, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let identified = identify(self.context.as_ref(), request.extensions_mut());
        match identified {
            Some(plaintext) => {
                strip(request.headers_mut(), plaintext);
                ReplyFuture::inner(self.inner.call(request))
            }
            None => ReplyFuture::reply(no_context().into_response(is_grpc(request.headers()))),
        }
    }
}

/// Puts context and identity in the extensions; tells whether the peer is a plaintext one, and
/// nothing where there is no context.
fn identify(given: Option<&ConnectionContext>, extensions: &mut Extensions) -> Option<bool> {
    let peer;
    if let Some(context) = given {
        peer = PeerIdentity::from(context);
        extensions.insert(context.clone());
    } else {
        peer = PeerIdentity::from(extensions.get::<ConnectionContext>()?);
    }
    let plaintext = peer.identity.is_none();
    extensions.insert(peer);
    Some(plaintext)
}

/// The answer to a request of which nobody knows the connection.
pub(crate) fn no_context() -> Reply {
    error!(
        target: "mesh::layers",
        "refused a request that reached the mesh layers without its connection's context: \
         the server must be given the mesh's listener, or the layer the context"
    );
    Reply::new(ErrorKind::Internal).details("no_connection_context")
}

/// Would tell of another peer's identity.
const ALWAYS: [HeaderName; 3] = [
    HeaderName::from_static("x-forwarded-client-cert"),
    HeaderName::from_static("x-envoy-peer-metadata"),
    HeaderName::from_static("x-envoy-peer-metadata-id"),
];

fn strip(headers: &mut HeaderMap, plaintext: bool) {
    for name in &ALWAYS {
        headers.remove(name);
    }
    if plaintext {
        let trusted: Vec<HeaderName> = headers
            .keys()
            .filter(|name| {
                name.as_str().starts_with("x-envoy-") || name.as_str().starts_with("x-istio-")
            })
            .cloned()
            .collect();
        for name in trusted {
            headers.remove(name);
        }
    }
}
