//! What rustls says, in this crate's words.

use rustls::AlertDescription;

use super::session::Failure;
use super::verify_error::VerifyError;
use crate::{Error, ErrorKind, Side};

/// Of a handshake; `found` is what was wrong with the peer's certificate. Nothing of a request can have been sent, so trying again is safe.
pub(super) fn of_handshake(failure: Failure, found: Option<&VerifyError>, side: Side) -> Error {
    let error = match (found, failure) {
        (Some(found), _) => Error::new(found.kind(), side).with_source(found.clone()),
        (_, Failure::Io(error)) => Error::from_io(error, side),
        (_, Failure::Truncated) => {
            Error::new(ErrorKind::Truncated, side).with_detail("during the TLS handshake")
        }
        (_, Failure::Tls(error)) => of_session(error, side),
    };
    error.retry_safe()
}

pub(super) fn of_session(error: rustls::Error, side: Side) -> Error {
    use rustls::Error as Tls;
    let kind = match &error {
        Tls::NoCertificatesPresented => ErrorKind::NoCertificate,
        Tls::NoApplicationProtocol => ErrorKind::NoProtocol,
        Tls::AlertReceived(AlertDescription::NoApplicationProtocol) => ErrorKind::NoProtocol,
        Tls::AlertReceived(_) => ErrorKind::Refused,
        _ => ErrorKind::Tls,
    };
    Error::new(kind, side).with_source(error)
}
