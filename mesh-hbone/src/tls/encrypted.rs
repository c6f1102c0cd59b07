//! A session as tokio I/O, whoever the peer is.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::failure;
use super::session::{Failure, Session};
use crate::{DeferredFlush, Error, ErrorKind, FrameBuf, Side};

/// A session after its handshake, with the side that its errors are of.
#[derive(Debug)]
pub(super) struct Encrypted<IO> {
    pub(super) session: Session<IO>,
    pub(super) side: Side,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Encrypted<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let side = this.side;
        this.session
            .poll_read(cx, buf)
            .map_err(|failure| match failure {
                Failure::Io(error) => error,
                Failure::Truncated => io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    Error::new(ErrorKind::Truncated, side),
                ),
                Failure::Tls(error) => {
                    let error = failure::of_session(error, side);
                    let kind = match error.kind() {
                        ErrorKind::Refused => io::ErrorKind::ConnectionAborted,
                        _ => io::ErrorKind::InvalidData,
                    };
                    io::Error::new(kind, error)
                }
            })
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Encrypted<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().session.poll_write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().session.poll_write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().session.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().session.poll_shutdown(cx)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> DeferredFlush for Encrypted<IO> {
    fn defer_flushes(self: Pin<&mut Self>) {
        self.get_mut().session.defer_flushes();
    }

    fn poll_write_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        frame: &mut FrameBuf,
    ) -> Poll<io::Result<()>> {
        self.get_mut().session.poll_write_frame(cx, frame)
    }

    fn poll_flush_now(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().session.poll_flush_now(cx)
    }
}
