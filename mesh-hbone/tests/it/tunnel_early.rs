//! A CONNECT that leaves before the server has said anything.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_hbone::client::{self, Sender};
use mesh_hbone::config::Config;
use mesh_hbone::pool::Pool;
use mesh_hbone::{Error, ErrorKind, Side, tls};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::authority::{Authority, SERVER, id, pair};
use crate::hostile::Raw;
use crate::hostile::wire::{
    DATA, END_STREAM, HEADERS, MAX_CONCURRENT_STREAMS, NO_ERROR, PREFACE, accepted, data, goaway,
    settings, settings_ack,
};
use crate::peers::request;

const FOREIGNER: &str = "spiffe://elsewhere.example/ns/default/sa/client";

/// A client that has just started, and a server that listens and says nothing by itself.
async fn started(config: &Config) -> (Sender, JoinHandle<Result<(), Error>>, Raw) {
    let (near, far) = pair().await;
    let (connection, sender) = client::start(near, config).await.unwrap();
    let mut raw = Raw::new(far, PREFACE.len());
    raw.listen();
    (sender, tokio::spawn(connection), raw)
}

#[tokio::test(start_paused = true)]
async fn the_first_connect_does_not_wait_for_the_servers_settings() {
    let (sender, _connection, mut raw) = started(&Config::default()).await;
    let asked = {
        let sender = sender.clone();
        tokio::spawn(async move { sender.connect(request("10.0.0.7:80")).await })
    };
    let stream = raw.until(HEADERS).await.stream;
    // One at a time, until it is known how many the server takes.
    assert_eq!((sender.max_streams(), sender.available_streams()), (1, 0));
    let second = sender.connect(request("10.0.0.7:80")).await.unwrap_err();
    assert_eq!(second.kind(), ErrorKind::Overloaded);
    assert!(second.is_retry_safe());

    let says = [
        settings(&[(MAX_CONCURRENT_STREAMS, 7)]),
        settings_ack(),
        accepted(stream),
        data(stream, 0, b"pong"),
    ];
    assert!(raw.send(&says.concat()).await);
    let (mut tunnel, _) = asked.await.unwrap().unwrap();
    sender.settled().await.unwrap();
    assert_eq!((sender.max_streams(), sender.available_streams()), (7, 6));
    tunnel.write_all(b"ping").await.unwrap();
    assert_eq!(raw.until_on(DATA, stream).await.payload, b"ping");
    let mut pong = [0; 4];
    tunnel.read_exact(&mut pong).await.unwrap();
    assert_eq!(&pong, b"pong");
    assert!(raw.send(&data(stream, END_STREAM, b"")).await);
    assert_eq!(tunnel.read(&mut pong).await.unwrap(), 0);
    tunnel.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_times_out_the_connection_and_its_connect() {
    let config = Config::default()
        .handshake_timeout(Duration::from_secs(3))
        .connect_timeout(Duration::from_secs(20));
    let (sender, connection, _raw) = started(&config).await;
    let start = Instant::now();
    let error = sender.connect(request("10.0.0.7:80")).await.unwrap_err();
    assert_eq!(start.elapsed(), Duration::from_secs(3));
    assert!(error.is_timeout() && error.is_retry_safe(), "{error:?}");
    assert!(error.to_string().contains("SETTINGS"), "{error}");
    assert!(sender.settled().await.unwrap_err().is_timeout());
    assert!(connection.await.unwrap().unwrap_err().is_timeout());
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_times_out_before_the_settings_is_safe_to_retry() {
    let config = Config::default().connect_timeout(Duration::from_secs(3));
    let (sender, _connection, _raw) = started(&config).await;
    let error = sender.connect(request("10.0.0.7:80")).await.unwrap_err();
    assert!(error.is_timeout() && error.is_retry_safe(), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_closes_at_once_did_nothing() {
    let (sender, connection, mut raw) = started(&Config::default()).await;
    let asked = tokio::spawn({
        let sender = sender.clone();
        async move { sender.connect(request("10.0.0.7:80")).await }
    });
    raw.until(HEADERS).await;
    raw.close().await;
    let error = asked.await.unwrap().unwrap_err();
    assert_eq!(
        (error.kind(), error.side()),
        (ErrorKind::Closed, Side::Upstream)
    );
    assert!(error.is_retry_safe());
    assert!(sender.settled().await.is_err());
    assert!(connection.await.unwrap().is_err());
}

/// TLS 1.3: the client is done before the server has looked at its certificate.
#[tokio::test(start_paused = true)]
async fn a_refused_certificate_shows_by_the_first_connect() {
    let root = Authority::root("root");
    let (client, server) = (root.credentials(FOREIGNER), root.credentials(SERVER));
    let (near, far) = duplex(64 << 10);
    let refusing = tokio::spawn(async move { tls::accept(far, &server).await.map(drop) });
    let near = tls::connect_unflushed(near, &client, &[id(SERVER)])
        .await
        .unwrap();
    let (connection, sender) = client::start(near, &Config::default()).await.unwrap();
    tokio::spawn(connection);
    let error = sender.connect(request("10.0.0.7:80")).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.side()),
        (ErrorKind::Refused, Side::Upstream)
    );
    assert!(error.is_retry_safe());
    let refusal = refusing.await.unwrap().unwrap_err();
    assert_eq!(refusal.kind(), ErrorKind::UnexpectedTrustDomain);
}

#[tokio::test]
async fn whoever_waits_for_the_settings_hears_when_the_connection_is_dropped() {
    let (near, _far) = pair().await;
    let (connection, sender) = client::start(near, &Config::default()).await.unwrap();
    let settled = sender.settled();
    drop(connection);
    assert_eq!(settled.await.unwrap_err().kind(), ErrorKind::Closed);
}

/// A server that begins to drain during the handshake says both at once.
#[tokio::test(start_paused = true)]
async fn who_waits_for_a_peer_that_leaves_with_its_settings_is_dialled_for_anew() {
    let ((near, far), (other, _other)) = (pair().await, pair().await);
    let transports = Arc::new(Mutex::new(VecDeque::from([near, other])));
    let pool = Pool::new(Config::default());
    let checkout = || {
        let (pool, transports) = (pool.clone(), Arc::clone(&transports));
        let dial = move || async move {
            let near = transports.lock().unwrap().pop_front();
            client::start(near.expect("a third dial"), &Config::default()).await
        };
        async move { pool.checkout("peer", dial).await }
    };
    let first = tokio::spawn({
        let lease = checkout();
        async move { lease.await?.connect(request("10.0.0.7:80")).await.map(drop) }
    });
    let mut raw = Raw::new(far, PREFACE.len());
    raw.listen();
    let stream = raw.until(HEADERS).await.stream;
    let second = tokio::spawn(checkout());
    tokio::task::yield_now().await;
    let says = [
        settings(&[]),
        goaway(u32::MAX >> 1, NO_ERROR),
        accepted(stream),
    ];
    assert!(raw.send(&says.concat()).await);
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    assert!(transports.lock().unwrap().is_empty());
}
