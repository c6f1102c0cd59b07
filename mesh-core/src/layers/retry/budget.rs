use std::time::Duration;

use tokio::time::Instant;

/// How long a request earns retries.
const SLOTS: usize = 10;
const SLOT: Duration = Duration::from_secs(1);

/// Bounds retries by the requests of the last ten seconds. It does no I/O and reads no clock.
///
/// Allowed are [`percent`](Self::percent) of the requests, and [`per_second`](Self::per_second) retries
/// beside them for clients that send little.
///
/// # Examples
///
/// ```
/// use mesh_core::layers::RetryBudget;
/// use tokio::time::Instant;
///
/// let now = Instant::now();
/// let mut budget = RetryBudget::new().percent(20).per_second(0);
/// assert!(!budget.try_retry(now));
/// for _ in 0..5 {
///     budget.record_request(now);
/// }
/// assert!(budget.try_retry(now));
/// assert!(!budget.try_retry(now));
/// ```
#[derive(Debug, Clone)]
pub struct RetryBudget {
    percent: u32,
    per_second: u32,
    /// A ring of seconds; `head` is the slot of `second`.
    slots: [Slot; SLOTS],
    head: usize,
    second: Option<Instant>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    requests: u32,
    retries: u32,
}

impl RetryBudget {
    /// 20 % of the requests, and 10 retries a second: what linkerd's clients run with, and Istio's
    /// share (`retryBudget.percent`).
    pub fn new() -> Self {
        Self {
            percent: 20,
            per_second: 10,
            slots: [Slot::default(); SLOTS],
            head: 0,
            second: None,
        }
    }

    /// Sets how many retries a hundred requests allow.
    #[must_use]
    pub fn percent(mut self, percent: u32) -> Self {
        self.percent = percent;
        self
    }

    /// Sets how many retries a second are allowed however few the requests.
    #[must_use]
    pub fn per_second(mut self, retries: u32) -> Self {
        self.per_second = retries;
        self
    }

    /// Counts a request, not its retries.
    pub fn record_request(&mut self, now: Instant) {
        self.advance(now);
        let slot = &mut self.slots[self.head];
        slot.requests = slot.requests.saturating_add(1);
    }

    /// Takes one retry; `false` when the budget is used up.
    pub fn try_retry(&mut self, now: Instant) -> bool {
        self.advance(now);
        let (mut requests, mut retries) = (0_u64, 0_u64);
        for slot in &self.slots {
            requests += u64::from(slot.requests);
            retries += u64::from(slot.retries);
        }
        let allowed =
            requests * u64::from(self.percent) / 100 + u64::from(self.per_second) * SLOTS as u64;
        if retries >= allowed {
            return false;
        }
        let slot = &mut self.slots[self.head];
        slot.retries = slot.retries.saturating_add(1);
        true
    }

    /// Forgets the seconds that are over. A time before the last one counts as that one.
    fn advance(&mut self, now: Instant) {
        let second = *self.second.get_or_insert(now);
        let passed = now.saturating_duration_since(second).as_secs();
        if passed == 0 {
            return;
        }
        for _ in 0..passed.min(SLOTS as u64) {
            self.head = (self.head + 1) % SLOTS;
            self.slots[self.head] = Slot::default();
        }
        self.second = Some(
            u32::try_from(passed)
                .ok()
                .and_then(|passed| second.checked_add(SLOT * passed))
                .unwrap_or(now),
        );
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self::new()
    }
}
