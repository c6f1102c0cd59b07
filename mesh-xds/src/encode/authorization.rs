//! Policies in the clause form of the ambient stream, which knows addresses, ports and who the peer is.
//!
//! A policy that has more is reduced: where it permits, what cannot be said counts as not met, and where
//! it refuses, as met. istiod does the same, but for a refusal's lost condition sends a match without
//! fields, which istio/ztunnel takes for one that is never met. CUSTOM policies, which istiod keeps to
//! itself, are sent as the refusals that they are without an authorizer, dry-run ones with their mark.

use bytes::Bytes;
use ipnet::IpNet;
use mesh_authz::matcher::StringMatch;
use mesh_authz::policy::{Action, Matcher, Rule};

use super::normal::{Literal, Side, clauses};
use super::service::octets;
use crate::model::{AttachedPolicy, Rejection, Scope};
use crate::proto::istio::security as wire;

pub(super) fn authorization(of: &AttachedPolicy) -> Result<wire::Authorization, Rejection> {
    let policy = of.policy();
    let name = policy.name();
    let scope = match of.scope() {
        Scope::Mesh => wire::Scope::Global,
        Scope::Namespace(bound) if **bound == *name.namespace() => wire::Scope::Namespace,
        Scope::Namespace(bound) => {
            let text = format!("scope: namespace {bound}, expected that of the policy {name}");
            return Err(Rejection::new(text));
        }
        _ => wire::Scope::WorkloadSelector,
    };
    let (action, side) = match policy.action() {
        Action::Allow => (wire::Action::Allow, Side::Permits),
        _ => (wire::Action::Deny, Side::Refuses),
    };
    Ok(wire::Authorization {
        name: name.name().into(),
        namespace: name.namespace().into(),
        scope: scope.into(),
        action: action.into(),
        rules: policy
            .rules()
            .iter()
            .filter_map(|one| rule(one, side))
            .collect(),
        dry_run: policy.dry_run(),
        ..wire::Authorization::default()
    })
}

/// `None` for a rule that never matches.
fn rule(of: &Rule, side: Side) -> Option<wire::Rule> {
    let clauses = clauses(of.when(), side)?.into_iter();
    let clauses = clauses.map(|any| wire::Clause {
        matches: any.iter().map(|all| one_match(all)).collect(),
    });
    Some(wire::Rule {
        clauses: clauses.collect(),
    })
}

/// Puts the values of literals into the lists of their fields.
fn one_match(all: &[Literal<'_>]) -> wire::Match {
    let mut m = wire::Match::default();
    for literal in all {
        let not = literal.negated;
        for matcher in &literal.any {
            match &**matcher {
                Matcher::Namespace(text) => {
                    pick(not, &mut m.namespaces, &mut m.not_namespaces).push(string(text));
                }
                Matcher::Principal(text) => {
                    pick(not, &mut m.principals, &mut m.not_principals).push(string(text));
                }
                Matcher::ServiceAccount { namespace, name } => {
                    let list = pick(not, &mut m.service_accounts, &mut m.not_service_accounts);
                    list.push(wire::ServiceAccountMatch {
                        namespace: namespace.to_string(),
                        service_account: name.to_string(),
                    });
                }
                Matcher::SourceIp(net) => {
                    pick(not, &mut m.source_ips, &mut m.not_source_ips).push(block(*net));
                }
                Matcher::DestinationIp(net) => {
                    let list = pick(not, &mut m.destination_ips, &mut m.not_destination_ips);
                    list.push(block(*net));
                }
                Matcher::DestinationPort(port) => {
                    let list = pick(not, &mut m.destination_ports, &mut m.not_destination_ports);
                    list.push((*port).into());
                }
                other => unreachable!("{other} is no literal"),
            }
        }
    }
    m
}

fn pick<T>(not: bool, yes: T, no: T) -> T {
    if not { no } else { yes }
}

fn string(of: &StringMatch) -> wire::StringMatch {
    use wire::string_match::MatchType;
    let match_type = match of {
        StringMatch::Exact(text) => MatchType::Exact(text.to_string()),
        StringMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
        StringMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
        _ => MatchType::Presence(()),
    };
    wire::StringMatch {
        match_type: Some(match_type),
    }
}

fn block(net: IpNet) -> wire::Address {
    let address: Bytes = octets(net.addr());
    wire::Address {
        address,
        length: net.prefix_len().into(),
    }
}
