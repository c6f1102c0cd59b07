use std::sync::Arc;

use mesh_authz::matcher::StringMatch;
use mesh_authz::policy::Action;
use mesh_authz::policy::ztunnel::{
    Authorization, Clause, EmptyMatch, Match, Network, Rule, ServiceAccount,
};

use crate::file::cursor::{Cursor, Fields, Result};
use crate::model::{AttachedPolicy, Scope};

pub(super) fn read(at: &Cursor<'_>) -> Result<AttachedPolicy> {
    let mut fields = at.fields()?;
    let name = fields.need("name")?.nonempty()?;
    let namespace = fields.need("namespace")?.text()?;
    let scope = fields.need("scope")?;
    let scope = match scope.str()? {
        "Global" => Scope::Mesh,
        "Namespace" if namespace.is_empty() => {
            return Err(scope.invalid("a policy of scope Namespace needs a namespace"));
        }
        "Namespace" => Scope::Namespace(Arc::clone(&namespace)),
        "WorkloadSelector" => Scope::Workload,
        other => {
            return Err(scope.invalid(format_args!(
                "expected one of Global, Namespace, WorkloadSelector, found {other:?}"
            )));
        }
    };
    let mut authorization = Authorization::new(&*namespace, &*name);
    let allow = fields
        .need("action")?
        .one_of(&[("Allow", true), ("Deny", false)])?;
    authorization.action = if allow { Action::Allow } else { Action::Deny };
    authorization.dry_run = fields.map("dryRun", Cursor::bool)?.unwrap_or(false);
    authorization.rules = fields
        .need("rules")?
        .items()?
        .iter()
        .map(rule)
        .collect::<Result<_>>()?;
    fields.finish()?;
    let policy = authorization
        .lower(EmptyMatch::default())
        .map_err(|error| {
            // In the file the lists have no names: rules[0][1][2].
            let field = error
                .field()
                .replace(".clauses", "")
                .replace(".matches", "");
            at.invalid_policy(&field, &error)
        })?;
    Ok(AttachedPolicy::new(Arc::new(policy), scope))
}

/// A rule is a list of clauses, a clause a list of matches.
fn rule(at: &Cursor<'_>) -> Result<Rule> {
    let mut rule = Rule::default();
    for clause in at.items()? {
        let mut lowered = Clause::default();
        for matched in clause.items()? {
            lowered.matches.push(read_match(&matched)?);
        }
        rule.clauses.push(lowered);
    }
    Ok(rule)
}

fn read_match(at: &Cursor<'_>) -> Result<Match> {
    let mut fields = at.fields()?;
    let mut read = Match::default();
    read.namespaces = fields.list("namespaces", string_match)?;
    read.not_namespaces = fields.list("notNamespaces", string_match)?;
    read.service_accounts = fields.list("serviceAccounts", service_account)?;
    read.not_service_accounts = fields.list("notServiceAccounts", service_account)?;
    read.principals = fields.list("principals", string_match)?;
    read.not_principals = fields.list("notPrincipals", string_match)?;
    read.source_ips = networks(&mut fields, "sourceIps")?;
    read.not_source_ips = networks(&mut fields, "notSourceIps")?;
    read.destination_ips = networks(&mut fields, "destinationIps")?;
    read.not_destination_ips = networks(&mut fields, "notDestinationIps")?;
    read.destination_ports = fields.list("destinationPorts", Cursor::u32)?;
    read.not_destination_ports = fields.list("notDestinationPorts", Cursor::u32)?;
    fields.finish()?;
    Ok(read)
}

fn networks(fields: &mut Fields<'_>, name: &'static str) -> Result<Vec<Network>> {
    fields.list(name, |at| Ok(Network::Text(at.str()?.to_owned())))
}

fn service_account(at: &Cursor<'_>) -> Result<ServiceAccount> {
    let mut fields = at.fields()?;
    let account = ServiceAccount::new(
        fields.need("namespace")?.str()?,
        fields.need("serviceAccount")?.str()?,
    );
    fields.finish()?;
    Ok(account)
}

/// `{Exact: s}`, `{Prefix: s}`, `{Suffix: s}` or `{Presence: []}`; `!Exact s` is the same.
fn string_match(at: &Cursor<'_>) -> Result<StringMatch> {
    let expected = "expected one of Exact, Prefix, Suffix, Presence as the only key";
    let entries = at.entries()?;
    let [(kind, value)] = entries.as_slice() else {
        return Err(at.invalid(expected));
    };
    Ok(match &***kind {
        "Exact" => StringMatch::Exact(value.text()?),
        "Prefix" => StringMatch::Prefix(value.text()?),
        "Suffix" => StringMatch::Suffix(value.text()?),
        "Presence" => {
            let empty = value.is_null()
                || value.items().is_ok_and(|items| items.is_empty())
                || value.entries().is_ok_and(|entries| entries.is_empty());
            if !empty {
                return Err(value.invalid("expected an empty list"));
            }
            StringMatch::Present
        }
        _ => return Err(value.invalid(expected)),
    })
}
