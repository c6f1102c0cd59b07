//! What ends a live connection ends it for the peer at once, though the application holds its stream and
//! never looks at it.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use mesh_core::authz::policy::Action;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::mesh_world::{PORT, World, caller, connect_to, ping, policy};

/// The error with which a peer's read ends, well before anything else would end it.
async fn told(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> ErrorKind {
    let mut byte = [0; 1];
    let read = tokio::time::timeout(Duration::from_secs(2), stream.read(&mut byte)).await;
    read.expect("the peer is told").unwrap_err().kind()
}

#[tokio::test]
async fn a_policy_that_refuses_a_held_tunnel_resets_it_and_no_other() {
    let world = World::new(43);
    let (_, server) = world.pair().await;
    let allow = |accounts: &[&str]| {
        let rules = accounts.iter().map(|account| caller(account)).collect();
        policy("p", Action::Allow, rules)
    };
    world.control.set(vec![allow(&["client", "other"])]).await;
    let mut listener = server.listen(PORT).await.unwrap();
    let target = connect_to(SocketAddr::new(world.ip(2), PORT));
    let (client, other) = (
        world.bare_client("client", 2, "server").await,
        world.bare_client("other", 2, "server").await,
    );
    let (mut tunnel, _) = client.connect(target.clone()).await.unwrap();
    let mut held = listener.accept().await.unwrap();
    let (mut spared, _) = other.connect(target.clone()).await.unwrap();
    let mut goes_on = listener.accept().await.unwrap();
    // More than anybody reads: the application could not write either.
    tunnel.write_all(&[1; 1000]).await.unwrap();

    world.control.set(vec![allow(&["other"])]).await;
    assert_eq!(told(&mut tunnel).await, ErrorKind::ConnectionReset);
    for _ in 0..2 {
        let error = held.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
        assert!(error.to_string().contains("policy change"), "{error}");
        assert!(held.write(&[0; 1]).await.is_err());
        assert!(held.shutdown().await.is_err());
    }
    spared.write_all(b"ping").await.unwrap();
    goes_on.read_exact(&mut [0; 4]).await.unwrap();
    // The connection itself stays, for what policy still allows.
    assert!(!client.is_closed());
}

#[tokio::test]
async fn a_policy_that_refuses_held_plaintext_resets_its_socket() {
    let world = World::new(131);
    let (_, server) = world.pair().await;
    let mut listener = server.listen(PORT).await.unwrap();
    let target = SocketAddr::new(world.ip(2), PORT);
    let mut plain = tokio::net::TcpStream::connect(target).await.unwrap();
    let mut held = listener.accept().await.unwrap();
    let waits = tokio::spawn(async move {
        let error = held.read(&mut [0; 1]).await.unwrap_err();
        (held, error)
    });
    let mut other = tokio::net::TcpStream::connect(target).await.unwrap();
    let _unpolled = listener.accept().await.unwrap();
    let mutual_tls = policy("p", Action::Allow, vec![caller("*")]);
    world.control.set(vec![mutual_tls]).await;
    assert_eq!(told(&mut plain).await, ErrorKind::ConnectionReset);
    assert_eq!(told(&mut other).await, ErrorKind::ConnectionReset);
    let (mut held, error) = waits.await.unwrap();
    assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
    assert!(held.write(&[0; 1]).await.is_err());
}

#[tokio::test]
async fn a_connection_in_the_queue_of_a_listener_is_cut_too() {
    let world = World::new(132);
    let (_, server) = world.pair().await;
    let mut listener = server.listen(PORT).await.unwrap();
    let sender = world.bare_client("client", 2, "server").await;
    let target = SocketAddr::new(world.ip(2), PORT);
    let (mut tunnel, _) = sender.connect(connect_to(target)).await.unwrap();
    let nobody = policy("p", Action::Allow, vec![]);
    world.control.set(vec![nobody]).await;
    assert_eq!(told(&mut tunnel).await, ErrorKind::ConnectionReset);
    // The application finds out when it takes it.
    let mut queued = listener.accept().await.unwrap();
    assert!(ping(&mut queued).await.is_err());
}
