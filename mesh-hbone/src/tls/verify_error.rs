//! What can be wrong with a peer's certificate.

use std::error::Error as StdError;
use std::fmt;
use std::time::SystemTime;

use mesh_authz::{Identity, InvalidIdentity};
use rustls::CertificateError;

use super::fingerprint::Fingerprint;
use crate::ErrorKind;

/// What was wrong with the peer's certificate.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum VerifyError {
    /// The peer is none of those expected.
    #[non_exhaustive]
    UnexpectedIdentity {
        /// Who the peer is.
        got: Identity,
        /// Who it should have been: any of these.
        expected: Vec<Identity>,
    },
    /// The server has another name, where one is known by its name: see [`NamedClient`](super::NamedClient).
    #[non_exhaustive]
    UnexpectedName {
        /// The names that its certificate has.
        got: Vec<String>,
        /// The names of which one would have done.
        expected: Vec<String>,
    },
    /// The peer belongs to another trust domain.
    #[non_exhaustive]
    UnexpectedTrustDomain {
        /// Who the peer is.
        got: Identity,
        /// The trust domains that are accepted: our own, then its aliases.
        expected: Vec<String>,
    },
    /// The peer's chain leads to none of our roots.
    #[non_exhaustive]
    UnknownIssuer {
        /// Our roots.
        roots: Vec<Fingerprint>,
        /// Who issued the last certificate that the peer presented.
        issuer: String,
        /// That last certificate: the peer's root if it presents its root.
        last: Fingerprint,
        /// Whether `last` is its own issuer, so a root.
        last_is_root: bool,
    },
    /// A certificate's validity has ended.
    #[non_exhaustive]
    Expired {
        /// When the check was made.
        now: SystemTime,
        /// When validity ended.
        not_after: SystemTime,
    },
    /// A certificate's validity has not begun.
    #[non_exhaustive]
    NotYetValid {
        /// When the check was made.
        now: SystemTime,
        /// When validity begins.
        not_before: SystemTime,
    },
    /// A CRL lists a certificate of the chain.
    #[non_exhaustive]
    Revoked,
    /// The certificate's extended key usage is for the other side, or for something else.
    #[non_exhaustive]
    BadKeyUsage,
    /// The leaf must have exactly one URI name ([X509-SVID §2](https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md#2-spiffe-id)).
    #[non_exhaustive]
    UriNames {
        /// How many it has.
        found: usize,
    },
    /// The leaf's URI name is no SPIFFE id in Istio's form.
    #[non_exhaustive]
    InvalidIdentity(InvalidIdentity),
    /// The certificate or its chain is malformed, or breaks another rule of X.509.
    #[non_exhaustive]
    Certificate {
        /// The rule.
        reason: String,
    },
}

impl VerifyError {
    pub(super) fn certificate(error: &webpki::Error) -> Self {
        let reason = format!("{error:?}");
        Self::Certificate { reason }
    }

    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            Self::UnexpectedIdentity { .. } | Self::UnexpectedName { .. } => {
                ErrorKind::UnexpectedIdentity
            }
            Self::UnexpectedTrustDomain { .. } => ErrorKind::UnexpectedTrustDomain,
            Self::UnknownIssuer { .. } => ErrorKind::UnknownIssuer,
            Self::Expired { .. } => ErrorKind::Expired,
            Self::NotYetValid { .. } => ErrorKind::NotYetValid,
            Self::Revoked => ErrorKind::Revoked,
            Self::BadKeyUsage => ErrorKind::BadKeyUsage,
            Self::UriNames { .. } | Self::InvalidIdentity(_) | Self::Certificate { .. } => {
                ErrorKind::BadCertificate
            }
        }
    }

    /// What rustls is told, which decides the alert that the peer reads.
    pub(super) fn alert(&self) -> CertificateError {
        match self {
            Self::UnexpectedIdentity { .. } | Self::UnexpectedTrustDomain { .. } => {
                CertificateError::ApplicationVerificationFailure
            }
            Self::UnexpectedName { .. } => CertificateError::NotValidForName,
            Self::UnknownIssuer { .. } => CertificateError::UnknownIssuer,
            Self::Expired { .. } => CertificateError::Expired,
            Self::NotYetValid { .. } => CertificateError::NotValidYet,
            Self::Revoked => CertificateError::Revoked,
            Self::BadKeyUsage => CertificateError::InvalidPurpose,
            Self::UriNames { .. } | Self::InvalidIdentity(_) | Self::Certificate { .. } => {
                CertificateError::BadEncoding
            }
        }
    }
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnexpectedIdentity { got, expected } => {
                write!(f, "got {got}, expected one of {expected:?}")
            }
            Self::UnexpectedName { got, expected } => {
                write!(
                    f,
                    "its certificate is for {got:?}, expected one of {expected:?}"
                )
            }
            Self::UnexpectedTrustDomain { got, expected } => {
                write!(f, "got {got}, expected a trust domain of {expected:?}")
            }
            Self::UnknownIssuer {
                roots,
                issuer,
                last,
                last_is_root,
            } => {
                let what = if *last_is_root { "root" } else { "certificate" };
                write!(
                    f,
                    "the peer's chain ends in {what} {last} issued by \"{issuer}\", our roots are {roots:?}"
                )
            }
            Self::Expired { now, not_after } => {
                write!(f, "valid until {}, now {}", Utc(*not_after), Utc(*now))
            }
            Self::NotYetValid { now, not_before } => {
                write!(f, "valid from {}, now {}", Utc(*not_before), Utc(*now))
            }
            Self::Revoked => f.write_str("a CRL lists a certificate of the chain"),
            Self::BadKeyUsage => f.write_str("the extended key usage does not allow it"),
            Self::UriNames { found } => write!(f, "expected one URI name, found {found}"),
            Self::InvalidIdentity(_) => f.write_str("the URI name is no SPIFFE id"),
            Self::Certificate { reason } => f.write_str(reason),
        }
    }
}

impl StdError for VerifyError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::InvalidIdentity(error) => Some(error),
            _ => None,
        }
    }
}

/// A time as people read it.
struct Utc(SystemTime);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self
            .0
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let time = i64::try_from(seconds.as_secs())
            .ok()
            .and_then(|seconds| x509_parser::time::ASN1Time::from_timestamp(seconds).ok());
        match time {
            Some(time) => write!(f, "{time}"),
            None => write!(f, "{:?}", self.0),
        }
    }
}
