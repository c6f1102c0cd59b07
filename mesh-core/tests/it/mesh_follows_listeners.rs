//! A port with a listener of the control plane's enforces that listener's policies.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{Empty, Full};
use mesh_core::Mesh;
use mesh_core::authz::matcher::{PathMatch, PathNormalization, StringMatch};
use mesh_core::authz::policy::{Action, Expr, Matcher, Policy, PolicyName, Rule};
use mesh_core::xds::model::{InboundListener, ResourceName, Update};
use tower::service_fn;

use crate::mesh_world::{PORT, World, echo, ping, policy};

fn only(matcher: Matcher) -> Vec<Arc<Policy>> {
    let name = PolicyName::new("default", "whole");
    let rules = vec![Rule::new(Expr::Is(matcher))];
    vec![Arc::new(Policy::new(name, Action::Allow, rules))]
}

fn below(path: &str) -> Matcher {
    Matcher::Path(PathMatch::String(StringMatch::Prefix(path.into())))
}

async fn serve(server: &Mesh) {
    let http = server.listen_http(PORT).await.unwrap();
    tokio::spawn(
        http.serve(service_fn(|_: Request<hyper::body::Incoming>| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
        })),
    );
}

async fn status(client: &Mesh, method: Method, path: &str) -> StatusCode {
    let uri = format!("http://server:9080{path}");
    let request = Request::builder().method(method).uri(uri);
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    match client.http_client().request(request).await {
        Ok(response) => response.status(),
        Err(error) => panic!("{error:?}"),
    }
}

/// Over xDS the L7 policy is an ALLOW without rules until the listener brings it whole.
#[tokio::test]
async fn requests_are_judged_by_the_listener() {
    let world = World::new(217);
    let (client, server) = world.pair().await;
    let address = SocketAddr::new(world.ip(2), PORT);
    let reduced = policy("whole", Action::Allow, Vec::new());
    let whole = InboundListener::new(
        address,
        only(Matcher::Method(StringMatch::Exact("GET".into()))),
    );
    world.control.set(vec![reduced, whole.into()]).await;
    serve(&server).await;
    assert_eq!(status(&client, Method::GET, "/").await, StatusCode::OK);
    assert_eq!(
        status(&client, Method::POST, "/").await,
        StatusCode::FORBIDDEN
    );

    // The layer lives on while listeners come.
    let posts = InboundListener::new(
        address,
        only(Matcher::Method(StringMatch::Exact("POST".into()))),
    );
    world.control.set(vec![posts.into()]).await;
    assert_eq!(
        status(&client, Method::GET, "/").await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(status(&client, Method::POST, "/").await, StatusCode::OK);
}

/// The listener comes after the application listens, and goes.
#[tokio::test]
async fn a_listener_that_comes_late_counts_and_one_that_goes_does_not() {
    let world = World::new(218);
    let (client, server) = world.pair().await;
    let address = SocketAddr::new(world.ip(2), PORT);
    serve(&server).await;
    assert_eq!(status(&client, Method::POST, "/").await, StatusCode::OK);
    let whole = InboundListener::new(
        address,
        only(Matcher::Method(StringMatch::Exact("GET".into()))),
    );
    world.control.set(vec![whole.into()]).await;
    assert_eq!(
        status(&client, Method::POST, "/").await,
        StatusCode::FORBIDDEN
    );
    let gone = vec![ResourceName::InboundListener(address)];
    world.control.apply(Vec::new(), gone).await;
    assert_eq!(status(&client, Method::POST, "/").await, StatusCode::OK);
}

#[tokio::test]
async fn the_listener_says_how_paths_are_normalised() {
    let world = World::new(219);
    let (client, server) = world.pair().await;
    let address = SocketAddr::new(world.ip(2), PORT);
    serve(&server).await;
    let listener = |normalization| -> Update {
        InboundListener::new(address, only(below("/open/")))
            .with_path_normalization(normalization)
            .into()
    };
    world
        .control
        .set(vec![listener(PathNormalization::Base)])
        .await;
    assert_eq!(
        status(&client, Method::GET, "//open/x").await,
        StatusCode::FORBIDDEN
    );
    world
        .control
        .set(vec![listener(PathNormalization::MergeSlashes)])
        .await;
    assert_eq!(
        status(&client, Method::GET, "//open/x").await,
        StatusCode::OK
    );
}

/// Live connections of a port are judged again by its listener, those of other ports are not.
#[tokio::test]
async fn live_connections_are_judged_again_port_by_port() {
    let world = World::new(220);
    let (client, server) = world.pair().await;
    let other = PORT + 1;
    for port in [PORT, other] {
        echo(server.listen(port).await.unwrap());
    }
    let address = SocketAddr::new(world.ip(2), PORT);
    let mut closed = client.connect(&address.to_string()).await.unwrap();
    let mut open = client
        .connect(&format!("{}:{other}", world.ip(2)))
        .await
        .unwrap();
    ping(&mut closed).await.unwrap();
    ping(&mut open).await.unwrap();
    let listener = InboundListener::closed_because(address, "nobody understands it");
    world.control.set(vec![listener.into()]).await;
    assert!(ping(&mut closed).await.is_err());
    ping(&mut open).await.unwrap();
    let refused = client.connect(&address.to_string()).await.unwrap_err();
    assert!(format!("{refused:?}").contains("401"), "{refused:?}");
}
