//! Judges every request by the policies of its destination.
//!
//! The request's path is normalised first, and what was judged is what is forwarded. Refusals are
//! answered as Envoy answers them: 403 with the body `RBAC: access denied`, or for gRPC status 7
//! without a body; each is logged at debug level on the target `mesh::authz` with the policy and the
//! rule. A request that reaches the layer without a [`ConnectionContext`](crate::ConnectionContext)
//! is answered 500.

mod facts;
mod layer;
mod service;

#[cfg(feature = "admin")]
pub(crate) use facts::without_trailing_dot;
pub use layer::AuthorizeLayer;
pub use service::Authorize;
#[cfg(feature = "admin")]
pub(crate) use service::normalize;
