//! All keys of a pool: what to dial, whom to tell, what to let go. No I/O; time is an argument.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

use super::entry::{ConnectionId, Entry, Grant, Link, Released, WaiterId};

#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) connections: usize,
    pub(super) waiters: usize,
    pub(super) idle: Duration,
}

/// The answer to a checkout.
#[derive(Debug)]
pub(super) enum Checkout<C> {
    Granted(Grant<C>),
    /// Wait. If there is an id, dial and report under it; otherwise somebody does.
    Queued(WaiterId, Option<ConnectionId>),
    TooManyWaiters,
    TooManyConnections,
}

/// What follows from a new connection.
#[derive(Debug)]
pub(super) struct Connected<C> {
    pub(super) grants: Vec<(WaiterId, Grant<C>)>,
    /// Waiters are left: dial again under this id, for this waiter and those after it.
    pub(super) dial: Option<(WaiterId, ConnectionId)>,
    /// Waiters for whom there is no room, not even after an eviction.
    pub(super) refused: Vec<WaiterId>,
}

#[derive(Debug)]
pub(super) struct Table<K, C> {
    limits: Limits,
    entries: HashMap<K, Entry<C>>,
    /// Whose each connection or dial is.
    keys: HashMap<ConnectionId, K>,
    waiting: HashMap<WaiterId, K>,
    /// Connections of which nobody has a stream, and since when.
    idle: BTreeSet<(Instant, ConnectionId)>,
    idle_since: HashMap<ConnectionId, Instant>,
    /// Connections that were let go of with streams on them, and how many those still are.
    parting: HashMap<ConnectionId, usize>,
    dials: u64,
    /// Evicted or expired: dropped by the caller, outside its lock.
    dropped: Vec<C>,
    next_id: u64,
}

impl<C> Default for Connected<C> {
    fn default() -> Self {
        Self {
            grants: Vec::new(),
            dial: None,
            refused: Vec::new(),
        }
    }
}

impl<K: Hash + Eq + Clone, C: Link> Table<K, C> {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: HashMap::new(),
            keys: HashMap::new(),
            waiting: HashMap::new(),
            idle: BTreeSet::new(),
            idle_since: HashMap::new(),
            parting: HashMap::new(),
            dials: 0,
            dropped: Vec::new(),
            next_id: 0,
        }
    }

    /// Every connection with its key.
    pub(super) fn links(&self) -> Vec<(K, C)> {
        let entries = self.entries.iter();
        entries
            .flat_map(|(key, entry)| entry.links().map(|link| (key.clone(), link.clone())))
            .collect()
    }

    pub(super) fn checkout(&mut self, key: &K) -> Checkout<C> {
        let entry = self.entries.entry(key.clone()).or_insert_with(Entry::new);
        let gone = entry.prune();
        if let Some(grant) = entry.take() {
            self.let_go(gone);
            self.not_idle(grant.id);
            return Checkout::Granted(grant);
        }
        let (full, dialling) = (
            entry.waiters.len() >= self.limits.waiters,
            entry.dial.is_some(),
        );
        self.let_go(gone);
        if full {
            return Checkout::TooManyWaiters;
        }
        let dial = if dialling {
            None
        } else {
            let Some(dial) = self.start_dial(key) else {
                self.tidy(key);
                return Checkout::TooManyConnections;
            };
            Some(dial)
        };
        let waiter = WaiterId(self.id());
        if let Some(entry) = self.entries.get_mut(key) {
            entry.waiters.push_back(waiter);
        }
        self.waiting.insert(waiter, key.clone());
        Checkout::Queued(waiter, dial)
    }

    /// The dial succeeded. Unless the connection is settled, [`settled`](Self::settled) or
    /// [`failed`](Self::failed) follows.
    pub(super) fn connected(&mut self, now: Instant, id: ConnectionId, link: C) -> Connected<C> {
        let mut outcome = Connected::default();
        let Some(key) = self.keys.get(&id).cloned() else {
            return outcome;
        };
        let Some(entry) = self.entries.get_mut(&key) else {
            return outcome;
        };
        let settled = link.is_settled();
        entry.insert(id, link);
        if settled {
            return self.settled(now, id);
        }
        self.serve(&key, &mut outcome.grants);
        outcome
    }

    /// It is known how many streams a connection takes.
    pub(super) fn settled(&mut self, now: Instant, id: ConnectionId) -> Connected<C> {
        let mut outcome = Connected::default();
        let Some(key) = self.keys.get(&id).cloned() else {
            return outcome;
        };
        let Some(entry) = self.entries.get_mut(&key) else {
            return outcome;
        };
        entry.dial = None;
        let Some((link, state)) = entry.get(id) else {
            return outcome;
        };
        // A peer that grants no stream at all must not be dialled for ever. One that is leaving already is
        // dialled anew, for each who waits at most once.
        let grants_some = link.max_streams() > 0 || link.is_closed();
        if state == Released::Idle {
            self.become_idle(now, id);
        }
        self.serve(&key, &mut outcome.grants);
        let Some(&next) = self
            .entries
            .get(&key)
            .and_then(|entry| entry.waiters.front())
        else {
            return outcome;
        };
        let dial = if grants_some {
            self.start_dial(&key)
        } else {
            None
        };
        match dial {
            Some(dial) => outcome.dial = Some((next, dial)),
            None => {
                outcome.refused = self.drain_waiters(&key);
                self.tidy(&key);
            }
        }
        outcome
    }

    /// The dial failed, or its connection before it was settled: everybody who waited for it has to be
    /// told.
    pub(super) fn failed(&mut self, id: ConnectionId) -> Vec<WaiterId> {
        let Some(key) = self.keys.remove(&id) else {
            return Vec::new();
        };
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.dial = None;
            self.dropped.extend(entry.remove(id));
        }
        let waiters = self.drain_waiters(&key);
        self.tidy(&key);
        waiters
    }

    /// A stream ended. Its place may be somebody else's at once.
    pub(super) fn released(
        &mut self,
        now: Instant,
        id: ConnectionId,
        lingered: bool,
    ) -> Vec<(WaiterId, Grant<C>)> {
        let mut grants = Vec::new();
        let Some(key) = self.keys.get(&id).cloned() else {
            self.parted(id);
            return grants;
        };
        if let Some(entry) = self.entries.get_mut(&key) {
            let was_idle = lingered && self.idle_since.contains_key(&id);
            if entry.release(id, lingered) == Released::Idle && entry.dial != Some(id) && !was_idle
            {
                self.become_idle(now, id);
            }
            self.serve(&key, &mut grants);
        }
        grants
    }

    /// Nobody has a stream any more, but its peer has not ended it: it has its place among the others, and does not keep the
    /// connection from making room.
    pub(super) fn lingers(&mut self, now: Instant, id: ConnectionId) {
        if let Some(key) = self.keys.get(&id)
            && let Some(entry) = self.entries.get_mut(key)
            && entry.linger(id) == Released::Idle
            && entry.dial != Some(id)
        {
            self.become_idle(now, id);
        }
    }

    /// A waiter gave up. Its dial goes on, for others and for those to come.
    pub(super) fn cancelled(&mut self, waiter: WaiterId) {
        if let Some(key) = self.waiting.remove(&waiter)
            && let Some(entry) = self.entries.get_mut(&key)
        {
            entry.waiters.retain(|&other| other != waiter);
        }
    }

    /// A connection has ended.
    pub(super) fn closed(&mut self, id: ConnectionId) {
        self.parting.remove(&id);
        if let Some(key) = self.keys.get(&id).cloned() {
            if let Some(entry) = self.entries.get_mut(&key) {
                self.dropped.extend(entry.remove(id));
            }
            self.forget(id);
            self.tidy(&key);
        }
    }

    /// Lets go of connections that have been idle for long enough.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(&(since, id)) = self.idle.first()
            && since + self.limits.idle <= now
        {
            self.part(id);
            self.evict(id, None);
        }
    }

    /// When to call [`expire`](Self::expire) next.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.idle
            .first()
            .map(|&(since, _)| since + self.limits.idle)
    }

    /// What was let go: drop it.
    pub(super) fn take_dropped(&mut self) -> Vec<C> {
        std::mem::take(&mut self.dropped)
    }

    /// Connections, those being dialled included.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn dials(&self) -> u64 {
        self.dials
    }

    /// Whether there is no place for a dial, and nothing that may make one.
    pub(super) fn is_full(&self) -> bool {
        !self.has_room() && self.to_evict().is_none()
    }

    fn has_room(&self) -> bool {
        self.keys.len() < self.limits.connections && self.may_part()
    }

    /// Peers that do not end their streams are no reason to have ever more connections.
    fn may_part(&self) -> bool {
        self.keys.len() + self.parting.len() < self.limits.connections.saturating_mul(2)
    }

    fn to_evict(&self) -> Option<ConnectionId> {
        let any = self.may_part();
        let mut oldest = self.idle.iter().map(|&(_, id)| id);
        oldest.find(|&id| any || self.streams(id) == 0)
    }

    fn streams(&self, id: ConnectionId) -> usize {
        let entry = self.keys.get(&id).and_then(|key| self.entries.get(key));
        entry.map_or(0, |entry| entry.streams(id))
    }

    fn part(&mut self, id: ConnectionId) {
        let streams = self.streams(id);
        if streams > 0 {
            self.parting.insert(id, streams);
        }
    }

    /// A stream has ended on a connection that was let go of.
    fn parted(&mut self, id: ConnectionId) {
        if let Some(streams) = self.parting.get_mut(&id) {
            *streams -= 1;
            if *streams == 0 {
                self.parting.remove(&id);
            }
        }
    }

    fn serve(&mut self, key: &K, grants: &mut Vec<(WaiterId, Grant<C>)>) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let gone = entry.prune();
        let first = grants.len();
        while let Some(&waiter) = entry.waiters.front()
            && let Some(grant) = entry.take()
        {
            entry.waiters.pop_front();
            self.waiting.remove(&waiter);
            grants.push((waiter, grant));
        }
        self.let_go(gone);
        self.tidy(key);
        for (_, grant) in &grants[first..] {
            if let Some(since) = self.idle_since.remove(&grant.id) {
                self.idle.remove(&(since, grant.id));
            }
        }
    }

    fn start_dial(&mut self, key: &K) -> Option<ConnectionId> {
        if !self.has_room() {
            let oldest = self.to_evict()?;
            self.part(oldest);
            self.evict(oldest, Some(key));
        }
        self.dials += 1;
        let id = ConnectionId(self.id());
        let entry = self.entries.entry(key.clone()).or_insert_with(Entry::new);
        entry.dial = Some(id);
        self.keys.insert(id, key.clone());
        Some(id)
    }

    /// Like [`closed`](Self::closed), but never removes the entry of `keep`.
    fn evict(&mut self, id: ConnectionId, keep: Option<&K>) {
        if let Some(key) = self.keys.get(&id).cloned() {
            if let Some(entry) = self.entries.get_mut(&key) {
                self.dropped.extend(entry.remove(id));
            }
            self.forget(id);
            if Some(&key) != keep {
                self.tidy(&key);
            }
        }
    }

    fn drain_waiters(&mut self, key: &K) -> Vec<WaiterId> {
        let waiters: Vec<_> = match self.entries.get_mut(key) {
            Some(entry) => entry.waiters.drain(..).collect(),
            None => Vec::new(),
        };
        for waiter in &waiters {
            self.waiting.remove(waiter);
        }
        waiters
    }

    fn become_idle(&mut self, now: Instant, id: ConnectionId) {
        self.not_idle(id);
        self.idle.insert((now, id));
        self.idle_since.insert(id, now);
    }

    fn not_idle(&mut self, id: ConnectionId) {
        if let Some(since) = self.idle_since.remove(&id) {
            self.idle.remove(&(since, id));
        }
    }

    fn let_go(&mut self, gone: Vec<(ConnectionId, C)>) {
        for (id, link) in gone {
            self.forget(id);
            self.dropped.push(link);
        }
    }

    fn forget(&mut self, id: ConnectionId) {
        self.keys.remove(&id);
        self.not_idle(id);
    }

    fn tidy(&mut self, key: &K) {
        if self.entries.get(key).is_some_and(Entry::is_empty) {
            self.entries.remove(key);
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

#[cfg(test)]
mod tests;
