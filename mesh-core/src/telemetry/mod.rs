//! What the mesh tells of its connections and requests: Istio's metrics, access log records, trace context.
//!
//! - [`Metrics`] counts under Istio's names, so that dashboards and Kiali work unchanged. A connection
//!   builds its [`Labels`] once; counting afterwards formats and allocates nothing. Without the feature
//!   `metrics` the same types are there and count nothing but the connection's own [`Traffic`].
//! - [`AccessLog`] and [`RequestLog`] are typed records, emitted as `tracing` events under the target
//!   [`ACCESS_TARGET`]. Where they go is the application's subscriber's business.
//! - [`TraceContext`] reads and writes the W3C `traceparent` header. The mesh passes the header on
//!   unchanged and invents none unless asked.

mod access_log;
mod labels;
#[cfg(feature = "metrics")]
mod metrics;
#[cfg(not(feature = "metrics"))]
#[path = "metrics/disabled.rs"]
mod metrics;
mod outcome;
#[cfg(feature = "http")]
pub(crate) mod request_id;
mod request_log;
mod sanitize;
mod settings;
pub(crate) mod size;
mod trace_context;

#[cfg(test)]
mod tests;

pub use access_log::{ACCESS_TARGET, AccessLog};
pub use labels::{DestinationService, Labels, Peer, Reporter, SecurityPolicy};
pub use metrics::{Metrics, TcpConnection};
pub use outcome::{ConnectionFlag, RequestOutcome, RequestProtocol, Traffic};
pub use request_log::RequestLog;
pub use settings::MetricsSettings;
pub use trace_context::{InvalidTraceContext, TraceContext};
