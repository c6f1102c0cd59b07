//! A private key, and the request for its certificate.

use std::fmt;

use mesh_authz::Identity;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use zeroize::{Zeroize, Zeroizing};

use crate::error::{Error, ErrorKind};

/// A private key of one's own, and the request for a certificate of it.
///
/// ECDSA P-256 signed with SHA-256; an empty subject, and one URI name, the SPIFFE id, which is
/// therefore critical ([RFC 5280, 4.2.1.6](https://www.rfc-editor.org/rfc/rfc5280#section-4.2.1.6)). The
/// key is wiped when it is dropped, and is not in `Debug`.
pub struct SigningRequest {
    key: KeyPair,
    pem: String,
}

impl SigningRequest {
    /// Makes a key and a request.
    ///
    /// # Errors
    ///
    /// The crypto library could not make a key or a signature.
    pub fn new(identity: &Identity) -> Result<Self, Error> {
        let failed = |error: rcgen::Error| {
            Error::new(ErrorKind::InvalidSettings, "certificate signing request").with_source(error)
        };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let uri = identity.to_string().try_into().map_err(failed)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        let request = params.serialize_request(&key).map_err(failed)?;
        let pem = request.pem().map_err(failed)?;
        Ok(Self { key, pem })
    }

    /// The request, in PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The private key, PKCS#8 in PEM.
    pub fn private_key(&self) -> Zeroizing<String> {
        Zeroizing::new(self.key.serialize_pem())
    }

    /// The public key as a certificate has it: what a certificate of this request must have.
    pub fn public_key(&self) -> &[u8] {
        self.key.public_key_raw()
    }
}

impl Drop for SigningRequest {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl fmt::Debug for SigningRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningRequest")
            .field("pem", &self.pem)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_the_identity_and_nobody_else() {
        let identity = Identity::new("cluster.local", "default", "reviews").unwrap();
        let request = SigningRequest::new(&identity).unwrap();
        let other = SigningRequest::new(&identity).unwrap();
        assert_ne!(
            request.public_key(),
            other.public_key(),
            "each has its own key"
        );
        assert!(
            request
                .pem()
                .starts_with("-----BEGIN CERTIFICATE REQUEST-----")
        );
        assert!(
            request
                .private_key()
                .starts_with("-----BEGIN PRIVATE KEY-----")
        );
        let debug = format!("{request:?}");
        assert!(!debug.contains("PRIVATE"), "{debug}");
    }
}
