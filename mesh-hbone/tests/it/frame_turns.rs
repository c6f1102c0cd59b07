//! Who sends without end leaves others their turn.

use std::future::poll_fn;
use std::io::{self, Write as _};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};

use mesh_hbone::config::Config;
use mesh_hbone::{DeferredFlush, server};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::task::yield_now;

use crate::hostile::wire::{
    CONTINUATION, END_HEADERS, END_STREAM, HEADERS, PREFACE, block, connect, frame, headers,
    indexed, settings, settings_ack, window_update,
};

/// A peer whose bytes are all here.
struct Here {
    bytes: Vec<u8>,
    at: Arc<AtomicUsize>,
}

impl AsyncRead for Here {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let at = self.at.load(Relaxed);
        let left = &self.bytes[at..];
        if left.is_empty() {
            return Poll::Pending;
        }
        let count = left.len().min(buf.remaining());
        buf.put_slice(&left[..count]);
        self.at.fetch_add(count, Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Here {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl DeferredFlush for Here {
    fn poll_flush_now(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// WINDOW_UPDATEs are as many as a peer likes, and it may send them faster than they are looked at. Each poll of the
/// connection takes only so many, and asks for another.
#[tokio::test(start_paused = true)]
async fn frames_that_are_here_wait_for_the_turns_of_others() {
    let one = window_update(1, 1);
    take_turns(&one.repeat(100_000), MOST * one.len()).await;
}

/// The same where requests that are refused, and are answered at once, come between them.
#[tokio::test(start_paused = true)]
async fn requests_among_them_are_no_turns_of_their_own() {
    let one = window_update(1, 1);
    let some = one.repeat(400);
    let frames: Vec<u8> = (1..=250)
        .flat_map(|request| [&some[..], &refused(request, &[])].concat())
        .collect();
    take_turns(&frames, MOST * one.len()).await;
}

/// A block of 1000 fields of a byte each is as much to do as dozens of tunnels.
#[tokio::test(start_paused = true)]
async fn header_blocks_weigh_what_is_in_them() {
    let fields = indexed(ACCEPT_CHARSET).repeat(1_000);
    let frames: Vec<u8> = (1..=500)
        .flat_map(|request| refused(request, &fields))
        .collect();
    take_turns(&frames, LISTS * refused(1, &fields).len()).await;
}

/// So it is where the fields come in CONTINUATIONs.
#[tokio::test(start_paused = true)]
async fn continuations_weigh_what_is_in_them() {
    let fields = indexed(ACCEPT_CHARSET).repeat(1_000);
    let whole = |request: u32| {
        let stream = 1 + 2 * request;
        let begin = frame(HEADERS, END_STREAM, stream, &get());
        let rest = frame(CONTINUATION, END_HEADERS, stream, &fields);
        [begin, rest].concat()
    };
    let frames: Vec<u8> = (1..=500).flat_map(whole).collect();
    take_turns(&frames, LISTS * whole(1).len()).await;
}

/// A runtime that has a task to run looks for what the system has only now and then.
#[tokio::test]
async fn a_connection_that_always_has_more_to_do_leaves_the_system_its_turn() {
    let begin = [PREFACE, &settings(&[]), &settings_ack(), &connect(1)];
    let bytes = [&begin.concat()[..], &window_update(1, 1).repeat(600_000)].concat();
    let at = Arc::default();
    let mut connection = server::handshake(Here { bytes, at }, &Config::default());
    let incoming = connection.accept().await.unwrap().unwrap();
    let _tunnel = incoming.accept(None).unwrap();
    let polls = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&polls);
    tokio::spawn(poll_fn(move |cx| {
        counted.fetch_add(1, Relaxed);
        connection.poll_accept(cx).map(drop)
    }));
    let (reads, mut writes) = std::os::unix::net::UnixStream::pair().unwrap();
    reads.set_nonblocking(true).unwrap();
    let mut reads = UnixStream::from_std(reads).unwrap();
    let mut meanwhile = 0;
    for _ in 0..20 {
        writes.write_all(b"x").unwrap();
        let before = polls.load(Relaxed);
        // With room for more it is known that there is no more.
        assert_eq!(reads.read(&mut [0; 8]).await.unwrap(), 1);
        meanwhile += polls.load(Relaxed) - before;
    }
    assert!(polls.load(Relaxed) > 0);
    assert!(meanwhile <= 80, "{meanwhile} polls for 20 bytes of another");
}

/// WINDOW_UPDATEs that one poll may take: those that weigh enough, and what was read with them.
const MOST: usize = 4_000;

/// Lists of 1000 fields, likewise.
const LISTS: usize = 24;

/// A name of the static table ([RFC 7541 appendix A](https://www.rfc-editor.org/rfc/rfc7541#appendix-A)).
const ACCEPT_CHARSET: usize = 15;

fn get() -> Vec<u8> {
    block(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/"),
    ])
}

/// A request that is no CONNECT, with more fields.
fn refused(request: u32, fields: &[u8]) -> Vec<u8> {
    headers(1 + 2 * request, END_STREAM, &[&get(), fields].concat())
}

/// Of `frames`, which come after a tunnel's CONNECT, one poll takes `most` bytes.
async fn take_turns(frames: &[u8], most: usize) {
    let begin = [PREFACE, &settings(&[]), &settings_ack(), &connect(1)];
    let bytes = [&begin.concat(), frames].concat();
    let (all, at) = (bytes.len(), Arc::<AtomicUsize>::default());
    let io = Here {
        bytes,
        at: Arc::clone(&at),
    };
    let mut connection = server::handshake(io, &Config::default());
    let incoming = connection.accept().await.unwrap().unwrap();
    let _tunnel = incoming.accept(None).unwrap();
    let woken = Arc::<Woken>::default();
    let waker = Waker::from(Arc::clone(&woken));
    let mut polls = 0;
    while at.load(Relaxed) < all {
        let (before, wakes) = (at.load(Relaxed), woken.0.load(Relaxed));
        let polled = connection.poll_accept(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        yield_now().await;
        let taken = at.load(Relaxed) - before;
        assert!(taken <= most, "{taken} bytes in one poll");
        let comes_again = woken.0.load(Relaxed) > wakes || at.load(Relaxed) == all;
        assert!(comes_again, "nobody would poll it again");
        polls += 1;
    }
    assert!(polls >= frames.len() / most);
}
