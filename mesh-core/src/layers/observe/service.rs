use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::record::Record;
use super::{ObserveBody, ObserveFuture, ObserveLayer};

/// The service of [`ObserveLayer`].
#[derive(Debug, Clone)]
pub struct Observe<S> {
    inner: S,
    layer: ObserveLayer,
}

crate::layers::accessors!(Observe);

impl<S> Observe<S> {
    pub(super) fn new(inner: S, layer: ObserveLayer) -> Self {
        Self { inner, layer }
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Observe<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    S::Error: 'static,
    ReqBody: Body + 'static,
    ResBody: Body,
    ResBody::Error: 'static,
{
    type Response = Response<ObserveBody<ResBody>>;
    type Error = S::Error;
    type Future = ObserveFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let mut record = Record::begin(&self.layer, &request);
        let request = match &mut record {
            Some(record) => request.map(|body| record.sent(body)),
            None => request,
        };
        ObserveFuture::new(self.inner.call(request), record)
    }
}
