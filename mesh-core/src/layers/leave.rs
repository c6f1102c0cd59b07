//! The last answer on a connection of a server that leaves.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use crate::Mesh;

/// Answers HTTP/1 requests with `connection: close` once the mesh drains, so that no client sends its next
/// request on a connection that is about to be closed.
///
/// An idle HTTP/1.1 connection can be closed just when a request is under way on it, and its client cannot
/// know whether the request was looked at (RFC 9112, section 9.5). HTTP/2 says which streams it took, and is left alone,
/// as are upgrades. [`InboundLayer`](super::InboundLayer) of a [`listen_http`](crate::Mesh::listen_http) port has it.
///
/// # Examples
///
/// ```
/// # fn example(mesh: &mesh_core::Mesh) {
/// let app = axum::Router::<()>::new().layer(mesh_core::layers::LeaveLayer::new(mesh));
/// # let _ = app;
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct LeaveLayer {
    notice: Arc<OnceLock<Instant>>,
}

impl LeaveLayer {
    /// Follows the drain of `mesh`.
    pub fn new(mesh: &Mesh) -> Self {
        Self {
            notice: Arc::clone(&mesh.inner.notice),
        }
    }
}

impl<S> Layer<S> for LeaveLayer {
    type Service = Leave<S>;

    fn layer(&self, inner: S) -> Leave<S> {
        Leave {
            inner,
            notice: Arc::clone(&self.notice),
        }
    }
}

/// The service of [`LeaveLayer`].
#[derive(Debug, Clone)]
pub struct Leave<S> {
    inner: S,
    notice: Arc<OnceLock<Instant>>,
}

super::accessors!(Leave);

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Leave<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = LeaveFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let http1 = request.version() < Version::HTTP_2;
        LeaveFuture {
            inner: self.inner.call(request),
            notice: http1.then(|| Arc::clone(&self.notice)),
        }
    }
}

pin_project! {
    /// The answer of [`Leave`].
    #[derive(Debug)]
    pub struct LeaveFuture<F> {
        #[pin]
        inner: F,
        notice: Option<Arc<OnceLock<Instant>>>,
    }
}

impl<F, B, E> Future for LeaveFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut answered = std::task::ready!(this.inner.poll(cx));
        let leaves = this
            .notice
            .as_ref()
            .is_some_and(|notice| notice.get().is_some());
        if let Ok(response) = &mut answered
            && leaves
            && response.status() != StatusCode::SWITCHING_PROTOCOLS
        {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        Poll::Ready(answered)
    }
}
