//! HTTP requests to the services that they name.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body as Inner;

#[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
use super::certificates::Certificates;
use super::discovery::{Delta, World, open};
use super::server::Shared;
#[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
use crate::proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateServiceServer;

type BoxError = Box<dyn StdError + Send + Sync>;

const DISCOVERY: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService";

/// Requests are a few KiB, in PEM.
#[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
const MAX_SIGNING_REQUEST: usize = 64 << 10;

/// Answers requests of a control plane's clients: a tower service over HTTP/2 with gRPC in it. Cheap to clone.
///
/// Requests to other paths are answered UNIMPLEMENTED.
#[derive(Clone)]
pub struct Service {
    shared: Arc<Shared>,
    #[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
    certificates: IstioCertificateServiceServer<Certificates>,
}

impl Service {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        #[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
        let certificates = Certificates {
            shared: Arc::clone(&shared),
        };
        Self {
            #[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
            certificates: IstioCertificateServiceServer::new(certificates)
                .max_decoding_message_size(MAX_SIGNING_REQUEST),
            shared,
        }
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("limits", &self.shared.limits)
            .finish_non_exhaustive()
    }
}

impl<B> tower_service::Service<http::Request<B>> for Service
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Answer {
        let path = request.uri().path();
        match path.rsplit_once('/') {
            Some((DISCOVERY, "DeltaAggregatedResources")) => {
                let answer = open::<Delta, B>(Arc::clone(&self.shared), request);
                Answer(Box::pin(answer.map(Ok)))
            }
            Some((DISCOVERY, "StreamAggregatedResources")) => {
                let answer = open::<World, B>(Arc::clone(&self.shared), request);
                Answer(Box::pin(answer.map(Ok)))
            }
            #[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
            Some(("/istio.v1.auth.IstioCertificateService", _)) => Answer(
                tower_service::Service::call(&mut self.certificates, request),
            ),
            _ => {
                let text = format!("there is no {path} here");
                let answer = Status::unimplemented(text).into_http();
                Answer(Box::pin(async { Ok(answer) }))
            }
        }
    }
}

/// The future of a [`Service`].
#[must_use = "futures do nothing unless polled"]
pub struct Answer(Pin<Box<dyn Future<Output = Result<http::Response<Inner>, Infallible>> + Send>>);

impl Future for Answer {
    type Output = Result<http::Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = self.0.as_mut().poll(cx);
        answer.map_ok(|response| response.map(Body))
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").finish_non_exhaustive()
    }
}

/// The body of an answer.
#[derive(Debug)]
pub struct Body(Inner);

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.0).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
