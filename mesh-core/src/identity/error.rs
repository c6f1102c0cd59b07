//! Why there is no certificate, or no new one.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use crate::error::Chain;

/// Why a [`CertificateSource`](super::CertificateSource) has no certificate, or no new one.
///
/// `Display` prints one level; [`source`](StdError::source) has the next, and `{:?}` the whole chain. Clones share the source: all
/// that wait for one certificate are told why it does not come.
#[derive(Clone)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    detail: Cow<'static, str>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
    lasting: bool,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting of the source cannot be met.
    Settings,
    /// No crypto provider is compiled in.
    NoCrypto,
    /// A file or folder cannot be read, written or locked.
    Io,
    /// A certificate, key or revocation list is damaged, or they do not belong together.
    Invalid,
    /// A private key can be read by others.
    Insecure,
    /// The certificate is of another identity than the one asked for.
    WrongIdentity,
    /// The identity, or the authority's root, is of another trust domain.
    WrongTrustDomain,
    /// A certificate has expired, or is not valid yet.
    Expired,
    /// The authority did not answer, or not in time.
    Unavailable,
    /// The token that proves to the authority who we are is missing, or is none.
    Token,
    /// The authority refused: it does not believe us, or we may not have this certificate.
    Refused,
    /// We do not believe the authority: its certificate has another root or name.
    Untrusted,
    /// There are as many identities as the setting permits.
    Full,
}

impl ErrorKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Settings => "invalid setting",
            Self::NoCrypto => "no crypto provider",
            Self::Io => "files cannot be used",
            Self::Invalid => "invalid certificate or key",
            Self::Insecure => "private key is not private",
            Self::WrongIdentity => "wrong identity",
            Self::WrongTrustDomain => "wrong trust domain",
            Self::Expired => "certificate out of its validity",
            Self::Unavailable => "certificate authority unavailable",
            Self::Token => "token cannot be used",
            Self::Refused => "refused by the certificate authority",
            Self::Untrusted => "certificate authority not trusted",
            Self::Full => "too many identities",
        }
    }
}

impl Error {
    /// Makes an error. `detail` says what it is about, and what was expected of it.
    pub fn new(kind: ErrorKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            inner: Box::new(Inner {
                kind,
                detail: detail.into(),
                source: None,
                // Of others only their source knows.
                lasting: matches!(
                    kind,
                    ErrorKind::Settings | ErrorKind::NoCrypto | ErrorKind::Insecure
                ),
            }),
        }
    }

    /// Makes an error that lasts until somebody changes something, where its kind does not say so.
    pub(super) fn lasting(mut self) -> Self {
        self.inner.lasting = true;
        self
    }

    /// Keeps the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.inner.source = Some(Arc::from(source.into()));
        self
    }

    /// What is wrong.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// Whether trying again cannot help: the stream ends after it.
    pub fn is_final(&self) -> bool {
        matches!(self.inner.kind, ErrorKind::Settings | ErrorKind::NoCrypto)
    }

    /// Whether waiting is of no use until somebody changes a setting or a file: who waits for the first
    /// certificate is told so at once.
    pub fn is_permanent(&self) -> bool {
        self.inner.lasting
    }

    /// What it is about.
    pub fn detail(&self) -> &str {
        &self.inner.detail
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.inner.kind.as_str(), self.inner.detail)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return fmt::Display::fmt(&Chain(self), f);
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
        Some(source)
    }
}

impl From<Error> for crate::Error {
    fn from(error: Error) -> Self {
        Self::new(crate::ErrorKind::Identity).with_source(error)
    }
}
