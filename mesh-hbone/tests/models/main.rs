//! The orders in which threads can meet at the pool of connections, by loom: all in which one or two turns are cut short.
//!
//! The pool is the library's own files, with the tests that are in them, compiled here with loom's primitives in the
//! place of `std`'s and tokio's (`src/sync.rs` is the seam). What it asks of its surroundings is played beside.

mod surroundings;

#[path = "../../src/pool/mod.rs"]
#[allow(
    dead_code,
    private_interfaces,
    unreachable_pub,
    reason = "the library uses all of it, and others use the library"
)]
mod pool;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use loom::thread;

use client::{ConnectRequest, Connection, Sender};
use pool::{Lease, Pool};
use surroundings::{Error, ErrorKind, Side, Tunnel};
use surroundings::{Wire, client, config, driver, sync, tunnel};

/// `preemptions` is how many times a thread is interrupted that could go on: it says how long this takes.
fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// A peer of any name, to which connections are made that take so many streams.
struct Peer {
    max_streams: usize,
    /// Whether a connection is there before it is known how many streams it takes.
    early: bool,
    dials: AtomicUsize,
    wires: Mutex<Vec<Arc<Wire>>>,
}

impl Peer {
    fn new(max_streams: usize) -> Arc<Self> {
        Arc::new(Self {
            max_streams,
            early: false,
            dials: AtomicUsize::new(0),
            wires: Mutex::new(Vec::new()),
        })
    }

    fn early(max_streams: usize) -> Arc<Self> {
        let mut peer = Self::new(max_streams);
        Arc::get_mut(&mut peer).unwrap().early = true;
        peer
    }

    async fn dial(self: Arc<Self>) -> Result<(Connection, Sender), Error> {
        self.dials.fetch_add(1, Ordering::Relaxed);
        let wire = Wire::new(self.max_streams, !self.early);
        self.wires.lock().unwrap().push(Arc::clone(&wire));
        Ok(wire.ends())
    }

    async fn refuse(self: Arc<Self>) -> Result<(Connection, Sender), Error> {
        self.dials.fetch_add(1, Ordering::Relaxed);
        Err(Error::new(ErrorKind::Refused, Side::Upstream))
    }

    fn dials(&self) -> usize {
        self.dials.load(Ordering::Relaxed)
    }

    fn wires(&self) -> Vec<Arc<Wire>> {
        self.wires.lock().unwrap().clone()
    }
}

fn pool(max_connections: usize) -> Pool<u8> {
    Pool::new(config::Config {
        max_connections,
        max_waiters: 8,
        idle_timeout: Duration::from_secs(300),
        dial_timeout: Duration::from_secs(5),
    })
}

async fn checkout(pool: &Pool<u8>, peer: &Arc<Peer>) -> Result<Lease, Error> {
    let peer = Arc::clone(peer);
    pool.checkout(0, move || peer.dial()).await
}

/// Opens a tunnel, on another connection if one began to go away meanwhile.
async fn open(pool: &Pool<u8>, peer: &Arc<Peer>) -> Tunnel {
    loop {
        let lease = checkout(pool, peer).await.unwrap();
        match lease.connect(ConnectRequest).await {
            Ok((tunnel, _)) => return tunnel,
            Err(error) => assert!(error.is_retry_safe()),
        }
    }
}

fn caller(pool: &Pool<u8>, peer: &Arc<Peer>) -> thread::JoinHandle<Tunnel> {
    let (pool, peer) = (pool.clone(), Arc::clone(peer));
    thread::spawn(move || loom::future::block_on(open(&pool, &peer)))
}

/// Whoever asks while there is a dial waits for it, and has a stream of what it brings.
#[test]
fn those_who_come_at_once_share_one_dial() {
    check(2, || {
        let (pool, peer) = (pool(8), Peer::new(2));
        let other = caller(&pool, &peer);
        let one = loom::future::block_on(open(&pool, &peer));
        let other = other.join().unwrap();
        assert_eq!((peer.dials(), pool.connections()), (1, 1));
        assert_eq!(peer.wires()[0].streams(), 2);
        drop((one, other));
        assert_eq!(peer.wires()[0].streams(), 0);
    });
}

/// As long as nobody knows how many streams a connection takes it has one; the others wait for no other dial.
#[test]
fn those_who_come_at_once_share_a_connection_that_is_not_settled() {
    check(1, || {
        let (pool, peer) = (pool(8), Peer::early(2));
        let other = caller(&pool, &peer);
        let one = loom::future::block_on(open(&pool, &peer));
        let other = other.join().unwrap();
        assert_eq!((peer.dials(), pool.connections()), (1, 1));
        drop((one, other));
    });
}

/// A place that is given back is somebody else's, or what nobody waits for; never more streams than permitted.
#[test]
fn a_place_that_is_given_back_is_given_out() {
    check(2, || {
        let (pool, peer) = (pool(1), Peer::new(1));
        let first = loom::future::block_on(open(&pool, &peer));
        let next = {
            let (pool, peer) = (pool.clone(), Arc::clone(&peer));
            thread::spawn(move || {
                loom::future::block_on(async {
                    match checkout(&pool, &peer).await {
                        Ok(lease) => lease.connect(ConnectRequest).await.is_ok(),
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::PoolFull);
                            true
                        }
                    }
                })
            })
        };
        drop(first);
        assert!(next.join().unwrap());
        let last = loom::future::block_on(open(&pool, &peer));
        assert_eq!((peer.dials(), pool.connections()), (1, 1));
        drop(last);
    });
}

/// Who waits for a dial hears that it failed; the next to ask has one of its own.
#[test]
fn a_dial_that_fails_is_everybodys_who_waits() {
    check(2, || {
        let (pool, peer) = (pool(8), Peer::new(1));
        let ask = |pool: Pool<u8>, peer: Arc<Peer>| {
            loom::future::block_on(pool.checkout(0, move || peer.refuse())).map(drop)
        };
        let other = {
            let (pool, peer) = (pool.clone(), Arc::clone(&peer));
            thread::spawn(move || ask(pool, peer))
        };
        let one = ask(pool.clone(), Arc::clone(&peer));
        for answer in [one, other.join().unwrap()] {
            assert_eq!(answer.unwrap_err().kind(), ErrorKind::Refused);
        }
        assert!((1..=2).contains(&peer.dials()));
        assert_eq!(pool.connections(), 0);
    });
}

/// Who gives up takes the dial from nobody, and a place that was on its way to him is free again.
#[test]
fn who_gives_up_keeps_no_place() {
    check(2, || {
        let (pool, peer) = (pool(1), Peer::new(1));
        {
            let mut asks = Box::pin(checkout(&pool, &peer));
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            drop(asks.as_mut().poll(&mut cx));
        }
        // On its way back it is still a stream of the only connection that may be; loom lets nobody try for ever.
        let lease = loop {
            match loom::future::block_on(checkout(&pool, &peer)) {
                Ok(lease) => break lease,
                Err(error) => assert_eq!(error.kind(), ErrorKind::PoolFull),
            }
            thread::yield_now();
        };
        drop(lease);
        assert_eq!((peer.dials(), pool.connections()), (1, 1));
    });
}

/// A connection whose peer leaves while places on it are given out: whoever has none on it yet is on another, it
/// ends with its last stream, and is forgotten.
#[test]
fn a_connection_that_goes_away_is_given_to_nobody() {
    check(1, || {
        let (pool, peer) = (pool(2), Peer::new(3));
        let first = loom::future::block_on(open(&pool, &peer));
        let wire = Arc::clone(&peer.wires()[0]);
        let leaves = {
            let wire = Arc::clone(&wire);
            thread::spawn(move || wire.leave())
        };
        let one = loom::future::block_on(open(&pool, &peer));
        leaves.join().unwrap();
        let late = loom::future::block_on(checkout(&pool, &peer)).unwrap();
        assert!(
            !late.sender().is_of(&wire),
            "a place where nothing can be opened"
        );
        assert_eq!((peer.dials(), wire.has_ended()), (2, false));
        drop((first, one, late));
        assert_eq!(pool.connections(), 1);
    });
}

/// The last place on a connection is given back while another key wants its room: one gets it, nobody waits for ever.
#[test]
fn what_becomes_idle_makes_room() {
    check(2, || {
        let (pool, peer) = (pool(1), Peer::new(1));
        let tunnel = loom::future::block_on(open(&pool, &peer));
        let ends = thread::spawn(move || drop(tunnel));
        let other = Peer::new(1);
        let dialled = Arc::clone(&other);
        let lease = loom::future::block_on(pool.checkout(1, move || dialled.dial()));
        match lease {
            Ok(lease) => drop(lease),
            Err(error) => assert_eq!(error.kind(), ErrorKind::PoolFull),
        }
        ends.join().unwrap();
        assert_eq!(pool.connections(), 1);
    });
}

/// The same of a tunnel that nobody has: it is in nobody's way before its end and after it.
#[test]
fn what_lingers_makes_room() {
    check(1, || {
        let (pool, peer) = (pool(1), Peer::new(1));
        let mut tunnel = loom::future::block_on(open(&pool, &peer));
        tunnel.linger();
        let ends = thread::spawn(move || drop(tunnel));
        let other = Peer::new(1);
        let dialled = Arc::clone(&other);
        let lease = loom::future::block_on(pool.checkout(2, move || dialled.dial()));
        drop(lease.unwrap());
        ends.join().unwrap();
        assert_eq!((other.dials(), pool.connections()), (1, 1));
    });
}

/// The pool goes while a tunnel does, and while another is dialled for: its connections end.
#[test]
fn the_last_to_leave_ends_the_connection() {
    check(2, || {
        let (pool, peer) = (pool(8), Peer::new(2));
        let tunnel = loom::future::block_on(open(&pool, &peer));
        let wire = Arc::clone(&peer.wires()[0]);
        let ends = thread::spawn(move || drop(tunnel));
        drop(pool);
        ends.join().unwrap();
        // Else its task would wait for ever, which loom does not let pass.
        drop(wire);
    });
}
