use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;

use bytes::{Bytes, BytesMut};
use http::header::{HOST, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body::Body;
use mesh_authz::Identity;
use tower_layer::Layer;
use tower_service::Service;

use crate::error::{BoxError, Error};
use crate::layers::{Inbound, InboundLayer, LocalResponse};
use crate::{ConnectionContext, Enforced, Policies};

/// Calls a service as a peer of the mesh would, through the layers of a server in the mesh.
///
/// Without [`identity`](Self::identity) the caller comes in plaintext; without
/// [`policies`](Self::policies) everything is allowed.
///
/// # Examples
///
/// An axum handler that reads who calls:
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use axum::{Extension, Router, routing::get};
/// use http::Request;
/// use mesh_core::layers::PeerIdentity;
/// use mesh_core::testing::Caller;
///
/// let app = Router::new().route("/", get(|Extension(peer): Extension<PeerIdentity>| async move {
///     peer.identity().map_or("nobody".to_owned(), |id| id.service_account().to_owned())
/// }));
/// let caller = Caller::new(app).identity("spiffe://cluster.local/ns/default/sa/bookinfo-reviews");
/// let answer = caller.call(Request::get("/").body(axum::body::Body::empty())?).await?;
/// assert_eq!(answer.text(), "bookinfo-reviews");
/// # Ok(())
/// # }
/// ```
///
/// A tonic server that a policy guards:
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use http::Request;
/// use mesh_core::authz::PolicySet;
/// use mesh_core::authz::policy::{Action, Policy, PolicyName};
/// use mesh_core::testing::Caller;
/// use tonic::service::Routes;
///
/// # let nobody = Policy::new(PolicyName::new("default", "nobody"), Action::Allow, vec![]);
/// # let policies = PolicySet::new([std::sync::Arc::new(nobody)]);
/// let caller = Caller::new(Routes::default()) // .add_service(GreeterServer::new(greeter))
///     .identity("spiffe://cluster.local/ns/default/sa/stranger")
///     .policies(policies);
/// let request = Request::post("/helloworld.Greeter/SayHello")
///     .header("content-type", "application/grpc")
///     .body(tonic::body::Body::empty())?;
/// let answer = caller.call(request).await?;
/// assert_eq!(answer.grpc_status(), Some(7)); // PERMISSION_DENIED
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Caller<S> {
    service: S,
    identity: Option<Identity>,
    source: SocketAddr,
    destination: SocketAddr,
    policies: Policies,
}

impl<S> Caller<S> {
    /// Calls `service`.
    pub fn new(service: S) -> Self {
        Self {
            service,
            identity: None,
            // TEST-NET-1 (RFC 5737): no address of anybody's.
            source: SocketAddr::from(([192, 0, 2, 1], 50_000)),
            destination: SocketAddr::from(([192, 0, 2, 2], 80)),
            policies: Policies::new(Enforced::default()),
        }
    }

    /// Sets who calls, by SPIFFE id.
    ///
    /// # Panics
    ///
    /// When `spiffe_id` is not one: a test that misspells it must not pass.
    #[must_use]
    #[track_caller]
    pub fn identity(mut self, spiffe_id: &str) -> Self {
        match spiffe_id.parse() {
            Ok(identity) => self.identity = Some(identity),
            Err(error) => panic!("{spiffe_id:?}: {error}"),
        }
        self
    }

    /// Sets the caller's address. Default 192.0.2.1:50000.
    #[must_use]
    pub fn source(mut self, source: SocketAddr) -> Self {
        self.source = source;
        self
    }

    /// Sets the address that is called. Default 192.0.2.2:80.
    #[must_use]
    pub fn destination(mut self, destination: SocketAddr) -> Self {
        self.destination = destination;
        self
    }

    /// Sets what is enforced: a `PolicySet`, or an [`Enforced`] with places of tokens.
    #[must_use]
    pub fn policies(self, enforced: impl Into<Enforced>) -> Self {
        self.live(Policies::new(enforced))
    }

    /// Sets a handle on what is enforced, which the test can change between calls.
    #[must_use]
    pub fn live(mut self, policies: Policies) -> Self {
        self.policies = policies;
        self
    }

    /// The service with the mesh's layers around it, on a connection of this caller's. A generated
    /// tonic client takes it as its channel.
    pub fn into_service(self) -> Inbound<S> {
        let context = match self.identity {
            Some(identity) => ConnectionContext::tunnel(self.source, self.destination, identity),
            None => ConnectionContext::plaintext(self.source, self.destination),
        };
        InboundLayer::new(self.policies)
            .for_connection(context)
            .layer(self.service)
    }

    /// Calls, and waits for the whole answer. A request that names no host gets the destination's
    /// address as one.
    ///
    /// # Errors
    ///
    /// What the service or the body of its response fails with.
    pub async fn call<ReqBody, ResBody>(&self, request: Request<ReqBody>) -> Result<Received, Error>
    where
        S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
        S::Error: Into<BoxError> + 'static,
        ReqBody: Body + 'static,
        ResBody: Body<Data = Bytes>,
        ResBody::Error: Into<BoxError> + 'static,
    {
        let mut service = self.clone().into_service();
        let request = self.with_host(request);
        poll_fn(|cx| service.poll_ready(cx))
            .await
            .map_err(|error| Error::from(error.into()))?;
        let response = service
            .call(request)
            .await
            .map_err(|error| Error::from(error.into()))?;
        Received::collect(response).await
    }

    fn with_host<B>(&self, mut request: Request<B>) -> Request<B> {
        if request.uri().authority().is_none()
            && !request.headers().contains_key(HOST)
            && let Ok(host) = HeaderValue::try_from(self.destination.to_string())
        {
            request.headers_mut().insert(HOST, host);
        }
        request
    }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Received {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    trailers: Option<HeaderMap>,
    local: Option<LocalResponse>,
}

impl Received {
    async fn collect<B>(response: Response<B>) -> Result<Self, Error>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let (head, body) = response.into_parts();
        let mut body = pin!(body);
        let (mut data, mut trailers) = (BytesMut::new(), None);
        while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            let frame = frame.map_err(|error| Error::from(error.into()))?;
            match frame.into_data() {
                Ok(bytes) => data.extend_from_slice(&bytes),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        Ok(Self {
            status: head.status,
            local: head.extensions.get::<LocalResponse>().cloned(),
            headers: head.headers,
            body: data.freeze(),
            trailers,
        })
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The body as text; what is not UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The trailers.
    pub fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_ref()
    }

    /// The gRPC status, from the trailers or from the headers of an answer without a body.
    pub fn grpc_status(&self) -> Option<u32> {
        let trailers = self.trailers.iter();
        let status = trailers
            .chain([&self.headers])
            .find_map(|headers| headers.get("grpc-status"))?;
        status.to_str().ok()?.parse().ok()
    }

    /// Whether the mesh answered in the application's place, and why.
    pub fn local(&self) -> Option<&LocalResponse> {
        self.local.as_ref()
    }
}
