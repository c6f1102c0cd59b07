//! When to try next, and what the outcomes come to.

use tokio::time::Instant;

use super::Timing;
use crate::config::AppHealth;

/// Does nothing itself: it is told what came of a try, and when.
#[derive(Debug)]
pub(super) struct Schedule {
    timing: Timing,
    next: Instant,
    /// Of the same outcome in a row, one of them 0.
    successes: u32,
    failures: u32,
    /// What was told last.
    healthy: Option<bool>,
}

impl Schedule {
    pub(super) fn new(timing: Timing, now: Instant) -> Self {
        Self {
            timing,
            // One that is too long to be said never ends.
            next: now
                .checked_add(timing.initial_delay)
                .unwrap_or_else(|| crate::settings::deadline(timing.initial_delay)),
            successes: 0,
            failures: 0,
            healthy: None,
        }
    }

    /// When the next try begins.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// A try that began at `began` has ended: what is to be reported, if that is new.
    pub(super) fn ended(
        &mut self,
        began: Instant,
        now: Instant,
        outcome: Result<(), String>,
    ) -> Option<AppHealth> {
        let due = began.checked_add(self.timing.period);
        self.next = due
            .unwrap_or_else(|| crate::settings::deadline(self.timing.period))
            .max(now);
        match outcome {
            Ok(()) => {
                self.failures = 0;
                self.successes = self.successes.saturating_add(1);
                let enough = self.successes >= self.timing.success_threshold;
                self.turns(enough, true).then_some(AppHealth::Healthy)
            }
            Err(why) => {
                self.successes = 0;
                self.failures = self.failures.saturating_add(1);
                let enough = self.failures >= self.timing.failure_threshold;
                let turns = self.turns(enough, false);
                turns.then(|| AppHealth::Unhealthy(why.into()))
            }
        }
    }

    fn turns(&mut self, enough: bool, healthy: bool) -> bool {
        let turns = enough && self.healthy != Some(healthy);
        if turns {
            self.healthy = Some(healthy);
        }
        turns
    }
}
