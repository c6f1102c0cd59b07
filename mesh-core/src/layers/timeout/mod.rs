//! Ends requests that take too long.
//!
//! The time begins when the service is called and covers the whole response, body and trailers
//! included; a stream that outlives it is cut, so that it does not look complete. There is no default:
//! as in Istio a request has no time-out unless one is set. A gRPC request's own deadline
//! (`grpc-timeout`) is kept when it is the shorter one.

mod body;
mod future;
mod layer;
mod service;

pub use body::DeadlineBody;
pub use future::DeadlineFuture;
pub use layer::{DeadlineLayer, TimeoutLayer};
pub use service::Deadline;
