use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use mesh_core::authz::policy::Action;
use mesh_core::layers::{InboundLayer, ObserveLayer};
use mesh_core::telemetry::{Labels, Metrics, Peer, Reporter, SecurityPolicy};
use mesh_core::{Error, ErrorKind, Policies};
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::handler::{Handler, REVIEWS, get, grpc, plaintext, policy, tunnel};
use crate::layers_logs::capture;

/// The lines of `istio_requests_total`.
fn counted(metrics: &Metrics) -> Vec<String> {
    metrics
        .encode()
        .lines()
        .filter(|line| line.starts_with("istio_requests_total{"))
        .map(str::to_owned)
        .collect()
}

#[track_caller]
fn one(metrics: &Metrics, labels: &[&str]) {
    let lines = counted(metrics);
    let [line] = &lines[..] else {
        panic!("one series, not {lines:#?}");
    };
    assert!(line.ends_with(" 1"), "{line}");
    for label in labels {
        assert!(line.contains(label), "{label} in {line}");
    }
}

fn observed<S>(metrics: &Metrics, inner: S) -> mesh_core::layers::Observe<S> {
    ObserveLayer::new(metrics.clone())
        .for_connection(&tunnel())
        .layer(inner)
}

#[tokio::test]
async fn a_request_counts_when_its_response_has_ended() {
    let metrics = Metrics::new();
    let service = observed(&metrics, Handler::default());
    let response = service.oneshot(get("/")).await.unwrap();
    assert!(counted(&metrics).is_empty());
    response.into_body().collect().await.unwrap();
    let principal = format!("source_principal=\"{REVIEWS}\"");
    one(
        &metrics,
        &[
            "reporter=\"destination\"",
            "response_code=\"200\"",
            "response_flags=\"-\"",
            "request_protocol=\"http\"",
            "connection_security_policy=\"mutual_tls\"",
            &principal,
        ],
    );
}

fn labels(app: &str) -> Labels {
    let own = Peer::new(app, "default").with_app(app).with_version("v7");
    Labels::new(
        Reporter::Destination,
        Peer::unknown(),
        own,
        None,
        SecurityPolicy::Unknown,
    )
}

#[tokio::test]
async fn labels_that_are_set_win_over_those_that_are_made_of_a_connection() {
    let label_with = |layer: ObserveLayer| layer.label_with(|_| labels("made"));
    for (set, expected) in [(false, "made"), (true, "set")] {
        let metrics = Metrics::new();
        let mut layer = label_with(ObserveLayer::new(metrics.clone()));
        if set {
            layer = layer.labels(labels("set"));
        }
        let service = layer.for_connection(&tunnel()).layer(Handler::default());
        let response = service.oneshot(get("/")).await.unwrap();
        response.into_body().collect().await.unwrap();
        let app = format!("destination_app=\"{expected}\"");
        one(&metrics, &[&app, "destination_version=\"v7\""]);
    }
}

#[tokio::test]
async fn the_ends_that_are_set_are_logged() {
    let (lines, _guard) = capture("mesh::access=info");
    let [source, destination] = ["10.9.8.7:1000", "10.9.8.6:80"].map(|end| end.parse().unwrap());
    let layer = ObserveLayer::log_only().ends(source, destination);
    let layer = layer.labels(labels("own"));
    let response = layer.layer(Handler::default()).oneshot(get("/")).await;
    response.unwrap().into_body().collect().await.unwrap();
    lines.has(&["src.addr=10.9.8.7:1000", "10.9.8.6:80"]);
}

#[tokio::test]
async fn a_refusal_counts_too() {
    let metrics = Metrics::new();
    let service = InboundLayer::new(Policies::fixed(policy(Action::Allow, vec![])))
        .observe(ObserveLayer::new(metrics.clone()))
        .for_connection(plaintext())
        .layer(Handler::default());
    let response = service.oneshot(get("http://h/")).await.unwrap();
    drop(response.into_body().collect().await);
    one(
        &metrics,
        &["response_code=\"403\"", "source_principal=\"unknown\""],
    );
}

#[tokio::test]
async fn trailers_tell_the_grpc_status() {
    let metrics = Metrics::new();
    let service = service_fn(async |_: Request<String>| {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", 5.into());
        let frames = [
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x"))),
            Ok(Frame::trailers(trailers)),
        ];
        Ok::<_, Infallible>(Response::new(StreamBody::new(stream::iter(frames))))
    });
    let response = observed(&metrics, service)
        .oneshot(grpc("/"))
        .await
        .unwrap();
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        let trailers = frame.unwrap().is_trailers();
        if trailers {
            // A server asks for nothing more after them.
            break;
        }
    }
    drop(body);
    one(
        &metrics,
        &[
            "grpc_response_status=\"5\"",
            "request_protocol=\"grpc\"",
            "response_flags=\"-\"",
        ],
    );
}

#[tokio::test]
async fn a_client_that_goes_away_early_is_flagged() {
    // Before the response:
    let metrics = Metrics::new();
    let silent = service_fn(|_: Request<String>| pending::<Result<Response<String>, Infallible>>());
    let mut service = observed(&metrics, silent);
    let future = service.ready().await.unwrap().call(get("/"));
    drop(future);
    one(&metrics, &["response_code=\"0\"", "response_flags=\"DC\""]);

    // In the middle of it:
    let metrics = Metrics::new();
    let endless = service_fn(async |_: Request<String>| {
        let frames =
            stream::repeat_with(|| Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x"))));
        Ok::<_, Infallible>(Response::new(StreamBody::new(frames)))
    });
    let response = observed(&metrics, endless).oneshot(get("/")).await.unwrap();
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    one(
        &metrics,
        &["response_code=\"200\"", "response_flags=\"DC\""],
    );
}

/// A server does not poll a body for its end when it knows that it has sent it all.
#[tokio::test]
async fn a_response_that_was_sent_whole_is_not_flagged() {
    let metrics = Metrics::new();
    let sized = service_fn(async |_: Request<String>| {
        let frames = stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from_static(
            b"four",
        )))]);
        let response = Response::builder().header("content-length", 4);
        Ok::<_, Infallible>(response.body(StreamBody::new(frames)).unwrap())
    });
    let response = observed(&metrics, sized).oneshot(get("/")).await.unwrap();
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    one(&metrics, &["response_code=\"200\"", "response_flags=\"-\""]);

    // Nor does it poll one that is not sent at all.
    let metrics = Metrics::new();
    let mut request = get("/");
    *request.method_mut() = http::Method::HEAD;
    let service = observed(&metrics, Handler::default());
    drop(service.oneshot(request).await.unwrap());
    one(&metrics, &["response_code=\"200\"", "response_flags=\"-\""]);
}

#[tokio::test]
async fn a_failure_is_flagged_by_the_one_table() {
    let metrics = Metrics::new();
    let failing = service_fn(async |_: Request<String>| {
        Err::<Response<String>, _>(Error::new(ErrorKind::NoHealthyUpstream))
    });
    let service = observed(&metrics, failing);
    service.oneshot(get("/")).await.unwrap_err();
    one(
        &metrics,
        &["response_code=\"503\"", "response_flags=\"UH\""],
    );

    let metrics = Metrics::new();
    let breaks = service_fn(async |_: Request<String>| {
        let frames = stream::iter([Err::<Frame<Bytes>, _>(Error::new(ErrorKind::Io))]);
        Ok::<_, Infallible>(Response::new(StreamBody::new(frames)))
    });
    let response = observed(&metrics, breaks).oneshot(get("/")).await.unwrap();
    let mut body = response.into_body();
    assert!(body.frame().await.unwrap().is_err());
    drop(body);
    one(
        &metrics,
        &["response_code=\"200\"", "response_flags=\"UC\""],
    );
}

#[tokio::test(start_paused = true)]
async fn the_duration_is_that_of_the_whole_response() {
    let metrics = Metrics::new();
    let slow = service_fn(async |_: Request<String>| {
        tokio::time::sleep(Duration::from_millis(70)).await;
        Ok::<_, Infallible>(Response::new("ok".to_owned()))
    });
    let response = observed(&metrics, slow).oneshot(get("/")).await.unwrap();
    tokio::time::advance(Duration::from_millis(200)).await;
    response.into_body().collect().await.unwrap();
    let text = metrics.encode();
    let bucket = |bound: &str| {
        let line = text
            .lines()
            .find(|line| line.contains("milliseconds_bucket") && line.contains(bound))
            .unwrap_or_else(|| panic!("{bound} in {text}"));
        line.rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!(bucket("le=\"250.0\""), "0");
    assert_eq!(bucket("le=\"500.0\""), "1");
}

#[tokio::test]
async fn a_trace_passes_through() {
    let handler = Handler::default();
    let service = InboundLayer::new(Policies::fixed(Default::default()))
        .observe(ObserveLayer::new(Metrics::new()))
        .for_connection(tunnel())
        .layer(handler.clone());
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut request = get("http://h/");
    let headers = request.headers_mut();
    headers.insert("traceparent", parent.parse().unwrap());
    headers.insert("tracestate", "a=b".parse().unwrap());
    service.oneshot(request).await.unwrap();
    let head = handler.last();
    assert_eq!(head.headers["traceparent"], parent);
    assert_eq!(head.headers["tracestate"], "a=b");
}

/// The sum of a histogram.
fn sum(metrics: &Metrics, name: &str) -> u64 {
    let text = metrics.encode();
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("{name}_sum{{")));
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap() as u64
}

/// `:method`, `:scheme`, `:authority` and `:path` of `GET http://h/`; `:status` of an answer.
const HEAD: u64 = 29 + 3 + 4 + 1 + 1;
const STATUS: u64 = 7 + 3;

#[tokio::test]
async fn sizes_are_those_of_head_body_and_trailers() {
    let metrics = Metrics::new();
    let service = service_fn(async |_: Request<String>| {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", 0.into());
        let frames = [
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"12345"))),
            Ok(Frame::data(Bytes::from_static(b"678"))),
            Ok(Frame::trailers(trailers)),
        ];
        let response = Response::builder().header("name", "value");
        Ok::<_, Infallible>(
            response
                .body(StreamBody::new(stream::iter(frames)))
                .unwrap(),
        )
    });
    let request = Request::get("http://h/").header("key", "what");
    let request = request.body("a body".to_owned()).unwrap();
    let response = observed(&metrics, service).oneshot(request).await.unwrap();
    response.into_body().collect().await.unwrap();
    assert_eq!(sum(&metrics, "istio_request_bytes"), HEAD + 7 + 6);
    let response = STATUS + 9 + 8 + "grpc-status0".len() as u64;
    assert_eq!(sum(&metrics, "istio_response_bytes"), response);
    let text = metrics.encode();
    for bucket in [
        "istio_request_bytes_bucket{le=\"50.0\"",
        "istio_response_bytes_bucket{le=\"25.0\"",
    ] {
        assert!(text.contains(bucket), "{text}");
    }
}

#[cfg(all(feature = "axum", feature = "tonic"))]
#[tokio::test]
async fn a_body_of_unknown_length_is_counted_while_it_is_read() {
    let chunks = || {
        let chunk = |_| Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[7; 1000])));
        StreamBody::new(stream::iter((0..5).map(chunk)))
    };
    // How much of it the application reads.
    for (read, bytes) in [(5, 5000), (2, 2000)] {
        let metrics = Metrics::new();
        let request = Request::get("http://h/").body(axum::body::Body::new(chunks()));
        let service = service_fn(async |request: Request<axum::body::Body>| {
            let mut body = request.into_body();
            for _ in 0..read {
                body.frame().await.unwrap().unwrap();
            }
            Ok::<_, Infallible>(Response::new(String::new()))
        });
        let response = observed(&metrics, service).oneshot(request.unwrap()).await;
        response.unwrap().into_body().collect().await.unwrap();
        assert_eq!(sum(&metrics, "istio_request_bytes"), HEAD + bytes);
    }
    let metrics = Metrics::new();
    let request = Request::get("http://h/").body(tonic::body::Body::new(chunks()));
    let service = service_fn(async |request: Request<tonic::body::Body>| {
        request.into_body().collect().await.unwrap();
        Ok::<_, Infallible>(Response::new(String::new()))
    });
    let response = observed(&metrics, service).oneshot(request.unwrap()).await;
    response.unwrap().into_body().collect().await.unwrap();
    assert_eq!(sum(&metrics, "istio_request_bytes"), HEAD + 5000);
}

/// A body whose client says how long it is, and sends nothing.
struct Boast(u64);

impl http_body::Body for Boast {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::task::Poll::Pending
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.0)
    }
}

#[tokio::test]
async fn a_length_that_was_only_said_does_not_count_where_nobody_read() {
    let metrics = Metrics::new();
    let answers =
        service_fn(async |_: Request<Boast>| Ok::<_, Infallible>(Response::new(String::new())));
    let layer = InboundLayer::new(Policies::fixed(policy(Action::Allow, vec![])))
        .observe(ObserveLayer::new(metrics.clone()))
        .for_connection(plaintext());
    let request = Request::get("http://h/").body(Boast(u64::MAX)).unwrap();
    let response = layer.layer(answers).oneshot(request).await.unwrap();
    assert_eq!(response.status(), 403);
    drop(response.into_body().collect().await);
    assert_eq!(sum(&metrics, "istio_request_bytes"), HEAD);

    // The application's answer is no proof of what it read.
    let metrics = Metrics::new();
    let request = Request::get("http://h/").body(Boast(u64::MAX)).unwrap();
    let response = observed(&metrics, answers).oneshot(request).await.unwrap();
    response.into_body().collect().await.unwrap();
    assert_eq!(sum(&metrics, "istio_request_bytes"), HEAD + (1 << 32));
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn a_body_that_can_be_counted_is_not_believed() {
    let metrics = Metrics::new();
    let request = Request::get("http://h/").body(axum::body::Body::new(Boast(u64::MAX)));
    let service = service_fn(async |_: Request<axum::body::Body>| {
        Ok::<_, Infallible>(Response::new(String::new()))
    });
    let response = observed(&metrics, service).oneshot(request.unwrap()).await;
    response.unwrap().into_body().collect().await.unwrap();
    assert_eq!(sum(&metrics, "istio_request_bytes"), HEAD);
}
