//! When to fetch the next certificate: a state machine without I/O.

#[cfg(test)]
mod tests;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// Both clocks at one moment: certificates live by the one, waits by the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) wall: SystemTime,
    pub(super) monotonic: Instant,
}

/// The bounds of the wait after a failed fetch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Backoff {
    /// The longest wait after the first failure; it doubles with each further one.
    pub(super) base: Duration,
    /// The longest wait after any; half of it before the first certificate.
    pub(super) cap: Duration,
}

/// What to do now. After [`Step::Fetch`] or [`Step::Expired`], ask again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Fetch a certificate, and report with [`Renewal::fetched`] or [`Renewal::failed`]. Until
    /// then this is not said again.
    Fetch,
    /// The certificate held has just expired, and no new one has come. Said once.
    Expired(SystemTime),
    /// Nothing to do before then.
    Sleep(Instant),
}

/// Decides when to renew: at half of a certificate's life, give or take a twentieth.
///
/// The two clocks may drift apart: time of day is set by people and NTP, and stands ahead after a
/// machine has slept. So a certificate is due when *either* clock says so, and however often the
/// time of day jumps, [`REST`] passes between a success and the next fetch, [`Backoff`] between a
/// failure and the next.
#[derive(Debug)]
pub(super) struct Renewal {
    backoff: Backoff,
    random: u64,
    held: Option<Held>,
    /// Whether no certificate was ever held.
    starting: bool,
    fetching: bool,
    /// Failures since the last success.
    failures: u32,
    /// How often the pause has doubled.
    doublings: u32,
    /// When to fetch, unless the time of day says earlier.
    due: Instant,
    /// No fetch before, whatever the time of day says.
    rest: Instant,
    /// Whether `due` was brought forward because the time of day jumped past `due_wall`.
    jumped: bool,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    not_after: SystemTime,
    lifetime: Duration,
    due_wall: SystemTime,
}

/// A machine that has slept finds out this late, as the monotonic clock sleeps with it.
const LOOK: Duration = Duration::from_secs(10);

/// After a success nothing is fetched for so long, or a quarter of the lifetime if that is less.
const REST: Duration = Duration::from_secs(5);

/// Doubles any base beyond any cap, and fits into what is multiplied.
const MAX_DOUBLINGS: u32 = 31;

impl Renewal {
    /// Begins without a certificate: the first step is a fetch.
    pub(super) fn new(backoff: Backoff, seed: u64, now: Now) -> Self {
        Self {
            backoff,
            random: seed,
            held: None,
            starting: true,
            fetching: false,
            failures: 0,
            doublings: 0,
            due: now.monotonic,
            rest: now.monotonic,
            jumped: false,
        }
    }

    /// Says what to do now.
    pub(super) fn step(&mut self, now: Now) -> Step {
        if let Some(held) = self.held
            && now.wall >= held.not_after
        {
            self.held = None;
            if self.failures == 0 && !self.fetching {
                // It slept past the expiry, or the time of day jumped. All certificates of the
                // process notice at once: they are spread over one base delay.
                self.bring_forward(now, self.backoff.base);
            }
            return Step::Expired(held.not_after);
        }
        if self.fetching {
            return Step::Sleep(self.look(now));
        }
        if let Some(held) = self.held
            && self.failures == 0
            && !self.jumped
            && now.wall >= held.due_wall
        {
            let left = since(held.not_after, now.wall);
            self.bring_forward(now, (left / 10).min(self.backoff.cap));
        }
        if now.monotonic >= self.due {
            self.fetching = true;
            return Step::Fetch;
        }
        Step::Sleep(self.look(now).min(self.due))
    }

    /// Reports a certificate that came, valid from `not_before` to `not_after`. One that has
    /// expired already is a failure: report it with [`failed`](Self::failed).
    pub(super) fn fetched(&mut self, now: Now, not_before: SystemTime, not_after: SystemTime) {
        let lifetime = since(not_after, not_before);
        // By a clock that is behind it is not valid yet: it is new.
        let age = since(now.wall, not_before).min(lifetime);
        let half = lifetime.mul_f64(self.between(0.45, 0.55));
        let rest = REST.min(lifetime / 4);
        let wait = if age < half {
            half - age
        } else {
            // It came late in its life, or our clock is ahead: half of what is left.
            ((lifetime - age) / 2).max(rest)
        };
        self.starting = false;
        self.fetching = false;
        self.failures = 0;
        self.doublings = 0;
        self.jumped = false;
        self.due = now.monotonic + wait;
        self.rest = now.monotonic + rest;
        self.held = Some(Held {
            not_after,
            lifetime,
            due_wall: now.wall + wait,
        });
    }

    /// Reports that no usable certificate came.
    pub(super) fn failed(&mut self, now: Now) {
        let Backoff { base, cap } = self.backoff;
        // Who starts does nothing else than wait for it.
        let longest = match self.starting {
            true => base.max(cap / 2),
            false => cap,
        };
        self.fail(now, self.doublings, [base / 2, longest]);
    }

    /// Reports that the authority said no: to ask again soon is of no use, until somebody changes
    /// something. The longest pauses begin at once.
    #[cfg(feature = "istiod")]
    pub(super) fn refused(&mut self, now: Now) {
        self.fail(now, MAX_DOUBLINGS, [self.backoff.cap / 2, self.backoff.cap]);
    }

    /// Somebody has changed something on which failures may have been due: the next try after a
    /// failure comes within `spread`.
    #[cfg(feature = "istiod")]
    pub(super) fn hurry(&mut self, now: Now, spread: Duration) {
        if self.failures > 0 && !self.fetching {
            let soon = now.monotonic + self.draw(Duration::ZERO, spread);
            self.due = self.due.min(soon);
        }
    }

    /// The certificate that is held is of no use to others: the next one is fetched now.
    #[cfg(feature = "istiod")]
    pub(super) fn replace(&mut self, now: Now) {
        self.due = now.monotonic;
        self.rest = now.monotonic;
    }

    fn fail(&mut self, now: Now, doublings: u32, bounds: [Duration; 2]) {
        self.fetching = false;
        self.failures = self.failures.saturating_add(1);
        self.due = now.monotonic + self.pause(now, doublings, bounds);
        self.doublings = (doublings + 1).min(MAX_DOUBLINGS);
    }

    /// How many fetches have failed since the last success.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Full jitter, with a floor at half of the base: no draw may spin.
    fn pause(&mut self, now: Now, doublings: u32, [floor, longest]: [Duration; 2]) -> Duration {
        let ceiling = self.backoff.base.saturating_mul(1 << doublings);
        let ceiling = ceiling.min(longest);
        let Some(held) = self.held else {
            return self.draw(floor, ceiling);
        };
        // At least five tries belong to the last tenth of its life: pauses of at most a sixtieth
        // there, and none that begins before and skips it.
        let sixtieth = held.lifetime / 60;
        let last_tenth = held.not_after - held.lifetime / 10;
        let least = (self.backoff.base / 2).min(sixtieth / 2);
        if now.wall >= last_tenth {
            return self.draw(least, ceiling.min(sixtieth));
        }
        let pause = self.draw(floor, ceiling);
        pause.min(since(last_tenth, now.wall)).max(least)
    }

    fn bring_forward(&mut self, now: Now, spread: Duration) {
        let soon = now.monotonic + self.draw(Duration::ZERO, spread);
        self.due = self.due.min(soon).max(self.rest);
        self.jumped = true;
    }

    /// When to compare the clocks again, at the latest.
    fn look(&self, now: Now) -> Instant {
        let expiry = self.held.map(|held| since(held.not_after, now.wall));
        now.monotonic + expiry.unwrap_or(LOOK).min(LOOK)
    }

    fn draw(&mut self, from: Duration, to: Duration) -> Duration {
        from + to.saturating_sub(from).mul_f64(self.between(0.0, 1.0))
    }

    /// splitmix64: a seed repeats the sequence.
    fn between(&mut self, from: f64, to: f64) -> f64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        // 53 bits are what an f64 holds.
        from + (to - from) * ((z >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

/// `later - earlier`, or zero if they are the other way round.
fn since(later: SystemTime, earlier: SystemTime) -> Duration {
    later.duration_since(earlier).unwrap_or_default()
}
