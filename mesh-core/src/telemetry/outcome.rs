//! How a connection or a request ended.

use std::fmt;
use std::time::Duration;

use http::StatusCode;

use crate::{ErrorKind, ResponseFlag};

/// How a connection ended, in the words of ztunnel's label `response_flags`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectionFlag {
    /// `-`: well.
    None,
    /// `DENY`: policy refused it, at its start or later.
    Denied,
    /// `CONNECT`: any failure that has no flag of its own, mid-stream errors and drain included.
    ConnectionFailed,
    /// `TLS_FAILURE`: this end's TLS configuration cannot be used.
    TlsFailure,
    /// `H2_HANDSHAKE_FAILURE`: HTTP/2 failed under the tunnel.
    H2HandshakeFailure,
    /// `NETWORK_POLICY`: nobody answered at the tunnel's port in time, as when a NetworkPolicy drops it.
    NetworkPolicy,
    /// `IDENTITY_ERROR`: this workload has no certificate.
    IdentityError,
    /// `CERT_REVOKED`: the peer's certificate was revoked.
    CertificateRevoked,
}

impl ConnectionFlag {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Denied => "DENY",
            Self::ConnectionFailed => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertificateRevoked => "CERT_REVOKED",
        }
    }

    /// Whether the connection failed.
    pub fn is_failure(self) -> bool {
        self != Self::None
    }
}

impl fmt::Display for ConnectionFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// As ztunnel maps its errors: a failed handshake with the peer is `CONNECT`, as is a CONNECT that was
/// answered with an error.
impl From<ErrorKind> for ConnectionFlag {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Denied => Self::Denied,
            ErrorKind::ConnectTimeout => Self::NetworkPolicy,
            ErrorKind::Identity => Self::IdentityError,
            _ => Self::ConnectionFailed,
        }
    }
}

/// The bytes that a connection carried, named by who sent them.
///
/// Istio's metrics and ztunnel's access log have *sent* and *received* the wrong way round from each
/// other at the client's end; naming the sender leaves nothing to mix up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Bytes from the client to the server: `istio_tcp_received_bytes_total` at both ends.
    pub from_client: u64,
    /// Bytes from the server to the client: `istio_tcp_sent_bytes_total` at both ends.
    pub from_server: u64,
}

impl Traffic {
    /// Traffic of so many bytes each way.
    pub fn new(from_client: u64, from_server: u64) -> Self {
        Self {
            from_client,
            from_server,
        }
    }
}

/// What a request was, for the label `request_protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RequestProtocol {
    /// HTTP.
    Http,
    /// gRPC: the request's content type begins with `application/grpc`.
    Grpc,
}

impl RequestProtocol {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }

    /// Tells the protocol from a request's headers.
    pub fn of(headers: &http::HeaderMap) -> Self {
        let grpc = headers
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        if grpc { Self::Grpc } else { Self::Http }
    }
}

/// How a request ended.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use mesh_core::telemetry::{RequestOutcome, RequestProtocol};
///
/// let took = Duration::from_millis(12);
/// let outcome = RequestOutcome::new(RequestProtocol::Grpc, http::StatusCode::OK, took).with_grpc_status(0);
/// assert_eq!(outcome.response_code(), 200);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestOutcome {
    kind: OutcomeKind,
    duration: Duration,
    request_bytes: u64,
    response_bytes: u64,
}

/// What of an outcome tells one series from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct OutcomeKind {
    pub(super) protocol: RequestProtocol,
    /// 0: the client went away before there was one.
    pub(super) response_code: u16,
    pub(super) grpc_status: Option<u8>,
    pub(super) flag: Option<ResponseFlag>,
}

/// The highest gRPC status code. Others are the peer's fancy and are all reported as one more.
const MAX_GRPC_STATUS: u32 = 16;
pub(super) const UNKNOWN_GRPC_STATUS: u8 = MAX_GRPC_STATUS as u8 + 1;

impl RequestOutcome {
    /// A request that was answered, after `duration` from its start to the end of its response.
    pub fn new(protocol: RequestProtocol, status: StatusCode, duration: Duration) -> Self {
        let kind = OutcomeKind {
            protocol,
            response_code: status.as_u16(),
            grpc_status: None,
            flag: None,
        };
        Self::of(kind, duration)
    }

    fn of(kind: OutcomeKind, duration: Duration) -> Self {
        Self {
            kind,
            duration,
            request_bytes: 0,
            response_bytes: 0,
        }
    }

    /// A request whose client went away before the response began: code 0, flag `DC`.
    pub fn abandoned(protocol: RequestProtocol, duration: Duration) -> Self {
        let kind = OutcomeKind {
            protocol,
            response_code: 0,
            grpc_status: None,
            flag: Some(ResponseFlag::DownstreamConnectionTermination),
        };
        Self::of(kind, duration)
    }

    /// Sets how large the request and its response were: header names and values, body and trailers, in
    /// bytes. 0 each unless set.
    pub fn with_sizes(mut self, request: u64, response: u64) -> Self {
        self.request_bytes = request;
        self.response_bytes = response;
        self
    }

    /// Sets the status that the response's `grpc-status` says.
    pub fn with_grpc_status(mut self, status: u32) -> Self {
        self.kind.grpc_status = Some(if status <= MAX_GRPC_STATUS {
            status as u8
        } else {
            UNKNOWN_GRPC_STATUS
        });
        self
    }

    /// Sets the response flag.
    pub fn with_flag(mut self, flag: ResponseFlag) -> Self {
        self.kind.flag = Some(flag);
        self
    }

    /// The protocol.
    pub fn protocol(&self) -> RequestProtocol {
        self.kind.protocol
    }

    /// The HTTP status code; 0 where there was none.
    pub fn response_code(&self) -> u16 {
        self.kind.response_code
    }

    /// The gRPC status as labels and logs have it: a number to 16, else `unknown`.
    pub fn grpc_status(&self) -> Option<&'static str> {
        self.kind.grpc_status()
    }

    /// The response flags; `-` where there are none.
    pub fn flags(&self) -> &'static str {
        self.kind.flags()
    }

    /// The time from the request's start to the end of its response.
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// The size of the request, in bytes.
    pub fn request_bytes(&self) -> u64 {
        self.request_bytes
    }

    /// The size of the response, in bytes.
    pub fn response_bytes(&self) -> u64 {
        self.response_bytes
    }

    #[cfg_attr(
        not(feature = "metrics"),
        expect(dead_code, reason = "what metrics count by")
    )]
    pub(super) fn kind(&self) -> OutcomeKind {
        self.kind
    }
}

impl OutcomeKind {
    pub(super) fn grpc_status(&self) -> Option<&'static str> {
        const CODES: [&str; UNKNOWN_GRPC_STATUS as usize + 1] = [
            "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15",
            "16", "unknown",
        ];
        self.grpc_status.map(|status| CODES[usize::from(status)])
    }

    pub(super) fn flags(&self) -> &'static str {
        self.flag.map_or("-", ResponseFlag::code)
    }
}
