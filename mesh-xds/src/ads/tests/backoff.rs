//! Attempts are spread, and soon at first.

use std::time::Duration;

use crate::ads::backoff::Backoff;

const FIRST: Duration = Duration::from_millis(1100);
const MAX: Duration = Duration::from_secs(30);

/// R-03, V031: they come back with jitter.
#[test]
fn many_clients_do_not_come_back_together() {
    let mut first = Vec::new();
    for seed in 0..1000 {
        let mut backoff = Backoff::new(FIRST, MAX, seed * 7919);
        let mut at = Duration::ZERO;
        let attempts: Vec<Duration> = std::iter::repeat_with(|| {
            at += backoff.wait();
            at
        })
        .take(12)
        .collect();
        first.push(attempts[0]);
        let early = attempts.iter().filter(|at| **at < Duration::from_secs(1));
        assert!(early.count() <= 2, "{attempts:?}");
        assert!(attempts[2] < Duration::from_secs(8), "{attempts:?}");
        let waits: Vec<_> = attempts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(waits.iter().all(|wait| *wait <= MAX), "{waits:?}");
        assert!(waits[8..].iter().all(|wait| *wait >= MAX / 4), "{waits:?}");
    }
    for from in (0..1000).step_by(100) {
        let range = Duration::from_millis(from)..Duration::from_millis(from + 100);
        let together = first.iter().filter(|at| range.contains(*at)).count();
        assert!(together <= 130, "{together} of 1000 in {range:?}");
    }
}

#[test]
fn an_answer_makes_the_next_attempt_soon() {
    let mut backoff = Backoff::new(FIRST, MAX, 1);
    for _ in 0..100 {
        assert!(backoff.wait() <= MAX);
    }
    backoff.reset();
    assert!(backoff.wait() <= FIRST);
}
