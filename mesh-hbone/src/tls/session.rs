//! TLS over a transport: one poll at a time, nothing of meshes.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::crypto::cipher::OutboundChunks;
use rustls::{CipherSuite, NamedGroup};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::credentials::{Options, RECORD};
use super::handshake::{Handshake, Progress};
use super::outgoing::Outgoing;
use super::read_buffer::{Incoming, ReadBuffers};
use super::records::{Opened, Records, record_len};
use crate::FrameBuf;

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

/// What a handshake came to.
#[derive(Debug)]
pub(super) struct Negotiated {
    pub(super) alpn: Option<Vec<u8>>,
    /// Of the peer, leaf first.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key_exchange: Option<NamedGroup>,
    pub(super) cipher_suite: Option<CipherSuite>,
}

#[derive(Debug)]
enum State {
    /// With how many bytes of records the handshake has seen and is not done with.
    Handshaking(Handshake, usize),
    Finished(Records),
    /// The handshake failed.
    Failed,
}

/// A record that is decrypted and not read to its end: the data in it, and its end.
#[derive(Debug)]
struct Open {
    data: Range<usize>,
    end: usize,
}

#[derive(Debug)]
pub(super) struct Session<IO> {
    io: IO,
    state: State,
    negotiated: Option<Negotiated>,
    incoming: Incoming,
    /// At the front of `incoming`.
    open: Option<Open>,
    outgoing: Outgoing,
    send_buffer: usize,
    flush_at: usize,
    deferred: bool,
    /// The last flight of the handshake waits for a flush.
    holds: bool,
    /// A writer waits for the transport, and its waker must not be replaced by a reader's.
    writer_waits: bool,
    /// The transport takes nothing more. What the peer said before, and why, can still be read.
    mute: bool,
    closing: bool,
    /// The peer has closed.
    closed: bool,
    failed: Option<rustls::Error>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Session<IO> {
    pub(super) fn new(
        io: IO,
        handshake: Handshake,
        options: &Options,
        read_buffers: &Arc<ReadBuffers>,
    ) -> Self {
        Self {
            io,
            state: State::Handshaking(handshake, 0),
            negotiated: None,
            incoming: Incoming::new(Arc::clone(read_buffers)),
            open: None,
            outgoing: Outgoing::default(),
            send_buffer: options.send_buffer,
            flush_at: options.flush_at,
            deferred: false,
            holds: false,
            writer_waits: false,
            mute: false,
            closing: false,
            closed: false,
            failed: None,
        }
    }

    pub(super) fn io(&self) -> &IO {
        &self.io
    }

    pub(super) fn defer_flushes(&mut self) {
        self.deferred = true;
    }

    /// Puts bytes that were read before this session existed in front of the transport's.
    pub(super) fn start_with(&mut self, bytes: &[u8]) {
        self.incoming.start_with(bytes);
    }

    /// The last flight of the handshake waits for what is said first, and leaves with it.
    pub(super) fn hold_last_flight(&mut self) {
        self.holds = true;
    }

    /// Runs the handshake until it is done and its last flight is written, unless that is held.
    pub(super) fn poll_handshake(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Negotiated, Failure>> {
        loop {
            let progress = self.advance().inspect_err(|_| {
                self.state = State::Failed;
                self.last_words(cx);
            });
            let written = match progress.map_err(Failure::Tls)? {
                // close_notify in the middle of a handshake would be waited on for ever.
                Progress::Closed => return Poll::Ready(Err(Failure::Truncated)),
                Progress::Finished if self.holds => Poll::Pending,
                Progress::Finished => {
                    ready!(self.poll_drain(cx))?;
                    Poll::Ready(())
                }
                Progress::Going => self.poll_drain(cx)?,
            };
            if written.is_ready() {
                ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            }
            if let Some(negotiated) = self.negotiated.take() {
                return Poll::Ready(Ok(negotiated));
            }
            if ready!(self.incoming.poll_fill(&mut self.io, cx))? == 0 {
                return Poll::Ready(Err(Failure::Truncated));
            }
        }
    }

    /// Gives the handshake what is here, record by record.
    fn advance(&mut self) -> Result<Progress, rustls::Error> {
        loop {
            let State::Handshaking(handshake, seen) = &mut self.state else {
                return Ok(Progress::Finished);
            };
            let records = &mut self.incoming.unread_mut()[..*seen];
            let (consumed, progress) = handshake.advance(records, &mut self.outgoing)?;
            self.incoming.consume(consumed);
            *seen -= consumed;
            match progress {
                Progress::Going => {}
                Progress::Finished => return self.finish_handshake(),
                Progress::Closed => return Ok(progress),
            }
            let rest = &self.incoming.unread()[*seen..];
            *seen += match record_len(rest) {
                Ok(Some(length)) if length <= rest.len() => length,
                Ok(_) => return Ok(progress),
                // rustls finds most of it too, and then has an alert for it.
                Err(error) => {
                    let all = self.incoming.unread_mut();
                    handshake.advance(all, &mut self.outgoing)?;
                    return Err(error);
                }
            };
        }
    }

    fn finish_handshake(&mut self) -> Result<Progress, rustls::Error> {
        let before = std::mem::replace(&mut self.state, State::Failed);
        if let State::Handshaking(handshake, _) = before {
            let common = handshake.common();
            let group = common.negotiated_key_exchange_group();
            let suite = common.negotiated_cipher_suite();
            self.negotiated = Some(Negotiated {
                alpn: common.alpn_protocol().map(<[u8]>::to_vec),
                chain: common.peer_certificates().unwrap_or_default().to_vec(),
                key_exchange: group.map(|group| group.name()),
                cipher_suite: suite.map(|suite| suite.suite()),
            });
            self.state = State::Finished(handshake.finish()?);
        }
        Ok(Progress::Finished)
    }

    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), Failure>> {
        let before = buf.filled().len();
        loop {
            if let Some(open) = &mut self.open {
                let data = &self.incoming.unread()[open.data.clone()];
                let count = data.len().min(buf.remaining());
                buf.put_slice(&data[..count]);
                open.data.start += count;
                if open.data.is_empty() {
                    self.incoming.consume(open.end);
                    self.open = None;
                }
                if buf.remaining() == 0 {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            let has_some = buf.filled().len() > before;
            if let Some(error) = &self.failed
                && !has_some
            {
                return Poll::Ready(Err(Failure::Tls(error.clone())));
            }
            if self.closed || self.failed.is_some() {
                return Poll::Ready(Ok(()));
            }
            match self.open_next() {
                Ok(true) => {
                    // TLS' own answer to what was read, with no application data to carry it. What
                    // was read is told first, whatever comes of it.
                    if self.open.is_none() && self.wants_flush() && !self.deferred {
                        let _ = self.poll_drain(cx);
                    }
                    continue;
                }
                Ok(false) => {}
                Err(error) => {
                    if let State::Finished(records) = &mut self.state {
                        records.fail(&error, &mut self.outgoing);
                    }
                    self.failed = Some(error);
                    self.last_words(cx);
                    continue;
                }
            }
            if has_some {
                return Poll::Ready(Ok(()));
            }
            match self.incoming.poll_fill(&mut self.io, cx)? {
                Poll::Ready(0) => return Poll::Ready(Err(Failure::Truncated)),
                Poll::Ready(_) => {}
                Poll::Pending => {
                    // Who waits for an answer has asked the question.
                    let says_more = self.holds && self.deferred;
                    if self.wants_flush() && !says_more {
                        let _ = self.poll_flush_all(cx)?;
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Decrypts the next record, if it is whole.
    fn open_next(&mut self) -> Result<bool, rustls::Error> {
        let unread = self.incoming.unread_mut();
        let end = match record_len(unread)? {
            Some(end) if end <= unread.len() => end,
            _ => return Ok(false),
        };
        let State::Finished(records) = &mut self.state else {
            return Err(rustls::Error::HandshakeNotComplete);
        };
        match records.open(&mut unread[..end], &mut self.outgoing)? {
            Opened::Data(data) if !data.is_empty() => self.open = Some(Open { data, end }),
            Opened::Data(_) | Opened::Nothing => self.incoming.consume(end),
            Opened::Closed => {
                // Nothing that follows counts.
                self.incoming.clear();
                self.closed = true;
            }
        }
        Ok(true)
    }

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bufs = &bufs[..bufs.len().min(MAX_SLICES)];
        if bufs.iter().all(|buf| buf.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        let send_buffer = self.send_buffer;
        let (records, outgoing) = ready!(self.poll_writable(cx))?;
        // Whole records, so that a full queue makes no small one.
        let room = send_buffer.saturating_sub(outgoing.len());
        let room = room.max(1).next_multiple_of(RECORD);
        let mut first = [&[][..]; MAX_SLICES];
        let (chunks, count) = prefix(bufs, room, &mut first);
        records
            .seal(OutboundChunks::new(chunks), outgoing)
            .map_err(io::Error::other)?;
        Poll::Ready(Ok(count))
    }

    /// Takes all of `frame`, or nothing.
    pub(super) fn poll_write_frame(
        &mut self,
        cx: &mut Context<'_>,
        frame: &mut FrameBuf,
    ) -> Poll<io::Result<()>> {
        if frame.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let (records, outgoing) = ready!(self.poll_writable(cx))?;
        let sealed = records.seal_frame(std::mem::take(frame), outgoing);
        Poll::Ready(sealed.map_err(io::Error::other))
    }

    /// Once there is room to write: where to.
    fn poll_writable(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(&mut Records, &mut Outgoing)>> {
        if self.closing || self.failed.is_some() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(self.poll_make_room(cx))?;
        Poll::Ready(match &mut self.state {
            State::Finished(records) => Ok((records, &mut self.outgoing)),
            _ => Err(io::ErrorKind::NotConnected.into()),
        })
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
            if let State::Finished(records) = &mut self.state {
                records
                    .close(&mut self.outgoing)
                    .map_err(io::Error::other)?;
            }
        }
        ready!(self.poll_flush_now(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// Once `flush_at` is reached, writes all that the transport takes, and waits while that is not
    /// enough: more in flight would only leave the cache.
    fn poll_make_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.outgoing.len() >= self.flush_at {
            self.holds = false;
            let drained = self.poll_drain(cx)?;
            self.writer_waits = drained.is_pending() && self.outgoing.len() >= self.flush_at;
            if self.writer_waits {
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether a reader may write what waits to be written.
    fn wants_flush(&self) -> bool {
        !self.outgoing.is_empty() && !self.writer_waits && !self.mute
    }

    fn poll_flush_all(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.holds = false;
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let written = ready!(self.outgoing.poll_write(&mut self.io, cx));
            self.mute |= written.is_err();
            written?;
        }
        Poll::Ready(Ok(()))
    }

    /// Tries to send the alert that says why the session ends.
    fn last_words(&mut self, cx: &mut Context<'_>) {
        let _ = self.poll_flush_all(cx);
    }
}

/// The first `room` bytes of `bufs`, and how many there are.
fn prefix<'a, 'b>(
    bufs: &'a [IoSlice<'a>],
    room: usize,
    first: &'b mut [&'a [u8]; MAX_SLICES],
) -> (&'b [&'a [u8]], usize) {
    let mut left = room;
    let mut used = 0;
    for (slot, buf) in first.iter_mut().zip(bufs) {
        if left == 0 {
            break;
        }
        *slot = &buf[..buf.len().min(left)];
        left -= slot.len();
        used += 1;
    }
    (&first[..used], room - left)
}
