//! Turns errors into responses, by the one table.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;
use tracing::debug;

use super::reply::{Reply, ReplyBody, is_grpc};
use crate::error::{BoxError, Error};

/// Answers with a response where the inner service fails: for whoever passes requests on with a client
/// of the mesh, and for services that may fail under axum or tonic.
///
/// The status, gRPC status, body and flag are those of [`Error::reply`]; the error itself is logged
/// at debug level on the target `mesh::layers` and goes nowhere else.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use http::{Request, Response};
/// use mesh_core::{Error, ErrorKind, layers::AnswerLayer};
/// use tower::{Layer, ServiceExt, service_fn};
///
/// let failing = service_fn(|_: Request<()>| async {
///     Err::<Response<String>, _>(Error::new(ErrorKind::NoHealthyUpstream))
/// });
/// let response = AnswerLayer::new().layer(failing).oneshot(Request::new(())).await.unwrap();
/// assert_eq!(response.status(), 503);
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct AnswerLayer {
    _private: (),
}

impl AnswerLayer {
    /// Answers every error.
    pub fn new() -> Self {
        Self::default()
    }
}

impl<S> Layer<S> for AnswerLayer {
    type Service = Answer<S>;

    fn layer(&self, inner: S) -> Answer<S> {
        Answer {
            inner,
            failed: None,
        }
    }
}

/// The service of [`AnswerLayer`].
#[derive(Debug)]
pub struct Answer<S> {
    inner: S,
    /// Why the inner service will not be ready: the answer to the next call.
    failed: Option<Error>,
}

/// A clone is a service of its own: a failure to become ready is not its own.
impl<S: Clone> Clone for Answer<S> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            failed: None,
        }
    }
}

super::accessors!(Answer);

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Answer<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    S::Error: Into<BoxError>,
{
    type Response = Response<ReplyBody<ResBody>>;
    type Error = Infallible;
    type Future = AnswerFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if self.failed.is_none()
            && let Err(error) = ready!(self.inner.poll_ready(cx))
        {
            self.failed = Some(Error::from(error.into()));
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let grpc = is_grpc(request.headers());
        match self.failed.take() {
            Some(error) => AnswerFuture {
                inner: None,
                failed: Some(error),
                grpc,
            },
            None => AnswerFuture {
                inner: Some(self.inner.call(request)),
                failed: None,
                grpc,
            },
        }
    }
}

pin_project! {
    /// The future of [`Answer`].
    pub struct AnswerFuture<F> {
        #[pin]
        inner: Option<F>,
        failed: Option<Error>,
        grpc: bool,
    }
}

impl<F, B, E> Future for AnswerFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Response<ReplyBody<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let error = match this.inner.as_pin_mut() {
            Some(future) => match ready!(future.poll(cx)) {
                Ok(response) => return Poll::Ready(Ok(response.map(ReplyBody::inner))),
                Err(error) => Error::from(error.into()),
            },
            None => this
                .failed
                .take()
                .expect("a future is not polled after it has completed"),
        };
        debug!(target: "mesh::layers", error = &error as &dyn std::error::Error, "answered an error");
        Poll::Ready(Ok(Reply::new(error.kind()).into_response(*this.grpc)))
    }
}

impl<F> fmt::Debug for AnswerFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnswerFuture").finish_non_exhaustive()
    }
}
