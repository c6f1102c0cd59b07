use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;

use super::ObserveBody;
use super::record::Record;

pin_project! {
    /// The future of [`Observe`](super::Observe). A request whose future is dropped counts as one whose
    /// client went away.
    pub struct ObserveFuture<F> {
        #[pin]
        inner: F,
        record: Option<Record>,
    }
}

impl<F> ObserveFuture<F> {
    pub(super) fn new(inner: F, record: Option<Record>) -> Self {
        Self { inner, record }
    }
}

impl<F, B, E> Future for ObserveFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
    E: 'static,
{
    type Output = Result<Response<ObserveBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.inner.poll(cx));
        let mut record = this.record.take();
        Poll::Ready(match answer {
            Ok(response) => {
                if let Some(record) = &mut record {
                    record.answered(&response);
                }
                Ok(response.map(|body| ObserveBody::new(body, record)))
            }
            Err(error) => {
                if let Some(record) = &mut record {
                    record.fail(&error);
                }
                Err(error)
            }
        })
    }
}

impl<F> fmt::Debug for ObserveFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObserveFuture").finish_non_exhaustive()
    }
}
