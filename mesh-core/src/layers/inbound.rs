//! The stack of a server in the mesh.

use tower_layer::Layer;

use super::{Authorize, AuthorizeLayer, Identify, IdentifyLayer, Observe, ObserveLayer};
use crate::{ConnectionContext, Policies};

/// All layers of a server in the mesh, in the [order](super#order) that is right.
///
/// # Examples
///
/// ```
/// use mesh_core::Policies;
/// use mesh_core::authz::PolicySet;
/// use mesh_core::layers::InboundLayer;
///
/// let policies = Policies::fixed(PolicySet::default());
/// let app = axum::Router::<()>::new().layer(InboundLayer::new(policies));
/// # let _ = app;
/// ```
#[derive(Debug, Clone)]
pub struct InboundLayer {
    observe: ObserveLayer,
    identify: IdentifyLayer,
    authorize: AuthorizeLayer,
}

/// What [`InboundLayer`] makes of a service.
pub type Inbound<S> = Observe<Identify<Authorize<S>>>;

impl InboundLayer {
    /// Enforces `policies` and logs; each request must carry its [`ConnectionContext`] in its
    /// extensions.
    pub fn new(policies: Policies) -> Self {
        Self {
            observe: ObserveLayer::log_only(),
            identify: IdentifyLayer::new(),
            authorize: AuthorizeLayer::live(policies),
        }
    }

    /// Sets how requests are counted and logged. Set it before the connection.
    #[must_use]
    pub fn observe(mut self, observe: ObserveLayer) -> Self {
        self.observe = observe;
        self
    }

    /// Sets the context of every request: for a server that builds a service per connection.
    #[must_use]
    pub fn for_connection(mut self, context: ConnectionContext) -> Self {
        self.observe = self.observe.for_connection(&context);
        self.identify = IdentifyLayer::for_connection(context);
        self
    }

    /// Sets [`AuthorizeLayer::trusted_hops`].
    #[must_use]
    pub fn trusted_hops(mut self, hops: usize) -> Self {
        self.authorize = self.authorize.trusted_hops(hops);
        self
    }
}

impl<S> Layer<S> for InboundLayer {
    type Service = Inbound<S>;

    fn layer(&self, inner: S) -> Inbound<S> {
        let inner = self.authorize.layer(inner);
        let inner = self.identify.layer(inner);
        self.observe.layer(inner)
    }
}
