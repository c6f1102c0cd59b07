use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;
use tower_layer::Layer;

use super::backoff::{Backoff, Random};
use super::{Retry, RetryBudget};

use crate::sync::lock;

/// Sends requests again that the peer certainly has not seen.
///
/// Everything that comes from one layer, and its clones, shares one budget.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use mesh_core::layers::{DeadlineLayer, RetryLayer};
/// use tower::ServiceBuilder;
///
/// // The time-out is outside: it covers all attempts and the waits between them.
/// let client = ServiceBuilder::new()
///     .layer(DeadlineLayer::new(Duration::from_secs(15)))
///     .layer(RetryLayer::new().retries(3));
/// # let _ = client;
/// ```
#[derive(Debug, Clone)]
pub struct RetryLayer {
    settings: Settings,
    shared: Arc<Shared>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub(super) retries: u32,
    pub(super) replay_buffer: usize,
    backoff: Backoff,
}

/// What clones have in common.
#[derive(Debug)]
pub(super) struct Shared {
    random: Random,
    budget: Mutex<RetryBudget>,
}

impl RetryLayer {
    /// Two retries at most, as in Istio, each after a random part of 25 ms, then of 75 ms; the
    /// [default budget](RetryBudget::new); bodies are kept up to 64 KiB.
    pub fn new() -> Self {
        Self {
            settings: Settings {
                retries: 2,
                replay_buffer: 64 << 10,
                backoff: Backoff {
                    base: Duration::from_millis(25),
                    max: Duration::from_millis(250),
                },
            },
            shared: Arc::new(Shared {
                random: Random::from_process(),
                budget: Mutex::default(),
            }),
        }
    }

    /// Sets how often a request is sent again at most: 0 is never. Default 2, Istio's.
    #[must_use]
    pub fn retries(mut self, retries: u32) -> Self {
        self.settings.retries = retries;
        self
    }

    /// Sets how much of a request's body is kept until the request is answered, in bytes, as
    /// [`Builder::replay_buffer`](crate::Builder::replay_buffer) does: default 65 536; 0 keeps nothing, so that a body
    /// of which something was read is not sent again.
    #[must_use]
    pub fn replay_buffer(mut self, bytes: usize) -> Self {
        self.settings.replay_buffer = bytes;
        self
    }

    /// Sets the wait before the n-th retry: a random part of `(2^n - 1) * base`, at most `max`. Default
    /// 25 ms and 250 ms, Envoy's.
    #[must_use]
    pub fn backoff(mut self, base: Duration, max: Duration) -> Self {
        self.settings.backoff = Backoff { base, max };
        self
    }

    /// Sets the budget; services made before keep theirs.
    #[must_use]
    pub fn budget(mut self, budget: RetryBudget) -> Self {
        self.shared = Arc::new(Shared {
            random: Random::from_seed(self.shared.random.next()),
            budget: Mutex::new(budget),
        });
        self
    }

    /// Sets what the waits are drawn from, so that a test can repeat them. A budget that was set is kept.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        let budget = self.shared.lock().clone();
        self.shared = Arc::new(Shared {
            random: Random::from_seed(seed),
            budget: Mutex::new(budget),
        });
        self
    }
}

impl Default for RetryLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        Retry::new(inner, self.settings, Arc::clone(&self.shared))
    }
}

impl Settings {
    pub(super) fn wait(&self, retry: u32, shared: &Shared) -> Duration {
        self.backoff.wait(retry, shared.random.next())
    }
}

impl Shared {
    pub(super) fn record_request(&self) {
        self.lock().record_request(Instant::now());
    }

    pub(super) fn try_retry(&self) -> bool {
        self.lock().try_retry(Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, RetryBudget> {
        // A panic cannot have left more than a wrong count.
        lock(&self.budget)
    }
}
