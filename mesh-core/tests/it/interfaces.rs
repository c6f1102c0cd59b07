//! Each line is an interface that users of these libraries expect us to fit; it compiles or it does not.

use std::convert::Infallible;

use http::{Request, Response};
use mesh_core::layers::{
    AnswerLayer, AuthorizeLayer, DeadlineLayer, IdentifyLayer, InboundLayer, ObserveLayer,
    RefuseTokensLayer, RetryLayer, TimeoutLayer, TokenLocations,
};
use mesh_core::testing::Caller;
use mesh_core::{
    ConnectionContext, Mesh, MeshBody, MeshClient, MeshConnector, MeshListener, MeshStream, Node,
    Policies, authz::PolicySet, telemetry::Metrics,
};
use tower::{BoxError, Layer, Service};

use crate::handler::Handler;

fn shareable<T: Clone + Send + Sync + 'static>(value: T) -> T {
    value
}

/// tower: a layer, and its service, for a service and for one whose errors are boxed.
fn tower<L>(layer: L)
where
    L: Layer<Handler> + Clone + Send + Sync + 'static,
    L::Service: Service<Request<String>, Future: Send> + Clone + Send + Sync + 'static,
{
    let service = shareable(shareable(layer).layer(Handler::default()));
    drop(tower::ServiceBuilder::new().service(service));
}

/// axum: `Router::layer` takes what answers instead of failing.
fn axum<L>(layer: L)
where
    L: Layer<axum::routing::Route> + Clone + Send + Sync + 'static,
    L::Service: Service<
            axum::extract::Request,
            Response: axum::response::IntoResponse + 'static,
            Error: Into<Infallible> + 'static,
            Future: Send + 'static,
        > + Clone
        + Send
        + Sync
        + 'static,
{
    drop(axum::Router::<()>::new().layer(layer));
}

/// tonic: `Server::layer`, as far as the layer goes: the body is one that a server can send.
fn tonic<L, B>(layer: L)
where
    L: Layer<tonic::service::Routes> + Clone + Send + Sync + 'static,
    L::Service: Service<Request<tonic::body::Body>, Response = Response<B>, Future: Send + 'static>
        + Clone
        + Send
        + 'static,
    <L::Service as Service<Request<tonic::body::Body>>>::Error: Into<BoxError> + Send,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let addr = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let server = tonic::transport::Server::builder().layer(layer);
    let serve = { server }
        .add_routes(tonic::service::Routes::default())
        .serve(addr);
    drop(serve);
}

macro_rules! server_layers {
    ($check:ident) => {
        let policies = Policies::fixed(PolicySet::default());
        $check(IdentifyLayer::new());
        $check(AuthorizeLayer::new(PolicySet::default()));
        $check(AuthorizeLayer::live(policies.clone()));
        $check(RefuseTokensLayer::new(TokenLocations::istio_defaults()));
        $check(ObserveLayer::new(Metrics::new()));
        $check(InboundLayer::new(policies));
        $check(AnswerLayer::new());
        $check(TimeoutLayer::new(std::time::Duration::from_secs(1)));
    };
}

#[test]
fn servers_layers_fit_tower() {
    server_layers!(tower);
}

#[test]
fn clients_layers_fit_tower() {
    tower(DeadlineLayer::new(std::time::Duration::from_secs(1)));
    tower(RetryLayer::new());
}

#[test]
fn servers_layers_fit_axum() {
    server_layers!(axum);
}

#[tokio::test]
async fn servers_layers_fit_tonic() {
    server_layers!(tonic);
}

/// tonic: a generated client takes any such service as its channel.
#[test]
fn a_caller_fits_generated_clients() {
    fn channel<T: tonic::client::GrpcService<tonic::body::Body>>(_: T) {}
    channel(Caller::new(tonic::service::Routes::default()).into_service());
}

/// axum and tokio: what a listener is, and its streams are.
#[test]
fn listeners_and_streams_fit_servers() {
    use tokio::io::{AsyncRead, AsyncWrite};
    fn stream<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>() {}
    stream::<MeshStream>();
    // tonic: `serve_with_incoming`, but for `Connected`, which needs the feature.
    fn incoming<I, IO, IE>()
    where
        I: futures_util::Stream<Item = Result<IO, IE>> + Send + 'static,
        IE: Into<BoxError>,
    {
    }
    incoming::<MeshListener, MeshStream, std::io::Error>();
    shareable::<Option<Mesh>>(None);
    shareable::<Option<Node>>(None);
    shareable::<Option<ConnectionContext>>(None);
}

#[cfg(feature = "axum")]
#[test]
fn a_listener_fits_axum() {
    fn listener<L: axum::serve::Listener<Io = MeshStream>>() {}
    listener::<MeshListener>();
}

#[cfg(feature = "tonic")]
#[test]
fn a_stream_fits_tonic_s_servers() {
    fn connected<C: tonic::transport::server::Connected<ConnectInfo = ConnectionContext>>() {}
    connected::<MeshStream>();
}

/// hyper-util and tonic: `Client::builder(..).build(connector)`, `connect_with_connector`.
#[test]
fn the_connector_fits_clients_with_pools_of_their_own() {
    fn hyper<C: hyper_util::client::legacy::connect::Connect + Clone + Send + Sync + 'static>() {}
    hyper::<MeshConnector>();
    fn tonic<C>()
    where
        C: Service<http::Uri> + Send + 'static,
        C::Response: hyper::rt::Read + hyper::rt::Write + Send + Unpin,
        C::Future: Send,
        BoxError: From<C::Error> + Send,
    {
    }
    tonic::<MeshConnector>();
    fn connection<S: hyper_util::client::legacy::connect::Connection>() {}
    connection::<MeshStream>();
}

/// tower, tonic's generated clients, and kube: `Client::new(service, ..)`.
#[test]
fn the_client_fits_code_that_wants_a_service() {
    fn service<S, B>()
    where
        S: Service<Request<B>, Response = Response<MeshBody>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
    {
    }
    service::<MeshClient, http_body_util::Empty<bytes::Bytes>>();
    service::<MeshClient, axum::body::Body>();
    service::<MeshClient, tonic::body::Body>();
    fn channel<T: tonic::client::GrpcService<tonic::body::Body, ResponseBody = MeshBody>>()
    where
        <T::ResponseBody as http_body::Body>::Error: Into<BoxError> + Send,
    {
    }
    channel::<MeshClient>();
    fn body<B: http_body::Body<Data = bytes::Bytes> + Send + Unpin + 'static>()
    where
        B::Error: Into<BoxError>,
    {
    }
    body::<MeshBody>();
}

#[test]
fn errors_fit_everybody() {
    fn error<E: std::error::Error + Send + Sync + 'static + Into<BoxError>>() {}
    error::<mesh_core::Error>();
}
