//! Lowers the clause form in which istiod sends L4 policies to ztunnel, and ztunnel's local file holds them.
//!
//! Rules are alternatives; a rule's clauses all have to match; of a clause's matches one has to; of a
//! match every field that is not empty has to. A rule without clauses and a clause without matches
//! match everything, a policy without rules nothing.

mod lower;

use super::Action;
use crate::matcher::StringMatch;

/// `istio.security.Authorization`, without its scope, which is the mesh model's business.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Authorization {
    /// The policy's namespace.
    pub namespace: String,
    /// The policy's name.
    pub name: String,
    /// What it does.
    pub action: Action,
    /// Whether it is only reported.
    pub dry_run: bool,
    /// The alternatives.
    pub rules: Vec<Rule>,
}

impl Authorization {
    /// Makes an ALLOW policy without rules, as ztunnel reads a message with nothing else set.
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

/// A rule: all clauses have to match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rule {
    /// Its clauses.
    pub clauses: Vec<Clause>,
}

/// A clause: one match has to match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Clause {
    /// Its matches.
    pub matches: Vec<Match>,
}

/// A match: every field that is not empty has to hold; of its values any, of a `not` field's none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names are the message's own")]
pub struct Match {
    pub namespaces: Vec<StringMatch>,
    pub not_namespaces: Vec<StringMatch>,
    pub service_accounts: Vec<ServiceAccount>,
    pub not_service_accounts: Vec<ServiceAccount>,
    pub principals: Vec<StringMatch>,
    pub not_principals: Vec<StringMatch>,
    pub source_ips: Vec<Network>,
    pub not_source_ips: Vec<Network>,
    pub destination_ips: Vec<Network>,
    pub not_destination_ips: Vec<Network>,
    pub destination_ports: Vec<u32>,
    pub not_destination_ports: Vec<u32>,
}

/// A service account in any trust domain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub service_account: String,
}

impl ServiceAccount {
    /// Names a service account.
    pub fn new(namespace: impl Into<String>, service_account: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            service_account: service_account.into(),
        }
    }
}

/// An address block, not yet validated.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Network {
    /// As a file has it: `10.0.0.0/8`, or an address alone.
    Text(String),
    /// As the protocol has it.
    Bytes {
        /// 4 or 16 bytes.
        address: Vec<u8>,
        /// The prefix length.
        length: u32,
    },
}

/// How a match with no field at all counts: istiod sends one where it removed conditions on HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum EmptyMatch {
    /// As the lost conditions it stands for: it holds in a DENY and fails in an ALLOW, so that
    /// neither widens access.
    #[default]
    AsLost,
    /// As in istio/ztunnel, where it never matches: a DENY that lost everything denies nothing.
    NeverMatches,
}
