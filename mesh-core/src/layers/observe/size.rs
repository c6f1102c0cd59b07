//! How large requests are whose bodies somebody else reads.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http_body::Body;

/// The size of a request's body.
pub(super) enum BodySize {
    /// As it was said when it began.
    Said(u64),
    /// As far as it was read.
    Counted(Arc<AtomicU64>),
}

impl BodySize {
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Said(bytes) => *bytes,
            Self::Counted(bytes) => bytes.load(Ordering::Relaxed),
        }
    }

    /// Finds the size, or begins to count. A service takes its requests with the body that it was written for, so
    /// a body can be counted only where its type can hold another: axum's and tonic's can. Others of
    /// unknown length (hyper's own, chunked or of HTTP/2 without a length) count as nothing.
    pub(super) fn of<B: Body + 'static>(body: B) -> (B, Self) {
        if let Some(bytes) = body.size_hint().exact() {
            return (body, Self::Said(bytes));
        }
        let count = Arc::new(AtomicU64::new(0));
        let mut slot = Some(body);
        let any: &mut dyn Any = &mut slot;
        #[cfg(feature = "axum")]
        if let Some(slot) = any.downcast_mut::<Option<axum::body::Body>>() {
            *slot = (slot.take())
                .map(|body| axum::body::Body::new(counted::Counted::new(body, Arc::clone(&count))));
        }
        #[cfg(feature = "tonic")]
        if let Some(slot) = any.downcast_mut::<Option<tonic::body::Body>>() {
            *slot = (slot.take()).map(|body| {
                tonic::body::Body::new(counted::Counted::new(body, Arc::clone(&count)))
            });
        }
        let _ = any;
        let body = slot.expect("what is taken out is put back");
        (body, Self::Counted(count))
    }
}

#[cfg(any(feature = "axum", feature = "tonic"))]
mod counted {
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::task::{Context, Poll, ready};

    use bytes::Bytes;
    use http_body::{Body, Frame, SizeHint};
    use pin_project_lite::pin_project;

    use crate::telemetry::size;

    pin_project! {
        /// Counts data and trailers as they are read.
        pub(super) struct Counted<B> {
            #[pin]
            inner: B,
            count: Arc<AtomicU64>,
        }
    }

    impl<B> Counted<B> {
        pub(super) fn new(inner: B, count: Arc<AtomicU64>) -> Self {
            Self { inner, count }
        }
    }

    impl<B: Body<Data = Bytes>> Body for Counted<B> {
        type Data = Bytes;
        type Error = B::Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
            let this = self.project();
            let frame = ready!(this.inner.poll_frame(cx));
            if let Some(Ok(frame)) = &frame {
                let bytes = match (frame.data_ref(), frame.trailers_ref()) {
                    (Some(data), _) => data.len() as u64,
                    (None, Some(trailers)) => size::of_headers(trailers),
                    (None, None) => 0,
                };
                this.count.fetch_add(bytes, Ordering::Relaxed);
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
}
