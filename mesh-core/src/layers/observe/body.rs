use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::record::Record;

pin_project! {
    /// A response's body whose end is counted and logged.
    pub struct ObserveBody<B> {
        #[pin]
        inner: B,
        record: Option<Record>,
    }
}

impl<B> ObserveBody<B> {
    pub(super) fn new(inner: B, record: Option<Record>) -> Self {
        Self { inner, record }
    }
}

impl<B> Body for ObserveBody<B>
where
    B: Body,
    B::Error: 'static,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        if let Some(record) = this.record {
            match &frame {
                Some(Ok(frame)) => {
                    let data = frame.data_ref().map_or(0, Buf::remaining);
                    // Trailers are the last that a body has, and a server may not ask for more.
                    let complete = frame.is_trailers() || this.inner.is_end_stream();
                    record.passed(data, frame.trailers_ref(), complete);
                }
                Some(Err(error)) => record.fail(error),
                None => record.end(),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B: fmt::Debug> fmt::Debug for ObserveBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObserveBody")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}
