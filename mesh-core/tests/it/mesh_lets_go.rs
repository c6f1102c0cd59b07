//! What a mesh has opened: how long it keeps the mesh, and what goes out once a shutdown is over.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty};
use mesh_core::{ErrorKind, Mesh, MeshListener};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tower::Service;

use crate::mesh_world::{Control, PORT, World, echo, ping, until};

/// More than anything here takes, and less than the 25 s for which a connection is kept that is idle.
const PATIENCE: Duration = Duration::from_secs(10);

fn request() -> Request<Empty<Bytes>> {
    let request = Request::get(format!("http://server:{PORT}/"));
    request.body(Empty::new()).unwrap()
}

#[tokio::test]
async fn nothing_goes_out_once_a_shutdown_is_over() {
    let world = World::new(176);
    let (client, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let target = format!("server:{PORT}");
    // What was opened before is the application's to end.
    let mut before = client.connect(&target).await.unwrap();
    client.shutdown(Duration::ZERO).await;
    ping(&mut before).await.unwrap();
    let error = client.connect(&target).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Draining);
    let error = client.http_client().request(request()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Draining);
    assert!(!error.is_retry_safe());
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_the_start_is_told_when_a_shutdown_is_over() {
    // There is never any configuration.
    let world = World::new(183);
    let client = world.mesh("client");
    let began = Instant::now();
    let connects = async {
        let outcome = client.connect(format!("server:{PORT}")).await;
        (outcome.unwrap_err().kind(), began.elapsed())
    };
    let ends = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        client.shutdown(Duration::ZERO).await;
    };
    let (told, _) = tokio::join!(connects, ends);
    assert_eq!(told, (ErrorKind::Draining, Duration::from_secs(1)));
}

/// Answers one request by hand: half of it at once, the rest when told. Says when its connection has ended.
fn answers_in_halves(mut listener: MeshListener) -> (oneshot::Sender<()>, oneshot::Receiver<()>) {
    let (go_on, goes_on) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    tokio::spawn(async move {
        let mut stream = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let half = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nfirst";
        stream.write_all(half).await.unwrap();
        goes_on.await.unwrap();
        stream.write_all(b"-last").await.unwrap();
        let _ = stream.read(&mut [0; 1]).await;
        end.send(()).unwrap();
    });
    (go_on, ended)
}

#[tokio::test]
async fn a_connection_whose_answer_ends_after_the_shutdown_is_not_kept() {
    let world = World::new(184);
    let (client, server) = world.pair().await;
    let (go_on, ended) = answers_in_halves(server.listen(PORT).await.unwrap());
    let response = client.http_client().request(request()).await.unwrap();
    client.shutdown(Duration::ZERO).await;
    go_on.send(()).unwrap();
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "first-last", "what was asked is answered");
    let ended = timeout(PATIENCE, ended).await;
    ended.expect("nobody keeps the connection").unwrap();
}

/// A client alone on its node, of which the test has the only handle; the node is gone when the
/// configuration has nobody to apply it.
async fn alone(world: &World) -> (Mesh, Control) {
    let (control, batches) = Control::new();
    let alone = Mesh::builder()
        .workload("default", "client", "client")
        .config(batches)
        .identity(world.ca.clone())
        .build()
        .unwrap();
    let records = [world.workload("client", 1), world.workload("server", 2)];
    let mut updates: Vec<_> = records.into_iter().map(Into::into).collect();
    updates.push(world.service("server", 2).into());
    control.set(updates).await;
    (alone, control)
}

/// A server that says what was said to it: what a stream said after three echoes.
fn hears(mut listener: MeshListener) -> mpsc::UnboundedReceiver<std::io::Result<Vec<u8>>> {
    let (tell, heard) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok(mut stream) = listener.accept().await {
            let mut said = vec![0; 4];
            for _ in 0..3 {
                stream.read_exact(&mut said).await.unwrap();
                stream.write_all(&said).await.unwrap();
            }
            let read = stream.read_to_end(&mut said).await;
            tell.send(read.map(|_| said)).unwrap();
        }
    });
    heard
}

/// Speaks on a stream whose mesh has no handle any more.
async fn speak(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    for _ in 0..3 {
        stream.write_all(b"ping").await.unwrap();
        stream.read_exact(&mut [0; 4]).await.unwrap();
    }
    stream.write_all(b"the last words").await.unwrap();
    stream.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_a_mesh_has_opened_goes_on_without_its_handles_and_ends_it() {
    let world = World::new(180);
    let (_client, server) = world.pair().await;
    let mut heard = hears(server.listen(PORT).await.unwrap());
    for by_connector in [false, true] {
        let (alone, control) = alone(&world).await;
        if by_connector {
            let mut connector = alone.connector();
            let uri: Uri = format!("http://server:{PORT}").parse().unwrap();
            let stream = connector.call(uri).await.unwrap().into_inner();
            drop((alone, connector));
            speak(stream).await;
        } else {
            let stream = alone.connect(format!("server:{PORT}")).await.unwrap();
            drop(alone);
            speak(stream).await;
        }
        let heard = timeout(PATIENCE, heard.recv()).await.unwrap().unwrap();
        assert!(
            heard.unwrap().ends_with(b"the last words"),
            "and a clean end"
        );
        until("the node has gone", || control.is_unwanted()).await;
    }
}

#[tokio::test]
async fn a_response_is_read_to_its_end_without_handles_of_its_mesh() {
    let world = World::new(185);
    let (_client, server) = world.pair().await;
    let (go_on, ended) = answers_in_halves(server.listen(PORT).await.unwrap());
    let (alone, control) = alone(&world).await;
    let response = alone.http_client().request(request()).await.unwrap();
    drop(alone);
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "first");
    assert!(!control.is_unwanted(), "the body keeps the node");
    go_on.send(()).unwrap();
    let last = body.frame().await.unwrap().unwrap();
    assert_eq!(last.into_data().unwrap(), "-last");
    drop(body);
    until("the node has gone", || control.is_unwanted()).await;
    timeout(PATIENCE, ended).await.unwrap().unwrap();
}
