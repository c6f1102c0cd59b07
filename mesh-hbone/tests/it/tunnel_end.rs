//! Ends and resets: truncated data never looks complete.

use std::io::ErrorKind;

use bytes::Bytes;
use h2::Reason;
use mesh_hbone::config::Config;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::peers::{to_bare_client, to_bare_server, to_bare_server_with, tunnel};

async fn read_all(recv: &mut h2::RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(chunk) = recv.data().await {
        let chunk = chunk?;
        let _ = recv.flow_control().release_capacity(chunk.len());
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

#[tokio::test]
async fn either_side_may_end_first_while_the_other_goes_on() {
    for swap in [false, true] {
        let (near, far, _sender) = tunnel(Config::default()).await;
        let (mut first, mut second) = if swap { (far, near) } else { (near, far) };
        first.write_all(b"question").await.unwrap();
        first.shutdown().await.unwrap();
        let mut read = String::new();
        second.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "question");
        assert_eq!(
            first.write(b"more").await.unwrap_err().kind(),
            ErrorKind::BrokenPipe
        );
        for _ in 0..3 {
            second.write_all(b"answer").await.unwrap();
            let mut answer = [0; 6];
            first.read_exact(&mut answer).await.unwrap();
        }
        second.shutdown().await.unwrap();
        second.shutdown().await.unwrap();
        assert_eq!(first.read(&mut [0; 1]).await.unwrap(), 0);
        assert_eq!(first.read(&mut [0; 1]).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn an_unfinished_tunnel_that_is_dropped_is_reset_with_connect_error() {
    let (tunnel, _send, mut recv, _sender) = to_bare_server().await;
    drop(tunnel);
    let error = read_all(&mut recv).await.unwrap_err();
    assert_eq!(
        (error.reason(), error.is_reset()),
        (Some(Reason::CONNECT_ERROR), true)
    );

    let (mut tunnel, _send, mut recv, _client) = to_bare_client().await;
    tunnel.write_all(&[7; 300]).await.unwrap();
    drop(tunnel);
    assert_eq!(
        read_all(&mut recv).await.unwrap_err().reason(),
        Some(Reason::CONNECT_ERROR)
    );
}

#[tokio::test]
async fn dropped_after_reading_to_the_end_is_still_unfinished() {
    let (mut tunnel, mut send, mut recv, _sender) = to_bare_server().await;
    send.send_data(Bytes::from_static(b"all"), true).unwrap();
    assert_eq!(tunnel.read_to_end(&mut Vec::new()).await.unwrap(), 3);
    drop(tunnel);
    assert_eq!(
        read_all(&mut recv).await.unwrap_err().reason(),
        Some(Reason::CONNECT_ERROR)
    );
}

#[tokio::test]
async fn dropped_after_both_ends_it_resets_nothing() {
    let (mut tunnel, mut send, mut recv, _sender) = to_bare_server().await;
    send.send_data(Bytes::from_static(b"all"), true).unwrap();
    tunnel.read_to_end(&mut Vec::new()).await.unwrap();
    tunnel.write_all(b"said").await.unwrap();
    tunnel.shutdown().await.unwrap();
    drop(tunnel);
    assert_eq!(read_all(&mut recv).await.unwrap(), b"said");
}

/// A tunnel that said 60 000 bytes, ended and was dropped; the peer has read them.
async fn dropped_after_its_end(
    config: Config,
) -> (h2::SendStream<Bytes>, mesh_hbone::client::Sender) {
    let (mut tunnel, send, mut recv, sender) = to_bare_server_with(config).await;
    let said = vec![5; 60_000];
    tunnel.write_all(&said).await.unwrap();
    tunnel.shutdown().await.unwrap();
    drop(tunnel);
    assert_eq!(sender.live_streams(), 1, "what lingers keeps its place");
    assert_eq!(read_all(&mut recv).await.unwrap(), said);
    (send, sender)
}

async fn reset_of(send: &mut h2::SendStream<Bytes>) -> Reason {
    std::future::poll_fn(|cx| send.poll_reset(cx))
        .await
        .unwrap()
}

async fn no_stream_is_live(sender: &mesh_hbone::client::Sender) {
    while sender.live_streams() > 0 {
        tokio::task::yield_now().await;
    }
}

/// As a TCP socket that is closed after a shutdown: what was written arrives, what comes is unwelcome.
#[tokio::test]
async fn dropped_after_its_own_end_it_resets_what_comes() {
    let (mut send, sender) = dropped_after_its_end(Config::default()).await;
    send.send_data(Bytes::from_static(b"nobody reads this"), false)
        .unwrap();
    assert_eq!(reset_of(&mut send).await, Reason::CONNECT_ERROR);
    no_stream_is_live(&sender).await;
}

#[tokio::test]
async fn dropped_after_its_own_end_it_resets_what_came_unread() {
    let (mut tunnel, mut send, _recv, _sender) = to_bare_server().await;
    send.send_data(Bytes::from_static(b"unread"), false)
        .unwrap();
    let mut first = [0; 1];
    tunnel.read_exact(&mut first).await.unwrap();
    tunnel.shutdown().await.unwrap();
    drop(tunnel);
    assert_eq!(reset_of(&mut send).await, Reason::CONNECT_ERROR);
}

#[tokio::test]
async fn dropped_after_its_own_end_it_ends_cleanly_with_the_peer() {
    let (mut send, sender) = dropped_after_its_end(Config::default()).await;
    send.send_data(Bytes::new(), true).unwrap();
    no_stream_is_live(&sender).await;
    for _ in 0..16 {
        tokio::task::yield_now().await;
    }
    let reset = futures_util::FutureExt::now_or_never(reset_of(&mut send));
    assert!(reset.is_none(), "{reset:?}");
}

#[tokio::test(start_paused = true)]
async fn dropped_after_its_own_end_it_waits_for_the_peer_no_longer_than_it_may() {
    let linger = std::time::Duration::from_secs(3);
    let (mut send, sender) = dropped_after_its_end(Config::default().linger(linger)).await;
    let began = tokio::time::Instant::now();
    assert_eq!(reset_of(&mut send).await, Reason::NO_ERROR);
    assert!(began.elapsed() <= 2 * linger);
    no_stream_is_live(&sender).await;
}

#[tokio::test]
async fn abort_resets_at_once() {
    let (mut tunnel, _send, mut recv, _sender) = to_bare_server().await;
    tunnel.abort();
    assert_eq!(
        read_all(&mut recv).await.unwrap_err().reason(),
        Some(Reason::CONNECT_ERROR)
    );
    assert!(tunnel.read(&mut [0; 8]).await.is_err());
    assert!(tunnel.write(&[0; 8]).await.is_err());
}

#[tokio::test]
async fn a_reset_handle_resets_a_tunnel_that_nobody_polls() {
    let (mut tunnel, _send, mut recv, _client) = to_bare_client().await;
    let handle = tunnel.reset_handle();
    tunnel.write_all(b"said").await.unwrap();
    handle.reset();
    assert_eq!(
        read_all(&mut recv).await.unwrap_err().reason(),
        Some(Reason::CONNECT_ERROR)
    );
    assert!(tunnel.read(&mut [0; 8]).await.is_err());
    assert!(tunnel.write(&[0; 8]).await.is_err());
    assert!(tunnel.shutdown().await.is_err(), "it did not end well");
}

#[tokio::test]
async fn a_reset_handle_wakes_a_reader_and_leaves_an_ended_tunnel_alone() {
    let (mut tunnel, _send, _recv, _client) = to_bare_client().await;
    let handle = tunnel.reset_handle();
    let reads = tokio::spawn(async move { tunnel.read(&mut [0; 8]).await });
    tokio::task::yield_now().await;
    handle.reset();
    let error = reads.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    handle.reset();

    let (mut tunnel, mut send, mut recv, _client) = to_bare_client().await;
    let handle = tunnel.reset_handle();
    send.send_data(Bytes::from_static(b"all"), true).unwrap();
    tunnel.read_to_end(&mut Vec::new()).await.unwrap();
    tunnel.write_all(b"said").await.unwrap();
    tunnel.shutdown().await.unwrap();
    drop(tunnel);
    handle.reset();
    assert_eq!(read_all(&mut recv).await.unwrap(), b"said");
}

#[tokio::test]
async fn a_reset_is_connection_reset_whatever_its_reason() {
    for reason in [
        Reason::NO_ERROR,
        Reason::CANCEL,
        Reason::CONNECT_ERROR,
        Reason::INTERNAL_ERROR,
        Reason::STREAM_CLOSED,
        Reason::REFUSED_STREAM,
        Reason::FLOW_CONTROL_ERROR,
    ] {
        let (mut tunnel, mut send, _recv, _sender) = to_bare_server().await;
        send.send_data(Bytes::from_static(b"part"), false).unwrap();
        let mut part = [0; 4];
        tunnel.read_exact(&mut part).await.unwrap();
        send.send_reset(reason);
        let error = tunnel.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{reason:?}");
        let error = error
            .get_ref()
            .unwrap()
            .downcast_ref::<mesh_hbone::Error>()
            .unwrap();
        assert_eq!(error.kind(), mesh_hbone::ErrorKind::Reset);
        let error = tunnel.write(b"x").await.unwrap_err();
        let expected = match reason {
            Reason::NO_ERROR | Reason::STREAM_CLOSED => ErrorKind::BrokenPipe,
            _ => ErrorKind::ConnectionReset,
        };
        assert_eq!(error.kind(), expected, "{reason:?}");
    }
}

#[tokio::test]
async fn a_reset_after_the_end_leaves_the_end_clean() {
    for reason in [Reason::NO_ERROR, Reason::CANCEL] {
        let (mut tunnel, mut send, recv, _sender) = to_bare_server().await;
        send.send_data(Bytes::from_static(b"all of it"), true)
            .unwrap();
        tokio::task::yield_now().await;
        // h2 resets with NO_ERROR itself when a server's stream is dropped after its end.
        if reason == Reason::NO_ERROR {
            drop((send, recv));
        } else {
            let mut read = [0; 1];
            tunnel.read_exact(&mut read).await.unwrap();
            send.send_reset(reason);
        }
        let mut read = Vec::new();
        tunnel.read_to_end(&mut read).await.unwrap();
        assert!(b"all of it".ends_with(&read[..]) && read.len() >= 8);
        tokio::task::yield_now().await;
        let kind = tunnel.write_all(&[0; 200_000]).await.unwrap_err().kind();
        let expected = if reason == Reason::NO_ERROR {
            ErrorKind::BrokenPipe
        } else {
            ErrorKind::ConnectionReset
        };
        assert_eq!(kind, expected);
    }
}

#[tokio::test]
async fn a_connection_that_breaks_cuts_its_tunnels() {
    let (near, far) = tokio::io::duplex(1 << 16);
    let server = tokio::spawn(async move {
        let mut connection = mesh_hbone::server::handshake(far, &Config::default());
        let tunnel = connection
            .accept()
            .await
            .unwrap()
            .unwrap()
            .accept(None)
            .unwrap();
        let _ =
            tokio::time::timeout(std::time::Duration::from_millis(50), connection.accept()).await;
        drop((connection, tunnel));
    });
    let (connection, sender) = mesh_hbone::client::handshake(near, &Config::default())
        .await
        .unwrap();
    tokio::spawn(connection);
    let (mut tunnel, _) = sender
        .connect(crate::peers::request("10.0.0.7:80"))
        .await
        .unwrap();
    let error = tunnel.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(
        tunnel.write_all(&[0; 300_000]).await.unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert!(sender.is_closed());
    let error = sender
        .connect(crate::peers::request("10.0.0.7:80"))
        .await
        .unwrap_err();
    assert!(error.is_retry_safe(), "{error:?}");
    server.await.unwrap();
}
