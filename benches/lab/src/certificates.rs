//! A root, and what it issues.

use std::fs;
use std::path::Path;

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;

use crate::{BoxError, Done};

/// The name of the lab's control plane.
pub(crate) const CONTROL: &str = "control.lab.example";

/// The identity of `account`.
pub(crate) fn identity(account: &str) -> String {
    format!("spiffe://cluster.local/ns/default/sa/{account}")
}

pub(crate) struct Root {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key.
pub(crate) struct Leaf {
    pub(crate) certificate: rcgen::Certificate,
    pub(crate) key: KeyPair,
}

impl Root {
    pub(crate) fn new() -> Result<Self, BoxError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "cluster.local");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Ok(Self { issuer })
    }

    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        self.issuer.der()
    }

    /// Issues a certificate with these names, for both ends of a connection.
    pub(crate) fn issue(&self, names: Vec<SanType>) -> Result<Leaf, BoxError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Leaf { certificate, key })
    }

    /// Writes `<account>.crt` and `<account>.key`.
    pub(crate) fn write_member(&self, folder: &Path, account: &str) -> Done {
        let leaf = self.issue(vec![SanType::URI(Ia5String::try_from(identity(account))?)])?;
        fs::write(
            folder.join(format!("{account}.crt")),
            leaf.certificate.pem(),
        )?;
        fs::write(
            folder.join(format!("{account}.key")),
            leaf.key.serialize_pem(),
        )?;
        Ok(())
    }

    /// Writes `root.pem` and `root.key`, and a server certificate for `address` and [`CONTROL`] as `control.crt`
    /// and `control.key`.
    pub(crate) fn write(&self, folder: &Path, address: std::net::IpAddr) -> Done {
        fs::write(folder.join("root.pem"), self.issuer.pem())?;
        fs::write(folder.join("root.key"), self.issuer.key().serialize_pem())?;
        let leaf = self.issue(vec![
            SanType::IpAddress(address),
            SanType::DnsName(Ia5String::try_from(CONTROL)?),
        ])?;
        fs::write(folder.join("control.crt"), leaf.certificate.pem())?;
        fs::write(folder.join("control.key"), leaf.key.serialize_pem())?;
        Ok(())
    }
}
