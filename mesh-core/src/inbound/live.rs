use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use super::enforcement::Enforcement;
use super::registry::{Judgement, Refused, Registered, Registry};
use super::sessions::{Entered, Sessions};
use crate::ConnectionContext;
use crate::net::CutReason;
use crate::sync::watch;

/// How far a workload's service has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Serving,
    /// Nothing new is accepted; what lives may finish.
    Draining,
    /// The deadline has passed.
    Over,
}

/// What comes to one workload, from the moment it is accepted, and how far the workload's service has come.
///
/// Whoever comes enters and then looks at the phase; whoever ends the service says so and then looks at who is
/// there: one of the two sees the other (`tests/models` has all interleavings).
#[derive(Debug)]
pub(crate) struct Live {
    phase: watch::Sender<Phase>,
    /// Connections that were judged, and may live.
    pub(crate) registry: Arc<Registry>,
    /// TLS connections, which tunnels share.
    pub(crate) sessions: Arc<Sessions>,
    /// Plaintext that is accepted and not judged yet.
    arriving: Arc<Sessions>,
}

impl Live {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            phase: watch::Sender::new(Phase::Serving),
            registry: Arc::new(Registry::new(limit)),
            sessions: Arc::default(),
            arriving: Arc::default(),
        }
    }

    /// Told of each phase.
    pub(crate) fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Whether nothing new is accepted any more.
    pub(crate) fn is_draining(&self) -> bool {
        *self.phase.borrow() >= Phase::Draining
    }

    /// Whether nothing goes out any more.
    pub(crate) fn is_over(&self) -> bool {
        *self.phase.borrow() == Phase::Over
    }

    /// Plaintext was accepted, and is to be judged; `None` if a drain has begun, which may not wait for it.
    pub(super) fn arrives(&self, source: SocketAddr) -> Option<Entered> {
        let entered = self.arriving.enter(source);
        (!self.is_draining()).then_some(entered)
    }

    /// Takes a connection among those that live, if what its port enforces permits it.
    pub(super) fn admit(
        &self,
        context: &ConnectionContext,
        judgement: Judgement,
        enforcement: &Enforcement,
    ) -> Result<Registered, Refused> {
        let registered = self.registry.admit(context, judgement, enforcement)?;
        match self.is_over() {
            true => Err(Refused::Over),
            false => Ok(registered),
        }
    }

    /// A drain begins, unless one has.
    pub(crate) fn drain(&self) {
        self.phase.send_if_modified(|phase| {
            let begins = *phase == Phase::Serving;
            *phase = (*phase).max(Phase::Draining);
            begins
        });
    }

    /// Resolves when nobody is left, once a drain has begun.
    pub(crate) async fn ended(&self) {
        // In this order: who is judged enters the second before it leaves the first, and a tunnel leaves the
        // second before its TLS connection leaves the third.
        self.arriving.emptied().await;
        self.registry.emptied().await;
        self.sessions.emptied().await;
    }

    /// How many TLS connections there are without a tunnel.
    pub(crate) fn unsent(&self) -> usize {
        let live: HashSet<_> = self.registry.tunnel_sources();
        self.sessions.count(|source| !live.contains(&source))
    }

    /// The service is over.
    pub(crate) fn end(&self) {
        self.phase.send_replace(Phase::Over);
    }

    /// The service is [over](Self::end) although some are left: cuts them, and says how many.
    pub(crate) fn cut(&self) -> usize {
        self.end();
        // Those that are not judged yet will be refused.
        self.registry.cut_all(CutReason::Drain) + self.arriving.count(|_| true)
    }

    /// Resolves when a drain has begun and all plaintext that was accepted is judged, or the workload is gone.
    pub(super) fn all_judged(&self) -> impl Future<Output = ()> + Send + Sync + use<> {
        let (phases, arriving) = (self.phases(), Arc::clone(&self.arriving));
        async move {
            reaches(phases.clone(), Phase::Draining).await;
            tokio::select! {
                biased;
                () = arriving.emptied() => {}
                () = reaches(phases, Phase::Over) => {}
            }
        }
    }
}

/// Resolves when the workload's service has come this far, or is gone.
pub(crate) async fn reaches(mut phases: watch::Receiver<Phase>, wanted: Phase) {
    let _ = phases.wait_for(|phase| *phase >= wanted).await;
}
