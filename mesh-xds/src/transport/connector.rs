//! The caller's connector without its type.

use std::error::Error as StdError;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower_service::Service;

pub(super) type BoxError = Box<dyn StdError + Send + Sync>;

trait Io: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

type Dial = dyn Fn(Uri) -> BoxFuture<'static, Result<BoxIo, BoxError>> + Send + Sync;

/// Dials the real address, whatever it is asked for.
#[derive(Clone)]
pub(super) struct Connector {
    dial: Arc<Dial>,
    uri: Uri,
}

impl Connector {
    pub(super) fn new<C>(connector: C, uri: Uri) -> Self
    where
        C: Service<Uri> + Clone + Send + 'static,
        C::Response: AsyncRead + AsyncWrite + Send + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send,
    {
        // Cloned for each connection; the lock is for those that may not be shared.
        let connector = Mutex::new(connector);
        let dial = move |uri| {
            let mut connector = connector
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            let connection = async move {
                poll_fn(|cx| connector.poll_ready(cx))
                    .await
                    .map_err(Into::into)?;
                let io = connector.call(uri).await.map_err(Into::into)?;
                Ok(BoxIo(Box::pin(io)))
            };
            Box::pin(connection) as BoxFuture<'static, _>
        };
        Self {
            dial: Arc::new(dial),
            uri,
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<BoxIo>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let io = (self.dial)(self.uri.clone());
        Box::pin(async move { Ok(TokioIo::new(io.await?)) })
    }
}

/// A connection without its type.
pub(super) struct BoxIo(Pin<Box<dyn Io>>);

impl AsyncRead for BoxIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.0.as_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for BoxIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.0.as_mut().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.0.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.0.as_mut().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        self.0.as_mut().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}
