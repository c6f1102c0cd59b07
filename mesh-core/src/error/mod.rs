//! What can go wrong, on whose side, and whether trying again is safe.

mod foreign;
mod reply;

use std::borrow::Cow;
use std::fmt;
#[cfg(feature = "http")]
use std::sync::Arc;

use http::StatusCode;

pub use reply::{LocalReply, ResponseFlag};

/// A boxed error of any type, as tower and hyper use it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Says what failed: [`kind`](Self::kind), on whose [`side`](Self::side), and
/// [whether a retry is safe](Self::is_retry_safe).
///
/// It displays one level; `source()` leads to the cause. `{:?}` is the whole chain on one line, which is
/// what a `main` that returns it prints; `{:#?}` has the fields. It is one pointer wide.
///
/// # Examples
///
/// ```
/// use mesh_core::{Error, ErrorKind};
///
/// let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
/// let error = Error::new(ErrorKind::ConnectFailed).with_detail("10.0.0.9:15008").with_source(refused);
/// assert_eq!(error.to_string(), "connecting failed: 10.0.0.9:15008");
/// assert!(error.is_retry_safe());
/// assert_eq!(error.reply().status(), 503);
/// assert_eq!(error.reply().flag().unwrap().code(), "UF");
/// ```
pub struct Error {
    inner: Box<Inner>,
}

struct Inner {
    kind: ErrorKind,
    side: Side,
    retry_safe: bool,
    detail: Option<Cow<'static, str>>,
    source: Option<BoxError>,
}

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting or a piece of configuration is not valid.
    Config,
    /// The first snapshot or the first certificate did not come within `start_timeout`.
    NotReady,
    /// The configuration has no record of the workload that this process claims to be.
    NoRecord,
    /// A local address could not be bound.
    Bind,
    /// This workload's own certificate or key is missing, expired or not usable.
    Identity,
    /// The request is malformed: its path, its host or its headers.
    BadRequest,
    /// The request's credentials are not accepted.
    Unauthenticated,
    /// Policy refuses.
    Denied,
    /// The destination has no endpoint that may be used.
    NoHealthyUpstream,
    /// The mesh does not know the host and the outbound policy keeps to the mesh.
    UnknownHost,
    /// A host outside of the mesh has no address.
    HostLookup,
    /// The destination names a waypoint that the configuration does not have.
    UnknownWaypoint,
    /// The destination is on a network that only a gateway reaches, which is not supported yet.
    UnsupportedNetwork,
    /// No connection could be made.
    ConnectFailed,
    /// No connection could be made in time.
    ConnectTimeout,
    /// TLS or the proof of the peer's identity failed.
    TlsHandshake,
    /// The peer answered CONNECT with another status than 2xx.
    TunnelRefused(StatusCode),
    /// The peer refused the stream before it looked at it (`REFUSED_STREAM`, or `GOAWAY` below it).
    RefusedStream,
    /// The peer reset the connection or the stream.
    Reset,
    /// The peer closed the connection before the answer was complete.
    Closed,
    /// A limit of this process is reached.
    Overloaded,
    /// This process is shutting down and takes nothing new.
    Draining,
    /// The request was not answered in time.
    RequestTimeout,
    /// The operating system or a stream reported an error.
    Io,
    /// A defect of this library or a wrong use of it.
    Internal,
}

/// On whose side something failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Side {
    /// Who asked: the client of a server.
    Downstream,
    /// Who was asked: the server of a client.
    Upstream,
    /// This process.
    Us,
}

impl Side {
    /// The side in lower case, for logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Downstream => "downstream",
            Self::Upstream => "upstream",
            Self::Us => "us",
        }
    }
}

impl Error {
    /// Makes an error; side and retry safety are the kind's.
    pub fn new(kind: ErrorKind) -> Self {
        Self {
            inner: Box::new(Inner {
                kind,
                side: kind.side(),
                retry_safe: kind.is_retry_safe(),
                detail: None,
                source: None,
            }),
        }
    }

    /// Says what it was about: the address, the name, the setting and what was expected of it.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.inner.detail = Some(detail.into());
        self
    }

    /// Keeps the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.inner.source = Some(source.into());
        self
    }

    /// Puts a gRPC status among the causes, before all others: tonic takes an error without one for UNKNOWN.
    #[cfg(feature = "tonic")]
    pub(crate) fn with_grpc_status(mut self) -> Self {
        // Of what the peer said with its reset tonic makes gRPC's code itself.
        let mut causes =
            std::iter::successors(std::error::Error::source(&self), |cause| cause.source());
        let reset = |cause: &(dyn std::error::Error + 'static)| {
            let h2 = cause.downcast_ref::<h2::Error>();
            h2.is_some_and(|error| error.reason().is_some())
        };
        if causes.any(reset) {
            return self;
        }
        // A denial of the whole tunnel is no outage, which clients would try again.
        let code = match self.is_denied() {
            true => tonic::Code::PermissionDenied,
            false => tonic::Code::from(i32::from(self.reply().grpc_status())),
        };
        let mut status = tonic::Status::new(code, Chain(&self).to_string());
        if let Some(source) = self.inner.source.take() {
            status.set_source(Arc::from(source));
        }
        self.with_source(status)
    }

    /// Sets the side, where it is not the one that the kind suggests.
    #[must_use]
    pub fn with_side(mut self, side: Side) -> Self {
        self.inner.side = side;
        self
    }

    /// Sets whether the same request may be sent again, where that is not as the kind suggests.
    #[must_use]
    pub fn with_retry_safe(mut self, retry_safe: bool) -> Self {
        self.inner.retry_safe = retry_safe;
        self
    }

    /// What failed.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// On whose side.
    pub fn side(&self) -> Side {
        self.inner.side
    }

    /// What it was about, if that is known.
    pub fn detail(&self) -> Option<&str> {
        self.inner.detail.as_deref()
    }

    /// Whether the peer certainly did not act on the request, so that it may be sent again.
    pub fn is_retry_safe(&self) -> bool {
        self.inner.retry_safe
    }

    /// Whether something did not happen in time.
    pub fn is_timeout(&self) -> bool {
        matches!(
            self.inner.kind,
            ErrorKind::NotReady | ErrorKind::ConnectTimeout | ErrorKind::RequestTimeout
        )
    }

    /// Whether policy refused: ours, or the peer's by its answer to CONNECT.
    pub fn is_denied(&self) -> bool {
        matches!(
            self.inner.kind,
            ErrorKind::Denied
                // istio/ztunnel answers 401, a waypoint 403.
                | ErrorKind::TunnelRefused(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
        )
    }

    /// Whether no connection to the peer came about.
    pub fn is_connect(&self) -> bool {
        matches!(
            self.inner.kind,
            ErrorKind::ConnectFailed
                | ErrorKind::ConnectTimeout
                | ErrorKind::TlsHandshake
                | ErrorKind::TunnelRefused(_)
        )
    }

    /// Whether the peer's certificate was judged, and would not do.
    pub(crate) fn is_of_certificate(&self) -> bool {
        let judged = |cause: &(dyn std::error::Error + 'static)| {
            #[cfg(feature = "http")]
            if let Some(SharedCause(error)) = cause.downcast_ref() {
                return error.is_of_certificate();
            }
            let tunnel = cause.downcast_ref::<mesh_hbone::Error>();
            tunnel.is_some_and(mesh_hbone::Error::is_authentication)
        };
        foreign::causes(self).any(judged)
    }

    /// The same error, for one more of those who waited for what failed.
    #[cfg(feature = "http")]
    pub(crate) fn shared(self: &Arc<Self>) -> Self {
        let cause = self.inner.source.is_some();
        Self {
            inner: Box::new(Inner {
                kind: self.inner.kind,
                side: self.inner.side,
                retry_safe: self.inner.retry_safe,
                detail: self.inner.detail.clone(),
                source: cause.then(|| SharedCause(Arc::clone(self)).into()),
            }),
        }
    }

    /// What an HTTP or gRPC client that waits for an answer is told.
    pub fn reply(&self) -> LocalReply {
        self.inner.kind.reply()
    }
}

impl ErrorKind {
    /// On whose side this usually is.
    pub fn side(self) -> Side {
        match self {
            Self::Config
            | Self::NotReady
            | Self::NoRecord
            | Self::Bind
            | Self::Identity
            | Self::UnknownHost
            | Self::UnknownWaypoint
            | Self::UnsupportedNetwork
            | Self::Overloaded
            | Self::Draining
            | Self::Internal => Side::Us,
            Self::BadRequest | Self::Unauthenticated | Self::Denied => Side::Downstream,
            Self::NoHealthyUpstream
            | Self::HostLookup
            | Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::TlsHandshake
            | Self::TunnelRefused(_)
            | Self::RefusedStream
            | Self::Reset
            | Self::Closed
            | Self::RequestTimeout
            | Self::Io => Side::Upstream,
        }
    }

    /// Whether the peer certainly saw nothing of the request: Istio's `connect-failure` and
    /// `refused-stream`.
    pub fn is_retry_safe(self) -> bool {
        match self {
            // A refusal by policy or by a malformed request is the same the next time.
            Self::TunnelRefused(status) => status.is_server_error(),
            Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::TlsHandshake
            | Self::RefusedStream => true,
            _ => false,
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Config => "invalid configuration",
            Self::NotReady => "not ready in time",
            Self::NoRecord => "no record of this workload",
            Self::Bind => "binding failed",
            Self::Identity => "no usable certificate",
            Self::BadRequest => "malformed request",
            Self::Unauthenticated => "credentials not accepted",
            Self::Denied => "denied by policy",
            Self::NoHealthyUpstream => "no healthy upstream",
            Self::UnknownHost => "host not in the mesh",
            Self::HostLookup => "host has no address",
            Self::UnknownWaypoint => "unknown waypoint",
            Self::UnsupportedNetwork => "network gateways are not supported",
            Self::ConnectFailed => "connecting failed",
            Self::ConnectTimeout => "connecting timed out",
            Self::TlsHandshake => "TLS handshake failed",
            // What ztunnel and the SDK answer who is denied; no token would help.
            Self::TunnelRefused(StatusCode::UNAUTHORIZED) => "tunnel denied by policy",
            Self::TunnelRefused(_) => "tunnel refused",
            Self::RefusedStream => "stream refused",
            Self::Reset => "reset by the peer",
            Self::Closed => "closed by the peer",
            Self::Overloaded => "limit reached",
            Self::Draining => "shutting down",
            Self::RequestTimeout => "request timed out",
            Self::Io => "I/O error",
            Self::Internal => "internal error",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.describe())?;
        if let Self::TunnelRefused(status) = self {
            write!(f, " with {status}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.inner.kind, f)?;
        match &self.inner.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return fmt::Display::fmt(&Chain(self), f);
        }
        f.debug_struct("Error")
            .field("kind", &self.inner.kind)
            .field("side", &self.inner.side)
            .field("retry_safe", &self.inner.retry_safe)
            .field("detail", &self.inner.detail)
            .field("source", &self.inner.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.inner.source {
            Some(source) => Some(&**source),
            None => None,
        }
    }
}

/// An error with its causes, on one line, `: ` between them. What was said already is not said again: an error of ours
/// that came through an I/O trait is its own cause.
pub(crate) struct Chain<'a>(pub(crate) &'a (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// A chain longer than this is a loop, or nothing anybody reads.
        const MAX: usize = 16;
        let mut said = self.0.to_string();
        let causes = std::iter::successors(self.0.source(), |error| (*error).source());
        for cause in causes.take(MAX).map(ToString::to_string) {
            if cause.starts_with(&said) {
                said = cause;
            } else if !said.contains(&cause) {
                said.push_str(": ");
                said.push_str(&cause);
            }
        }
        f.write_str(&said)
    }
}

/// The cause of an error that several have: it reads as the cause itself.
#[cfg(feature = "http")]
#[derive(Debug)]
struct SharedCause(Arc<Error>);

#[cfg(feature = "http")]
impl fmt::Display for SharedCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.inner.source {
            Some(cause) => cause.fmt(f),
            None => Ok(()),
        }
    }
}

#[cfg(feature = "http")]
impl std::error::Error for SharedCause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.inner.source.as_ref()?.source()
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self::new(kind)
    }
}

impl From<std::io::Error> for Error {
    /// Keeps an [`Error`] that was carried through an I/O trait; anything else is
    /// [`Io`](ErrorKind::Io), [`Reset`](ErrorKind::Reset) or [`Closed`](ErrorKind::Closed).
    fn from(error: std::io::Error) -> Self {
        let kind = io_kind(error.kind());
        let error = match error.downcast::<Self>() {
            Ok(ours) => return ours,
            Err(error) => error,
        };
        match error.downcast::<mesh_hbone::Error>() {
            Ok(tunnel) => Self::from(tunnel),
            Err(error) => Self::new(kind).with_source(error),
        }
    }
}

fn io_kind(kind: std::io::ErrorKind) -> ErrorKind {
    use std::io::ErrorKind as Kind;
    match kind {
        Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe => ErrorKind::Reset,
        Kind::UnexpectedEof => ErrorKind::Closed,
        _ => ErrorKind::Io,
    }
}

impl From<Error> for std::io::Error {
    /// The I/O kind that comes closest; the error itself is the inner value.
    fn from(error: Error) -> Self {
        use std::io::ErrorKind as Kind;
        let kind = match error.kind() {
            ErrorKind::ConnectTimeout | ErrorKind::NotReady | ErrorKind::RequestTimeout => {
                Kind::TimedOut
            }
            ErrorKind::Denied | ErrorKind::TunnelRefused(_) => Kind::PermissionDenied,
            ErrorKind::UnknownHost | ErrorKind::HostLookup => Kind::NotFound,
            ErrorKind::Reset | ErrorKind::RefusedStream => Kind::ConnectionReset,
            ErrorKind::Closed => Kind::UnexpectedEof,
            ErrorKind::ConnectFailed
            | ErrorKind::TlsHandshake
            | ErrorKind::NoHealthyUpstream
            | ErrorKind::UnknownWaypoint
            | ErrorKind::UnsupportedNetwork => Kind::ConnectionRefused,
            ErrorKind::BadRequest | ErrorKind::Config => Kind::InvalidInput,
            _ => Kind::Other,
        };
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests;
