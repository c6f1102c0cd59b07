//! What proves who we are, and whom we believe.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_authz::Identity;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, TrustAnchor, UnixTime,
};
use webpki::{CertRevocationList, EndEntityCert};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::crl;
use super::fingerprint::Fingerprint;
use super::verify::{Leaf, MOST_INTERMEDIATES, intermediates_of};
use crate::{Error, ErrorKind, Side};

/// A workload's certificate chain and private key, the roots it trusts, and the CRLs it knows.
///
/// Cloning is two reference counts. Making one needs no clock and no cryptography: whether the key
/// belongs to the certificate is checked by [`Credentials`](super::Credentials), which has a
/// provider; whether it is still valid is for the caller, who has [`not_after`](Self::not_after).
#[derive(Clone)]
pub struct Bundle {
    own: Arc<Own>,
    trust: Arc<Trust>,
}

/// What proves who we are.
struct Own {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    leaf: Leaf,
}

/// Whom we believe.
struct Trust {
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    fingerprints: Vec<Fingerprint>,
    crls: Vec<CertRevocationList<'static>>,
}

impl Trust {
    fn new(
        roots: Vec<CertificateDer<'static>>,
        crls: &[CertificateRevocationListDer<'_>],
    ) -> Result<Self, Error> {
        Ok(Self {
            anchors: anchors_of(&roots)?,
            crls: crl::parse(crls)?,
            fingerprints: roots.iter().map(|root| Fingerprint::of(root)).collect(),
            roots,
        })
    }
}

impl Bundle {
    /// Takes a chain (leaf first), its private key, trusted roots and revocation lists in DER.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidBundle`] if the chain or the roots are empty, a certificate, key or CRL
    /// does not parse (a CRL that cannot be read must not be taken for "nothing is revoked"), the
    /// leaf's validity ends before it begins, the leaf does not have exactly one URI name that is a SPIFFE id, or
    /// more than six intermediates come behind the leaf, trusted roots at the end not counted: peers take no more.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: Vec<CertificateDer<'static>>,
        crls: &[CertificateRevocationListDer<'_>],
    ) -> Result<Self, Error> {
        let leaf = chain.first().ok_or_else(|| {
            invalid("certificate chain: expected at least one certificate, found none")
        })?;
        for (index, certificate) in chain.iter().enumerate() {
            EndEntityCert::try_from(certificate).map_err(|error| {
                invalid(format!("chain certificate {index}")).with_source(error)
            })?;
        }
        let end_entity = EndEntityCert::try_from(leaf)
            .map_err(|error| invalid("leaf certificate").with_source(error))?;
        if is_authority(leaf) {
            return Err(invalid(
                "leaf certificate: expected an end entity, found a certificate authority",
            ));
        }
        let leaf = Leaf::read(&end_entity)
            .map_err(|error| invalid("leaf certificate").with_source(error))?;
        let facts = &leaf.facts;
        if facts.not_before > facts.not_after {
            return Err(invalid(
                "leaf certificate: validity: expected not-before at or before not-after",
            ));
        }
        let trust = Trust::new(roots, crls)?;
        if intermediates_of(&chain[1..], &trust.fingerprints).is_none() {
            return Err(invalid(format!(
                "certificate chain: presented {} certificates, expected at most a leaf, {MOST_INTERMEDIATES} intermediates and roots",
                chain.len()
            )));
        }
        let own = Own { chain, key, leaf };
        Ok(Self {
            own: Arc::new(own),
            trust: Arc::new(trust),
        })
    }

    /// The same certificate and key with other trusted roots and revocation lists: what changes while a
    /// root is being replaced, or somebody's certificate is revoked.
    ///
    /// The chain is not counted again, though a root that was sent along may be one of `roots` no more and so be
    /// an intermediate: what we present is judged by peers, by their roots, and must not keep a root trusted that
    /// is to be trusted no longer, or a list from being in force.
    ///
    /// # Errors
    ///
    /// As [`Bundle::new`] has them for roots and lists.
    pub fn with_trust(
        &self,
        roots: Vec<CertificateDer<'static>>,
        crls: &[CertificateRevocationListDer<'_>],
    ) -> Result<Self, Error> {
        Ok(Self {
            own: Arc::clone(&self.own),
            trust: Arc::new(Trust::new(roots, crls)?),
        })
    }

    /// Takes the same in PEM. `crls` may be empty: nothing is revoked.
    ///
    /// The key may be PKCS#8, SEC1 or PKCS#1.
    ///
    /// # Errors
    ///
    /// As [`Bundle::new`], and when an input is no PEM or has no section of the kind expected.
    pub fn from_pem(chain: &[u8], key: &[u8], roots: &[u8], crls: &[u8]) -> Result<Self, Error> {
        let chain = pem_sections(chain, "certificate chain")?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| invalid("private key").with_source(error))?;
        let roots = pem_sections(roots, "trust roots")?;
        let lists: Vec<CertificateRevocationListDer<'static>> = pem_sections(crls, "CRLs")?;
        if lists.is_empty() && !crls.trim_ascii().is_empty() {
            return Err(invalid("CRLs: expected X509 CRL sections, found none"));
        }
        Self::new(chain, key, roots, &lists)
    }

    /// Who the leaf certificate says we are.
    pub fn identity(&self) -> &Identity {
        &self.own.leaf.identity
    }

    /// The chain as it is presented, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.own.chain
    }

    /// The trusted roots.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.trust.roots
    }

    /// When the leaf begins to be valid.
    pub fn not_before(&self) -> SystemTime {
        self.own.leaf.facts.not_before
    }

    /// When the leaf ceases to be valid.
    pub fn not_after(&self) -> SystemTime {
        self.own.leaf.facts.not_after
    }

    /// The leaf's serial number in decimal, as istioctl shows it.
    pub fn serial_number(&self) -> &str {
        &self.own.leaf.facts.serial
    }

    /// The SHA-256 fingerprints of the roots, in their order; they display as hexadecimal.
    pub fn root_fingerprints(&self) -> &[Fingerprint] {
        &self.trust.fingerprints
    }

    /// How many revocation lists are in force.
    pub fn crl_count(&self) -> usize {
        self.trust.crls.len()
    }

    pub(super) fn key(&self) -> &PrivateKeyDer<'static> {
        &self.own.key
    }

    pub(super) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.trust.anchors
    }

    pub(super) fn crls(&self) -> &[CertRevocationList<'static>] {
        &self.trust.crls
    }
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key stays out, whatever is added here.
        f.debug_struct("Bundle")
            .field("identity", self.identity())
            .field("serial_number", &self.serial_number())
            .field("not_after", &self.not_after())
            .field("chain", &self.own.chain.len())
            .field("roots", &self.trust.fingerprints)
            .field("crls", &self.trust.crls.len())
            .finish_non_exhaustive()
    }
}

/// What people ask of a certificate and no decision rests on.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) serial: String,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Facts {
    pub(super) fn of(certificate: &X509Certificate<'_>) -> Self {
        let validity = certificate.validity();
        let time = |seconds: i64| {
            // Before 1970 is as good as 1970: no certificate of a mesh is that old.
            let seconds = u64::try_from(seconds).unwrap_or(0);
            system_time(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
        };
        Self {
            serial: certificate.tbs_certificate.serial.to_string(),
            not_before: time(validity.not_before.timestamp()),
            not_after: time(validity.not_after.timestamp()),
        }
    }
}

/// The trust anchors of roots, of which there has to be one.
pub(super) fn anchors_of(roots: &[CertificateDer<'_>]) -> Result<Vec<TrustAnchor<'static>>, Error> {
    if roots.is_empty() {
        return Err(invalid(
            "trust roots: expected at least one certificate, found none",
        ));
    }
    let anchor = |(index, root)| {
        let anchor = webpki::anchor_from_trusted_cert(root)
            .map_err(|error| invalid(format!("root {index}")).with_source(error))?;
        Ok(anchor.to_owned())
    };
    roots.iter().enumerate().map(anchor).collect()
}

/// No peer would accept it as a leaf.
fn is_authority(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| parsed.is_ca())
}

pub(super) fn system_time(time: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs())
}

fn pem_sections<T: PemObject>(pem: &[u8], field: &'static str) -> Result<Vec<T>, Error> {
    T::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(field).with_source(error))
}

pub(super) fn invalid(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidBundle, Side::Us).with_detail(detail)
}
