//! gRPC to the control plane.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use mesh_hbone::tls::{Bundle, NamedStream};
use mesh_xds::transport::Channel;
use rustls_pki_types::CertificateDer;
use tower_service::Service;

use super::ControlPlane;
use crate::BoxError;
use crate::identity::{Error, ErrorKind};
use crate::net::BoxedIo;

/// What proves who we are, and whom we believe, at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Proof {
    /// Whether the token is sent.
    pub(crate) token: bool,
    /// Presented unless it has expired.
    pub(crate) certificate: Option<Bundle>,
    /// Roots that came with earlier certificates: believed beside those in the root file, unless that is
    /// the server's alone.
    pub(crate) known: Vec<CertificateDer<'static>>,
}

impl ControlPlane {
    /// A channel. `proof` is asked at each connection for certificate and roots, and at each call for
    /// the token, so it follows all that is renewed.
    ///
    /// An [`Error`] of identities is among the sources of what fails: see [`own_error`].
    pub(crate) fn channel(
        &self,
        proof: impl Fn() -> Proof + Send + Sync + 'static,
    ) -> Result<Channel, Error> {
        let settings = |detail: String| Error::new(ErrorKind::Settings, detail);
        let uri = Uri::try_from(format!("https://{}", self.address)).map_err(|error| {
            settings(format!("control plane address {:?}", self.address)).with_source(error)
        })?;
        let proof: Arc<dyn Fn() -> Proof + Send + Sync> = Arc::new(proof);
        let tokens = (self.clone(), Arc::clone(&proof));
        let mut builder = Channel::builder(uri)
            // The time-outs of its parts come first: they know what they waited for.
            .connect_timeout(self.connect_timeout.saturating_add(Duration::from_secs(15)))
            .token(move || {
                let (control_plane, proof) = tokens.clone();
                async move {
                    if !proof().token {
                        return Ok(None);
                    }
                    let token = control_plane.token().await.map_err(BoxError::from)?;
                    Ok(token.map(|token| token.to_string()))
                }
            });
        for (name, value) in &self.headers {
            builder = builder.header(name, value);
        }
        let connector = Connector {
            control_plane: self.clone(),
            proof,
        };
        builder
            .build(connector)
            .map_err(|error| settings("control plane".into()).with_source(error))
    }
}

/// The error of ours among the sources of another.
pub(crate) fn own_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(own) = error.downcast_ref::<Error>() {
            return Some(own);
        }
        next = error.source();
    }
    None
}

#[derive(Clone)]
struct Connector {
    control_plane: ControlPlane,
    proof: Arc<dyn Fn() -> Proof + Send + Sync>,
}

impl Service<Uri> for Connector {
    type Response = NamedStream<BoxedIo>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let control_plane = self.control_plane.clone();
        let proof = (self.proof)();
        Box::pin(async move {
            let certificate = proof.certificate.as_ref();
            control_plane.connect(&proof.known, certificate).await
        })
    }
}
