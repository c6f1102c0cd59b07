//! TCP sockets as the mesh wants them: without Nagle, with keepalive, and able to end in a reset.

#[cfg(test)]
mod tests;

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// What is set on every TCP socket that is listened on, accepted or dialled.
#[derive(Debug, Clone)]
pub(crate) struct TcpSettings {
    /// How long a connection attempt may take: 5 s.
    pub(crate) connect_timeout: Duration,
    /// How long a connection is idle before the kernel probes it: 180 s, as in ztunnel. `None`
    /// sends no probes.
    pub(crate) keepalive_time: Option<Duration>,
    /// How far the probes are apart: 180 s.
    pub(crate) keepalive_interval: Duration,
    /// After how many probes without an answer the connection is dead: 9.
    pub(crate) keepalive_retries: u32,
    /// How long sent data may stay unacknowledged: the kernel's default (about 15 min) unless set.
    /// Linux only.
    pub(crate) user_timeout: Option<Duration>,
    /// How many connections the kernel completes ahead of `accept`: 1024, the most that Linux took
    /// for long (`net.core.somaxconn` is a bound as well).
    pub(crate) backlog: u32,
}

impl Default for TcpSettings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            keepalive_time: Some(Duration::from_secs(180)),
            keepalive_interval: Duration::from_secs(180),
            keepalive_retries: 9,
            user_timeout: None,
            backlog: 1024,
        }
    }
}

impl TcpSettings {
    /// Connects, within `connect_timeout`.
    ///
    /// # Errors
    ///
    /// `TimedOut` after that; `ConnectionRefused` also for a socket that met itself, which TCP
    /// allows on the ports that it hands out to clients.
    pub(crate) async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = match to {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        let connect = tokio::time::timeout(self.connect_timeout, socket.connect(to));
        let stream = connect
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let stream = refuse_itself(stream)?;
        self.configure(&stream);
        Ok(stream)
    }

    /// Binds and listens. Port 0 takes a free one.
    pub(crate) fn bind(&self, on: SocketAddr) -> io::Result<TcpListener> {
        let socket = match on {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        // A restart must not wait for old connections' TIME_WAIT. On Windows the option means that
        // others may take the port away, and it is not needed.
        if cfg!(unix) {
            socket.set_reuseaddr(true)?;
        }
        socket.bind(on)?;
        socket.listen(self.backlog)
    }

    /// Sets the options of a connection. One that cannot be set is no reason to lose it: the peer
    /// may be gone already, which the first read will tell.
    pub(crate) fn configure(&self, stream: &TcpStream) {
        if let Err(error) = self.try_configure(stream) {
            tracing::debug!(target: "mesh::net", %error, "setting the options of a socket");
        }
    }

    fn try_configure(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let socket = SockRef::from(stream);
        if let Some(time) = self.keepalive_time {
            let keepalive = TcpKeepalive::new()
                .with_time(time)
                .with_interval(self.keepalive_interval)
                .with_retries(self.keepalive_retries);
            socket.set_tcp_keepalive(&keepalive)?;
        }
        #[cfg(target_os = "linux")]
        if self.user_timeout.is_some() {
            socket.set_tcp_user_timeout(self.user_timeout)?;
        }
        Ok(())
    }
}

/// Two ends that dial each other at once connect without a listener (RFC 9293, 3.5), and a socket
/// whose own port is the one it dials is both ends: nobody is there.
fn refuse_itself(stream: TcpStream) -> io::Result<TcpStream> {
    if stream.local_addr()? == stream.peer_addr()? {
        LingerReset::new(stream).reset();
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(stream)
}

/// A TCP connection that ends in a reset unless it was ended properly: a peer must not take
/// truncated data for all of it.
///
/// [`poll_shutdown`](AsyncWrite::poll_shutdown) is the proper end, once it has succeeded. Dropping
/// it earlier, or [`reset`](Self::reset) at any time, sends RST and forgets what was not sent yet.
#[derive(Debug)]
pub(crate) struct LingerReset {
    stream: TcpStream,
    finished: bool,
}

impl LingerReset {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            finished: false,
        }
    }

    /// Ends the connection with RST, even after a proper end of our side.
    pub(crate) fn reset(mut self) {
        self.finished = false;
    }
}

impl Drop for LingerReset {
    fn drop(&mut self) {
        if !self.finished {
            // With a linger time of zero, close sends RST (RFC 1122, 4.2.2.13, and `SO_LINGER`
            // of POSIX). It fails only for a socket that is dead already.
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for LingerReset {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for LingerReset {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.stream).poll_shutdown(cx);
        if let Poll::Ready(Ok(())) = ended {
            self.finished = true;
        }
        ended
    }
}
