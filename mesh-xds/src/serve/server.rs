//! The server: what it serves, to whom.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_authz::Identity;
use tokio::sync::watch;
use tokio::time::Instant;

use super::auth::Authenticator;
#[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
use super::ca::Ca;
use super::registrations::Registrations;
use super::registry::{Host, Refused, Registry};
use super::rejections::{self, Line, Rejection, Rejections};
use super::reports::{Report, Reports};
use super::service::Service;
use super::status::{ClientStatus, Withheld};
use super::store::{Kind, Store};
use crate::model::{Batch, WorkloadGroup};

/// A control plane's state: the model that it serves, and its clients. Cheap to clone.
///
/// # Examples
///
/// ```
/// use mesh_xds::model::{Batch, Workload};
/// use mesh_xds::serve::{Authenticating, Authenticator, Credentials, Server, Unauthenticated};
///
/// struct Nobody;
/// impl Authenticator for Nobody {
///     fn authenticate<'a>(&'a self, _: &'a Credentials) -> Authenticating<'a> {
///         Box::pin(async { Err(Unauthenticated::new("nobody may")) })
///     }
/// }
///
/// let server = Server::builder(Nobody).build();
/// let workload = Workload::new("Kubernetes//Pod/default/a", "default", "a");
/// server.apply(Batch::new(vec![workload.into()], Vec::new()));
/// assert_eq!(server.resources(), 1);
/// let _mount_me = server.service();
/// ```
#[derive(Clone)]
pub struct Server {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    /// Taken last, where the registry is taken too.
    store: Mutex<Store>,
    changes: watch::Sender<u64>,
    clients: Mutex<Clients>,
    registry: Mutex<Registry>,
    registry_changes: watch::Sender<()>,
    rejections: Mutex<Rejections>,
    pub(super) authenticator: Box<dyn Authenticator>,
    #[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
    pub(super) ca: Option<Ca>,
    pub(super) limits: Limits,
}

#[derive(Default)]
struct Clients {
    next: u64,
    by_id: BTreeMap<u64, ClientStatus>,
    /// How many of them are of an identity.
    of_identity: HashMap<Identity, usize>,
}

impl Clients {
    fn remove(&mut self, id: u64) {
        let Some(status) = self.by_id.remove(&id) else {
            return;
        };
        if let Some(count) = self.of_identity.get_mut(&status.identity) {
            *count -= 1;
            if *count == 0 {
                self.of_identity.remove(&status.identity);
            }
        }
    }
}

/// Why a stream is not opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Full {
    Of(usize),
    OfIdentity(usize, Identity),
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Of(most) => write!(f, "more than {most} streams"),
            Self::OfIdentity(most, identity) => {
                write!(f, "more than {most} streams of {identity}")
            }
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) clients: usize,
    pub(super) clients_of_identity: usize,
    pub(super) names: usize,
    pub(super) names_size: usize,
    pub(super) request: usize,
    pub(super) hosts: usize,
    pub(super) hosts_of_identity: usize,
    pub(super) grace: Duration,
    pub(super) host_return: Duration,
    pub(super) health_interval: Duration,
}

impl Server {
    /// Starts to make a server whose callers `authenticator` judges. It serves nothing yet.
    pub fn builder(authenticator: impl Authenticator) -> ServerBuilder {
        ServerBuilder {
            authenticator: Box::new(authenticator),
            #[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
            ca: None,
            limits: Limits {
                clients: 10_000,
                clients_of_identity: 5_000,
                names: 100_000,
                names_size: 4 << 20,
                request: 4 << 20,
                hosts: 10_000,
                hosts_of_identity: 1_000,
                grace: Duration::from_secs(10),
                host_return: Duration::from_secs(30),
                health_interval: Duration::from_secs(1),
            },
        }
    }

    /// Changes what is served. The batch is answered before this returns; clients are sent what concerns them.
    ///
    /// Before the first batch nobody is answered: see [`service`](Self::service). Where there is nothing to serve,
    /// an empty batch says so.
    ///
    /// Batches are what the file source yields, or any other. Of their resources workloads, services and
    /// policies are served. The others are accepted, and nobody is sent them.
    pub fn apply(&self, batch: Batch) {
        let store = &self.shared.store;
        let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
        let (reply, verdicts) = store.apply(batch);
        let revision = store.revision();
        drop(store);
        self.shared.changes.send_replace(revision);
        reply.send(verdicts);
    }

    /// How many resources there are to serve.
    pub fn resources(&self) -> usize {
        self.shared
            .read(|store| store.table(Kind::Address).len() + store.table(Kind::Authorization).len())
    }

    /// Sets the groups whose hosts may register, all of them; none at first. A host is registered if it has
    /// proved to be of the group's namespace and service account, and no other workload or service has its
    /// address. The entries of a group that is no more go with it.
    pub fn set_workload_groups(&self, groups: Vec<WorkloadGroup>) {
        self.shared
            .change_store(|store| store.set_groups(groups.iter().map(WorkloadGroup::name)));
        self.shared.change_registry(|registry| {
            let occupant = |host: &Host| self.shared.occupant(host);
            registry.set_groups(groups, Instant::now(), occupant);
        });
    }

    /// The entries of hosts that register.
    pub fn registrations(&self) -> Registrations {
        Registrations::new(Arc::clone(&self.shared))
    }

    /// The policies that were applied and that nobody is sent, by name.
    pub fn withheld(&self) -> Vec<Withheld> {
        self.shared
            .read(|store| store.withheld().cloned().collect())
    }

    /// The clients that have a stream, in the order in which they came.
    pub fn clients(&self) -> Vec<ClientStatus> {
        self.shared.clients().by_id.values().cloned().collect()
    }

    /// The callers that were turned away, the last 100, of whom the last one is at the end.
    pub fn rejections(&self) -> Vec<Rejection> {
        self.shared.rejections().list().to_vec()
    }

    /// Notes a caller that was turned away before it came here: for whoever accepts connections. Logged as others
    /// are, with a reason of up to 512 characters.
    pub fn note_rejection(&self, from: IpAddr, reason: &str) {
        self.shared.reject(Some(from), None, reason);
    }

    /// What answers requests: discovery, and certificates if there is a [`Ca`]. Mount it on any HTTP/2 server.
    ///
    /// It may be mounted before there is something to serve: until the first [`apply`](Self::apply) streams open and
    /// are sent nothing, so that clients which come back keep what they have. Where clients have another server
    /// to go to, mount it after.
    pub fn service(&self) -> Service {
        Service::new(Arc::clone(&self.shared))
    }
}

impl Shared {
    pub(super) fn read<T>(&self, read: impl FnOnce(&Store) -> T) -> T {
        read(&self.store.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn change_store(&self, change: impl FnOnce(&mut Store)) {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut store);
        let revision = store.revision();
        drop(store);
        self.changes.send_replace(revision);
    }

    /// Hosts that have not come back by now are gone.
    pub(super) fn settle(&self) {
        let over = self.registry(|registry| !registry.is_waiting());
        if over && self.read(Store::is_waiting) {
            self.change_store(Store::settle);
        }
    }

    /// Who else has the address of a host.
    fn occupant(&self, host: &Host) -> Option<String> {
        let entry = host.entry_name();
        self.read(|store| store.occupant(host.address, &host.network, &entry))
    }

    pub(super) fn registry<T>(&self, with: impl FnOnce(&mut Registry) -> T) -> T {
        with(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change_registry<T>(&self, with: impl FnOnce(&mut Registry) -> T) -> T {
        let result = self.registry(with);
        self.registry_changes.send_replace(());
        result
    }

    pub(super) fn registry_changes(&self) -> watch::Receiver<()> {
        self.registry_changes.subscribe()
    }

    fn rejections(&self) -> MutexGuard<'_, Rejections> {
        self.rejections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the operator of a caller that is turned away.
    pub(super) fn reject(&self, from: Option<IpAddr>, identity: Option<&Identity>, reason: &str) {
        let reason = rejections::shortened(reason);
        let line = self
            .rejections()
            .note(from, identity, reason, Instant::now());
        let (Line::This(times) | Line::Last(times)) = line else {
            return;
        };
        let from = from.map(tracing::field::display);
        let identity = identity.map(tracing::field::display);
        tracing::warn!(from, identity, reason, times, "a caller is turned away");
        if let Line::Last(_) = line {
            tracing::warn!("more are turned away: for ten seconds they are counted and not logged");
        }
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a client, if there are not too many.
    pub(super) fn enter(self: &Arc<Self>, mut status: ClientStatus) -> Result<Registered, Full> {
        let mut clients = self.clients();
        let (most, own) = (self.limits.clients, self.limits.clients_of_identity);
        if clients.by_id.len() >= most {
            return Err(Full::Of(most));
        }
        let count = clients.of_identity.get(&status.identity).copied();
        let count = count.unwrap_or_default();
        if count >= own {
            return Err(Full::OfIdentity(own, status.identity));
        }
        clients
            .of_identity
            .insert(status.identity.clone(), count + 1);
        clients.next += 1;
        status.id = clients.next;
        clients.by_id.insert(status.id, status.clone());
        Ok(Registered {
            shared: Arc::clone(self),
            status,
            is_host: false,
            reports: Reports::new(self.limits.health_interval),
        })
    }
}

/// A client on the list, until this is dropped.
pub(super) struct Registered {
    pub(super) shared: Arc<Shared>,
    pub(super) status: ClientStatus,
    is_host: bool,
    reports: Reports,
}

impl Registered {
    /// Registers the host that the client is.
    pub(super) fn register(&mut self, host: Host) -> Result<(), Refused> {
        let (entry, address) = (host.entry_name(), host.address);
        let id = self.status.id;
        // Nobody else registers between the look and the entry.
        self.shared.change_registry(|registry| {
            if let Some(by) = self.shared.occupant(&host) {
                return Err(Refused::Taken { address, by });
            }
            registry.connect(id, host)
        })?;
        self.is_host = true;
        tracing::info!(%entry, "a host is registered");
        Ok(())
    }

    /// Takes a report of how its application is. The entry has it once it is [due](Self::report_due).
    pub(super) fn report(&mut self, health: Report) {
        if self.is_host {
            self.reports.take(health.clone());
            self.report_due();
        }
        self.status.health = Some(health);
    }

    /// When a report that waits is due.
    pub(super) fn next_report(&self) -> Option<Instant> {
        self.reports.poll_timeout(Instant::now())
    }

    /// Lets the report count that is due, if one is.
    pub(super) fn report_due(&mut self) {
        let id = self.status.id;
        if let Some(health) = self.reports.due(Instant::now()) {
            self.shared
                .change_registry(|registry| registry.health(id, health));
        }
    }

    /// Shows the status as it is now.
    pub(super) fn show(&self) {
        let mut clients = self.shared.clients();
        clients.by_id.insert(self.status.id, self.status.clone());
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if self.is_host {
            let id = self.status.id;
            self.shared
                .change_registry(|registry| registry.disconnect(id, Instant::now()));
        }
        self.shared.clients().remove(self.status.id);
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("resources", &self.resources())
            .field("limits", &self.shared.limits)
            .finish_non_exhaustive()
    }
}

/// Makes a [`Server`].
#[must_use]
pub struct ServerBuilder {
    authenticator: Box<dyn Authenticator>,
    #[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
    ca: Option<Ca>,
    limits: Limits,
}

impl ServerBuilder {
    /// Sets who signs certificates. Default: nobody; requests for certificates are answered UNIMPLEMENTED.
    #[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
    pub fn ca(mut self, ca: Ca) -> Self {
        self.ca = Some(ca);
        self
    }

    /// Sets how many streams there may be. Default: 10 000; others are answered RESOURCE_EXHAUSTED.
    pub fn max_clients(mut self, clients: usize) -> Self {
        self.limits.clients = clients;
        self
    }

    /// Sets how many streams there may be of one identity, so that a stolen one cannot keep out all others.
    /// Default: 5 000, half of [`max_clients`](Self::max_clients), and the nodes of the largest cluster that
    /// Kubernetes supports, whose proxies are one identity; others are answered RESOURCE_EXHAUSTED.
    pub fn max_clients_per_identity(mut self, clients: usize) -> Self {
        self.limits.clients_of_identity = clients;
        self
    }

    /// Sets how many names of a type a client may ask for. Default: 100 000; more ends the stream with
    /// RESOURCE_EXHAUSTED.
    pub fn max_names(mut self, names: usize) -> Self {
        self.limits.names = names;
        self
    }

    /// Sets how many bytes the names that a stream asks for may have together. Default: 4 MiB, as much as a
    /// request may have; more ends the stream with RESOURCE_EXHAUSTED.
    pub fn max_names_size(mut self, bytes: usize) -> Self {
        self.limits.names_size = bytes;
        self
    }

    /// Sets how many hosts may be registered. Default: 10 000; others are answered RESOURCE_EXHAUSTED.
    pub fn max_hosts(mut self, hosts: usize) -> Self {
        self.limits.hosts = hosts;
        self
    }

    /// Sets how many hosts of one identity may be registered, so that a stolen one cannot keep out all others.
    /// Default: 1 000, a tenth of [`max_hosts`](Self::max_hosts); others are answered RESOURCE_EXHAUSTED.
    pub fn max_hosts_per_identity(mut self, hosts: usize) -> Self {
        self.limits.hosts_of_identity = hosts;
        self
    }

    /// Sets how long the entry of a host stays that has no stream any more. Default: 10 s, as istiod has it; what
    /// no clock can say is for ever.
    pub fn registration_grace(mut self, grace: Duration) -> Self {
        self.limits.grace = grace;
        self
    }

    /// Sets for how long a new server leaves clients the entries of hosts that they have from a server before
    /// it: entries are in memory, and the hosts are still to come back. Default: 30 s, twice the longest wait
    /// of a client between its attempts.
    pub fn host_return(mut self, time: Duration) -> Self {
        self.limits.host_return = time;
        self
    }

    /// Sets how long after a report of a host's health the next one of its stream counts, which costs whoever
    /// makes workloads of entries a change; of those that come sooner, the last. Default: 1 s, the shortest period
    /// of a readiness probe.
    pub fn health_interval(mut self, interval: Duration) -> Self {
        self.limits.health_interval = interval;
        self
    }

    /// Sets how large a request may be, in bytes. Default: 4 MiB, as istiod has it; a larger one ends the
    /// stream with RESOURCE_EXHAUSTED, as there.
    pub fn max_request_size(mut self, bytes: usize) -> Self {
        self.limits.request = bytes;
        self
    }

    /// Makes the server.
    pub fn build(self) -> Server {
        Server {
            shared: Arc::new(Shared {
                store: Mutex::default(),
                changes: watch::Sender::new(0),
                clients: Mutex::default(),
                registry: Mutex::new(Registry::new(
                    self.limits.grace,
                    self.limits.host_return,
                    self.limits.hosts,
                    self.limits.hosts_of_identity,
                )),
                registry_changes: watch::Sender::new(()),
                rejections: Mutex::default(),
                authenticator: self.authenticator,
                #[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
                ca: self.ca,
                limits: self.limits,
            }),
        }
    }
}

impl fmt::Debug for ServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerBuilder")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
