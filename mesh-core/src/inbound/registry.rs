use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_authz::{Decision, PolicySet};

use super::enforcement::Enforcement;
use super::places::Place;
use crate::ConnectionContext;
use crate::missed::missed;
use crate::net::{Cut, CutReason};
use crate::sync::{AtomicU64, AtomicUsize, Mutex, MutexGuard, Notify, Ordering, lock};

/// How a listener judges its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// By the L4 reduction of the policies: nothing looks at requests.
    L4,
    /// Only what no request could be allowed on is refused; a layer judges each request in full.
    #[cfg_attr(
        not(any(feature = "http", feature = "istiod")),
        expect(dead_code, reason = "HTTP listeners judge so")
    )]
    PerRequest,
}

impl Judgement {
    /// Whether `policies` admit the connection, and which did not.
    pub(crate) fn decide<'a>(
        self,
        policies: &'a PolicySet,
        context: &ConnectionContext,
    ) -> Decision<'a> {
        let attributes = context.attributes();
        match self {
            Self::L4 => policies.evaluate_l4(&attributes),
            Self::PerRequest => policies.could_allow(&attributes),
        }
    }
}

/// A refusal in ztunnel's words, and the rule. For logs: the peer is told a status and no more.
fn refusal(decision: &Decision<'_>) -> String {
    match decision.rule().filter(|_| decision.unreadable().is_none()) {
        Some(rule) => format!("{decision}, rule {rule}"),
        None => decision.to_string(),
    }
}

/// Why a connection is not admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There are as many as permitted.
    TooMany,
    /// What its port enforces refuses it, as it says, and which ALLOW policies did not allow it.
    Denied(String, Option<String>),
    /// The workload's service is.
    Over,
}

/// The live inbound connections of one workload, through which they are judged again.
///
/// Split in shards, each locked for the length of one insertion or removal, or of copying a shard's
/// entries out: judging itself holds no lock. In order of their sources: when many connections lose their
/// tunnels at once, none looks through those of all others.
#[derive(Debug)]
pub(crate) struct Registry {
    shards: Box<[Mutex<Shard>]>,
    next: AtomicU64,
    live: AtomicUsize,
    left: AtomicUsize,
    emptied: Notify,
    limit: usize,
}

#[derive(Debug, Clone)]
struct Entry {
    context: ConnectionContext,
    judgement: Judgement,
    cut: Arc<Cut>,
}

const SHARDS: u64 = 16;

type Shard = BTreeMap<Key, Entry>;

/// The peer's address, and a number of its own.
type Key = (SocketAddr, u64);

impl Registry {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            next: AtomicU64::new(0),
            live: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            emptied: Notify::new(),
            limit,
        }
    }

    fn shard(&self, id: u64) -> MutexGuard<'_, Shard> {
        lock(&self.shards[(id % SHARDS) as usize])
    }

    /// Enters a connection and judges it by what its port enforces.
    ///
    /// In this order: then either this judgement or the sweep of a policy change that happens meanwhile
    /// sees the new policies (`tests/models` has all interleavings).
    pub(crate) fn admit(
        self: &Arc<Self>,
        context: &ConnectionContext,
        judgement: Judgement,
        enforcement: &Enforcement,
    ) -> Result<Registered, Refused> {
        let registered = self.enter(context.clone(), judgement);
        let registered = registered.ok_or(Refused::TooMany)?;
        let enforced = enforcement.on(context.destination().port());
        let enforced = enforced.load();
        let decision = judgement.decide(enforced.policies(), context);
        if !decision.is_allowed() {
            // Looked for only for whoever reads it: anybody may be refused, as often as they like.
            let told = tracing::enabled!(target: "mesh::authz", tracing::Level::DEBUG);
            let missed = told.then(|| missed(&decision, enforced.policies()));
            let missed = missed.flatten();
            return Err(Refused::Denied(refusal(&decision), missed));
        }
        Ok(registered)
    }

    /// Enters a connection; `None` when there are as many as permitted.
    pub(crate) fn enter(
        self: &Arc<Self>,
        context: ConnectionContext,
        judgement: Judgement,
    ) -> Option<Registered> {
        if self.live.fetch_add(1, Ordering::AcqRel) >= self.limit {
            self.leave_count();
            return None;
        }
        let key = (context.source(), self.next.fetch_add(1, Ordering::Relaxed));
        let cut = Arc::new(Cut::default());
        let entry = Entry {
            context,
            judgement,
            cut: Arc::clone(&cut),
        };
        self.shard(key.1).insert(key, entry);
        Some(Registered {
            registry: Arc::clone(self),
            key,
            cut,
            _place: None,
        })
    }

    fn leave_count(&self) {
        if self.live.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.emptied.notify_waiters();
        }
    }

    pub(crate) fn live(&self) -> usize {
        self.live.load(Ordering::Acquire)
    }

    /// How many have left, ever.
    pub(crate) fn left(&self) -> usize {
        self.left.load(Ordering::Acquire)
    }

    /// Has something else enforced by `change`, which says whether it is, and then judges all that live by it.
    ///
    /// In this order: whoever enters meanwhile is judged by what is enforced now, or is found here
    /// (`tests/models` has all interleavings of this and of [`admit`](Self::admit)).
    pub(crate) fn enforce(
        &self,
        enforcement: &Enforcement,
        change: impl FnOnce(&Enforcement) -> bool,
    ) {
        if change(enforcement) {
            self.sweep(enforcement);
        }
    }

    /// Judges every live connection by what its port enforces now and cuts those that are refused.
    fn sweep(&self, enforcement: &Enforcement) {
        for entry in self.entries() {
            let enforced = enforcement.on(entry.context.destination().port());
            let enforced = enforced.load();
            let decision = (entry.judgement).decide(enforced.policies(), &entry.context);
            if !decision.is_allowed() {
                tracing::info!(
                    target: "mesh::inbound",
                    source = %entry.context.source(),
                    identity = entry.context.identity().map(tracing::field::display),
                    destination = %entry.context.destination(),
                    policy = decision.policy().map(tracing::field::display),
                    rule = decision.rule(),
                    policies = missed(&decision, enforced.policies()),
                    unreadable = decision.unreadable(),
                    reason = %decision.reason(),
                    "connection closed because it is no longer allowed after a policy update"
                );
                entry.cut.cut_because(CutReason::Policy, refusal(&decision));
            }
        }
    }

    /// Cuts whatever is left. Returns how many.
    pub(crate) fn cut_all(&self, reason: CutReason) -> usize {
        let mut cut = 0;
        for entry in self.entries() {
            entry.cut.cut(reason);
            cut += 1;
        }
        cut
    }

    /// The addresses of peers that have live tunnels.
    pub(crate) fn tunnel_sources(&self) -> HashSet<SocketAddr> {
        let tunnels = self.entries().filter(|entry| entry.context.is_mutual_tls());
        tunnels.map(|entry| entry.context.source()).collect()
    }

    /// Cuts what came in tunnels from this address, which is one connection's. Returns how many.
    pub(crate) fn cut_tunnels_of(&self, source: SocketAddr, reason: CutReason) -> usize {
        let mut cut = 0;
        for shard in 0..SHARDS {
            let of_source: Vec<_> = self
                .shard(shard)
                .range((source, 0)..=(source, u64::MAX))
                .filter(|(_, entry)| entry.context.is_mutual_tls())
                .map(|(_, entry)| Arc::clone(&entry.cut))
                .collect();
            cut += of_source.len();
            for tunnel in of_source {
                tunnel.cut(reason);
            }
        }
        cut
    }

    /// The live connections, in no order.
    #[cfg(feature = "admin")]
    pub(crate) fn connections(&self) -> Vec<ConnectionContext> {
        self.entries().map(|entry| entry.context).collect()
    }

    fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        (0..SHARDS).flat_map(|shard| self.shard(shard).values().cloned().collect::<Vec<_>>())
    }

    /// Resolves once no connection is live.
    pub(crate) async fn emptied(&self) {
        loop {
            let notified = self.emptied.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.live() == 0 {
                return;
            }
            notified.await;
        }
    }
}

/// Keeps a connection in the registry.
#[derive(Debug)]
pub(crate) struct Registered {
    registry: Arc<Registry>,
    key: Key,
    cut: Arc<Cut>,
    _place: Option<Place>,
}

impl Registered {
    /// Keeps the place of the connection's own socket as long as the connection.
    pub(crate) fn holding(mut self, place: Place) -> Self {
        self._place = Some(place);
        self
    }

    pub(crate) fn cut(&self) -> &Arc<Cut> {
        &self.cut
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.shard(self.key.1).remove(&self.key);
        self.registry.left.fetch_add(1, Ordering::AcqRel);
        self.registry.leave_count();
    }
}
