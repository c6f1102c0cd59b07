//! HTTP through the mesh: the client, its connections, the connector, and listeners that judge requests.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Version};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper_util::rt::TokioExecutor;
use mesh_core::authz::matcher::PathNormalization;
use mesh_core::authz::policy::Action;
use mesh_core::{Error, ErrorKind, Mesh, MeshBody, MeshListener};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::service_fn;

use crate::handler::{from, to};
use crate::layers_logs::capture;
use crate::mesh_world::{PORT, World, caller, policy};

const URI: &str = "http://server:9080/path";

fn get() -> Request<Empty<Bytes>> {
    Request::get(URI).body(Empty::new()).unwrap()
}

async fn text(response: Response<MeshBody>) -> Result<String, Error> {
    let body = response.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8(body.to_vec()).unwrap())
}

/// Serves HTTP/1.1 by hand: `answer` to each request, and an end after `per_connection` of them.
pub(crate) fn by_hand(
    mut listener: MeshListener,
    answer: &'static [u8],
    per_connection: usize,
) -> Arc<AtomicUsize> {
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    tokio::spawn(async move {
        while let Ok(mut stream) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                for _ in 0..per_connection {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let mut byte = [0; 1];
                        match stream.read(&mut byte).await {
                            Ok(1) => head.push(byte[0]),
                            _ => return,
                        }
                    }
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
                let _ = stream.shutdown().await;
            });
        }
    });
    accepted
}

pub(crate) const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn requests_share_a_connection() {
    let world = World::new(90);
    let (client, server) = world.pair().await;
    let accepted = by_hand(server.listen(PORT).await.unwrap(), OK, usize::MAX);
    for _ in 0..20 {
        assert_eq!(
            text(client.http_client().request(get()).await.unwrap())
                .await
                .unwrap(),
            "ok"
        );
    }
    assert_eq!(accepted.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_server_that_closes_idle_connections_fails_no_request() {
    let world = World::with(91, |node| node.connect_attempts(1));
    let (client, server) = world.pair().await;
    let accepted = by_hand(server.listen(PORT).await.unwrap(), OK, 1);
    for _ in 0..20 {
        assert_eq!(
            text(client.http_client().request(get()).await.unwrap())
                .await
                .unwrap(),
            "ok"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(accepted.load(Ordering::Relaxed), 20);
}

#[tokio::test]
async fn a_body_that_is_given_up_costs_its_connection_and_nothing_else() {
    let world = World::new(92);
    let (client, server) = world.pair().await;
    let long = b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nbegins";
    let accepted = by_hand(server.listen(PORT).await.unwrap(), long, 1);
    for _ in 0..3 {
        let response = client.http_client().request(get()).await.unwrap();
        let mut body = response.into_body();
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first, "begins");
        drop(body);
    }
    assert_eq!(accepted.load(Ordering::Relaxed), 3);
    // Read to where it breaks off, it is an error and not a short body.
    let response = client.http_client().request(get()).await.unwrap();
    let error = text(response).await.unwrap_err();
    assert!(!error.is_retry_safe(), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_without_an_answer_ends_with_its_time_out() {
    // Sockets and paused time do not go together: the mesh of this test is in memory.
    let transport = mesh_core::Transport::new(
        |_| std::future::pending(),
        |_| std::future::ready(Err(std::io::ErrorKind::Unsupported.into())),
    );
    let world = World::with(93, |node| {
        node.transport(transport)
            .request_timeout(Some(Duration::from_secs(3)))
    });
    let (client, _) = world.pair().await;
    let began = tokio::time::Instant::now();
    let error = client.http_client().request(get()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RequestTimeout);
    assert_eq!(error.reply().status(), 504);
    assert_eq!(began.elapsed().as_secs(), 3);
}

/// Says who asked.
async fn serve(server: &Mesh) -> tokio::task::JoinHandle<()> {
    let http = server.listen_http(PORT).await.unwrap();
    tokio::spawn(http.serve(service_fn(
        |request: Request<hyper::body::Incoming>| async move {
            let context = request
                .extensions()
                .get::<mesh_core::ConnectionContext>()
                .unwrap();
            let who = context.identity().map(ToString::to_string);
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(
                who.unwrap_or_default(),
            ))))
        },
    )))
}

#[tokio::test]
async fn a_connection_is_admitted_if_some_request_may_be_and_each_is_judged() {
    let world = World::new(94);
    let (client, server) = world.pair().await;
    serve(&server).await;
    let mut rule = to(|operation| operation.methods = vec!["GET".into()]);
    rule.from = caller("client").from;
    world
        .control
        .set(vec![policy("get", Action::Allow, vec![rule])])
        .await;
    let response = client.http_client().request(get()).await.unwrap();
    assert_eq!(text(response).await.unwrap(), client.identity().to_string());
    let mut post = get();
    *post.method_mut() = Method::POST;
    let response = client.http_client().request(post).await.unwrap();
    assert_eq!(response.status(), 403);
    assert_eq!(text(response).await.unwrap(), "RBAC: access denied");
    // No request of anybody else may be allowed: refused before HTTP.
    world
        .control
        .set(vec![world.workload("other", 3).into()])
        .await;
    let error = world
        .mesh("other")
        .http_client()
        .request(get())
        .await
        .unwrap_err();
    assert!(error.is_denied(), "{error:?}");
}

/// Whose policies compare the client that a proxy in front of the application names.
#[tokio::test]
async fn a_listeners_layer_reads_paths_and_proxies_as_set() {
    let world = World::new(187);
    let (client, server) = world.pair().await;
    let rule = from(|source| source.remote_ip_blocks = vec!["203.0.113.0/24".into()]);
    let rule = policy("behind-a-proxy", Action::Allow, vec![rule]);
    world.control.set(vec![rule]).await;
    let http = server.listen_http(PORT).await.unwrap();
    let layer = http.layer.path_normalization(PathNormalization::None);
    let layer = layer.trusted_hops(1);
    let app = axum::Router::new().fallback(|uri: http::Uri| async move { uri.path().to_owned() });
    tokio::spawn(axum::serve(http.listener, layer.wrap(app)).into_future());
    for (remote, status) in [("203.0.113.9", 200), ("192.0.2.9", 403)] {
        let request = Request::get("http://server:9080/a/../b").header("x-forwarded-for", remote);
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let response = client.http_client().request(request).await.unwrap();
        assert_eq!(response.status(), status);
        if status == 200 {
            assert_eq!(text(response).await.unwrap(), "/a/../b", "as it came");
        }
    }
}

#[tokio::test]
async fn http_2_with_prior_knowledge_carries_trailers() {
    let world = World::new(95);
    let (client, server) = world.pair().await;
    let http = server.listen_http(PORT).await.unwrap();
    tokio::spawn(http.serve(service_fn(
        |request: Request<hyper::body::Incoming>| async move {
            assert_eq!(request.version(), Version::HTTP_2);
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            let frames = [
                Ok::<_, Infallible>(http_body::Frame::data(Bytes::from_static(b"data"))),
                Ok(http_body::Frame::trailers(trailers)),
            ];
            let response = Response::builder().header("content-type", "application/grpc");
            let body = StreamBody::new(futures_util::stream::iter(frames));
            Ok::<_, Infallible>(response.body(body).unwrap())
        },
    )));
    for _ in 0..3 {
        let mut request = get();
        *request.version_mut() = Version::HTTP_2;
        let response = client.http_client().request(request).await.unwrap();
        assert_eq!(response.version(), Version::HTTP_2);
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(body.to_bytes(), "data");
    }
}

#[tokio::test]
async fn the_connector_fits_hyper_util_and_tonic() {
    let world = World::new(96);
    let (client, server) = world.pair().await;
    serve(&server).await;
    let hyper = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .build::<_, Empty<Bytes>>(client.connector());
    let response = hyper.request(get()).await.unwrap();
    let context = response
        .extensions()
        .get::<mesh_core::ConnectionContext>()
        .unwrap();
    assert_eq!(context.identity(), Some(&server.identity()));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, client.identity().to_string());

    let endpoint = tonic::transport::Endpoint::from_static("http://server:9080");
    endpoint
        .connect_with_connector(client.connector())
        .await
        .unwrap();
    let lost = tonic::transport::Endpoint::from_static("http://server:9081");
    lost.connect_with_connector(client.connector())
        .await
        .unwrap_err();
}

#[tokio::test]
async fn an_endpoint_that_is_gone_fails_no_request_while_another_is_there() {
    let world = World::new(97);
    let (client, server) = world.pair().await;
    let gone = world
        .workload("gone", 5)
        .with_services(world.workload("server", 2).services().to_vec());
    world.control.set(vec![gone.into()]).await;
    serve(&server).await;
    for _ in 0..20 {
        let response = client.http_client().request(get()).await.unwrap();
        assert_eq!(response.status(), 200);
    }
}

#[tokio::test]
async fn a_drained_server_ends_idle_connections_cleanly() {
    let (lines, _guard) = capture("mesh=debug");
    let world = World::new(98);
    let (client, server) = world.pair().await;
    let serving = serve(&server).await;
    let hyper = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .build::<_, Empty<Bytes>>(client.connector());
    let response = hyper.request(get()).await.unwrap();
    response.into_body().collect().await.unwrap();
    text(client.http_client().request(get()).await.unwrap())
        .await
        .unwrap();
    let drained = server.shutdown(Duration::from_secs(5)).await;
    assert_eq!((drained.finished(), drained.cut()), (2, 0));
    serving.await.unwrap();
    // The client's ends are closed by now or soon.
    crate::mesh_world::until("the connection is reported", || {
        lines.text().contains("connection complete")
    })
    .await;
    assert!(!lines.text().contains("ERROR"), "{}", lines.text());
}

#[tokio::test]
async fn a_client_that_says_nothing_is_let_go() {
    let world = World::with(99, |node| node.header_timeout(Duration::from_millis(40)));
    let (client, server) = world.pair().await;
    serve(&server).await;
    for begin in ["", "GET / HTTP/1.1\r\nhost: x\r\n"] {
        let mut stream = client.connect("server:9080").await.unwrap();
        stream.write_all(begin.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let ended =
            tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "still open after {begin:?}");
    }
}
