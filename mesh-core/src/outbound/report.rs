use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use tokio::time::Instant;

use super::account;
use super::target::Destination;
use crate::layers::Sent;
use crate::mesh::MeshInner;
use crate::snapshot::Route;
use crate::telemetry::{Labels, Metrics, RequestLog, RequestOutcome, RequestProtocol, size};
use crate::{Error, ResponseFlag};

/// What is reported of one request of the client, at the end of its response.
///
/// Dropping it unfinished reports that the request was given up.
pub(super) struct RequestReport {
    metrics: Metrics,
    protocol: RequestProtocol,
    started: Instant,
    route: Option<(Labels, RequestLog)>,
    status: Option<StatusCode>,
    grpc_status: Option<u32>,
    /// Bytes of the request's head, and what was sent of its body.
    request: u64,
    body: Option<Sent>,
    /// Bytes of the response so far.
    response: u64,
}

impl RequestReport {
    pub(super) fn new<B>(mesh: &MeshInner, request: &Request<B>, started: Instant) -> Self {
        Self {
            metrics: mesh.node.inner.metrics.clone(),
            protocol: RequestProtocol::of(request.headers()),
            started,
            route: None,
            status: None,
            grpc_status: None,
            request: size::of_request_head(request),
            body: None,
            response: 0,
        }
    }

    /// Where to ask how much of the request's body was sent.
    pub(super) fn sends(&mut self, body: Sent) {
        self.body = Some(body);
    }

    /// The request is about to go this way; the last one counts.
    pub(super) fn routed<B>(&mut self, mesh: &Arc<MeshInner>, route: &Route, request: &Request<B>) {
        let labels = account::labels(mesh, route);
        let log = RequestLog::new(&labels, account::own_address(mesh), request);
        let log = match account::next_hop(route) {
            Some(next_hop) => log.with_destination(next_hop),
            None => log,
        };
        self.route = Some((labels, log));
    }

    /// There is no way for the request to go.
    pub(super) fn unrouted<B>(
        &mut self,
        mesh: &MeshInner,
        destination: &Destination,
        error: &Error,
        request: &Request<B>,
    ) {
        self.route = Some(account::unrouted_request(mesh, destination, error, request));
    }

    pub(super) fn is_grpc(&self) -> bool {
        self.protocol == RequestProtocol::Grpc
    }

    pub(super) fn head<B>(&mut self, response: &Response<B>) {
        self.status = Some(response.status());
        self.response = size::of_response_head(response);
        self.take_grpc_status(response.headers());
    }

    pub(super) fn frame(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.response += data.len() as u64;
        }
        if let Some(trailers) = frame.trailers_ref() {
            self.response += size::of_headers(trailers);
            self.take_grpc_status(trailers);
        }
    }

    /// Adds the sizes, which go by what was sent and read by now.
    fn sized(&self, outcome: RequestOutcome) -> RequestOutcome {
        let body = self.body.as_ref().map_or(0, Sent::bytes);
        outcome.with_sizes(self.request + body, self.response)
    }

    fn take_grpc_status(&mut self, headers: &HeaderMap) {
        if self.protocol == RequestProtocol::Grpc
            && let Some(status) = headers.get("grpc-status")
        {
            self.grpc_status = status.to_str().ok().and_then(|status| status.parse().ok());
        }
    }

    pub(super) fn finished(mut self) {
        let outcome = self.outcome();
        if let Some((labels, log)) = self.route.take() {
            self.metrics.request(&labels, &outcome);
            log.complete(&outcome);
        }
    }

    pub(super) fn failed(mut self, error: &Error) {
        let reply = error.reply();
        let status = self.status.unwrap_or_else(|| reply.status());
        let outcome = RequestOutcome::new(self.protocol, status, self.started.elapsed());
        let outcome = self.sized(match reply.flag() {
            Some(flag) => outcome.with_flag(flag),
            None => outcome,
        });
        if let Some((labels, log)) = self.route.take() {
            self.metrics.request(&labels, &outcome);
            log.failed(&outcome, error);
        }
    }

    fn outcome(&self) -> RequestOutcome {
        let duration = self.started.elapsed();
        let outcome = match self.status {
            Some(status) => RequestOutcome::new(self.protocol, status, duration),
            None => RequestOutcome::abandoned(self.protocol, duration),
        };
        self.sized(match self.grpc_status {
            Some(status) => outcome.with_grpc_status(status),
            None => outcome,
        })
    }
}

impl Drop for RequestReport {
    fn drop(&mut self) {
        // The application let go of the response, or of the request: nothing has failed.
        let outcome = self.outcome();
        let outcome = outcome.with_flag(ResponseFlag::DownstreamConnectionTermination);
        if let Some((labels, log)) = self.route.take() {
            self.metrics.request(&labels, &outcome);
            log.complete(&outcome);
        }
    }
}
