//! The policies that a running server enforces, replaced while it runs.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use arc_swap::ArcSwap;
use mesh_authz::PolicySet;
use mesh_authz::matcher::PathNormalization;

use crate::layers::TokenLocations;

/// What is enforced on a workload's requests at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Enforced {
    policies: PolicySet,
    tokens: TokenLocations,
    path_normalization: Option<PathNormalization>,
    dry_run: bool,
}

impl Enforced {
    /// Enforces `policies`; tokens are looked for nowhere.
    pub fn new(policies: PolicySet) -> Self {
        Self {
            dry_run: policies.policies().iter().any(|policy| policy.dry_run()),
            policies,
            tokens: TokenLocations::default(),
            path_normalization: None,
        }
    }

    /// Sets the places where a token makes a request be refused, until tokens can be verified.
    #[must_use]
    pub fn with_tokens(mut self, tokens: TokenLocations) -> Self {
        self.tokens = tokens;
        self
    }

    /// The policies.
    pub fn policies(&self) -> &PolicySet {
        &self.policies
    }

    /// Where tokens are looked for.
    pub fn tokens(&self) -> &TokenLocations {
        &self.tokens
    }

    /// How the control plane wants paths to be made comparable on this port, where it says so: it
    /// goes before what the layer is set to.
    pub fn path_normalization(&self) -> Option<PathNormalization> {
        self.path_normalization
    }

    pub(crate) fn set_path_normalization(&mut self, normalization: Option<PathNormalization>) {
        self.path_normalization = normalization;
    }

    /// Whether all but the policies is equal.
    pub(crate) fn differs_only_in_policies(&self, other: &Self) -> bool {
        self.tokens == other.tokens && self.path_normalization == other.path_normalization
    }

    /// Whether some policy is under dry run.
    pub(crate) fn has_dry_run(&self) -> bool {
        self.dry_run
    }
}

impl From<PolicySet> for Enforced {
    fn from(policies: PolicySet) -> Self {
        Self::new(policies)
    }
}

/// A handle on what is enforced: readers load it without waiting, a writer replaces it whole.
///
/// Clones share one state.
///
/// # Examples
///
/// ```
/// use mesh_core::authz::PolicySet;
/// use mesh_core::layers::AuthorizeLayer;
/// use mesh_core::Policies;
///
/// let policies = Policies::fixed(PolicySet::default());
/// let layer = AuthorizeLayer::live(policies.clone());
/// policies.store(PolicySet::default()); // the next request is judged by the new ones
/// # let _ = layer;
/// ```
#[derive(Clone)]
pub struct Policies {
    current: Arc<ArcSwap<Enforced>>,
}

impl Policies {
    /// Starts with `enforced`.
    pub fn new(enforced: impl Into<Enforced>) -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(enforced.into())),
        }
    }

    /// Starts with `policies`, for servers that never change them.
    pub fn fixed(policies: PolicySet) -> Self {
        Self::new(policies)
    }

    /// Replaces what is enforced: requests that are judged from now on see `enforced`.
    pub fn store(&self, enforced: impl Into<Enforced>) {
        self.current.store(Arc::new(enforced.into()));
    }

    /// What is enforced now. Hold it for one decision only.
    pub fn load(&self) -> impl Deref<Target = Arc<Enforced>> + use<> {
        self.current.load()
    }
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Policies").field(&**self.load()).finish()
    }
}
