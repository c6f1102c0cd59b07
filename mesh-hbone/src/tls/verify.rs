//! Who the peer is: chain, validity, usage, revocation, then its SPIFFE id.

use std::sync::{Arc, OnceLock};

use mesh_authz::Identity;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::{
    CertificateDer, ServerName, SignatureVerificationAlgorithm, TrustAnchor, UnixTime,
};
use webpki::{CertRevocationList, EndEntityCert, KeyUsage};
use x509_parser::asn1_rs::Tag;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::bundle::{Bundle, Facts, system_time};
use super::crl;
use super::fingerprint::Fingerprint;
use super::recent::{LONGEST, Recent};
use super::signatures::{Good, Remembering};
use super::verify_error::VerifyError;

/// What is read of a leaf.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) identity: Identity,
    pub(super) facts: Facts,
}

impl Leaf {
    /// # Errors
    ///
    /// Those of [`identity_of`], and a key usage that a leaf must not have.
    pub(super) fn read(leaf: &EndEntityCert<'_>) -> Result<Self, VerifyError> {
        let der = leaf.der();
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| broken())?;
        key_usage(&parsed)?;
        Ok(Self {
            identity: identity_of(&parsed)?,
            facts: Facts::of(&parsed),
        })
    }
}

/// What need not be looked at again when a peer comes back.
#[derive(Debug)]
pub(super) struct Remembered {
    good: Arc<Good>,
    leaves: Recent<Arc<Leaf>>,
}

impl Remembered {
    pub(super) fn new(most: usize) -> Self {
        Self {
            good: Arc::new(Good::new(most)),
            leaves: Recent::new(most),
        }
    }

    fn leaf(&self, leaf: &EndEntityCert<'_>) -> Result<Arc<Leaf>, VerifyError> {
        let der = leaf.der();
        if let Some(leaf) = self.leaves.get(&der) {
            return Ok(leaf);
        }
        let read = Arc::new(Leaf::read(leaf)?);
        if der.len() <= LONGEST {
            self.leaves.insert(der.to_vec(), Arc::clone(&read));
        }
        Ok(read)
    }
}

fn broken() -> VerifyError {
    VerifyError::certificate(&webpki::Error::BadDer)
}

/// The one SPIFFE id of a leaf. SPIFFE ids are compared whole, never matched as patterns.
///
/// # Errors
///
/// More or fewer than one URI name, or one that is no SPIFFE id: which of several to believe must
/// not depend on their order.
fn identity_of(leaf: &X509Certificate<'_>) -> Result<Identity, VerifyError> {
    let names = leaf.subject_alternative_name().map_err(|_| broken())?;
    // Those that are no text count too: webpki's own list leaves them out.
    let mut uris = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(Some(*uri)),
            GeneralName::Invalid(tag, _) if *tag == URI => Some(None),
            _ => None,
        });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => {
            Identity::parse(uri.unwrap_or("")).map_err(VerifyError::InvalidIdentity)
        }
        (first, second) => Err(VerifyError::UriNames {
            found: usize::from(first.is_some()) + usize::from(second.is_some()) + uris.count(),
        }),
    }
}

/// `uniformResourceIdentifier` among the general names (RFC 5280 section 4.2.1.6).
const URI: Tag = Tag(6);

/// A leaf signs handshakes and no certificates ([X509-SVID §4.3](https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md#43-key-usage)),
/// which webpki leaves to its caller.
fn key_usage(leaf: &X509Certificate<'_>) -> Result<(), VerifyError> {
    let reason = match leaf.key_usage() {
        Ok(None) => return Ok(()),
        Ok(Some(usage)) if usage.value.key_cert_sign() || usage.value.crl_sign() => {
            "the key usage of a leaf must not have keyCertSign or cRLSign"
        }
        Ok(Some(usage)) if !usage.value.digital_signature() => {
            "the key usage of a leaf must have digitalSignature"
        }
        Ok(Some(_)) => return Ok(()),
        Err(_) => "the key usage cannot be read",
    };
    Err(VerifyError::Certificate {
        reason: reason.to_owned(),
    })
}

/// What every peer is judged by; made once for each [`Bundle`].
#[derive(Debug)]
pub(super) struct Rules {
    algorithms: WebPkiSupportedAlgorithms,
    /// The same for chains, whose signatures come again.
    chains: Vec<Remembering>,
    remembered: Arc<Remembered>,
    bundle: Bundle,
    /// Our own, then the aliases.
    trust_domains: Vec<String>,
}

impl Rules {
    pub(super) fn new(
        algorithms: WebPkiSupportedAlgorithms,
        remembered: &Arc<Remembered>,
        bundle: Bundle,
        aliases: &[String],
    ) -> Self {
        let own = bundle.identity().trust_domain().to_owned();
        let trust_domains = std::iter::once(own)
            .chain(aliases.iter().cloned())
            .collect();
        Self {
            algorithms,
            chains: remembered.good.remembering(algorithms.all),
            remembered: Arc::clone(remembered),
            bundle,
            trust_domains,
        }
    }

    /// Checks everything but who the peer is, of a chain that was accepted before.
    pub(super) fn judge_chain(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), VerifyError> {
        let (end_entity, intermediates) = chain
            .split_first()
            .ok_or_else(|| VerifyError::certificate(&webpki::Error::BadDer))?;
        let leaf = EndEntityCert::try_from(end_entity)
            .map_err(|error| VerifyError::certificate(&error))?;
        self.chain(&leaf, (end_entity, intermediates), now, usage)
    }

    /// Checks everything but who the peer is.
    fn chain(
        &self,
        leaf: &EndEntityCert<'_>,
        presented: (&CertificateDer<'_>, &[CertificateDer<'_>]),
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), VerifyError> {
        let algorithms: Vec<_> = self.chains.iter().map(|chain| chain as _).collect();
        Trust {
            algorithms: &algorithms,
            anchors: self.bundle.anchors(),
            roots: self.bundle.root_fingerprints(),
            crls: self.bundle.crls(),
        }
        .chain(leaf, presented, now, usage)
    }
}

/// As many as webpki puts into a path. More would only be more orders of issuers of one name in which it
/// looks for a path, up to 200 000 of them: for whoever has no certificate of ours, too.
pub(super) const MOST_INTERMEDIATES: usize = 6;

/// What a path may be made of, of what comes behind a leaf; `None` if that is too much. Roots that are sent along are in no
/// path; while one takes another's place there are two.
pub(super) fn intermediates_of<'a, 'der>(
    behind: &'a [CertificateDer<'der>],
    roots: &[Fingerprint],
) -> Option<&'a [CertificateDer<'der>]> {
    let mut few = behind;
    while few.len() > MOST_INTERMEDIATES {
        let (last, rest) = few.split_last()?;
        if !roots.contains(&Fingerprint::of(last)) {
            return None;
        }
        few = rest;
    }
    Some(few)
}

/// Whom to believe.
#[derive(Debug)]
pub(super) struct Trust<'a> {
    pub(super) algorithms: &'a [&'a dyn SignatureVerificationAlgorithm],
    pub(super) anchors: &'a [TrustAnchor<'static>],
    /// Of the certificates that `anchors` were made of, for errors.
    pub(super) roots: &'a [Fingerprint],
    pub(super) crls: &'a [CertRevocationList<'static>],
}

impl Trust<'_> {
    /// Checks chain, validity, usage and revocation.
    pub(super) fn chain(
        &self,
        leaf: &EndEntityCert<'_>,
        presented: (&CertificateDer<'_>, &[CertificateDer<'_>]),
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), VerifyError> {
        let Some(intermediates) = intermediates_of(presented.1, self.roots) else {
            let reason = format!(
                "{:?}: {} certificates behind the leaf, expected at most {MOST_INTERMEDIATES} and roots of ours",
                webpki::Error::MaximumPathDepthExceeded,
                presented.1.len()
            );
            return Err(VerifyError::Certificate { reason });
        };
        let crls: Vec<_> = self.crls.iter().collect();
        leaf.verify_for_usage(
            self.algorithms,
            self.anchors,
            intermediates,
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
            roots: self.roots.to_vec(),
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
    outcome: OnceLock<Result<Arc<Leaf>, VerifyError>>,
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
    pub(super) fn outcome(&self) -> Option<&Result<Arc<Leaf>, VerifyError>> {
        self.outcome.get()
    }

    fn judge(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<Arc<Leaf>, VerifyError> {
        let leaf = EndEntityCert::try_from(end_entity)
            .map_err(|error| VerifyError::certificate(&error))?;
        self.rules
            .chain(&leaf, (end_entity, intermediates), now, usage)?;
        let leaf = self.rules.remembered.leaf(&leaf)?;
        let got = &leaf.identity;
        match &self.expected {
            Expected::Identities(expected) if !expected.contains(got) => {
                Err(VerifyError::UnexpectedIdentity {
                    got: got.clone(),
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
                    got: got.clone(),
                    expected: self.rules.trust_domains.clone(),
                })
            }
            Expected::Identities(_) | Expected::TrustDomain => Ok(leaf),
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
pub(super) fn no_tls12() -> rustls::Error {
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
