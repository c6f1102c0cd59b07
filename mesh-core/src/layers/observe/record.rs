use std::any::Any;
use std::net::SocketAddr;

use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Body;
use tokio::time::Instant;

use super::ObserveLayer;
use super::size::BodySize;
use crate::ConnectionContext;
use crate::error::{BoxError, Error, ResponseFlag};
use crate::layers::LocalResponse;
use crate::layers::reply::GRPC_STATUS;
use crate::telemetry::{
    Labels, Metrics, Reporter, RequestLog, RequestOutcome, RequestProtocol, size,
};

/// A request under way. It is counted and logged once: by [`end`](Self::end), or when it is dropped.
pub(super) struct Record {
    metrics: Option<Metrics>,
    labels: Labels,
    log: Option<RequestLog>,
    protocol: RequestProtocol,
    head: bool,
    begun: Instant,
    /// Bytes of the request's head, and the size of its body.
    request: u64,
    body: BodySize,
    answer: Option<Answer>,
    ended: bool,
}

/// What is known once the response has begun.
struct Answer {
    status: StatusCode,
    /// Whether the service gave it, and no layer in its place.
    by_service: bool,
    grpc_status: Option<u32>,
    flag: Option<ResponseFlag>,
    /// Bytes of the response so far.
    bytes: u64,
    /// How many bytes of body are still to come, where that was said.
    left: Option<u64>,
    /// Whether the body has nothing more to give.
    complete: bool,
}

impl Record {
    /// Nothing where nobody knows whose request it is; other layers complain of that.
    pub(super) fn begin<B>(layer: &ObserveLayer, request: &Request<B>) -> Option<Self> {
        let context = request.extensions().get::<ConnectionContext>();
        let labels = layer
            .labels
            .clone()
            .or_else(|| request.extensions().get::<Labels>().cloned())
            .or_else(|| Some((layer.label_with)(context?)))?;
        let ends: Option<(SocketAddr, SocketAddr)> = layer
            .ends
            .or_else(|| context.map(|context| (context.source(), context.destination())));
        let log = ends.map(|(source, destination)| {
            RequestLog::new(&labels, source, request).with_destination(destination)
        });
        Some(Self {
            metrics: layer.metrics.clone(),
            log,
            labels,
            protocol: RequestProtocol::of(request.headers()),
            head: request.method() == Method::HEAD,
            begun: Instant::now(),
            request: size::of_request_head(request),
            body: BodySize::Said(0),
            answer: None,
            ended: false,
        })
    }

    /// Finds out the size of the request's body, which is now or while it is read.
    pub(super) fn sent<B: Body + 'static>(&mut self, body: B) -> B {
        let (body, size) = BodySize::of(body);
        self.body = size;
        body
    }

    /// Notes how the response begins.
    pub(super) fn answered<B: Body>(&mut self, response: &Response<B>) {
        let status = response.status();
        let local = response.extensions().get::<LocalResponse>();
        if let (Some(log), Some(local)) = (&mut self.log, local) {
            log.set_response_code_details(local.cloned_details());
        }
        let bodiless = self.head
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let length = response
            .headers()
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse().ok());
        self.answer = Some(Answer {
            status,
            by_service: local.is_none(),
            grpc_status: grpc_status(response.headers()),
            flag: local.and_then(|local| local.kind().reply().flag()),
            bytes: size::of_response_head(response),
            left: length.or_else(|| response.body().size_hint().exact()),
            complete: bodiless || response.body().is_end_stream(),
        });
    }

    /// Notes that a frame of the body passed.
    pub(super) fn passed(&mut self, data: usize, trailers: Option<&HeaderMap>, complete: bool) {
        let Some(answer) = &mut self.answer else {
            return;
        };
        if let Some(status) = trailers.and_then(grpc_status) {
            answer.grpc_status = Some(status);
        }
        let frame = (data as u64).saturating_add(trailers.map_or(0, size::of_headers));
        answer.bytes = answer.bytes.saturating_add(frame);
        if let Some(left) = &mut answer.left {
            *left = left.saturating_sub(data as u64);
        }
        answer.complete |= complete;
    }

    /// The response has ended well.
    pub(super) fn end(&mut self) {
        let outcome = self.outcome();
        self.report(&outcome, None);
    }

    /// The service failed instead of answering, or the response failed half-way.
    pub(super) fn fail(&mut self, error: &dyn Any) {
        let ours = error.downcast_ref::<Error>().or_else(|| {
            let boxed = error.downcast_ref::<BoxError>()?;
            boxed.downcast_ref::<Error>()
        });
        if self.answer.is_none() {
            self.answer = Some(Answer {
                status: ours.map_or(StatusCode::INTERNAL_SERVER_ERROR, |error| {
                    error.reply().status()
                }),
                by_service: false,
                grpc_status: None,
                flag: None,
                bytes: 0,
                left: None,
                complete: false,
            });
        }
        // Whoever answers is the one that broke off.
        let broke_off = match self.labels.reporter() {
            Reporter::Source => ResponseFlag::UpstreamRemoteReset,
            _ => ResponseFlag::LocalReset,
        };
        let flag = ours
            .and_then(|error| error.reply().flag())
            .unwrap_or(broke_off);
        let outcome = self.outcome().with_flag(flag);
        self.report(&outcome, ours);
    }

    /// Nobody wants the rest: either there is none, or the client went away.
    fn abandon(&mut self) {
        let outcome = self.outcome();
        let complete = self
            .answer
            .as_ref()
            .is_some_and(|answer| answer.complete || answer.left == Some(0));
        if complete {
            self.report(&outcome, None);
        } else {
            let gone = ResponseFlag::DownstreamConnectionTermination;
            self.report(&outcome.with_flag(gone), None);
        }
    }

    fn outcome(&self) -> RequestOutcome {
        let by_service = self.answer.as_ref().is_some_and(|answer| answer.by_service);
        let request = self.request.saturating_add(self.body.bytes(by_service));
        let response = self.answer.as_ref().map_or(0, |answer| answer.bytes);
        self.unsized_outcome().with_sizes(request, response)
    }

    fn unsized_outcome(&self) -> RequestOutcome {
        let duration = self.begun.elapsed();
        let Some(answer) = &self.answer else {
            return RequestOutcome::abandoned(self.protocol, duration);
        };
        let mut outcome = RequestOutcome::new(self.protocol, answer.status, duration);
        if self.protocol == RequestProtocol::Grpc
            && let Some(status) = answer.grpc_status
        {
            outcome = outcome.with_grpc_status(status);
        }
        match answer.flag {
            Some(flag) => outcome.with_flag(flag),
            None => outcome,
        }
    }

    fn report(&mut self, outcome: &RequestOutcome, error: Option<&Error>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        if let Some(metrics) = &self.metrics {
            metrics.request(&self.labels, outcome);
        }
        match (&self.log, error) {
            (Some(log), Some(error)) => log.failed(outcome, error),
            (Some(log), None) => log.complete(outcome),
            (None, _) => {}
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.ended {
            self.abandon();
        }
    }
}

fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}
