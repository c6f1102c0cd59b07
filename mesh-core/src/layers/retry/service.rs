use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::layer::{Settings, Shared};
use super::{ReplayBody, RetryFuture};
use crate::error::{BoxError, Error};

/// The service of [`RetryLayer`](super::RetryLayer).
#[derive(Debug, Clone)]
pub struct Retry<S> {
    inner: S,
    settings: Settings,
    shared: Arc<Shared>,
}

crate::layers::accessors!(Retry);

impl<S> Retry<S> {
    pub(super) fn new(inner: S, settings: Settings, shared: Arc<Shared>) -> Self {
        Self {
            inner,
            settings,
            shared,
        }
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Retry<S>
where
    S: Service<Request<ReplayBody>, Response = Response<ResBody>> + Clone,
    S::Error: Into<BoxError>,
    ReqBody: Body + Send + 'static,
    ReqBody::Error: Into<BoxError>,
{
    type Response = Response<ResBody>;
    type Error = Error;
    type Future = RetryFuture<S>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner
            .poll_ready(cx)
            .map_err(|error| Error::from(error.into()))
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        self.shared.record_request();
        // The service that is ready goes with the request; a fresh clone takes its place.
        let fresh = self.inner.clone();
        let ready = std::mem::replace(&mut self.inner, fresh);
        RetryFuture::new(ready, request, self.settings, Arc::clone(&self.shared))
    }
}
