//! When to try again.

use std::time::Duration;

/// Waits between attempts that double up to a maximum, spread over all of their range (full jitter), so
/// that clients which lost the same control plane do not come back together.
///
/// The first wait is anything from nothing to `first`. Later ones are at least a quarter of their range,
/// which keeps a client at two attempts in its first second, whatever it draws.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
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
        let doubled = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let range = self.first.saturating_mul(doubled).min(self.max);
        let floor = match self.failures {
            0 => Duration::ZERO,
            _ => range / 4,
        };
        self.failures = self.failures.saturating_add(1).min(31);
        floor + (range - floor).mul_f64(self.draw())
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
