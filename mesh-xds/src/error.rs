//! The one error of this crate's clients: what failed, and what the server said.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

type Source = Box<dyn StdError + Send + Sync>;

/// Why a control plane could not be reached or did not do what it was asked for.
///
/// `Display` prints one level; [`source`](StdError::source) has the next, and `{:?}` the whole chain.
pub struct Error {
    inner: Box<Inner>,
}

struct Inner {
    kind: ErrorKind,
    detail: Cow<'static, str>,
    source: Option<Source>,
}

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting contradicts another or cannot be met.
    InvalidSettings,
    /// The bearer token could not be had, or is no header value.
    Token,
    /// There is no connection, or it was lost.
    Connection,
    /// The server does not know who we are: UNAUTHENTICATED.
    Unauthenticated,
    /// We may not do this: PERMISSION_DENIED.
    PermissionDenied,
    /// A request was too large or came too often: RESOURCE_EXHAUSTED.
    ResourceExhausted,
    /// The server lacks the method: UNIMPLEMENTED.
    Unimplemented,
    /// The request itself is wrong: INVALID_ARGUMENT, FAILED_PRECONDITION.
    InvalidRequest,
    /// The server cannot answer now: UNAVAILABLE, DEADLINE_EXCEEDED, ABORTED.
    Unavailable,
    /// What the server sent is larger than the settings allow.
    TooLarge,
    /// What the server sent is not what the interface says.
    InvalidResponse,
    /// Any other status.
    Status,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            inner: Box::new(Inner {
                kind,
                detail: detail.into(),
                source: None,
            }),
        }
    }

    pub(crate) fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.inner.source = Some(source.into());
        self
    }

    /// What failed.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// Whether the server was not reached, or was lost before it answered.
    pub fn is_connection(&self) -> bool {
        self.inner.kind == ErrorKind::Connection
    }

    /// Whether the server refused us: another token or certificate may help, another try does not.
    pub fn is_refused(&self) -> bool {
        matches!(
            self.inner.kind,
            ErrorKind::Unauthenticated | ErrorKind::PermissionDenied
        )
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        use tonic::Code;
        // A status that was made here, of a connection that failed, has its cause.
        let kind = if status.source().is_some() {
            ErrorKind::Connection
        } else {
            match status.code() {
                Code::Unauthenticated => ErrorKind::Unauthenticated,
                Code::PermissionDenied => ErrorKind::PermissionDenied,
                Code::ResourceExhausted => ErrorKind::ResourceExhausted,
                Code::Unimplemented => ErrorKind::Unimplemented,
                Code::InvalidArgument | Code::FailedPrecondition => ErrorKind::InvalidRequest,
                Code::Unavailable | Code::DeadlineExceeded | Code::Aborted => {
                    ErrorKind::Unavailable
                }
                // What tonic calls a message beyond the limit that it was given.
                Code::OutOfRange => ErrorKind::TooLarge,
                _ => ErrorKind::Status,
            }
        };
        let detail = format!("{}: {}", status.code(), status.message());
        Self::new(kind, detail).with_source(status)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.detail)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            fmt::Display::fmt(self, f)?;
            // A chain longer than this is a loop, or nothing anybody reads.
            let mut causes =
                std::iter::successors(self.source(), |error| (*error).source()).take(16);
            return causes.try_for_each(|cause| write!(f, ": {cause}"));
        }
        f.debug_struct("Error")
            .field("kind", &self.inner.kind)
            .field("detail", &self.inner.detail)
            .field("source", &self.inner.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        let source = self.inner.source.as_deref()?;
        match source.downcast_ref::<tonic::Status>() {
            // Its text is ours already; what it has below is not.
            Some(status) => status.source(),
            None => Some(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_main_that_returns_it_prints_the_whole_chain() {
        let refused = std::io::Error::other("connection refused");
        let error = Error::new(ErrorKind::Connection, "istiod.istio-system.svc:15012");
        let error = error.with_source(refused);
        assert_eq!(error.to_string(), "istiod.istio-system.svc:15012");
        assert_eq!(
            format!("{error:?}"),
            "istiod.istio-system.svc:15012: connection refused"
        );
        assert!(format!("{error:#?}").contains("kind: Connection"));
    }
}
