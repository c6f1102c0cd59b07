//! One call of the certificate service.

use std::sync::Arc;

use super::watch::{Ask, Failed, Fetched, Settings};
use crate::identity::{Error, ErrorKind};

#[derive(Debug)]
pub(super) struct Caller {
    settings: Settings,
}

impl Caller {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            settings: settings.clone(),
        }
    }
}

#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
impl Caller {
    pub(super) async fn fetch(self: Arc<Self>, _ask: Ask) -> Result<Fetched, Failed> {
        let _ = (
            &self.settings.impersonate,
            &self.settings.ttl,
            self.settings.by_certificate,
        );
        let detail = "Istiod: turn on the feature `aws-lc-rs` or `ring` of mesh-core";
        Err(Error::new(ErrorKind::NoCrypto, detail).into())
    }
}

#[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
mod with_crypto {
    use mesh_hbone::tls::Bundle;
    use mesh_xds::ErrorKind as CallErrorKind;
    use mesh_xds::ca::{Client, Issued, SigningRequest};
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    use x509_parser::prelude::{FromDer, X509Certificate};
    use zeroize::Zeroizing;

    use super::super::keep;
    use super::super::schedule::Failure;
    use super::*;
    use crate::control_plane::{Proof, own_error, read_certificates};

    impl Caller {
        /// Fetches one certificate: by the token, or else by the certificate that there is.
        pub(in super::super) async fn fetch(self: Arc<Self>, ask: Ask) -> Result<Fetched, Failed> {
            let by_token = match self.settings.control_plane.token().await {
                Ok(Some(_)) => {
                    let proof = Proof {
                        token: true,
                        known: ask.known.clone(),
                        ..Proof::default()
                    };
                    match self.call(&ask, proof).await {
                        Err(failed) if failed.error.kind() == ErrorKind::Refused => failed,
                        outcome => return outcome,
                    }
                }
                Ok(None) => {
                    let detail =
                        "none is configured, and there is no valid certificate in its place";
                    Error::new(ErrorKind::Token, detail).into()
                }
                Err(error) => error.into(),
            };
            // A certificate speaks for its own identity only.
            let permitted = self.settings.by_certificate && !self.settings.impersonate;
            let now = self.settings.control_plane.now();
            let current = ask.current.as_ref();
            let Some(current) = current.filter(|own| permitted && own.not_after() > now) else {
                return Err(by_token);
            };
            tracing::debug!(target: "mesh::identity", identity = %ask.identity, error = %by_token.error, "the certificate does in place of the token");
            let proof = Proof {
                token: false,
                certificate: Some(current.clone()),
                known: ask.known.clone(),
            };
            self.call(&ask, proof).await.map_err(|failed| {
                let detail = format!(
                    "{}; and by certificate: {}",
                    by_token.error.detail(),
                    failed.error
                );
                let error = Error::new(by_token.error.kind(), detail).with_source(failed.error);
                Failed { error, ..by_token }
            })
        }

        async fn call(&self, ask: &Ask, proof: Proof) -> Result<Fetched, Failed> {
            let Settings { control_plane, .. } = &self.settings;
            let what = if proof.token { "token" } else { "certificate" };
            let channel = control_plane.channel(move || proof.clone())?;
            let request = SigningRequest::new(&ask.identity).map_err(|error| {
                Error::new(ErrorKind::Invalid, "certificate signing request").with_source(error)
            })?;
            let impersonated = self.settings.impersonate.then_some(&ask.identity);
            let issued = Client::new(channel)
                .create(request.pem(), self.settings.ttl, impersonated)
                .await
                .map_err(|error| self.failed(error, what))?;
            let bundle = self.parse(&request, &issued)?;
            let content = self.content(&request, &issued);
            Ok(Fetched { bundle, content })
        }

        /// The certificate must be for our key: another's is of no use, and would show much later.
        fn parse(&self, request: &SigningRequest, issued: &Issued) -> Result<Bundle, Error> {
            let address = self.settings.control_plane.address();
            let from = format!("the roots in the answer of {address}");
            let roots = read_certificates(issued.roots().as_bytes(), &from)?;
            let invalid = || {
                let detail = format!("the certificate in the answer of {address}");
                Error::new(ErrorKind::Invalid, detail)
            };
            let key = request.private_key();
            let pem = issued.chain().as_bytes();
            let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
            let chain = chain.map_err(|error| invalid().with_source(error))?;
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
                .map_err(|error| invalid().with_source(error))?;
            let bundle = Bundle::new(chain, key, roots, &[])
                .map_err(|error| invalid().with_source(error))?;
            let leaf = bundle
                .chain()
                .first()
                .map(|leaf| X509Certificate::from_der(leaf));
            let ours = leaf.is_some_and(|leaf| {
                leaf.is_ok_and(|(_, leaf)| {
                    *leaf.public_key().subject_public_key.data == *request.public_key()
                })
            });
            if ours {
                Ok(bundle)
            } else {
                let detail = format!("{}: it is for another key than ours", invalid().detail());
                Err(Error::new(ErrorKind::Invalid, detail))
            }
        }

        /// What is to be kept for the next start.
        fn content(&self, request: &SigningRequest, issued: &Issued) -> Option<keep::Content> {
            self.settings.state_dir.as_ref()?;
            let key = request.private_key();
            // Room for all of it at once: a text that grows leaves copies of the key behind.
            let room = key.len() + issued.chain().len();
            let mut certificate = Zeroizing::new(String::with_capacity(room));
            certificate.push_str(&key);
            certificate.push_str(issued.chain());
            Some(keep::Content {
                certificate,
                roots: issued.roots().to_owned(),
            })
        }

        fn failed(&self, error: mesh_xds::Error, what: &str) -> Failed {
            // It never came to a call.
            if let Some(own) = own_error(&error) {
                return own.clone().into();
            }
            let address = self.settings.control_plane.address();
            let (kind, detail, failure) = match error.kind() {
                CallErrorKind::Unauthenticated => (
                    ErrorKind::Refused,
                    format!("{address} refused the {what}: {error}"),
                    // A token can be refused because the API server cannot be asked just now.
                    Failure::Passing,
                ),
                CallErrorKind::PermissionDenied
                | CallErrorKind::InvalidRequest
                | CallErrorKind::Unimplemented => (
                    ErrorKind::Refused,
                    format!("{address} refused the request: {error}"),
                    Failure::Refused,
                ),
                CallErrorKind::InvalidResponse | CallErrorKind::TooLarge => (
                    ErrorKind::Invalid,
                    format!("{address}: {error}"),
                    Failure::Passing,
                ),
                _ => (
                    ErrorKind::Unavailable,
                    format!("{address}: {error}"),
                    Failure::Passing,
                ),
            };
            let error = Error::new(kind, detail).with_source(error);
            Failed { error, failure }
        }
    }
}
