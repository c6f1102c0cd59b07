//! A root certificate with its key, and what it issues.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_authz::Identity;
use mesh_hbone::tls::{Bundle, Fingerprint};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::{Zeroize, Zeroizing};

use crate::identity::{Error, ErrorKind};

/// Long enough that nobody's laptop meets its end; the folder is easily removed.
const ROOT_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// The authority: roots to trust, and the key of the one that issues.
pub(super) struct Root {
    key: KeyPair,
    /// The certificate that `key` belongs to.
    issuer: CertificateDer<'static>,
    not_before: SystemTime,
    not_after: SystemTime,
    /// All trusted roots, the issuer among them.
    trusted: Vec<CertificateDer<'static>>,
    pem: String,
}

impl Root {
    /// Makes a new root, valid from now on for ten years.
    pub(super) fn create(trust_domain: &str, now: SystemTime) -> Result<Self, Error> {
        let key = new_key()?;
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, trust_domain);
        name.push(DnType::CommonName, "mesh development root");
        params.distinguished_name = name;
        // X509-SVID 4.1: a signing certificate may name its trust domain. Ours does, so that the
        // folder knows whose it is.
        params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))?];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, now, now + ROOT_VALIDITY);
        let certificate = params.self_signed(&key).map_err(failed)?;
        Self::parse(
            &certificate.pem(),
            "the new root",
            key,
            "its key",
            trust_domain,
        )
    }

    /// Reads back what [`pem`](Self::pem) and [`key_pem`](Self::key_pem) gave. Errors name `file`
    /// or `key_file`.
    pub(super) fn load(
        pem: &str,
        file: &str,
        key_pem: &str,
        key_file: &str,
        trust_domain: &str,
    ) -> Result<Self, Error> {
        let key = KeyPair::from_pkcs8_pem_and_sign_algo(key_pem, &PKCS_ECDSA_P256_SHA256);
        let key = key.map_err(|error| {
            invalid(key_file, "expected a P-256 private key in PKCS#8 PEM").with_source(error)
        })?;
        Self::parse(pem, file, key, key_file, trust_domain)
    }

    fn parse(
        pem: &str,
        file: &str,
        key: KeyPair,
        key_file: &str,
        trust_domain: &str,
    ) -> Result<Self, Error> {
        let trusted: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| invalid(file, "expected certificates in PEM").with_source(error))?;
        if trusted.is_empty() {
            return Err(invalid(file, "expected certificates in PEM, found none"));
        }
        let mut issuer = None;
        for der in &trusted {
            let (_, certificate) = X509Certificate::from_der(der)
                .map_err(|error| invalid(file, "expected X.509 certificates").with_source(error))?;
            if *certificate.public_key().subject_public_key.data == *key.public_key_raw() {
                issuer = Some((der.clone(), certificate));
            }
        }
        let Some((issuer, certificate)) = issuer else {
            let what = format!("expected the private key of a certificate in {file}");
            return Err(invalid(key_file, &what));
        };
        if !certificate.is_ca() {
            return Err(invalid(file, "expected the certificate of an authority"));
        }
        if let Some(found) = trust_domain_of(&certificate)
            && found != trust_domain
        {
            let detail = format!(
                "{file} is the root of the trust domain {found}, expected {trust_domain}: name another folder, or the same trust domain"
            );
            return Err(Error::new(ErrorKind::WrongTrustDomain, detail));
        }
        let validity = certificate.validity();
        let (not_before, not_after) = (
            time(validity.not_before.timestamp()),
            time(validity.not_after.timestamp()),
        );
        drop(certificate);
        Ok(Self {
            key,
            issuer,
            not_before,
            not_after,
            trusted,
            pem: pem.to_owned(),
        })
    }

    /// The trusted roots.
    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    /// The private key of the root that issues.
    pub(super) fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.key.serialize_pem())
    }

    /// The fingerprint of the root that issues.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.issuer)
    }

    /// Issues a certificate with a fresh key.
    pub(super) fn issue(
        &self,
        identity: &Identity,
        now: SystemTime,
        validity: Duration,
    ) -> Result<Bundle, Error> {
        if now < self.not_before || now >= self.not_after {
            let detail = format!(
                "the root {} is not valid at this time of day; check the clock, or {BEGIN_ANEW}",
                self.fingerprint()
            );
            return Err(Error::new(ErrorKind::Expired, detail));
        }
        let mut params = CertificateParams::default();
        // X509-SVID 2 and 4: the SPIFFE id is the only URI; with an empty subject it is critical.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri(&identity.to_string())?];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        // Rounded up: a life of one second must not end with the second in which it begins.
        let end = validity
            .checked_add(Duration::from_nanos(999_999_999))
            .and_then(|validity| now.checked_add(validity))
            .unwrap_or(self.not_after);
        set_validity(&mut params, now, end.min(self.not_after));
        let issuer = Issuer::from_ca_cert_der(&self.issuer, &self.key).map_err(failed)?;
        let mut key = new_key()?;
        let certificate = params.signed_by(&key, &issuer);
        let private = PrivatePkcs8KeyDer::from(key.serialize_der());
        key.zeroize();
        // With the root, which a peer that trusts another one can then name.
        let leaf = certificate.map_err(failed)?.der().clone();
        Bundle::new(
            vec![leaf, self.issuer.clone()],
            PrivateKeyDer::from(private),
            self.trusted.clone(),
            &[],
        )
        .map_err(failed)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

pub(super) const BEGIN_ANEW: &str = "remove the folder to begin with a new root";

fn invalid(file: &str, what: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("{file}: {what}; {BEGIN_ANEW}"))
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Invalid, "issuing a certificate").with_source(error)
}

fn new_key() -> Result<KeyPair, Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)
}

fn uri(uri: &str) -> Result<SanType, Error> {
    Ok(SanType::URI(uri.try_into().map_err(failed)?))
}

/// The trust domain that a signing certificate names; one from elsewhere need not name any.
fn trust_domain_of(certificate: &X509Certificate<'_>) -> Option<String> {
    let names = certificate.subject_alternative_name().ok()??;
    names
        .value
        .general_names
        .iter()
        .find_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix("spiffe://").map(str::to_owned),
            _ => None,
        })
}

/// Certificates know whole seconds; both ends are rounded down, so that the first is not to come.
fn set_validity(params: &mut CertificateParams, from: SystemTime, until: SystemTime) {
    let seconds = |time: SystemTime| {
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(since_epoch.as_secs())
    };
    params.not_before = seconds(from);
    params.not_after = seconds(until);
}

fn time(timestamp: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(timestamp).unwrap_or(0))
}
