//! A drain against what comes while it begins: plaintext, TLS connections and their tunnels.
//!
//! What accepts, judges and hands over does nothing here but call [`Live`], in the order of
//! `src/inbound/plaintext.rs` and `src/inbound/acceptor.rs`: who arrives is dropped after what became of it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::live::{Live, Phase, reaches};
use crate::registry::Registered;

fn source() -> SocketAddr {
    "10.0.0.1:80".parse().unwrap()
}

fn admit(live: &Live) -> Result<Registered, Refused> {
    live.admit(&context(), Judgement::L4, &Enforcement::new())
}

/// Plaintext that is accepted as a drain begins is refused there and then, or waited for: its listener has it before
/// it hears that nobody comes any more, and the drain ends after it.
#[test]
fn plaintext_is_refused_or_handed_over_before_the_drain_ends() {
    check(|| {
        let live = Arc::new(Live::new(8));
        let queue = Arc::new(loom::sync::Mutex::new(Vec::new()));
        let accepts = {
            let (live, queue) = (Arc::clone(&live), Arc::clone(&queue));
            thread::spawn(move || {
                let Some(arriving) = live.arrives(source()) else {
                    return 0;
                };
                let registered = admit(&live).unwrap();
                queue.lock().unwrap().push(registered);
                drop(arriving);
                1
            })
        };
        let listens = {
            let (judged, queue) = (live.all_judged(), Arc::clone(&queue));
            thread::spawn(move || {
                loom::future::block_on(judged);
                queue.lock().unwrap().drain(..).count()
            })
        };
        live.drain();
        loom::future::block_on(live.ended());
        assert_eq!((live.registry.live(), queue.lock().unwrap().len()), (0, 0));
        let accepted = accepts.join().unwrap();
        assert_eq!(listens.join().unwrap(), accepted, "taken by the listener");
        assert_eq!(live.registry.left(), accepted, "before the drain ended");
    });
}

/// Whoever is judged as the deadline passes is refused or cut.
#[test]
fn nobody_outlives_the_end() {
    check(|| {
        let live = Arc::new(Live::new(8));
        let comes = {
            let live = Arc::clone(&live);
            thread::spawn(move || {
                let arriving = live.arrives(source())?;
                let admitted = admit(&live);
                drop(arriving);
                Some(admitted)
            })
        };
        live.drain();
        live.cut();
        match comes.join().unwrap() {
            None | Some(Err(Refused::Over)) => {}
            Some(Ok(registered)) => assert!(registered.cut().is_cut(), "alive after the end"),
            Some(Err(refused)) => panic!("{refused:?}"),
        }
    });
}

/// A TLS connection that is there as a drain begins is waited for, or hears of the drain as soon as it is; who waits
/// to hear of the end does.
#[test]
fn a_tls_connection_is_waited_for_or_told() {
    check(|| {
        let live = Arc::new(Live::new(8));
        let gone = Arc::new(AtomicUsize::new(0));
        let told = Arc::new(AtomicUsize::new(0));
        let serves = {
            let (live, gone, told) = (Arc::clone(&live), Arc::clone(&gone), Arc::clone(&told));
            thread::spawn(move || {
                let open = live.sessions.enter(source());
                told.store(usize::from(live.is_draining()), Ordering::SeqCst);
                gone.store(1, Ordering::SeqCst);
                drop(open);
                loom::future::block_on(reaches(live.phases(), Phase::Over));
            })
        };
        live.drain();
        loom::future::block_on(live.ended());
        let (gone, was_told) = (gone.load(Ordering::SeqCst), told.load(Ordering::SeqCst));
        live.end();
        serves.join().unwrap();
        let told = was_told.max(told.load(Ordering::SeqCst));
        assert!(gone == 1 || told == 1, "neither waited for nor told");
    });
}

/// A tunnel that is taken while a drain begins is waited for: if not as itself, then as its TLS connection,
/// which outlives it.
#[test]
fn a_drain_does_not_miss_the_tunnel_that_is_taken_meanwhile() {
    check(|| {
        let live = Arc::new(Live::new(8));
        let session = live.sessions.enter(source());
        let takes = {
            let live = Arc::clone(&live);
            thread::spawn(move || {
                drop(admit(&live).unwrap());
                drop(session);
            })
        };
        live.drain();
        loom::future::block_on(live.ended());
        assert_eq!((live.registry.live(), live.registry.left()), (0, 1));
        takes.join().unwrap();
    });
}

/// Who drains again waits for the same drain, and takes nothing back of what is over.
#[test]
fn a_second_drain_undoes_nothing() {
    check(|| {
        let live = Arc::new(Live::new(8));
        let again = {
            let live = Arc::clone(&live);
            thread::spawn(move || live.drain())
        };
        live.drain();
        live.end();
        again.join().unwrap();
        assert!(live.is_over());
        assert!(live.arrives(source()).is_none());
    });
}
