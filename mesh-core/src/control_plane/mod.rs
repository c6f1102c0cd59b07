//! Where the control plane is, and how this process proves to it who it is.

mod channel;
mod connect;
mod files;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_hbone::tls::Provider;

use crate::net::BoxedIo;
use crate::settings::WallClock;

pub(crate) use channel::{Proof, own_error};
pub(crate) use connect::local_towards;
pub(crate) use files::{Read, read_certificates, read_file};

/// A control plane: its address, whom to believe that it is, and the token that proves to it who this
/// process is.
///
/// The defaults are those of a Pod in a stock Istio: `istiod.istio-system.svc:15012`, the root that is
/// mounted from the ConfigMap `istio-ca-root-cert`, and a projected service account token for the
/// audience `istio-ca`. Nothing is read or dialled before somebody needs it; both files are read again
/// for each connection, so that rotating them needs no restart.
///
/// [`identity::Istiod`](crate::identity::Istiod) gets certificates there.
///
/// # Examples
///
/// ```
/// use mesh_core::ControlPlane;
///
/// // A host outside Kubernetes: the files of `istioctl x workload entry configure`.
/// let control_plane = ControlPlane::new("istiod.istio-system.svc:15012")
///     .root_cert_file("/etc/certs/root-cert.pem")
///     .token_file("/var/run/secrets/tokens/istio-token")
///     .cluster_id("cluster1");
/// # let _ = control_plane;
/// ```
#[derive(Clone)]
pub struct ControlPlane {
    address: Arc<str>,
    server_names: Arc<[String]>,
    roots: Arc<Path>,
    roots_for_peers: bool,
    token: Option<Arc<Path>>,
    headers: Vec<(String, String)>,
    connect_timeout: Duration,
    dial: Option<Dial>,
    at: Option<IpAddr>,
    provider: Option<Provider>,
    clock: WallClock,
}

type Dial = Arc<dyn Fn(String) -> Dialling + Send + Sync>;
type Dialling = Pin<Box<dyn Future<Output = io::Result<BoxedIo>> + Send>>;

/// The header by which istiod knows which cluster's API server can review a token.
const CLUSTER_ID: &str = "clusterid";

impl Default for ControlPlane {
    fn default() -> Self {
        Self::new("istiod.istio-system.svc:15012")
    }
}

impl ControlPlane {
    /// Takes the address as `host:port` or `[v6]:port`. Its TLS port: 15012 on istiod.
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            address: address.into().into(),
            server_names: Arc::default(),
            roots: Path::new("/var/run/secrets/istio/root-cert.pem").into(),
            roots_for_peers: true,
            token: Some(Path::new("/var/run/secrets/tokens/istio-token").into()),
            headers: Vec::new(),
            connect_timeout: Duration::from_secs(5),
            dial: None,
            at: None,
            provider: None,
            clock: WallClock::default(),
        }
    }

    /// Sets the names of which the server's certificate must have one, instead of the host of the
    /// address: for a control plane that is reached by an address of its own, or through a gateway. The
    /// first is sent as SNI.
    #[must_use]
    pub fn server_names(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.server_names = names.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the PEM file with the roots of the mesh: `/var/run/secrets/istio/root-cert.pem` unless set.
    ///
    /// They are trusted for the control plane, and for peers beside those that come with each
    /// certificate: while a root is being replaced, both are in the file, and both are trusted.
    #[must_use]
    pub fn root_cert_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.roots = path.into().into();
        self.roots_for_peers = true;
        self
    }

    /// Sets a PEM file with roots that are trusted for the control plane alone, where its server
    /// certificate is issued by somebody else than workloads' certificates are.
    ///
    /// No other root is trusted for it then: roots that came with certificates are those of workloads, any of
    /// which could take the control plane's place, and be sent the token. While the file is missing or
    /// damaged, nothing is connected to.
    #[must_use]
    pub fn server_root_cert_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.roots = path.into().into();
        self.roots_for_peers = false;
        self
    }

    /// Sets the file with the bearer token: `/var/run/secrets/tokens/istio-token` unless set. It is
    /// read for each call.
    #[must_use]
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.token = Some(path.into().into());
        self
    }

    /// Sends no token: only a certificate proves who this process is.
    #[must_use]
    pub fn without_token(mut self) -> Self {
        self.token = None;
        self
    }

    /// Sets the cluster whose API server can review the token: unset, istiod asks that of its own
    /// cluster. istiod refuses names that it does not know, and asks nobody's for the
    /// [proxy of a host](crate::identity::Istiod::for_node), which has to set it.
    #[must_use]
    pub fn cluster_id(mut self, cluster: impl Into<String>) -> Self {
        self.headers.retain(|(name, _)| name != CLUSTER_ID);
        self.header(CLUSTER_ID, cluster)
    }

    /// Adds a header to each call. One that cannot be sent is an error of the call: its name must not be
    /// `authorization`, which is the token's, nor one of gRPC's own.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets how long resolving the name and connecting may take: 5 s unless set. The TLS handshake
    /// has 10 s more.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how the address is connected to: a TCP connection to any address that the system resolves
    /// its name to, unless set.
    #[must_use]
    pub fn dialer<F, Fut>(mut self, dial: F) -> Self
    where
        F: Fn(String) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = io::Result<BoxedIo>> + Send + 'static,
    {
        self.dial = Some(Arc::new(move |address| Box::pin(dial(address))));
        self
    }

    /// Connects to this address instead of resolving the name, while the server's certificate has to be
    /// for the name all the same: instead of a line in `/etc/hosts`.
    #[must_use]
    pub fn at(mut self, address: IpAddr) -> Self {
        self.at = Some(address);
        self
    }

    /// Sets the crypto provider: by feature unless set, aws-lc-rs before ring.
    #[must_use]
    pub fn crypto(mut self, provider: Provider) -> Self {
        self.provider = Some(provider);
        self
    }

    /// Sets the clock by which certificates are judged: the system's unless set.
    #[must_use]
    pub fn clock(mut self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.clock = WallClock::new(now);
        self
    }

    /// The address, as it was given.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    /// Where the roots are, and whether peers are believed by them too.
    pub(crate) fn roots_file(&self) -> (&Arc<Path>, bool) {
        (&self.roots, self.roots_for_peers)
    }

    /// Where the token is, if one is sent.
    pub(crate) fn token_path(&self) -> Option<&Arc<Path>> {
        self.token.as_ref()
    }
}

/// The defaults of a Pod, but for the address.
impl From<&str> for ControlPlane {
    fn from(address: &str) -> Self {
        Self::new(address)
    }
}

/// The defaults of a Pod, but for the address.
impl From<String> for ControlPlane {
    fn from(address: String) -> Self {
        Self::new(address)
    }
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers = self.headers.iter().map(|(name, _)| name);
        f.debug_struct("ControlPlane")
            .field("address", &self.address)
            .field("at", &self.at)
            .field("server_names", &self.server_names)
            .field("roots", &self.roots)
            .field("roots_for_peers", &self.roots_for_peers)
            .field("token", &self.token)
            .field("headers", &headers.collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}
