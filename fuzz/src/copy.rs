//! A copy between two streams that read and write as the input says.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use mesh_hbone::copy::{Counters, bidirectional_counted};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a stream does at its next call: so many bytes, a wait, or a failure.
#[derive(Clone, Copy)]
enum Step {
    Some(usize),
    Wait,
    Fail,
}

impl Step {
    fn of(byte: u8) -> Self {
        match byte {
            0..=9 => Self::Wait,
            10 => Self::Fail,
            size => Self::Some(usize::from(size) * usize::from(size) + 1),
        }
    }
}

/// A stream whose reads, writes and end follow a script; afterwards it has said all and takes all.
struct Scripted<'a> {
    reads: std::slice::Iter<'a, u8>,
    writes: std::slice::Iter<'a, u8>,
    said: u64,
    failed: bool,
    heard: u64,
    /// Bytes that were not those that the other said.
    wrong: u64,
    shut: usize,
}

impl<'a> Scripted<'a> {
    fn new(reads: &'a [u8], writes: &'a [u8]) -> Self {
        Self {
            reads: reads.iter(),
            writes: writes.iter(),
            said: 0,
            failed: false,
            heard: 0,
            wrong: 0,
            shut: 0,
        }
    }

    fn step(script: &mut std::slice::Iter<'a, u8>, cx: &Context<'_>) -> Poll<Option<Step>> {
        match script.next().copied().map(Step::of) {
            Some(Step::Wait) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            step => Poll::Ready(step),
        }
    }
}

/// The byte that every stream says at this place.
fn byte(at: u64) -> u8 {
    (at % 251) as u8
}

impl AsyncRead for Scripted<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        match Self::step(&mut this.reads, cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Step::Some(size))) => {
                for _ in 0..size.min(buf.remaining()) {
                    buf.put_slice(&[byte(this.said)]);
                    this.said += 1;
                }
            }
            Poll::Ready(Some(_)) => {
                this.failed = true;
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            Poll::Ready(None) => {}
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Scripted<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        assert_eq!(this.shut, 0, "written after its shutdown");
        let size = match Self::step(&mut this.writes, cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Step::Some(size))) => size.min(buf.len()),
            Poll::Ready(Some(_)) => {
                this.failed = true;
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            Poll::Ready(None) => buf.len(),
        };
        for written in &buf[..size] {
            this.wrong += u64::from(*written != byte(this.heard));
            this.heard += 1;
        }
        Poll::Ready(Ok(size))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut += 1;
        Poll::Ready(Ok(()))
    }
}

/// A copy between streams whose scripts are the four quarters of the input.
pub fn copy(data: &[u8]) {
    let quarter = data.len() / 4;
    let part = |at: usize| &data[at * quarter..(at + 1) * quarter];
    let mut a = Scripted::new(part(0), part(1));
    let mut b = Scripted::new(part(2), part(3));
    let counters = Counters::default();
    let result = {
        let mut copy = pin!(bidirectional_counted(&mut a, &mut b, &counters));
        let mut cx = Context::from_waker(Waker::noop());
        // Each wait is a byte of a script.
        let polls = data.len() + 1;
        (0..=polls).find_map(|_| match copy.as_mut().poll(&mut cx) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        })
    };
    let result = result.expect("it ends when the scripts have");
    assert_eq!((a.wrong, b.wrong), (0, 0), "each hears what the other said");
    assert!(a.heard <= b.said && b.heard <= a.said);
    let copied = counters.copied();
    assert_eq!((copied.a_to_b, copied.b_to_a), (b.heard, a.heard));
    match result {
        Ok(copied) => {
            assert_eq!((copied.a_to_b, copied.b_to_a), (a.said, b.said));
            assert_eq!((a.heard, b.heard), (b.said, a.said), "all of it");
            assert_eq!((a.shut, b.shut), (1, 1), "both ends are told, once");
        }
        Err(_) => assert!(a.failed || b.failed),
    }
    // An end is passed on only after all that was said before it.
    assert!(a.shut == 0 || a.heard == b.said);
    assert!(b.shut == 0 || b.heard == a.said);
}
