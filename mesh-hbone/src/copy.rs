//! Copies between two streams until both directions have ended.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;

use crate::Tunnel;

/// Buffer of a direction that has just woken, and the largest by default. A buffer grows fourfold
/// when a read fills it.
const SMALLEST: usize = 1 << 10;
const LARGEST: usize = 64 << 10;

/// Reads in a row that used less than a quarter of the buffer before it shrinks fourfold.
const SHRINK_AFTER: u8 = 8;

/// How much [`bidirectional`] copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Copied {
    /// Bytes read from the first stream and written to the second.
    pub a_to_b: u64,
    /// Bytes read from the second stream and written to the first.
    pub b_to_a: u64,
}

/// Running totals, to be read while the copy goes on.
#[derive(Debug, Default)]
pub struct Counters {
    a_to_b: AtomicU64,
    b_to_a: AtomicU64,
}

impl Counters {
    /// What was copied so far: bytes count when they are written.
    pub fn copied(&self) -> Copied {
        Copied {
            a_to_b: self.a_to_b.load(Ordering::Relaxed),
            b_to_a: self.b_to_a.load(Ordering::Relaxed),
        }
    }
}

/// One of the two streams of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum End {
    /// The first.
    A,
    /// The second.
    B,
}

/// What a stream was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Ending its write side.
    Shutdown,
}

/// Why a copy ended early.
#[derive(Debug)]
pub struct CopyError {
    end: End,
    operation: Operation,
    copied: Copied,
    source: io::Error,
}

impl CopyError {
    /// The stream that failed.
    pub fn end(&self) -> End {
        self.end
    }

    /// What it was doing.
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// What had been copied until then.
    pub fn copied(&self) -> Copied {
        self.copied
    }

    /// The stream's error.
    pub fn into_io(self) -> io::Error {
        self.source
    }
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = match self.end {
            End::A => "first",
            End::B => "second",
        };
        let operation = match self.operation {
            Operation::Read => "read from",
            Operation::Write => "write to",
            Operation::Shutdown => "shut down",
        };
        write!(f, "cannot {operation} the {end} stream")
    }
}

impl std::error::Error for CopyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// A stream that can be cut so that its peer sees an error instead of an end.
pub trait Reset {
    /// Makes the peer see a reset, at the latest when the stream is dropped.
    fn reset(&mut self);
}

impl Reset for Tunnel {
    fn reset(&mut self) {
        self.abort();
    }
}

/// RST instead of FIN, at the drop (SO_LINGER 0).
impl Reset for TcpStream {
    fn reset(&mut self) {
        if let Err(error) = self.set_zero_linger() {
            tracing::debug!(target: "mesh::hbone", %error, "a connection cannot be reset");
        }
    }
}

/// Copies both ways until both ends have ended, then says how much.
///
/// The end of one stream shuts down the write side of the other; the other direction goes on. Buffers
/// are held only while there is something in them, start at 1 KiB, grow to 64 KiB under load and
/// shrink again.
///
/// On an error the caller decides what the other stream's peer sees: [`bidirectional_or_reset`] makes
/// it a reset.
///
/// # Errors
///
/// The first failure of either stream.
///
/// # Cancel safety
///
/// Not cancel safe: bytes that were read and not yet written are lost.
pub async fn bidirectional<A, B>(a: &mut A, b: &mut B) -> Result<Copied, CopyError>
where
    A: AsyncRead + AsyncWrite + Unpin + ?Sized,
    B: AsyncRead + AsyncWrite + Unpin + ?Sized,
{
    bidirectional_counted(a, b, &Counters::default()).await
}

/// Like [`bidirectional`], counting where others can see it.
///
/// # Errors
///
/// The first failure of either stream.
///
/// # Cancel safety
///
/// Not cancel safe: bytes that were read and not yet written are lost.
pub async fn bidirectional_counted<A, B>(
    a: &mut A,
    b: &mut B,
    counters: &Counters,
) -> Result<Copied, CopyError>
where
    A: AsyncRead + AsyncWrite + Unpin + ?Sized,
    B: AsyncRead + AsyncWrite + Unpin + ?Sized,
{
    let mut there = Direction::new();
    let mut back = Direction::new();
    poll_fn(|cx| {
        let there = there.poll(cx, a, b, &counters.a_to_b);
        let there = there.map_err(|failure| failure.of(End::A, End::B, counters))?;
        let back = back.poll(cx, b, a, &counters.b_to_a);
        let back = back.map_err(|failure| failure.of(End::B, End::A, counters))?;
        if there.is_ready() && back.is_ready() {
            Poll::Ready(Ok(counters.copied()))
        } else {
            Poll::Pending
        }
    })
    .await
}

/// Like [`bidirectional_counted`], on streams of its own: if one fails, or the future is dropped, both are
/// reset, so that neither peer takes what it has for everything.
///
/// # Errors
///
/// The first failure of either stream.
///
/// # Cancel safety
///
/// Not cancel safe: the streams are reset and dropped with the future.
pub fn bidirectional_or_reset<A, B>(
    a: A,
    b: B,
    counters: &Counters,
) -> impl Future<Output = Result<Copied, CopyError>>
where
    A: AsyncRead + AsyncWrite + Reset + Unpin,
    B: AsyncRead + AsyncWrite + Reset + Unpin,
{
    // From here on, as the future may be dropped before its first poll.
    let streams = Unfinished { a, b, whole: false };
    streams.copy(counters)
}

/// Two streams that are reset unless all was copied.
struct Unfinished<A: Reset, B: Reset> {
    a: A,
    b: B,
    whole: bool,
}

impl<A, B> Unfinished<A, B>
where
    A: AsyncRead + AsyncWrite + Reset + Unpin,
    B: AsyncRead + AsyncWrite + Reset + Unpin,
{
    async fn copy(mut self, counters: &Counters) -> Result<Copied, CopyError> {
        let result = bidirectional_counted(&mut self.a, &mut self.b, counters).await;
        self.whole = result.is_ok();
        result
    }
}

impl<A: Reset, B: Reset> Drop for Unfinished<A, B> {
    fn drop(&mut self) {
        if !self.whole {
            self.a.reset();
            self.b.reset();
        }
    }
}

enum Failure {
    Read(io::Error),
    Write(io::Error),
    Shutdown(io::Error),
}

impl Failure {
    fn of(self, reader: End, writer: End, counters: &Counters) -> CopyError {
        let (end, operation, source) = match self {
            Self::Read(error) => (reader, Operation::Read, error),
            Self::Write(error) => (writer, Operation::Write, error),
            Self::Shutdown(error) => (writer, Operation::Shutdown, error),
        };
        CopyError {
            end,
            operation,
            copied: counters.copied(),
            source,
        }
    }
}

struct Direction {
    /// Without capacity while idle.
    buffer: BytesMut,
    written: usize,
    size: usize,
    small_reads: u8,
    /// Written, but perhaps not flushed.
    dirty: bool,
    state: State,
}

#[derive(PartialEq)]
enum State {
    Copying,
    Ending,
    Ended,
}

impl Direction {
    fn new() -> Self {
        Self {
            buffer: BytesMut::new(),
            written: 0,
            size: SMALLEST,
            small_reads: 0,
            dirty: false,
            state: State::Copying,
        }
    }

    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        counter: &AtomicU64,
    ) -> Poll<Result<(), Failure>>
    where
        R: AsyncRead + Unpin + ?Sized,
        W: AsyncWrite + Unpin + ?Sized,
    {
        loop {
            while self.written < self.buffer.len() {
                let unwritten = &self.buffer[self.written..];
                let written = Pin::new(&mut *writer).poll_write(cx, unwritten);
                let count = ready!(written).map_err(Failure::Write)?;
                if count == 0 {
                    return Poll::Ready(Err(Failure::Write(io::ErrorKind::WriteZero.into())));
                }
                self.written += count;
                self.dirty = true;
                counter.fetch_add(count as u64, Ordering::Relaxed);
            }
            match self.state {
                State::Copying => {}
                State::Ending => {
                    ready!(Pin::new(&mut *writer).poll_shutdown(cx)).map_err(Failure::Shutdown)?;
                    self.state = State::Ended;
                    return Poll::Ready(Ok(()));
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
            match self.poll_fill(cx, reader) {
                Poll::Ready(Ok(0)) => {
                    self.buffer = BytesMut::new();
                    self.state = State::Ending;
                }
                Poll::Ready(Ok(count)) => self.resize(count),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Failure::Read(error))),
                Poll::Pending => {
                    self.buffer = BytesMut::new();
                    if self.dirty {
                        ready!(Pin::new(&mut *writer).poll_flush(cx)).map_err(Failure::Write)?;
                        self.dirty = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    fn poll_fill<R>(&mut self, cx: &mut Context<'_>, reader: &mut R) -> Poll<io::Result<usize>>
    where
        R: AsyncRead + Unpin + ?Sized,
    {
        self.buffer.clear();
        self.written = 0;
        if self.buffer.capacity() != self.size {
            self.buffer = BytesMut::with_capacity(self.size);
        }
        // Cancel safe: what it has read is in the buffer.
        pin!(reader.read_buf(&mut self.buffer)).poll(cx)
    }

    fn resize(&mut self, read: usize) {
        if read == self.size {
            self.small_reads = 0;
            self.size = (self.size * 4).min(LARGEST);
        } else if read < self.size / 4 {
            self.small_reads += 1;
            if self.small_reads == SHRINK_AFTER {
                self.small_reads = 0;
                self.size = (self.size / 4).max(SMALLEST);
            }
        } else {
            self.small_reads = 0;
        }
    }
}
