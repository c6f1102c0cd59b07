//! Copies between two streams.

use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};

use mesh_hbone::config::Config;
use mesh_hbone::copy::{
    Counters, End, Operation, bidirectional, bidirectional_counted, bidirectional_or_reset,
};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex,
};
use tokio::net::{TcpListener, TcpStream};

use crate::peers::tunnel;

async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    (near.unwrap(), far.unwrap().0)
}

#[tokio::test]
async fn both_directions_end_on_their_own() {
    let ((mut client, mut a), (mut b, mut server)) = (duplex(100), duplex(100));
    let copy = tokio::spawn(async move { bidirectional(&mut a, &mut b).await.unwrap() });
    let talk = async {
        client.write_all(&[1; 5_000]).await.unwrap();
        client.shutdown().await.unwrap();
        let mut read = Vec::new();
        client.read_to_end(&mut read).await.unwrap();
        read.len()
    };
    let serve = async {
        let mut read = Vec::new();
        server.read_to_end(&mut read).await.unwrap();
        server.write_all(&[2; 70_000]).await.unwrap();
        server.shutdown().await.unwrap();
        read.len()
    };
    let (got, served) = tokio::join!(talk, serve);
    let copied = copy.await.unwrap();
    assert_eq!((served, got), (5_000, 70_000));
    assert_eq!((copied.a_to_b, copied.b_to_a), (5_000, 70_000));
}

/// A duplex that tells how large the buffers are that it is given.
struct Watched {
    io: DuplexStream,
    largest: Arc<AtomicUsize>,
    last: Arc<AtomicUsize>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.largest.fetch_max(buf.remaining(), SeqCst);
        self.last.store(buf.remaining(), SeqCst);
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn buffers_grow_under_load_and_shrink_after_it() {
    let ((mut client, near), (mut b, mut server)) = (duplex(1 << 20), duplex(1 << 20));
    let (largest, last) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let mut a = Watched {
        io: near,
        largest: Arc::clone(&largest),
        last: Arc::clone(&last),
    };
    let counters = Arc::new(Counters::default());
    let counted = Arc::clone(&counters);
    tokio::spawn(async move { bidirectional_counted(&mut a, &mut b, &counted).await });
    client.write_all(b"x").await.unwrap();
    server.read_u8().await.unwrap();
    assert_eq!(largest.load(SeqCst), 1 << 10);
    client.write_all(&vec![0; 600 << 10]).await.unwrap();
    server.read_exact(&mut vec![0; 600 << 10]).await.unwrap();
    assert_eq!(largest.load(SeqCst), 64 << 10);
    for _ in 0..40 {
        client.write_all(b"x").await.unwrap();
        server.read_u8().await.unwrap();
    }
    assert_eq!(last.load(SeqCst), 1 << 10);
    assert_eq!(counters.copied().a_to_b, 1 + (600 << 10) + 40);
}

#[tokio::test]
async fn a_tcp_reset_becomes_a_reset_of_the_tunnel() {
    let (near, mut far, _sender) = tunnel(Config::default()).await;
    let (app, local) = tcp().await;
    let copy =
        tokio::spawn(
            async move { bidirectional_or_reset(local, near, &Counters::default()).await },
        );
    let (mut read, mut write) = app.into_split();
    write.write_all(b"part").await.unwrap();
    far.read_exact(&mut [0; 4]).await.unwrap();
    far.write_all(b"x").await.unwrap();
    read.read_u8().await.unwrap();
    let app = read.reunite(write).unwrap();
    app.set_zero_linger().unwrap();
    drop(app);
    let error = far.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let error = copy.await.unwrap().unwrap_err();
    assert_eq!((error.end(), error.operation()), (End::A, Operation::Read));
    assert_eq!((error.copied().a_to_b, error.copied().b_to_a), (4, 1));
}

#[tokio::test]
async fn a_reset_of_the_tunnel_becomes_a_tcp_reset() {
    let (near, mut far, _sender) = tunnel(Config::default()).await;
    let (mut app, local) = tcp().await;
    let copy =
        tokio::spawn(
            async move { bidirectional_or_reset(local, near, &Counters::default()).await },
        );
    far.write_all(b"part").await.unwrap();
    app.read_exact(&mut [0; 4]).await.unwrap();
    drop(far);
    assert_eq!(
        app.read_u8().await.unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    let error = copy.await.unwrap().unwrap_err();
    assert_eq!(
        (error.end(), error.into_io().kind()),
        (End::B, ErrorKind::ConnectionReset)
    );
}

#[tokio::test]
async fn a_copy_that_is_dropped_resets_both() {
    let (near, mut far, _sender) = tunnel(Config::default()).await;
    let (mut app, local) = tcp().await;
    let copy =
        tokio::spawn(
            async move { bidirectional_or_reset(local, near, &Counters::default()).await },
        );
    far.write_all(b"part").await.unwrap();
    app.read_exact(&mut [0; 4]).await.unwrap();
    copy.abort();
    for error in [far.read_u8().await, app.read_u8().await] {
        assert_eq!(error.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}
