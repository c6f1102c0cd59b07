//! What CONNECT says, and how it is answered.

use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use mesh_hbone::client::{self, ConnectRequest};
use mesh_hbone::config::Config;
use mesh_hbone::headers::{Baggage, ConnectHeaders, Forwarded, TraceParent};
use mesh_hbone::{ErrorKind, Side};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::time::{Instant, sleep};

use crate::peers::{against_bare_client, against_bare_server, answer, connect, ours, request};

fn headers() -> ConnectHeaders {
    let baggage = Baggage::default()
        .with_namespace("default")
        .with_workload("deployment", "web");
    let forwarded = Forwarded::new("10.0.0.1:4321".parse().unwrap())
        .with_host("reviews.default.svc.cluster.local");
    ConnectHeaders::new(baggage, forwarded, TraceParent::from_random([1, 2, 3]))
}

#[tokio::test]
async fn a_connect_is_method_authority_and_three_headers() {
    let (sender, mut seen) = against_bare_server(Config::default()).await;
    let asked = ConnectRequest::new("[2001:db8::7]:9080".parse().unwrap(), headers());
    let check = async {
        let (request, mut respond) = seen.recv().await.unwrap();
        assert_eq!(request.method(), Method::CONNECT);
        assert_eq!(request.uri(), "[2001:db8::7]:9080");
        assert_eq!(request.uri().scheme(), None);
        assert_eq!(request.uri().path_and_query(), None);
        let mut read: Vec<_> = request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        read.sort_unstable();
        assert_eq!(
            read,
            [
                (
                    "baggage",
                    "k8s.namespace.name=default,k8s.deployment.name=web"
                ),
                (
                    "forwarded",
                    "for=\"10.0.0.1:4321\";host=reviews.default.svc.cluster.local"
                ),
                (
                    "traceparent",
                    "00-00000000000000010000000000000002-0000000000000003-00"
                ),
            ]
        );
        assert!(!request.body().is_end_stream());
        let response = Response::builder()
            .header("baggage", "service.name=reviews")
            .body(())
            .unwrap();
        respond.send_response(response, false).unwrap()
    };
    let (opened, _send) = tokio::join!(sender.connect(asked), check);
    let (_tunnel, response) = opened.unwrap();
    assert_eq!(
        response.baggage().unwrap().canonical_name(),
        Some("reviews")
    );
}

#[tokio::test]
async fn the_server_reads_what_the_client_wrote_and_describes_itself() {
    let (sender, mut incoming) = ours(Config::default()).await;
    let asked = ConnectRequest::new("reviews.default.svc:9080".parse().unwrap(), headers());
    let accept = async {
        let incoming = incoming.recv().await.unwrap();
        assert_eq!(incoming.authority().hostname(), Some("reviews.default.svc"));
        assert_eq!(*incoming.headers(), headers());
        incoming
            .accept(Baggage::default().with_cluster("c"))
            .unwrap()
    };
    let (opened, _tunnel) = tokio::join!(sender.connect(asked), accept);
    assert_eq!(opened.unwrap().1.baggage().unwrap().cluster(), Some("c"));
}

#[tokio::test]
async fn an_answer_says_nothing_but_the_baggage() {
    let (mut send, mut incoming) = against_bare_client(Config::default()).await;
    for (baggage, expected) in [(Some(Baggage::default().with_zone("z")), 1), (None, 0)] {
        let accept = async { incoming.recv().await.unwrap().accept(baggage).unwrap() };
        let (answer, _tunnel) = tokio::join!(answer(&mut send, connect("10.0.0.7:80")), accept);
        let (status, headers) = answer.unwrap();
        assert_eq!((status, headers.len()), (StatusCode::OK, expected));
    }
}

#[tokio::test]
async fn what_asks_for_no_tunnel_is_answered_400_and_never_seen() {
    let (mut send, mut incoming) = against_bare_client(Config::default()).await;
    let get = Request::builder()
        .uri("http://10.0.0.7:80/")
        .body(())
        .unwrap();
    let post = Request::builder()
        .method(Method::POST)
        .uri("http://10.0.0.7:80/")
        .body(())
        .unwrap();
    let mut bad = vec![get, post];
    bad.extend(
        [
            "10.0.0.7",
            "reviews",
            "reviews:0",
            "[::1]",
            "user@10.0.0.7:80",
            "10.0.1:80",
        ]
        .map(connect),
    );
    bad.push(connect(&format!("{}.example:80", "a.".repeat(130))));
    for request in bad {
        let shown = format!("{} {}", request.method(), request.uri());
        let (status, headers) = answer(&mut send, request).await.unwrap();
        assert_eq!(
            (status, headers.len()),
            (StatusCode::BAD_REQUEST, 0),
            "{shown}"
        );
    }
    assert!(incoming.try_recv().is_err());
}

#[tokio::test]
async fn a_refusal_is_an_error_with_its_status() {
    for status in [400, 401, 403, 503].map(|code| StatusCode::from_u16(code).unwrap()) {
        let (sender, mut incoming) = ours(Config::default()).await;
        let refuse = async { incoming.recv().await.unwrap().refuse(status) };
        let (opened, ()) = tokio::join!(sender.connect(request("10.0.0.7:80")), refuse);
        let error = opened.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectRefused(status));
        assert_eq!(
            (error.status(), error.side()),
            (Some(status), Side::Upstream)
        );
        assert!(!error.is_retry_safe());
        assert_eq!(sender.live_streams(), 0);
    }
}

#[tokio::test]
async fn an_incoming_that_is_forgotten_is_answered_503() {
    let (sender, mut incoming) = ours(Config::default()).await;
    let forget = async { drop(incoming.recv().await.unwrap()) };
    let (opened, ()) = tokio::join!(sender.connect(request("10.0.0.7:80")), forget);
    assert_eq!(
        opened.unwrap_err().status(),
        Some(StatusCode::SERVICE_UNAVAILABLE)
    );
}

#[tokio::test]
async fn a_204_opens_no_tunnel() {
    let (sender, mut seen) = against_bare_server(Config::default()).await;
    let respond = async {
        let (_request, mut respond) = seen.recv().await.unwrap();
        let response = Response::builder().status(204).body(()).unwrap();
        respond.send_response(response, false).unwrap()
    };
    let (opened, _send) = tokio::join!(sender.connect(request("10.0.0.7:80")), respond);
    assert_eq!(opened.unwrap_err().status(), Some(StatusCode::NO_CONTENT));
}

#[tokio::test]
async fn a_refused_stream_may_be_tried_again_and_another_reset_may_not() {
    for (reason, safe) in [
        (h2::Reason::REFUSED_STREAM, true),
        (h2::Reason::CANCEL, false),
        (h2::Reason::INTERNAL_ERROR, false),
        (h2::Reason::NO_ERROR, false),
    ] {
        let (sender, mut seen) = against_bare_server(Config::default()).await;
        let reset = async { seen.recv().await.unwrap().1.send_reset(reason) };
        let (opened, ()) = tokio::join!(sender.connect(request("10.0.0.7:80")), reset);
        let error = opened.unwrap_err();
        assert_eq!(
            (error.kind(), error.is_retry_safe()),
            (ErrorKind::Reset, safe),
            "{reason:?}"
        );
    }
}

#[tokio::test]
async fn a_tunnel_too_many_is_refused_and_its_place_comes_back() {
    let (sender, mut incoming) = ours(Config::default().max_outgoing_streams(1)).await;
    let accept = async { incoming.recv().await.unwrap().accept(None).unwrap() };
    let (opened, _far) = tokio::join!(sender.connect(request("10.0.0.7:80")), accept);
    assert_eq!((sender.live_streams(), sender.available_streams()), (1, 0));
    let error = sender.connect(request("10.0.0.7:80")).await.unwrap_err();
    assert!(error.is_overloaded() && error.is_retry_safe());
    drop(opened);
    assert_eq!((sender.live_streams(), sender.available_streams()), (0, 1));
}

#[tokio::test]
async fn the_peers_limit_counts() {
    let server = Config::default().max_incoming_streams(3);
    let (sender, _incoming) = crate::peers::ours_over(Config::default(), server, 1 << 16).await;
    assert_eq!(sender.max_streams(), 3);
}

#[tokio::test(start_paused = true)]
async fn no_answer_to_a_connect_is_a_timeout() {
    let (sender, mut incoming) =
        ours(Config::default().connect_timeout(Duration::from_secs(3))).await;
    let start = Instant::now();
    let error = sender.connect(request("10.0.0.7:80")).await.unwrap_err();
    assert!(error.is_timeout() && !error.is_retry_safe());
    assert_eq!(start.elapsed(), Duration::from_secs(3));
    assert_eq!(sender.live_streams(), 0);
    // The server sees that nobody waits any more.
    let incoming = incoming.recv().await.unwrap();
    sleep(Duration::from_millis(1)).await;
    assert!(incoming.accept(None).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_says_nothing_times_out_the_handshake() {
    let start = Instant::now();
    let (near, _far) = duplex(1 << 16);
    let error = client::handshake(near, &Config::default())
        .await
        .unwrap_err();
    assert!(error.is_timeout() && error.is_retry_safe());
    assert_eq!(start.elapsed(), Duration::from_secs(10));

    let (_near, far) = duplex(1 << 16);
    let mut connection = mesh_hbone::server::handshake(far, &Config::default());
    assert!(connection.accept().await.unwrap().unwrap_err().is_timeout());
    assert!(connection.accept().await.is_none());
    assert_eq!(start.elapsed(), Duration::from_secs(20));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_asks_is_let_go() {
    let (near, far) = duplex(1 << 16);
    let (_send, connection) = h2::client::handshake(near).await.unwrap();
    tokio::spawn(async move { connection.await.ok() });
    let start = Instant::now();
    let config = Config::default().first_connect_timeout(Duration::from_secs(4));
    let mut connection = mesh_hbone::server::handshake(far, &config);
    assert!(connection.accept().await.unwrap().unwrap_err().is_timeout());
    assert_eq!(start.elapsed(), Duration::from_secs(4));
}

/// CVE-2024-53270: a CONNECT that was reset can still be refused, or taken, as whoever is overloaded does.
#[tokio::test(start_paused = true)]
async fn whoever_has_gone_meanwhile_is_refused_without_harm() {
    let (sender, mut incoming) = ours(Config::default()).await;
    for refuses in [true, false] {
        let asks = {
            let sender = sender.clone();
            tokio::spawn(async move { sender.connect(request("10.0.0.7:80")).await.map(drop) })
        };
        let gone = incoming.recv().await.unwrap();
        asks.abort();
        assert!(asks.await.unwrap_err().is_cancelled());
        // Its reset is here.
        sleep(Duration::from_secs(1)).await;
        match refuses {
            true => gone.refuse(StatusCode::SERVICE_UNAVAILABLE),
            false => assert!(gone.accept(None).is_err()),
        }
        let accept = async { incoming.recv().await.unwrap().accept(None).unwrap() };
        let (opened, _tunnel) = tokio::join!(sender.connect(request("10.0.0.7:80")), accept);
        opened.unwrap();
        assert_eq!(sender.live_streams(), 0);
    }
}

/// S-09, CVE-2025-64763, CVE-2024-23326, CVE-2026-2833.
#[tokio::test]
async fn bytes_after_a_connect_wait_for_the_decision() {
    let (mut send, mut incoming) = against_bare_client(Config::default()).await;
    let (response, mut body) = send.send_request(connect("10.0.0.7:80"), false).unwrap();
    body.send_data("early".into(), true).unwrap();
    let incoming = incoming.recv().await.unwrap();
    let mut tunnel = incoming.accept(Baggage::default()).unwrap();
    assert_eq!(response.await.unwrap().status(), StatusCode::OK);
    let mut read = String::new();
    tunnel.read_to_string(&mut read).await.unwrap();
    assert_eq!(read, "early");
    tunnel.shutdown().await.unwrap();
}
