//! The one vocabulary of policies: AuthorizationPolicy, ztunnel's clauses and Envoy's RBAC all lower to it.

pub mod istio;
mod rule;
mod trust_domains;
pub mod ztunnel;

use std::fmt;
use std::sync::Arc;

pub(crate) use rule::SECRETS;
pub use rule::{Expr, Matcher, Rule};
pub use trust_domains::TrustDomains;

/// Names a policy: `<namespace>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyName {
    namespace: Arc<str>,
    name: Arc<str>,
}

impl PolicyName {
    /// Makes a name of its two parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The namespace that holds the policy; empty for one that belongs to none.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The policy's own name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a policy does when one of its rules matches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Action {
    /// Permits; as soon as one ALLOW policy applies, whatever none of them permits is denied.
    Allow,
    /// Refuses, before any ALLOW is looked at.
    Deny,
    /// Only marks the request for logging; never changes a decision.
    Audit,
    /// Asks the named external authorizer. Until those are supported, denies what its rules match.
    Custom {
        /// The name of the extension provider in the mesh configuration.
        provider: Arc<str>,
    },
}

/// One policy, validated: a name, an action and rules of which any may match.
///
/// A policy without rules matches nothing: an ALLOW without rules therefore denies everything.
/// Which workloads or services it applies to is the mesh model's business, not the policy's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Policy {
    name: PolicyName,
    action: Action,
    rules: Vec<Rule>,
    dry_run: bool,
    unreadable: Option<Arc<str>>,
}

impl Policy {
    /// Makes a policy.
    pub fn new(name: PolicyName, action: Action, rules: Vec<Rule>) -> Self {
        Self {
            name,
            action,
            rules,
            dry_run: false,
            unreadable: None,
        }
    }

    /// Stands for a policy that cannot be read, of which nobody knows whom it would let in: denies everything, and
    /// gives the reason, which says where the policy is and what is wrong with it, wherever a decision is told.
    pub fn unreadable(name: PolicyName, why: impl Into<Arc<str>>) -> Self {
        Self {
            unreadable: Some(why.into()),
            ..Self::new(name, Action::Deny, vec![Rule::new(Expr::TRUE)])
        }
    }

    /// Sets whether the policy is only evaluated and reported, never enforced (`istio.io/dry-run`).
    #[must_use]
    pub fn with_dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// The policy's name.
    pub fn name(&self) -> &PolicyName {
        &self.name
    }

    /// What it does when a rule matches.
    pub fn action(&self) -> &Action {
        &self.action
    }

    /// Its rules; any may match.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Why the policy cannot be read for which this one [stands](Self::unreadable).
    pub fn why_unreadable(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }

    /// Whether it is reported but not enforced.
    pub fn dry_run(&self) -> bool {
        self.dry_run
    }

    /// Whether some rule asks for what only an HTTP request can tell.
    pub fn needs_request(&self) -> bool {
        self.rules.iter().any(Rule::needs_request)
    }
}
