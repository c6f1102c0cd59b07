//! A replica that drains under load: nobody who calls it notices.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use mesh_core::Mesh;
use mesh_core::layers::LeaveLayer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tower::{Layer, ServiceExt, service_fn};

use crate::mesh_requests::{OK, by_hand};
use crate::mesh_world::{PORT, World, until};

/// The port on which requests are looked at; [`PORT`] has streams.
const HTTP: u16 = 8080;
const BODY: usize = 100_000;

fn body(seed: usize) -> Bytes {
    (0..BODY).map(|at| (at * 7 + seed) as u8).collect()
}

async fn serve(mesh: &Mesh) -> JoinSet<()> {
    let mut serving = JoinSet::new();
    let http = mesh.listen_http(HTTP).await.unwrap();
    serving.spawn(http.serve(service_fn(
        |request: Request<hyper::body::Incoming>| async move {
            let body = request
                .into_body()
                .collect()
                .await
                .map(|body| body.to_bytes());
            tokio::time::sleep(Duration::from_millis(5)).await;
            let body = body.unwrap_or_default();
            Ok::<_, Infallible>(Response::new(Full::new(body)))
        },
    )));
    let mut listener = mesh.listen(PORT).await.unwrap();
    serving.spawn(async move {
        let mut streams = JoinSet::new();
        while let Ok(stream) = listener.accept().await {
            streams.spawn(async move {
                let (mut from, mut to) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            });
        }
        while streams.join_next().await.is_some() {}
    });
    serving
}

/// What callers did, and what went wrong.
#[derive(Default)]
struct Calls {
    over: AtomicBool,
    done: AtomicUsize,
    failures: std::sync::Mutex<Vec<String>>,
}

impl Calls {
    /// Calls on and on.
    async fn keep<F: Future<Output = Result<(), String>>>(&self, mut call: impl FnMut(usize) -> F) {
        for seed in 0.. {
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            match call(seed).await {
                Ok(()) => _ = self.done.fetch_add(1, Ordering::Relaxed),
                Err(error) => self.failures.lock().unwrap().push(error),
            }
        }
    }

    async fn until_more(&self, more: usize) {
        let before = self.done.load(Ordering::Relaxed);
        until("calls go on", || {
            self.done.load(Ordering::Relaxed) >= before + more
        })
        .await;
    }
}

async fn request(mesh: &Mesh, seed: usize) -> Result<(), String> {
    let request = Request::post(format!("http://server:{HTTP}/")).body(Full::new(body(seed)));
    let response = mesh.http_client().request(request.unwrap()).await;
    let response = response.map_err(|error| format!("request: {error:?}"))?;
    if response.status() != 200 {
        return Err(format!("request: {}", response.status()));
    }
    let said = response.into_body().collect().await;
    let said = said
        .map_err(|error| format!("response: {error:?}"))?
        .to_bytes();
    (said == body(seed))
        .then_some(())
        .ok_or_else(|| format!("response: {} bytes", said.len()))
}

async fn stream(mesh: &Mesh, seed: usize) -> Result<(), String> {
    let stream = mesh.connect(&format!("server:{PORT}")).await;
    let stream = stream.map_err(|error| format!("connect: {error:?}"))?;
    let (mut from, mut to) = tokio::io::split(stream);
    let (sent, said) = tokio::join!(
        async {
            to.write_all(&body(seed)).await?;
            to.shutdown().await
        },
        async {
            let mut said = Vec::new();
            from.read_to_end(&mut said).await.map(|_| said)
        }
    );
    sent.map_err(|error| format!("stream, sending: {error:?}"))?;
    let said = said.map_err(|error| format!("stream, receiving: {error:?}"))?;
    (said == body(seed))
        .then_some(())
        .ok_or_else(|| format!("stream: {} bytes", said.len()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_who_calls_notices_that_a_replica_drains() {
    let world = World::new(130);
    let (_, server) = world.pair().await;
    let both = world.workload("server", 2).services().to_vec();
    let ports =
        [PORT, HTTP].map(|port| mesh_core::xds::model::Port::new(port).with_target_port(port));
    let mut updates = vec![
        world.workload("second", 3).with_services(both).into(),
        world.service("server", 2).with_ports(ports.to_vec()).into(),
    ];
    // Some have connections that stay, others make theirs while the drain is on.
    let early: Vec<String> = (0..3).map(|number| format!("early-{number}")).collect();
    let late: Vec<String> = (0..12).map(|number| format!("late-{number}")).collect();
    for (name, host) in early.iter().chain(&late).zip(20..) {
        updates.push(world.workload(name, host).into());
    }
    world.control.set(updates).await;
    let second = world.mesh("second");
    let (serving, _others) = (serve(&server).await, serve(&second).await);

    let calls = Arc::new(Calls::default());
    let mut callers = JoinSet::new();
    let call = |callers: &mut JoinSet<()>, name: &str| {
        let mesh = world.mesh(name);
        for _ in 0..2 {
            let (of_requests, of_streams) = (mesh.clone(), mesh.clone());
            let (requests, streams) = (Arc::clone(&calls), Arc::clone(&calls));
            callers.spawn(async move { requests.keep(|seed| request(&of_requests, seed)).await });
            callers.spawn(async move { streams.keep(|seed| stream(&of_streams, seed)).await });
        }
    };
    early.iter().for_each(|name| call(&mut callers, name));
    calls.until_more(200).await;

    let draining = tokio::spawn({
        let server = server.clone();
        async move { server.shutdown(Duration::from_secs(20)).await }
    });
    for name in &late {
        call(&mut callers, name);
        calls.until_more(10).await;
    }
    let drained = draining.await.unwrap();
    assert_eq!(drained.cut(), 0);
    serving.join_all().await;
    calls.until_more(100).await;
    calls.over.store(true, Ordering::Relaxed);
    callers.join_all().await;
    assert_eq!(*calls.failures.lock().unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_kept_connection_to_who_goes_away_takes_no_more_requests() {
    // Nothing but GOAWAY tells: these servers say nothing in their answers, and keep their connections.
    let world = World::with(138, |node| node.drain_notice(Duration::from_secs(60)));
    let (client, server) = world.pair().await;
    let both = world.workload("server", 2).services().to_vec();
    let second = world.workload("second", 3).with_services(both);
    world.control.set(vec![second.into()]).await;
    let second = world.mesh("second");
    const LEAVING: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nleaving";
    let leaving = by_hand(server.listen(PORT).await.unwrap(), LEAVING, usize::MAX);
    let staying = by_hand(second.listen(PORT).await.unwrap(), OK, usize::MAX);
    let ask = || async {
        let request = Request::get(format!("http://server:{PORT}/")).body(Full::<Bytes>::default());
        let response = client
            .http_client()
            .request(request.unwrap())
            .await
            .unwrap();
        response.into_body().collect().await.unwrap().to_bytes()
    };
    while leaving.load(Ordering::Relaxed) == 0 || staying.load(Ordering::Relaxed) == 0 {
        ask().await;
    }
    let draining = tokio::spawn(async move { server.shutdown(Duration::from_secs(600)).await });
    // Half of all choices are for the one that leaves.
    let mut elsewhere = 0;
    for _ in 0..10_000 {
        elsewhere = if ask().await == "ok" {
            elsewhere + 1
        } else {
            0
        };
        if elsewhere == 40 {
            break;
        }
    }
    draining.abort();
    assert_eq!(elsewhere, 40, "requests still go to the one that leaves");
}

#[tokio::test]
async fn only_answers_to_http1_say_that_the_connection_closes_and_only_in_a_drain() {
    let world = World::new(139);
    let (_, server) = world.pair().await;
    let answer = |version: Version, status: StatusCode| {
        let service = service_fn(move |_: Request<()>| async move {
            let response = Response::builder().status(status).body(());
            Ok::<_, Infallible>(response.unwrap())
        });
        let request = Request::builder().version(version).body(()).unwrap();
        let answer = LeaveLayer::new(&server).layer(service).oneshot(request);
        async move { answer.await.unwrap().headers().get(CONNECTION).cloned() }
    };
    assert_eq!(answer(Version::HTTP_11, StatusCode::OK).await, None);
    server.shutdown(Duration::ZERO).await;
    let close = Some(HeaderValue::from_static("close"));
    assert_eq!(answer(Version::HTTP_11, StatusCode::OK).await, close);
    assert_eq!(answer(Version::HTTP_10, StatusCode::FORBIDDEN).await, close);
    let upgraded = StatusCode::SWITCHING_PROTOCOLS;
    assert_eq!(answer(Version::HTTP_11, upgraded).await, None);
    assert_eq!(answer(Version::HTTP_2, StatusCode::OK).await, None);
}

#[tokio::test(start_paused = true)]
async fn applications_are_told_of_a_drain_when_callers_have_had_notice() {
    let notice = Duration::from_secs(3);
    let world = World::with(145, |node| node.drain_notice(notice));
    for (deadline, told) in [(60, notice), (4, Duration::from_secs(1))] {
        let (client, server) = world.pair().await;
        let mut listener = server.listen(PORT).await.unwrap();
        let stream = client.connect(&format!("server:{PORT}")).await.unwrap();
        let accepted = listener.accept().await.unwrap();
        let began = tokio::time::Instant::now();
        let shutdown = server.shutdown(Duration::from_secs(deadline));
        let (_, waited) = tokio::join!(shutdown, async {
            server.draining().await;
            let waited = began.elapsed();
            drop((stream, accepted));
            waited
        });
        assert!(
            waited >= told && waited < told + Duration::from_millis(50),
            "{waited:?}"
        );
    }
}
