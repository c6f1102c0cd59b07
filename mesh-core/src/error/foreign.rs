//! Reads errors of other libraries, by type and never by text.

use std::error::Error as StdError;
use std::{fmt, io};

use mesh_hbone::{Error as TunnelError, ErrorKind as Tunnel, Side as TunnelSide};

use super::{BoxError, Error, ErrorKind, Side};

impl From<BoxError> for Error {
    /// Keeps an [`Error`]; else takes kind, side and retry safety from the first cause that tells:
    /// an [`Error`] deeper in the chain, an HTTP/2 refusal, an I/O error. Anything else is
    /// [`Io`](ErrorKind::Io), which is not retried.
    fn from(error: BoxError) -> Self {
        let error = match error.downcast::<Self>() {
            Ok(ours) => return *ours,
            Err(error) => error,
        };
        let told = causes(&*error).find_map(read);
        told.unwrap_or_else(|| Self::new(ErrorKind::Io))
            .with_source(error)
    }
}

impl From<TunnelError> for Error {
    /// Side and retry safety are the tunnel's own, but a limit of this process is no reason to retry, and
    /// a CONNECT that was answered with 5xx is one.
    fn from(error: TunnelError) -> Self {
        let ours = of_tunnel(&error);
        if !says_the_same(error.kind()) {
            return ours.with_source(error);
        }
        match error.detail().is_some() || error.source().is_some() {
            true => ours.with_source(Below(error)),
            false => ours,
        }
    }
}

/// Whether the kind of ours that a tunnel's becomes says all that it says.
fn says_the_same(kind: Tunnel) -> bool {
    matches!(
        kind,
        Tunnel::Timeout
            | Tunnel::Overloaded
            | Tunnel::PoolFull
            | Tunnel::Closed
            | Tunnel::ConnectRefused(_)
            | Tunnel::Reset
            | Tunnel::Io
            | Tunnel::Tls
    )
}

/// A tunnel's error without its kind, which is said above it: its detail and its causes.
#[derive(Debug)]
struct Below(TunnelError);

impl fmt::Display for Below {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.detail(), self.0.source()) {
            (Some(detail), _) => f.write_str(detail),
            (None, Some(cause)) => fmt::Display::fmt(cause, f),
            (None, None) => Ok(()),
        }
    }
}

impl StdError for Below {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        let cause = self.0.source();
        match self.0.detail() {
            Some(_) => cause,
            None => cause?.source(),
        }
    }
}

fn of_tunnel(error: &TunnelError) -> Error {
    let kind = match error.kind() {
        Tunnel::InvalidBundle => ErrorKind::Identity,
        Tunnel::InvalidSettings => ErrorKind::Config,
        Tunnel::Timeout => ErrorKind::ConnectTimeout,
        Tunnel::Overloaded | Tunnel::PoolFull => ErrorKind::Overloaded,
        Tunnel::Truncated | Tunnel::Closed => ErrorKind::Closed,
        Tunnel::ConnectRefused(status) => ErrorKind::TunnelRefused(status),
        Tunnel::GoingAway => ErrorKind::RefusedStream,
        Tunnel::Reset | Tunnel::Http2 | Tunnel::Flooded => ErrorKind::Reset,
        Tunnel::InvalidAuthority => ErrorKind::BadRequest,
        Tunnel::NotTls
        | Tunnel::ClientHelloTooLarge
        | Tunnel::NoProtocol
        | Tunnel::Refused
        | Tunnel::Tls => ErrorKind::TlsHandshake,
        _ if error.is_authentication() => ErrorKind::TlsHandshake,
        // Where nothing was sent, there was no connection to send it on.
        _ if error.is_retry_safe() => ErrorKind::ConnectFailed,
        _ => ErrorKind::Io,
    };
    let side = match error.side() {
        TunnelSide::Downstream => Side::Downstream,
        TunnelSide::Us => Side::Us,
        _ => Side::Upstream,
    };
    let retry_safe = match (kind, side) {
        // The application's request was not sent, whatever became of the CONNECT.
        (ErrorKind::TunnelRefused(_), _) => kind.is_retry_safe(),
        // More of the same is no remedy for a limit of our own (Envoy never retries an overflow).
        (ErrorKind::Overloaded, Side::Us) => false,
        _ => error.is_retry_safe(),
    };
    Error::new(kind).with_side(side).with_retry_safe(retry_safe)
}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

pub(super) fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    /// A chain that is longer is no chain.
    const MAX: usize = 32;
    std::iter::successors(Some(error), |error| (*error).source()).take(MAX)
}

/// What one cause tells, without that cause.
fn read(cause: &(dyn StdError + 'static)) -> Option<Error> {
    if let Some(ours) = cause.downcast_ref::<Error>() {
        return Some(
            Error::new(ours.kind())
                .with_side(ours.side())
                .with_retry_safe(ours.is_retry_safe()),
        );
    }
    if let Some(tunnel) = cause.downcast_ref::<TunnelError>() {
        return Some(of_tunnel(tunnel));
    }
    if let Some(io) = cause.downcast_ref::<io::Error>() {
        // An error of ours that travels as an I/O error is its inner value, not its source.
        if let Some(inner) = io.get_ref() {
            let inner: &(dyn StdError + 'static) = inner;
            if let Some(told) = read(inner) {
                return Some(told);
            }
        }
        return Some(Error::new(super::io_kind(io.kind())));
    }
    #[cfg(feature = "http")]
    if let Some(kind) = read_http(cause) {
        return Some(Error::new(kind));
    }
    None
}

#[cfg(feature = "http")]
fn read_http(cause: &(dyn StdError + 'static)) -> Option<ErrorKind> {
    if let Some(error) = cause.downcast_ref::<h2::Error>() {
        let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM)
            // Only streams above the last one that the peer took see this error (RFC 9113 §6.8).
            || (error.is_go_away()
                && error.is_remote()
                && error.reason() == Some(h2::Reason::NO_ERROR));
        return if refused {
            Some(ErrorKind::RefusedStream)
        } else if error.is_io() {
            // The cause below it says more.
            None
        } else {
            Some(ErrorKind::Reset)
        };
    }
    let error = cause.downcast_ref::<hyper::Error>()?;
    // hyper cancels what it has not begun to send.
    if error.is_canceled() {
        Some(ErrorKind::RefusedStream)
    } else if error.is_incomplete_message() {
        Some(ErrorKind::Closed)
    } else {
        None
    }
}
