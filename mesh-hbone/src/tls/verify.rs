//! Who the peer is: chain, validity, usage, revocation, then its SPIFFE id.

use std::error::Error as StdError;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use mesh_authz::{Identity, InvalidIdentity};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::bundle::{Bundle, system_time};
use super::crl;
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
            Self::UnexpectedIdentity { .. } => ErrorKind::UnexpectedIdentity,
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
    fn alert(&self) -> CertificateError {
        match self {
            Self::UnexpectedIdentity { .. } | Self::UnexpectedTrustDomain { .. } => {
                CertificateError::ApplicationVerificationFailure
            }
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

/// The one SPIFFE id of a leaf. SPIFFE ids are compared whole, never matched as patterns.
///
/// # Errors
///
/// More or fewer than one URI name, or one that is no SPIFFE id: which of several to believe must
/// not depend on their order.
pub(super) fn identity_of(leaf: &EndEntityCert<'_>) -> Result<Identity, VerifyError> {
    let mut names = leaf.valid_uri_names();
    match (names.next(), names.next()) {
        (Some(name), None) => Identity::parse(name).map_err(VerifyError::InvalidIdentity),
        (first, second) => Err(VerifyError::UriNames {
            found: usize::from(first.is_some()) + usize::from(second.is_some()) + names.count(),
        }),
    }
}

/// What every peer is judged by; made once for each [`Bundle`].
#[derive(Debug)]
pub(super) struct Rules {
    algorithms: WebPkiSupportedAlgorithms,
    bundle: Bundle,
    /// Our own, then the aliases.
    trust_domains: Vec<String>,
}

impl Rules {
    pub(super) fn new(
        algorithms: WebPkiSupportedAlgorithms,
        bundle: Bundle,
        aliases: &[String],
    ) -> Self {
        let own = bundle.identity().trust_domain().to_owned();
        let trust_domains = std::iter::once(own)
            .chain(aliases.iter().cloned())
            .collect();
        Self {
            algorithms,
            bundle,
            trust_domains,
        }
    }

    /// Checks everything but who the peer is.
    fn chain(
        &self,
        leaf: &EndEntityCert<'_>,
        presented: (&CertificateDer<'_>, &[CertificateDer<'_>]),
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), VerifyError> {
        let crls: Vec<_> = self.bundle.crls().iter().collect();
        leaf.verify_for_usage(
            self.algorithms.all,
            self.bundle.anchors(),
            presented.1,
            now,
            usage,
            crl::options(&crls),
            None,
        )
        .map(drop)
        .map_err(|error| match error {
            // Two roots of one name: the signature is what differs.
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                self.unknown_issuer(presented.1.last().unwrap_or(presented.0))
            }
            webpki::Error::CertExpired { time, not_after } => VerifyError::Expired {
                now: system_time(time),
                not_after: system_time(not_after),
            },
            webpki::Error::CertNotValidYet { time, not_before } => VerifyError::NotYetValid {
                now: system_time(time),
                not_before: system_time(not_before),
            },
            webpki::Error::CertRevoked => VerifyError::Revoked,
            webpki::Error::RequiredEkuNotFoundContext(_) | webpki::Error::EmptyEkuExtension => {
                VerifyError::BadKeyUsage
            }
            error => VerifyError::certificate(&error),
        })
    }

    fn unknown_issuer(&self, last: &CertificateDer<'_>) -> VerifyError {
        let (issuer, last_is_root) = match X509Certificate::from_der(last) {
            Ok((_, parsed)) => (
                parsed.issuer().to_string(),
                parsed.issuer() == parsed.subject(),
            ),
            Err(_) => ("?".to_owned(), false),
        };
        VerifyError::UnknownIssuer {
            roots: self.bundle.root_fingerprints().to_vec(),
            issuer,
            last: Fingerprint::of(last),
            last_is_root,
        }
    }
}

/// Who may be at the other end.
#[derive(Debug)]
pub(super) enum Expected {
    /// Any of these.
    Identities(Vec<Identity>),
    /// Anybody of the accepted trust domains.
    TrustDomain,
}

/// Judges one peer, and keeps what it found: rustls' own error has no room for it.
#[derive(Debug)]
pub(super) struct Verifier {
    rules: Arc<Rules>,
    expected: Expected,
    outcome: OnceLock<Result<Identity, VerifyError>>,
}

impl Verifier {
    pub(super) fn new(rules: Arc<Rules>, expected: Expected) -> Self {
        Self {
            rules,
            expected,
            outcome: OnceLock::new(),
        }
    }

    /// What was found; `None` if the peer's certificate has not been seen.
    pub(super) fn outcome(&self) -> Option<&Result<Identity, VerifyError>> {
        self.outcome.get()
    }

    fn judge(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<Identity, VerifyError> {
        let leaf = EndEntityCert::try_from(end_entity)
            .map_err(|error| VerifyError::certificate(&error))?;
        self.rules
            .chain(&leaf, (end_entity, intermediates), now, usage)?;
        let got = identity_of(&leaf)?;
        match &self.expected {
            Expected::Identities(expected) if !expected.contains(&got) => {
                Err(VerifyError::UnexpectedIdentity {
                    got,
                    expected: expected.clone(),
                })
            }
            Expected::TrustDomain
                if !self
                    .rules
                    .trust_domains
                    .iter()
                    .any(|domain| domain == got.trust_domain()) =>
            {
                Err(VerifyError::UnexpectedTrustDomain {
                    got,
                    expected: self.rules.trust_domains.clone(),
                })
            }
            Expected::Identities(_) | Expected::TrustDomain => Ok(got),
        }
    }

    fn decide(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), rustls::Error> {
        let outcome = self.judge(end_entity, intermediates, now, usage);
        let alert = outcome.as_ref().err().map(VerifyError::alert);
        // One verifier judges one certificate.
        if self.outcome.set(outcome).is_err() {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        alert.map_or(Ok(()), |alert| Err(alert.into()))
    }

    fn signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.rules.algorithms)
    }
}

/// TLS 1.2 is never negotiated.
fn no_tls12() -> rustls::Error {
    rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered)
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.decide(end_entity, intermediates, now, KeyUsage::server_auth())
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.rules.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A mesh client has one certificate: hints would only make the handshake longer.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.decide(end_entity, intermediates, now, KeyUsage::client_auth())
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.rules.algorithms.supported_schemes()
    }
}
