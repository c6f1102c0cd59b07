//! Why a server refuses our certificate, which in TLS 1.3 shows after our handshake.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};

use mesh_hbone::config::Config;
use mesh_hbone::{ErrorKind, Side, client, tls};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};

use crate::authority::{Authority, CLIENT, SERVER, id};

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
async fn outcome(identity: &str) -> Result<(), mesh_hbone::Error> {
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
