//! Certificates from istiod, or whoever speaks its certificate service.

mod call;
mod keep;
mod schedule;
mod store;
mod trust;
mod watch;
mod work;

#[cfg(all(test, any(feature = "aws-lc-rs", feature = "ring"), feature = "dev-ca"))]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_authz::Identity;

use super::renew::Backoff;
use super::{CertificateSource, CertificateStream, TrustDomain};
use crate::ControlPlane;
use watch::{Handle, Settings};

/// Certificates from istiod's certificate service, or another that speaks it.
///
/// Each certificate has a key of its own, P-256, which never leaves this process (but for the
/// [state directory](Self::state_dir), if one is set). The service account token proves to istiod who
/// asks. Where the token is missing or refused, a certificate that has not expired does in its place, as
/// istio-agent has it: on a host, the token of the first hour is enough for as long as renewals
/// succeed.
///
/// Certificates are renewed at half of their life. Failures are retried with a growing pause, and
/// a good certificate is kept until it expires. Clones share everything: an identity is fetched once,
/// however many watch it. What is watched comes first, then what is [prefetched](Self::prefetch), then
/// renewals, but for those in the last tenth of their life, which wait for nobody.
///
/// Peers are believed by the roots that came with the certificate, and by those in the
/// [root file](ControlPlane::root_cert_file), which is read every second: during a change of roots both
/// are in force. The same goes for [revocation lists](Self::crls).
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use mesh_core::{ControlPlane, identity::Istiod};
///
/// // In a Pod of a stock Istio.
/// let istiod = Istiod::new(ControlPlane::default());
///
/// // On a host, across restarts.
/// let istiod = Istiod::new(ControlPlane::new("istiod.istio-system.svc:15012").root_cert_file("/etc/certs/root-cert.pem"))
///     .ttl(Duration::from_secs(12 * 60 * 60))
///     .state_dir("/var/lib/reviews/mesh");
/// # let _ = istiod;
/// ```
#[derive(Clone)]
pub struct Istiod {
    settings: Settings,
    handle: Arc<std::sync::OnceLock<Arc<Handle>>>,
}

impl Istiod {
    /// Takes where the service is. Nothing is dialled or read here.
    pub fn new(control_plane: ControlPlane) -> Self {
        Self::with(Settings::new(control_plane))
    }

    fn with(settings: Settings) -> Self {
        Self {
            settings,
            handle: Arc::default(),
        }
    }

    /// A changed copy shares nothing with those that were made before.
    fn set(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        Self::with(self.settings)
    }

    /// Sets for how long certificates are asked to be valid: 24 hours unless set, as in Istio. The
    /// service may give less.
    #[must_use]
    pub fn ttl(self, ttl: Duration) -> Self {
        self.set(|settings| settings.ttl = ttl)
    }

    /// Takes certificates of any trust domain: of a host whose files have none.
    pub(crate) fn any_trust_domain(self) -> Self {
        self.set(|settings| settings.trust_domain = TrustDomain::Issued)
    }

    /// Asks for certificates of whatever identity is watched, rather than of the token's own: for
    /// the proxy of a node. istiod permits it to the accounts that it trusts, for Pods on the token's
    /// node. It looks for them in the cluster that the [header](ControlPlane::cluster_id) names, which has to be set.
    /// A certificate never does in place of the token here.
    #[must_use]
    pub fn for_node(self) -> Self {
        self.set(|settings| settings.impersonate = true)
    }

    /// Sets a PEM file of revocation lists: none unless set. It has to be there, an empty one
    /// revokes nothing: until it can be read there are no certificates, and while it cannot be read
    /// again, the last lists stay in force. Live connections of what it lists are ended within
    /// about two seconds.
    #[must_use]
    pub fn crls(self, path: impl Into<PathBuf>) -> Self {
        self.set(|settings| settings.crls = Some(path.into().into()))
    }

    /// Keeps certificates and their keys in a directory, readable by its owner alone: none unless
    /// set. After a restart they are used again at once, and renewed in time, so that neither an expired
    /// token nor an absent control plane keeps the process from starting. One of an authority that the root file does
    /// not have is renewed at once: the host may be in another mesh now.
    ///
    /// The directory, and what is in it, has to be owned by the process's user, and writable by that user alone:
    /// what others could have put there is not used. A directory that is not there is created. Certificates
    /// are in use before they are written, and one that cannot be read within 5 s is fetched anew.
    #[must_use]
    pub fn state_dir(self, path: impl Into<PathBuf>) -> Self {
        self.set(|settings| settings.state_dir = Some(path.into().into()))
    }

    /// Sets whether a valid certificate does in place of a token that is missing or refused: it does
    /// unless set.
    #[must_use]
    pub fn renew_by_certificate(self, permitted: bool) -> Self {
        self.set(|settings| settings.by_certificate = permitted)
    }

    /// Sets how many certificates are fetched at a time: 8 unless set, as in istio/ztunnel; at least 1.
    #[must_use]
    pub fn concurrency(self, fetches: usize) -> Self {
        self.set(|settings| settings.fetches = fetches.max(1))
    }

    /// Sets how many identities are kept at a time: 1000 unless set, several times what Kubernetes
    /// puts on one node. More are an error, [`ErrorKind::Full`](super::ErrorKind::Full).
    #[must_use]
    pub fn max_identities(self, identities: usize) -> Self {
        self.set(|settings| settings.identities = identities)
    }

    /// Sets the bounds of the pause after a failed fetch: 1 s after the first and 60 s at most
    /// unless set, and half of that before the first certificate, for which a start waits. The bound
    /// doubles with each failure, the pause is drawn at random below it, and in the last tenth of a
    /// certificate's life it is at most a sixtieth of that life. A fetch that istiod does not permit
    /// is tried again with the longest pauses. A token file or root file that has changed ends the
    /// pause.
    #[must_use]
    pub fn backoff(self, base: Duration, cap: Duration) -> Self {
        // A pause of nothing would be a busy loop.
        let base = base.max(Duration::from_millis(1));
        let cap = cap.max(base);
        self.set(|settings| settings.backoff = Backoff { base, cap })
    }

    /// Sets how long one fetch may take, connecting included: 10 s unless set.
    #[must_use]
    pub fn fetch_timeout(self, timeout: Duration) -> Self {
        self.set(|settings| settings.fetch_timeout = timeout)
    }

    /// Sets how often the root file, the revocation lists and the token are looked at: every second
    /// unless set. They are used once two looks in a row found the same.
    #[must_use]
    pub fn poll_interval(self, interval: Duration) -> Self {
        let interval = interval.max(Duration::from_millis(1));
        self.set(|settings| settings.poll = interval)
    }

    /// Sets the clock by which certificates are judged: the control plane's unless set. Waits always go
    /// by tokio's clock.
    #[must_use]
    pub fn clock(self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.set(|settings| settings.control_plane = settings.control_plane.clone().clock(now))
    }

    /// Seeds the random part of every wait, so that it can be repeated. Keys stay unpredictable.
    #[must_use]
    pub fn rng(self, seed: u64) -> Self {
        self.set(|settings| settings.seed = Some(seed))
    }

    /// Fetches and keeps the certificate of an identity that nobody watches yet, until
    /// [`forget`](Self::forget). On a tokio runtime it begins at once, elsewhere with the first watch.
    pub fn prefetch(&self, identity: &Identity) {
        self.handle().pin(identity);
    }

    /// Undoes [`prefetch`](Self::prefetch). What is watched is kept for as long as it is.
    pub fn forget(&self, identity: &Identity) {
        self.handle().unpin(identity);
    }

    fn handle(&self) -> &Arc<Handle> {
        self.handle.get_or_init(|| {
            let settings = self.settings.clone();
            let calls = Arc::new(call::Caller::new(&settings));
            Handle::new(settings, move |ask| Box::pin(Arc::clone(&calls).fetch(ask)))
        })
    }
}

impl CertificateSource for Istiod {
    fn watch(&self, identity: Identity) -> CertificateStream {
        self.handle().watch(identity)
    }
}

impl fmt::Debug for Istiod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Istiod")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
