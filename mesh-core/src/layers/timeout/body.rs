use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::future::Timer;
use crate::error::BoxError;

pin_project! {
    /// A response's body that fails when the request's time is over.
    pub struct DeadlineBody<B> {
        #[pin]
        inner: B,
        timer: Option<Timer>,
    }
}

impl<B> DeadlineBody<B> {
    pub(super) fn new(inner: B, timer: Option<Timer>) -> Self {
        Self { inner, timer }
    }
}

impl<B> Body for DeadlineBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let this = self.project();
        // First, or a body that always has a frame ready would never be late.
        if let Some(timer) = this.timer
            && let Poll::Ready(error) = timer.poll(cx)
        {
            return Poll::Ready(Some(Err(error.into())));
        }
        this.inner
            .poll_frame(cx)
            .map(|frame| frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B: fmt::Debug> fmt::Debug for DeadlineBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadlineBody")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}
