//! Sends requests again that the peer certainly has not seen.
//!
//! That is: no connection came about, or the peer refused the stream before it looked at it
//! ([`Error::is_retry_safe`](crate::Error::is_retry_safe); Istio's `connect-failure` and
//! `refused-stream`), *and* what was read of the request's body is no more than the
//! [replay buffer](RetryLayer::replay_buffer) keeps. Retries keep to a [budget](RetryBudget), so that a failing
//! destination is not buried under them, and wait a random time that grows.

mod backoff;
mod budget;
mod future;
mod layer;
mod replay;
mod service;

pub use budget::RetryBudget;
pub use future::RetryFuture;
pub use layer::RetryLayer;
pub use replay::ReplayBody;
#[cfg(feature = "http")]
pub(crate) use replay::{AppBody, Replay, Sent, erase};
pub use service::Retry;
