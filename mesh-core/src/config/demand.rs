//! What the mesh asks of its source of configuration.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use mesh_authz::Identity;
use tokio::sync::{Notify, watch};

use crate::WorkloadId;
use crate::sync::lock;

/// How many names may be wanted; as many as a session with a control plane takes.
const MAX_WANTED: usize = 10_000;

/// Something that the mesh asks of its source; a source may ignore what it does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Demand {
    /// The node has this workload, which has this identity.
    #[non_exhaustive]
    Workload {
        /// Which workload.
        id: WorkloadId,
        /// What its certificates prove.
        identity: Identity,
    },
    /// A service or workload is wanted: `<namespace>/<hostname>` or `<network>/<address>`. Only of sources
    /// that [take such wishes](super::ConfigLink::demands_by_name).
    Want(Arc<str>),
    /// It is wanted no more.
    Forget(Arc<str>),
    /// HTTP is served on this address and port: its inbound listener is wanted.
    Listener(SocketAddr),
    /// Nothing listens there any more.
    Unlisten(SocketAddr),
    /// How the application says it is.
    Health(AppHealth),
}

/// How the application says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AppHealth {
    /// It is to get traffic.
    Healthy,
    /// It is to get none, and why.
    Unhealthy(Arc<str>),
}

/// What the mesh demands, in order; made by [`ConfigLink::demands`](super::ConfigLink::demands).
pub struct Demands {
    board: Arc<Board>,
}

impl Demands {
    /// Waits for the next demand. What the mesh demanded before is told first.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no demand is lost.
    pub async fn next(&mut self) -> Demand {
        loop {
            let told = self.board.wake.notified();
            if let Some(demand) = self.board.state().queue.pop_front() {
                return demand;
            }
            told.await;
        }
    }
}

impl fmt::Debug for Demands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Demands")
    }
}

/// What became of something that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Nothing was heard yet.
    Waiting,
    /// The source says that there is none.
    Absent,
    /// The source does not ask for it, and why: nobody knows whether there is one.
    Refused(&'static str),
}

/// Why one more name is not wanted.
const NO_ROOM: &str = "as many names as permitted are asked for already";

/// What stands demanded, and what of it the source was not told yet.
#[derive(Debug)]
pub(crate) struct Board {
    state: Mutex<State>,
    wake: Notify,
    /// Told when the source has said that something is absent.
    answered: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether the source takes demands at all; until then they only stand here.
    taken: bool,
    by_name: bool,
    /// Whether the source speaks for the first workload alone.
    one_workload: bool,
    workloads: Vec<(WorkloadId, Identity)>,
    /// How often each is asked for, and what became of it.
    listeners: BTreeMap<SocketAddr, (usize, Asked)>,
    wanted: HashMap<Arc<str>, Asked>,
    /// What the application says of itself.
    said: Option<AppHealth>,
    /// What a probe found last, if there is a probe and it has found anything.
    probed: Option<Option<AppHealth>>,
    health: Option<AppHealth>,
    /// At most a few entries for each thing that is demanded.
    queue: VecDeque<Demand>,
}

impl State {
    /// The application is healthy where neither it nor a probe says otherwise, and one says so.
    fn health_changed(&mut self) {
        let health = match (&self.said, &self.probed) {
            (Some(said @ AppHealth::Unhealthy(_)), _) => Some(said.clone()),
            (_, Some(found)) => found.clone(),
            (said, None) => said.clone(),
        };
        let Some(health) = health.filter(|health| self.health.as_ref() != Some(health)) else {
            return;
        };
        self.health = Some(health.clone());
        let is_old = |demand: &Demand| matches!(demand, Demand::Health(_));
        self.queue.retain(|demand| !is_old(demand));
        self.tell(Demand::Health(health));
    }

    fn tell(&mut self, demand: Demand) {
        if self.taken {
            self.queue.push_back(demand);
        }
    }
}

impl Board {
    /// Held, the board serves nobody: for tests of what must not ask it.
    #[cfg(test)]
    pub(crate) fn held(&self) -> impl Sized + '_ {
        self.state()
    }

    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            wake: Notify::new(),
            answered: watch::Sender::new(0),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        // There is one reader at most; a permit waits for it.
        self.wake.notify_one();
    }

    /// From now on demands are told, those that stand first.
    pub(super) fn take(self: &Arc<Self>, by_name: bool) -> Demands {
        self.change(|state| {
            state.taken = true;
            state.by_name = by_name;
            let workloads = state.workloads.iter().cloned();
            let workloads = workloads.map(|(id, identity)| Demand::Workload { id, identity });
            let listeners = state.listeners.keys().copied().map(Demand::Listener);
            let wanted = state.wanted.keys().cloned().map(Demand::Want);
            let health = state.health.clone().map(Demand::Health);
            state.queue = workloads
                .chain(listeners)
                .chain(wanted)
                .chain(health)
                .collect();
        });
        Demands {
            board: Arc::clone(self),
        }
    }

    /// The source speaks for the first workload alone.
    #[cfg(feature = "istiod")]
    pub(super) fn speak_for_one(&self) {
        self.state().one_workload = true;
    }

    /// Why the source has nothing for this workload, if it has nothing.
    pub(crate) fn refusal(&self, id: &WorkloadId) -> Option<String> {
        let state = self.state();
        let (first, _) = state.workloads.first().filter(|_| state.one_workload)?;
        (first != id).then(|| {
            format!(
                "config::Xds speaks for {first} alone: build a mesh of its own for {id}, or make this the proxy of a host"
            )
        })
    }

    pub(crate) fn workload(&self, id: &WorkloadId, identity: &Identity) {
        self.change(|state| {
            state.workloads.push((id.clone(), identity.clone()));
            state.tell(Demand::Workload {
                id: id.clone(),
                identity: identity.clone(),
            });
        });
    }

    /// Asks for a listener.
    #[cfg_attr(
        not(any(feature = "http", test)),
        expect(dead_code, reason = "HTTP listeners demand theirs")
    )]
    pub(crate) fn listen(&self, address: SocketAddr) {
        self.change(|state| {
            let (count, asked) = state
                .listeners
                .entry(address)
                .or_insert((0, Asked::Waiting));
            *count += 1;
            if *count == 1 {
                *asked = Asked::Waiting;
                state
                    .queue
                    .retain(|demand| *demand != Demand::Unlisten(address));
                state.tell(Demand::Listener(address));
            }
        });
    }

    #[cfg_attr(
        not(any(feature = "http", test)),
        expect(dead_code, reason = "HTTP listeners demand theirs")
    )]
    pub(crate) fn unlisten(&self, address: SocketAddr) {
        self.change(|state| {
            let Some((count, _)) = state.listeners.get_mut(&address) else {
                return;
            };
            *count -= 1;
            if *count == 0 {
                state.listeners.remove(&address);
                state
                    .queue
                    .retain(|demand| *demand != Demand::Listener(address));
                state.tell(Demand::Unlisten(address));
            }
        });
    }

    /// What became of a listener that was asked for; `None` if no source was.
    #[cfg_attr(
        not(any(feature = "http", test)),
        expect(dead_code, reason = "HTTP listeners demand theirs")
    )]
    pub(crate) fn listener(&self, address: SocketAddr) -> Option<Asked> {
        let state = self.state();
        let asked = state.listeners.get(&address);
        asked.filter(|_| state.taken).map(|(_, asked)| *asked)
    }

    /// The application says how it is.
    pub(crate) fn health(&self, health: AppHealth) {
        self.change(|state| {
            state.said = Some(health);
            state.health_changed();
        });
    }

    /// From now on a probe has to agree before the application counts as healthy.
    #[cfg(feature = "istiod")]
    pub(crate) fn probing(&self) {
        self.state().probed = Some(None);
    }

    /// What a probe has found.
    #[cfg(feature = "istiod")]
    pub(crate) fn probed(&self, health: AppHealth) {
        self.change(|state| {
            state.probed = Some(Some(health));
            state.health_changed();
        });
    }

    /// Whether the source has only what is wanted.
    pub(crate) fn is_by_name(&self) -> bool {
        let state = self.state();
        state.taken && state.by_name
    }

    /// Wants a service or workload; it is refused if there is no room for more names. One that was refused is asked
    /// for anew by whoever comes next.
    pub(crate) fn want(&self, name: &str) -> Asked {
        let mut asked = Asked::Waiting;
        self.change(|state| {
            if let Some(known) = state.wanted.get(name) {
                asked = *known;
                if matches!(asked, Asked::Refused(_)) {
                    state.wanted.remove(name);
                }
                return;
            }
            if state.wanted.len() >= MAX_WANTED && !state.forget_an_absent_one() {
                asked = Asked::Refused(NO_ROOM);
                return;
            }
            let name: Arc<str> = name.into();
            state.wanted.insert(Arc::clone(&name), Asked::Waiting);
            state.tell(Demand::Want(name));
        });
        asked
    }

    /// The source says that there is no such service or workload.
    pub(crate) fn absent(&self, name: &str) {
        if let Some(asked) = self.state().wanted.get_mut(name) {
            *asked = Asked::Absent;
        }
        self.answered.send_modify(|count| *count += 1);
    }

    /// The source cannot ask for it: it is neither here nor absent. An absent one makes room.
    #[cfg(feature = "istiod")]
    pub(super) fn refuse(&self, name: &str) {
        self.change(|state| {
            if let Some(asked) = state.wanted.get_mut(name) {
                *asked = Asked::Refused(NO_ROOM);
            }
            state.forget_an_absent_one();
        });
        self.answered.send_modify(|count| *count += 1);
    }

    /// The source says that there is no such listener.
    pub(crate) fn no_listener(&self, address: SocketAddr) {
        self.listener_is(address, Asked::Absent);
    }

    /// The source does not ask for the listener, and why.
    #[cfg(feature = "istiod")]
    pub(super) fn refuse_listener(&self, address: SocketAddr, why: &'static str) {
        self.listener_is(address, Asked::Refused(why));
    }

    fn listener_is(&self, address: SocketAddr, answer: Asked) {
        if let Some((_, asked)) = self.state().listeners.get_mut(&address) {
            *asked = answer;
        }
        self.answered.send_modify(|count| *count += 1);
    }

    /// Told when something turned out to be absent.
    pub(crate) fn answered(&self) -> watch::Receiver<u64> {
        self.answered.subscribe()
    }
}

impl State {
    fn forget_an_absent_one(&mut self) -> bool {
        let absent = self
            .wanted
            .iter()
            .find(|(_, asked)| **asked == Asked::Absent);
        let Some(name) = absent.map(|(name, _)| Arc::clone(name)) else {
            return false;
        };
        self.wanted.remove(&name);
        self.queue
            .retain(|demand| *demand != Demand::Want(Arc::clone(&name)));
        self.tell(Demand::Forget(name));
        true
    }
}

#[cfg(test)]
mod tests;
