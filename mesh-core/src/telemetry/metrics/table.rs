//! Series by key: bounded, sharded, forgotten when idle.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::sync::lock;

/// Enough that two connections rarely meet at one lock, which is held for one look-up.
const SHARDS: usize = 16;

/// How many series there may be, over all tables.
#[derive(Debug)]
pub(super) struct Budget {
    max: usize,
    used: AtomicUsize,
}

impl Budget {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            used: AtomicUsize::new(0),
        }
    }

    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn take(&self, series: usize) -> bool {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                let used = used.checked_add(series)?;
                (used <= self.max).then_some(used)
            })
            .is_ok()
    }

    fn give_back(&self, series: usize) {
        self.used.fetch_sub(series, Ordering::Relaxed);
    }
}

#[derive(Debug)]
pub(super) struct Table<K, V> {
    shards: [Mutex<HashMap<K, Slot<V>>>; SHARDS],
    /// Which shard; each shard's map hashes with keys of its own.
    hasher: RandomState,
}

#[derive(Debug)]
struct Slot<V> {
    value: Arc<V>,
    /// Looked up since the last call of `evict`.
    used: bool,
    idle_since: Option<Instant>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            shards: Default::default(),
            hasher: RandomState::new(),
        }
    }
}

impl<K: Clone + Eq + Hash, V: Default> Table<K, V> {
    /// Finds the record of `key` or makes one; `None` when the budget has no room for its series.
    ///
    /// While the caller holds what is returned the record is not forgotten, so no count gets lost.
    pub(super) fn get(&self, key: &K, budget: &Budget, series: usize) -> Option<Arc<V>> {
        let shard = self.hasher.hash_one(key) as usize % SHARDS;
        let mut shard = lock(&self.shards[shard]);
        if let Some(slot) = shard.get_mut(key) {
            slot.used = true;
            return Some(Arc::clone(&slot.value));
        }
        if !budget.take(series) {
            return None;
        }
        let value = Arc::new(V::default());
        let slot = Slot {
            value: Arc::clone(&value),
            used: true,
            idle_since: None,
        };
        shard.insert(key.clone(), slot);
        Some(value)
    }

    /// Forgets what was idle for `idle`; returns how many series that were.
    pub(super) fn evict(
        &self,
        now: Instant,
        idle: Duration,
        budget: &Budget,
        series: impl Fn(&K) -> usize,
    ) -> usize {
        let mut evicted = 0;
        for shard in &self.shards {
            lock(shard).retain(|key, slot| {
                // Handles are given out under this lock only, so a count of one stays one here.
                if std::mem::take(&mut slot.used) || Arc::strong_count(&slot.value) > 1 {
                    slot.idle_since = None;
                    return true;
                }
                let since = *slot.idle_since.get_or_insert(now);
                let keep = now.saturating_duration_since(since) < idle;
                if !keep {
                    evicted += series(key);
                }
                keep
            });
        }
        budget.give_back(evicted);
        evicted
    }

    /// What there is, so that it can be read without a lock.
    pub(super) fn snapshot(&self) -> Vec<(K, Arc<V>)> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = lock(shard);
            all.extend(
                shard
                    .iter()
                    .map(|(key, slot)| (key.clone(), Arc::clone(&slot.value))),
            );
        }
        all
    }
}
