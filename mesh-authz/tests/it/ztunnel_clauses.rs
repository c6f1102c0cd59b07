//! The clause form that istiod sends to ztunnel.

use std::sync::Arc;

use mesh_authz::matcher::StringMatch;
use mesh_authz::policy::Action;
use mesh_authz::policy::ztunnel::{
    Authorization, Clause, EmptyMatch, Match, Network, Rule, ServiceAccount,
};
use mesh_authz::{Attribute, Attributes, ErrorKind, Identity, PolicySet};

fn rule(clauses: Vec<Vec<Match>>) -> Rule {
    let mut rule = Rule::default();
    rule.clauses = clauses
        .into_iter()
        .map(|matches| {
            let mut clause = Clause::default();
            clause.matches = matches;
            clause
        })
        .collect();
    rule
}

fn matching(change: impl FnOnce(&mut Match)) -> Match {
    let mut one = Match::default();
    change(&mut one);
    one
}

fn policy(action: Action, rules: Vec<Rule>) -> Authorization {
    let mut policy = Authorization::new("ns", "name");
    policy.action = action;
    policy.rules = rules;
    policy
}

fn allowed(policy: &Authorization, empty: EmptyMatch, attributes: &Attributes<'_>) -> bool {
    let set = PolicySet::new([Arc::new(policy.lower(empty).unwrap())]);
    let l4 = set.evaluate_l4(attributes);
    // Nothing in this form asks for a request.
    assert!(!set.needs_request());
    assert_eq!(l4, set.evaluate(attributes));
    l4.is_allowed()
}

fn to(port: u16) -> Attributes<'static> {
    let destination = format!("10.0.0.2:{port}").parse().unwrap();
    Attributes::new("10.0.0.1:1000".parse().unwrap(), destination)
}

fn port(port: u32) -> Match {
    matching(|one| one.destination_ports = vec![port])
}

/// Rules are alternatives, clauses conditions, matches alternatives; ztunnel.md 6.4.
#[test]
fn levels() {
    let lost = EmptyMatch::AsLost;
    let source = |text: &str| {
        let text = text.to_owned();
        matching(|one| one.source_ips = vec![Network::Text(text)])
    };
    for (rules, allows) in [
        (vec![], false),
        (vec![rule(vec![])], true),
        (vec![rule(vec![vec![]])], true),
        (vec![rule(vec![vec![port(1)]])], true),
        (vec![rule(vec![vec![port(2)]])], false),
        (vec![rule(vec![vec![port(2), port(1)]])], true),
        (vec![rule(vec![vec![port(1)], vec![port(2)]])], false),
        (vec![rule(vec![vec![port(1)], vec![]])], true),
        (
            vec![rule(vec![vec![port(2)]]), rule(vec![vec![port(1)]])],
            true,
        ),
        (
            vec![rule(vec![vec![port(1)], vec![source("10.0.0.0/24")]])],
            true,
        ),
        (
            vec![rule(vec![vec![port(1)], vec![source("10.0.1.0/24")]])],
            false,
        ),
    ] {
        let shown = format!("{rules:?}");
        let allow = policy(Action::Allow, rules.clone());
        assert_eq!(allowed(&allow, lost, &to(1)), allows, "{shown}");
        let deny = policy(Action::Deny, rules);
        assert_eq!(allowed(&deny, lost, &to(1)), !allows, "{shown}");
    }
}

/// What istiod removed counts as lost, unless ztunnel's own way is asked for.
#[test]
fn empty_matches() {
    let rules = vec![rule(vec![vec![Match::default()], vec![port(1)]])];
    let allow = policy(Action::Allow, rules.clone());
    let deny = policy(Action::Deny, rules);
    for (empty, results) in [
        (EmptyMatch::AsLost, [false, false]),
        (EmptyMatch::NeverMatches, [false, true]),
    ] {
        let decided = [&allow, &deny].map(|policy| allowed(policy, empty, &to(1)));
        assert_eq!(decided, results, "{empty:?}");
    }
    // In a DENY, what else the rule asks for still counts.
    assert!(allowed(&deny, EmptyMatch::AsLost, &to(2)));
    assert_eq!(EmptyMatch::default(), EmptyMatch::AsLost);
}

#[test]
fn fields() {
    let identity = Identity::new("td", "ns-a", "x").unwrap();
    let with = |present: bool| {
        to(1).with_identity(if present {
            Attribute::Present(&identity)
        } else {
            Attribute::Absent
        })
    };
    let exact = |text: &str| StringMatch::Exact(text.into());
    type Change = Box<dyn Fn(&mut Match)>;
    let cases: Vec<(Change, bool, bool)> = vec![
        (
            Box::new(move |m| m.principals = vec![exact("td/ns/ns-a/sa/x")]),
            true,
            false,
        ),
        (
            Box::new(move |m| m.principals = vec![exact("ns-a/sa/x")]),
            false,
            false,
        ),
        (
            Box::new(move |m| m.not_principals = vec![exact("td/ns/ns-a/sa/x")]),
            false,
            true,
        ),
        (
            Box::new(|m| m.not_principals = vec![StringMatch::Present]),
            false,
            true,
        ),
        (
            Box::new(|m| m.namespaces = vec![StringMatch::Prefix("ns-".into())]),
            true,
            false,
        ),
        (
            Box::new(|m| m.namespaces = vec![StringMatch::Suffix("-b".into())]),
            false,
            false,
        ),
        (
            Box::new(|m| m.not_namespaces = vec![StringMatch::Suffix("-b".into())]),
            true,
            true,
        ),
        (
            Box::new(|m| m.service_accounts = vec![ServiceAccount::new("ns-a", "x")]),
            true,
            false,
        ),
        (
            Box::new(|m| m.service_accounts = vec![ServiceAccount::new("ns-a", "y")]),
            false,
            false,
        ),
        (
            Box::new(|m| m.not_service_accounts = vec![ServiceAccount::new("ns-a", "x")]),
            false,
            true,
        ),
        (
            Box::new(|m| {
                m.source_ips = vec![Network::Bytes {
                    address: vec![10, 0, 0, 0],
                    length: 24,
                }];
            }),
            true,
            true,
        ),
        (
            Box::new(|m| m.not_source_ips = vec![Network::Text("10.0.0.1".into())]),
            false,
            false,
        ),
        (
            Box::new(|m| m.destination_ips = vec![Network::Text("10.0.0.2/32".into())]),
            true,
            true,
        ),
        (
            Box::new(|m| m.not_destination_ips = vec![Network::Text("::/0".into())]),
            true,
            true,
        ),
        (Box::new(|m| m.destination_ports = vec![2, 1]), true, true),
        (
            Box::new(|m| m.not_destination_ports = vec![1]),
            false,
            false,
        ),
        (
            Box::new(|m| {
                m.destination_ports = vec![1];
                m.namespaces = vec![StringMatch::Present];
            }),
            true,
            false,
        ),
    ];
    for (change, known, absent) in cases {
        let one = matching(change);
        let shown = format!("{one:?}");
        let policy = policy(Action::Allow, vec![rule(vec![vec![one]])]);
        assert_eq!(
            allowed(&policy, EmptyMatch::AsLost, &with(true)),
            known,
            "{shown}"
        );
        assert_eq!(
            allowed(&policy, EmptyMatch::AsLost, &with(false)),
            absent,
            "{shown}"
        );
    }
}

/// What ztunnel drops silently is an error that names the field.
#[test]
fn errors() {
    let bytes = |address: Vec<u8>, length| Network::Bytes { address, length };
    type Change = Box<dyn Fn(&mut Match)>;
    let cases: Vec<(Change, &str, ErrorKind)> = vec![
        (
            Box::new(|m| {
                m.source_ips = vec![
                    Network::Text("10.0.0.0/8".into()),
                    Network::Text("10.0.0.0/33".into()),
                ];
            }),
            "sourceIps[1]",
            ErrorKind::Cidr,
        ),
        (
            Box::new(move |m| m.not_source_ips = vec![bytes(vec![1, 2, 3], 8)]),
            "notSourceIps[0]",
            ErrorKind::Cidr,
        ),
        (
            Box::new(move |m| m.destination_ips = vec![bytes(vec![0; 4], 33)]),
            "destinationIps[0]",
            ErrorKind::Cidr,
        ),
        (
            Box::new(move |m| m.destination_ips = vec![bytes(vec![0; 16], 300)]),
            "destinationIps[0]",
            ErrorKind::Cidr,
        ),
        (
            Box::new(|m| m.destination_ports = vec![65_536]),
            "destinationPorts[0]",
            ErrorKind::Port,
        ),
        (
            Box::new(|m| m.not_principals = vec![StringMatch::Prefix("".into())]),
            "notPrincipals[0]",
            ErrorKind::Empty,
        ),
        (
            Box::new(|m| m.namespaces = vec![StringMatch::Exact("".into())]),
            "namespaces[0]",
            ErrorKind::Empty,
        ),
        (
            Box::new(|m| m.service_accounts = vec![ServiceAccount::new("", "x")]),
            "serviceAccounts[0].namespace",
            ErrorKind::Empty,
        ),
        (
            Box::new(|m| m.service_accounts = vec![ServiceAccount::new("a", "")]),
            "serviceAccounts[0].serviceAccount",
            ErrorKind::Empty,
        ),
    ];
    for (change, field, kind) in cases {
        let policy = policy(
            Action::Deny,
            vec![rule(vec![]), rule(vec![vec![port(1), matching(change)]])],
        );
        let error = policy.lower(EmptyMatch::AsLost).unwrap_err();
        assert_eq!(
            error.field(),
            format!("rules[1].clauses[0].matches[1].{field}")
        );
        assert_eq!(error.kind(), kind);
        assert!(error.to_string().starts_with(error.field()), "{error}");
    }
}
