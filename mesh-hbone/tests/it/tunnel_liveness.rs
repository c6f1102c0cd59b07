//! Peers that vanish, connections that drain.

use std::time::Duration;

use http::StatusCode;
use mesh_hbone::config::Config;
use mesh_hbone::{ErrorKind, client, server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::time::{Instant, sleep, timeout};

use crate::peers::{Lazy, request, tunnel};

#[tokio::test(start_paused = true)]
async fn an_idle_tunnel_lives_as_long_as_the_peer_answers() {
    let (mut near, mut far, _sender) = tunnel(Config::default()).await;
    sleep(Duration::from_secs(3_600)).await;
    near.write_all(b"still here").await.unwrap();
    let mut read = [0; 10];
    far.read_exact(&mut read).await.unwrap();
}

/// A relay that stops passing bytes on without closing anything.
async fn vanishing(after: Duration) -> (tokio::io::DuplexStream, tokio::io::DuplexStream) {
    let (near, mut relay_near) = duplex(1 << 16);
    let (far, mut relay_far) = duplex(1 << 16);
    tokio::spawn(async move {
        let _ = timeout(
            after,
            tokio::io::copy_bidirectional(&mut relay_near, &mut relay_far),
        )
        .await;
        sleep(Duration::from_secs(3_600)).await;
    });
    (near, far)
}

/// a peer that vanishes.
#[tokio::test(start_paused = true)]
async fn both_sides_notice_a_peer_that_vanished() {
    let (near, far) = vanishing(Duration::from_secs(25)).await;
    let start = Instant::now();
    let server = tokio::spawn(async move {
        let mut connection = server::handshake(Lazy::new(far), &Config::default());
        let mut tunnel = connection
            .accept()
            .await
            .unwrap()
            .unwrap()
            .accept(None)
            .unwrap();
        let error = connection.accept().await.unwrap().unwrap_err();
        assert!(connection.accept().await.is_none());
        drop(connection);
        assert!(tunnel.read_u8().await.is_err());
        error
    });
    let (connection, sender) = client::handshake(Lazy::new(near), &Config::default())
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let (mut tunnel, _) = sender.connect(request("10.0.0.7:80")).await.unwrap();
    let error = tunnel.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let noticed = start.elapsed();
    assert!(
        noticed >= Duration::from_secs(25) && noticed <= Duration::from_secs(45),
        "{noticed:?}"
    );
    assert!(connection.await.unwrap().unwrap_err().is_timeout());
    assert!(server.await.unwrap().is_timeout());
    assert!(sender.is_closed());
}

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_what_is_open_and_refuses_what_is_new() {
    let (near, far) = duplex(1 << 16);
    let (drain, drained) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(async move {
        let mut connection = server::handshake(Lazy::new(far), &Config::default());
        let mut echo = connection
            .accept()
            .await
            .unwrap()
            .unwrap()
            .accept(None)
            .unwrap();
        let echo = tokio::spawn(async move {
            let mut read = Vec::new();
            echo.read_to_end(&mut read).await.unwrap();
            echo.write_all(&read).await.unwrap();
            echo.shutdown().await.unwrap();
            echo
        });
        tokio::select! {
            _ = drained => connection.graceful_shutdown(),
            _ = connection.accept() => panic!("one tunnel only"),
        }
        let mut late = 0;
        while let Some(incoming) = connection.accept().await {
            incoming.unwrap().refuse(StatusCode::SERVICE_UNAVAILABLE);
            late += 1;
        }
        drop(echo.await.unwrap());
        late
    });
    let (connection, sender) = client::handshake(Lazy::new(near), &Config::default())
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let (mut tunnel, _) = sender.connect(request("10.0.0.7:80")).await.unwrap();
    drain.send(()).unwrap();
    while !sender.is_closed() {
        tokio::task::yield_now().await;
    }
    let error = sender.connect(request("10.0.0.7:80")).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.is_retry_safe()),
        (ErrorKind::GoingAway, true)
    );
    sleep(Duration::from_secs(5)).await;
    tunnel.write_all(b"in flight").await.unwrap();
    tunnel.shutdown().await.unwrap();
    let mut read = String::new();
    tunnel.read_to_string(&mut read).await.unwrap();
    assert_eq!(read, "in flight");
    drop((tunnel, sender));
    assert_eq!(server.await.unwrap(), 0);
    connection.await.unwrap().unwrap();
}

/// The first GOAWAY names no stream: a CONNECT that crosses it on the wire is served.
#[tokio::test]
async fn a_connect_that_crosses_the_goaway_is_served() {
    let (near, far) = duplex(1 << 16);
    let (mut send, mut h2) = h2::client::handshake(near).await.unwrap();
    let mut connection = server::handshake(Lazy::new(far), &Config::default());
    // Both ends know each other.
    let first = crate::peers::connect("10.0.0.7:80");
    let (first, _body) = send.send_request(first, false).unwrap();
    let incoming = tokio::select! {
        incoming = connection.accept() => incoming.unwrap().unwrap(),
        _ = &mut h2 => panic!("closed"),
    };
    let _tunnel = incoming.accept(None).unwrap();
    let (crossing, _body) = send
        .send_request(crate::peers::connect("10.0.0.7:81"), false)
        .unwrap();
    connection.graceful_shutdown();
    let serve = async {
        let incoming = connection.accept().await.unwrap().unwrap();
        assert_eq!(incoming.authority().port(), 81);
        let _tunnel = incoming.accept(None).unwrap();
        let _ = connection.accept().await;
    };
    let answered = async {
        assert_eq!(first.await.unwrap().status(), 200);
        assert_eq!(crossing.await.unwrap().status(), 200);
    };
    tokio::select! {
        // The client first: its CONNECT is on the wire before the GOAWAY is.
        biased;
        _ = &mut h2 => panic!("closed"),
        () = serve => panic!("ended"),
        () = answered => {}
    }
}

#[tokio::test]
async fn the_last_handle_closes_the_connection() {
    let (near, far) = duplex(1 << 16);
    let server = tokio::spawn(async move {
        let mut connection = server::handshake(Lazy::new(far), &Config::default());
        let tunnel = connection
            .accept()
            .await
            .unwrap()
            .unwrap()
            .accept(None)
            .unwrap();
        while let Some(incoming) = connection.accept().await {
            drop(incoming.unwrap());
        }
        drop(tunnel);
    });
    let (connection, sender) = client::handshake(Lazy::new(near), &Config::default())
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let (tunnel, _) = sender.connect(request("10.0.0.7:80")).await.unwrap();
    drop(sender);
    tokio::task::yield_now().await;
    assert!(!connection.is_finished());
    drop(tunnel);
    connection.await.unwrap().unwrap();
    server.await.unwrap();
}

/// More than the windows hold, both ways, after GOAWAY.
#[tokio::test]
async fn a_drain_waits_for_all_of_it() {
    const MANY: usize = 2 << 20;
    let (near, far) = duplex(1 << 16);
    let (arrived, mut incoming) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        let mut connection = server::handshake(Lazy::new(far), &Config::default());
        let first = connection.accept().await.unwrap().unwrap();
        connection.graceful_shutdown();
        arrived.send(first).await.unwrap();
        assert!(connection.accept().await.is_none());
    });
    let (connection, sender) = client::handshake(Lazy::new(near), &Config::default())
        .await
        .unwrap();
    tokio::spawn(connection);
    let accept = async { incoming.recv().await.unwrap().accept(None).unwrap() };
    let (near, far) = tokio::join!(sender.connect(request("10.0.0.7:80")), accept);
    let (near, far) = (tokio::io::split(near.unwrap().0), tokio::io::split(far));
    let say = async |mut write: tokio::io::WriteHalf<_>| {
        write.write_all(&vec![7; MANY]).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let hear = async |mut read: tokio::io::ReadHalf<_>| {
        let mut heard = Vec::new();
        read.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard.len(), MANY);
    };
    tokio::join!(say(near.1), say(far.1), hear(near.0), hear(far.0));
}
