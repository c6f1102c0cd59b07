//! The certificates of the node's identities, from the first one on.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use futures_util::StreamExt;
use mesh_authz::Identity;
use mesh_hbone::tls::{self, Credentials};
use tokio::sync::watch;

use super::problems::Awaited;
use super::{NodeInner, report};
use crate::Error;
use crate::identity;
use crate::sync::lock;

/// The certificates of one identity as they come; `None` until the first.
pub(crate) type Certificate = watch::Receiver<CertificateState>;

#[derive(Debug, Clone, Default)]
pub(crate) struct CertificateState {
    pub(crate) credentials: Option<Credentials>,
    pub(crate) error: Option<Arc<str>>,
    /// Why waiting for the first one is of no use.
    pub(crate) permanent: Option<identity::Error>,
}

impl NodeInner {
    /// The certificates of all identities, in no order.
    #[cfg(feature = "admin")]
    pub(crate) fn certificates(&self) -> Vec<(Identity, CertificateState)> {
        let certificates = lock(&self.certificates);
        let states = certificates.iter();
        states
            .map(|(identity, state)| (identity.clone(), state.borrow().clone()))
            .collect()
    }

    /// The certificates of `identity`, fetched from now on if they were not before, and for as long as
    /// somebody holds the second value.
    pub(super) fn certificate(self: &Arc<Self>, identity: &Identity) -> (Certificate, Arc<()>) {
        let mut wanted = lock(&self.wanted);
        let want = wanted.get(identity).and_then(Weak::upgrade);
        let want = want.unwrap_or_default();
        wanted.insert(identity.clone(), Arc::downgrade(&want));
        let mut certificates = lock(&self.certificates);
        if let Some(certificate) = certificates.get(identity) {
            return (certificate.clone(), want);
        }
        let (sender, receiver) = watch::channel(CertificateState::default());
        certificates.insert(identity.clone(), receiver.clone());
        drop((certificates, wanted));
        let name = certificate_name(identity);
        self.gate.pend(&name, "no certificate yet");
        let watch = || self.vouches.watch(identity.clone());
        let bundles = self.tasks.enter(watch);
        let node = Arc::downgrade(self);
        self.supervise(
            "certificate source",
            keep_certificate(node, identity.clone(), bundles, sender),
        );
        (receiver, want)
    }

    /// The credentials of every identity that has some.
    pub(crate) fn credentials(&self) -> HashMap<Identity, Credentials> {
        let certificates = lock(&self.certificates);
        certificates
            .iter()
            .filter_map(|(identity, state)| {
                Some((identity.clone(), state.borrow().credentials.clone()?))
            })
            .collect()
    }

    /// Puts another certificate in the place of one of `asked`. Where nobody said the trust domain the authority
    /// does, and it may say another than before: the mesh has been renamed, or the host is in another one now.
    fn exchange(
        &self,
        asked: &Identity,
        credentials: &Credentials,
        bundle: tls::Bundle,
    ) -> Result<(), mesh_hbone::Error> {
        let (before, now) = (credentials.current(), bundle.identity().clone());
        credentials.replace(bundle)?;
        if *before.identity() != now {
            tracing::warn!(target: "mesh::identity", before = %before.identity(), %now, "the trust domain is another: nobody has set one, so it is the certificate's");
            // What is opened from now on is opened as who we are now; who dials looks again when it has dialled.
            for (key, sender) in self.pool.senders() {
                if key.source() == asked {
                    sender.retire();
                }
            }
            #[cfg(feature = "http")]
            for mesh in self.meshes() {
                if mesh.asked == *asked {
                    mesh.http.close_idle();
                }
            }
        }
        Ok(())
    }

    /// Lets go of the certificates that no workload of the node has any more.
    pub(crate) fn forget_unwanted(&self) {
        let mut wanted = lock(&self.wanted);
        let mut certificates = lock(&self.certificates);
        wanted.retain(|identity, want| {
            let keep = want.strong_count() > 0;
            if !keep {
                certificates.remove(identity);
                self.gate.done(&certificate_name(identity));
            }
            keep
        });
    }
}

/// What readiness calls it.
pub(crate) fn certificate_name(identity: &Identity) -> String {
    format!("certificate of {identity}")
}

async fn keep_certificate(
    node: Weak<NodeInner>,
    identity: Identity,
    mut bundles: identity::CertificateStream,
    sender: watch::Sender<CertificateState>,
) -> Result<(), Error> {
    let name = certificate_name(&identity);
    let mut last_error = None;
    loop {
        let next = tokio::select! {
            next = bundles.next() => next,
            // Nobody wants them any more.
            () = sender.closed() => return Ok(()),
        };
        let Some(node) = node.upgrade() else {
            return Ok(());
        };
        let Some(next) = next else {
            // Why its last item was an error says more.
            if sender.borrow().permanent.is_none() {
                let ended = last_error.unwrap_or_else(|| {
                    identity::Error::new(identity::ErrorKind::Unavailable, "its source has ended")
                });
                let reason = report(&ended);
                // A good certificate is one until it expires.
                if sender.borrow().credentials.is_none() {
                    node.gate.pend(&name, &reason);
                }
                sender.send_modify(|state| {
                    state.error = Some(reason.into());
                    state.permanent = Some(ended);
                });
            }
            return Ok(());
        };
        let outcome = next.and_then(|bundle| {
            let current = sender.borrow().credentials.clone();
            if !(node.settings.trust_domain_of).permits(&identity, bundle.identity()) {
                return Err(identity::Error::new(
                    identity::ErrorKind::WrongIdentity,
                    format!("the source gave one of {} instead", bundle.identity()),
                ));
            }
            match current {
                Some(credentials) => node
                    .exchange(&identity, &credentials, bundle)
                    .map(|()| credentials),
                None => {
                    Credentials::new(node.provider.clone(), bundle, node.settings.tls_options())
                }
            }
            .map_err(|error| {
                identity::Error::new(identity::ErrorKind::Invalid, "it cannot be used")
                    .with_source(error)
            })
        });
        last_error = outcome.as_ref().err().cloned();
        match outcome {
            Ok(credentials) => {
                node.gate.done(&name);
                sender.send_replace(CertificateState {
                    credentials: Some(credentials),
                    error: None,
                    permanent: None,
                });
                // Its CRLs may speak of peers that are connected, and it may expire before others.
                node.revoke_tunnels();
                node.sooner.notify_one();
            }
            Err(error) => {
                let reason = report(&error);
                if sender.borrow().credentials.is_some() {
                    tracing::warn!(target: "mesh::identity", %name, %reason, "no new certificate; a good one is kept until it expires");
                } else {
                    let comes = matches!(
                        error.kind(),
                        identity::ErrorKind::Io
                            | identity::ErrorKind::Token
                            | identity::ErrorKind::Unavailable
                    );
                    node.awaits(Awaited::Certificate, &name, &reason, comes);
                }
                sender.send_modify(|state| {
                    state.error = Some(reason.into());
                    state.permanent = Some(error).filter(identity::Error::is_permanent);
                });
            }
        }
    }
}
