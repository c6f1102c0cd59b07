use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, Uri, Version, header};
use http_body::Body;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};
use tower_service::Service;

use super::account;
use super::body::MeshBody;
use super::dial::Tried;
use super::exchange::{Age, Returned, Unanswered};
use super::http_pool::Protocol;
use super::report::RequestReport;
use crate::error::BoxError;
use crate::layers::{AppBody, Replay, erase};
use crate::snapshot::{Hop, Route};
use crate::telemetry::request_id;
use crate::{Error, ErrorKind, Mesh};

/// Sends HTTP requests through the mesh, choosing an endpoint for each.
///
/// A tower `Service<Request<B>>` for any body, so hyper, tonic and kube-style code can sit on it.
/// Requests of version HTTP/2 (tonic's are) go over HTTP/2 with prior knowledge, all others over
/// HTTP/1.1. The URI must be absolute, with the scheme `http`: the tunnel encrypts.
///
/// What fails before a byte of the request was sent is tried on other endpoints, and so is what an
/// HTTP/2 server refused before it looked at it (`REFUSED_STREAM`, or `GOAWAY` below the stream), if what was read of
/// its body is no more than the [replay buffer](crate::Builder::replay_buffer) keeps; both under a retry
/// budget. Nothing that a server may have acted on is sent twice. Cloning is cheap, and clones share their connections.
///
/// With feature `tonic`, an error of a gRPC request that got no response, or whose response broke off, has a `tonic::Status`
/// among its sources, so that a generated client says UNAVAILABLE, DEADLINE_EXCEEDED or PERMISSION_DENIED, as [`Error::reply`]
/// has it, and not UNKNOWN.
///
/// A request without `x-request-id` gets one, a random UUID, as it would from Envoy; one that has it
/// keeps it, so that pass on what the request that caused it had.
///
/// # Examples
///
/// ```no_run
/// # async fn example(mesh: mesh_core::Mesh) -> Result<(), Box<dyn std::error::Error>> {
/// use http::Request;
/// use http_body_util::Empty;
///
/// let request = Request::get("http://ratings:9080/ratings/0").body(Empty::<bytes::Bytes>::new())?;
/// let response = mesh.http_client().request(request).await?;
/// assert!(response.status().is_success());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct MeshClient {
    mesh: Mesh,
}

impl Mesh {
    /// An HTTP client that balances by request.
    pub fn http_client(&self) -> MeshClient {
        MeshClient { mesh: self.clone() }
    }
}

impl MeshClient {
    /// Sends a request.
    ///
    /// # Errors
    ///
    /// [`Error::reply`] gives the HTTP status that a proxy would answer instead.
    /// [`ErrorKind::RequestTimeout`] when no response has begun within the builder's `request_timeout`, and for its body
    /// when that stalls for the builder's `response_idle_timeout`; [`ErrorKind::Draining`] once a
    /// [shutdown](Mesh::shutdown) is over, or has begun before the mesh was ready.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the request up; its connection is closed if the request had begun.
    pub fn request<B>(&self, request: Request<B>) -> ResponseFuture
    where
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let request = request.map(erase);
        let mesh = self.mesh.clone();
        ResponseFuture {
            inner: Box::pin(async move { send(&mesh, request).await }),
        }
    }
}

impl<B> Service<Request<B>> for MeshClient
where
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<MeshBody>;
    type Error = Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        self.request(request)
    }
}

async fn send(mesh: &Mesh, mut request: Request<AppBody>) -> Result<Response<MeshBody>, Error> {
    let started = Instant::now();
    let random = &mesh.inner.node.inner.random;
    request_id::ensure(request.headers_mut(), || [random.next(), random.next()]);
    let mut report = RequestReport::new(&mesh.inner, &request, started);
    let timeout = mesh.inner.settings().request_timeout;
    let deadline = timeout.and_then(|timeout| started.checked_add(timeout));
    let result = match deadline {
        None => attempts(mesh, request, deadline, &mut report).await,
        Some(at) => match timeout_at(at, attempts(mesh, request, deadline, &mut report)).await {
            Ok(result) => result,
            Err(_) => Err(Error::new(ErrorKind::RequestTimeout)),
        },
    };
    match result {
        Ok((response, returned)) => {
            report.head(&response);
            let idle = mesh.inner.settings().response_idle_timeout;
            // The streams of gRPC may be silent for as long as they like; they bring their own deadlines.
            let idle = idle.filter(|_| !report.is_grpc());
            let mesh = std::sync::Arc::clone(&mesh.inner);
            Ok(response.map(|body| MeshBody::new(mesh, body, returned, report, idle)))
        }
        Err(error) => {
            #[cfg(feature = "tonic")]
            let is_grpc = report.is_grpc();
            report.failed(&error);
            #[cfg(feature = "tonic")]
            if is_grpc {
                return Err(error.with_grpc_status());
            }
            Err(error)
        }
    }
}

async fn attempts(
    mesh: &Mesh,
    mut request: Request<AppBody>,
    deadline: Option<Instant>,
    report: &mut RequestReport,
) -> Result<(Response<Incoming>, Returned), Error> {
    let destination = super::target::Destination::of_uri(request.uri())?;
    let protocol = prepare(&mut request)?;
    let (head, body) = request.into_parts();
    // Dropped with the last attempt's outcome, it keeps nothing for a further one.
    let (body, mut attempt) = Replay::begin(body, mesh.inner.settings().replay_buffer);
    report.sends(body.sent());
    let head = Request::from_parts(head, ());
    let mesh = &mesh.inner;
    let pool = &mesh.http;
    pool.budget().record_request(Instant::now());
    let mut tried = Tried::default();
    let mut attempts = 1;
    loop {
        let route = match deadline {
            None => mesh.route(&destination, &tried).await,
            // Ends no later than what is around it, and can still say where the request was to go.
            Some(at) => match timeout_at(at, mesh.route(&destination, &tried)).await {
                Ok(route) => route,
                Err(_) => Err(Error::new(ErrorKind::RequestTimeout)),
            },
        };
        let route = match route {
            Ok(route) => route,
            Err(error) => {
                report.unrouted(mesh, &destination, &error, &head);
                return Err(error);
            }
        };
        report.routed(mesh, &route, &head);
        let (error, is_open) = match pool.checkout(mesh, &route, protocol).await {
            Err(error) => (on_the_way(error, &route), false),
            Ok(connection) => {
                let age = connection.age();
                let request = head.clone().map(|()| attempt);
                let Unanswered { error, unsent } = match connection.send(request).await {
                    Ok(answer) => return Ok(answer),
                    Err(unanswered) => unanswered,
                };
                let error = on_the_way(error, &route);
                let error = if unsent {
                    error.with_retry_safe(true)
                } else {
                    error
                };
                // What was read of a body and not kept is gone.
                let Some(again) = error.is_retry_safe().then(|| body.attempt()).flatten() else {
                    return Err(error);
                };
                attempt = again;
                // Its server closed it while it was idle. Each such connection is gone after one
                // try, so this ends.
                if unsent && age == Age::Used {
                    continue;
                }
                (error, true)
            }
        };
        attempts += 1;
        tried.add(&route, &error);
        let again = error.is_retry_safe()
            && attempts <= mesh.settings().connect_attempts
            && mesh.has_unjudged(&destination, &tried)
            && pool.budget().try_retry(Instant::now());
        if !is_open {
            account::failed(mesh, &route, &error, again);
        }
        if !again {
            return Err(error);
        }
        tracing::debug!(target: "mesh::outbound", %destination, %error, "trying the request again");
    }
}

/// Says where it was, and that it was in plaintext, of an error that says neither.
fn on_the_way(error: Error, route: &Route) -> Error {
    if error.detail().is_some() {
        return error;
    }
    match route.hop() {
        Hop::Plain(address) => error.with_detail(format!(
            "in plaintext to {address}, whose record is not in the mesh"
        )),
        Hop::Passthrough(address) => error.with_detail(format!(
            "in plaintext to {address}, which the mesh does not know"
        )),
        _ => match account::next_hop(route) {
            Some(next_hop) => error.with_detail(next_hop.to_string()),
            None => error,
        },
    }
}

/// Gives the request the form that its protocol has on the wire.
fn prepare(request: &mut Request<AppBody>) -> Result<Protocol, Error> {
    if request.version() == Version::HTTP_2 {
        return Ok(Protocol::Http2);
    }
    let uri = request.uri();
    let authority = uri.authority().map(|authority| {
        // RFC 9110 4.2.4: userinfo is never sent.
        authority
            .as_str()
            .rsplit('@')
            .next()
            .unwrap_or_default()
            .to_owned()
    });
    let path = uri
        .path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    if let Some(authority) = authority
        && !request.headers().contains_key(header::HOST)
    {
        let host = HeaderValue::try_from(authority).map_err(|error| {
            Error::new(ErrorKind::BadRequest)
                .with_detail("URI: expected an authority that a Host header can hold")
                .with_source(error)
        })?;
        request.headers_mut().insert(header::HOST, host);
    }
    *request.uri_mut() = Uri::from(path);
    *request.version_mut() = Version::HTTP_11;
    Ok(Protocol::Http1)
}

type Sending = Pin<Box<dyn Future<Output = Result<Response<MeshBody>, Error>> + Send>>;

/// A response that is waited for.
pub struct ResponseFuture {
    inner: Sending,
}

impl Future for ResponseFuture {
    type Output = Result<Response<MeshBody>, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.inner.as_mut().poll(cx)
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResponseFuture")
    }
}
