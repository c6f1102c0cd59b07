//! Certificates from istiod's certificate service, or another that speaks it.
//!
//! A [`SigningRequest`] has a fresh private key, and asks for the certificate of one identity; [`Client`]
//! sends it and answers with a chain of certificates and the roots to trust. Nothing here judges
//! either: that they fit is for the caller to see, who knows the mesh's TLS.

#[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
mod signing_request;

use std::time::Duration;

use mesh_authz::Identity;

use crate::error::{Error, ErrorKind};
use crate::proto::google::protobuf::{Struct, Value, value};
use crate::proto::istio::v1::auth::IstioCertificateRequest;
use crate::proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use crate::transport::Channel;

#[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
pub use signing_request::SigningRequest;

/// A chain of four certificates with a few roots has some 10 KiB.
const MAX_ANSWER: usize = 4 << 20;

/// A client of the certificate service `istio.v1.auth.IstioCertificateService`.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
}

impl Client {
    /// Takes the way to the service. Nothing is dialled before it is used.
    pub fn new(channel: Channel) -> Self {
        Self { channel }
    }

    /// Asks for a certificate: one call, over a connection of its own.
    ///
    /// `csr` is a certificate signing request in PEM, `validity` what the certificate's life should
    /// be, in whole seconds; the service may give less. For `impersonated` the service issues a
    /// certificate of that identity instead of the caller's own, if it trusts the caller with it: istiod
    /// does for a node's proxy and Pods on that node.
    ///
    /// # Errors
    ///
    /// The status of the call, and `InvalidResponse` for an answer without certificate or root. There is
    /// no retry and no time-out in here; the connector's own error is among the sources.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the call. The service may have issued a certificate all the same.
    pub async fn create(
        &self,
        csr: &str,
        validity: Duration,
        impersonated: Option<&Identity>,
    ) -> Result<Issued, Error> {
        let message = IstioCertificateRequest {
            csr: csr.to_owned(),
            validity_duration: i64::try_from(validity.as_secs()).unwrap_or(i64::MAX),
            metadata: impersonated.map(metadata),
        };
        let request = self.channel.request(message).await?;
        let answer = IstioCertificateServiceClient::new(self.channel.fresh())
            .max_decoding_message_size(MAX_ANSWER.min(self.channel.max_message_size()))
            .create_certificate(request)
            .await?;
        Issued::parse(answer.into_inner().cert_chain)
    }
}

/// What istiod reads of a request's metadata.
fn metadata(identity: &Identity) -> Struct {
    let kind = Some(value::Kind::StringValue(identity.to_string()));
    let field = ("ImpersonatedIdentity".to_owned(), Value { kind });
    Struct {
        fields: [field].into_iter().collect(),
    }
}

/// What the service answered, in PEM.
#[derive(Debug, Clone)]
pub struct Issued {
    chain: String,
    roots: String,
}

impl Issued {
    /// The answer has one certificate an element, the leaf first; the last element has the roots.
    fn parse(mut elements: Vec<String>) -> Result<Self, Error> {
        let invalid = |detail: &'static str| Error::new(ErrorKind::InvalidResponse, detail);
        let roots = elements
            .pop()
            .ok_or_else(|| invalid("the answer has no certificate"))?;
        if elements.is_empty() {
            return Err(invalid(
                "the answer has no root certificate: expected the chain, then the roots",
            ));
        }
        let mut chain = String::new();
        for element in elements {
            chain.push_str(element.trim_end());
            chain.push('\n');
        }
        Ok(Self { chain, roots })
    }

    /// The certificate that was asked for, then those that lead to a root.
    pub fn chain(&self) -> &str {
        &self.chain
    }

    /// The roots to trust.
    pub fn roots(&self) -> &str {
        &self.roots
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_element_has_the_roots() {
        let elements = |elements: &[&str]| elements.iter().map(|text| (*text).to_owned()).collect();
        let issued = Issued::parse(elements(&["leaf\n", "middle", "root 1\nroot 2\n"])).unwrap();
        assert_eq!(issued.chain(), "leaf\nmiddle\n");
        assert_eq!(issued.roots(), "root 1\nroot 2\n");
        for short in [&[][..], &["leaf"]] {
            let error = Issued::parse(elements(short)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidResponse);
        }
    }
}
