//! When to try again.

use std::time::Duration;

/// By how much the longest wait grows with each attempt that fails: three fit into eight seconds.
const GROWTH: f64 = 1.6;

/// Waits between attempts that grow up to a maximum, each drawn from all of its range, so that clients which
/// lost the same control plane do not come back together.
///
/// The first wait is anything from nothing to `first`. Later ones are at least `first`: when the second attempts
/// begin the first ones are over, so that no more than they come together, and no client draws three short waits.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    max: Duration,
    failures: i32,
    random: u64,
}

impl Backoff {
    pub(super) fn new(first: Duration, max: Duration, seed: u64) -> Self {
        Self {
            first,
            max,
            failures: 0,
            random: seed,
        }
    }

    /// The next attempt may come early again: the last one was answered.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// How long to wait now.
    pub(super) fn wait(&mut self) -> Duration {
        let grown = self.first.as_secs_f64() * GROWTH.powi(self.failures);
        let range = Duration::try_from_secs_f64(grown).map_or(self.max, |wait| wait.min(self.max));
        let floor = match self.failures {
            0 => Duration::ZERO,
            _ => self.floor(),
        };
        self.failures = self.failures.saturating_add(1).min(100);
        self.between(floor, range)
    }

    /// How long to wait after a stream that was answered and was lost before `first` had passed: a control plane
    /// that takes streams and drops them has all clients come as often as one that takes none.
    pub(super) fn wait_after_short(&mut self) -> Duration {
        self.failures = 1;
        let range = self.first.saturating_mul(2).min(self.max);
        self.between(self.floor(), range)
    }

    /// Where all waits are as long as the longest they are spread all the same.
    fn floor(&self) -> Duration {
        self.first.min(self.max / 2)
    }

    fn between(&mut self, floor: Duration, range: Duration) -> Duration {
        floor + range.saturating_sub(floor).mul_f64(self.draw())
    }

    /// In `[0, 1)`: splitmix64, which is random enough to spread clients.
    fn draw(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1_u64 << 53) as f64
    }
}
