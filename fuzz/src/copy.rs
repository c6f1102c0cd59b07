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
    /// There were bytes that the other did not say.
    wrong: bool,
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
            wrong: false,
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

const PERIOD: usize = 251;

/// The longest step, in whole periods.
const SAID: usize = (u8::MAX as usize * u8::MAX as usize).next_multiple_of(PERIOD) + PERIOD;

/// What every stream says from this place on. Compared and copied as a whole: byte by byte, each of them would pass
/// the fuzzer's counters.
fn said(at: u64) -> &'static [u8] {
    static BYTES: [u8; SAID + PERIOD] = {
        let mut bytes = [0; SAID + PERIOD];
        let mut at = 0;
        while at < bytes.len() {
            bytes[at] = (at % PERIOD) as u8;
            at += 1;
        }
        bytes
    };
    &BYTES[(at % PERIOD as u64) as usize..]
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
                let size = size.min(buf.remaining());
                buf.put_slice(&said(this.said)[..size]);
                this.said += size as u64;
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
        for written in buf[..size].chunks(SAID) {
            this.wrong |= *written != said(this.heard)[..written.len()];
            this.heard += written.len() as u64;
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

/// Steps of a script: enough for the copy's buffers to grow to their largest and shrink again, several times. More
/// would only move more bytes, of which a step has up to 64 KiB.
const STEPS: usize = 64;

/// A copy between streams whose scripts are the four quarters of the input.
pub fn copy(data: &[u8]) {
    let data = &data[..data.len().min(4 * STEPS)];
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
    assert!(!a.wrong && !b.wrong, "each hears what the other said");
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
