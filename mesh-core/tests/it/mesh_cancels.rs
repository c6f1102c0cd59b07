//! Calls of a mesh, dropped after each of their polls: nothing of them stays, and nobody else notices.

use std::io;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use mesh_core::Mesh;
use mesh_core::identity::DevCa;
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};
use tower::service_fn;

use crate::memory_network::{ADDRESS, network, pair, ping};
use crate::mesh_world::{PORT, World};
use crate::polls::{at_every_poll, cut};

/// Longer than any wait of the settings, in a time that nobody waits for.
const PATIENCE: Duration = Duration::from_secs(600);

fn alive_tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// The server has nobody left to wait for, and both meshes leave nothing.
async fn ends(client: Mesh, server: Mesh, tasks: usize) {
    let drained = server.shutdown(PATIENCE).await;
    assert_eq!((drained.cut(), drained.unsent()), (0, 0));
    drop((client, server));
    let gone = async {
        while alive_tasks() > tasks {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let gone = timeout(PATIENCE, gone).await;
    assert!(gone.is_ok(), "{} tasks, before {tasks}", alive_tasks());
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_is_dropped_takes_nothing_from_others() {
    at_every_poll(3, async |polls| {
        let tasks = alive_tasks();
        let (client, server) = pair(DevCa::ephemeral("cluster.local"), SystemTime::now).await;
        let call = async || -> io::Result<()> {
            let mut stream = client.connect(ADDRESS).await.map_err(io::Error::other)?;
            ping(&mut stream).await
        };
        let (left, other) = tokio::join!(cut(polls, call()), call());
        other.expect("a stream, whatever the first does");
        let left = left.transpose().expect("nothing fails");
        call().await.expect("another");
        ends(client, server, tasks).await;
        left.is_none()
    })
    .await;
}

/// The sockets of the one before may still be open, for whoever asks next too.
#[tokio::test]
async fn a_listen_that_is_dropped_leaves_the_port_to_the_next() {
    at_every_poll(2, async |polls| {
        let world = World::new(227);
        let (_client, server) = world.pair().await;
        drop(server.listen(PORT).await.unwrap());
        let left = cut(polls, server.listen(PORT)).await;
        let left = left.transpose().expect("nothing fails").is_none();
        server.listen(PORT).await.expect("another");
        left
    })
    .await;
}

async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?;
    Ok(Response::new(Full::new(body.to_bytes())))
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_takes_nothing_from_others() {
    at_every_poll(4, async |polls| {
        let tasks = alive_tasks();
        let world = World::with(46, |settings| settings.transport(network()));
        let (client, server) = world.pair().await;
        let http = server.listen_http(PORT).await.unwrap();
        tokio::spawn(http.serve(service_fn(echo)));
        let said = Bytes::from(vec![7; 300_000]);
        let call = async || {
            let request = Request::post("http://server:9080/").body(Full::new(said.clone()));
            let answer = client.http_client().request(request.unwrap()).await?;
            let heard = answer.into_body().collect().await?.to_bytes();
            assert!(heard == said, "a clean end after {} bytes", heard.len());
            Ok::<(), mesh_core::Error>(())
        };
        let (left, other) = tokio::join!(cut(polls, call()), call());
        other.expect("an answer, whatever the first does");
        let left = left.transpose().expect("nothing fails");
        call().await.expect("another");
        drop(world);
        ends(client, server, tasks).await;
        left.is_none()
    })
    .await;
}

/// A drain that nobody waits for any more goes on: what lives may finish, and nothing new begins.
#[tokio::test(start_paused = true)]
async fn a_shutdown_that_is_dropped_has_begun_a_drain_that_goes_on() {
    at_every_poll(2, async |polls| {
        let tasks = alive_tasks();
        let (client, server) = pair(DevCa::ephemeral("cluster.local"), SystemTime::now).await;
        let mut live = client.connect(ADDRESS).await.unwrap();
        ping(&mut live).await.unwrap();
        let ending = async {
            // By which the drain is under way.
            sleep(Duration::from_millis(50)).await;
            ping(&mut live).await.expect("it may finish");
            live.shutdown().await.unwrap();
            drop(live);
        };
        let (drained, ()) = tokio::join!(cut(polls, server.shutdown(PATIENCE)), ending);
        if polls > 0 {
            client.connect(ADDRESS).await.unwrap_err();
        }
        ends(client, server, tasks).await;
        drained.is_none()
    })
    .await;
}
