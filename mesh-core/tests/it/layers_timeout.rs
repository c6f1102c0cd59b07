use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use mesh_core::layers::{AnswerLayer, DeadlineLayer, TimeoutLayer};
use mesh_core::{Error, ErrorKind};
use tokio::time::{Instant, sleep};
use tower::{Layer, ServiceExt, service_fn};

use crate::handler::{get, grpc};

const LIMIT: Duration = Duration::from_secs(15);

async fn slow(_: Request<String>) -> Result<Response<String>, Infallible> {
    sleep(Duration::from_secs(3600)).await;
    Ok(Response::new("late".into()))
}

#[tokio::test(start_paused = true)]
async fn a_server_answers_in_the_slow_handlers_place() {
    let begun = Instant::now();
    let service = TimeoutLayer::new(LIMIT).layer(service_fn(slow));
    let response = service.oneshot(get("/")).await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), LIMIT.as_secs());
    assert_eq!(response.status(), 504);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "upstream request timeout");

    let service = TimeoutLayer::new(LIMIT).layer(service_fn(slow));
    let response = service.oneshot(grpc("/")).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "4");
}

#[tokio::test(start_paused = true)]
async fn a_client_gets_an_error() {
    let service = DeadlineLayer::new(LIMIT).layer(service_fn(slow));
    let error = service.oneshot(get("/")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RequestTimeout);
    assert!(error.is_timeout() && !error.is_retry_safe());
    assert_eq!(error.to_string(), "request timed out: after 15s");
}

#[tokio::test(start_paused = true)]
async fn whoever_is_quick_notices_nothing() {
    let quick = service_fn(async |_: Request<String>| {
        sleep(LIMIT / 2).await;
        Ok::<_, Infallible>(Response::new("ok".to_owned()))
    });
    let response = TimeoutLayer::new(LIMIT)
        .layer(quick)
        .oneshot(get("/"))
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_does_not_look_complete() {
    let endless = service_fn(async |_: Request<String>| {
        let frames = stream::repeat(()).then(async |()| {
            sleep(Duration::from_secs(1)).await;
            Ok::<_, Infallible>(http_body::Frame::data(Bytes::from_static(b"x")))
        });
        Ok::<_, Infallible>(Response::new(StreamBody::new(Box::pin(frames))))
    });
    let service = TimeoutLayer::new(LIMIT).layer(endless);
    let response = service.oneshot(get("/")).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    let mut frames = 0;
    let error = loop {
        match body.frame().await.expect("an end that is an error") {
            Ok(_) => frames += 1,
            Err(error) => break error,
        }
    };
    assert!((14..=15).contains(&frames), "{frames}");
    let error = error.downcast::<Error>().unwrap();
    assert_eq!(error.kind(), ErrorKind::RequestTimeout);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_always_ready_is_late_too() {
    let busy = service_fn(async |_: Request<String>| {
        let frames = stream::repeat_with(|| {
            Ok::<_, Infallible>(http_body::Frame::data(Bytes::from_static(b"x")))
        });
        Ok::<_, Infallible>(Response::new(StreamBody::new(frames)))
    });
    let service = DeadlineLayer::new(LIMIT).layer(busy);
    let mut body = service.oneshot(get("/")).await.unwrap().into_body();
    assert!(body.frame().await.unwrap().is_ok());
    tokio::time::advance(LIMIT).await;
    assert!(body.frame().await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn the_callers_own_deadline_counts_when_it_is_shorter() {
    for (value, layer, expected) in [
        ("2S", DeadlineLayer::new(LIMIT), Some(2)),
        ("2S", DeadlineLayer::unlimited(), Some(2)),
        ("1H", DeadlineLayer::new(LIMIT), Some(15)),
        ("1M", DeadlineLayer::unlimited(), Some(60)),
        // Not what gRPC allows, so no deadline.
        ("2", DeadlineLayer::new(LIMIT), Some(15)),
        ("S", DeadlineLayer::new(LIMIT), Some(15)),
        ("-2S", DeadlineLayer::new(LIMIT), Some(15)),
        ("123456789S", DeadlineLayer::new(LIMIT), Some(15)),
        // CVE-2021-28682: eleven thousand years, which no number overflows.
        ("99999999H", DeadlineLayer::new(LIMIT), Some(15)),
        ("99999999H", DeadlineLayer::unlimited(), None),
        ("2S", DeadlineLayer::new(Duration::from_secs(1)), Some(1)),
        ("x", DeadlineLayer::unlimited(), None),
    ] {
        let begun = Instant::now();
        let mut request = grpc("/");
        let headers = request.headers_mut();
        headers.insert("grpc-timeout", value.parse().unwrap());
        let answer = layer.layer(service_fn(slow)).oneshot(request).await;
        assert_eq!(answer.is_err(), expected.is_some(), "{value}");
        let took = begun.elapsed().as_secs();
        assert_eq!(took, expected.unwrap_or(3600), "{value}");
    }
    // It is gRPC's header: to others it means nothing.
    let mut request = get("/");
    let headers = request.headers_mut();
    headers.insert("grpc-timeout", "2S".parse().unwrap());
    let service = DeadlineLayer::unlimited().layer(service_fn(slow));
    assert!(service.oneshot(request).await.is_ok());
}

#[tokio::test]
async fn an_error_is_answered_by_the_one_table() {
    for kind in [
        ErrorKind::NoHealthyUpstream,
        ErrorKind::UnknownHost,
        ErrorKind::Denied,
        ErrorKind::ConnectTimeout,
    ] {
        let failing = |request| async move {
            let _: Request<String> = request;
            Err::<Response<String>, _>(Error::new(kind).with_detail("10.0.0.9:15008"))
        };
        let service = AnswerLayer::new().layer(service_fn(failing));
        let response = service.oneshot(get("/")).await.unwrap();
        assert_eq!(response.status(), kind.reply().status());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, kind.reply().body());

        let service = AnswerLayer::new().layer(service_fn(failing));
        let response = service.oneshot(grpc("/")).await.unwrap();
        let status = kind.reply().grpc_status().to_string();
        assert_eq!(response.headers()["grpc-status"], *status);
    }
}
