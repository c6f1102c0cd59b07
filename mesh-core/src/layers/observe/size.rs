//! How large requests are whose bodies somebody else reads.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http_body::Body;

/// The most that is believed of a length that was only said: a peer can say what it likes, and sums must not
/// wrap around.
const MAX_SAID: u64 = 1 << 32;

/// The size of a request's body.
pub(super) enum BodySize {
    /// As its client said when it began; nobody knows how much was read.
    Said(u64),
    /// As far as it was read.
    Counted(Arc<AtomicU64>),
}

impl BodySize {
    /// What was read. A length that was said counts if it was for the application, and not for a
    /// layer that refused without reading.
    pub(super) fn bytes(&self, answered_by_service: bool) -> u64 {
        match self {
            Self::Said(bytes) if answered_by_service => *bytes,
            Self::Said(_) => 0,
            Self::Counted(bytes) => bytes.load(Ordering::Relaxed),
        }
    }

    /// Begins to count, or takes the size that was said. A service takes its requests with the body that it was
    /// written for, so a body can be counted only where its type can hold another: axum's and tonic's can. Others
    /// (hyper's own) are as large as was said, and nothing where that was not said.
    pub(super) fn of<B: Body + 'static>(body: B) -> (B, Self) {
        let said = body.size_hint().exact();
        if said == Some(0) {
            return (body, Self::Said(0));
        }
        let mut slot = Some(body);
        let count = count(&mut slot);
        let body = slot.expect("what is taken out is put back");
        let size = match count {
            Some(count) => Self::Counted(count),
            None => Self::Said(said.unwrap_or(0).min(MAX_SAID)),
        };
        (body, size)
    }
}

/// Wraps a body that can hold another.
fn count(slot: &mut dyn Any) -> Option<Arc<AtomicU64>> {
    #[cfg(feature = "axum")]
    if let Some(slot) = slot.downcast_mut::<Option<axum::body::Body>>() {
        let (body, count) = counted::Counted::new(slot.take()?);
        *slot = Some(axum::body::Body::new(body));
        return Some(count);
    }
    #[cfg(feature = "tonic")]
    if let Some(slot) = slot.downcast_mut::<Option<tonic::body::Body>>() {
        let (body, count) = counted::Counted::new(slot.take()?);
        *slot = Some(tonic::body::Body::new(body));
        return Some(count);
    }
    let _ = slot;
    None
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
        pub(super) fn new(inner: B) -> (Self, Arc<AtomicU64>) {
            let count = Arc::new(AtomicU64::new(0));
            let told = Arc::clone(&count);
            (Self { inner, count }, told)
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
