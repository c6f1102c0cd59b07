//! The server: what it serves, to whom.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::auth::Authenticator;
#[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
use super::ca::Ca;
use super::service::Service;
use super::status::{ClientStatus, Withheld};
use super::store::{Kind, Store};
use crate::model::Batch;

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
    store: Mutex<Store>,
    changes: watch::Sender<u64>,
    clients: Mutex<Clients>,
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
            },
        }
    }

    /// Changes what is served. The batch is answered before this returns; clients are sent what concerns them.
    ///
    /// Batches are what the file source yields, or any other. Of their resources workloads, services and
    /// policies are served. The others are accepted, and nobody is sent them.
    pub fn apply(&self, batch: Batch) {
        let mut store = self
            .shared
            .store
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
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
        })
    }
}

/// A client on the list, until this is dropped.
pub(super) struct Registered {
    pub(super) shared: Arc<Shared>,
    pub(super) status: ClientStatus,
}

impl Registered {
    /// Shows the status as it is now.
    pub(super) fn show(&self) {
        let mut clients = self.shared.clients();
        clients.by_id.insert(self.status.id, self.status.clone());
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
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

    /// Sets how large a request may be, in bytes. Default: 4 MiB, as istiod has it; a larger one ends the
    /// stream with OUT_OF_RANGE.
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
