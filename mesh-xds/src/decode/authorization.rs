use std::sync::Arc;

use mesh_authz::matcher::StringMatch;
use mesh_authz::policy::Action;
use mesh_authz::policy::ztunnel::{
    Authorization, Clause, EmptyMatch, Match, Network, Rule, ServiceAccount,
};

use super::field::{Field, Problem};
use crate::model::{AttachedPolicy, Scope};
use crate::proto::istio::security as wire;

pub(super) fn authorization(
    message: wire::Authorization,
    empty: EmptyMatch,
) -> Result<AttachedPolicy, Problem> {
    let scope = match Field::root("scope").one_of(message.scope, "a scope, 0 to 2")? {
        wire::Scope::Global => Scope::Mesh,
        wire::Scope::Namespace => Scope::Namespace(message.namespace.as_str().into()),
        wire::Scope::WorkloadSelector => Scope::Workload,
    };
    Field::root("namespace").is_part(&message.namespace)?;
    let mut policy = Authorization::new(message.namespace, message.name);
    policy.action = match Field::root("action").one_of(message.action, "ALLOW (0) or DENY (1)")? {
        wire::Action::Allow => Action::Allow,
        wire::Action::Deny => Action::Deny,
    };
    policy.dry_run = message.dry_run;
    let rules = Field::root("rules");
    for (index, rule) in message.rules.into_iter().enumerate() {
        let field = rules.index(index);
        let mut lowered = Rule::default();
        for (index, clause) in rule.clauses.into_iter().enumerate() {
            let clauses = field.at("clauses");
            let field = clauses.index(index);
            let mut lowered_clause = Clause::default();
            for (index, one) in clause.matches.into_iter().enumerate() {
                let matches = field.at("matches");
                let one = one_match(one, &policy.action, &matches.index(index))?;
                lowered_clause.matches.push(one);
            }
            lowered.clauses.push(lowered_clause);
        }
        policy.rules.push(lowered);
    }
    let policy = policy.lower(empty).map_err(Problem::new)?;
    Ok(AttachedPolicy::new(Arc::new(policy), scope))
}

fn one_match(message: wire::Match, action: &Action, field: &Field<'_>) -> Result<Match, Problem> {
    let mut built = Match::default();
    // A condition that nobody here understands is a lost one: see `EmptyMatch`.
    if !message.extensions.is_empty() && *action == Action::Allow {
        return Ok(built);
    }
    built.namespaces = strings(message.namespaces, &field.at("namespaces"))?;
    built.not_namespaces = strings(message.not_namespaces, &field.at("not_namespaces"))?;
    built.principals = strings(message.principals, &field.at("principals"))?;
    built.not_principals = strings(message.not_principals, &field.at("not_principals"))?;
    built.source_ips = networks(message.source_ips);
    built.not_source_ips = networks(message.not_source_ips);
    built.destination_ips = networks(message.destination_ips);
    built.not_destination_ips = networks(message.not_destination_ips);
    built.destination_ports = message.destination_ports;
    built.not_destination_ports = message.not_destination_ports;
    built.service_accounts = accounts(message.service_accounts);
    built.not_service_accounts = accounts(message.not_service_accounts);
    Ok(built)
}

fn strings(values: Vec<wire::StringMatch>, field: &Field<'_>) -> Result<Vec<StringMatch>, Problem> {
    use wire::string_match::MatchType;
    let read = |(index, value): (usize, wire::StringMatch)| match value.match_type {
        Some(MatchType::Exact(text)) => Ok(StringMatch::Exact(text.into())),
        Some(MatchType::Prefix(text)) => Ok(StringMatch::Prefix(text.into())),
        Some(MatchType::Suffix(text)) => Ok(StringMatch::Suffix(text.into())),
        Some(MatchType::Presence(())) => Ok(StringMatch::Present),
        None => {
            let expected = "exact, prefix, suffix or presence";
            Err(field.index(index).missing(expected))
        }
    };
    values.into_iter().enumerate().map(read).collect()
}

fn networks(values: Vec<wire::Address>) -> Vec<Network> {
    let read = |value: wire::Address| Network::Bytes {
        address: value.address.into(),
        length: value.length,
    };
    values.into_iter().map(read).collect()
}

fn accounts(values: Vec<wire::ServiceAccountMatch>) -> Vec<ServiceAccount> {
    let read = |value: wire::ServiceAccountMatch| {
        ServiceAccount::new(value.namespace, value.service_account)
    };
    values.into_iter().map(read).collect()
}
