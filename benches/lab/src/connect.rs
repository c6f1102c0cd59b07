//! CONNECT streams by the `h2` crate alone, with its own settings: what HBONE's protocol costs with the library that
//! everybody uses. No policy, no pool, no keep-alive; each byte is copied once on its way in and once on its way out.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::bare::{self, Keys};
use crate::{BoxError, Done};

/// HBONE's.
const ALPN: &[u8] = b"h2";

/// Opens streams, all on one connection, as a mesh has up to 100 for one peer.
pub(crate) struct Client {
    connector: TlsConnector,
    to: SocketAddr,
    connection: OnceCell<SendRequest<Bytes>>,
}

impl Client {
    pub(crate) fn new(keys: &Keys, to: SocketAddr) -> Result<Self, BoxError> {
        Ok(Self {
            connector: connector(keys)?,
            to,
            connection: OnceCell::new(),
        })
    }

    pub(crate) async fn open(&self) -> Result<Stream, BoxError> {
        let connection = self.connection.get_or_try_init(|| self.connect()).await?;
        open(connection.clone(), self.to).await
    }

    async fn connect(&self) -> Result<SendRequest<Bytes>, BoxError> {
        let stream = TcpStream::connect(self.to).await?;
        stream.set_nodelay(true)?;
        let stream = bare::connect(&self.connector, stream).await?;
        let (sender, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// Opens a stream on a connection.
pub(crate) async fn open(
    connection: SendRequest<Bytes>,
    to: SocketAddr,
) -> Result<Stream, BoxError> {
    let mut connection = connection.ready().await?;
    let request = Request::connect(to.to_string()).body(())?;
    let (response, send) = connection.send_request(request, false)?;
    let response = response.await?;
    match response.status() {
        StatusCode::OK => Ok(Stream::new(send, response.into_body())),
        status => Err(format!("CONNECT: {status}").into()),
    }
}

/// What makes the connection of a [`Client`].
pub(crate) fn connector(keys: &Keys) -> Result<TlsConnector, BoxError> {
    let mut config = keys.client()?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config).into())
}

/// What accepts the connection of a [`Client`].
pub(crate) fn acceptor(keys: &Keys) -> Result<TlsAcceptor, BoxError> {
    let mut config = keys.server()?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config).into())
}

/// Answers each CONNECT of a connection with a task of `each`.
pub(crate) async fn serve<F>(
    io: impl AsyncRead + AsyncWrite + Unpin,
    each: impl Fn(Stream) -> F,
) -> Done
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connection = h2::server::handshake(io).await?;
    while let Some(asked) = connection.accept().await {
        let (request, mut answer) = asked?;
        let send = answer.send_response(Response::new(()), false)?;
        tokio::spawn(each(Stream::new(send, request.into_body())));
    }
    Ok(())
}

/// Both directions of a CONNECT.
pub(crate) struct Stream {
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// Of the last DATA, what is not read yet.
    unread: Bytes,
}

impl Stream {
    fn new(send: SendStream<Bytes>, receive: RecvStream) -> Self {
        Self {
            send,
            receive,
            unread: Bytes::new(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.receive.poll_data(cx)) {
                Some(data) => self.unread = data.map_err(io::Error::other)?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread.split_to(count));
        let flow = self.receive.flow_control();
        Poll::Ready(flow.release_capacity(count).map_err(io::Error::other))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.send.reserve_capacity(data.len());
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(capacity) => capacity.map_err(io::Error::other)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let count = self.send.capacity().min(data.len());
        let sent = self
            .send
            .send_data(Bytes::copy_from_slice(&data[..count]), false);
        Poll::Ready(sent.map(|()| count).map_err(io::Error::other))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's own task flushes.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = self.send.send_data(Bytes::new(), true);
        Poll::Ready(sent.map_err(io::Error::other))
    }
}
