use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::{LingerReset, TcpSettings, refuse_itself};

async fn pair() -> (TcpStream, TcpStream) {
    let settings = TcpSettings::default();
    let listener = settings.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let to = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(settings.connect(to), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

#[tokio::test]
async fn an_unfinished_connection_ends_in_a_reset() {
    let (near, mut far) = pair().await;
    let mut near = LingerReset::new(near);
    near.write_all(b"half of").await.unwrap();
    drop(near);
    let mut read = Vec::new();
    let error = far.read_to_end(&mut read).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_finished_connection_ends_in_an_end() {
    let (near, mut far) = pair().await;
    let mut near = LingerReset::new(near);
    near.write_all(b"all of it").await.unwrap();
    near.shutdown().await.unwrap();
    drop(near);
    let mut read = Vec::new();
    far.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, b"all of it");
}

#[tokio::test]
async fn a_reset_can_follow_the_end_of_our_side() {
    let (near, mut far) = pair().await;
    let mut near = LingerReset::new(near);
    near.shutdown().await.unwrap();
    assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 0);
    assert!(near.stream.peer_addr().is_ok());
    near.reset();
    // The far side hears of it when it writes, or has heard already.
    let error = loop {
        if let Err(error) = far.write_all(b"more").await {
            break error;
        }
        tokio::task::yield_now().await;
    };
    assert!(
        matches!(
            error.kind(),
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_refused() {
    let settings = TcpSettings::default();
    let listener = settings.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let to = listener.local_addr().unwrap();
    drop(listener);
    let error = settings.connect(to).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

/// Nobody accepts, and the queue of one is full: the kernel drops what comes, as a firewall would.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_peer_that_does_not_answer_is_given_up() {
    let settings = TcpSettings {
        connect_timeout: Duration::from_millis(200),
        backlog: 0,
        ..TcpSettings::default()
    };
    let listener = settings.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let to = listener.local_addr().unwrap();
    let mut connected = Vec::new();
    let error = loop {
        assert!(connected.len() < 16, "the queue has no end");
        match settings.connect(to).await {
            Ok(stream) => connected.push(stream),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_socket_that_met_itself_is_refused() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let itself = socket.local_addr().unwrap();
    let stream = socket.connect(itself).await.unwrap();
    let error = refuse_itself(stream).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn options_can_be_set() {
    let settings = TcpSettings {
        keepalive_time: None,
        user_timeout: Some(Duration::from_secs(30)),
        ..TcpSettings::default()
    };
    let listener = settings.bind("[::1]:0".parse().unwrap()).unwrap();
    let stream = settings
        .connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let socket = socket2::SockRef::from(&stream);
    assert!(!socket.keepalive().unwrap());
    assert_eq!(
        socket.tcp_user_timeout().unwrap(),
        Some(Duration::from_secs(30))
    );
}

/// A restart: the old connections' TIME_WAIT is on our side, because we ended them first.
#[tokio::test]
async fn a_port_can_be_listened_on_again_at_once() {
    let settings = TcpSettings::default();
    let listener = settings.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(settings.connect(address), listener.accept());
    let (mut client, (mut accepted, _)) = (client.unwrap(), accepted.unwrap());
    accepted.shutdown().await.unwrap();
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    client.shutdown().await.unwrap();
    assert_eq!(accepted.read(&mut [0; 1]).await.unwrap(), 0);
    drop((accepted, listener));
    let again = settings.bind(address).unwrap();
    // Two at once would steal connections from each other.
    assert!(settings.bind(address).is_err());
    drop(again);
}
