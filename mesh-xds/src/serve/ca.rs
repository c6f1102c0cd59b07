//! Certificates: the authority that signs, within bounds.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_authz::Identity;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use x509_parser::pem::Pem;

use crate::error::{Error, ErrorKind};

type Clock = dyn Fn() -> SystemTime + Send + Sync;

/// How far back a certificate begins to be valid: clocks differ. As istiod.
const BACKDATED: Duration = Duration::from_secs(120);

/// An authority that signs certificates of workloads: a certificate of its own, with its key.
///
/// What it issues names one identity and nobody else, whatever the request asks for, and is good for
/// servers and clients.
///
/// # Examples
///
/// ```
/// use mesh_xds::ca::SigningRequest;
/// use mesh_xds::serve::Ca;
/// # use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
/// # let key = KeyPair::generate()?;
/// # let mut params = CertificateParams::default();
/// # params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
/// # let (root, key) = (params.self_signed(&key)?.pem(), key.serialize_pem());
///
/// let ca = Ca::new(&root, &key)?;
/// let identity = "spiffe://cluster.local/ns/default/sa/reviews".parse()?;
/// let chain = ca.sign(SigningRequest::new(&identity)?.pem(), &identity, None)?;
/// assert_eq!(chain.len(), 2, "a leaf and the roots");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    valid: (SystemTime, SystemTime),
    /// Between the leaf and the root.
    intermediates: Vec<String>,
    roots: String,
    default_lifetime: Duration,
    max_lifetime: Duration,
    clock: Arc<Clock>,
}

impl Ca {
    /// Takes the certificate to sign with, in PEM, and its private key, PKCS#8 in PEM.
    ///
    /// Where the certificate is no root, those that lead to its root follow it, the root last.
    ///
    /// # Errors
    ///
    /// `InvalidSettings` if one of them is not what it should be, the certificate is none of an authority,
    /// or the key is another's.
    pub fn new(certificates: &str, key: &str) -> Result<Self, Error> {
        let key = KeyPair::from_pem(key)
            .map_err(|error| invalid("the key: expected PKCS#8 in PEM").with_source(error))?;
        let mut all = Vec::new();
        for pem in Pem::iter_from_buffer(certificates.as_bytes()) {
            let pem = pem.map_err(|error| invalid("the certificates").with_source(error))?;
            all.push(pem);
        }
        let first = all
            .first()
            .ok_or_else(|| invalid("no certificate, expected PEM"))?;
        let parsed = first
            .parse_x509()
            .map_err(|error| invalid("the first certificate").with_source(error))?;
        if !parsed.is_ca() {
            return Err(invalid(
                "the first certificate: expected one of an authority",
            ));
        }
        if *parsed.public_key().subject_public_key.data != *key.der_bytes() {
            return Err(invalid("the key: expected that of the first certificate"));
        }
        let validity = parsed.validity();
        let valid = (
            time(validity.not_before.timestamp()),
            time(validity.not_after.timestamp()),
        );
        let issuer = Issuer::from_ca_cert_der(&first.contents.as_slice().into(), key);
        let issuer = issuer.map_err(|error| invalid("the first certificate").with_source(error))?;
        let mut texts: Vec<String> = split(certificates);
        let roots = texts
            .pop()
            .ok_or_else(|| invalid("no certificate, expected PEM"))?;
        Ok(Self {
            issuer,
            valid,
            intermediates: texts,
            roots,
            default_lifetime: Duration::from_secs(24 * 60 * 60),
            max_lifetime: Duration::from_secs(90 * 24 * 60 * 60),
            clock: Arc::new(SystemTime::now),
        })
    }

    /// Adds roots to trust, in PEM: those that sign soon, or have signed what still is valid.
    #[must_use]
    pub fn with_other_roots(mut self, roots: &str) -> Self {
        for root in split(roots) {
            if !self.roots.contains(&root) {
                self.roots.push_str(&root);
            }
        }
        self
    }

    /// Sets how long certificates are valid for who does not say, and at most. Default: 24 h and 90 days, as
    /// istiod has them. No certificate outlives the authority's own.
    #[must_use]
    pub fn with_lifetimes(mut self, default: Duration, max: Duration) -> Self {
        self.default_lifetime = default.min(max);
        self.max_lifetime = max;
        self
    }

    /// Sets the clock. Default: the system's.
    #[must_use]
    pub fn with_clock(mut self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(now);
        self
    }

    /// The roots to trust, in PEM.
    pub fn roots(&self) -> &str {
        &self.roots
    }

    /// Signs the key of a request, in PEM, for `identity`, and answers with the chain: the leaf first, each
    /// in an element of its own, the roots last. Of the request nothing but the key counts.
    ///
    /// # Errors
    ///
    /// `InvalidRequest` if it is no request, is not signed with its own key, or asks for more time than
    /// allowed; `Unavailable` if the authority's own certificate is not valid now.
    pub fn sign(
        &self,
        request: &str,
        identity: &Identity,
        lifetime: Option<Duration>,
    ) -> Result<Vec<String>, Error> {
        let refused = |detail: String| Error::new(ErrorKind::InvalidRequest, detail);
        let lifetime = lifetime.unwrap_or(self.default_lifetime);
        if lifetime > self.max_lifetime {
            let (asked, most) = (lifetime.as_secs(), self.max_lifetime.as_secs());
            return Err(refused(format!(
                "validity_duration: {asked} s, expected at most {most} s"
            )));
        }
        let request = CertificateSigningRequestParams::from_pem(request)
            .map_err(|error| refused(format!("csr: {error}")).with_source(error))?;
        let now = (self.clock)();
        if now < self.valid.0 || now >= self.valid.1 {
            let detail = "the authority's own certificate is not valid now";
            return Err(Error::new(ErrorKind::Unavailable, detail));
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let failed = |error: rcgen::Error| invalid("a certificate").with_source(error);
        let uri = identity.to_string().try_into().map_err(failed)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial());
        let date = |time: SystemTime| {
            let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(since_epoch.as_secs())
        };
        let (from, to) = self.valid;
        let begin = now.checked_sub(BACKDATED).unwrap_or(from);
        params.not_before = date(begin.max(from));
        // What no clock can say is later than the end of any certificate.
        params.not_after = date(now.checked_add(lifetime).unwrap_or(to).min(to));
        let leaf = params
            .signed_by(&request.public_key, &self.issuer)
            .map_err(failed)?;
        let mut chain = Vec::with_capacity(self.intermediates.len() + 2);
        chain.push(leaf.pem());
        chain.extend(self.intermediates.iter().cloned());
        chain.push(self.roots.clone());
        Ok(chain)
    }
}

/// RFC 5280, 4.1.2.2: positive, no longer than 20 bytes, no two the same.
fn serial() -> SerialNumber {
    let random = || RandomState::new().hash_one(()).to_be_bytes();
    let mut bytes = [random(), random()].concat();
    bytes[0] = bytes[0] & 0x3f | 0x40;
    SerialNumber::from(bytes)
}

fn split(pem: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let parts = pem.split_inclusive(END).filter(|part| part.ends_with(END));
    parts.map(|part| format!("{}\n", part.trim())).collect()
}

fn time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

fn invalid(detail: &'static str) -> Error {
    Error::new(ErrorKind::InvalidSettings, detail)
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca")
            .field("valid", &self.valid)
            .field("roots", &self.roots)
            .finish_non_exhaustive()
    }
}
