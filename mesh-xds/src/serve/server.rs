//! The server: what it serves, to whom.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::auth::Authenticator;
#[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
use super::ca::Ca;
use super::registrations::Registrations;
use super::registry::{Host, Refused, Registry};
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
    pub(super) authenticator: Box<dyn Authenticator>,
    #[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
    pub(super) ca: Option<Ca>,
    pub(super) limits: Limits,
}

#[derive(Default)]
struct Clients {
    next: u64,
    by_id: BTreeMap<u64, ClientStatus>,
}

#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) clients: usize,
    pub(super) names: usize,
    pub(super) names_size: usize,
    pub(super) request: usize,
    pub(super) hosts: usize,
    pub(super) hosts_of_identity: usize,
    pub(super) grace: Duration,
    pub(super) host_return: Duration,
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
                names: 100_000,
                names_size: 4 << 20,
                request: 4 << 20,
                hosts: 10_000,
                hosts_of_identity: 1_000,
                grace: Duration::from_secs(10),
                host_return: Duration::from_secs(30),
            },
        }
    }

    /// Changes what is served. The batch is answered before this returns; clients are sent what concerns them.
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

    /// What answers requests: discovery, and certificates if there is a [`Ca`]. Mount it on any HTTP/2 server.
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

    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a client; `None` if there are too many.
    pub(super) fn enter(self: &Arc<Self>, mut status: ClientStatus) -> Option<Registered> {
        let mut clients = self.clients();
        if clients.by_id.len() >= self.limits.clients {
            return None;
        }
        clients.next += 1;
        status.id = clients.next;
        clients.by_id.insert(status.id, status.clone());
        Some(Registered {
            shared: Arc::clone(self),
            status,
            is_host: false,
        })
    }
}

/// A client on the list, until this is dropped.
pub(super) struct Registered {
    pub(super) shared: Arc<Shared>,
    pub(super) status: ClientStatus,
    is_host: bool,
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

    /// Takes a report of how its application is.
    pub(super) fn report(&mut self, health: Result<(), String>) {
        if self.is_host {
            let (id, health) = (self.status.id, health.clone());
            self.shared
                .change_registry(|registry| registry.health(id, health));
        }
        self.status.health = Some(health);
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
        self.shared.clients().by_id.remove(&self.status.id);
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
