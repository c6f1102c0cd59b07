//! Connections that HTTP requests share: idle HTTP/1.1 ones by endpoint, one HTTP/2 one per endpoint.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_authz::Identity;
use tokio::time::Instant;

use super::dial::Carrier;
use super::exchange::{Age, Checkout, Exclusive, Home};
use super::running::{Connections, Running};
use crate::Error;
use crate::layers::{ReplayBody, RetryBudget};
use crate::mesh::MeshInner;
use crate::node::NodeInner;
use crate::snapshot::{Hop, Route, Tunnelled};
use crate::sync::lock;

/// The protocol of a request on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

#[derive(Debug)]
pub(crate) struct HttpPool {
    state: Mutex<State>,
    idle_per_endpoint: usize,
    max_idle: usize,
    idle_timeout: Duration,
    budget: Mutex<RetryBudget>,
}

#[derive(Default)]
struct State {
    http1: HashMap<Hop, Vec<Idle>>,
    /// In all of `http1`.
    idle: usize,
    http2: HashMap<Hop, Arc<Shared>>,
    /// Through tunnels, whoever has them.
    tunnelled: Connections,
}

struct Idle {
    connection: Exclusive,
    since: Instant,
}

/// One HTTP/2 connection, dialled once however many ask for it.
#[derive(Default)]
struct Shared {
    slot: tokio::sync::Mutex<Slot>,
    /// How many dials have failed.
    failures: AtomicU64,
}

#[derive(Default)]
struct Slot {
    live: Option<Multiplexed>,
    failure: Option<Arc<Error>>,
}

struct Multiplexed {
    sender: http2::SendRequest<ReplayBody>,
    used: Arc<Used>,
    running: Running,
    /// The TLS connection that it shares with others, if it is a tunnel.
    carrier: Option<Box<Carrier>>,
}

/// Alone when no request has it; the last one to leave notes the time.
#[derive(Debug)]
struct Used {
    last: Mutex<Instant>,
    retired: AtomicBool,
}

/// A request on a shared connection.
pub(super) struct Using(Arc<Used>);

impl Using {
    fn new(used: &Arc<Used>) -> Self {
        Self(Arc::clone(used))
    }

    /// The connection takes no more requests; those that it has go on.
    pub(super) fn retire(&self) {
        self.0.retired.store(true, Ordering::Relaxed);
    }
}

impl Drop for Using {
    fn drop(&mut self) {
        let mut last = lock(&self.0.last);
        *last = Instant::now();
    }
}

impl HttpPool {
    pub(crate) fn new(idle_per_endpoint: usize, max_idle: usize, idle_timeout: Duration) -> Self {
        Self {
            state: Mutex::default(),
            idle_per_endpoint,
            max_idle,
            idle_timeout,
            budget: Mutex::new(RetryBudget::new()),
        }
    }

    pub(super) fn budget(&self) -> MutexGuard<'_, RetryBudget> {
        lock(&self.budget)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// A connection along the route that can take a request now.
    pub(super) async fn checkout(
        &self,
        mesh: &Arc<MeshInner>,
        route: &Route,
        protocol: Protocol,
    ) -> Result<Checkout, Error> {
        match protocol {
            Protocol::Http1 => self.http1(mesh, route).await,
            Protocol::Http2 => self.http2(mesh, route).await,
        }
    }

    async fn http1(&self, mesh: &Arc<MeshInner>, route: &Route) -> Result<Checkout, Error> {
        let home = Home {
            mesh: Arc::downgrade(mesh),
            hop: route.hop().clone(),
        };
        match self.take_idle(mesh, route.hop()) {
            Ok(connection) => return Ok(Checkout::Http1(connection, home, Age::Used)),
            Err(unfit) => {
                end_all(unfit.into_iter().map(|of| of.running)).await;
            }
        }
        let (stream, carrier) = mesh.open(route).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(Error::handshake)?;
        let (running, spawner) = Running::new(mesh);
        let carrier = carrier.map(Arc::new);
        if let Some(carrier) = &carrier {
            let held: Weak<Carrier> = Arc::downgrade(carrier);
            self.state().tunnelled.add(running.clone(), held);
        }
        let (weak, hop) = (Arc::downgrade(mesh), route.hop().clone());
        spawner.spawn_connection(connection, async move {
            if let Some(mesh) = weak.upgrade() {
                mesh.http.let_go_of_closed(&hop);
            }
        });
        drop(spawner);
        sender.ready().await.map_err(Error::handshake)?;
        let connection = Exclusive {
            sender,
            running,
            carrier,
        };
        Ok(Checkout::Http1(connection, home, Age::New))
    }

    /// The newest that can take a request, or, where none can, all of them: they may have the places that another needs.
    fn take_idle(&self, mesh: &MeshInner, hop: &Hop) -> Result<Exclusive, Vec<Exclusive>> {
        let mut unfit = Vec::new();
        // Each is looked at when it is taken out: that takes its carrier's lock.
        while let Some(Idle { connection, since }) = self.take_newest(hop) {
            if since.elapsed() < self.idle_timeout && connection.is_for(mesh) {
                return Ok(connection);
            }
            unfit.push(connection);
        }
        Err(unfit)
    }

    fn take_newest(&self, hop: &Hop) -> Option<Idle> {
        self.state().take_newest(hop)
    }

    /// Lets go of closed connections, and so of the TLS connection that each went through: nobody else may want it.
    fn let_go_of_closed(&self, hop: &Hop) {
        // Beyond the lock.
        let _closed = self.state().take_closed(hop);
    }

    /// A dial that fails fails for all who wait for it, each of whom may try another endpoint.
    async fn http2(&self, mesh: &Arc<MeshInner>, route: &Route) -> Result<Checkout, Error> {
        let shared = {
            let mut state = self.state();
            let shared = Arc::clone(state.http2.entry(route.hop().clone()).or_default());
            state.trim(self.max_idle);
            shared
        };
        let failures = shared.failures.load(Ordering::Acquire);
        let mut slot = shared.slot.lock().await;
        // Who waited may be another than who dialled: the certificate says who we are.
        if let Some(live) = slot.live.as_ref().filter(|live| live.is_for(mesh)) {
            let using = Using::new(&live.used);
            return Ok(Checkout::Http2(live.sender.clone(), using, Age::Used));
        }
        if let Some(failure) = &slot.failure
            && failures != shared.failures.load(Ordering::Acquire)
        {
            return Err(failure.shared());
        }
        // Nobody else can end it to make room: who asks holds it.
        let unfit = slot.live.take_if(|live| live.idle_since().is_some());
        end_all(unfit.map(|live| live.running)).await;
        match dial(mesh, route, &shared).await {
            Ok(live) => {
                let checkout =
                    Checkout::Http2(live.sender.clone(), Using::new(&live.used), Age::New);
                *slot = Slot {
                    live: Some(live),
                    failure: None,
                };
                Ok(checkout)
            }
            Err(error) => {
                let error = Arc::new(error);
                let told = error.shared();
                *slot = Slot {
                    live: None,
                    failure: Some(error),
                };
                shared.failures.fetch_add(1, Ordering::Release);
                Err(told)
            }
        }
    }

    pub(super) fn check_in(&self, mesh: &MeshInner, hop: Hop, connection: Exclusive) {
        if !connection.is_for(mesh) {
            return;
        }
        let since = Instant::now();
        let mut state = self.state();
        // Asked under the lock: whoever ends the mesh lets go of what is here after saying so.
        if mesh.live.is_over() {
            return;
        }
        let idle = state.http1.entry(hop).or_default();
        if idle.len() < self.idle_per_endpoint {
            idle.push(Idle { connection, since });
            state.idle += 1;
            state.trim(self.max_idle);
        }
    }

    /// Forgets what is closed or has been idle for long, endpoints that are no more included.
    pub(crate) fn sweep(&self, now: Instant) {
        let limit = self.idle_timeout;
        let mut state = self.state();
        state.retain(|since| now.duration_since(since) < limit);
        state.tunnelled.forget_ended();
    }

    /// Lets go of every connection that no request uses.
    pub(crate) fn close_idle(&self) {
        let mut state = self.state();
        state.http1.clear();
        state.idle = 0;
        state.http2.clear();
    }

    /// Those through tunnels that nobody has any more.
    fn leaving(&self) -> Vec<Running> {
        self.state().tunnelled.leaving().cloned().collect()
    }

    /// When that next hop was used last which was not used for the longest time, of those through whose
    /// tunnels connections go that no request has.
    fn least_recent(&self) -> Option<Instant> {
        self.state().least_recent().map(|(since, _)| since)
    }

    /// Lets go of the idle connections through that next hop.
    fn evict(&self) {
        // Beyond the lock.
        let _evicted = {
            let mut state = self.state();
            state
                .least_recent()
                .map(|(_, through)| state.evict(&through))
        };
    }
}

/// Ends connections that nobody has a request on; `false` when there are none.
async fn end_all(running: impl IntoIterator<Item = Running>) -> bool {
    let all: Vec<_> = running.into_iter().collect();
    let some = !all.is_empty();
    all.iter().for_each(Running::stop);
    for running in all {
        running.ended().await;
    }
    some
}

impl NodeInner {
    /// Ends HTTP connections that nobody has any more; `false` when there are none. Others may wait for the same ones.
    pub(super) async fn end_leaving_http(&self) -> bool {
        let meshes = self.meshes();
        end_all(meshes.iter().flat_map(|mesh| mesh.http.leaving())).await
    }

    /// Ends idle HTTP connections through the next hop that was not used for the longest time, of all workloads; `false` when
    /// there are none.
    pub(super) async fn end_idle_http(&self) -> bool {
        let meshes = self.meshes().into_iter();
        let least_recent = meshes
            .filter_map(|mesh| Some((mesh.http.least_recent()?, mesh)))
            .min_by_key(|(since, _)| *since);
        let Some((_, mesh)) = least_recent else {
            return false;
        };
        mesh.http.evict();
        self.end_leaving_http().await;
        true
    }
}

async fn dial(
    mesh: &Arc<MeshInner>,
    route: &Route,
    shared: &Arc<Shared>,
) -> Result<Multiplexed, Error> {
    let (stream, carrier) = mesh.open(route).await?;
    let (running, spawner) = Running::new(mesh);
    let (sender, connection) = http2::Builder::new(spawner.clone())
        .timer(TokioTimer::new())
        .handshake(TokioIo::new(stream))
        .await
        .map_err(Error::handshake)?;
    let used = Used {
        last: Mutex::new(Instant::now()),
        retired: AtomicBool::new(false),
    };
    let used = Arc::new(used);
    if carrier.is_some() {
        let held: Weak<Used> = Arc::downgrade(&used);
        mesh.http.state().tunnelled.add(running.clone(), held);
    }
    let shared = Arc::downgrade(shared);
    spawner.spawn_connection(connection, async move {
        if let Some(shared) = shared.upgrade() {
            shared.let_go_of_closed().await;
        }
    });
    Ok(Multiplexed {
        sender,
        used,
        running,
        carrier: carrier.map(Box::new),
    })
}

impl State {
    /// The newest first: the others may end by age.
    fn take_newest(&mut self, hop: &Hop) -> Option<Idle> {
        let idle = self.http1.get_mut(hop)?;
        let newest = idle.pop();
        self.idle -= usize::from(newest.is_some());
        if idle.is_empty() {
            self.http1.remove(hop);
        }
        newest
    }

    fn take_closed(&mut self, hop: &Hop) -> Vec<Idle> {
        let Some(idle) = self.http1.get_mut(hop) else {
            return Vec::new();
        };
        let closed = idle.extract_if(.., |idle| idle.connection.sender.is_closed());
        let closed: Vec<Idle> = closed.collect();
        self.idle -= closed.len();
        if idle.is_empty() {
            self.http1.remove(hop);
        }
        closed
    }

    /// Keeps, of the connections that no request has, those that are open and that `keep` wants by when
    /// they were used last.
    fn retain(&mut self, mut keep: impl FnMut(Instant) -> bool) {
        self.idle = 0;
        self.http1.retain(|_, idle| {
            idle.retain(|idle| idle.connection.is_lasting() && keep(idle.since));
            self.idle += idle.len();
            !idle.is_empty()
        });
        self.http2.retain(|_, shared| match shared.state() {
            SharedState::Idle(since) => keep(since),
            SharedState::Busy => true,
            SharedState::Ended => false,
        });
    }

    /// Lets the least recently used go when there are more than `max`: an eighth of them, so that the
    /// next to come need not.
    fn trim(&mut self, max: usize) {
        if self.idle + self.http2.len() <= max {
            return;
        }
        let http1 = self.http1.values().flatten().map(|idle| idle.since);
        let http2 = self.http2.values().filter_map(Shared::idle_since);
        let mut ages: Vec<Instant> = http1.chain(http2).collect();
        if ages.len() <= max {
            return;
        }
        let surplus = ages.len() - (max - max / 8);
        let (_, &mut cut, _) = ages.select_nth_unstable(surplus - 1);
        // Those of the very same moment are as good as each other.
        let mut left = surplus;
        self.retain(|since| {
            let goes = since <= cut && left > 0;
            left -= usize::from(goes);
            !goes
        });
    }

    /// The next hop that was not used for the longest time: all tunnels to it share TLS connections, of
    /// which none is free before all of them have ended. Plaintext has no part in that.
    fn least_recent(&self) -> Option<(Instant, Tunnelled)> {
        let mut newest: HashMap<Shares<'_>, (Instant, &Tunnelled)> = HashMap::new();
        let http1 = self.http1.iter().filter_map(|(hop, idle)| {
            let since = idle.iter().map(|idle| idle.since).max()?;
            Some((hop, since))
        });
        let http2 = self.http2.iter();
        let http2 = http2.filter_map(|(hop, shared)| Some((hop, Shared::idle_since(shared)?)));
        for (hop, since) in http1.chain(http2) {
            let Hop::Hbone(tunnelled) = hop else {
                continue;
            };
            let entry = newest.entry(Shares::of(tunnelled));
            let (latest, _) = entry.or_insert((since, tunnelled));
            *latest = since.max(*latest);
        }
        let oldest = newest.into_values().min_by_key(|(since, _)| *since);
        oldest.map(|(since, tunnelled)| (since, tunnelled.clone()))
    }

    /// Takes the idle connections that share TLS connections with this one.
    fn evict(&mut self, through: &Tunnelled) -> (Vec<Idle>, Vec<Multiplexed>) {
        let shares = |hop: &Hop| matches!(hop, Hop::Hbone(other) if Shares::of(other) == Shares::of(through));
        let http1 = self.http1.extract_if(|hop, _| shares(hop));
        let idle: Vec<Idle> = http1.flat_map(|(_, idle)| idle).collect();
        self.idle -= idle.len();
        let is_idle = |shared: &Arc<Shared>| Shared::idle_since(shared).is_some();
        let http2 = self
            .http2
            .extract_if(|hop, shared| shares(hop) && is_idle(shared));
        let http2 = http2.filter_map(|(_, shared)| shared.slot.try_lock().ok()?.live.take());
        (idle, http2.collect())
    }
}

/// What tunnels of one workload have in common that share TLS connections.
#[derive(PartialEq, Eq, Hash)]
struct Shares<'a>(SocketAddr, &'a [Identity]);

impl<'a> Shares<'a> {
    fn of(tunnelled: &'a Tunnelled) -> Self {
        Self(tunnelled.next_hop(), tunnelled.identities())
    }
}

/// What a shared connection is good for.
enum SharedState {
    /// It is open and no request has it.
    Idle(Instant),
    /// Requests have it, or somebody dials or looks at it.
    Busy,
    Ended,
}

impl Shared {
    fn state(self: &Arc<Self>) -> SharedState {
        // Who asks for it holds it.
        if Arc::strong_count(self) > 1 {
            return SharedState::Busy;
        }
        let Ok(slot) = self.slot.try_lock() else {
            return SharedState::Busy;
        };
        match &slot.live {
            Some(live) if live.is_open() => match live.idle_since() {
                Some(since) => SharedState::Idle(since),
                None => SharedState::Busy,
            },
            _ => SharedState::Ended,
        }
    }

    /// Lets go of the connection if it is closed, and so of the TLS connection that it went through: nobody else may want it.
    async fn let_go_of_closed(&self) {
        let mut slot = self.slot.lock().await;
        slot.live.take_if(|live| live.sender.is_closed());
    }

    /// Since when no request has it. One that takes no further requests has a place on its TLS connection as well.
    fn idle_since(self: &Arc<Self>) -> Option<Instant> {
        if Arc::strong_count(self) > 1 {
            return None;
        }
        let slot = self.slot.try_lock().ok()?;
        let live = slot.live.as_ref()?;
        match live.sender.is_closed() {
            true => None,
            false => live.idle_since(),
        }
    }
}

impl Multiplexed {
    /// Whether it takes further requests.
    fn is_open(&self) -> bool {
        !self.sender.is_closed()
            && !self.used.retired.load(Ordering::Relaxed)
            && self
                .carrier
                .as_ref()
                .is_none_or(|carrier| carrier.is_lasting())
    }

    /// As [`is_open`](Self::is_open), of a request of the workload as who it is now.
    fn is_for(&self, mesh: &MeshInner) -> bool {
        self.is_open()
            && self
                .carrier
                .as_ref()
                .is_none_or(|carrier| carrier.is_of(mesh))
    }

    fn idle_since(&self) -> Option<Instant> {
        let last = lock(&self.used.last);
        (Arc::strong_count(&self.used) == 1).then_some(*last)
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("http1_endpoints", &self.http1.len())
            .field("http2_endpoints", &self.http2.len())
            .finish_non_exhaustive()
    }
}
