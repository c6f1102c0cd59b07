use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use mesh_core::layers::{DeadlineLayer, ReplayBody, RetryBudget, RetryLayer};
use mesh_core::{Error, ErrorKind};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt, service_fn};

type Body = Full<Bytes>;

/// Fails as told, then answers with the body that it was sent.
#[derive(Clone)]
struct Peer {
    calls: Arc<AtomicUsize>,
    failures: usize,
    kind: ErrorKind,
    reads_first: bool,
}

impl Peer {
    fn failing(failures: usize, kind: ErrorKind) -> Self {
        Self {
            calls: Arc::default(),
            failures,
            kind,
            reads_first: false,
        }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    fn service(
        &self,
    ) -> impl Service<Request<ReplayBody>, Response = Response<Bytes>, Error = Error, Future: Send> + Clone
    {
        let peer = self.clone();
        service_fn(move |request: Request<ReplayBody>| {
            let peer = peer.clone();
            async move {
                let call = peer.calls.fetch_add(1, Ordering::Relaxed);
                assert_eq!(request.headers()["x-kept"], "yes");
                let mut body = request.into_body();
                if peer.reads_first {
                    body.frame().await;
                }
                if call < peer.failures {
                    return Err(Error::new(peer.kind));
                }
                let body = body.collect().await.map_err(Error::from)?;
                Ok(Response::new(body.to_bytes()))
            }
        })
    }
}

fn post(body: &'static str) -> Request<Body> {
    Request::post("/")
        .header("x-kept", "yes")
        .body(Full::from(body))
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_the_peer_has_not_seen_is_sent_again() {
    for kind in [
        ErrorKind::ConnectFailed,
        ErrorKind::ConnectTimeout,
        ErrorKind::RefusedStream,
    ] {
        let peer = Peer::failing(2, kind);
        let client = RetryLayer::new().layer(peer.service());
        let response = client.oneshot(post("order 1")).await.unwrap();
        // Whole, and once.
        assert_eq!(response.body(), "order 1");
        assert_eq!(peer.calls(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_error_is_told_when_retries_run_out() {
    let peer = Peer::failing(usize::MAX, ErrorKind::ConnectFailed);
    let client = RetryLayer::new().layer(peer.service());
    let error = client.oneshot(post("")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectFailed);
    assert_eq!(peer.calls(), 3);

    let peer = Peer::failing(usize::MAX, ErrorKind::ConnectFailed);
    let client = RetryLayer::new().retries(0).layer(peer.service());
    client.oneshot(post("")).await.unwrap_err();
    assert_eq!(peer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_peer_may_have_seen_is_not() {
    for kind in [
        ErrorKind::Reset,
        ErrorKind::Closed,
        ErrorKind::RequestTimeout,
        ErrorKind::Overloaded,
        ErrorKind::Denied,
        ErrorKind::TunnelRefused(http::StatusCode::FORBIDDEN),
    ] {
        let peer = Peer::failing(1, kind);
        let client = RetryLayer::new().layer(peer.service());
        let error = client.oneshot(post("x")).await.unwrap_err();
        assert_eq!((error.kind(), peer.calls()), (kind, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_was_read_is_sent_again_as_far_as_it_is_kept() {
    let mut peer = Peer::failing(1, ErrorKind::RefusedStream);
    peer.reads_first = true;
    let client = RetryLayer::new().layer(peer.service());
    // What the second attempt read first is not in its answer.
    assert_eq!(client.oneshot(post("order 1")).await.unwrap().body(), "");
    assert_eq!(peer.calls(), 2);

    let mut peer = Peer::failing(1, ErrorKind::RefusedStream);
    peer.reads_first = true;
    let bound = "order 1".len() - 1;
    let client = RetryLayer::new().replay_buffer(bound).layer(peer.service());
    let error = client.oneshot(post("order 1")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RefusedStream);
    assert_eq!(peer.calls(), 1);

    // Of an empty one there was nothing to read.
    let mut peer = Peer::failing(1, ErrorKind::RefusedStream);
    peer.reads_first = true;
    let client = RetryLayer::new().replay_buffer(0).layer(peer.service());
    assert!(client.oneshot(post("")).await.is_ok());
    assert_eq!(peer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_was_given_up_cannot_read_the_body_any_more() {
    let kept = Arc::new(Mutex::new(None));
    let calls = Arc::new(AtomicUsize::new(0));
    let peer = service_fn({
        let (kept, calls) = (kept.clone(), calls.clone());
        move |request: Request<ReplayBody>| {
            let first = calls.fetch_add(1, Ordering::Relaxed) == 0;
            let kept = kept.clone();
            async move {
                if first {
                    // As a connection's task does that has not noticed yet.
                    *kept.lock().unwrap() = Some(request.into_body());
                    return Err(Error::new(ErrorKind::RefusedStream));
                }
                let body = request.into_body().collect().await.map_err(Error::from)?;
                Ok(Response::new(body.to_bytes()))
            }
        }
    });
    let client = RetryLayer::new().layer(peer);
    let response = client.oneshot(post("order 1")).await.unwrap();
    assert_eq!(response.body(), "order 1");
    let mut abandoned = kept.lock().unwrap().take().unwrap();
    // An error, not an end: half a request must not look whole.
    assert!(abandoned.frame().await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn retries_wait_a_while_that_grows() {
    let total = |seed| async move {
        let peer = Peer::failing(2, ErrorKind::ConnectFailed);
        let client = RetryLayer::new()
            .seed(seed)
            .backoff(Duration::from_secs(1), Duration::from_secs(10))
            .layer(peer.service());
        let begun = Instant::now();
        client.oneshot(post("x")).await.unwrap();
        begun.elapsed()
    };
    let mut waits = Vec::new();
    for seed in 0..20 {
        // At most 1 s and 3 s; a timer is rounded up to the next millisecond.
        let wait = total(seed).await;
        assert!(wait <= Duration::from_millis(4_002), "{wait:?}");
        assert_eq!(wait, total(seed).await);
        waits.push(wait);
    }
    waits.sort();
    waits.dedup();
    assert!(waits.len() > 15, "{waits:?}");
    assert!(*waits.last().unwrap() > Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_failing_destination_is_not_buried() {
    let peer = Peer::failing(usize::MAX, ErrorKind::ConnectFailed);
    let layer = RetryLayer::new().budget(RetryBudget::new().percent(20).per_second(0));
    let client = layer.layer(peer.service());
    for _ in 0..100 {
        client.clone().oneshot(post("x")).await.unwrap_err();
    }
    // One retry for five requests, however many clones.
    assert_eq!(peer.calls(), 120);
}

#[tokio::test]
async fn the_budget_forgets_what_is_over() {
    let begun = Instant::now();
    let at = |seconds| begun + Duration::from_secs(seconds);
    let take = |budget: &mut RetryBudget, now| {
        let mut taken = 0;
        while taken < 1_000 && budget.try_retry(now) {
            taken += 1;
        }
        taken
    };
    let mut budget = RetryBudget::new().percent(50).per_second(0);
    for _ in 0..10 {
        budget.record_request(at(0));
    }
    assert_eq!(take(&mut budget, at(0)), 5);
    assert_eq!(take(&mut budget, at(9)), 0);
    // Requests and retries leave together.
    assert_eq!(take(&mut budget, at(10)), 0);
    budget.record_request(at(10));
    budget.record_request(at(10));
    assert_eq!(take(&mut budget, at(10)), 1);
    // A clock that goes back, or far ahead, is no reason to panic.
    assert_eq!(take(&mut budget, at(3)), 0);
    assert_eq!(take(&mut budget, at(u64::from(u32::MAX))), 0);

    let mut budget = RetryBudget::new().percent(0).per_second(2);
    assert_eq!(take(&mut budget, at(0)), 20);
    assert_eq!(take(&mut budget, at(5)), 0);
    assert_eq!(take(&mut budget, at(10)), 20);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_is_not_sent_again() {
    let peer = Peer::failing(usize::MAX, ErrorKind::ConnectFailed);
    let layer = RetryLayer::new().backoff(Duration::from_secs(60), Duration::from_secs(60));
    let client = DeadlineLayer::new(Duration::from_millis(1)).layer(layer.layer(peer.service()));
    let error = client.oneshot(post("x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RequestTimeout);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(peer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_service_that_is_ready_is_the_one_that_is_called() {
    let peer = Peer::failing(2, ErrorKind::ConnectFailed);
    // It panics when it is called without its permit.
    let limited = tower::limit::ConcurrencyLimit::new(peer.service(), 1);
    let client = RetryLayer::new().layer(limited);
    for _ in 0..3 {
        assert!(client.clone().oneshot(post("x")).await.is_ok());
    }
}
