use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderName, Request, Response};
use tower_service::Service;

use super::DeadlineFuture;
use crate::error::{BoxError, Error};
use crate::layers::reply::is_grpc;

/// The service of [`DeadlineLayer`](super::DeadlineLayer).
#[derive(Debug, Clone)]
pub struct Deadline<S> {
    inner: S,
    timeout: Option<Duration>,
}

crate::layers::accessors!(Deadline);

impl<S> Deadline<S> {
    pub(super) fn new(inner: S, timeout: Option<Duration>) -> Self {
        Self { inner, timeout }
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Deadline<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    S::Error: Into<BoxError>,
{
    type Response = Response<super::DeadlineBody<ResBody>>;
    type Error = Error;
    type Future = DeadlineFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner
            .poll_ready(cx)
            .map_err(|error| Error::from(error.into()))
    }

    /// # Panics
    ///
    /// Where there is a time to keep, outside of a tokio runtime.
    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let own = grpc_timeout(request.headers());
        let timeout = match (self.timeout, own) {
            (Some(set), Some(own)) => Some(set.min(own)),
            (set, own) => set.or(own),
        };
        DeadlineFuture::new(self.inner.call(request), timeout)
    }
}

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// A gRPC request's `grpc-timeout`: at most eight digits and a unit; anything else is no deadline
/// ([gRPC over HTTP/2](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md)).
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(GRPC_TIMEOUT)?.as_bytes();
    if !is_grpc(headers) {
        return None;
    }
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount = digits
        .iter()
        .fold(0, |sum: u64, digit| sum * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}
