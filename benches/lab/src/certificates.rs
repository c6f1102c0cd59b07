//! A root, and what it issues.

use std::fs;
use std::path::Path;

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
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
    serial: SerialNumber,
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
        // Random enough: of a point on a curve, after the byte that says how it is written.
        let serial = SerialNumber::from_slice(&key.public_key_raw()[1..17]);
        params.serial_number = Some(serial.clone());
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Leaf {
            certificate,
            key,
            serial,
        })
    }

    /// A list in PEM that revokes what was issued.
    pub(crate) fn revoke(&self, leaf: &Leaf) -> Result<String, BoxError> {
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2040, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: leaf.serial.clone(),
                revocation_time: date_time_ymd(2020, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&self.issuer)?.pem()?)
    }

    /// Writes a certificate with these names as `<name>.crt`, and its key as `<name>.key`.
    pub(crate) fn write_leaf(
        &self,
        folder: &Path,
        name: &str,
        names: Vec<SanType>,
    ) -> Result<Leaf, BoxError> {
        let leaf = self.issue(names)?;
        fs::write(folder.join(format!("{name}.crt")), leaf.certificate.pem())?;
        fs::write(folder.join(format!("{name}.key")), leaf.key.serialize_pem())?;
        Ok(leaf)
    }

    /// Writes `<account>.crt` and `<account>.key`.
    pub(crate) fn write_member(&self, folder: &Path, account: &str) -> Result<Leaf, BoxError> {
        let names = vec![SanType::URI(Ia5String::try_from(identity(account))?)];
        self.write_leaf(folder, account, names)
    }

    /// Writes `root.pem` and `root.key`, and a server certificate for `address` and [`CONTROL`] as `control.crt`
    /// and `control.key`.
    pub(crate) fn write(&self, folder: &Path, address: std::net::IpAddr) -> Done {
        fs::write(folder.join("root.pem"), self.issuer.pem())?;
        fs::write(folder.join("root.key"), self.issuer.key().serialize_pem())?;
        let names = vec![
            SanType::IpAddress(address),
            SanType::DnsName(Ia5String::try_from(CONTROL)?),
        ];
        self.write_leaf(folder, "control", names)?;
        Ok(())
    }
}
