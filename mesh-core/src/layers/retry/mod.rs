//! Sends requests again that the peer certainly has not seen.
//!
//! That is: no connection came about, or the peer refused the stream before it looked at it
//! ([`Error::is_retry_safe`](crate::Error::is_retry_safe); Istio's `connect-failure` and
//! `refused-stream`), *and* nothing has read the request's body, which is not copied. Retries keep to a
//! [budget](RetryBudget), so that a failing destination is not buried under them, and wait a random
//! time that grows.

mod backoff;
mod body;
mod budget;
mod future;
mod layer;
mod service;

pub use body::ReplayBody;
pub use budget::RetryBudget;
pub use future::RetryFuture;
pub use layer::RetryLayer;
pub use service::Retry;
