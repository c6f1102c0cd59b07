//! A connection's own bytes.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::telemetry::Traffic;

/// Two counters that only their connection writes: relaxed, for nothing is ordered by them.
#[derive(Debug, Default)]
pub(super) struct TrafficCounters {
    from_client: AtomicU64,
    from_server: AtomicU64,
}

impl TrafficCounters {
    pub(super) fn add_from_client(&self, bytes: u64) {
        self.from_client.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_from_server(&self, bytes: u64) {
        self.from_server.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> Traffic {
        Traffic::new(
            self.from_client.load(Ordering::Relaxed),
            self.from_server.load(Ordering::Relaxed),
        )
    }
}
