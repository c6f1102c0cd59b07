use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::sync::{AtomicU64, Mutex, MutexGuard, Notify, Ordering, lock};

/// What of one workload's connections a drain waits for beside those that are judged: the TLS connections on which
/// it accepts tunnels, each of which lives until its peer has been told all that its tunnels said, and so longer
/// than they do; or those in plaintext that are still to be judged.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    live: Mutex<HashMap<u64, SocketAddr>>,
    next: AtomicU64,
    ended: Notify,
}

/// A connection among them.
#[derive(Debug)]
pub(super) struct Entered {
    sessions: Arc<Sessions>,
    id: u64,
}

impl Sessions {
    pub(super) fn enter(self: &Arc<Self>, source: SocketAddr) -> Entered {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.live().insert(id, source);
        Entered {
            sessions: Arc::clone(self),
            id,
        }
    }

    /// How many are live of those whose peer's address is `which`.
    pub(crate) fn count(&self, which: impl Fn(SocketAddr) -> bool) -> usize {
        self.live()
            .values()
            .filter(|source| which(**source))
            .count()
    }

    /// Resolves once none is live.
    pub(crate) async fn emptied(&self) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.live().is_empty() {
                return;
            }
            ended.await;
        }
    }

    fn live(&self) -> MutexGuard<'_, HashMap<u64, SocketAddr>> {
        lock(&self.live)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut live = self.sessions.live();
        live.remove(&self.id);
        if live.is_empty() {
            self.sessions.ended.notify_waiters();
        }
    }
}
