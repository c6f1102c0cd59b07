//! Policies in ztunnel's form, the inverse of how they were lowered from it.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_authz::matcher::StringMatch;
use mesh_authz::policy::{Action, Expr, Matcher, Policy};
use mesh_xds::model::Scope;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::snapshot::Snapshot;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PolicyDump<'a> {
    name: &'a str,
    namespace: &'a str,
    scope: &'static str,
    action: &'static str,
    /// Rules of clauses of matches. What has no words in ztunnel's form is a match without fields
    /// there, as istiod sends it, and told whole in `expressions`.
    rules: Vec<Vec<Clause>>,
    dry_run: bool,
    /// Why the policy for which this one stands cannot be read. Not of ztunnel, as the rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<&'a str>,
    /// The extension provider of a CUSTOM policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    targets: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    expressions: Vec<Expression>,
}

/// Alternatives.
type Clause = Vec<Match>;

/// By field; all of them have to hold.
type Match = BTreeMap<&'static str, Vec<Value>>;

/// A rule's whole condition: texts, and `all`, `any`, `not` of others.
#[derive(Serialize)]
struct Expression {
    rule: usize,
    when: Value,
}

impl<'a> PolicyDump<'a> {
    pub(super) fn new(policy: &'a Policy, scope: &Scope) -> Self {
        let permits = *policy.action() == Action::Allow;
        let mut expressions = Vec::new();
        let mut rules = Vec::with_capacity(policy.rules().len());
        for (at, rule) in policy.rules().iter().enumerate() {
            let (clauses, whole) = clauses(rule.when(), permits);
            if !whole {
                let when = tree(rule.when(), 0);
                expressions.push(Expression { rule: at, when });
            }
            rules.push(clauses);
        }
        Self {
            name: policy.name().name(),
            namespace: policy.name().namespace(),
            scope: match scope {
                Scope::Mesh => "Global",
                Scope::Namespace(_) => "Namespace",
                Scope::Targets(_) => "Targets",
                _ => "WorkloadSelector",
            },
            action: match policy.action() {
                Action::Allow => "Allow",
                Action::Deny => "Deny",
                Action::Custom { .. } => "Custom",
                _ => "Audit",
            },
            rules,
            dry_run: policy.dry_run(),
            unreadable: policy.why_unreadable(),
            provider: match policy.action() {
                Action::Custom { provider } => Some(provider),
                _ => None,
            },
            targets: match scope {
                Scope::Targets(targets) => targets.iter().map(ToString::to_string).collect(),
                _ => Vec::new(),
            },
            expressions,
        }
    }
}

/// The clauses of a rule, and whether they say all of it.
fn clauses(when: &Expr, permits: bool) -> (Vec<Clause>, bool) {
    let parts = match when {
        Expr::All(parts) => parts,
        other => std::slice::from_ref(other),
    };
    let mut whole = true;
    let clauses = parts.iter().map(|part| {
        clause(part, permits).unwrap_or_else(|| {
            whole = false;
            vec![Match::new()]
        })
    });
    (clauses.collect(), whole)
}

/// Tells a condition as a clause; `None` where there are no words for it.
fn clause(expr: &Expr, permits: bool) -> Option<Clause> {
    if *expr == Expr::TRUE {
        return Some(Vec::new());
    }
    if let Some(one) = one_match(expr, permits) {
        return Some(vec![one]);
    }
    match expr {
        Expr::Any(parts) if !parts.is_empty() => {
            parts.iter().map(|part| one_match(part, permits)).collect()
        }
        _ => None,
    }
}

fn one_match(expr: &Expr, permits: bool) -> Option<Match> {
    // A match without fields stands for conditions that were lost: it fails in an ALLOW.
    let lost = if permits { Expr::FALSE } else { Expr::TRUE };
    if *expr == lost {
        return Some(Match::new());
    }
    let parts = match expr {
        Expr::All(parts) if !parts.is_empty() => parts,
        other => std::slice::from_ref(other),
    };
    let mut fields = Match::new();
    for part in parts {
        let (name, values) = field(part)?;
        if fields.insert(name, values).is_some() {
            return None;
        }
    }
    Some(fields)
}

/// One field with the values of which any has to match, or none.
fn field(expr: &Expr) -> Option<(&'static str, Vec<Value>)> {
    let (expr, negated) = match expr {
        Expr::Not(inner) => (&**inner, true),
        other => (other, false),
    };
    let parts = match expr {
        Expr::Any(parts) => parts,
        other => std::slice::from_ref(other),
    };
    let mut name = None;
    let values = parts.iter().map(|part| {
        let Expr::Is(matcher) = part else { return None };
        let (names, value) = value(matcher)?;
        let own = if negated { names.1 } else { names.0 };
        (*name.get_or_insert(own) == own).then_some(value)
    });
    let values = values.collect::<Option<Vec<_>>>()?;
    Some((name?, values))
}

/// The field that asks for it, its `not` form, and the value there.
fn value(matcher: &Matcher) -> Option<((&'static str, &'static str), Value)> {
    Some(match matcher {
        Matcher::Namespace(value) => (("namespaces", "notNamespaces"), string(value)?),
        Matcher::Principal(value) => (("principals", "notPrincipals"), string(value)?),
        Matcher::ServiceAccount { namespace, name } => (
            ("serviceAccounts", "notServiceAccounts"),
            json!({ "namespace": **namespace, "serviceAccount": **name }),
        ),
        Matcher::SourceIp(net) => (("sourceIps", "notSourceIps"), json!(net.to_string())),
        Matcher::DestinationIp(net) => (
            ("destinationIps", "notDestinationIps"),
            json!(net.to_string()),
        ),
        Matcher::DestinationPort(port) => {
            (("destinationPorts", "notDestinationPorts"), json!(port))
        }
        _ => return None,
    })
}

fn string(value: &StringMatch) -> Option<Value> {
    let (kind, text) = match value {
        StringMatch::Exact(text) => ("Exact", text),
        StringMatch::Prefix(text) => ("Prefix", text),
        StringMatch::Suffix(text) => ("Suffix", text),
        StringMatch::Present => return Some(json!({ "Presence": [] })),
        _ => return None,
    };
    // Refused where policies are read.
    (!text.is_empty()).then(|| json!({ kind: **text }))
}

/// Deeper than any resource reaches; code can make others.
const DEPTH: usize = 64;

fn tree(expr: &Expr, depth: usize) -> Value {
    let each =
        |parts: &[Expr]| -> Vec<Value> { parts.iter().map(|part| tree(part, depth + 1)).collect() };
    match expr {
        _ if depth > DEPTH => json!("…"),
        Expr::All(parts) => json!({ "all": each(parts) }),
        Expr::Any(parts) => json!({ "any": each(parts) }),
        Expr::Not(part) => json!({ "not": tree(part, depth + 1) }),
        Expr::Is(matcher) => json!(matcher.without_secrets().to_string()),
        _ => json!("…"),
    }
}

/// Sorted by namespace and name.
pub(super) fn all<S: Serializer>(snapshot: &Arc<Snapshot>, to: S) -> Result<S::Ok, S::Error> {
    let mut policies: Vec<_> = snapshot.all_policies().collect();
    policies.sort_by(|(a, _), (b, _)| a.name().cmp(b.name()));
    let policies = policies.into_iter();
    to.collect_seq(policies.map(|(policy, scope)| PolicyDump::new(policy, scope)))
}

#[cfg(test)]
mod tests;
