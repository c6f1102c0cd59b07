use mesh_authz::PolicySet;
use mesh_authz::matcher::PathNormalization;
use tower_layer::Layer;

use super::Authorize;
use crate::Policies;

/// Judges requests by policies.
///
/// # Examples
///
/// Behind [`IdentifyLayer`](crate::layers::IdentifyLayer), which says who the caller is:
///
/// ```
/// use mesh_core::authz::PolicySet;
/// use mesh_core::layers::{AuthorizeLayer, IdentifyLayer};
/// use tower::ServiceBuilder;
///
/// let app = axum::Router::<()>::new().layer(
///     ServiceBuilder::new()
///         .layer(IdentifyLayer::new())
///         .layer(AuthorizeLayer::new(PolicySet::default())),
/// );
/// # let _ = app;
/// ```
#[derive(Debug, Clone)]
pub struct AuthorizeLayer {
    policies: Policies,
    settings: Settings,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Settings {
    pub(super) normalization: PathNormalization,
    pub(super) trusted_hops: usize,
}

impl AuthorizeLayer {
    /// Judges by `policies` for good.
    pub fn new(policies: PolicySet) -> Self {
        Self::live(Policies::fixed(policies))
    }

    /// Judges each request by what `policies` holds when it comes; tokens in the places that it names
    /// are refused with 401.
    pub fn live(policies: Policies) -> Self {
        Self {
            policies,
            settings: Settings::default(),
        }
    }

    /// Sets how paths are normalised before they are judged and passed on. Default
    /// [`Base`](PathNormalization::Base), Istio's; a path that cannot be normalised is answered 400.
    /// Where the control plane says how ([`Enforced::path_normalization`](crate::Enforced::path_normalization)), that counts.
    #[must_use]
    pub fn path_normalization(mut self, normalization: PathNormalization) -> Self {
        self.settings.normalization = normalization;
        self
    }

    /// Sets how many proxies that append to `x-forwarded-for` are trusted: the n-th address from the
    /// right is then the original client's, which `remoteIpBlocks` and `remote.ip` compare.
    ///
    /// Default 0: the header is not looked at, because anyone can write it, and the connection's source
    /// stands for the client. It also does where the header has fewer addresses or no valid one there.
    #[must_use]
    pub fn trusted_hops(mut self, hops: usize) -> Self {
        self.settings.trusted_hops = hops;
        self
    }
}

impl<S> Layer<S> for AuthorizeLayer {
    type Service = Authorize<S>;

    fn layer(&self, inner: S) -> Authorize<S> {
        Authorize::new(inner, self.policies.clone(), self.settings)
    }
}
