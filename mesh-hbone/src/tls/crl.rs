//! Certificate revocation lists.

use rustls_pki_types::CertificateRevocationListDer;
use webpki::{CertRevocationList, OwnedCertRevocationList, RevocationOptions};

use super::bundle::invalid;
use crate::Error;

/// Parses every list, or none: a list that cannot be read would leave its certificates unrevoked.
pub(super) fn parse(
    lists: &[CertificateRevocationListDer<'_>],
) -> Result<Vec<CertRevocationList<'static>>, Error> {
    lists
        .iter()
        .enumerate()
        .map(|(index, list)| {
            OwnedCertRevocationList::from_der(list)
                .map(CertRevocationList::from)
                .map_err(|error| invalid(format!("CRL {index}")).with_source(error))
        })
        .collect()
}

/// The whole chain is looked up; a certificate that no list speaks of is not revoked, and a list
/// stays in force after its `nextUpdate`, as in istio/ztunnel: forgetting it would unrevoke.
pub(super) fn options<'a>(
    lists: &'a [&'a CertRevocationList<'a>],
) -> Option<RevocationOptions<'a>> {
    let builder = webpki::RevocationOptionsBuilder::new(lists).ok()?;
    Some(
        builder
            .with_depth(webpki::RevocationCheckDepth::Chain)
            .with_status_policy(webpki::UnknownStatusPolicy::Allow)
            .with_expiration_policy(webpki::ExpirationPolicy::Ignore)
            .build(),
    )
}
