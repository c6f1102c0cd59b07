//! The transport under h2: what arrives is counted, what leaves gets its payloads.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::driver::{MAX_TURNS, MAX_WEIGHT, comes_again, from_h2, lock};
use crate::frames::Frames;
use crate::framing::Framing;
use crate::payloads::Payloads;
use crate::{DeferredFlush, Error, Side};

/// The transport, which h2 owns and its driver flushes. Both run in one task: the lock never waits.
pub(crate) struct SharedIo<IO> {
    shared: Arc<Mutex<Shared<IO>>>,
}

struct Shared<IO> {
    io: IO,
    /// Whether bytes were read since this was last asked, and how many there were in all.
    heard: bool,
    arrived: u64,
    /// h2 keeps only the text of an I/O error.
    failure: Option<Error>,
    frames: Frames,
    framing: Framing,
    /// What the frames weighed before this poll of the connection.
    before: u64,
    /// How many acknowledged SETTINGS h2 has applied: those that were here when it last read on.
    applied: u32,
    /// What the peer sent too much of: nothing more is read.
    excess: Option<&'static str>,
    /// The peer closes first: h2's shutdown only flushes.
    yields: bool,
}

impl<IO: DeferredFlush + Unpin> SharedIo<IO> {
    /// `preface` bytes are written before the first frame.
    pub(crate) fn new(mut io: IO, frames: Frames, preface: usize) -> Self {
        Pin::new(&mut io).defer_flushes();
        Self {
            shared: Arc::new(Mutex::new(Shared {
                io,
                heard: false,
                arrived: 0,
                failure: None,
                frames,
                framing: Framing::new(Arc::default(), preface),
                before: 0,
                applied: 0,
                excess: None,
                yields: false,
            })),
        }
    }

    pub(crate) fn poll_flush_now(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.shared).poll_flush_now(cx)
    }

    pub(crate) fn payloads(&self) -> Arc<Payloads> {
        Arc::clone(lock(&self.shared).framing.payloads())
    }

    /// Whether the peer is to close first, after HTTP/2 has ended.
    pub(crate) fn set_yields(&self, yields: bool) {
        lock(&self.shared).yields = yields;
    }

    pub(crate) fn yields(&self) -> bool {
        lock(&self.shared).yields
    }

    /// Closes our side, whoever was to do so first.
    pub(crate) fn poll_close(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shared = &mut *lock(&self.shared);
        // What cannot leave any more is no reason not to close.
        let _ = ready!(shared.poll_emit(cx));
        shared.with(|io| io.poll_shutdown(cx))
    }

    /// The task gives way, and may take as much again: not with each request, of which one turn can have many.
    pub(crate) fn end_turn(&self) {
        let shared = &mut *lock(&self.shared);
        shared.before = shared.frames.weight();
    }

    pub(crate) fn take_heard(&self) -> bool {
        std::mem::take(&mut lock(&self.shared).heard)
    }

    pub(crate) fn arrived(&self) -> u64 {
        lock(&self.shared).arrived
    }

    /// How many of our SETTINGS the peer has acknowledged.
    pub(crate) fn acknowledged(&self) -> u32 {
        lock(&self.shared).frames.acknowledged()
    }

    /// How many of them h2 has applied for certain.
    pub(crate) fn applied(&self) -> u32 {
        lock(&self.shared).applied
    }

    /// What the peer sent too much of.
    pub(crate) fn excess(&self) -> Option<&'static str> {
        lock(&self.shared).excess
    }

    /// Since when the peer owes the rest of a header block.
    pub(crate) fn block_since(&self) -> Option<Instant> {
        lock(&self.shared).frames.block_since()
    }

    /// Reads what comes after the end of HTTP/2 and forgets it, until the peer has ended too.
    ///
    /// A socket that is closed before that is reset by what comes, and with it goes what the peer's
    /// host has not acknowledged yet: the last bytes of tunnels that ended well.
    pub(crate) fn poll_peer_ends(&self, cx: &mut Context<'_>) -> Poll<()> {
        let shared = &mut *lock(&self.shared);
        for _ in 0..MAX_TURNS {
            let mut bytes = [0; 1024];
            let mut buf = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut shared.io).poll_read(cx, &mut buf));
            if read.is_err() || buf.filled().is_empty() {
                return Poll::Ready(());
            }
        }
        comes_again(cx);
        Poll::Pending
    }

    /// Why the connection failed: what the transport said, if it said more than h2 understood.
    pub(crate) fn error(&self, error: h2::Error, side: Side) -> Error {
        match lock(&self.shared).failure.take() {
            Some(failure) if error.is_io() => failure,
            _ => from_h2(error, side),
        }
    }
}

impl<IO: DeferredFlush + Unpin> Shared<IO> {
    /// Takes frames from h2, as many as the transport does.
    fn poll_take(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut taken = 0;
        for buf in bufs {
            let mut left = &buf[..];
            while !left.is_empty() {
                if self.framing.must_leave() {
                    match self.poll_emit(cx)? {
                        Poll::Pending if taken == 0 => return Poll::Pending,
                        Poll::Pending => return Poll::Ready(Ok(taken)),
                        Poll::Ready(()) => {}
                    }
                }
                let count = self.framing.take(left)?;
                taken += count;
                left = &left[count..];
            }
        }
        Poll::Ready(Ok(taken))
    }

    /// Gives the transport all frames that were taken.
    fn poll_emit(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(frame) = self.framing.next() {
            let written = Pin::new(&mut self.io).poll_write_frame(cx, frame);
            ready!(self.note(written))?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush_now(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_emit(cx))?;
        self.with(|io| io.poll_flush_now(cx))
    }

    fn with<T>(
        &mut self,
        operation: impl FnOnce(Pin<&mut IO>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let result = operation(Pin::new(&mut self.io));
        self.note(result)
    }

    /// Keeps what an error says.
    fn note<T>(&mut self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &result
            && let Some(error) = error.get_ref().and_then(|source| source.downcast_ref())
        {
            self.failure = Some(Error::clone(error));
        }
        result
    }
}

impl<IO> Clone for SharedIo<IO> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<IO: DeferredFlush + Unpin> AsyncRead for SharedIo<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let shared = &mut *lock(&self.shared);
        if shared.excess.is_some() {
            // The driver, whose turn is next, ends the connection.
            return Poll::Pending;
        }
        if shared.frames.weight() - shared.before >= MAX_WEIGHT {
            comes_again(cx);
            return Poll::Pending;
        }
        // h2 reads on when it has taken every whole frame that is here.
        shared.applied = shared.frames.acknowledged();
        let before = buf.filled().len();
        let read = shared.with(|io| io.poll_read(cx, buf));
        let new = &buf.filled()[before..];
        if !new.is_empty() {
            shared.heard = true;
            shared.arrived += new.len() as u64;
            shared.excess = shared.frames.arrived(new, Instant::now).err();
        }
        read
    }
}

impl<IO: DeferredFlush + Unpin> AsyncWrite for SharedIo<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        lock(&self.shared).poll_take(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        lock(&self.shared).poll_take(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.shared).with(|io| io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.yields() {
            return self.poll_flush_now(cx);
        }
        self.poll_close(cx)
    }
}
