//! Who we are, to the control plane.

use std::error::Error as StdError;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mesh_authz::Identity;
use mesh_xds::transport::Channel;
use mesh_xds::{Error as XdsError, ErrorKind as XdsErrorKind};

use super::follow::settings_error;
use crate::config::ConfigLink;
use crate::control_plane::{Proof, own_error};
use crate::identity::TrustDomain;
use crate::{ControlPlane, Error};

/// Proves to the control plane who we are: by the token, or else by the certificate.
pub(super) struct Prover {
    control_plane: ControlPlane,
    /// Of a node proxy, no certificate proves who it is.
    identity: Option<Identity>,
    link: ConfigLink,
    by_certificate: AtomicBool,
}

impl Prover {
    pub(super) fn new(
        control_plane: ControlPlane,
        identity: Option<Identity>,
        link: ConfigLink,
    ) -> Arc<Self> {
        let by_certificate = AtomicBool::new(control_plane.token_path().is_none());
        Arc::new(Self {
            control_plane,
            identity,
            link,
            by_certificate,
        })
    }

    pub(super) fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// Who is said to ask, of a workload's stream: without a trust domain where nobody said one.
    pub(super) fn said(&self) -> Option<String> {
        let identity = self.identity.as_ref()?;
        let node = self.link.node().ok()?;
        Some(match node.settings.trust_domain_of {
            TrustDomain::Asked => identity.to_string(),
            TrustDomain::Issued => {
                let (namespace, account) = (identity.namespace(), identity.service_account());
                format!("ns/{namespace}/sa/{account}")
            }
        })
    }

    pub(super) fn channel(self: &Arc<Self>) -> Result<Channel, Error> {
        let prover = Arc::clone(self);
        let channel = self.control_plane.channel(move || prover.proof());
        channel.map_err(settings_error)
    }

    fn certificate(&self) -> Option<Arc<mesh_hbone::tls::Bundle>> {
        let identity = self.identity.as_ref()?;
        let certificate = self.link.certificate(identity).ok().flatten();
        certificate.filter(|bundle| bundle.not_after() > self.control_plane.now())
    }

    fn proof(&self) -> Proof {
        let certificate = self.certificate();
        let known = certificate.as_ref().map(|bundle| bundle.roots().to_vec());
        let by_certificate = self.by_certificate.load(Ordering::Relaxed);
        Proof {
            token: !by_certificate,
            certificate: certificate
                .filter(|_| by_certificate)
                .map(|bundle| (*bundle).clone()),
            known: known.unwrap_or_default(),
        }
    }

    /// A stream did not come about: the next attempt may prove it the other way.
    pub(super) fn failed(&self, error: Option<&XdsError>) {
        let Some(error) = error else { return };
        if self.by_certificate.load(Ordering::Relaxed) {
            // Whatever it was, the certificate may be why.
            let has_token = self.control_plane.token_path().is_some();
            self.by_certificate.store(!has_token, Ordering::Relaxed);
        } else if (error.is_refused() || error.kind() == XdsErrorKind::Token)
            && self.certificate().is_some()
        {
            tracing::info!(target: "mesh::config", error = %text(error), "the certificate does in place of the token");
            self.by_certificate.store(true, Ordering::Relaxed);
        }
    }
}

/// What failed, on one line. What this crate knows of it goes before what lies between.
pub(super) fn text(error: &XdsError) -> String {
    /// A chain longer than this is a loop, or nothing anybody reads.
    const MAX: usize = 16;
    let (mut text, first) = match own_error(error) {
        Some(own) => (own.detail().to_owned(), own.source()),
        None => (error.to_string(), error.source()),
    };
    for source in std::iter::successors(first, |error| (*error).source()).take(MAX) {
        text.push_str(": ");
        text.push_str(&source.to_string());
    }
    text
}
