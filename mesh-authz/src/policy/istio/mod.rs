//! Lowers Istio's `AuthorizationPolicy` to the vocabulary of this crate.
//!
//! The structs mirror the resource's fields ([reference][api]) as a parser of manifests or of xDS
//! finds them: lists of strings, of which an empty one is no constraint, as in protobuf. (A reader that
//! can tell `[]` from an absent field should refuse it: whoever wrote it hardly meant everybody.)
//! [`AuthorizationPolicy::lower`] checks everything and drops nothing: what it cannot read is an error
//! that names the field.
//!
//! A header condition on `*` asks for presence, and an empty value is present; so do `hosts`. On all
//! other attributes `*` asks for a value that is not empty. Both are what istiod renders for Envoy.
//!
//! # Examples
//!
//! ```
//! use mesh_authz::policy::TrustDomains;
//! use mesh_authz::policy::istio::{AuthorizationPolicy, Operation, Rule, Source};
//!
//! let mut source = Source::default();
//! source.principals = vec!["cluster.local/ns/default/sa/bookinfo-productpage".into()];
//! let mut operation = Operation::default();
//! operation.methods = vec!["GET".into()];
//! let mut rule = Rule::default();
//! rule.from = vec![source];
//! rule.to = vec![operation];
//! let mut resource = AuthorizationPolicy::new("default", "details-viewer");
//! resource.rules = vec![rule];
//!
//! let policy = resource.lower(&TrustDomains::new("prod").with_aliases(["cluster.local"]))?;
//! assert!(policy.needs_request());
//! # Ok::<(), mesh_authz::Error>(())
//! ```
//!
//! [api]: https://istio.io/latest/docs/reference/config/security/authorization-policy/

mod condition;
mod lower;

use super::Action;

/// An `AuthorizationPolicy` without what attaches it (`selector`, `targetRefs`).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuthorizationPolicy {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `spec.action`, with `spec.provider`.
    pub action: Action,
    /// The annotation `istio.io/dry-run`.
    pub dry_run: bool,
    /// `spec.rules`.
    pub rules: Vec<Rule>,
}

impl AuthorizationPolicy {
    /// Makes an ALLOW policy without rules, as an empty `spec` is.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            action: Action::Allow,
            dry_run: false,
            rules: Vec::new(),
        }
    }
}

/// One of `spec.rules`: a source, an operation and all conditions have to match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rule {
    /// `from[].source`, of which any may match.
    pub from: Vec<Source>,
    /// `to[].operation`, of which any may match.
    pub to: Vec<Operation>,
    /// `when`, of which all have to match.
    pub when: Vec<Condition>,
}

/// Who asks: every field that is not empty has to match; of a field's values any, of a `not` field's none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names are the resource's own")]
pub struct Source {
    pub principals: Vec<String>,
    pub not_principals: Vec<String>,
    pub request_principals: Vec<String>,
    pub not_request_principals: Vec<String>,
    pub namespaces: Vec<String>,
    pub not_namespaces: Vec<String>,
    pub ip_blocks: Vec<String>,
    pub not_ip_blocks: Vec<String>,
    pub remote_ip_blocks: Vec<String>,
    pub not_remote_ip_blocks: Vec<String>,
    pub service_accounts: Vec<String>,
    pub not_service_accounts: Vec<String>,
    pub trust_domains: Vec<String>,
    pub not_trust_domains: Vec<String>,
}

/// What is asked for: fields combine as those of [`Source`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names are the resource's own")]
pub struct Operation {
    pub hosts: Vec<String>,
    pub not_hosts: Vec<String>,
    pub ports: Vec<String>,
    pub not_ports: Vec<String>,
    pub methods: Vec<String>,
    pub not_methods: Vec<String>,
    pub paths: Vec<String>,
    pub not_paths: Vec<String>,
}

/// A condition on one attribute.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Condition {
    /// The attribute, for example `request.headers[x-team]` ([all keys][keys]).
    ///
    /// [keys]: https://istio.io/latest/docs/reference/config/security/conditions/
    pub key: String,
    /// Of which any has to match; empty is no constraint.
    pub values: Vec<String>,
    /// Of which none may match.
    pub not_values: Vec<String>,
}
