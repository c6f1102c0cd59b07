//! Counts requests and writes their access log when their responses have ended.
//!
//! The end is the body's: its last frame, its failure, or the moment it is dropped early because the
//! client went away (flag `DC`). `traceparent` and all other headers pass untouched.

mod body;
mod future;
mod layer;
mod record;
mod service;
mod size;

pub use body::ObserveBody;
pub use future::ObserveFuture;
pub use layer::ObserveLayer;
#[cfg(feature = "http")]
pub(crate) use layer::label as peer_labels;
pub use service::Observe;
