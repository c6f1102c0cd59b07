use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Response;
use pin_project_lite::pin_project;
use tokio::time::Sleep;

use super::DeadlineBody;
use crate::error::{BoxError, Error, ErrorKind};

/// The end of a request's time. On the heap because it moves from the future to the body.
pub(super) struct Timer {
    timeout: Duration,
    sleep: Pin<Box<Sleep>>,
}

impl Timer {
    /// Fails once the time is over.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        ready!(self.sleep.as_mut().poll(cx));
        Poll::Ready(
            Error::new(ErrorKind::RequestTimeout).with_detail(format!("after {:?}", self.timeout)),
        )
    }
}

pin_project! {
    /// The future of [`Deadline`](super::Deadline).
    pub struct DeadlineFuture<F> {
        #[pin]
        inner: F,
        timer: Option<Timer>,
    }
}

impl<F> DeadlineFuture<F> {
    pub(super) fn new(inner: F, timeout: Option<Duration>) -> Self {
        let timer = timeout.map(|timeout| Timer {
            timeout,
            sleep: Box::pin(tokio::time::sleep(timeout)),
        });
        Self { inner, timer }
    }
}

impl<F, B, E> Future for DeadlineFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Response<DeadlineBody<B>>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(answer) = this.inner.poll(cx) {
            return Poll::Ready(match answer {
                Ok(response) => {
                    let timer = this.timer.take();
                    Ok(response.map(|body| DeadlineBody::new(body, timer)))
                }
                Err(error) => Err(Error::from(error.into())),
            });
        }
        match this.timer {
            Some(timer) => timer.poll(cx).map(Err),
            None => Poll::Pending,
        }
    }
}

impl<F> fmt::Debug for DeadlineFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadlineFuture").finish_non_exhaustive()
    }
}
