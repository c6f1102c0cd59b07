//! What those who watch certificates share with the one task that fetches them.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::stream;
use mesh_authz::Identity;
use mesh_hbone::tls::Bundle;
use rustls_pki_types::CertificateDer;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::schedule::Failure;
use super::{keep, work};
use crate::ControlPlane;
use crate::identity::renew::{Backoff, Now};
use crate::identity::{CertificateStream, Error, ErrorKind, TrustDomain};
use crate::sync::lock;

#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) control_plane: ControlPlane,
    pub(super) ttl: Duration,
    pub(super) trust_domain: TrustDomain,
    pub(super) impersonate: bool,
    pub(super) crls: Option<Arc<Path>>,
    pub(super) state_dir: Option<Arc<Path>>,
    pub(super) by_certificate: bool,
    pub(super) fetches: usize,
    pub(super) identities: usize,
    pub(super) backoff: Backoff,
    pub(super) fetch_timeout: Duration,
    pub(super) poll: Duration,
    pub(super) seed: Option<u64>,
}

impl Settings {
    pub(super) fn new(control_plane: ControlPlane) -> Self {
        Self {
            control_plane,
            ttl: Duration::from_secs(24 * 60 * 60),
            trust_domain: TrustDomain::default(),
            impersonate: false,
            crls: None,
            state_dir: None,
            by_certificate: true,
            fetches: 8,
            identities: 1000,
            backoff: Backoff {
                base: Duration::from_secs(1),
                cap: Duration::from_secs(60),
            },
            fetch_timeout: Duration::from_secs(10),
            poll: Duration::from_secs(1),
            seed: None,
        }
    }

    pub(super) fn now(&self) -> Now {
        Now {
            wall: self.control_plane.now(),
            monotonic: Instant::now(),
        }
    }
}

/// What one fetch is about.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) identity: Identity,
    /// The certificate that there is, if it has not expired.
    pub(super) current: Option<Bundle>,
    /// The roots that came with certificates so far.
    pub(super) known: Vec<CertificateDer<'static>>,
}

/// What a fetch brought.
pub(super) struct Fetched {
    pub(super) bundle: Bundle,
    /// What is to be kept of it, once it was found to be good, if anything is.
    pub(super) content: Option<keep::Content>,
}

/// Why a fetch brought nothing, and what that says of the next.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: Error,
    pub(super) failure: Failure,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        let failure = Failure::Passing;
        Self { error, failure }
    }
}

pub(super) type Fetching = Pin<Box<dyn Future<Output = Result<Fetched, Failed>> + Send>>;

/// Shared by the task and everybody who watches.
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) fetch: Box<dyn Fn(Ask) -> Fetching + Send + Sync>,
    state: Mutex<State>,
    /// Wakes the task: somebody came or went.
    pub(super) wake: Notify,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) slots: HashMap<Identity, Slot>,
    /// What the task has to look at. At most one entry for each identity that came or went.
    pub(super) touched: HashSet<Identity>,
    /// Nobody can watch any more.
    pub(super) closed: bool,
    pub(super) running: bool,
    /// The task has panicked: it would again.
    pub(super) broken: bool,
    next: u64,
}

/// One identity that somebody wants.
pub(super) struct Slot {
    pub(super) number: u64,
    pub(super) latest: watch::Sender<Latest>,
    pub(super) watchers: usize,
    pinned: bool,
}

/// What there is to tell. Counters tell what is new.
#[derive(Debug, Clone, Default)]
pub(super) struct Latest {
    bundle: Option<Bundle>,
    bundles: u64,
    error: Option<Error>,
    errors: u64,
}

impl State {
    /// Lets go of what the task knew, which is gone. What is pinned is for the next task, which the next
    /// who comes starts; those who watch find that theirs has ended.
    pub(super) fn begin_anew(&mut self) {
        let Self {
            slots,
            touched,
            next,
            ..
        } = self;
        touched.clear();
        slots.retain(|identity, slot| {
            if slot.pinned {
                *next += 1;
                *slot = Slot::new(*next);
                slot.pinned = true;
                touched.insert(identity.clone());
            }
            slot.pinned
        });
    }
}

impl Slot {
    fn new(number: u64) -> Self {
        Self {
            number,
            latest: watch::Sender::default(),
            watchers: 0,
            pinned: false,
        }
    }
}

impl Latest {
    pub(super) fn tell(&mut self, bundle: Bundle) {
        self.bundle = Some(bundle);
        self.bundles += 1;
        // It is over: who comes later need not hear of it.
        self.error = None;
    }

    pub(super) fn complain(&mut self, error: Error) {
        self.error = Some(error);
        self.errors += 1;
    }

    pub(super) fn expire(&mut self, error: Error) {
        self.bundle = None;
        self.complain(error);
    }
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// What keeps the task alive: everybody who watches, or may.
pub(super) struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    pub(super) fn new(
        settings: Settings,
        fetch: impl Fn(Ask) -> Fetching + Send + Sync + 'static,
    ) -> Arc<Self> {
        let shared = Shared {
            settings,
            fetch: Box::new(fetch),
            state: Mutex::default(),
            wake: Notify::new(),
        };
        Arc::new(Self {
            shared: Arc::new(shared),
        })
    }

    pub(super) fn watch(self: &Arc<Self>, identity: Identity) -> CertificateStream {
        let watching = Watching {
            handle: Arc::clone(self),
            identity,
            joined: None,
            bundles: 0,
            errors: 0,
            over: false,
        };
        Box::pin(stream::unfold(watching, async |mut watching| {
            let item = watching.next().await?;
            Some((item, watching))
        }))
    }

    pub(super) fn pin(&self, identity: &Identity) {
        let mut state = self.shared.state();
        if let Ok(slot) = self.slot(&mut state, identity) {
            slot.pinned = true;
            self.touch(state, identity);
        } else {
            tracing::warn!(target: "mesh::identity", %identity, "not prefetched: there are as many identities as permitted");
        }
    }

    pub(super) fn unpin(&self, identity: &Identity) {
        let mut state = self.shared.state();
        if let Some(slot) = state.slots.get_mut(identity) {
            slot.pinned = false;
            self.sweep(state, identity);
        }
    }

    fn join(&self, identity: &Identity) -> Result<(u64, watch::Receiver<Latest>), Error> {
        let mut state = self.shared.state();
        let slot = self.slot(&mut state, identity)?;
        slot.watchers += 1;
        let joined = (slot.number, slot.latest.subscribe());
        self.touch(state, identity);
        Ok(joined)
    }

    fn leave(&self, identity: &Identity, number: u64) {
        let mut state = self.shared.state();
        if let Some(slot) = state
            .slots
            .get_mut(identity)
            .filter(|slot| slot.number == number)
        {
            slot.watchers -= 1;
            self.sweep(state, identity);
        }
    }

    fn slot<'a>(&self, state: &'a mut State, identity: &Identity) -> Result<&'a mut Slot, Error> {
        let limit = self.shared.settings.identities;
        if state.slots.len() >= limit && !state.slots.contains_key(identity) {
            let detail = format!("{identity}: expected at most {limit}");
            return Err(Error::new(ErrorKind::Full, detail));
        }
        let next = &mut state.next;
        Ok(state.slots.entry(identity.clone()).or_insert_with(|| {
            *next += 1;
            Slot::new(*next)
        }))
    }

    /// Lets go of what nobody wants.
    fn sweep(&self, mut state: MutexGuard<'_, State>, identity: &Identity) {
        let unwanted = |slot: &Slot| slot.watchers == 0 && !slot.pinned;
        if state.slots.get(identity).is_some_and(unwanted) {
            state.slots.remove(identity);
            self.touch(state, identity);
        }
    }

    /// Has the task look at it, and starts the task if need be and there is a runtime.
    fn touch(&self, mut state: MutexGuard<'_, State>, identity: &Identity) {
        state.touched.insert(identity.clone());
        if !state.running
            && !state.broken
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            state.running = true;
            runtime.spawn(work::run(Arc::clone(&self.shared)));
        }
        drop(state);
        self.shared.wake.notify_one();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.wake.notify_one();
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

/// One who watches.
struct Watching {
    handle: Arc<Handle>,
    identity: Identity,
    joined: Option<(u64, watch::Receiver<Latest>)>,
    /// How many have been told.
    bundles: u64,
    errors: u64,
    over: bool,
}

/// Whoever found no room asks again after so long.
const FULL: Duration = Duration::from_secs(10);

impl Watching {
    async fn next(&mut self) -> Option<Result<Bundle, Error>> {
        loop {
            if self.over || (self.joined.is_none() && self.handle.shared.state().broken) {
                return None;
            }
            let Some((_, latest)) = &mut self.joined else {
                match self.handle.join(&self.identity) {
                    Ok(joined) => self.joined = Some(joined),
                    Err(error) if self.errors == 0 => {
                        self.errors = 1;
                        return Some(Err(error));
                    }
                    Err(_) => tokio::time::sleep(FULL).await,
                }
                // Counters begin anew with each slot.
                if self.joined.is_some() {
                    (self.bundles, self.errors) = (0, 0);
                }
                continue;
            };
            let now = latest.borrow_and_update().clone();
            if now.bundles > self.bundles {
                self.bundles = now.bundles;
                // The task notices within ten seconds when the time of day jumps.
                let wall = self.handle.shared.settings.control_plane.now();
                if let Some(bundle) = now.bundle.filter(|bundle| bundle.not_after() > wall) {
                    // An error that comes with it was before it, or is still to be told.
                    if now.error.is_none() {
                        self.errors = now.errors;
                    }
                    return Some(Ok(bundle));
                }
            }
            if now.errors > self.errors {
                self.errors = now.errors;
                if let Some(error) = now.error {
                    self.over = error.is_final();
                    return Some(Err(error));
                }
            }
            if latest.changed().await.is_err() {
                // The task has ended, with the runtime that it ran on or by a panic.
                self.joined = None;
            }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some((number, _)) = self.joined.take() {
            self.handle.leave(&self.identity, number);
        }
    }
}
