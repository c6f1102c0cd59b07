//! Peers over memory: our own, and bare h2 ones that say what they saw.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::{RecvStream, SendStream, client::SendRequest, server::SendResponse};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use mesh_hbone::client::{self, ConnectRequest, Sender};
use mesh_hbone::config::Config;
use mesh_hbone::headers::{Baggage, ConnectHeaders};
use mesh_hbone::server::{self, Incoming};
use mesh_hbone::{DeferredFlush, Tunnel};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::sync::mpsc;

/// Takes deferral at its word: nothing leaves before `poll_flush_now` or a full buffer, so a byte that
/// nobody flushes is a byte that never arrives.
pub(crate) struct Lazy {
    io: DuplexStream,
    buffer: BytesMut,
    deferred: bool,
}

const LAZY_BUFFER: usize = 64 << 10;

impl Lazy {
    pub(crate) fn new(io: DuplexStream) -> Self {
        Self {
            io,
            buffer: BytesMut::new(),
            deferred: false,
        }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.buffer.is_empty() {
            let count = ready!(Pin::new(&mut self.io).poll_write(cx, &self.buffer))?;
            self.buffer.advance(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl DeferredFlush for Lazy {
    fn defer_flushes(mut self: Pin<&mut Self>) {
        self.deferred = true;
    }

    fn poll_flush_now(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drain(cx)
    }
}

impl AsyncRead for Lazy {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Lazy {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.buffer.len() >= LAZY_BUFFER {
            ready!(self.poll_drain(cx))?;
        }
        let mut count = 0;
        for buf in bufs {
            self.buffer.extend_from_slice(buf);
            count += buf.len();
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.deferred {
            Poll::Ready(Ok(()))
        } else {
            self.poll_drain(cx)
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

pub(crate) fn request(authority: &str) -> ConnectRequest {
    ConnectRequest::new(authority.parse().unwrap(), ConnectHeaders::default())
}

/// Our client, and what arrives at our server. Time-outs of either end show as panics of its task.
pub(crate) async fn ours(config: Config) -> (Sender, mpsc::Receiver<Incoming>) {
    ours_over(config.clone(), config, 1 << 20).await
}

pub(crate) async fn ours_over(
    client: Config,
    server: Config,
    transport: usize,
) -> (Sender, mpsc::Receiver<Incoming>) {
    let (near, far) = duplex(transport);
    let (arrived, incoming) = mpsc::channel(256);
    tokio::spawn(async move {
        let mut connection = server::handshake(Lazy::new(far), &server);
        while let Some(accepted) = connection.accept().await {
            let Ok(accepted) = accepted else { return };
            arrived.send(accepted).await.unwrap();
        }
    });
    let (connection, sender) = client::handshake(Lazy::new(near), &client).await.unwrap();
    tokio::spawn(connection);
    (sender, incoming)
}

/// One tunnel between our client and our server, with what has to live as long as it.
pub(crate) async fn tunnel(config: Config) -> (Tunnel, Tunnel, Sender) {
    let (sender, mut incoming) = ours(config).await;
    let (near, far) = open(&sender, &mut incoming).await;
    tokio::spawn(async move { while incoming.recv().await.is_some() {} });
    (near, far, sender)
}

pub(crate) async fn open(
    sender: &Sender,
    incoming: &mut mpsc::Receiver<Incoming>,
) -> (Tunnel, Tunnel) {
    let accept = async {
        incoming
            .recv()
            .await
            .unwrap()
            .accept(Baggage::default())
            .unwrap()
    };
    let (near, far) = tokio::join!(sender.connect(request("10.0.0.7:80")), accept);
    (near.unwrap().0, far)
}

/// A bare h2 server whose requests come out of the channel.
pub(crate) type Seen = (Request<RecvStream>, SendResponse<Bytes>);

pub(crate) async fn against_bare_server(config: Config) -> (Sender, mpsc::Receiver<Seen>) {
    let (near, far) = duplex(1 << 20);
    let (arrived, seen) = mpsc::channel(256);
    tokio::spawn(async move {
        let mut connection = h2::server::handshake(far).await.unwrap();
        while let Some(Ok(request)) = connection.accept().await {
            arrived.send(request).await.unwrap();
        }
    });
    let (connection, sender) = client::handshake(Lazy::new(near), &config).await.unwrap();
    tokio::spawn(connection);
    (sender, seen)
}

/// A tunnel of ours to a bare h2 server's streams.
pub(crate) async fn to_bare_server() -> (Tunnel, SendStream<Bytes>, RecvStream, Sender) {
    to_bare_server_with(Config::default()).await
}

pub(crate) async fn to_bare_server_with(
    config: Config,
) -> (Tunnel, SendStream<Bytes>, RecvStream, Sender) {
    let (sender, mut seen) = against_bare_server(config).await;
    let answer = async {
        let (request, mut respond) = seen.recv().await.unwrap();
        (
            respond.send_response(Response::new(()), false).unwrap(),
            request.into_body(),
        )
    };
    let (tunnel, (send, recv)) = tokio::join!(sender.connect(request("10.0.0.7:80")), answer);
    tokio::spawn(async move { while seen.recv().await.is_some() {} });
    (tunnel.unwrap().0, send, recv, sender)
}

/// A bare h2 client before our server.
pub(crate) async fn against_bare_client(
    config: Config,
) -> (SendRequest<Bytes>, mpsc::Receiver<Incoming>) {
    let (near, far) = duplex(1 << 20);
    let (arrived, incoming) = mpsc::channel(256);
    tokio::spawn(async move {
        let mut connection = server::handshake(Lazy::new(far), &config);
        while let Some(Ok(accepted)) = connection.accept().await {
            arrived.send(accepted).await.unwrap();
        }
    });
    let (send, connection) = h2::client::handshake(near).await.unwrap();
    tokio::spawn(async move { connection.await.ok() });
    (send.ready().await.unwrap(), incoming)
}

/// A tunnel of ours to a bare h2 client's streams.
pub(crate) async fn to_bare_client() -> (Tunnel, SendStream<Bytes>, RecvStream, SendRequest<Bytes>)
{
    to_bare_client_with(Config::default()).await
}

pub(crate) async fn to_bare_client_with(
    config: Config,
) -> (Tunnel, SendStream<Bytes>, RecvStream, SendRequest<Bytes>) {
    let (mut send, mut incoming) = against_bare_client(config).await;
    let (response, body) = send.send_request(connect("10.0.0.7:80"), false).unwrap();
    let tunnel = incoming
        .recv()
        .await
        .unwrap()
        .accept(Baggage::default())
        .unwrap();
    tokio::spawn(async move { while incoming.recv().await.is_some() {} });
    (tunnel, body, response.await.unwrap().into_body(), send)
}

pub(crate) fn connect(authority: &str) -> Request<()> {
    Request::builder()
        .method(Method::CONNECT)
        .uri(authority)
        .body(())
        .unwrap()
}

/// The status and headers of the answer of our server to a request.
pub(crate) async fn answer(
    send: &mut SendRequest<Bytes>,
    request: Request<()>,
) -> Result<(StatusCode, HeaderMap), h2::Error> {
    let (response, _body) = send.send_request(request, false)?;
    let (parts, mut body) = response.await?.into_parts();
    if parts.status != StatusCode::OK {
        assert!(body.data().await.is_none(), "a refusal has no body");
    }
    Ok((parts.status, parts.headers))
}
