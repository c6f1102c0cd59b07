//! The one table from failures to what a waiting client is told.

use http::StatusCode;

use super::ErrorKind;

/// How a failure is told to an HTTP or gRPC client, and to logs.
///
/// Codes, bodies, flags and details are Envoy's, because dashboards and tests of a mesh read them
/// ([response flags](https://www.envoyproxy.io/docs/envoy/latest/configuration/observability/access_log/usage)).
///
/// # Examples
///
/// ```
/// use mesh_core::ErrorKind;
///
/// let reply = ErrorKind::Denied.reply();
/// assert_eq!((reply.status().as_u16(), reply.grpc_status()), (403, 7));
/// assert_eq!(reply.body(), "RBAC: access denied");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalReply {
    status: StatusCode,
    grpc_status: u8,
    flag: Option<ResponseFlag>,
    body: &'static str,
    details: &'static str,
}

impl LocalReply {
    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The gRPC status, for requests whose content type is `application/grpc`.
    pub fn grpc_status(&self) -> u8 {
        self.grpc_status
    }

    /// The response flag, if Envoy has one for this.
    pub fn flag(&self) -> Option<ResponseFlag> {
        self.flag
    }

    /// The text of the answer; it never says what policy or which internal address was involved.
    pub fn body(&self) -> &'static str {
        self.body
    }

    /// Envoy's response code details, for logs.
    pub fn details(&self) -> &'static str {
        self.details
    }
}

/// Envoy's short codes for how a response came about that the application did not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ResponseFlag {
    /// `UH`: no healthy upstream.
    NoHealthyUpstream,
    /// `UF`: connecting to the upstream failed.
    UpstreamConnectionFailure,
    /// `UO`: overflow of a limit.
    UpstreamOverflow,
    /// `NR`: no route to the host.
    NoRouteFound,
    /// `URX`: the limit of retries is reached.
    UpstreamRetryLimitExceeded,
    /// `NC`: the destination that a route names is missing.
    NoClusterFound,
    /// `UT`: the upstream did not answer in time.
    UpstreamRequestTimeout,
    /// `UR`: the upstream reset the stream.
    UpstreamRemoteReset,
    /// `UC`: the upstream closed the connection.
    UpstreamConnectionTermination,
    /// `LR`: this process reset the stream.
    LocalReset,
    /// `DC`: the client went away.
    DownstreamConnectionTermination,
    /// `DPE`: the client broke the protocol.
    DownstreamProtocolError,
    /// `DF`: the host has no address.
    DnsResolutionFailed,
}

impl ResponseFlag {
    /// The short code.
    pub fn code(self) -> &'static str {
        match self {
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamConnectionFailure => "UF",
            Self::UpstreamOverflow => "UO",
            Self::NoRouteFound => "NR",
            Self::UpstreamRetryLimitExceeded => "URX",
            Self::NoClusterFound => "NC",
            Self::UpstreamRequestTimeout => "UT",
            Self::UpstreamRemoteReset => "UR",
            Self::UpstreamConnectionTermination => "UC",
            Self::LocalReset => "LR",
            Self::DownstreamConnectionTermination => "DC",
            Self::DownstreamProtocolError => "DPE",
            Self::DnsResolutionFailed => "DF",
        }
    }
}

impl std::fmt::Display for ResponseFlag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.code())
    }
}

impl ErrorKind {
    /// What a waiting client is told. The gRPC status follows from the HTTP status as Envoy maps it
    /// (400 13, 401 16, 403 7, 502 to 504 14, else 2), but a time-out is 4, as gRPC itself has it.
    pub fn reply(self) -> LocalReply {
        use ResponseFlag as Flag;
        macro_rules! reset {
            ($reason:literal) => {
                concat!(
                    "upstream connect error or disconnect/reset before headers. reset reason: ",
                    $reason
                )
            };
        }
        let (status, grpc_status, flag, body, details) = match self {
            Self::BadRequest => (400, 13, None, "bad request", "bad_request"),
            Self::Unauthenticated => (
                401,
                16,
                None,
                "Jwt verification fails",
                "jwt_authn_access_denied",
            ),
            Self::Denied => (403, 7, None, "RBAC: access denied", "rbac_access_denied"),
            Self::UnknownHost => (502, 14, Some(Flag::NoRouteFound), "", "route_not_found"),
            Self::UnknownWaypoint => (503, 14, Some(Flag::NoClusterFound), "", "cluster_not_found"),
            Self::NoHealthyUpstream | Self::UnsupportedNetwork => (
                503,
                14,
                Some(Flag::NoHealthyUpstream),
                "no healthy upstream",
                "no_healthy_upstream",
            ),
            Self::HostLookup => (
                503,
                14,
                Some(Flag::DnsResolutionFailed),
                "no healthy upstream",
                "dns_resolution_failure",
            ),
            Self::ConnectFailed | Self::TlsHandshake | Self::TunnelRefused(_) => (
                503,
                14,
                Some(Flag::UpstreamConnectionFailure),
                reset!("remote connection failure"),
                "upstream_reset_before_response_started{remote_connection_failure}",
            ),
            Self::ConnectTimeout => (
                503,
                14,
                Some(Flag::UpstreamConnectionFailure),
                reset!("connection timeout"),
                "upstream_reset_before_response_started{connection_timeout}",
            ),
            Self::RefusedStream => (
                503,
                14,
                Some(Flag::UpstreamRemoteReset),
                reset!("remote refused stream reset"),
                "upstream_reset_before_response_started{remote_refused_stream_reset}",
            ),
            Self::Reset => (
                503,
                14,
                Some(Flag::UpstreamRemoteReset),
                reset!("remote reset"),
                "upstream_reset_before_response_started{remote_reset}",
            ),
            Self::Closed | Self::Io => (
                503,
                14,
                Some(Flag::UpstreamConnectionTermination),
                reset!("connection termination"),
                "upstream_reset_before_response_started{connection_termination}",
            ),
            Self::Overloaded => (
                503,
                14,
                Some(Flag::UpstreamOverflow),
                reset!("overflow"),
                "upstream_reset_before_response_started{overflow}",
            ),
            Self::Draining => (503, 14, None, "shutting down", "drain"),
            Self::NotReady | Self::NoRecord | Self::Identity => {
                (503, 14, None, "not ready", "not_ready")
            }
            Self::RequestTimeout => (
                504,
                4,
                Some(Flag::UpstreamRequestTimeout),
                "upstream request timeout",
                "response_timeout",
            ),
            Self::Config | Self::Bind | Self::Internal => {
                (500, 2, None, "internal error", "internal_error")
            }
        };
        LocalReply {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            grpc_status,
            flag,
            body,
            details,
        }
    }
}
