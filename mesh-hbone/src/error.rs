//! The one error of this crate: what failed, on whose side, and whether a retry is safe.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::sync::Arc;
use std::{fmt, io};

use http::StatusCode;

use crate::tls::VerifyError;

type Source = Box<dyn StdError + Send + Sync>;

/// Why a connection or tunnel could not be made or did not last.
///
/// `Display` prints one level; [`source`](StdError::source) has the next, and `{:?}` the whole chain. Clones share the source:
/// every caller that waited for the same connection gets its own copy of why there is none.
#[derive(Clone)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    side: Side,
    retry_safe: bool,
    detail: Option<Cow<'static, str>>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A [`Bundle`](crate::tls::Bundle) cannot be used: its certificates, key or CRLs are wrong.
    InvalidBundle,
    /// A setting contradicts another or cannot be met.
    InvalidSettings,
    /// The peer's certificate names none of the expected identities.
    UnexpectedIdentity,
    /// The peer's identity is of a trust domain that is neither ours nor an alias of it.
    UnexpectedTrustDomain,
    /// The peer's certificate chains to no root of ours.
    UnknownIssuer,
    /// A certificate of the peer's chain has expired.
    Expired,
    /// A certificate of the peer's chain is not valid yet.
    NotYetValid,
    /// A certificate of the peer's chain is revoked.
    Revoked,
    /// The peer's certificate is not meant for this side of a TLS connection.
    BadKeyUsage,
    /// The peer's certificate is malformed or no SPIFFE leaf certificate, or its chain breaks a rule, as one of more than six
    /// intermediates does. The source says which.
    BadCertificate,
    /// The peer presented no certificate.
    NoCertificate,
    /// The peer's first bytes are not TLS.
    NotTls,
    /// The peer's ClientHello is larger than the setting allows.
    ClientHelloTooLarge,
    /// The peers agree on no protocol: HBONE is ALPN `h2` and nothing else.
    NoProtocol,
    /// The peer ended the TLS session with an alert.
    Refused,
    /// Any other failure of the TLS handshake or session.
    Tls,
    /// A wait on the peer reached its time-out.
    Timeout,
    /// A bound on concurrent work was reached; this connection was the one to go.
    Overloaded,
    /// A pool has as many connections as it may have, and all are in use.
    PoolFull,
    /// The transport ended without the peer saying that this was all.
    Truncated,
    /// The transport failed.
    Io,
    /// An authority is not `ip:port`, `[ip]:port` or `host:port`.
    InvalidAuthority,
    /// A header of a CONNECT or its answer is malformed.
    InvalidHeader,
    /// The peer answered a CONNECT with this status, which is not 200.
    ConnectRefused(StatusCode),
    /// The peer reset the stream of a tunnel.
    Reset,
    /// The peer takes no more tunnels on this connection (GOAWAY).
    GoingAway,
    /// The peer violated HTTP/2, or said that we did.
    Http2,
    /// The peer sent more resets or frames without content than the settings allow.
    Flooded,
    /// The connection under a tunnel is gone.
    Closed,
}

/// On whose side something failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Side {
    /// The peer that connected to us.
    Downstream,
    /// The peer to which we connected.
    Upstream,
    /// This process.
    Us,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, side: Side) -> Self {
        Self {
            inner: Box::new(Inner {
                kind,
                side,
                retry_safe: false,
                detail: None,
                source: None,
            }),
        }
    }

    pub(crate) fn with_detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.inner.detail = Some(detail.into());
        self
    }

    pub(crate) fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.inner.source = Some(Arc::from(source.into()));
        self
    }

    /// Says that nothing of the caller's request has reached the peer.
    pub(crate) fn retry_safe(mut self) -> Self {
        self.inner.retry_safe = true;
        self
    }

    /// Says that the transport under a connection could not be opened: what a caller's own dial makes
    /// of its failure. A time-out is one ([`io::ErrorKind::TimedOut`]); nothing was sent, so a retry is safe.
    pub fn dial(error: io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::TimedOut => ErrorKind::Timeout,
            _ => ErrorKind::Io,
        };
        Self::new(kind, Side::Upstream)
            .with_source(error)
            .retry_safe()
    }

    /// The error of this crate inside an `io::Error`, or a new one of kind [`ErrorKind::Io`].
    pub(crate) fn from_io(error: io::Error, side: Side) -> Self {
        match error.downcast::<Self>() {
            Ok(error) => error,
            Err(error) => Self::new(ErrorKind::Io, side).with_source(error),
        }
    }

    /// What failed.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// What it was about, beyond its kind.
    pub fn detail(&self) -> Option<&str> {
        self.inner.detail.as_deref()
    }

    /// On whose side it failed.
    pub fn side(&self) -> Side {
        self.inner.side
    }

    /// Whether nothing of the request can have taken effect, so that trying again is harmless.
    pub fn is_retry_safe(&self) -> bool {
        self.inner.retry_safe
    }

    /// Whether a wait on the peer reached its time-out.
    pub fn is_timeout(&self) -> bool {
        self.kind() == ErrorKind::Timeout
    }

    /// Whether a bound on concurrent work was reached.
    pub fn is_overloaded(&self) -> bool {
        matches!(self.kind(), ErrorKind::Overloaded | ErrorKind::PoolFull)
    }

    /// Whether the peer failed to prove that it is who it must be.
    pub fn is_authentication(&self) -> bool {
        matches!(
            self.kind(),
            ErrorKind::UnexpectedIdentity
                | ErrorKind::UnexpectedTrustDomain
                | ErrorKind::UnknownIssuer
                | ErrorKind::Expired
                | ErrorKind::NotYetValid
                | ErrorKind::Revoked
                | ErrorKind::BadKeyUsage
                | ErrorKind::BadCertificate
                | ErrorKind::NoCertificate
        )
    }

    /// Whether our own certificates or settings are at fault.
    pub fn is_configuration(&self) -> bool {
        matches!(
            self.kind(),
            ErrorKind::InvalidBundle | ErrorKind::InvalidSettings
        )
    }

    /// The status with which the peer refused a CONNECT.
    pub fn status(&self) -> Option<StatusCode> {
        match self.kind() {
            ErrorKind::ConnectRefused(status) => Some(status),
            _ => None,
        }
    }

    /// What was wrong with the peer's certificate, in full.
    pub fn verification(&self) -> Option<&VerifyError> {
        self.inner.source.as_ref()?.downcast_ref()
    }
}

impl ErrorKind {
    fn text(self) -> &'static str {
        match self {
            Self::InvalidBundle => "invalid certificate bundle",
            Self::InvalidSettings => "invalid settings",
            Self::UnexpectedIdentity => "the peer is not who was expected",
            Self::UnexpectedTrustDomain => "the peer is of another trust domain",
            Self::UnknownIssuer => "the peer's certificate has an unknown issuer",
            Self::Expired => "the peer's certificate has expired",
            Self::NotYetValid => "the peer's certificate is not valid yet",
            Self::Revoked => "the peer's certificate is revoked",
            Self::BadKeyUsage => "the peer's certificate is for another use",
            Self::BadCertificate => {
                "the peer's certificate or its chain breaks a rule of SPIFFE or X.509"
            }
            Self::NoCertificate => "the peer presented no certificate",
            Self::NotTls => "the peer does not speak TLS",
            Self::ClientHelloTooLarge => "the peer's ClientHello is too large",
            Self::NoProtocol => "no common protocol, expected ALPN h2",
            Self::Refused => "the peer refused the TLS session",
            Self::Tls => "TLS failed",
            Self::Timeout => "timed out",
            Self::Overloaded => "overloaded",
            Self::PoolFull => "too many connections",
            Self::Truncated => "the connection ended without close_notify",
            Self::Io => "the connection failed",
            Self::InvalidAuthority => "invalid authority",
            Self::InvalidHeader => "invalid header",
            Self::ConnectRefused(_) => "the peer refused the tunnel",
            Self::Reset => "the peer reset the tunnel",
            Self::GoingAway => "the peer takes no more tunnels on this connection",
            Self::Http2 => "HTTP/2 failed",
            Self::Flooded => "the peer floods the connection",
            Self::Closed => "the connection is closed",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.inner.kind.text())?;
        if let ErrorKind::ConnectRefused(status) = self.inner.kind {
            write!(f, " with status {}", status.as_u16())?;
        }
        if let Some(detail) = &self.inner.detail {
            write!(f, ": {detail}")?;
        }
        Ok(())
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
        let Inner {
            kind,
            side,
            retry_safe,
            detail,
            source,
        } = &*self.inner;
        f.debug_struct("Error")
            .field("kind", kind)
            .field("side", side)
            .field("retry_safe", retry_safe)
            .field("detail", detail)
            .field("source", source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner
            .source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}
