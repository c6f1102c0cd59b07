//! The stack of a server in the mesh.

use mesh_authz::matcher::PathNormalization;
use tower_layer::Layer;

use super::{
    Authorize, AuthorizeLayer, Identify, IdentifyLayer, Leave, LeaveLayer, Observe, ObserveLayer,
};
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
    leave: LeaveLayer,
    observe: ObserveLayer,
    authorize: AuthorizeLayer,
    context: Option<ConnectionContext>,
}

/// What [`InboundLayer`] makes of a service.
pub type Inbound<S> = Leave<Observe<Identify<Authorize<S>>>>;

impl InboundLayer {
    /// Enforces `policies` and logs; each request must carry its [`ConnectionContext`] in its
    /// extensions.
    pub fn new(policies: Policies) -> Self {
        Self {
            leave: LeaveLayer::default(),
            observe: ObserveLayer::log_only(),
            authorize: AuthorizeLayer::live(policies),
            context: None,
        }
    }

    /// Sets whose drain is followed. Default: nobody's.
    #[must_use]
    pub fn leave(mut self, leave: LeaveLayer) -> Self {
        self.leave = leave;
        self
    }

    /// Sets how requests are counted and logged. Default: logged, not counted.
    #[must_use]
    pub fn observe(mut self, observe: ObserveLayer) -> Self {
        self.observe = observe;
        self
    }

    /// Sets the context of every request: for a server that builds a service per connection.
    #[must_use]
    pub fn for_connection(mut self, context: ConnectionContext) -> Self {
        self.context = Some(context);
        self
    }

    /// Sets [`AuthorizeLayer::path_normalization`].
    #[must_use]
    pub fn path_normalization(mut self, normalization: PathNormalization) -> Self {
        self.authorize = self.authorize.path_normalization(normalization);
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
        let (observe, identify) = match &self.context {
            Some(context) => (
                self.observe.clone().for_connection(context),
                IdentifyLayer::for_connection(context.clone()),
            ),
            None => (self.observe.clone(), IdentifyLayer::new()),
        };
        let judged = identify.layer(self.authorize.layer(inner));
        self.leave.layer(observe.layer(judged))
    }
}
