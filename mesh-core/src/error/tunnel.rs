//! What the tunnel's errors mean here.

use mesh_hbone::ErrorKind as Tunnel;

use super::{Error, ErrorKind};

impl From<mesh_hbone::Error> for Error {
    /// Keeps the tunnel's error as the source. What failed before a tunnel was asked for is as safe to
    /// retry as its kind says; afterwards only what the tunnel itself says is.
    fn from(error: mesh_hbone::Error) -> Self {
        let kind = match error.kind() {
            Tunnel::ConnectRefused(status) => ErrorKind::TunnelRefused(status),
            Tunnel::Io => ErrorKind::ConnectFailed,
            Tunnel::Timeout => ErrorKind::ConnectTimeout,
            Tunnel::Overloaded => ErrorKind::Overloaded,
            Tunnel::GoingAway => ErrorKind::RefusedStream,
            Tunnel::Reset | Tunnel::Http2 => ErrorKind::Reset,
            Tunnel::Closed | Tunnel::Truncated => ErrorKind::Closed,
            Tunnel::InvalidAuthority | Tunnel::InvalidHeader => ErrorKind::BadRequest,
            Tunnel::InvalidBundle => ErrorKind::Identity,
            Tunnel::InvalidSettings => ErrorKind::Config,
            _ => ErrorKind::TlsHandshake,
        };
        let retry_safe = match kind {
            ErrorKind::Reset | ErrorKind::Closed | ErrorKind::RefusedStream => {
                error.is_retry_safe()
            }
            kind => kind.is_retry_safe(),
        };
        Self::new(kind).with_retry_safe(retry_safe).with_source(error)
    }
}
