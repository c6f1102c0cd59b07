//! Who sends without end leaves others their turn.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};

use mesh_hbone::config::Config;
use mesh_hbone::{DeferredFlush, server};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::hostile::wire::{
    END_STREAM, PREFACE, block, connect, headers, settings, settings_ack, window_update,
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
    take_turns(Vec::new).await;
}

/// The same where requests that are refused, and are answered at once, come between them.
#[tokio::test(start_paused = true)]
async fn requests_among_them_are_no_turns_of_their_own() {
    let mut stream = 1;
    let get = block(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/"),
    ]);
    take_turns(|| {
        stream += 2;
        headers(stream, END_STREAM, &get)
    })
    .await;
}

/// What is `between` comes after each 400 of them.
async fn take_turns(mut between: impl FnMut() -> Vec<u8>) {
    const FRAMES: usize = 100_000;
    const MOST: usize = 4_000;
    let one = window_update(1, 1);
    let mut bytes = [PREFACE, &settings(&[]), &settings_ack(), &connect(1)].concat();
    for _ in 0..FRAMES / 400 {
        bytes.extend(one.repeat(400));
        bytes.extend(between());
    }
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
        let taken = at.load(Relaxed) - before;
        assert!(taken <= MOST * one.len(), "{taken} bytes in one poll");
        let comes_again = woken.0.load(Relaxed) > wakes || at.load(Relaxed) == all;
        assert!(comes_again, "nobody would poll it again");
        polls += 1;
    }
    assert!(polls >= FRAMES / MOST);
}
