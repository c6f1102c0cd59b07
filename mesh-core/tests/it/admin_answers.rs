//! Paths, methods and content types; and no question that ends it.

use std::time::Duration;

use http::{Method, Request, StatusCode};
use mesh_core::admin::Admin;
use mesh_core::authz::Identity;
use mesh_core::config::Fixed;
use mesh_core::identity::{CertificateSource, CertificateStream};
use mesh_core::{Mesh, Node};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::admin::{ask, get, node, read, send};
use crate::admin_explain::BOOKS;

/// Never has a certificate.
struct Nobody;

impl CertificateSource for Nobody {
    fn watch(&self, _: Identity) -> CertificateStream {
        Box::pin(tokio_stream::pending())
    }
}

#[tokio::test]
async fn readiness_names_what_is_pending() {
    let waiting = Node::builder().config(Fixed::new([])).identity(Nobody);
    let waiting = waiting.build_node().unwrap();
    let mesh = waiting.workload("shop", "store-1", "store").unwrap();
    let answer = get(&mesh.admin(), "/healthz/ready").await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    let certificate = "certificate of spiffe://cluster.local/ns/shop/sa/store";
    let expected = [
        format!("not ready, pending: {certificate}, configuration\n"),
        format!("not ready, pending: {certificate}\n"),
    ];
    assert!(expected.contains(&answer.text), "{}", answer.text);

    let node = node(Vec::new());
    let mesh = node.workload("shop", "store-1", "store").unwrap();
    mesh.ready().await.unwrap();
    let answer = get(&mesh.admin(), "/healthz/ready").await;
    assert_eq!((answer.status, &*answer.text), (StatusCode::OK, "ready\n"));
}

/// Who may ask on a port that others can reach learns nothing else.
#[tokio::test]
async fn a_port_of_one_page_has_no_other() {
    let node = node(Vec::new());
    let pages = [
        "/",
        "/config_dump",
        "/explain",
        "/healthz/ready",
        "/metrics",
        "/stats/prometheus",
    ];
    let mesh = node.workload("shop", "store-1", "store").unwrap();
    mesh.ready().await.unwrap();
    for (admin, there) in [
        (mesh.admin().readiness_only(), &pages[3..4]),
        (mesh.admin().metrics_only(), &pages[4..]),
    ] {
        for page in pages {
            let answer = get(&admin, page).await;
            let expected = match there.contains(&page) {
                true => StatusCode::OK,
                false => StatusCode::NOT_FOUND,
            };
            assert_eq!(answer.status, expected, "{page}");
        }
    }
}

#[tokio::test]
async fn metrics_are_open_metrics_text() {
    let node = node(Vec::new());
    let admin = node.admin();
    for path in ["/metrics", "/stats/prometheus"] {
        let answer = get(&admin, path).await;
        assert_eq!(answer.kind, "text/plain; charset=utf-8");
        assert!(answer.text.ends_with("# EOF\n"));
        let accept = "text/plain;q=0.5, Application/OpenMetrics-Text;version=1.0.0;q=0.7";
        let request = Request::get(path)
            .header("accept", accept)
            .body(())
            .unwrap();
        let answer = ask(&admin, request).await;
        let open = "application/openmetrics-text;charset=utf-8;version=1.0.0";
        assert_eq!(answer.kind, open);
        assert!(answer.text.contains("istio_build"));
    }
}

#[tokio::test]
async fn paths_and_methods() {
    let node = node(Vec::new());
    let admin = node.admin();
    let index = get(&admin, "/").await;
    assert_eq!(
        (index.status, &*index.kind),
        (StatusCode::OK, "text/html; charset=utf-8")
    );
    for path in [
        "/config_dump",
        "/explain",
        "/healthz/ready",
        "/metrics",
        "/stats/prometheus",
    ] {
        assert!(index.text.contains(&format!("href=\"{path}\"")), "{path}");
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            let answer = send(&admin, method, path).await;
            assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
            assert_eq!(answer.allow.as_deref(), Some("GET, HEAD"));
        }
    }
    for path in [
        "/nothing",
        "/config_dump/",
        "//config_dump",
        "/quitquitquit",
        "/logging",
    ] {
        assert_eq!(
            get(&admin, path).await.status,
            StatusCode::NOT_FOUND,
            "{path}"
        );
        let post = send(&admin, Method::POST, path).await;
        assert_eq!(post.status, StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test]
async fn it_does_not_keep_the_node() {
    let node = node(Vec::new());
    let admin = node.admin();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let serving = tokio::spawn(admin.clone().serve(listener));
    drop(node);
    serving.await.unwrap();
    let answer = get(&admin, "/config_dump").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
}

/// Sends bytes and reads what comes until the end.
async fn exchange(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn served(admin: Admin) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(admin.serve(listener));
    address
}

#[tokio::test]
async fn on_a_socket_it_answers_local_names_only() {
    let node = node(Vec::new());
    let address = served(node.admin()).await;
    let of = |host: &str| format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    let answer = exchange(address, &of("localhost:15000")).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let answer = exchange(address, &of("rebound.example")).await;
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{answer}");
}

#[tokio::test]
async fn so_many_connections_at_once() {
    let node = node(Vec::new());
    let address = served(node.admin().max_connections(1)).await;
    let mut first = TcpStream::connect(address).await.unwrap();
    let request = "GET /healthz/ready HTTP/1.1\r\nhost: localhost\r\n\r\n";
    first.write_all(request.as_bytes()).await.unwrap();
    assert!(first.read(&mut [0; 64]).await.unwrap() > 0);
    // The second waits until the first has gone.
    let close = "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let mut second = tokio::spawn(exchange(address, close));
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!second.is_finished());
    drop(first);
    let answer = (&mut second).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

/// Asks again and again on one connection and says how often, once the server has closed it or after `patience`.
async fn asked_until_closed(
    address: std::net::SocketAddr,
    patience: Duration,
    reads: bool,
) -> (u32, bool) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut asked = 0;
    let asks = async {
        let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n";
        let mut answer = vec![0; 64 * 1024];
        while stream.write_all(request.as_bytes()).await.is_ok() {
            asked += 1;
            if reads && !matches!(stream.read(&mut answer).await, Ok(1..)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let closed = tokio::time::timeout(patience, asks).await.is_ok();
    (asked, closed)
}

#[tokio::test]
async fn a_connection_lives_no_longer_than_set_whatever_it_does() {
    let node = node(Vec::new());
    let limit = Duration::from_millis(200);
    let bounded = served(node.admin().connection_timeout(limit)).await;
    let others = served(node.admin()).await;
    for reads in [true, false] {
        let patience = Duration::from_secs(30);
        let (asked, closed) = asked_until_closed(bounded, patience, reads).await;
        assert!(closed && asked > 1, "reads {reads}: {asked}");
        // It is not for what it did.
        let (asked, closed) = asked_until_closed(others, 3 * limit, reads).await;
        assert!(!closed && asked > 1, "reads {reads}: {asked}");
    }
}

#[tokio::test]
async fn a_head_may_have_16_kib() {
    let node = node(Vec::new());
    let address = served(node.admin()).await;
    let long = "a".repeat(17 * 1024);
    let request = format!("GET /?{long} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let answer = exchange(address, &request).await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
}

fn parameter() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        8 => prop::sample::select(vec![
            "to", "from", "source_ip", "method", "path", "host", "header", "connect", "workload", "format",
        ]).prop_map(str::to_owned),
        1 => "[ -~]{0,8}",
    ];
    let value = prop_oneof![
        prop::sample::select(vec![
            "9080",
            "0",
            "70000",
            "10.0.0.1:9080",
            "[::1]:9080",
            "plaintext",
            "spiffe://cluster.local/ns/default/sa/reviews",
            "default/ratings",
            "default/reviews",
            "GET",
            "/a/../b",
            "/%2500",
            "*",
            "x:y",
            "authorization:Bearer x",
            ":",
            "ratings:9080",
            "reviews.default.svc.cluster.local:80",
            "json",
            "text",
            "%",
            "%ff",
            "%00",
            "%0d%0a",
            "",
        ])
        .prop_map(str::to_owned),
        "[!-~]{0,24}",
    ];
    (name, value).prop_map(|(name, value)| format!("{name}={value}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(512)))]

    /// Whatever is asked is answered: 200, or 400 that names a parameter.
    #[test]
    fn every_question_has_an_answer(parameters in prop::collection::vec(parameter(), 0..6)) {
        let target = format!("/explain?{}", parameters.join("&"));
        // What is no URI does not get as far.
        let Ok(request) = Request::get(&target).body(()) else { return Ok(()) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answer = runtime.block_on(async {
            let node = node(read(BOOKS));
            let _reviews: Mesh = node.workload("default", "reviews", "reviews").unwrap();
            let ratings = node.workload("default", "ratings", "ratings").unwrap();
            ask(&ratings.admin(), request).await
        });
        match answer.status {
            StatusCode::OK => {}
            StatusCode::BAD_REQUEST => prop_assert!(answer.text.contains(": expected "), "{}", answer.text),
            other => prop_assert!(false, "{other}: {}", answer.text),
        }
    }
}
