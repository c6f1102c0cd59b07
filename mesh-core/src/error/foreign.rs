//! Reads errors of other libraries, by type and never by text.

use std::error::Error as StdError;
use std::io;

use super::{BoxError, Error, ErrorKind};

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
        match told {
            Some((kind, retry_safe)) => Self::new(kind).with_retry_safe(retry_safe),
            None => Self::new(ErrorKind::Io),
        }
        .with_source(error)
    }
}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    /// A chain that is longer is no chain.
    const MAX: usize = 32;
    std::iter::successors(Some(error), |error| (*error).source()).take(MAX)
}

fn read(cause: &(dyn StdError + 'static)) -> Option<(ErrorKind, bool)> {
    if let Some(ours) = cause.downcast_ref::<Error>() {
        return Some((ours.kind(), ours.is_retry_safe()));
    }
    if let Some(io) = cause.downcast_ref::<io::Error>() {
        // An error of ours that travels as an I/O error is its inner value, not its source.
        if let Some(inner) = io.get_ref() {
            let inner: &(dyn StdError + 'static) = inner;
            if let Some(told) = read(inner) {
                return Some(told);
            }
        }
        let kind = super::io_kind(io.kind());
        return Some((kind, kind.is_retry_safe()));
    }
    #[cfg(feature = "http")]
    if let Some(kind) = read_http(cause) {
        return Some((kind, kind.is_retry_safe()));
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
