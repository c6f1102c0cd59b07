//! A TLS connection to a peer whose identity is known.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use mesh_authz::Identity;
use rustls::{CipherSuite, NamedGroup};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::credentials::Credentials;
use super::encrypted::Encrypted;
use super::session::Session;
use super::verify::Leaf;
use crate::{DeferredFlush, Error, FrameBuf, Side};

/// Who is at the other end, as its certificate proves. Cloning is one reference count.
#[derive(Clone)]
pub struct Peer {
    inner: Arc<PeerInner>,
}

struct PeerInner {
    leaf: Arc<Leaf>,
    chain: Vec<CertificateDer<'static>>,
    side: Side,
}

impl Peer {
    pub(super) fn new(leaf: Arc<Leaf>, chain: Vec<CertificateDer<'static>>, side: Side) -> Self {
        Self {
            inner: Arc::new(PeerInner { leaf, chain, side }),
        }
    }

    /// Judges the chain that the peer presented again, by the roots and CRLs that `credentials` have
    /// now and by the time: what a connection that lives would be told if it were made anew.
    ///
    /// # Errors
    ///
    /// As a handshake: [`ErrorKind::Revoked`](crate::ErrorKind::Revoked),
    /// [`ErrorKind::Expired`](crate::ErrorKind::Expired),
    /// [`ErrorKind::UnknownIssuer`](crate::ErrorKind::UnknownIssuer).
    pub fn judge_again(&self, credentials: &Credentials) -> Result<(), Error> {
        let PeerInner { chain, side, .. } = &*self.inner;
        credentials.judge(chain, *side)
    }

    /// The peer's SPIFFE id.
    pub fn identity(&self) -> &Identity {
        &self.inner.leaf.identity
    }

    /// The certificates that the peer presented, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.inner.chain
    }

    /// The leaf's serial number in decimal.
    pub fn serial_number(&self) -> &str {
        &self.inner.leaf.facts.serial
    }

    /// When the leaf ceases to be valid.
    pub fn not_after(&self) -> SystemTime {
        self.inner.leaf.facts.not_after
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("identity", self.identity())
            .field("serial_number", &self.serial_number())
            .finish_non_exhaustive()
    }
}

/// A mutually authenticated TLS 1.3 stream.
///
/// Writes are encrypted into a bounded queue and reach the transport on `poll_flush`, when the
/// queue is full, or when a reader waits for the peer; [`DeferredFlush`] can put flushes off.
/// `poll_shutdown` sends close_notify. An end without the peer's close_notify is
/// [`io::ErrorKind::UnexpectedEof`]: truncated data never looks complete.
///
/// Every `io::Error` that comes from TLS rather than the transport carries an [`Error`].
///
/// # Cancel safety
///
/// A read or write that is dropped while pending has taken and lost nothing.
pub struct TlsStream<IO> {
    io: Encrypted<IO>,
    peer: Peer,
    key_exchange: Option<NamedGroup>,
    cipher_suite: Option<CipherSuite>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> TlsStream<IO> {
    pub(super) fn new(
        session: Session<IO>,
        peer: Peer,
        (key_exchange, cipher_suite): (Option<NamedGroup>, Option<CipherSuite>),
        side: Side,
    ) -> Self {
        Self {
            io: Encrypted { session, side },
            peer,
            key_exchange,
            cipher_suite,
        }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The transport, for its addresses; bytes read or written there break the stream.
    pub fn get_ref(&self) -> &IO {
        self.io.session.io()
    }

    /// The key exchange that was negotiated.
    pub fn key_exchange(&self) -> Option<NamedGroup> {
        self.key_exchange
    }

    /// The cipher suite that was negotiated.
    pub fn cipher_suite(&self) -> Option<CipherSuite> {
        self.cipher_suite
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> DeferredFlush for TlsStream<IO> {
    fn defer_flushes(self: Pin<&mut Self>) {
        Pin::new(&mut self.get_mut().io).defer_flushes();
    }

    fn poll_write_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        frame: &mut FrameBuf,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_write_frame(cx, frame)
    }

    fn poll_flush_now(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush_now(cx)
    }
}

impl<IO> fmt::Debug for TlsStream<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream")
            .field("peer", &self.peer)
            .field("side", &self.io.side)
            .finish_non_exhaustive()
    }
}
