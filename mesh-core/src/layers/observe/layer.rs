use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use tower_layer::Layer;

use super::Observe;
use crate::ConnectionContext;
use crate::telemetry::{Labels, Metrics, Peer, Reporter, SecurityPolicy};

/// Counts requests (`istio_requests_total`, `istio_request_duration_milliseconds`, `istio_request_bytes`,
/// `istio_response_bytes`) and writes a [`RequestLog`](crate::telemetry::RequestLog) of each.
///
/// A request's body whose length is said when it begins counts with that length. One that is not, as
/// gRPC's, is counted while it is read where the service takes axum's or tonic's bodies; under
/// hyper's own it counts as nothing.
///
/// It needs to know whose requests they are. What a connection's requests have in common is prepared
/// once: give it with [`for_connection`](Self::for_connection) and [`labels`](Self::labels) to a
/// service per connection. A service that all connections share finds the [`ConnectionContext`], and
/// [`Labels`] if somebody put them there, in each request's extensions; labels that are not there are
/// made by [`label_with`](Self::label_with).
///
/// # Examples
///
/// ```
/// use mesh_core::layers::ObserveLayer;
/// use mesh_core::telemetry::Metrics;
///
/// let metrics = Metrics::new();
/// let app = axum::Router::<()>::new().layer(ObserveLayer::new(metrics.clone()));
/// # let _ = app;
/// ```
#[derive(Clone)]
pub struct ObserveLayer {
    pub(super) metrics: Option<Metrics>,
    pub(super) ends: Option<(SocketAddr, SocketAddr)>,
    pub(super) labels: Option<Labels>,
    pub(super) label_with: Arc<LabelWith>,
}

type LabelWith = dyn Fn(&ConnectionContext) -> Labels + Send + Sync;

impl ObserveLayer {
    /// Counts in `metrics`, and logs.
    pub fn new(metrics: Metrics) -> Self {
        Self {
            metrics: Some(metrics),
            ..Self::log_only()
        }
    }

    /// Logs only.
    pub fn log_only() -> Self {
        Self {
            metrics: None,
            ends: None,
            labels: None,
            label_with: Arc::new(label),
        }
    }

    /// Sets the connection of all requests, and, unless they are set, their labels.
    #[must_use]
    pub fn for_connection(mut self, context: &ConnectionContext) -> Self {
        if self.labels.is_none() {
            self.labels = Some((self.label_with)(context));
        }
        self.ends(context.source(), context.destination())
    }

    /// Sets the ends of the connection, for the log.
    #[must_use]
    pub fn ends(mut self, source: SocketAddr, destination: SocketAddr) -> Self {
        self.ends = Some((source, destination));
        self
    }

    /// Sets the labels of all requests.
    #[must_use]
    pub fn labels(mut self, labels: Labels) -> Self {
        self.labels = Some(labels);
        self
    }

    /// Sets how labels are made of a connection for which there are none. Default: a server's, that
    /// knows nothing but its peer's identity.
    #[must_use]
    pub fn label_with(
        mut self,
        label: impl Fn(&ConnectionContext) -> Labels + Send + Sync + 'static,
    ) -> Self {
        self.label_with = Arc::new(label);
        self
    }
}

pub(crate) fn label(context: &ConnectionContext) -> Labels {
    let (peer, security) = match context.identity() {
        Some(identity) => (
            Peer::unknown().with_principal(identity.clone()),
            SecurityPolicy::MutualTls,
        ),
        None => (Peer::unknown(), SecurityPolicy::Unknown),
    };
    Labels::new(Reporter::Destination, peer, Peer::unknown(), None, security)
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe::new(inner, self.clone())
    }
}

impl fmt::Debug for ObserveLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObserveLayer")
            .field("metrics", &self.metrics.is_some())
            .field("ends", &self.ends)
            .field("labels", &self.labels)
            .finish_non_exhaustive()
    }
}
