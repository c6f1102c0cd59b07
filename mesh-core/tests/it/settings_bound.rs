//! Bounds that no other test sets: each is the builder's, and holds.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use mesh_core::Mesh;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::mesh_requests::{OK, by_hand};
use crate::mesh_world::{PORT, World, echo, ping, until};

/// A plaintext connection that is served.
async fn plaintext(to: SocketAddr) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(b"ping").await?;
    stream.read_exact(&mut [0; 4]).await?;
    Ok(stream)
}

/// Waits until there is room again.
async fn served(to: SocketAddr) -> TcpStream {
    let tries = async {
        loop {
            match plaintext(to).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    };
    let served = tokio::time::timeout(Duration::from_secs(10), tries).await;
    served.expect("the place becomes free")
}

#[tokio::test]
async fn plaintext_connections_leave_the_rest_to_tunnels() {
    let world = World::with(169, |node| node.max_plaintext_connections(2));
    let (client, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let target = SocketAddr::new(world.ip(2), PORT);
    let first = plaintext(target).await.unwrap();
    let _second = plaintext(target).await.unwrap();
    plaintext(target).await.unwrap_err();
    let mut tunnel = client.connect(format!("server:{PORT}")).await.unwrap();
    ping(&mut tunnel).await.unwrap();
    drop(first);
    served(target).await;
}

#[tokio::test]
async fn the_workloads_of_a_node_share_its_sockets() {
    let world = World::with(170, |node| node.max_node_connections(1));
    let (client, server) = world.pair().await;
    for mesh in [&client, &server] {
        echo(mesh.listen(PORT).await.unwrap());
    }
    let [one, other] = [1, 2].map(|host| SocketAddr::new(world.ip(host), PORT));
    let open = plaintext(one).await.unwrap();
    plaintext(other).await.unwrap_err();
    drop(open);
    served(other).await;
}

async fn request(client: &Mesh) {
    let request = Request::get(format!("http://server:{PORT}/"));
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let response = client.http_client().request(request).await.unwrap();
    response.into_body().collect().await.unwrap();
}

#[tokio::test]
async fn an_http_connection_that_is_idle_for_too_long_is_not_used_again() {
    let world = World::with(171, |node| node.http_idle_timeout(Duration::from_millis(1)));
    let (client, server) = world.pair().await;
    let accepted = by_hand(server.listen(PORT).await.unwrap(), OK, usize::MAX);
    for count in 1..=3 {
        request(&client).await;
        assert_eq!(accepted.load(Ordering::Relaxed), count);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn no_more_idle_http_connections_of_an_endpoint_are_kept_than_set() {
    for (net, kept, connections) in [(172, 1, 3), (173, 2, 2)] {
        let world = World::with(net, |node| node.idle_connections_per_endpoint(kept));
        let (client, server) = world.pair().await;
        let accepted = by_hand(server.listen(PORT).await.unwrap(), OK, usize::MAX);
        for open in [2, connections] {
            tokio::join!(request(&client), request(&client));
            until("all are there", || accepted.load(Ordering::Relaxed) == open).await;
            // The task of a connection says when it can take another request.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
