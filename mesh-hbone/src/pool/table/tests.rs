use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::super::entry::{ConnectionId, Grant, Link, WaiterId};
use super::{Checkout, Connected, Limits, Table};

const IDLE: Duration = Duration::from_secs(300);

#[derive(Debug, Clone)]
struct Fake {
    key: u8,
    max: Rc<Cell<usize>>,
    closed: Rc<Cell<bool>>,
    settled: Rc<Cell<bool>>,
}

impl Fake {
    fn new(key: u8, max: usize) -> Self {
        Self {
            key,
            max: Rc::new(Cell::new(max)),
            closed: Rc::default(),
            settled: Rc::new(Cell::new(true)),
        }
    }

    /// As a connection is before its peer's SETTINGS.
    fn early(key: u8) -> Self {
        let link = Self::new(key, 1);
        link.settled.set(false);
        link
    }
}

impl Link for Fake {
    fn max_streams(&self) -> usize {
        self.max.get()
    }

    fn is_closed(&self) -> bool {
        self.closed.get()
    }

    fn is_settled(&self) -> bool {
        self.settled.get()
    }
}

fn table(connections: usize) -> Table<u8, Fake> {
    Table::new(Limits {
        connections,
        waiters: 50,
        idle: IDLE,
    })
}

fn queued(checkout: Checkout<Fake>) -> (WaiterId, Option<ConnectionId>) {
    match checkout {
        Checkout::Queued(waiter, dial) => (waiter, dial),
        other => panic!("{other:?}"),
    }
}

fn granted(checkout: Checkout<Fake>) -> Grant<Fake> {
    match checkout {
        Checkout::Granted(grant) => grant,
        other => panic!("{other:?}"),
    }
}

fn open(table: &mut Table<u8, Fake>, now: Instant, key: u8, max: usize) -> (Grant<Fake>, Fake) {
    let link = Fake::new(key, max);
    let (_, dial) = queued(table.checkout(&key));
    let mut connected = table.connected(now, dial.unwrap(), link.clone());
    assert!(connected.dial.is_none() && connected.refused.is_empty());
    (connected.grants.remove(0).1, link)
}

#[test]
fn one_dial_serves_all_who_wait_in_order() {
    let (now, mut table) = (Instant::now(), table(10));
    let (first, dial) = queued(table.checkout(&1));
    let others: Vec<_> = (0..4)
        .map(|_| {
            let (waiter, dial) = queued(table.checkout(&1));
            assert_eq!(dial, None);
            waiter
        })
        .collect();
    let connected = table.connected(now, dial.unwrap(), Fake::new(1, 3));
    let served: Vec<_> = connected.grants.iter().map(|(waiter, _)| *waiter).collect();
    assert_eq!(served, [first, others[0], others[1]]);
    // Two are left: the next dial is for them, in the name of the first of them.
    let (waiter, dial) = connected.dial.unwrap();
    assert_eq!(waiter, others[2]);
    let connected = table.connected(now, dial, Fake::new(1, 3));
    let served: Vec<_> = connected.grants.iter().map(|(waiter, _)| *waiter).collect();
    assert_eq!(served, others[2..]);
}

#[test]
fn a_failed_dial_is_told_to_all_who_asked_before_and_to_nobody_after() {
    let mut table = table(10);
    let (first, dial) = queued(table.checkout(&1));
    let (second, _) = queued(table.checkout(&1));
    assert_eq!(table.failed(dial.unwrap()), [first, second]);
    assert_eq!(table.len(), 0);
    let (_, dial) = queued(table.checkout(&1));
    assert!(dial.is_some(), "a failure is not remembered");
}

#[test]
fn a_stream_that_ends_is_the_next_waiters_at_once() {
    let (now, mut table) = (Instant::now(), table(10));
    let (grant, _) = open(&mut table, now, 1, 1);
    let (waiter, dial) = queued(table.checkout(&1));
    let served = table.released(now, grant.id, false);
    assert_eq!(
        (served.len(), served[0].0, served[0].1.id),
        (1, waiter, grant.id)
    );
    // The dial that was begun for it makes a connection for those to come.
    let connected = table.connected(now, dial.unwrap(), Fake::new(1, 1));
    assert!(
        connected.grants.is_empty() && connected.refused.is_empty() && connected.dial.is_none()
    );
    assert_eq!(granted(table.checkout(&1)).id, dial.unwrap());
}

#[test]
fn a_connection_that_was_full_is_used_again() {
    let (now, mut table) = (Instant::now(), table(10));
    let (grant, _) = open(&mut table, now, 1, 2);
    let second = granted(table.checkout(&1));
    assert_eq!(second.id, grant.id);
    let (waiter, _) = queued(table.checkout(&1));
    table.cancelled(waiter);
    table.released(now, grant.id, false);
    assert_eq!(granted(table.checkout(&1)).id, grant.id);
}

#[test]
fn a_peer_may_change_its_limit() {
    let (now, mut table) = (Instant::now(), table(10));
    let (_, link) = open(&mut table, now, 1, 2);
    link.max.set(1);
    let (_, dial) = queued(table.checkout(&1));
    assert!(dial.is_some());
    link.max.set(2);
    granted(table.checkout(&1));
}

#[test]
fn a_connection_that_goes_away_gets_no_more_streams() {
    let (now, mut table) = (Instant::now(), table(10));
    let (old, link) = open(&mut table, now, 1, 9);
    link.closed.set(true);
    let (_, dial) = queued(table.checkout(&1));
    let new = dial.unwrap();
    assert_eq!(table.take_dropped().len(), 1);
    table.connected(now, new, Fake::new(1, 9));
    assert!(table.released(now, old.id, false).is_empty());
    assert_eq!(granted(table.checkout(&1)).id, new);
}

#[test]
fn a_peer_that_permits_no_stream_is_not_dialled_for_ever() {
    let (now, mut table) = (Instant::now(), table(10));
    let (waiter, dial) = queued(table.checkout(&1));
    let connected = table.connected(now, dial.unwrap(), Fake::new(1, 0));
    assert!(connected.grants.is_empty() && connected.dial.is_none());
    assert_eq!(connected.refused, [waiter]);
}

#[test]
fn idle_connections_go_after_their_time() {
    let (now, mut table) = (Instant::now(), table(10));
    let (grant, _) = open(&mut table, now, 1, 9);
    assert_eq!(table.next_expiry(), None);
    table.released(now, grant.id, false);
    assert_eq!(table.next_expiry(), Some(now + IDLE));
    let later = now + IDLE - Duration::from_secs(1);
    table.expire(later);
    assert_eq!(table.len(), 1);
    let grant = granted(table.checkout(&1));
    assert_eq!(table.next_expiry(), None);
    table.released(later, grant.id, false);
    table.expire(now + IDLE);
    assert_eq!(table.len(), 1);
    table.expire(later + IDLE);
    assert_eq!(
        (table.len(), table.take_dropped().len(), table.next_expiry()),
        (0, 1, None)
    );
}

#[test]
fn a_full_pool_evicts_what_has_been_idle_longest() {
    let (now, mut table) = (Instant::now(), table(3));
    let second = now + Duration::from_secs(1);
    let (a, _) = open(&mut table, now, 1, 9);
    let (b, _) = open(&mut table, now, 2, 9);
    let (_busy, _) = open(&mut table, now, 3, 9);
    table.released(second, a.id, false);
    table.released(now, b.id, false);
    let (_, dial) = queued(table.checkout(&4));
    assert!(dial.is_some());
    assert_eq!(table.take_dropped()[0].key, 2);
    assert_eq!(table.len(), 3);
    queued(table.checkout(&5));
    assert_eq!(table.take_dropped()[0].key, 1);
    assert!(matches!(table.checkout(&6), Checkout::TooManyConnections));
    assert_eq!(table.len(), 3);
}

#[test]
fn a_full_pool_evicts_a_connection_whose_streams_only_linger() {
    let (now, mut table) = (Instant::now(), table(1));
    let (one, link) = open(&mut table, now, 1, 9);
    let Checkout::Granted(other) = table.checkout(&1) else {
        panic!("there is room on it");
    };
    table.lingers(now, one.id);
    assert!(table.is_full());
    assert!(matches!(table.checkout(&2), Checkout::TooManyConnections));
    table.lingers(now, other.id);
    assert!(!table.is_full());
    // They have their places still.
    link.max.set(2);
    let (waiter, dial) = queued(table.checkout(&1));
    assert!(dial.is_some());
    table.cancelled(waiter);
    assert_eq!(table.take_dropped()[0].key, 1);
    assert!(table.released(now, one.id, true).is_empty());
    assert!(table.released(now, other.id, true).is_empty());
}

#[test]
fn too_many_waiters_are_turned_away() {
    let mut table = table(10);
    for _ in 0..50 {
        queued(table.checkout(&1));
    }
    assert!(matches!(table.checkout(&1), Checkout::TooManyWaiters));
    queued(table.checkout(&2));
}

#[test]
fn before_the_settings_one_who_waits_is_served_and_the_others_wait_for_the_same_dial() {
    let (now, mut table) = (Instant::now(), table(10));
    let (first, dial) = queued(table.checkout(&1));
    let id = dial.unwrap();
    let (second, _) = queued(table.checkout(&1));
    let link = Fake::early(1);
    let connected = table.connected(now, id, link.clone());
    assert_eq!(connected.grants[0].0, first);
    assert!(connected.dial.is_none() && connected.refused.is_empty());
    let (third, dial) = queued(table.checkout(&1));
    assert_eq!(dial, None, "a second dial");

    link.settled.set(true);
    link.max.set(2);
    let settled = table.settled(now, id);
    assert_eq!((settled.grants.len(), settled.grants[0].0), (1, second));
    assert_eq!(settled.dial.map(|(waiter, _)| waiter), Some(third));
}

#[test]
fn a_connection_that_fails_before_the_settings_fails_as_its_dial() {
    let (now, mut table) = (Instant::now(), table(10));
    let (_, dial) = queued(table.checkout(&1));
    let id = dial.unwrap();
    let (second, _) = queued(table.checkout(&1));
    let link = Fake::early(1);
    let grant = table.connected(now, id, link.clone()).grants.remove(0).1;
    link.closed.set(true);
    let (third, dial) = queued(table.checkout(&1));
    assert_eq!(dial, None);
    assert_eq!(table.failed(id), [second, third]);
    assert!(table.released(now, grant.id, false).is_empty());
    table.take_dropped();
    assert_eq!((table.len(), table.entries.len()), (0, 0));
}

#[test]
fn a_peer_that_leaves_with_its_settings_is_dialled_anew_for_those_who_wait() {
    let (now, mut table) = (Instant::now(), table(10));
    let (_, dial) = queued(table.checkout(&1));
    let id = dial.unwrap();
    let (second, _) = queued(table.checkout(&1));
    let link = Fake::early(1);
    table.connected(now, id, link.clone());
    link.settled.set(true);
    link.closed.set(true);
    let settled = table.settled(now, id);
    assert!(settled.grants.is_empty() && settled.refused.is_empty());
    assert_eq!(settled.dial.map(|(waiter, _)| waiter), Some(second));
}

#[test]
fn a_connection_is_not_idle_before_the_settings() {
    let (now, mut table) = (Instant::now(), table(1));
    let (_, dial) = queued(table.checkout(&1));
    let link = Fake::early(1);
    let grant = table
        .connected(now, dial.unwrap(), link.clone())
        .grants
        .remove(0)
        .1;
    table.released(now, grant.id, false);
    assert!(table.is_full());
    assert!(matches!(table.checkout(&2), Checkout::TooManyConnections));
    link.settled.set(true);
    table.settled(now, dial.unwrap());
    assert!(!table.is_full());
    assert_eq!(table.next_expiry(), Some(now + IDLE));
}

#[derive(Debug, Clone)]
enum Op {
    Checkout(u8),
    Connect(usize, usize),
    Early(usize),
    Settle(usize, usize),
    Fail(usize),
    Linger(usize),
    Release(usize),
    Cancel(usize),
    Close(usize),
    GoAway(usize),
    Limit(usize, usize),
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0u8..4).prop_map(Op::Checkout),
        3 => (any::<usize>(), 0usize..4).prop_map(|(dial, max)| Op::Connect(dial, max)),
        3 => any::<usize>().prop_map(Op::Early),
        3 => (any::<usize>(), 0usize..4).prop_map(|(link, max)| Op::Settle(link, max)),
        1 => any::<usize>().prop_map(Op::Fail),
        2 => any::<usize>().prop_map(Op::Linger),
        4 => any::<usize>().prop_map(Op::Release),
        1 => any::<usize>().prop_map(Op::Cancel),
        1 => any::<usize>().prop_map(Op::Close),
        1 => any::<usize>().prop_map(Op::GoAway),
        1 => (any::<usize>(), 0usize..4).prop_map(|(link, max)| Op::Limit(link, max)),
        1 => (0u64..400).prop_map(Op::Pass),
    ]
}

/// What the outside knows: who waits, what was dialled, which streams are open.
#[derive(Default)]
struct Model {
    waiting: BTreeMap<WaiterId, u8>,
    dials: BTreeMap<ConnectionId, u8>,
    links: BTreeMap<ConnectionId, Fake>,
    /// Of `dials`, those that are connections already.
    early: BTreeMap<ConnectionId, Fake>,
    /// The last is whether it lingers.
    streams: Vec<(ConnectionId, u8, bool)>,
}

impl Model {
    fn nth<K: Copy + Ord, V>(map: &BTreeMap<K, V>, index: usize) -> Option<K> {
        (!map.is_empty()).then(|| *map.keys().nth(index % map.len()).unwrap())
    }

    /// Key equality means identity: the stream must be on a connection that was dialled for the key.
    fn grant(&mut self, key: u8, grant: &Grant<Fake>) {
        assert_eq!(grant.link.key, key);
        assert!(
            !grant.link.closed.get(),
            "a stream on a connection that goes away"
        );
        self.streams.push((grant.id, key, false));
        let open = self
            .streams
            .iter()
            .filter(|(id, ..)| *id == grant.id)
            .count();
        assert!(
            open <= grant.link.max.get(),
            "{open} streams of {}",
            grant.link.max.get()
        );
    }

    fn dial(&mut self, id: ConnectionId, key: u8) {
        assert!(
            !self.dials.values().any(|&other| other == key),
            "two dials for one key"
        );
        self.dials.insert(id, key);
    }

    /// What follows for a key once it is known how many streams a connection takes.
    fn follow(&mut self, key: u8, outcome: Connected<Fake>) {
        self.serve(outcome.grants);
        for waiter in outcome.refused {
            assert_eq!(self.waiting.remove(&waiter), Some(key));
        }
        if let Some((waiter, dial)) = outcome.dial {
            assert_eq!(self.waiting.get(&waiter), Some(&key));
            self.dial(dial, key);
        }
    }

    fn serve(&mut self, grants: Vec<(WaiterId, Grant<Fake>)>) {
        for (waiter, grant) in grants {
            let key = self.waiting.remove(&waiter).expect("granted to nobody");
            self.grant(key, &grant);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(512), ..ProptestConfig::default() })]

    /// PT-11: streams within limits, one dial a key, no reuse across keys, no waiter forgotten.
    #[test]
    fn any_history_keeps_the_promises(ops in proptest::collection::vec(op(), 1..120), connections in 1usize..6) {
        let mut now = Instant::now();
        let mut table = Table::new(Limits { connections, waiters: 8, idle: IDLE });
        let mut model = Model::default();
        for op in ops {
            match op {
                Op::Checkout(key) => match table.checkout(&key) {
                    Checkout::Granted(grant) => model.grant(key, &grant),
                    Checkout::Queued(waiter, dial) => {
                        model.waiting.insert(waiter, key);
                        if let Some(dial) = dial {
                            model.dial(dial, key);
                        }
                    }
                    Checkout::TooManyWaiters => {
                        prop_assert_eq!(model.waiting.values().filter(|&&other| other == key).count(), 8);
                    }
                    Checkout::TooManyConnections => prop_assert!(table.len() == connections || table.len() + table.parting.len() == 2 * connections),
                },
                Op::Connect(index, max) => if let Some(id) = Model::nth(&model.dials, index) && !model.early.contains_key(&id) {
                    let key = model.dials.remove(&id).unwrap();
                    let link = Fake::new(key, max);
                    model.links.insert(id, link.clone());
                    let outcome = table.connected(now, id, link);
                    model.follow(key, outcome);
                },
                Op::Early(index) => if let Some(id) = Model::nth(&model.dials, index) && !model.early.contains_key(&id) {
                    let key = model.dials[&id];
                    let link = Fake::early(key);
                    model.early.insert(id, link.clone());
                    let connected = table.connected(now, id, link);
                    prop_assert!(connected.dial.is_none() && connected.refused.is_empty());
                    model.serve(connected.grants);
                },
                Op::Settle(index, max) => if let Some(id) = Model::nth(&model.early, index) {
                    let key = model.dials.remove(&id).unwrap();
                    let link = model.early.remove(&id).unwrap();
                    link.settled.set(true);
                    link.max.set(max);
                    model.links.insert(id, link);
                    let outcome = table.settled(now, id);
                    model.follow(key, outcome);
                },
                Op::Fail(index) => if let Some(id) = Model::nth(&model.dials, index) {
                    let key = model.dials.remove(&id).unwrap();
                    if let Some(link) = model.early.remove(&id) {
                        link.closed.set(true);
                    }
                    let told: BTreeSet<_> = table.failed(id).into_iter().collect();
                    let asked: BTreeSet<_> = model.waiting.iter().filter(|(_, other)| **other == key).map(|(id, _)| *id).collect();
                    prop_assert_eq!(&told, &asked);
                    model.waiting.retain(|waiter, _| !told.contains(waiter));
                },
                Op::Release(index) => if !model.streams.is_empty() {
                    let (id, _, lingers) = model.streams.remove(index % model.streams.len());
                    let grants = table.released(now, id, lingers);
                    model.serve(grants);
                },
                Op::Linger(index) => if !model.streams.is_empty() {
                    let index = index % model.streams.len();
                    let (id, _, lingers) = &mut model.streams[index];
                    if !std::mem::replace(lingers, true) {
                        table.lingers(now, *id);
                    }
                },
                Op::Cancel(index) => if let Some(waiter) = Model::nth(&model.waiting, index) {
                    model.waiting.remove(&waiter);
                    table.cancelled(waiter);
                },
                Op::Close(index) => if let Some(id) = Model::nth(&model.links, index) {
                    model.links.remove(&id).unwrap().closed.set(true);
                    table.closed(id);
                },
                Op::GoAway(index) => {
                    if let Some(id) = Model::nth(&model.links, index) {
                        model.links[&id].closed.set(true);
                    }
                    if let Some(id) = Model::nth(&model.early, index) {
                        model.early[&id].closed.set(true);
                    }
                },
                Op::Limit(index, max) => if let Some(id) = Model::nth(&model.links, index) {
                    model.links[&id].max.set(max);
                },
                Op::Pass(seconds) => {
                    now += Duration::from_secs(seconds);
                    table.expire(now);
                    if let Some(next) = table.next_expiry() {
                        prop_assert!(next > now && next <= now + IDLE);
                    }
                }
            }
            table.take_dropped();
            prop_assert!(table.len() <= connections && table.len() + table.parting.len() <= 2 * connections);
            prop_assert_eq!(table.idle.len(), table.idle_since.len());
            // What nobody has is in nobody's way, and what somebody has does not go.
            for (id, link) in &model.links {
                let mut streams = model.streams.iter().filter(|(of, ..)| of == id);
                let is_held = streams.any(|(.., lingers)| !lingers);
                let is_here = table.keys.contains_key(id);
                prop_assert_eq!(is_here && !is_held, table.idle_since.contains_key(id));
                prop_assert!(is_here || !is_held || link.closed.get());
            }
            for key in model.waiting.values() {
                prop_assert!(model.dials.values().any(|dialled| dialled == key), "a waiter whom no dial will wake");
            }
        }
        // Nothing is left of what is over.
        for (id, _, lingers) in std::mem::take(&mut model.streams) {
            let grants = table.released(now, id, lingers);
            model.serve(grants);
        }
        for id in model.dials.into_keys() {
            table.failed(id);
        }
        for (id, _, lingers) in model.streams {
            table.released(now, id, lingers);
        }
        table.expire(now + IDLE);
        prop_assert_eq!((table.len(), table.entries.len(), table.waiting.len()), (0, 0, 0));
        prop_assert_eq!((table.idle.len(), table.idle_since.len(), table.parting.len()), (0, 0, 0));
        let _: HashMap<ConnectionId, u8> = table.keys;
    }
}
