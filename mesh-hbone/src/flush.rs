//! Flushes that wait for the end of a poll.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::TcpStream;

use crate::FrameBuf;

/// I/O under h2 whose flushes can be put off to the end of the connection's poll.
///
/// h2 flushes after every DATA frame, which costs a system call and a wake-up of the peer for each
/// 16 KiB. A driver that calls [`defer_flushes`](Self::defer_flushes) once and then
/// [`poll_flush_now`](Self::poll_flush_now) after **every** poll of its h2 connection gets one
/// write for many frames. A byte that is not flushed at idle is a hang, so the two belong together.
pub trait DeferredFlush: AsyncRead + AsyncWrite {
    /// From now on `poll_flush` may leave a bounded number of bytes in memory.
    ///
    /// Without this call `poll_flush` keeps tokio's contract. Does nothing on I/O that has no
    /// buffer of its own.
    fn defer_flushes(self: Pin<&mut Self>) {}

    /// Accepts all of `frame`, as `poll_write` would its bytes; I/O that queues them can keep the buffer.
    ///
    /// When it is ready, `frame` is empty: all was written, or the frame was taken and another left in its
    /// place. While it is pending, `frame` holds what was not accepted, and comes again with the next call.
    ///
    /// # Errors
    ///
    /// Those of `poll_write`. What `frame` holds then is of no use.
    fn poll_write_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        frame: &mut FrameBuf,
    ) -> Poll<io::Result<()>> {
        while !frame.is_empty() {
            let count = ready!(self.as_mut().poll_write(cx, frame.bytes()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            frame.advance(count);
        }
        Poll::Ready(Ok(()))
    }

    /// Writes everything that was accepted, then flushes the transport.
    ///
    /// # Errors
    ///
    /// Those of the transport.
    fn poll_flush_now(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

impl DeferredFlush for TcpStream {
    fn poll_flush_now(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

impl DeferredFlush for DuplexStream {
    fn poll_flush_now(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}
