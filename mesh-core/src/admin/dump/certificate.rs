use std::time::SystemTime;

use mesh_authz::Identity;
use mesh_hbone::tls::Bundle;
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use super::pem;
use crate::node::CertificateState;
use crate::settings::has_expired;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CertificateDump {
    pub(super) identity: String,
    state: String,
    /// Leaf first.
    cert_chain: Vec<Certificate>,
    root_certs: Vec<Certificate>,
    /// Why there is no newer one. Not of ztunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    renewal_error: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Certificate {
    /// The PEM text in base64 once more, as ztunnel has it.
    pem: String,
    serial_number: String,
    valid_from: String,
    expiration_time: String,
}

impl CertificateDump {
    pub(super) fn new(identity: &Identity, state: &CertificateState, now: SystemTime) -> Self {
        let bundle = state.credentials.as_ref().map(|it| it.current());
        let text = match (&bundle, &state.error) {
            (Some(bundle), error) if has_expired(bundle.not_after(), now) => format!(
                "Unavailable: expired{}",
                error
                    .as_ref()
                    .map_or(String::new(), |error| format!(": {error}"))
            ),
            (Some(_), _) => "Available".to_owned(),
            (None, Some(error)) => format!("Unavailable: {error}"),
            (None, None) => "Initializing".to_owned(),
        };
        let told = |certificates: fn(&Bundle) -> &[CertificateDer<'static>]| {
            let all = bundle.as_deref().map_or(&[][..], certificates);
            all.iter().map(|der| Certificate::new(der)).collect()
        };
        Self {
            identity: bundle
                .as_ref()
                .map_or(identity, |bundle| bundle.identity())
                .to_string(),
            state: text,
            cert_chain: told(Bundle::chain),
            root_certs: told(Bundle::roots),
            renewal_error: bundle
                .as_ref()
                .and(state.error.as_deref())
                .map(str::to_owned),
        }
    }
}

impl Certificate {
    fn new(der: &[u8]) -> Self {
        let parsed = X509Certificate::from_der(der).ok();
        let facts = parsed
            .as_ref()
            .map(|(_, certificate)| &certificate.tbs_certificate);
        let told = |of: &dyn Fn(&x509_parser::prelude::TbsCertificate<'_>) -> String| {
            facts.map_or_else(String::new, of)
        };
        Self {
            pem: pem::base64(pem::certificate(der).as_bytes()),
            serial_number: told(&|facts| facts.serial.to_string()),
            valid_from: told(&|facts| rfc3339(facts.validity.not_before)),
            expiration_time: told(&|facts| rfc3339(facts.validity.not_after)),
        }
    }
}

/// As [`rfc3339`], of the system's clock.
pub(super) fn rfc3339_of(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    let seconds = since.map_or(0, |since| since.as_secs());
    let time = i64::try_from(seconds).ok();
    let time = time.and_then(|seconds| ASN1Time::from_timestamp(seconds).ok());
    time.map_or_else(String::new, rfc3339)
}

/// `2026-01-02T03:04:05Z` (RFC 3339).
fn rfc3339(time: ASN1Time) -> String {
    let time = time.to_datetime();
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        let told = |seconds| rfc3339(ASN1Time::from_timestamp(seconds).unwrap());
        assert_eq!(told(0), "1970-01-01T00:00:00Z");
        assert_eq!(told(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(told(4_102_444_800), "2100-01-01T00:00:00Z");
    }
}
