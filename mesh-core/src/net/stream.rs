use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use mesh_hbone::Tunnel;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::cut::Wire;
use super::{BoxedIo, CutReason};
use crate::ConnectionContext;
use crate::inbound::Registered;
use crate::mesh::MeshInner;
use crate::sync::lock;

/// One connection of the mesh: a tunnel to or from another member, or plaintext where that is permitted.
///
/// Shutting the write side down is a real half-close: the other end reads to the end and may go on
/// writing. Dropping an unfinished stream resets it, so that cut data never looks complete.
///
/// It implements what servers and clients of the ecosystem want of a connection: tokio's I/O traits,
/// hyper-util's `Connection` (feature `http`), tonic's `Connected` (feature `tonic`).
///
/// # Cancel safety
///
/// Reads and writes are cancel safe as tokio's are: what was not returned was not consumed.
pub struct MeshStream {
    io: Io,
    context: ConnectionContext,
    registered: Option<Registered>,
    account: Option<Box<dyn Account>>,
    #[cfg(feature = "admin")]
    _tracked: Option<crate::outbound::Tracked>,
    /// Until when the peer has to have said something.
    first_byte: Option<Pin<Box<Sleep>>>,
    /// What has to be around the service before it sees a byte.
    #[cfg(feature = "http")]
    layer: Option<crate::inbound::LayerUse>,
    /// What carries it, for as long as it lives.
    _mesh: Option<Arc<MeshInner>>,
}

#[derive(Debug)]
enum Io {
    Tunnel(Tunnel),
    Plain(PlainIo),
}

/// A socket that another task may close under its stream. Its lock is free but for that moment.
#[derive(Debug, Clone)]
pub(super) struct PlainIo(Arc<Mutex<Option<BoxedIo>>>);

impl PlainIo {
    fn new(io: BoxedIo) -> Self {
        Self(Arc::new(Mutex::new(Some(io))))
    }

    pub(super) fn close(&self) {
        let io = self.get().take();
        drop(io);
    }

    fn get(&self) -> MutexGuard<'_, Option<BoxedIo>> {
        lock(&self.0)
    }

    fn poll<T>(
        &self,
        operation: impl FnOnce(Pin<&mut BoxedIo>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut *self.get() {
            Some(io) => operation(Pin::new(io)),
            None => Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
        }
    }
}

/// Told what passes through a stream; its drop is the connection's end.
pub(crate) trait Account: Send + Sync {
    fn read(&mut self, bytes: usize);
    fn wrote(&mut self, bytes: usize);
    /// With what ended the connection from outside, and why in particular.
    fn failed(&mut self, error: &io::Error, cut: Option<(CutReason, Option<&str>)>);
}

impl MeshStream {
    pub(crate) fn tunnel(tunnel: Tunnel, context: ConnectionContext) -> Self {
        Self::new(Io::Tunnel(tunnel), context)
    }

    pub(crate) fn plain(io: BoxedIo, context: ConnectionContext) -> Self {
        Self::new(Io::Plain(PlainIo::new(io)), context)
    }

    fn new(io: Io, context: ConnectionContext) -> Self {
        Self {
            io,
            context,
            registered: None,
            account: None,
            #[cfg(feature = "admin")]
            _tracked: None,
            first_byte: None,
            #[cfg(feature = "http")]
            layer: None,
            _mesh: None,
        }
    }

    /// Keeps the workload that opened it, whose tasks move its bytes. Not for streams that such a task holds.
    pub(crate) fn with_mesh(mut self, mesh: Arc<MeshInner>) -> Self {
        match &mut self.io {
            // What it has said is carried after it was dropped.
            Io::Tunnel(tunnel) => tunnel.keep(mesh),
            Io::Plain(_) => self._mesh = Some(mesh),
        }
        self
    }

    pub(crate) fn with_registered(mut self, registered: Registered) -> Self {
        registered.cut().attach(match &self.io {
            Io::Tunnel(tunnel) => Wire::Tunnel(tunnel.reset_handle()),
            Io::Plain(io) => Wire::Plain(io.clone()),
        });
        self.registered = Some(registered);
        self
    }

    #[cfg(feature = "admin")]
    pub(crate) fn with_tracked(mut self, tracked: crate::outbound::Tracked) -> Self {
        self._tracked = Some(tracked);
        self
    }

    pub(crate) fn with_account(mut self, account: Box<dyn Account>) -> Self {
        self.account = Some(account);
        self
    }

    /// Bounds the wait for the peer's first byte, by which servers tell HTTP/1.1 from HTTP/2: they
    /// wait for it without a bound of their own.
    pub(crate) fn with_first_byte_within(mut self, limit: Duration) -> Self {
        self.first_byte = Some(Box::pin(sleep(limit)));
        self
    }

    /// Fails its first read unless the layer is in use by then.
    #[cfg(feature = "http")]
    pub(crate) fn with_layer(mut self, layer: crate::inbound::LayerUse) -> Self {
        self.layer = Some(layer);
        self
    }

    #[cfg(feature = "http")]
    fn check_layer(&mut self) -> io::Result<()> {
        match self.layer.take() {
            Some(layer) => layer.check(&self.context),
            None => Ok(()),
        }
    }

    /// What is known of the connection: its ends and its peer's identity.
    pub fn context(&self) -> &ConnectionContext {
        &self.context
    }

    fn failed<T>(&mut self, error: io::Error) -> Poll<io::Result<T>> {
        // A cut resets the stream as well; what is told is why.
        let cut = cut(self.registered.as_ref());
        let error = cut.map_or(error, |(reason, _)| reason.error());
        if let Some(account) = &mut self.account {
            account.failed(&error, cut);
        }
        Poll::Ready(Err(error))
    }

    /// Fails when the connection was cut; otherwise makes sure that a cut wakes this task.
    fn check_cut(&self) -> io::Result<()> {
        self.registered
            .as_ref()
            .map_or(Ok(()), |entry| entry.cut().check())
    }

    fn wait_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(deadline) = &mut self.first_byte
            && deadline.as_mut().poll(cx).is_ready()
        {
            let silent = "the client said nothing in time";
            return self.failed(io::Error::new(io::ErrorKind::TimedOut, silent));
        }
        if let Some(entry) = &self.registered {
            entry.cut().register_reader(cx);
        }
        match self.check_cut() {
            Ok(()) => Poll::Pending,
            Err(error) => self.failed(error),
        }
    }

    fn wait_write<T>(&mut self, cx: &Context<'_>) -> Poll<io::Result<T>> {
        if let Some(entry) = &self.registered {
            entry.cut().register_writer(cx);
        }
        match self.check_cut() {
            Ok(()) => Poll::Pending,
            Err(error) => self.failed(error),
        }
    }

    fn wrote(
        &mut self,
        result: Poll<io::Result<usize>>,
        cx: &Context<'_>,
    ) -> Poll<io::Result<usize>> {
        match result {
            Poll::Ready(Ok(bytes)) => {
                if let Some(account) = &mut self.account {
                    account.wrote(bytes);
                }
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(Err(error)) => self.failed(error),
            Poll::Pending => self.wait_write(cx),
        }
    }
}

impl AsyncRead for MeshStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Err(error) = this.check_cut() {
            return this.failed(error);
        }
        #[cfg(feature = "http")]
        if let Err(error) = this.check_layer() {
            return this.failed(error);
        }
        let before = buf.filled().len();
        let result = match &mut this.io {
            Io::Tunnel(tunnel) => Pin::new(tunnel).poll_read(cx, buf),
            Io::Plain(io) => io.poll(|io| io.poll_read(cx, buf)),
        };
        match result {
            Poll::Ready(Ok(())) => {
                this.first_byte = None;
                if let Some(account) = &mut this.account {
                    account.read(buf.filled().len() - before);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => this.failed(error),
            Poll::Pending => this.wait_read(cx),
        }
    }
}

impl AsyncWrite for MeshStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Err(error) = this.check_cut() {
            return this.failed(error);
        }
        let result = match &mut this.io {
            Io::Tunnel(tunnel) => Pin::new(tunnel).poll_write(cx, buf),
            Io::Plain(io) => io.poll(|io| io.poll_write(cx, buf)),
        };
        this.wrote(result, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Err(error) = this.check_cut() {
            return this.failed(error);
        }
        let result = match &mut this.io {
            Io::Tunnel(tunnel) => Pin::new(tunnel).poll_write_vectored(cx, bufs),
            Io::Plain(io) => io.poll(|io| io.poll_write_vectored(cx, bufs)),
        };
        this.wrote(result, cx)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Tunnel(tunnel) => tunnel.is_write_vectored(),
            Io::Plain(io) => io.get().as_ref().is_some_and(BoxedIo::is_write_vectored),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Err(error) = this.check_cut() {
            return this.failed(error);
        }
        let result = match &mut this.io {
            Io::Tunnel(tunnel) => Pin::new(tunnel).poll_flush(cx),
            Io::Plain(io) => io.poll(|io| io.poll_flush(cx)),
        };
        match result {
            Poll::Ready(Err(error)) => this.failed(error),
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Pending => this.wait_write(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Err(error) = this.check_cut() {
            // A cut connection must not end like a finished one: the drop that follows resets it.
            return this.failed(error);
        }
        let result = match &mut this.io {
            Io::Tunnel(tunnel) => Pin::new(tunnel).poll_shutdown(cx),
            Io::Plain(io) => io.poll(|io| io.poll_shutdown(cx)),
        };
        match ready!(result) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => this.failed(error),
        }
    }
}

/// What ended a connection from outside, and why in particular.
fn cut(registered: Option<&Registered>) -> Option<(CutReason, Option<&str>)> {
    let cut = registered?.cut();
    Some((cut.reason()?, cut.why()))
}

impl Drop for MeshStream {
    fn drop(&mut self) {
        // Whoever holds a stream that was cut may never have polled it since.
        let cut = cut(self.registered.as_ref());
        if let (Some((reason, _)), Some(account)) = (cut, &mut self.account) {
            account.failed(&reason.error(), cut);
        }
        // Who is just looking through the registry holds it, too: the peer need not wait for that.
        if let Io::Plain(io) = &self.io {
            io.close();
        }
    }
}

impl fmt::Debug for MeshStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshStream")
            .field("io", &self.io)
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}

#[cfg(feature = "http")]
impl hyper_util::client::legacy::connect::Connection for MeshStream {
    fn connected(&self) -> hyper_util::client::legacy::connect::Connected {
        hyper_util::client::legacy::connect::Connected::new().extra(self.context.clone())
    }
}

#[cfg(feature = "tonic")]
impl tonic::transport::server::Connected for MeshStream {
    type ConnectInfo = ConnectionContext;

    fn connect_info(&self) -> ConnectionContext {
        self.context.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::inbound::{Judgement, Registry};

    #[tokio::test]
    async fn a_dropped_stream_is_closed_while_a_sweep_still_holds_it() {
        let (near, mut far) = tokio::io::duplex(64);
        let address = SocketAddr::from(([192, 0, 2, 1], 80));
        let context = ConnectionContext::plaintext(address, address);
        let registry = Arc::new(Registry::new(1));
        let registered = registry.enter(context.clone(), Judgement::L4).unwrap();
        let swept = Arc::clone(registered.cut());
        let stream = MeshStream::plain(BoxedIo::new(near), context);
        drop(stream.with_registered(registered));
        let read = far.read_u8();
        let ended = tokio::time::timeout(Duration::from_secs(5), read).await;
        let error = ended.expect("its peer is told").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        drop(swept);
    }
}
