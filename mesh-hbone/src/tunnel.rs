//! The bytes of one CONNECT stream.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop::poll_proceed;
use tokio::time::Instant;

use crate::driver::{from_h2, lock};
use crate::flows::Flows;
use crate::frame_buf::FrameBuf;
use crate::payloads::{Payloads, Placeholder};
use crate::spares::Spares;
use crate::{Error, ErrorKind, Side};

/// Payload of a full DATA frame: with its header of 9 bytes it fills one TLS record.
pub(crate) const FULL: usize = 16 * 1024 - 9;

/// A tunnelled TCP connection.
///
/// - **Half-close is real.** `poll_shutdown` sends END_STREAM; the other direction goes on. Nothing
///   else sends it: a `Tunnel` that is dropped before its `poll_shutdown` resets its stream
///   (RST_STREAM, CONNECT_ERROR), so truncated data never looks complete.
/// - **Dropped after its shutdown, it ends as a TCP socket does that is closed after one.** What was
///   written still arrives. The connection waits for the peer's end, at most
///   [`Config::linger`](crate::config::Config::linger), so that a peer which answers our end with its own
///   sees a clean one; data that comes, or came and was not read, is lost and resets the stream.
/// - **Resets are errors.** A read of a reset tunnel fails with
///   [`ConnectionReset`](io::ErrorKind::ConnectionReset), after what arrived before the reset; it ends
///   cleanly only after the peer's END_STREAM. A write fails with `ConnectionReset` too, with
///   [`BrokenPipe`](io::ErrorKind::BrokenPipe) when the peer only wants no more (NO_ERROR or
///   STREAM_CLOSED) or after our own shutdown. The source of either is an [`Error`].
/// - **Flushing does nothing.** Small writes leave together as soon as the one before them has left.
///
/// # Cancel safety
///
/// A read or write that is dropped while pending has taken and lost nothing. What `write` returned is
/// accepted and is sent without further polls of the tunnel.
pub struct Tunnel {
    recv: Option<RecvStream>,
    /// The rest of a frame that did not fit the reader's buffer.
    chunk: Bytes,
    ended: bool,
    outbox: Arc<Mutex<Outbox>>,
    outboxes: Arc<Outboxes>,
    _alive: Alive,
    slot: Option<Box<dyn Slot>>,
    kept: Option<Kept>,
    side: Side,
}

type Kept = Box<dyn std::any::Any + Send + Sync>;

/// One stream of a connection, from the CONNECT to the end of its tunnel: it can hold a window's worth of
/// data before it is a tunnel.
pub(crate) struct Alive(Arc<Outboxes>);

impl Alive {
    pub(crate) fn new(outboxes: &Arc<Outboxes>) -> Self {
        outboxes.live.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(outboxes))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What of [`Config`](crate::config::Config) each tunnel needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) send_buffer: usize,
    pub(crate) linger: Duration,
}

/// What a tunnel holds while it lives: its place among the streams of its connection.
pub(crate) trait Slot: Send + Sync {
    /// Nobody has the tunnel any more, and it only waits for its peer's end. Told once at most.
    fn lingers(&mut self);
}

/// The sending half, which the connection's task shares to send what was written last.
struct Outbox {
    send: Option<SendStream<Placeholder>>,
    /// Written, but not yet in h2: it joins what is written next.
    pending: FrameBuf,
    spares: Spares,
    payloads: Arc<Payloads>,
    /// Held by every frame that has not left: alone when all have.
    token: Arc<()>,
    listed: bool,
    /// The writer had to wait: more is coming, and what is no full frame yet joins it.
    bulk: bool,
    shut: bool,
    send_buffer: usize,
    linger: Duration,
}

impl Tunnel {
    pub(crate) fn new(
        send: SendStream<Placeholder>,
        mut recv: RecvStream,
        alive: Alive,
        slot: Option<Box<dyn Slot>>,
        settings: Settings,
        side: Side,
    ) -> Self {
        let outboxes = &alive.0;
        outboxes.flows.insert(&mut recv);
        Self {
            recv: Some(recv),
            chunk: Bytes::new(),
            ended: false,
            outbox: Arc::new(Mutex::new(Outbox {
                send: Some(send),
                pending: FrameBuf::default(),
                spares: outboxes.spares.clone(),
                payloads: Arc::clone(&outboxes.payloads),
                token: Arc::new(()),
                listed: false,
                bulk: false,
                shut: false,
                send_buffer: settings.send_buffer,
                linger: settings.linger,
            })),
            outboxes: Arc::clone(outboxes),
            _alive: alive,
            slot,
            kept: None,
            side,
        }
    }

    /// Keeps `what` for as long as this tunnel has something to do: after it was shut down and dropped
    /// until its peer has ended too, at most [`Config::linger`](crate::config::Config::linger). For what
    /// carries its connection.
    pub fn keep(&mut self, what: impl std::any::Any + Send + Sync) {
        self.kept = Some(Box::new(what));
    }

    /// Resets the stream now (RST_STREAM, CONNECT_ERROR), as a TCP connection is reset.
    ///
    /// Reads and writes fail afterwards. Does nothing to a tunnel of which both directions have ended.
    pub fn abort(&mut self) {
        lock(&self.outbox).reset();
    }

    /// A handle by which another task can [`abort`](Self::abort) this tunnel, whether or not anybody
    /// reads or writes it.
    pub fn reset_handle(&self) -> ResetHandle {
        ResetHandle {
            outbox: Arc::downgrade(&self.outbox),
        }
    }

    fn read_error(&self, error: h2::Error) -> io::Error {
        io::Error::new(io::ErrorKind::ConnectionReset, from_h2(error, self.side))
    }

    fn poll_write_slices(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        let coop = ready!(poll_proceed(cx));
        let mut outbox = lock(&self.outbox);
        if total == 0 {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(outbox.poll_room(cx, total, self.side))?;
        coop.made_progress();
        let accepted = room.min(total);
        outbox.bulk |= accepted < total;
        outbox.write(slices, accepted, self.side)?;
        if !outbox.pending.is_empty() && !outbox.listed {
            outbox.listed = true;
            self.outboxes.enlist(&self.outbox);
        }
        Poll::Ready(Ok(accepted))
    }
}

/// Resets a [`Tunnel`] that somebody else holds. It keeps nothing alive, and does nothing once the
/// tunnel was dropped.
#[derive(Clone)]
pub struct ResetHandle {
    outbox: Weak<Mutex<Outbox>>,
}

impl ResetHandle {
    /// Does as [`Tunnel::abort`]: the peer learns of it at once, whoever holds the tunnel from its
    /// next call.
    pub fn reset(&self) {
        if let Some(outbox) = self.outbox.upgrade() {
            lock(&outbox).reset();
        }
    }
}

impl fmt::Debug for ResetHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResetHandle").finish_non_exhaustive()
    }
}

impl Outbox {
    fn reset(&mut self) {
        if let Some(send) = &mut self.send {
            send.send_reset(Reason::CONNECT_ERROR);
        }
        self.pending = FrameBuf::default();
    }

    fn in_flight(&self) -> bool {
        Arc::strong_count(&self.token) > 1
    }

    /// How many bytes may be written now: at least one.
    fn poll_room(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
        side: Side,
    ) -> Poll<io::Result<usize>> {
        let waiting = self.pending.len();
        let shut = self.shut;
        let wanted = waiting + wanted.min(self.send_buffer);
        let Some(send) = self.send.as_mut().filter(|_| !shut) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        send.reserve_capacity(wanted);
        loop {
            let capacity = send.capacity();
            if capacity > waiting {
                // Ends with a frame if it can: what does not fit is better in the next write.
                let fits = if capacity < wanted && capacity >= FULL {
                    capacity / FULL * FULL
                } else {
                    capacity
                };
                return Poll::Ready(Ok(fits - waiting));
            }
            match ready!(send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(Err(write_error(send, side))),
            }
        }
    }

    /// Takes `accepted` bytes: whole frames go to h2, the rest too unless a frame is still there.
    fn write(&mut self, slices: &[IoSlice<'_>], accepted: usize, side: Side) -> io::Result<()> {
        let mut left = accepted;
        for slice in slices {
            let mut slice = &slice[..slice.len().min(left)];
            left -= slice.len();
            while !slice.is_empty() {
                let room = FULL - self.pending.len();
                let (now, later) = slice.split_at(room.min(slice.len()));
                if self.pending.room() < now.len() {
                    // Once for a large write; small ones that follow each other double it.
                    let frame = self.pending.len() + slice.len() + left;
                    let frame = frame.max(2 * self.pending.len()).min(FULL);
                    let mut larger = match frame {
                        FULL => FrameBuf::spare(&self.spares, FULL),
                        less => FrameBuf::with_capacity(less),
                    };
                    larger.extend(self.pending.bytes());
                    self.pending = larger;
                }
                self.pending.extend(now);
                slice = later;
                if self.pending.len() == FULL {
                    self.send(false, side)?;
                }
            }
        }
        if !self.pending.is_empty() && !self.bulk && !self.in_flight() {
            self.send(false, side)?;
        }
        Ok(())
    }

    fn send(&mut self, end: bool, side: Side) -> io::Result<()> {
        let Some(send) = &mut self.send else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let stream = send.stream_id().as_u32();
        let token = Arc::clone(&self.token);
        let pending = std::mem::take(&mut self.pending);
        let data = self.payloads.give(stream, pending, token);
        match send.send_data(data, end) {
            Ok(()) => Ok(()),
            Err(_) => Err(write_error(send, side)),
        }
    }
}

/// Why h2 takes nothing more for this stream.
fn write_error(send: &mut SendStream<Placeholder>, side: Side) -> io::Error {
    let mut cx = Context::from_waker(Waker::noop());
    let reset = |reason: Reason| {
        let kind = match reason {
            Reason::NO_ERROR | Reason::STREAM_CLOSED => io::ErrorKind::BrokenPipe,
            _ => io::ErrorKind::ConnectionReset,
        };
        let error = Error::new(ErrorKind::Reset, side).with_detail(format!("{reason:?}"));
        io::Error::new(kind, error)
    };
    match send.poll_reset(&mut cx) {
        Poll::Ready(Ok(reason)) => reset(reason),
        Poll::Ready(Err(error)) => {
            io::Error::new(io::ErrorKind::ConnectionReset, from_h2(error, side))
        }
        Poll::Pending => io::ErrorKind::BrokenPipe.into(),
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let coop = ready!(poll_proceed(cx));
        let before = buf.filled().len();
        let Some(recv) = &mut this.recv else {
            return Poll::Ready(Ok(()));
        };
        let failed = loop {
            let count = this.chunk.len().min(buf.remaining());
            buf.put_slice(&this.chunk[..count]);
            this.chunk.advance(count);
            if this.ended || buf.remaining() == 0 {
                break None;
            }
            match recv.poll_data(cx) {
                Poll::Ready(Some(Ok(chunk))) => this.chunk = chunk,
                Poll::Ready(Some(Err(error))) => break Some(error),
                Poll::Ready(None) => this.ended = true,
                Poll::Pending if buf.filled().len() == before => return Poll::Pending,
                Poll::Pending => break None,
            }
        };
        coop.made_progress();
        let count = buf.filled().len() - before;
        if count == 0 {
            return match failed {
                Some(error) => Poll::Ready(Err(this.read_error(error))),
                None => Poll::Ready(Ok(())),
            };
        }
        // Fails when the stream is gone already, and with it its window. An error comes again.
        let _ = recv.flow_control().release_capacity(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_slices(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_slices(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut outbox = lock(&this.outbox);
        if outbox.shut {
            return Poll::Ready(Ok(()));
        }
        outbox.send(true, this.side)?;
        outbox.shut = true;
        Poll::Ready(Ok(()))
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if let Some(recv) = &self.recv {
            self.outboxes.flows.remove(recv);
        }
        let mut outbox = lock(&self.outbox);
        let ended = self.ended || self.recv.as_ref().is_none_or(RecvStream::is_end_stream);
        let shut = outbox.shut;
        outbox.pending = FrameBuf::default();
        let Some(mut send) = outbox.send.take() else {
            return;
        };
        if !shut {
            send.send_reset(Reason::CONNECT_ERROR);
        } else if !ended {
            let mut linger = Linger {
                send,
                recv: self.recv.take(),
                lost: !self.chunk.is_empty(),
                until: Instant::now() + outbox.linger,
                // The outbox may outlive this in the list, and must not look like a frame in h2.
                token: std::mem::take(&mut outbox.token),
                slot: self.slot.take(),
                _kept: self.kept.take(),
            };
            drop(outbox);
            if let Some(slot) = &mut linger.slot {
                slot.lingers();
            }
            self.outboxes.linger(linger);
        }
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stream = self.recv.as_ref().map(|recv| recv.stream_id().as_u32());
        f.debug_struct("Tunnel")
            .field("stream", &stream)
            .field("side", &self.side)
            .finish_non_exhaustive()
    }
}

/// What the tunnels of a connection leave to its task.
pub(crate) struct Outboxes {
    waiting: Mutex<Waiting>,
    /// How many streams there are.
    live: AtomicUsize,
    spares: Spares,
    payloads: Arc<Payloads>,
    flows: Flows,
}

struct Waiting {
    waker: Waker,
    outboxes: Vec<Arc<Mutex<Outbox>>>,
    lingering: Vec<Linger>,
}

/// The rest of a tunnel that was shut down and dropped before its peer had ended too. It holds its
/// place among the streams of the connection for a time that no peer can lengthen.
struct Linger {
    send: SendStream<Placeholder>,
    recv: Option<RecvStream>,
    /// The peer said something that nobody will read.
    lost: bool,
    until: Instant,
    token: Arc<()>,
    slot: Option<Box<dyn Slot>>,
    _kept: Option<Kept>,
}

impl Linger {
    /// Whether it is over; resets the stream where the peer has to learn of it.
    fn poll_over(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        while !self.lost
            && let Some(recv) = &mut self.recv
        {
            match recv.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => self.lost |= !data.is_empty(),
                // The peer has ended, one way or the other: there is nobody to tell.
                Poll::Ready(Some(Err(_)) | None) => self.recv = None,
                Poll::Pending => break,
            }
        }
        if self.recv.is_none() && !self.lost {
            return true;
        }
        // h2 forgets at a reset what has not left. What has to leave fits the peer's windows, so it does
        // as soon as the transport moves, or the PING time-out ends all.
        let left = Arc::strong_count(&self.token) == 1;
        if !left || !(self.lost || self.until <= now) {
            return false;
        }
        self.send.send_reset(match self.lost {
            true => Reason::CONNECT_ERROR,
            // As a server may after a complete response (RFC 9113 section 8.1).
            false => Reason::NO_ERROR,
        });
        true
    }
}

impl Outboxes {
    pub(crate) fn new(payloads: Arc<Payloads>) -> Self {
        Self {
            waiting: Mutex::new(Waiting {
                waker: Waker::noop().clone(),
                outboxes: Vec::new(),
                lingering: Vec::new(),
            }),
            live: AtomicUsize::new(0),
            spares: Spares::default(),
            payloads,
            flows: Flows::default(),
        }
    }

    pub(crate) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    pub(crate) fn spares(&self) -> &Spares {
        &self.spares
    }

    pub(crate) fn flows(&self) -> &Flows {
        &self.flows
    }

    /// Makes sure that new work wakes the task that polls now.
    pub(crate) fn register(&self, cx: &Context<'_>) {
        let mut waiting = lock(&self.waiting);
        if !waiting.waker.will_wake(cx.waker()) {
            waiting.waker = cx.waker().clone();
        }
    }

    /// Makes the connection's task look again.
    pub(crate) fn wake(&self) {
        lock(&self.waiting).waker.wake_by_ref();
    }

    fn enlist(&self, outbox: &Arc<Mutex<Outbox>>) {
        let mut waiting = lock(&self.waiting);
        waiting.outboxes.push(Arc::clone(outbox));
        waiting.waker.wake_by_ref();
    }

    fn linger(&self, linger: Linger) {
        let mut waiting = lock(&self.waiting);
        waiting.lingering.push(linger);
        waiting.waker.wake_by_ref();
    }

    /// Gives h2 what was written while it was busy; says whether it has to be polled again.
    pub(crate) fn send(&self) -> bool {
        let mut outboxes = {
            let mut waiting = lock(&self.waiting);
            if waiting.outboxes.is_empty() {
                return false;
            }
            std::mem::take(&mut waiting.outboxes)
        };
        let mut sent = false;
        outboxes.retain(|outbox| {
            let mut outbox = lock(outbox);
            if outbox.in_flight() {
                return true;
            }
            outbox.listed = false;
            if !outbox.pending.is_empty() {
                outbox.bulk = false;
                // The writer learns of a failure from its next call.
                sent |= outbox.send(false, Side::Us).is_ok();
            }
            false
        });
        if !outboxes.is_empty() {
            lock(&self.waiting).outboxes.append(&mut outboxes);
        }
        sent
    }

    /// Ends the tunnels that were dropped and have nothing left to do, and says when the next may be.
    pub(crate) fn end_lingering(&self, cx: &mut Context<'_>) -> Option<Instant> {
        let mut lingering = {
            let mut waiting = lock(&self.waiting);
            if waiting.lingering.is_empty() {
                return None;
            }
            std::mem::take(&mut waiting.lingering)
        };
        let now = Instant::now();
        // Dropped outside of the lock: their places may want others.
        lingering.retain_mut(|linger| !linger.poll_over(cx, now));
        // What waits for its bytes to leave is woken by that.
        let next = lingering.iter().map(|linger| linger.until);
        let next = next.filter(|until| *until > now).min();
        lock(&self.waiting).lingering.append(&mut lingering);
        next
    }

    /// The connection is gone: nothing is left to do.
    pub(crate) fn close(&self) {
        self.flows.clear();
        let (_outboxes, _lingering) = {
            let mut waiting = lock(&self.waiting);
            waiting.waker = Waker::noop().clone();
            (
                std::mem::take(&mut waiting.outboxes),
                std::mem::take(&mut waiting.lingering),
            )
        };
    }
}

impl fmt::Debug for Outboxes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outboxes").finish_non_exhaustive()
    }
}
