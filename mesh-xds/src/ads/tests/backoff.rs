//! attempts are spread, and soon at first.

use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::ads::backoff::Backoff;
use crate::error::ErrorKind;

const FIRST: Duration = Duration::from_millis(1500);
const MAX: Duration = Duration::from_secs(30);
const CLIENTS: u64 = 1000;

/// The most attempts in any tenth of a second.
fn peak(mut attempts: Vec<Duration>) -> usize {
    attempts.sort_unstable();
    let together = (0..attempts.len()).map(|from| {
        let until = attempts[from] + Duration::from_millis(100);
        attempts[from..].partition_point(|at| *at < until)
    });
    together.max().unwrap_or_default()
}

/// R-03, V031: they come back with jitter.
#[test]
fn many_clients_do_not_come_back_together() {
    let (mut all, mut later) = (Vec::new(), Vec::new());
    for seed in 0..CLIENTS {
        let mut backoff = Backoff::new(FIRST, MAX, seed * 7919);
        let waits: Vec<_> = std::iter::repeat_with(|| backoff.wait()).take(12).collect();
        let mut at = Duration::ZERO;
        let attempts: Vec<_> = waits
            .iter()
            .map(|wait| {
                at += *wait;
                at
            })
            .collect();
        let early = attempts.iter().filter(|at| **at < Duration::from_secs(1));
        assert!(early.count() <= 2, "{attempts:?}");
        assert!(attempts[2] < Duration::from_secs(8), "{attempts:?}");
        assert!(waits.iter().all(|wait| *wait <= MAX), "{waits:?}");
        all.extend(attempts);
        later.extend_from_slice(&waits[9..]);
    }
    let most = peak(all);
    assert!(most <= 100, "{most} of {CLIENTS} in a tenth of a second");
    // All of the range is used.
    let (shortest, longest) = (later.iter().min(), later.iter().max());
    assert!(
        shortest < Some(&(FIRST + Duration::from_secs(1))),
        "{shortest:?}"
    );
    assert!(
        longest > Some(&(MAX - Duration::from_secs(1))),
        "{longest:?}"
    );
}

/// For five minutes every stream is reset, five times a second. Each client says again what it has, and nothing
/// is sent again.
#[test]
fn many_clients_of_one_that_flaps_do_not_come_back_together() {
    let begin = Instant::now();
    let tick = Duration::from_millis(200);
    let first_reset = begin + tick;
    let mut all = Vec::new();
    for seed in 0..CLIENTS {
        let settings = settings(&[(URL, Interest::All)]).with_seed(seed * 7919);
        let mut session = Session::new(settings, Arc::new(Texts), begin).expect("settings");
        let mut now = begin;
        let mut attempts = Vec::new();
        while now < begin + Duration::from_secs(300) {
            open(&mut session, now);
            let is_first = now == begin;
            let versions = delta(&mut session).initial_resource_versions.len();
            assert_eq!(versions, usize::from(!is_first));
            let resources = match is_first {
                true => vec![resource("a", "1", "x")],
                false => Vec::new(),
            };
            let delivery = session.received(response("n", resources, &[]));
            assert_eq!(delivery.updates.len(), usize::from(is_first));
            assert_eq!(delivery.removed, []);
            session.judged([]);
            let ticks = (now - begin).as_millis() / tick.as_millis() + 1;
            let reset = begin + tick * u32::try_from(ticks).expect("few");
            session.closed(Some(ErrorKind::Unavailable), reset);
            now = session.poll_timeout().expect("a retry");
            attempts.push(now - first_reset);
        }
        let early = attempts.iter().filter(|at| **at < Duration::from_secs(1));
        assert!(early.count() <= 2, "{attempts:?}");
        let pairs = attempts.windows(3);
        let close = pairs.filter(|three| three[2] - three[0] < Duration::from_secs(1));
        assert_eq!(close.count(), 0, "three in a second: {attempts:?}");
        all.extend(attempts);
    }
    let most = peak(all);
    assert!(most <= 100, "{most} of {CLIENTS} in a tenth of a second");
}

/// A stream that lasted was not lost to a control plane that flaps: the next attempt is soon.
#[test]
fn after_a_stream_that_lasted_the_next_attempt_is_soon() {
    let mut soon = 0;
    for seed in 0..100 {
        let settings = settings(&[(URL, Interest::All)]).with_seed(seed * 7919);
        let now = Instant::now();
        let mut session = Session::new(settings, Arc::new(Texts), now).expect("settings");
        open(&mut session, now);
        delta(&mut session);
        session.received(response("n", Vec::new(), &[]));
        session.judged([]);
        session.closed(None, now + FIRST);
        let wait = wait(&session, now + FIRST);
        assert!(wait <= FIRST, "{wait:?}");
        soon += u32::from(wait < FIRST / 2);
    }
    assert!((30..70).contains(&soon), "{soon} of 100");
}

#[test]
fn an_answer_makes_the_next_attempt_soon() {
    let mut backoff = Backoff::new(FIRST, MAX, 1);
    for _ in 0..1000 {
        assert!(backoff.wait() <= MAX);
    }
    backoff.reset();
    assert!(backoff.wait() <= FIRST);
}

#[test]
fn waits_that_are_all_the_longest_are_spread_too() {
    let mut backoff = Backoff::new(MAX, MAX, 1);
    let mut waits: Vec<_> = std::iter::repeat_with(|| backoff.wait())
        .take(100)
        .collect();
    waits.sort_unstable();
    assert!(
        waits[99] <= MAX && waits[99] - waits[0] > MAX / 3,
        "{waits:?}"
    );
    assert!(Backoff::new(Duration::MAX, Duration::MAX, 1).wait() <= Duration::MAX);
}
