//! Servers that answer otherwise than a control plane should.

use std::convert::Infallible;

use futures_util::StreamExt;
use http::StatusCode;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::mpsc;

use super::client::{Silent, apply, batch, builder, delta_server, next, serve, start};
use super::*;
use crate::ads::Event;
use crate::error::ErrorKind;
use crate::transport::tests::Pipe;

/// A server of something else, which answers every request so, and tells of their paths.
fn web(status: StatusCode, page: &'static str) -> (Pipe, mpsc::UnboundedReceiver<String>) {
    let (pipe, mut connections, _) = Pipe::new();
    let (tell, asked) = mpsc::unbounded_channel();
    let answer = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        tell.send(request.uri().path().to_owned())
            .expect("the test goes on");
        let mut response = http::Response::new(page.to_owned());
        *response.status_mut() = status;
        async { Ok::<_, Infallible>(response) }
    });
    tokio::spawn(async move {
        while let Some(Ok(connection)) = connections.next().await {
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(connection), answer.clone()));
        }
    });
    (pipe, asked)
}

#[tokio::test(start_paused = true)]
async fn an_error_of_http_counts_whatever_its_page_says() {
    for (status, kind) in [
        (400, ErrorKind::Status),
        (401, ErrorKind::Unauthenticated),
        (403, ErrorKind::PermissionDenied),
        (404, ErrorKind::Unimplemented),
        (429, ErrorKind::Unavailable),
        (503, ErrorKind::Unavailable),
        (418, ErrorKind::Status),
    ] {
        for page in [
            "",
            "<html>What you look for is not here.</html>",
            "\0\0\0\0\0",
        ] {
            let (pipe, _asked) = web(StatusCode::from_u16(status).expect("a status"), page);
            let channel = builder().build(pipe).expect("settings");
            let (_client, mut events) = start(channel, settings(&[(URL, Interest::All)]));
            let Event::Disconnected(Some(error)) = next(&mut events).await else {
                panic!("{status}: an error");
            };
            assert_eq!(error.kind(), kind, "{status} {page:?}: {error}");
            assert!(
                error.to_string().contains(&format!("HTTP {status}")),
                "{error}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn where_delta_is_not_found_the_state_of_the_world_is_tried() {
    let (pipe, mut asked) = web(StatusCode::NOT_FOUND, "<html>not found</html>");
    let channel = builder().build(pipe).expect("settings");
    let (_client, mut events) = start(channel, settings(&[(URL, Interest::All)]));
    for method in ["DeltaAggregatedResources", "StreamAggregatedResources"] {
        let path = asked.recv().await.expect("a request");
        assert!(path.ends_with(method), "{path}");
        assert!(matches!(
            next(&mut events).await,
            Event::Disconnected(Some(_))
        ));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_not_answered_yet_is_opened_anew_when_asked_to() {
    let (tell, mut opened) = mpsc::unbounded_channel();
    let pipe = serve(Silent(tell));
    let channel = builder().build(pipe).expect("settings");
    let (client, mut events) = start(channel, settings(&[(URL, Interest::All)]));
    for _ in 0..2 {
        opened.recv().await.expect("a stream");
        client.reconnect().await.expect("a session");
        assert!(matches!(next(&mut events).await, Event::Disconnected(None)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_that_removes_more_than_it_may_is_refused_and_changes_nothing() {
    let (pipe, mut peers) = delta_server();
    let channel = builder().build(pipe).expect("settings");
    let settings = settings(&[(URL, Interest::All)]).with_max_removed(3);
    let (_client, mut events) = start(channel, settings);
    let mut peer = peers.recv().await.expect("a stream");
    peer.request().await;
    peer.answer("n1", vec![resource("a", "1", "x")], &["b", "c", "d"]);
    assert!(matches!(next(&mut events).await, Event::Connected));
    apply(batch(&mut events).await);
    assert!(matches!(next(&mut events).await, Event::Synced(_)));
    peer.request().await;
    // Two bytes each, where they are sent.
    peer.answer("n2", Vec::new(), &["a", "", "", ""]);
    let Event::Disconnected(Some(error)) = next(&mut events).await else {
        panic!("an error");
    };
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert_eq!(
        error.to_string(),
        "a response: it removes 4 resources, expected at most 3"
    );
    let mut peer = peers.recv().await.expect("another stream");
    let versions = peer.request().await.initial_resource_versions;
    assert_eq!(versions.into_keys().collect::<Vec<_>>(), ["a"]);
}
