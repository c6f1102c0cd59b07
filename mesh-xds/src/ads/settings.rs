//! What a session asks for, and its bounds.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use super::{Kept, Node};
use crate::error::{Error, ErrorKind};

/// The longest pause: the connection's pings are not answered meanwhile, nor for as long before it.
const MAX_PAUSE: Duration = Duration::from_millis(100);

/// Which resources of a type are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Interest {
    /// All that there are.
    All,
    /// Those whose names are wanted, with what the control plane sends along: a service comes with its
    /// workloads. Nothing is asked for before the first name is wanted.
    Named,
}

/// Who asks, for what, and within which bounds.
///
/// # Examples
///
/// ```
/// use mesh_xds::ads::{Interest, Node, Settings};
///
/// let settings = Settings::new(Node::new("ztunnel~10.0.0.1~a.ns~ns.svc.cluster.local"))
///     .with_type("type.googleapis.com/istio.workload.Address", Interest::All)
///     .with_type("type.googleapis.com/istio.security.Authorization", Interest::All);
/// # let _ = settings;
/// ```
#[derive(Debug, Clone)]
pub struct Settings {
    pub(super) node: Node,
    pub(super) types: Vec<(String, Interest)>,
    pub(super) backoff_first: Duration,
    pub(super) backoff_max: Duration,
    pub(super) seed: Option<u64>,
    pub(super) max_initial_versions: usize,
    pub(super) max_names: usize,
    pub(super) max_resources: usize,
    pub(super) max_resource_size: usize,
    pub(super) max_removed: usize,
    pub(super) drop_forgotten_after: Duration,
    pub(super) changes: bool,
    pub(super) restored: Option<Vec<Kept>>,
    pub(super) parts: bool,
    pub(super) pause: Duration,
}

/// A name longer than this is no name of a resource.
pub(super) const MAX_NAME: usize = 4096;

/// How many bytes a resource may have beside its value: a name, a version and aliases.
const MAX_BESIDE: usize = 64 * 1024;

impl Settings {
    /// The settings of `node`, which asks for nothing yet.
    pub fn new(node: Node) -> Self {
        Self {
            node,
            types: Vec::new(),
            backoff_first: Duration::from_millis(1500),
            backoff_max: Duration::from_secs(30),
            seed: None,
            max_initial_versions: 3_670_016,
            max_names: 10_000,
            max_resources: 2_000_000,
            max_resource_size: 1024 * 1024,
            max_removed: 2_000_000,
            drop_forgotten_after: Duration::from_secs(10),
            changes: false,
            restored: None,
            parts: false,
            pause: Duration::ZERO,
        }
    }

    /// Adds a type of resources, by its URL. Requests start in the order of the types.
    #[must_use]
    pub fn with_type(mut self, type_url: impl Into<String>, interest: Interest) -> Self {
        self.types.push((type_url.into(), interest));
        self
    }

    /// How long the first wait before another attempt may be, and any wait; 1.5 s and 30 s.
    ///
    /// Each wait is drawn anew: the first from nothing to `first`, each later one from `first` to what grows by
    /// three fifths up to `max`. After a stream that was answered and lost within `first` it is once or twice `first`.
    /// With 1.5 s a client makes at most two attempts in a second and three within eight (a host that has
    /// lost its stream is unregistered after ten), and of a thousand clients that lost one control plane no more than a
    /// tenth comes in any tenth of a second.
    ///
    /// A control plane that comes back after a long time is found within `max`: 30 s, and not the few that would do for one
    /// client, because a thousand clients try it sixty times a second then, and three hundred times with 5 s, just when
    /// it starts.
    #[must_use]
    pub fn with_backoff(mut self, first: Duration, max: Duration) -> Self {
        self.backoff_first = first;
        self.backoff_max = max;
        self
    }

    /// Seeds what spreads attempts, for tests. Unset is different for every client.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Up to which size the first request of a type on a new stream says which versions are here, in bytes;
    /// 3.5 MiB (3 670 016), because stock istiod refuses requests beyond 4 MiB.
    ///
    /// Beyond it nothing is said: everything is sent again, and what is not among it is dropped.
    #[must_use]
    pub fn with_max_initial_versions(mut self, bytes: usize) -> Self {
        self.max_initial_versions = bytes;
        self
    }

    /// How many names of a type may be wanted; 10 000, which fit a request to istiod.
    #[must_use]
    pub fn with_max_names(mut self, names: usize) -> Self {
        self.max_names = names;
        self
    }

    /// How many resources of a type are kept; 2 000 000. Those beyond are refused by name.
    #[must_use]
    pub fn with_max_resources(mut self, resources: usize) -> Self {
        self.max_resources = resources;
        self
    }

    /// How large a resource may be, in bytes; 1 MiB. A larger one is refused by name, and so is one that with its
    /// name, version and aliases has 64 KiB more.
    #[must_use]
    pub fn with_max_resource_size(mut self, bytes: usize) -> Self {
        self.max_resource_size = bytes;
        self
    }

    /// How many bytes a resource may have with all that is beside its value.
    pub(super) fn max_length(&self) -> usize {
        self.max_resource_size.saturating_add(MAX_BESIDE)
    }

    /// How many resources a response may remove; 2 000 000, as many as are kept. Each takes a few bytes of the
    /// response and some 60 in memory until it is applied. A response that removes more ends the stream with `TooLarge`, and changes nothing.
    #[must_use]
    pub fn with_max_removed(mut self, resources: usize) -> Self {
        self.max_removed = resources;
        self
    }

    /// How long after a name was forgotten what came along with it is dropped; 10 s.
    ///
    /// Nothing says what came along with a name, so it is found out by asking anew on another stream for
    /// the names that are left. Names that are forgotten within this time share one.
    #[must_use]
    pub fn with_drop_forgotten_after(mut self, wait: Duration) -> Self {
        self.drop_forgotten_after = wait;
        self
    }

    /// Tells of each resource that comes into effect or goes, as it came: [`Event::Changed`](super::Event::Changed).
    /// Off: each is copied for it.
    #[must_use]
    pub fn with_changes(mut self) -> Self {
        self.changes = true;
        self
    }

    /// Begins with what an earlier session was told. It is delivered before the first attempt to connect, type
    /// by type, and then comes [`Event::Restored`](super::Event::Restored); the control plane is then asked for what differs.
    #[must_use]
    pub fn with_restored(mut self, kept: Vec<Kept>) -> Self {
        self.restored = Some(kept);
        self
    }

    /// Hands what a large response brings over while it comes, some 256 resources at a time: [`Event::Part`](super::Event::Part).
    /// Off: all of it comes in one batch, which is as large as the response.
    #[must_use]
    pub fn with_parts(mut self) -> Self {
        self.parts = true;
        self
    }

    /// How long reading a response pauses after each 64 resources, some 0.3 ms of work, if there are resources of its
    /// type already; zero, no pause; up to 100 ms, since pings of the connection are not answered meanwhile.
    ///
    /// Without it a push of a large mesh keeps a core for as long as it lasts, and what the application has to do
    /// waits for one until the system takes it away, some 4 ms. With a pause of 1 ms a push of 100 000 resources lasts
    /// 4 s. What comes first of a type is read without.
    #[must_use]
    pub fn with_pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let invalid = |detail: String| Err(Error::new(ErrorKind::InvalidSettings, detail));
        if self.node.id.is_empty() {
            return invalid("a node needs an id".to_owned());
        }
        if self.types.is_empty() {
            return invalid("no type of resources is asked for".to_owned());
        }
        for (at, (url, _)) in self.types.iter().enumerate() {
            if url.is_empty() || self.types[..at].iter().any(|(other, _)| other == url) {
                return invalid(format!("type {url:?} is empty or there twice"));
            }
        }
        if self.backoff_first.is_zero() || self.backoff_max < self.backoff_first {
            return invalid("expected 0 < the first wait <= the longest".to_owned());
        }
        if self.pause > MAX_PAUSE {
            let pause = self.pause;
            return invalid(format!(
                "a pause of {pause:?}: expected at most {MAX_PAUSE:?}"
            ));
        }
        Ok(())
    }

    pub(super) fn seed_or_random(&self) -> u64 {
        self.seed
            .unwrap_or_else(|| RandomState::new().hash_one(&self.node.id))
    }
}
