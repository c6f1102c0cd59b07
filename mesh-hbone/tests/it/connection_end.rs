//! Who closes a connection that drains.

use std::time::Duration;

use mesh_hbone::config::Config;
use mesh_hbone::server;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::hostile::wire;
use crate::peers::Lazy;

const LINGER: Duration = Duration::from_secs(10);

enum Leave {
    Gracefully,
    Hastily,
    First(Leaving),
}

/// Leaves again, in haste, at a word.
type Leaving = mpsc::Receiver<()>;

/// A client that takes part in a drain frame by frame: its tunnel has ended when this returns.
async fn drained(leave: Leave) -> DuplexStream {
    let (mut near, far) = duplex(1 << 16);
    tokio::spawn(async move {
        let config = Config::default().linger(LINGER);
        let mut connection = server::handshake(Lazy::new(far), &config);
        let incoming = connection.accept().await.unwrap().unwrap();
        let mut tunnel = incoming.accept(None).unwrap();
        let mut word = None;
        match leave {
            Leave::Gracefully => connection.graceful_shutdown(),
            Leave::Hastily => connection.hasty_shutdown(),
            Leave::First(leaving) => {
                connection.graceful_shutdown();
                word = Some(leaving);
            }
        }
        tokio::spawn(async move {
            tunnel.write_all(b"all").await.unwrap();
            tunnel.shutdown().await.unwrap();
            tunnel.read_to_end(&mut Vec::new()).await.unwrap();
        });
        if let Some(mut word) = word {
            tokio::select! {
                ended = connection.accept() => panic!("{ended:?}"),
                _ = word.recv() => connection.hasty_shutdown(),
            }
        }
        assert!(connection.accept().await.is_none());
    });
    let mut hello = wire::PREFACE.to_vec();
    hello.extend(wire::settings(&[]));
    hello.extend(wire::connect(1));
    hello.extend(wire::data(1, wire::END_STREAM, b""));
    near.write_all(&hello).await.unwrap();
    let (mut read, mut goaways) = (Vec::new(), 0);
    // One that names no stream yet, and after an answer to its PING the real one.
    while goaways < 2 {
        match wire::Frame::take(&mut read) {
            Some(frame) if frame.kind == wire::PING && frame.flags & wire::ACK == 0 => {
                let pong = wire::frame(wire::PING, wire::ACK, 0, &frame.payload);
                near.write_all(&pong).await.unwrap();
            }
            Some(frame) => goaways += u32::from(frame.kind == wire::GOAWAY),
            None => assert_ne!(near.read_buf(&mut read).await.unwrap(), 0),
        }
    }
    near
}

async fn closes(near: &mut DuplexStream) {
    near.read_to_end(&mut Vec::new()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_has_time_to_close_first() {
    let mut near = drained(Leave::Gracefully).await;
    let early = timeout(LINGER - Duration::from_millis(1), closes(&mut near)).await;
    assert!(early.is_err(), "closed under a client that may still read");
    closes(&mut near).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_closes_is_not_waited_for() {
    let mut near = drained(Leave::Gracefully).await;
    near.shutdown().await.unwrap();
    timeout(Duration::from_millis(1), closes(&mut near))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn in_haste_nobody_is_waited_for() {
    let mut near = drained(Leave::Hastily).await;
    timeout(Duration::from_millis(1), closes(&mut near))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn haste_may_come_later() {
    let (word, leaving) = mpsc::channel(1);
    let mut near = drained(Leave::First(leaving)).await;
    let early = timeout(Duration::from_secs(1), closes(&mut near)).await;
    assert!(early.is_err());
    word.send(()).await.unwrap();
    timeout(Duration::from_millis(1), closes(&mut near))
        .await
        .unwrap();
}
