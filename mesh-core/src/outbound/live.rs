use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::ConnectionContext;
use crate::sync::lock;

/// The live connections that a workload opened, for people who ask.
#[derive(Debug, Default)]
pub(crate) struct Live {
    // Held for one insertion, removal or copy.
    connections: Mutex<Connections>,
}

#[derive(Debug, Default)]
struct Connections {
    next: u64,
    all: HashMap<u64, Outbound>,
}

/// One of them.
#[derive(Debug, Clone)]
pub(crate) struct Outbound {
    /// What the application asked for.
    pub(crate) asked: Arc<str>,
    pub(crate) context: ConnectionContext,
}

/// Keeps a connection among them.
#[derive(Debug)]
pub(crate) struct Tracked {
    live: Arc<Live>,
    id: u64,
}

impl Live {
    pub(super) fn track(self: &Arc<Self>, connection: Outbound) -> Tracked {
        let mut connections = self.lock();
        let id = connections.next;
        connections.next += 1;
        connections.all.insert(id, connection);
        Tracked {
            live: Arc::clone(self),
            id,
        }
    }

    /// In no order.
    pub(crate) fn connections(&self) -> Vec<Outbound> {
        self.lock().all.values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        lock(&self.connections)
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.live.lock().all.remove(&self.id);
    }
}
