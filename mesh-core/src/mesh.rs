mod record;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use arc_swap::ArcSwapOption;
use mesh_authz::Identity;
use mesh_hbone::tls::{Bundle, Credentials};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use crate::builder::{Builder, Missing};
use crate::config::AppHealth;
use crate::inbound::{Acceptor, Enforcement, Live, Missings, Places, PortListener};
use crate::misnamed::Told;
use crate::node::{Certificate, CertificateState, Node, certificate_name, supervised};
#[cfg(feature = "http")]
use crate::outbound::HttpPool;
use crate::ready::Readiness;
use crate::settings::{deadline, has_expired};
use crate::shutdown::drain_begins;
use crate::snapshot::{Snapshot, WorkloadRecord};
use crate::sync::lock;
use crate::tasks::Tasks;
use crate::{Error, ErrorKind};

/// One workload of the mesh: its identity, its acceptor of tunnels, its view of the mesh.
///
/// Cloning is one reference count. See the [crate documentation](crate) for what it is used for.
#[derive(Clone)]
pub struct Mesh {
    pub(crate) inner: Arc<MeshInner>,
}

pub(crate) struct MeshInner {
    pub(crate) node: Node,
    pub(crate) id: WorkloadId,
    /// Who it asks to be, and by what its certificates are known here; see [`identity`](Self::identity).
    pub(crate) asked: Identity,
    /// Its certificates, from the first on, which say who it is.
    proven: OnceLock<Credentials>,
    certificate: Certificate,
    /// Whether the source speaks for this workload, and if not why. Known from the first configuration on and
    /// the same ever after: connections and requests ask neither the gate nor the board again.
    spoken_for: OnceLock<Result<(), String>>,
    /// What the workload's layers and listeners enforce.
    pub(crate) enforcement: Enforcement,
    /// Policies that the workload lists and that are not here yet.
    missing: watch::Sender<Missings>,
    pub(crate) live: Live,
    pub(crate) ports: Mutex<HashMap<u16, PortListener>>,
    pub(crate) acceptor: tokio::sync::Mutex<Option<Acceptor>>,
    /// When the application is told of the drain, once that has begun.
    pub(crate) notice: Arc<OnceLock<Instant>>,
    /// Room for inbound sockets.
    pub(crate) places: Places,
    /// Listeners that were dropped, by port, until their sockets are closed.
    leaving: Mutex<HashMap<u16, watch::Receiver<()>>>,
    /// Says to the node that the identity's certificates are still wanted.
    _wanted: Arc<()>,
    /// Ends with the workload: acceptors and the connections they serve.
    pub(crate) tasks: Tasks,
    /// Connections of the HTTP client.
    #[cfg(feature = "http")]
    pub(crate) http: HttpPool,
    #[cfg(feature = "admin")]
    pub(crate) outbound: Arc<crate::outbound::Live>,
    /// Hosts outside the mesh that were logged.
    passthrough: Mutex<HashSet<String>>,
    /// Of whom its record is, if that is a mistake.
    pub(crate) misnamed: ArcSwapOption<Identity>,
    pub(crate) told: Mutex<Told>,
    /// What was told of the wait for its record, while there is none.
    waits: Mutex<Option<record::Wait>>,
}

/// How many hosts outside the mesh are remembered as logged; beyond, they are no longer announced.
const PASSTHROUGH_HOSTS: usize = 1024;

/// Names a workload: namespace, name, service account.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WorkloadId {
    namespace: String,
    name: String,
    service_account: String,
}

impl WorkloadId {
    pub(crate) fn new(
        namespace: impl Into<String>,
        name: impl Into<String>,
        service_account: impl Into<String>,
    ) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            service_account: service_account.into(),
        }
    }

    pub(crate) fn identity(&self, trust_domain: &str) -> Result<Identity, Error> {
        Identity::new(trust_domain, &self.namespace, &self.service_account).map_err(|error| {
            Error::new(ErrorKind::Config).with_detail(format!(
                "workload({:?}, {:?}, {:?}): {error}",
                self.namespace, self.name, self.service_account
            ))
        })
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The workload's own name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

impl Mesh {
    /// Starts building a mesh.
    pub fn builder() -> Builder<Missing, Missing, Missing> {
        Builder::new()
    }

    /// The node that this workload is on.
    pub fn node(&self) -> &Node {
        &self.inner.node
    }

    /// Who the application is.
    pub fn workload(&self) -> &WorkloadId {
        &self.inner.id
    }

    /// The identity that its certificates prove.
    ///
    /// Of a host whose files have no trust domain (`Builder::bootstrap_dir`) it is in that of the certificate
    /// in use; before the first one, it is in `cluster.local`. Whoever issues its certificates may change it at any
    /// renewal, as where a mesh is renamed. From then on:
    ///
    /// - Only clients of the new trust domain are accepted. Members that have not renewed yet are refused, for up
    ///   to half of a certificate's life, unless [`trust_domain_aliases`](crate::Builder::trust_domain_aliases) has theirs.
    /// - What is opened is opened as who we are now. Inbound connections of clients of the old one, and outbound
    ///   tunnels that are open, go on.
    /// - So do HTTP requests that have a connection, or whose tunnel is open. Those that wait for somebody else's connection
    ///   then, and all later ones, go by one that was made as who we are now.
    ///
    /// A warning tells of a record in the mesh that has been of another trust domain than the certificate for five minutes.
    ///
    /// A trust domain that is said ([`trust_domain`](crate::Builder::trust_domain)) stays, and certificates of another one
    /// are refused.
    pub fn identity(&self) -> Identity {
        self.inner.identity()
    }

    /// The certificate that the next handshake will use; `None` before the first.
    pub fn certificate(&self) -> Option<Arc<Bundle>> {
        let state = self.inner.certificate.borrow();
        state.credentials.as_ref().map(Credentials::current)
    }

    /// The addresses on which tunnels are accepted; none before the first listener.
    pub async fn hbone_addrs(&self) -> Vec<std::net::SocketAddr> {
        let acceptor = self.inner.acceptor.lock().await;
        acceptor
            .as_ref()
            .map_or_else(Vec::new, |acceptor| acceptor.local_addrs().to_vec())
    }

    /// Waits until the first configuration and the first certificate are here.
    ///
    /// # Errors
    ///
    /// After the start time-out, with what is still pending ([`ErrorKind::NotReady`]). At once where waiting is of no
    /// use until somebody changes something: [`ErrorKind::Config`] for configuration that cannot be read,
    /// [`ErrorKind::Identity`] for certificates that cannot do. Trying again after that is right. [`ErrorKind::Draining`]
    /// once a [`shutdown`](Self::shutdown) has begun: then nothing is waited for.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only waits.
    pub async fn ready(&self) -> Result<(), Error> {
        self.inner.ready().await.map(|_| ())
    }

    /// Says how the application is. A control plane that this host registers with gives it traffic while
    /// it is healthy; the last report is repeated on every new stream. Sources without one ignore it.
    ///
    /// Where there is a readiness probe too (`Builder::readiness_probe`), it is healthy while
    /// the probe finds it so and it has not said that it is unhealthy.
    pub fn report_health(&self, health: AppHealth) {
        self.inner.node.inner.board.health(health);
    }

    /// The addresses of a name in the mesh: of a service its virtual addresses, of a workload that is
    /// found by name its own. What has none, as a headless service, gives none.
    ///
    /// They are for what wants an address; [`connect`](Self::connect) takes the name itself.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnknownHost`] if the mesh does not know the name, and as [`ready`](Self::ready).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only waits.
    pub async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, Error> {
        self.inner.addresses_of(name).await
    }

    /// What is still waited for.
    pub fn readiness(&self) -> Readiness {
        self.inner.node.readiness()
    }
}

impl MeshInner {
    pub(crate) fn new(
        node: Node,
        id: WorkloadId,
        identity: Identity,
        (certificate, wanted): (Certificate, Arc<()>),
    ) -> Arc<Self> {
        let tasks = Tasks::new(node.inner.work.runtime().clone());
        let settings = &node.inner.settings;
        let limit = settings.max_connections;
        let places = Places::new(
            limit,
            node.inner.settings.plaintext_limit(),
            &node.inner.sockets,
        );
        #[cfg(feature = "http")]
        let http = HttpPool::new(
            settings.idle_connections_per_endpoint,
            settings.max_idle_connections,
            settings.http_idle_timeout,
        );
        Arc::new(Self {
            node,
            id,
            asked: identity,
            proven: OnceLock::new(),
            certificate,
            spoken_for: OnceLock::new(),
            enforcement: Enforcement::new(),
            missing: watch::Sender::new(Missings::no_record()),
            live: Live::new(limit),
            ports: Mutex::default(),
            acceptor: tokio::sync::Mutex::new(None),
            notice: Arc::default(),
            places,
            leaving: Mutex::default(),
            _wanted: wanted,
            tasks,
            #[cfg(feature = "http")]
            http,
            #[cfg(feature = "admin")]
            outbound: Arc::default(),
            passthrough: Mutex::default(),
            misnamed: ArcSwapOption::empty(),
            told: Mutex::default(),
            waits: Mutex::default(),
        })
    }

    pub(crate) fn settings(&self) -> &crate::settings::Settings {
        &self.node.inner.settings
    }

    /// The identity that its certificates prove. Of another trust domain than asked for only where nobody said which.
    pub(crate) fn identity(&self) -> Identity {
        self.proven().unwrap_or_else(|| self.asked.clone())
    }

    /// As [`identity`](Self::identity), of who has a certificate.
    pub(crate) fn proven(&self) -> Option<Identity> {
        self.held().map(Credentials::identity)
    }

    /// Whether [`identity`](Self::identity) is this one.
    #[cfg(feature = "http")]
    pub(crate) fn is(&self, identity: &Identity) -> bool {
        self.held()
            .map_or(self.asked == *identity, |own| own.proves(identity))
    }

    fn held(&self) -> Option<&Credentials> {
        // They are exchanged in place.
        match self.proven.get() {
            None => self
                .current()
                .map(|first| self.proven.get_or_init(|| first)),
            proven => proven,
        }
    }

    /// The workload's own record in `snapshot`.
    pub(crate) fn record<'a>(&self, snapshot: &'a Snapshot) -> Option<&'a Arc<WorkloadRecord>> {
        snapshot.workload_named(&self.id.namespace, &self.id.name)
    }

    /// Called by the configuration's writer after each change, before it is announced.
    pub(crate) fn configuration_changed(&self, snapshot: &Snapshot) {
        let record = self.record(snapshot);
        self.expected_changed(record.and_then(|record| record.identity()));
        let update = |enforcement: &Enforcement| enforcement.update(snapshot, record);
        self.live.registry.enforce(&self.enforcement, update);
        let Some(record) = record else {
            // Live connections stay on the old list; new ones wait until there is a record again.
            self.missing.send_replace(Missings::no_record());
            return;
        };
        // Should it go and be missed again, that is told again.
        *lock(&self.waits) = None;
        let missing = Missings::of(snapshot, record);
        self.missing.send_if_modified(|known| {
            let changed = *known != missing;
            *known = missing;
            changed
        });
    }

    /// Policies that the workload lists and that are not here yet.
    #[cfg(feature = "admin")]
    pub(crate) fn missing_policies(&self) -> Vec<String> {
        self.missing.borrow().on(None).to_vec()
    }

    /// Those that connections to a port wait for.
    #[cfg(feature = "admin")]
    pub(crate) fn missing_policies_on(&self, port: u16) -> Vec<String> {
        self.missing.borrow().on(Some(port)).to_vec()
    }

    #[cfg(feature = "admin")]
    pub(crate) fn has_certificate(&self) -> bool {
        self.certificate.borrow().credentials.is_some()
    }

    /// Waits, at most as long as the settings say, until the policies of a port are known; of a port
    /// that nobody can tell, all of the workload's. `Err` names what is missing: the connection must be
    /// refused. The future holds no handle.
    pub(crate) fn policies_known(
        &self,
        port: Option<u16>,
    ) -> impl Future<Output = Result<(), String>> + Send + use<> {
        let mut missing = self.missing.subscribe();
        let wait = self.settings().policy_wait;
        async move {
            let known = |missing: &Missings| missing.on(port).is_empty();
            if known(&missing.borrow()) {
                return Ok(());
            }
            let waits = async { missing.wait_for(known).await.is_ok() };
            match timeout(wait, waits).await {
                Ok(true) => Ok(()),
                Ok(false) => Err("the workload is gone".to_owned()),
                Err(_) => Err(missing.borrow().on(port).join(", ")),
            }
        }
    }

    /// The certificate for the next handshake.
    ///
    /// # Errors
    ///
    /// There is none, or it has expired.
    pub(crate) fn credentials(&self) -> Result<Credentials, Error> {
        match self.current() {
            Some(credentials) => self.valid(credentials),
            None => Err(Error::new(ErrorKind::NotReady).with_detail("no certificate yet")),
        }
    }

    fn current(&self) -> Option<Credentials> {
        self.certificate.borrow().credentials.clone()
    }

    fn usable(
        &self,
        spoken_for: &Result<(), String>,
        credentials: Credentials,
    ) -> Result<Credentials, Error> {
        match spoken_for {
            Ok(()) => self.valid(credentials),
            Err(why) => Err(Error::new(ErrorKind::Config).with_detail(why.clone())),
        }
    }

    /// Peers would refuse it, but they should not have to.
    fn valid(&self, credentials: Credentials) -> Result<Credentials, Error> {
        let now = self.settings().wall_clock.now();
        if !has_expired(credentials.current().not_after(), now) {
            return Ok(credentials);
        }
        let error = self.certificate.borrow().error.clone();
        let why = error.as_deref().unwrap_or("it was not renewed");
        Err(Error::new(ErrorKind::Identity).with_detail(format!(
            "the certificate of {} has expired: {why}",
            self.identity()
        )))
    }

    /// Waits for the first configuration and certificate.
    pub(crate) async fn ready(&self) -> Result<Credentials, Error> {
        // Once both are here neither goes away again.
        if let Some(spoken_for) = self.spoken_for.get()
            && let Some(credentials) = self.current()
        {
            return self.usable(spoken_for, credentials);
        }
        self.unless_draining(self.becomes_ready()).await
    }

    /// Waits for what only a start needs: once a drain has begun there will be none.
    pub(crate) async fn unless_draining<T>(
        &self,
        waits: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            biased;
            outcome = waits => outcome,
            () = drain_begins(self) => Err(self.not_started()),
        }
    }

    /// The shutdown has begun before something could begin.
    pub(crate) fn not_started(&self) -> Error {
        let readiness = self.node.readiness();
        Error::new(ErrorKind::Draining)
            .with_detail(format!("the shutdown has begun; the mesh is {readiness}"))
    }

    async fn becomes_ready(&self) -> Result<Credentials, Error> {
        let deadline = deadline(self.settings().start_timeout);
        let mut gate = self.node.inner.gate.subscribe();
        let mut certificate = self.certificate.clone();
        let configured = async {
            let known = |state: &Readiness| state.configured() || state.start_failure().is_some();
            match gate
                .wait_for(known)
                .await
                .as_deref()
                .map(Readiness::start_failure)
            {
                Ok(Some(why)) => Err(Error::new(ErrorKind::Config).with_detail(why.to_owned())),
                _ => Ok(()),
            }
        };
        let certified = async {
            let known =
                |state: &CertificateState| state.credentials.is_some() || state.permanent.is_some();
            let state = certificate.wait_for(known).await;
            match state.as_deref() {
                Ok(CertificateState {
                    credentials: Some(credentials),
                    ..
                }) => Ok(credentials.clone()),
                Ok(CertificateState {
                    permanent: Some(error),
                    ..
                }) => Err(Error::new(ErrorKind::Identity)
                    .with_detail(certificate_name(&self.asked))
                    .with_source(error.clone())),
                _ => {
                    Err(Error::new(ErrorKind::NotReady)
                        .with_detail(self.node.readiness().to_string()))
                }
            }
        };
        // Neither waits for the other: the first that is certain to fail is told.
        let waits = async { tokio::try_join!(configured, certified) };
        match timeout_at(deadline, waits).await {
            Ok(known) => {
                let (_, credentials) = known?;
                // Nothing is configured before the source has said for whom it speaks.
                let board = &self.node.inner.board;
                let spoken_for =
                    (self.spoken_for).get_or_init(|| board.refusal(&self.id).map_or(Ok(()), Err));
                self.usable(spoken_for, credentials)
            }
            Err(_) => {
                Err(Error::new(ErrorKind::NotReady).with_detail(self.node.readiness().to_string()))
            }
        }
    }

    /// Waits for the first configuration and certificate, however long. Holds no handle.
    #[cfg(feature = "istiod")]
    pub(crate) fn started(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut gate = self.node.inner.gate.subscribe();
        let mut certificate = self.certificate.clone();
        async move {
            let _ = gate.wait_for(Readiness::configured).await;
            let _ = certificate
                .wait_for(|state| state.credentials.is_some())
                .await;
        }
    }

    /// A probe has a new verdict.
    #[cfg(feature = "istiod")]
    pub(crate) fn probed(&self, health: AppHealth) {
        self.node.inner.board.probed(health);
    }

    /// The port that tunnels come to.
    pub(crate) fn hbone_port(&self, snapshot: &Snapshot) -> u16 {
        let record = self.record(snapshot);
        let configured = self.settings().hbone_port;
        configured
            .or_else(|| record.map(|record| record.hbone_port()))
            .unwrap_or(15008)
    }

    /// Whether this is the first connection to a host outside the mesh.
    pub(crate) fn passthrough_is_new(&self, host: &str) -> bool {
        let mut hosts = lock(&self.passthrough);
        hosts.len() < PASSTHROUGH_HOSTS && !hosts.contains(host) && hosts.insert(host.to_owned())
    }

    pub(crate) fn leaving(&self) -> MutexGuard<'_, HashMap<u16, watch::Receiver<()>>> {
        lock(&self.leaving)
    }

    /// Runs a task that serves until the workload ends; its panic turns readiness off.
    pub(crate) fn supervise(
        &self,
        what: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let node = Arc::downgrade(&self.node.inner);
        let task = async move {
            task.await;
            Ok(())
        };
        self.tasks.spawn(supervised(node, what, task));
    }

    /// Waits until a dropped listener's sockets on this port are closed.
    pub(crate) async fn left(&self, port: u16) {
        // It stays there while it is open: who waits may go, and the next one has to wait as well.
        let leaving = self.leaving().get(&port).cloned();
        if let Some(mut leaving) = leaving {
            // It says nothing; it ends with its last sender.
            while leaving.changed().await.is_ok() {}
            self.forget_left();
        }
    }

    /// Of what a dropped listener had, only sockets that are still open are of interest.
    pub(crate) fn forget_left(&self) {
        self.leaving()
            .retain(|_, closed| closed.has_changed().is_ok());
    }

    pub(crate) fn ports(&self) -> MutexGuard<'_, HashMap<u16, PortListener>> {
        lock(&self.ports)
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh")
            .field("workload", &self.inner.id)
            .field("identity", &self.inner.identity())
            .field("readiness", &self.readiness())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests;
