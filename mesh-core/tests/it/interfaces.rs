//! Each line is an interface that users of these libraries expect us to fit; it compiles or it does not.

use std::convert::Infallible;

use http::{Request, Response};
use mesh_core::layers::{
    AnswerLayer, AuthorizeLayer, DeadlineLayer, IdentifyLayer, InboundLayer, ObserveLayer,
    RefuseTokensLayer, RetryLayer, TimeoutLayer, TokenLocations,
};
use mesh_core::testing::Caller;
use mesh_core::{Policies, authz::PolicySet, telemetry::Metrics};
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

#[test]
fn errors_fit_everybody() {
    fn error<E: std::error::Error + Send + Sync + 'static + Into<BoxError>>() {}
    error::<mesh_core::Error>();
}
