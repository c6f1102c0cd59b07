//! rustls over a transport: one poll at a time, nothing of meshes.

use std::io::{self, BufRead, IoSlice, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::Connection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::credentials::{Options, RECORD};
use super::read_buffer::{Incoming, ReadBuffers};

/// What TLS 1.3 adds to a record: header, content type, AES-GCM tag.
const RECORD_OVERHEAD: usize = 5 + 1 + 16;

/// Slices looked at in one vectored write; the rest is taken by the next call.
const MAX_SLICES: usize = 64;

/// What can end a session.
#[derive(Debug)]
pub(super) enum Failure {
    Io(io::Error),
    Tls(rustls::Error),
    /// The transport ended, or the peer closed, where TLS had more to say.
    Truncated,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

#[derive(Debug)]
pub(super) struct Session<IO> {
    io: IO,
    tls: Connection,
    incoming: Incoming,
    /// Bytes in rustls' send queue, as near as it can be known from outside.
    queued: usize,
    send_buffer: usize,
    flush_at: usize,
    deferred: bool,
    /// A writer waits for the transport, and its waker must not be replaced by a reader's.
    writer_waits: bool,
    /// The transport takes nothing more. What the peer said before, and why, can still be read.
    mute: bool,
    closing: bool,
    /// Found while there was still plaintext to hand out.
    failed: Option<rustls::Error>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Session<IO> {
    pub(super) fn new(
        io: IO,
        mut tls: Connection,
        options: &Options,
        read_buffers: &Arc<ReadBuffers>,
    ) -> Self {
        // Our own bound comes first; rustls' is the backstop with room for a last record.
        tls.set_buffer_limit(Some(options.send_buffer + 2 * RECORD));
        Self {
            io,
            tls,
            incoming: Incoming::new(Arc::clone(read_buffers)),
            queued: 0,
            send_buffer: options.send_buffer,
            flush_at: options.flush_at,
            deferred: false,
            writer_waits: false,
            mute: false,
            closing: false,
            failed: None,
        }
    }

    pub(super) fn io(&self) -> &IO {
        &self.io
    }

    pub(super) fn tls(&self) -> &Connection {
        &self.tls
    }

    pub(super) fn defer_flushes(&mut self) {
        self.deferred = true;
    }

    /// Puts bytes that were read before this session existed in front of the transport's.
    pub(super) fn start_with(&mut self, bytes: &[u8]) {
        self.incoming.start_with(bytes);
    }

    /// Runs the handshake until it is done and its last flight is written.
    pub(super) fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        loop {
            let written = self.poll_drain(cx)?;
            if !self.tls.is_handshaking() {
                ready!(written);
                ready!(Pin::new(&mut self.io).poll_flush(cx))?;
                return Poll::Ready(Ok(()));
            }
            if self.incoming.unread().is_empty() {
                if written.is_ready() {
                    ready!(Pin::new(&mut self.io).poll_flush(cx))?;
                }
                if ready!(self.incoming.poll_fill(&mut self.io, cx))? == 0 {
                    return Poll::Ready(Err(Failure::Truncated));
                }
            }
            match self.feed() {
                // close_notify in the middle of a handshake would be waited on for ever.
                Ok(true) if self.tls.is_handshaking() => {
                    return Poll::Ready(Err(Failure::Truncated));
                }
                Ok(_) => {}
                Err(error) => {
                    self.last_words(cx);
                    return Poll::Ready(Err(Failure::Tls(error)));
                }
            }
        }
    }

    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), Failure>> {
        let before = buf.filled().len();
        loop {
            match self.tls.reader().fill_buf() {
                // close_notify: all there was.
                Ok([]) => return Poll::Ready(Ok(())),
                Ok(chunk) => {
                    let count = chunk.len().min(buf.remaining());
                    buf.put_slice(&chunk[..count]);
                    self.tls.reader().consume(count);
                    if buf.remaining() == 0 {
                        return Poll::Ready(Ok(()));
                    }
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) if buf.filled().len() > before => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Poll::Ready(Err(Failure::Truncated));
                }
                Err(error) => return Poll::Ready(Err(error.into())),
            }
            let has_some = buf.filled().len() > before;
            if let Some(error) = &self.failed {
                if has_some {
                    return Poll::Ready(Ok(()));
                }
                return Poll::Ready(Err(Failure::Tls(error.clone())));
            }
            if !self.incoming.unread().is_empty() {
                if let Err(error) = self.feed() {
                    self.failed = Some(error);
                    self.last_words(cx);
                } else if self.queued == 0 && self.wants_flush() {
                    // TLS' own answer to what was read, with no application data to carry it.
                    let _ = self.poll_drain(cx)?;
                }
                continue;
            }
            if has_some {
                return Poll::Ready(Ok(()));
            }
            match self.incoming.poll_fill(&mut self.io, cx)? {
                Poll::Ready(0) => {
                    // Tells rustls of the end, which then says whether it may be one.
                    self.tls.read_tls(&mut io::empty())?;
                }
                Poll::Ready(_) => {}
                Poll::Pending => {
                    // Who waits for an answer has asked the question.
                    if self.wants_flush() {
                        let _ = self.poll_flush_all(cx)?;
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Moves ciphertext into rustls until there is plaintext or no more ciphertext.
    ///
    /// Says whether the peer has closed.
    fn feed(&mut self) -> Result<bool, rustls::Error> {
        loop {
            let mut unread = self.incoming.unread();
            if unread.is_empty() {
                return Ok(false);
            }
            let count = match self.tls.read_tls(&mut unread) {
                // After close_notify rustls reads nothing more, and nothing more counts.
                Ok(0) => {
                    self.incoming.clear();
                    return Ok(true);
                }
                Ok(count) => count,
                // rustls has no room although all it had was processed: a record too large.
                Err(error) => return Err(rustls::Error::General(error.to_string())),
            };
            self.incoming.consume(count);
            let state = self.tls.process_new_packets()?;
            if state.peer_has_closed() {
                return Ok(true);
            }
            if state.plaintext_bytes_to_read() > 0 {
                return Ok(false);
            }
        }
    }

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bufs = &bufs[..bufs.len().min(MAX_SLICES)];
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        if total == 0 {
            return Poll::Ready(Ok(0));
        }
        if self.closing {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(self.poll_make_room(cx))?;
        // Whole records, so that a full queue makes no small one.
        let room = (self.send_buffer - self.queued).next_multiple_of(RECORD);
        let count = if total <= room {
            self.tls.writer().write_vectored(bufs)?
        } else {
            let mut first = [IoSlice::new(&[]); MAX_SLICES];
            self.tls
                .writer()
                .write_vectored(prefix(bufs, room, &mut first))?
        };
        self.queued += count + count.div_ceil(RECORD) * RECORD_OVERHEAD;
        Poll::Ready(Ok(count))
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.deferred {
            return self.poll_flush_now(cx);
        }
        self.poll_make_room(cx)
    }

    pub(super) fn poll_flush_now(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.poll_flush_all(cx);
        self.writer_waits = flushed.is_pending();
        flushed
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closing {
            self.closing = true;
            self.tls.send_close_notify();
        }
        ready!(self.poll_flush_now(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// Once `flush_at` is reached, writes all that the transport takes, and waits while that is not
    /// enough: more in flight would only leave the cache.
    fn poll_make_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.queued >= self.flush_at {
            let drained = self.poll_drain(cx)?;
            self.writer_waits = drained.is_pending() && self.queued >= self.flush_at;
            if self.writer_waits {
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether a reader may write what waits to be written.
    fn wants_flush(&self) -> bool {
        self.tls.wants_write() && !self.writer_waits && !self.mute
    }

    fn poll_flush_all(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            ready!(self.poll_write_tls(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// One write to the transport, of up to 64 records.
    fn poll_write_tls(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut sink = Sink {
            io: &mut self.io,
            cx,
        };
        match self.tls.write_tls(&mut sink) {
            Ok(0) if self.tls.wants_write() => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => {
                self.queued = if self.tls.wants_write() {
                    self.queued.saturating_sub(count)
                } else {
                    0
                };
                Poll::Ready(Ok(()))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            Err(error) => {
                self.mute = true;
                Poll::Ready(Err(error))
            }
        }
    }

    /// Tries to send the alert that says why the session ends.
    fn last_words(&mut self, cx: &mut Context<'_>) {
        let _ = self.poll_flush_all(cx);
    }
}

/// The first `room` bytes of `bufs`, which are more.
fn prefix<'a, 'b>(
    bufs: &'a [IoSlice<'a>],
    mut room: usize,
    first: &'b mut [IoSlice<'a>; MAX_SLICES],
) -> &'b [IoSlice<'a>] {
    let mut used = 0;
    for (slot, buf) in first.iter_mut().zip(bufs) {
        if room == 0 {
            break;
        }
        let count = buf.len().min(room);
        *slot = IoSlice::new(&buf[..count]);
        room -= count;
        used += 1;
    }
    &first[..used]
}

/// The transport as rustls wants it.
struct Sink<'a, 'b, IO> {
    io: &'a mut IO,
    cx: &'a mut Context<'b>,
}

impl<IO: AsyncWrite + Unpin> Write for Sink<'_, '_, IO> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        would_block(Pin::new(&mut *self.io).poll_write(self.cx, buf))
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        would_block(Pin::new(&mut *self.io).poll_write_vectored(self.cx, bufs))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn would_block<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}
