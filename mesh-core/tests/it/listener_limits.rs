//! What nobody proved who they are with must not take the room of those who did.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_core::xds::model::{TunnelProtocol, Update, Workload};
use mesh_core::{Mesh, Node, config, identity};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn workload(name: &str, ip: &str) -> Update {
    Workload::new(format!("Kubernetes//Pod/default/{name}"), "default", name)
        .with_addresses(vec![ip.parse().unwrap()])
        .with_service_account(name)
        .with_protocol(TunnelProtocol::Hbone)
        .into()
}

/// A server at `127.0.<net>.1` and a client.
fn node(net: u8, connections: usize) -> Node {
    Node::builder()
        .config(config::Fixed::new([
            workload("server", &format!("127.0.{net}.1")),
            workload("client", &format!("127.0.{net}.2")),
        ]))
        .identity(identity::DevCa::ephemeral("cluster.local"))
        .max_connections(connections)
        .header_timeout(Duration::from_millis(200))
        .build_node()
        .unwrap()
}

async fn silent(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut sockets = Vec::new();
    for _ in 0..count {
        // One too many is reset, which connect may see already.
        sockets.extend(TcpStream::connect(address).await);
    }
    sockets
}

async fn echo_once(server: &Mesh, client: &Mesh, port: u16) {
    let mut listener = server.listen(port).await.unwrap();
    let serving = tokio::spawn(async move {
        loop {
            let mut stream = listener.accept().await.unwrap();
            if stream.context().is_mutual_tls() {
                let mut text = [0; 5];
                stream.read_exact(&mut text).await.unwrap();
                stream.write_all(&text).await.unwrap();
                stream.shutdown().await.unwrap();
                return;
            }
            // A silent plaintext peer is kept, as an application would.
            tokio::spawn(async move { stream.read_u8().await });
        }
    });
    let address = SocketAddr::new("127.0.51.1".parse().unwrap(), port);
    // Twice what may live at once.
    let _silent = silent(address, 20).await;
    let mut stream = client.connect(address.to_string()).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "hello");
    serving.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_plaintext_sockets_leave_room_for_tunnels() {
    let node = node(51, 10);
    let server = node.workload("default", "server", "server").unwrap();
    let client = node.workload("default", "client", "client").unwrap();
    echo_once(&server, &client, 7051).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_client_of_an_http_listener_is_closed() {
    let node = node(52, 10);
    let server = node.workload("default", "server", "server").unwrap();
    let mut http = server.listen_http(7052).await.unwrap();
    // A server without a time-out of its own, as axum's.
    tokio::spawn(async move {
        while let Ok(mut stream) = http.listener.accept().await {
            let layer = http.layer.for_connection(stream.context().clone());
            tokio::spawn(async move {
                let _layer = layer;
                stream.read_u8().await
            });
        }
    });
    let mut silent = TcpStream::connect("127.0.52.1:7052").await.unwrap();
    let mut buffer = [0; 1];
    let ended = silent.read(&mut buffer).await;
    assert!(
        !matches!(ended, Ok(1..)),
        "closed without an answer: {ended:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_without_the_layer_gets_no_request() {
    let node = node(53, 10);
    let server = node.workload("default", "server", "server").unwrap();
    let mut http = server.listen_http(7053).await.unwrap();
    let accept = async {
        let mut stream = http.listener.accept().await.unwrap();
        stream.read_u8().await
    };
    let mut client = TcpStream::connect("127.0.53.1:7053").await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let error = accept.await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    let mut answer = [0; 1];
    assert!(!matches!(client.read(&mut answer).await, Ok(1..)));
    // With it the next one is read.
    let layer = http.layer.for_connection(tunnel_context());
    let accept = async {
        let mut stream = http.listener.accept().await.unwrap();
        stream.read_u8().await
    };
    let mut client = TcpStream::connect("127.0.53.1:7053").await.unwrap();
    client.write_all(b"G").await.unwrap();
    assert_eq!(accept.await.unwrap(), b'G');
    drop(layer);
}

fn tunnel_context() -> mesh_core::ConnectionContext {
    let address = "127.0.53.1:7053".parse().unwrap();
    mesh_core::ConnectionContext::plaintext(address, address)
}
