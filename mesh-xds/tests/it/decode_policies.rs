//! Policies of the ambient stream: what arrives emptied or with conditions that nobody knows.

use mesh_authz::policy::ztunnel::EmptyMatch;
use mesh_authz::{Attribute, Attributes, Identity, PolicySet};
use mesh_xds::decode::{Decoder, ResourceType};
use mesh_xds::model::{AttachedPolicy, Scope, Update};
use prost::Message;
use prost::bytes::Bytes;

use crate::proto::istio::security as wire;

fn decode(decoder: Decoder, message: &wire::Authorization) -> Result<AttachedPolicy, String> {
    let bytes = message.encode_to_vec();
    match decoder.decode(ResourceType::Authorization, "ns/name", &bytes) {
        Ok(Some(Update::Policy(policy))) => Ok((*policy).clone()),
        Ok(other) => panic!("{other:?}"),
        Err(rejection) => Err(rejection.to_string()),
    }
}

fn policy(action: wire::Action, matches: Vec<Vec<wire::Match>>) -> wire::Authorization {
    let clauses = matches.into_iter().map(|matches| wire::Clause { matches });
    wire::Authorization {
        name: "name".into(),
        namespace: "ns".into(),
        action: action.into(),
        rules: vec![wire::Rule {
            clauses: clauses.collect(),
        }],
        ..Default::default()
    }
}

fn exact(text: &str) -> wire::StringMatch {
    let match_type = Some(wire::string_match::MatchType::Exact(text.into()));
    wire::StringMatch { match_type }
}

fn of(namespace: &str) -> wire::Match {
    wire::Match {
        namespaces: vec![exact(namespace)],
        ..Default::default()
    }
}

/// Whether callers of the namespaces `a` and `b` are allowed.
fn allows(decoder: Decoder, message: &wire::Authorization) -> [bool; 2] {
    let policy = decode(decoder, message).unwrap();
    let set = PolicySet::new([policy.policy().clone()]);
    ["a", "b"].map(|namespace| {
        let caller = Identity::new("cluster.local", namespace, "x").unwrap();
        let addr = "10.0.0.1:80".parse().unwrap();
        let attributes = Attributes::new(addr, addr).with_identity(Attribute::Present(&caller));
        set.evaluate_l4(&attributes).is_allowed()
    })
}

/// `[{}] AND [a]` is what is left of `details-deny-l7`; in istio/ztunnel it denies nothing.
#[test]
fn a_condition_that_was_lost_never_widens_access() {
    let empty = wire::Match::default;
    let sdk = Decoder::new();
    let ztunnel = Decoder::new().with_empty_match(EmptyMatch::NeverMatches);
    let deny = policy(wire::Action::Deny, vec![vec![empty()], vec![of("a")]]);
    assert_eq!(allows(sdk, &deny), [false, true]);
    assert_eq!(allows(ztunnel, &deny), [true, true]);
    let allow = policy(wire::Action::Allow, vec![vec![empty()], vec![of("a")]]);
    assert_eq!(allows(sdk, &allow), [false, false]);
    assert_eq!(allows(ztunnel, &allow), [false, false]);
    // One of its alternatives is whole.
    let allow = policy(wire::Action::Allow, vec![vec![empty(), of("a")]]);
    assert_eq!(allows(sdk, &allow), [true, false]);
}

/// An ALLOW of which everything was lost arrives without rules.
#[test]
fn an_allow_without_rules_allows_nothing() {
    let mut allow = policy(wire::Action::Allow, Vec::new());
    assert_eq!(
        allows(Decoder::new(), &allow),
        [true, true],
        "a rule without clauses"
    );
    allow.rules.clear();
    assert_eq!(allows(Decoder::new(), &allow), [false, false]);
}

#[test]
fn a_condition_that_nobody_knows_counts_as_lost() {
    let extended = |namespace: &str| wire::Match {
        extensions: vec![wire::Extension::default()],
        ..of(namespace)
    };
    for (action, expected) in [
        (wire::Action::Allow, [false, false]),
        (wire::Action::Deny, [false, true]),
    ] {
        let message = policy(action, vec![vec![extended("a")]]);
        assert_eq!(allows(Decoder::new(), &message), expected);
    }
}

#[test]
fn scopes_and_dry_run() {
    let with = |scope: i32, dry_run| wire::Authorization {
        scope,
        dry_run,
        ..policy(wire::Action::Deny, Vec::new())
    };
    let read = |message| decode(Decoder::new(), &message).unwrap();
    assert_eq!(*read(with(0, false)).scope(), Scope::Mesh);
    assert_eq!(*read(with(1, false)).scope(), Scope::Namespace("ns".into()));
    assert_eq!(*read(with(2, false)).scope(), Scope::Workload);
    assert!(read(with(0, true)).policy().dry_run());
}

#[test]
fn what_cannot_be_meant_is_refused_by_its_field() {
    let refused = |message: &wire::Authorization| decode(Decoder::new(), message).unwrap_err();
    let with = |one: wire::Match| policy(wire::Action::Allow, vec![vec![of("a"), one]]);
    let blank = wire::StringMatch { match_type: None };
    let one = wire::Match {
        not_principals: vec![exact("x"), blank],
        ..Default::default()
    };
    assert_eq!(
        refused(&with(one)),
        "rules[0].clauses[0].matches[1].not_principals[1]: missing, expected exact, prefix, suffix or presence"
    );
    for (length, count) in [(33, 4), (8, 5)] {
        let address = wire::Address {
            address: Bytes::from(vec![10; count]),
            length,
        };
        let one = wire::Match {
            source_ips: vec![address],
            ..Default::default()
        };
        let error = refused(&with(one));
        assert!(
            error.starts_with("rules[0].clauses[0].matches[1].sourceIps[0]: "),
            "{error}"
        );
    }
    let one = wire::Match {
        destination_ports: vec![70_000],
        ..Default::default()
    };
    assert!(refused(&with(one)).contains("destinationPorts[0]"));
    let mut message = policy(wire::Action::Allow, Vec::new());
    message.scope = 3;
    assert_eq!(refused(&message), "scope: 3, expected a scope, 0 to 2");
    message.scope = 0;
    message.action = 2;
    assert_eq!(
        refused(&message),
        "action: 2, expected ALLOW (0) or DENY (1)"
    );
}
