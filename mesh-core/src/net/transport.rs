use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

pub(super) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A byte stream of any kind.
pub struct BoxedIo(Pin<Box<dyn Duplex>>);

trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

impl BoxedIo {
    /// Wraps a stream.
    pub fn new(io: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        Self(Box::pin(io))
    }
}

impl fmt::Debug for BoxedIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BoxedIo")
    }
}

impl AsyncRead for BoxedIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for BoxedIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.as_mut().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.as_mut().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_shutdown(cx)
    }
}

/// Accepts connections on one address.
pub trait Incoming: Send {
    /// The next connection and its peer's address. Never fails for good: an error is answered by
    /// trying again, with a pause where the system asks for one.
    fn accept(&mut self) -> Pin<Box<dyn Future<Output = (BoxedIo, SocketAddr)> + Send + '_>>;

    /// The address that is listened on.
    fn local_addr(&self) -> SocketAddr;
}

/// Where a mesh's connections come from: TCP sockets unless something else is given.
///
/// The seam for simulations and for embedders with a network stack of their own.
#[derive(Clone)]
pub struct Transport {
    inner: Arc<dyn Provide>,
    look_up: Arc<LookUp>,
}

/// More than the system's resolver takes for all its attempts.
const LOOK_UP: Duration = Duration::from_secs(60);

type LookUp = dyn Fn(String) -> BoxFuture<io::Result<Vec<IpAddr>>> + Send + Sync;

pub(super) trait Provide: Send + Sync {
    fn dial(&self, to: SocketAddr) -> BoxFuture<io::Result<BoxedIo>>;
    fn listen(&self, on: SocketAddr) -> BoxFuture<io::Result<Box<dyn Incoming>>>;
}

struct Custom<D, L> {
    dial: D,
    listen: L,
}

impl<D, DF, L, LF> Provide for Custom<D, L>
where
    D: Fn(SocketAddr) -> DF + Send + Sync,
    DF: Future<Output = io::Result<BoxedIo>> + Send + 'static,
    L: Fn(SocketAddr) -> LF + Send + Sync,
    LF: Future<Output = io::Result<Box<dyn Incoming>>> + Send + 'static,
{
    fn dial(&self, to: SocketAddr) -> BoxFuture<io::Result<BoxedIo>> {
        Box::pin((self.dial)(to))
    }

    fn listen(&self, on: SocketAddr) -> BoxFuture<io::Result<Box<dyn Incoming>>> {
        Box::pin((self.listen)(on))
    }
}

impl Transport {
    /// Makes a transport of a function that dials and one that listens.
    pub fn new<D, DF, L, LF>(dial: D, listen: L) -> Self
    where
        D: Fn(SocketAddr) -> DF + Send + Sync + 'static,
        DF: Future<Output = io::Result<BoxedIo>> + Send + 'static,
        L: Fn(SocketAddr) -> LF + Send + Sync + 'static,
        LF: Future<Output = io::Result<Box<dyn Incoming>>> + Send + 'static,
    {
        Self {
            inner: Arc::new(Custom { dial, listen }),
            look_up: system_resolver(),
        }
    }

    /// Sets how the addresses of a host outside of the configuration are found: by the system's
    /// resolver unless set.
    ///
    /// The node bounds how many look-ups run, makes one for all who ask for a host meanwhile, and
    /// remembers answers for a while. A look-up that has no answer after 60 s is dropped, and has failed:
    /// until then it has its place among those that run, even when nobody waits for it any more.
    #[must_use]
    pub fn with_look_up<F, FF>(mut self, look_up: F) -> Self
    where
        F: Fn(String) -> FF + Send + Sync + 'static,
        FF: Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static,
    {
        self.look_up = Arc::new(move |host| {
            let found = timeout(LOOK_UP, look_up(host));
            Box::pin(async move {
                found.await.unwrap_or_else(|_| {
                    let late = format!("no answer within {LOOK_UP:?}");
                    Err(io::Error::new(io::ErrorKind::TimedOut, late))
                })
            })
        });
        self
    }

    /// TCP sockets of the system.
    pub(crate) fn tcp() -> Self {
        Self {
            inner: Arc::new(super::tcp::Sockets(super::socket::TcpSettings::default())),
            look_up: system_resolver(),
        }
    }

    pub(crate) async fn dial(&self, to: SocketAddr) -> io::Result<BoxedIo> {
        self.inner.dial(to).await
    }

    pub(crate) async fn look_up(&self, host: String) -> io::Result<Vec<IpAddr>> {
        (self.look_up)(host).await
    }

    pub(crate) async fn listen(&self, on: SocketAddr) -> io::Result<Box<dyn Incoming>> {
        self.inner.listen(on).await
    }
}

fn system_resolver() -> Arc<LookUp> {
    Arc::new(|host| {
        Box::pin(async move {
            let found = tokio::net::lookup_host((host, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    })
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transport")
    }
}
