use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower_service::Service;
use tracing::debug;

use super::ReplayBody;
use super::body::Slot;
use super::layer::{Settings, Shared};
use crate::error::{BoxError, Error};

pin_project! {
    /// The future of [`Retry`](super::Retry). Dropping it ends the attempt or the wait that is under way.
    pub struct RetryFuture<S, B>
    where
        S: Service<Request<ReplayBody<B>>>,
    {
        service: S,
        // To send it again.
        head: http::request::Parts,
        slot: Slot<B>,
        // Between two attempts.
        body: Option<B>,
        settings: Settings,
        shared: Arc<Shared>,
        retries: u32,
        #[pin]
        state: State<S::Future>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F> {
        Trying { #[pin] attempt: F },
        Waiting { #[pin] sleep: Sleep },
        Readying,
    }
}

impl<S, B> RetryFuture<S, B>
where
    S: Service<Request<ReplayBody<B>>>,
    B: Body,
{
    /// `service` is ready.
    pub(super) fn new(
        mut service: S,
        request: Request<B>,
        settings: Settings,
        shared: Arc<Shared>,
    ) -> Self {
        let (head, body) = request.into_parts();
        let (body, slot) = ReplayBody::new(body);
        let attempt = service.call(Request::from_parts(head.clone(), body));
        Self {
            service,
            head,
            slot,
            body: None,
            settings,
            shared,
            retries: 0,
            state: State::Trying { attempt },
        }
    }
}

impl<S, B, R> Future for RetryFuture<S, B>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    B: Body,
{
    type Output = Result<Response<R>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProjection::Trying { attempt } => {
                    let error = match ready!(attempt.poll(cx)) {
                        Ok(response) => return Poll::Ready(Ok(response)),
                        Err(error) => Error::from(error.into()),
                    };
                    if !error.is_retry_safe() || *this.retries >= this.settings.retries {
                        return Poll::Ready(Err(error));
                    }
                    // Taken now: whatever still holds the failed attempt can no longer read it.
                    let Some(body) = this.slot.take() else {
                        return Poll::Ready(Err(error));
                    };
                    if !this.shared.try_retry() {
                        return Poll::Ready(Err(error));
                    }
                    *this.body = Some(body);
                    *this.retries += 1;
                    let wait = this.settings.wait(*this.retries, this.shared);
                    debug!(
                        target: "mesh::retry",
                        error = &error as &dyn std::error::Error,
                        retry = *this.retries,
                        ?wait,
                        "trying again"
                    );
                    let sleep = tokio::time::sleep(wait);
                    this.state.set(State::Waiting { sleep });
                }
                StateProjection::Waiting { sleep } => {
                    ready!(sleep.poll(cx));
                    this.state.set(State::Readying);
                }
                StateProjection::Readying => {
                    if let Err(error) = ready!(this.service.poll_ready(cx)) {
                        return Poll::Ready(Err(Error::from(error.into())));
                    }
                    let Some(body) = this.body.take() else {
                        unreachable!("a retry begins with a body in hand");
                    };
                    let (body, slot) = ReplayBody::new(body);
                    *this.slot = slot;
                    let request = Request::from_parts(this.head.clone(), body);
                    let attempt = this.service.call(request);
                    this.state.set(State::Trying { attempt });
                }
            }
        }
    }
}

impl<S, B> fmt::Debug for RetryFuture<S, B>
where
    S: Service<Request<ReplayBody<B>>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryFuture")
            .field("retries", &self.retries)
            .finish_non_exhaustive()
    }
}
