#[cfg(feature = "axum")]
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use mesh_authz::matcher::PathNormalization;
use tower_layer::Layer;
use tower_service::Service;

use super::listener::MeshListener;
use super::registry::Judgement;
use crate::error::BoxError;
use crate::layers::{Inbound, InboundLayer, LeaveLayer, ObserveLayer};
use crate::{ConnectionContext, Error, Mesh};

/// A listener and the layer that judges its requests.
///
/// One belongs to the other: connections of a listener whose layer is around no service are reset, with
/// an error in the log, for their requests would be judged by nobody.
///
/// # Examples
///
/// ```no_run
/// # async fn example(mesh: mesh_core::Mesh) -> Result<(), Box<dyn std::error::Error>> {
/// # let router = axum::Router::new();
/// let http = mesh.listen_http(9080).await?;
/// axum::serve(http.listener, http.layer.wrap(router)).with_graceful_shutdown(mesh.draining()).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct HttpListener {
    /// Connections that at least one request may be allowed on.
    pub listener: MeshListener,
    /// Judges every request in full.
    pub layer: HttpLayer,
}

/// The layers of an HTTP server in the mesh, in their right order.
///
/// tonic takes it as a layer (`Server::builder().layer(http.layer)`), axum through
/// [`wrap`](Self::wrap), hyper through [`HttpListener::serve`]. A request that did not come through
/// the listener is answered 500: it is never taken for an anonymous one.
#[derive(Debug, Clone)]
pub struct HttpLayer {
    inbound: InboundLayer,
    used: LayerUse,
}

/// Whether a listener's layer is around a service.
#[derive(Debug, Clone, Default)]
pub(crate) struct LayerUse(Arc<AtomicBool>);

impl LayerUse {
    fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// # Errors
    ///
    /// Nobody would judge the requests of this connection.
    pub(crate) fn check(&self, context: &ConnectionContext) -> io::Result<()> {
        if self.0.load(Ordering::Relaxed) {
            return Ok(());
        }
        tracing::error!(
            target: "mesh::inbound",
            destination = %context.destination(),
            "a port of listen_http is served without HttpListener::layer around the service: \
             its connections are reset, for nobody judges their requests",
        );
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the listener's HttpLayer is around no service",
        ))
    }
}

impl HttpLayer {
    /// Sets how paths are normalised before they are judged and forwarded: Istio's default,
    /// [`PathNormalization::Base`], unless set.
    #[must_use]
    pub fn path_normalization(mut self, normalization: PathNormalization) -> Self {
        self.inbound = self.inbound.path_normalization(normalization);
        self
    }

    /// Sets how many proxies in front of the application are trusted to have written
    /// `x-forwarded-for`: none unless set, and the connection's peer is the remote address.
    #[must_use]
    pub fn trusted_hops(mut self, hops: usize) -> Self {
        self.inbound = self.inbound.trusted_hops(hops);
        self
    }

    /// The layers for all requests of one connection: for servers that build a service per connection.
    pub fn for_connection(&self, context: ConnectionContext) -> InboundLayer {
        self.used.begin();
        self.inbound.clone().for_connection(context)
    }

    /// Wraps a service so that [`axum::serve`] gives it each connection's identity.
    ///
    /// [`axum::serve`]: https://docs.rs/axum/0.8/axum/fn.serve.html
    pub fn wrap<S>(self, service: S) -> Wrapped<S> {
        self.used.begin();
        Wrapped {
            layer: self,
            service,
        }
    }
}

impl<S> Layer<S> for HttpLayer {
    type Service = Inbound<S>;

    fn layer(&self, inner: S) -> Inbound<S> {
        self.used.begin();
        self.inbound.layer(inner)
    }
}

/// Makes a service for each connection that knows its peer; what [`HttpLayer::wrap`] makes.
#[derive(Debug, Clone)]
pub struct Wrapped<S> {
    #[cfg_attr(
        not(feature = "axum"),
        expect(dead_code, reason = "only axum makes services of it")
    )]
    layer: HttpLayer,
    #[cfg_attr(
        not(feature = "axum"),
        expect(dead_code, reason = "only axum makes services of it")
    )]
    service: S,
}

#[cfg(feature = "axum")]
impl<S> Service<axum::serve::IncomingStream<'_, MeshListener>> for Wrapped<S>
where
    S: Service<axum::extract::Request, Response = axum::response::Response, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = AxumService<S>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<AxumService<S>, Infallible>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, stream: axum::serve::IncomingStream<'_, MeshListener>) -> Self::Future {
        let context = stream.io().context().clone();
        let layer = self.layer.for_connection(context);
        std::future::ready(Ok(AxumService {
            inner: layer.layer(self.service.clone()),
        }))
    }
}

/// One connection's service, answering with axum's body.
#[cfg(feature = "axum")]
#[derive(Debug, Clone)]
pub struct AxumService<S> {
    inner: Inbound<S>,
}

#[cfg(feature = "axum")]
impl<S> Service<axum::extract::Request> for AxumService<S>
where
    S: Service<axum::extract::Request, Response = axum::response::Response, Error = Infallible>,
{
    type Response = axum::response::Response;
    type Error = Infallible;
    type Future = AxumFuture<<Inbound<S> as Service<axum::extract::Request>>::Future>;

    fn poll_ready(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        Service::<axum::extract::Request>::poll_ready(&mut self.inner, cx)
    }

    fn call(&mut self, request: axum::extract::Request) -> Self::Future {
        AxumFuture {
            inner: self.inner.call(request),
        }
    }
}

#[cfg(feature = "axum")]
pin_project_lite::pin_project! {
    /// The answer of one connection's service.
    #[derive(Debug)]
    pub struct AxumFuture<F> {
        #[pin]
        inner: F,
    }
}

#[cfg(feature = "axum")]
impl<F, B> Future for AxumFuture<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
    B: Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Output = Result<axum::response::Response, Infallible>;

    fn poll(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        self.project()
            .inner
            .poll(cx)
            .map_ok(|response| response.map(axum::body::Body::new))
    }
}

impl Mesh {
    /// Listens on a port for HTTP/1.1 and HTTP/2, gRPC included; each request is judged by the
    /// workload's policies in full, in the layer.
    ///
    /// Where configuration comes from a control plane, its inbound listener for the port is asked for,
    /// which has the policies whole; it is waited for at most the
    /// [policy wait](crate::Builder::policy_wait).
    ///
    /// Otherwise as [`listen`](Self::listen).
    ///
    /// # Errors
    ///
    /// As [`listen`](Self::listen).
    ///
    /// # Cancel safety
    ///
    /// As [`listen`](Self::listen).
    pub async fn listen_http(&self, port: u16) -> Result<HttpListener, Error> {
        let demanded = self.inner.demand_listener(port).await?;
        let mut listener = self.listen_judged(port, Judgement::PerRequest).await?;
        listener.keep(demanded);
        let observe = ObserveLayer::new(self.inner.node.inner.metrics.clone());
        // The listener labels each connection; see account::accounted.
        let observe = observe.label_with(ConnectionContext::labels_or_peer);
        let policies = self.inner.enforcement.follow(listener.local_addr().port());
        let inbound = InboundLayer::new(policies)
            .observe(observe)
            .leave(LeaveLayer::new(self));
        let used = LayerUse::default();
        listener.only_with(used.clone());
        Ok(HttpListener {
            listener,
            layer: HttpLayer { inbound, used },
        })
    }
}

impl HttpListener {
    /// Serves a tower service on hyper until a drain begins, then lets the live connections finish.
    ///
    /// `service` is cloned per connection and sees hyper's request bodies. One whose length its client did not say counts as
    /// nothing in `istio_request_bytes`, for nobody else can make such a body to count it: axum's and tonic's servers have
    /// bodies that are counted as they are read.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops accepting and drops the connections.
    pub async fn serve<S, B>(self, service: S)
    where
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Into<BoxError>,
        B: Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let Self {
            mut listener,
            layer,
        } = self;
        let mut server = auto::Builder::new(TokioExecutor::new());
        // Without a timer hyper keeps a connection that never finishes its headers for good.
        let limit = listener.header_timeout();
        server
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(limit);
        server.http2().timer(TokioTimer::new());
        let graceful = hyper_util::server::graceful::GracefulShutdown::new();
        let mut connections = tokio::task::JoinSet::new();
        while let Ok(stream) = listener.accept().await {
            let layer = layer.for_connection(stream.context().clone());
            let service = TowerToHyperService::new(layer.layer(service.clone()));
            let connection = server
                .serve_connection_with_upgrades(TokioIo::new(stream), service)
                .into_owned();
            let watched = graceful.watch(connection);
            connections.spawn(async move {
                if let Err(error) = watched.await {
                    tracing::debug!(target: "mesh::inbound", %error, "HTTP connection failed");
                }
            });
            while connections.try_join_next().is_some() {}
        }
        let noticed = listener.noticed();
        // What comes now is answered 503 rather than queued for nobody.
        drop(listener);
        noticed.await;
        graceful.shutdown().await;
    }
}
