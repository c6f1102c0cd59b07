//! How long the connections of the HTTP pool live, and what they keep.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Response, Version};
use mesh_core::hbone::config::Config;
use mesh_core::{BoxedIo, ErrorKind, Incoming, MeshListener, Transport};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use crate::mesh_requests::{OK, by_hand};
use crate::mesh_retries::{ask, three, whole};
use crate::mesh_world::{PORT, World, until};

/// A connection that is counted while it lives.
struct Counted {
    socket: TcpStream,
    live: Arc<AtomicUsize>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

struct Listens(TcpListener);

impl Incoming for Listens {
    fn accept(&mut self) -> Pin<Box<dyn Future<Output = (BoxedIo, SocketAddr)> + Send + '_>> {
        Box::pin(async {
            let (socket, source) = self.0.accept().await.unwrap();
            (BoxedIo::new(socket), source)
        })
    }

    fn local_addr(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }
}

/// TCP, and how many connections live that were dialled.
fn counted() -> (Transport, Arc<AtomicUsize>) {
    let live = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&live);
    let dial = move |to: SocketAddr| {
        let live = Arc::clone(&count);
        async move {
            let socket = TcpStream::connect(to).await?;
            live.fetch_add(1, Ordering::Relaxed);
            Ok(BoxedIo::new(Counted { socket, live }))
        }
    };
    let listen = |on: SocketAddr| async move {
        let listener: Box<dyn Incoming> = Box::new(Listens(TcpListener::bind(on).await?));
        Ok(listener)
    };
    (Transport::new(dial, listen), live)
}

/// Its application ends each connection after an answer.
fn answers_once(mut listener: MeshListener) {
    tokio::spawn(async move {
        while let Ok(stream) = listener.accept().await {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let (_, mut respond) = connection.accept().await.unwrap().unwrap();
            respond.send_response(Response::new(()), true).unwrap();
            connection.graceful_shutdown();
            while connection.accept().await.is_some() {}
        }
    });
}

/// What nobody can send on any more has no part in how long its TLS connection lives, though a dial that fails is no
/// reason to look what else can go.
#[tokio::test]
async fn a_connection_that_its_server_has_closed_keeps_no_tls_connection() {
    for (net, version) in [(208, Version::HTTP_11), (209, Version::HTTP_2)] {
        let (transport, live) = counted();
        let world = World::with(net, |node| {
            let node = node.transport(transport);
            node.hbone(Config::default().max_connections(1))
        });
        let (client, [a, _b, _c]) = three(&world).await;
        match version {
            Version::HTTP_2 => answers_once(a),
            _ => drop(by_hand(a, OK, 1)),
        }
        // Nobody is there.
        let nobody = [
            world.workload("nobody", 9).into(),
            world.service("nobody", 9).into(),
        ];
        world.control.set(nobody.into()).await;
        let response = ask(&client, "a", version).await.unwrap();
        whole(response).await;
        // Until its end is here.
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(live.load(Ordering::Relaxed), 1);
        let error = ask(&client, "nobody", version).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectFailed, "{error:?}");
        until("none is left", || live.load(Ordering::Relaxed) == 0).await;
    }
}

#[tokio::test]
async fn an_idle_connection_that_is_too_old_makes_room_for_its_own_successor() {
    let world = World::with(210, |node| {
        let node = node.http_idle_timeout(Duration::from_millis(20));
        node.hbone(Config::default().max_connections(1).max_outgoing_streams(1))
    });
    let (client, server) = world.pair().await;
    let accepted = by_hand(server.listen(PORT).await.unwrap(), OK, usize::MAX);
    for _ in 0..2 {
        let response = ask(&client, "server", Version::HTTP_11).await.unwrap();
        assert_eq!(whole(response).await, "ok");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(accepted.load(Ordering::Relaxed), 2);
}
