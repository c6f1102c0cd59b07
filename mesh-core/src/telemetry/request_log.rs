//! One record per HTTP request.

use std::borrow::Cow;
use std::error::Error;
use std::net::SocketAddr;

use http::header::HOST;
use http::{HeaderValue, Method, Request, Uri, Version};

use super::access_log::{ACCESS_TARGET, Ends, chain, millis};
use super::sanitize::sanitize;
use super::{Labels, RequestOutcome};

/// What the access log says of a request: an INFO event `request complete`, or an ERROR with `error`.
///
/// Fields, in this order, those without a value left out: the ends as in
/// [`AccessLog`](super::AccessLog) without their tunnel's address, `direction`, then under the names
/// of Istio's JSON access log `method`, `path`, `protocol`, `authority`, `request_id`,
/// `response_code`, `grpc_status`, `response_flags`, `response_code_details`, `duration`, `error`.
///
/// `response_code_details` says why the mesh answered in the application's place, in Envoy's words: of a request that
/// policy refused, which policy and rule (`rbac_access_denied_matched_policy[ns[..]-policy[..]-rule[0]]`). The
/// client is not told.
///
/// The path is logged with its query, as Istio does by default.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use http::{Request, StatusCode};
/// use mesh_core::telemetry::{
///     Labels, Peer, Reporter, RequestLog, RequestOutcome, RequestProtocol, SecurityPolicy,
/// };
///
/// # let labels = Labels::new(
/// #     Reporter::Destination, Peer::unknown(), Peer::unknown(), None, SecurityPolicy::MutualTls);
/// let request = Request::get("/ratings/0").body(())?;
/// let log = RequestLog::new(&labels, "10.0.0.7:51000".parse()?, &request);
/// // … and when the response has ended:
/// let took = Duration::from_millis(2);
/// log.complete(&RequestOutcome::new(RequestProtocol::Http, StatusCode::OK, took));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct RequestLog {
    labels: Labels,
    source: SocketAddr,
    destination: Option<SocketAddr>,
    method: Method,
    uri: Uri,
    version: Version,
    host: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
    details: Option<Cow<'static, str>>,
}

impl RequestLog {
    /// A record of a request that came from `source`. It copies no text: all it keeps is counted.
    pub fn new<B>(labels: &Labels, source: SocketAddr, request: &Request<B>) -> Self {
        let header = |name| request.headers().get(name).cloned();
        Self {
            labels: labels.clone(),
            source,
            destination: None,
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            host: request.headers().get(HOST).cloned(),
            request_id: header("x-request-id"),
            details: None,
        }
    }

    /// Sets why the mesh answered in the application's place.
    pub fn set_response_code_details(&mut self, details: impl Into<Cow<'static, str>>) {
        self.details = Some(details.into());
    }

    /// Sets the address that the request was for, or went to.
    pub fn with_destination(mut self, destination: SocketAddr) -> Self {
        self.destination = Some(destination);
        self
    }

    /// Says that the request was answered, or that its client went away.
    pub fn complete(&self, outcome: &RequestOutcome) {
        if tracing::enabled!(target: ACCESS_TARGET, tracing::Level::INFO) {
            self.ended(outcome, None);
        }
    }

    /// Says that the request failed; the error's sources are told too.
    pub fn failed(&self, outcome: &RequestOutcome, error: &(dyn Error + 'static)) {
        if tracing::enabled!(target: ACCESS_TARGET, tracing::Level::ERROR) {
            self.ended(outcome, Some(&chain(error)));
        }
    }

    fn ended(&self, outcome: &RequestOutcome, error: Option<&str>) {
        let ends = Ends::of(&self.labels);
        let text = |value: &HeaderValue| {
            let value = String::from_utf8_lossy(value.as_bytes());
            sanitize(&value).into_owned()
        };
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let authority = match self.uri.authority() {
            Some(authority) => Some(sanitize(authority.as_str()).into_owned()),
            None => self.host.as_ref().map(text),
        };
        let request_id = self.request_id.as_ref().map(text);
        let details = self.details.as_deref().map(sanitize);
        macro_rules! record {
            ($level:ident) => {
                tracing::event!(
                    target: ACCESS_TARGET,
                    tracing::Level::$level,
                    {
                        src.addr = %self.source,
                        src.workload = ends.source.workload.as_deref(),
                        src.namespace = ends.source.namespace.as_deref(),
                        src.identity = ends.source.identity.as_deref(),
                        src.cluster = ends.source.cluster.as_deref(),
                        dst.addr = self.destination.map(tracing::field::display),
                        dst.service = ends.service.as_deref(),
                        dst.workload = ends.destination.workload.as_deref(),
                        dst.namespace = ends.destination.namespace.as_deref(),
                        dst.identity = ends.destination.identity.as_deref(),
                        dst.cluster = ends.destination.cluster.as_deref(),
                        direction = self.labels.reporter().direction(),
                        method = &*sanitize(self.method.as_str()),
                        path = &*sanitize(path),
                        protocol = protocol(self.version),
                        authority = authority.as_deref(),
                        request_id = request_id.as_deref(),
                        response_code = outcome.response_code(),
                        grpc_status = outcome.grpc_status(),
                        response_flags = outcome.flags(),
                        response_code_details = details.as_deref(),
                        duration = millis(outcome.duration()).as_str(),
                        error
                    },
                    "request complete"
                )
            };
        }
        match error {
            None => record!(INFO),
            Some(_) => record!(ERROR),
        }
    }
}

/// As Envoy writes `%PROTOCOL%`.
fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_11 => "HTTP/1.1",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/0.9",
    }
}
