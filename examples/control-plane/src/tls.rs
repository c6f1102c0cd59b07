//! TLS: a server certificate of our own root, and clients' certificates where they have one.

use std::sync::Arc;
use std::time::Duration;

use mesh_authz::Identity;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::BoxError;
use crate::state::State;

/// The name by which hosts know a control plane.
pub(crate) const SERVER_NAME: &str = "istiod.istio-system.svc";

/// TLS 1.3, with a certificate that is made anew at each start.
pub(crate) fn config(state: &State, other_names: &[String]) -> Result<ServerConfig, BoxError> {
    let names = [SERVER_NAME, "localhost", "127.0.0.1", "::1"];
    let names = names.into_iter().map(str::to_owned);
    let mut params =
        CertificateParams::new(names.chain(other_names.iter().cloned()).collect::<Vec<_>>())?;
    params.distinguished_name = DistinguishedName::new();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = validity(365);
    let issuer = Issuer::from_ca_cert_pem(&state.root, KeyPair::from_pem(&state.key)?)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let leaf = params.signed_by(&key, &issuer)?;

    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = Arc::new(roots(&state.root)?);
    let clients = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients.allow_unauthenticated().build()?)
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der())?,
        )?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

pub(crate) fn roots(pem: &str) -> Result<RootCertStore, BoxError> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(root?)?;
    }
    Ok(roots)
}

/// Whom a certificate that was verified names: its only URI, a SPIFFE id.
pub(crate) fn identity(certificate: &CertificateDer<'_>) -> Option<Identity> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let mut uris = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse().ok(),
        _ => None,
    }
}

/// From two minutes ago, as clocks differ, for so many days.
pub(crate) fn validity<T>(days: u64) -> (T, T)
where
    T: From<std::time::SystemTime>,
{
    let now = std::time::SystemTime::now();
    let day = Duration::from_secs(24 * 60 * 60);
    let days = day * u32::try_from(days).unwrap_or(u32::MAX);
    ((now - Duration::from_secs(120)).into(), (now + days).into())
}
