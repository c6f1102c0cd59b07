//! Slots that sources share: who has fewest is served first, and who has most gives way.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

/// A number of slots for handshakes.
pub(super) struct Slots {
    /// After which a handshake may have to give way.
    grace: Duration,
    // Held while one connection enters or leaves: O(log n), nothing waits inside.
    state: Mutex<State>,
}

/// A connection that wants a slot or has one; leaving is dropping it.
pub(super) struct Slot<'a> {
    slots: &'a Slots,
    source: IpAddr,
    id: u64,
    granted: oneshot::Receiver<()>,
    evicted: oneshot::Receiver<()>,
}

impl Slots {
    pub(super) fn new(count: usize, grace: Duration) -> Self {
        Self {
            grace,
            state: Mutex::new(State::new(count)),
        }
    }

    pub(super) fn enter(&self, source: IpAddr) -> Slot<'_> {
        let (id, granted, evicted) = self.state().enter(source, Instant::now());
        Slot {
            slots: self,
            source,
            id,
            granted,
            evicted,
        }
    }

    /// Slots that are taken.
    pub(super) fn taken(&self) -> usize {
        self.state().taken
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in there can panic half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot<'_> {
    /// Waits for the slot.
    pub(super) async fn granted(&mut self) {
        loop {
            let now = Instant::now();
            let room = self
                .slots
                .state()
                .make_room(self.source, now, self.slots.grace);
            let look_again = match room {
                Room::Made | Room::NotNeeded => now,
                Room::Later(at) => at,
            };
            tokio::select! {
                biased;
                // The sender is kept until it has sent.
                _ = &mut self.granted => return,
                () = sleep_until(look_again) => {}
            }
        }
    }

    /// Resolves when somebody else is to have the slot.
    pub(super) async fn evicted(&mut self) {
        if (&mut self.evicted).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.slots
            .state()
            .leave(self.source, self.id, Instant::now());
    }
}

struct State {
    count: usize,
    /// Of them, those that only a source without any is given.
    reserved: usize,
    taken: usize,
    next_id: u64,
    sources: HashMap<IpAddr, Source>,
    /// The last is the source with most slots; of equals the one whose oldest is oldest.
    busiest: BTreeSet<(usize, Reverse<u64>, IpAddr)>,
    /// The first is the source with fewest slots of those that wait; of equals the one that waits
    /// longest.
    next: BTreeSet<(usize, u64, IpAddr)>,
}

/// Ids grow with time, so that the first of each is the oldest.
#[derive(Default)]
struct Source {
    waiting: BTreeMap<u64, Entry>,
    running: BTreeMap<u64, (Instant, oneshot::Sender<()>)>,
}

struct Entry {
    granted: oneshot::Sender<()>,
    evicted: oneshot::Sender<()>,
}

#[derive(Debug, PartialEq, Eq)]
enum Room {
    NotNeeded,
    Made,
    /// Nobody has to give way before this time.
    Later(Instant),
}

impl State {
    fn new(count: usize) -> Self {
        Self {
            count,
            reserved: count / 4,
            taken: 0,
            next_id: 0,
            sources: HashMap::new(),
            busiest: BTreeSet::new(),
            next: BTreeSet::new(),
        }
    }

    fn enter(
        &mut self,
        source: IpAddr,
        now: Instant,
    ) -> (u64, oneshot::Receiver<()>, oneshot::Receiver<()>) {
        let id = self.next_id;
        self.next_id += 1;
        let (granted, is_granted) = oneshot::channel();
        let (evicted, is_evicted) = oneshot::channel();
        let entry = Entry { granted, evicted };
        self.change(source, |source| source.waiting.insert(id, entry));
        self.grant(now);
        (id, is_granted, is_evicted)
    }

    fn leave(&mut self, source: IpAddr, id: u64, now: Instant) {
        let ran = self.change(source, |source| {
            source.waiting.remove(&id);
            source.running.remove(&id).is_some()
        });
        // Those that were evicted have left already.
        self.taken -= usize::from(ran);
        self.grant(now);
    }

    /// Gives free slots to those who wait.
    fn grant(&mut self, now: Instant) {
        while let Some(&(running, ..)) = self.next.first()
            && self.taken < self.limit(running)
            && self.grant_next(now)
        {}
    }

    /// Gives a slot to the first in the queue, if there is one.
    fn grant_next(&mut self, now: Instant) -> bool {
        let Some(&(_, id, source)) = self.next.first() else {
            return false;
        };
        let entry = self.change(source, |source| source.waiting.remove(&id));
        let Some(Entry { granted, evicted }) = entry else {
            return false;
        };
        self.taken += 1;
        self.change(source, |source| source.running.insert(id, (now, evicted)));
        // It may be leaving just now, and gives the slot back then.
        let _ = granted.send(());
        true
    }

    /// How many slots may be taken before one more goes to a source that has `running`.
    ///
    /// Without the difference, sources that fill all slots at once would make everybody else wait for a grace.
    fn limit(&self, running: usize) -> usize {
        match running {
            0 => self.count,
            _ => self.count - self.reserved,
        }
    }

    /// Takes a slot from the source with most, if `source` waits and would still have fewer with it.
    fn make_room(&mut self, source: IpAddr, now: Instant, grace: Duration) -> Room {
        let Some(own) = self.sources.get(&source) else {
            return Room::NotNeeded;
        };
        let Some(&(most, Reverse(oldest), busiest)) = self.busiest.last() else {
            return Room::NotNeeded;
        };
        if own.waiting.is_empty() {
            return Room::NotNeeded;
        }
        let later = Room::Later(now + grace);
        if most <= own.running.len() + 1 {
            return later;
        }
        let running = self.sources.get(&busiest);
        let Some((since, _)) = running.and_then(|source| source.running.get(&oldest)) else {
            return later;
        };
        let due = *since + grace;
        if now < due {
            return Room::Later(due);
        }
        let victim = self.change(busiest, |source| source.running.remove(&oldest));
        if let Some((_, evicted)) = victim {
            self.taken -= 1;
            // It may be leaving just now.
            let _ = evicted.send(());
        }
        // The slot goes from hand to hand, whatever is kept for others.
        self.grant_next(now);
        Room::Made
    }

    /// Changes one source's connections and its ranks with them.
    fn change<T>(&mut self, address: IpAddr, change: impl FnOnce(&mut Source) -> T) -> T {
        let source = self.sources.entry(address).or_default();
        if let Some(rank) = source.busy(address) {
            self.busiest.remove(&rank);
        }
        if let Some(rank) = source.waits(address) {
            self.next.remove(&rank);
        }
        let changed = change(source);
        self.busiest.extend(source.busy(address));
        self.next.extend(source.waits(address));
        if source.running.is_empty() && source.waiting.is_empty() {
            self.sources.remove(&address);
        }
        changed
    }
}

impl Source {
    fn busy(&self, address: IpAddr) -> Option<(usize, Reverse<u64>, IpAddr)> {
        let oldest = self.running.first_key_value()?.0;
        Some((self.running.len(), Reverse(*oldest), address))
    }

    fn waits(&self, address: IpAddr) -> Option<(usize, u64, IpAddr)> {
        let oldest = self.waiting.first_key_value()?.0;
        Some((self.running.len(), *oldest, address))
    }
}

#[cfg(test)]
mod tests;
