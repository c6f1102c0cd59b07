//! Why a server refuses our certificate, which in TLS 1.3 shows after our handshake.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};

use mesh_hbone::config::Config;
use mesh_hbone::{DeferredFlush, Error, ErrorKind, Side, client, tls};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};

use crate::authority::{Authority, CLIENT, SERVER, id};
use crate::hostile::wire::window_update;

/// As a socket whose peer has sent an alert and closed, and whose reads are not noticed before a
/// write has failed.
struct Closing {
    io: DuplexStream,
    closed: Arc<AtomicBool>,
    failed: bool,
    reader: Option<Waker>,
}

impl AsyncRead for Closing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.closed.load(SeqCst) && !self.failed {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Closing {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.closed.load(SeqCst) {
            self.failed = true;
            self.reader.take().into_iter().for_each(Waker::wake);
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

const FOREIGNER: &str = "spiffe://elsewhere.example/ns/default/sa/client";

/// A server's answer to a client of this identity: tunnels, or not.
async fn outcome(identity: &str) -> Result<(), Error> {
    let root = Authority::root("root");
    let (near, far) = duplex(64 << 10);
    let closed = Arc::new(AtomicBool::new(false));
    let near = Closing {
        io: near,
        closed: Arc::clone(&closed),
        failed: false,
        reader: None,
    };
    let (client, server) = (root.credentials(identity), root.credentials(SERVER));
    let expected = [id(SERVER)];
    let (near, far) = tokio::join!(
        tls::connect(near, &client, &expected),
        tls::accept(far, &server)
    );
    assert_eq!(far.is_ok(), identity == CLIENT);
    closed.store(true, SeqCst);
    client::handshake(near.unwrap(), &Config::default())
        .await
        .map(|_| ())
}

#[tokio::test(start_paused = true)]
async fn an_alert_is_heard_although_a_write_failed_first() {
    let error = outcome(FOREIGNER).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.side()),
        (ErrorKind::Refused, Side::Upstream)
    );
    assert!(error.is_retry_safe());
}

#[tokio::test(start_paused = true)]
async fn a_write_that_failed_without_an_alert_is_what_it_was() {
    let error = outcome(CLIENT).await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Io | ErrorKind::Closed),
        "{error:?}"
    );
    assert!(error.is_retry_safe());
}

/// A socket that cannot be written to any more, of which much is still to be read before what its peer said last.
struct Broken {
    bytes: Vec<u8>,
    said: Error,
    failed: bool,
    reader: Option<Waker>,
}

impl AsyncRead for Broken {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.failed {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if self.bytes.is_empty() {
            return Poll::Ready(Err(io::Error::other(self.said.clone())));
        }
        let count = self.bytes.len().min(buf.remaining());
        buf.put_slice(&self.bytes[..count]);
        self.bytes.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Broken {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.failed = true;
        self.reader.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl DeferredFlush for Broken {
    fn poll_flush_now(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// It has the turns of a connection that nobody drives any more.
#[tokio::test]
async fn an_alert_is_heard_behind_more_frames_than_one_turn_takes() {
    let io = Broken {
        bytes: window_update(0, 1).repeat(2_000),
        said: outcome(FOREIGNER).await.unwrap_err(),
        failed: false,
        reader: None,
    };
    let error = client::handshake(io, &Config::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
}
