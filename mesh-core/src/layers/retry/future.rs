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

use super::layer::{Settings, Shared};
use super::replay::{Replay, ReplayBody, erase};
use crate::error::{BoxError, Error};

pin_project! {
    /// The future of [`Retry`](super::Retry). Dropping it ends the attempt or the wait that is under way.
    pub struct RetryFuture<S>
    where
        S: Service<Request<ReplayBody>>,
    {
        service: S,
        // To send it again.
        head: http::request::Parts,
        replay: Option<Replay>,
        // Between two attempts.
        body: Option<ReplayBody>,
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

impl<S> RetryFuture<S>
where
    S: Service<Request<ReplayBody>>,
{
    /// `service` is ready.
    pub(super) fn new<B>(
        mut service: S,
        request: Request<B>,
        settings: Settings,
        shared: Arc<Shared>,
    ) -> Self
    where
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (head, body) = request.into_parts();
        let (replay, body) = Replay::begin(erase(body), settings.replay_buffer);
        let attempt = service.call(Request::from_parts(head.clone(), body));
        Self {
            service,
            head,
            replay: Some(replay),
            body: None,
            settings,
            shared,
            retries: 0,
            state: State::Trying { attempt },
        }
    }
}

impl<S, R> Future for RetryFuture<S>
where
    S: Service<Request<ReplayBody>, Response = Response<R>>,
    S::Error: Into<BoxError>,
{
    type Output = Result<Response<R>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProjection::Trying { attempt } => {
                    let error = match ready!(attempt.poll(cx)) {
                        Ok(response) => {
                            // Nothing is kept for another attempt.
                            *this.replay = None;
                            return Poll::Ready(Ok(response));
                        }
                        Err(error) => Error::from(error.into()),
                    };
                    let again = error.is_retry_safe() && *this.retries < this.settings.retries;
                    // Taken now: whatever still holds the failed attempt can no longer read it.
                    let replay = this.replay.as_ref().filter(|_| again);
                    let body = replay.and_then(Replay::attempt);
                    if body.is_none() || !this.shared.try_retry() {
                        *this.replay = None;
                        return Poll::Ready(Err(error));
                    }
                    *this.body = body;
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
                    let request = Request::from_parts(this.head.clone(), body);
                    let attempt = this.service.call(request);
                    this.state.set(State::Trying { attempt });
                }
            }
        }
    }
}

impl<S> fmt::Debug for RetryFuture<S>
where
    S: Service<Request<ReplayBody>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryFuture")
            .field("retries", &self.retries)
            .finish_non_exhaustive()
    }
}
