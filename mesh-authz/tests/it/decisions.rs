//! The order of policies, what empty ones mean, and how decisions read.

use std::sync::Arc;

use mesh_authz::matcher::StringMatch;
use mesh_authz::policy::{Action, Expr, Matcher, Policy, PolicyName, Rule};
use mesh_authz::{Attribute, Attributes, Identity, PolicySet, Reason};

fn policy(name: &str, action: Action, rules: Vec<Expr>) -> Policy {
    let rules = rules.into_iter().map(Rule::new).collect();
    Policy::new(PolicyName::new("default", name), action, rules)
}

fn set(policies: impl IntoIterator<Item = Policy>) -> PolicySet {
    PolicySet::new(policies.into_iter().map(Arc::new))
}

fn port(port: u16) -> Expr {
    Expr::Is(Matcher::DestinationPort(port))
}

fn to(port: u16) -> Attributes<'static> {
    let destination = format!("10.0.0.2:{port}").parse().unwrap();
    Attributes::new("10.0.0.1:1000".parse().unwrap(), destination)
}

#[test]
fn order() {
    let custom = || Action::Custom {
        provider: "p".into(),
    };
    let all = set([
        policy(
            "allow",
            Action::Allow,
            vec![port(1), port(2), port(3), port(4)],
        ),
        policy("audit", Action::Audit, vec![Expr::TRUE]),
        policy("deny", Action::Deny, vec![Expr::FALSE, port(2), port(3)]),
        policy("custom", custom(), vec![port(3)]),
    ]);
    for (port, allowed, reason, by, text) in [
        (
            1,
            true,
            Reason::Allowed,
            Some(("allow", 0)),
            "allowed by: default/allow",
        ),
        (
            4,
            true,
            Reason::Allowed,
            Some(("allow", 3)),
            "allowed by: default/allow",
        ),
        (
            2,
            false,
            Reason::Denied,
            Some(("deny", 1)),
            "explicitly denied by: default/deny",
        ),
        (
            3,
            false,
            Reason::CustomUnavailable,
            Some(("custom", 0)),
            "external authorization is unavailable for: default/custom",
        ),
        (
            5,
            false,
            Reason::NoneAllowed,
            None,
            "allow policies exist, but none allowed",
        ),
    ] {
        let decision = all.evaluate(&to(port));
        assert_eq!(decision.is_allowed(), allowed);
        assert_eq!(decision.reason(), reason);
        assert_eq!(
            decision.policy().map(PolicyName::name).zip(decision.rule()),
            by
        );
        assert_eq!(decision.to_string(), text);
    }
}

/// The first of several matches is named, in the order of the set.
#[test]
fn the_first_match_is_named() {
    let any_of = |ports: std::ops::Range<u16>| Expr::Any(ports.map(port).collect());
    let set = set([
        policy("a", Action::Deny, vec![port(9), any_of(1..20)]),
        policy("b", Action::Deny, vec![port(7)]),
        policy("c", Action::Deny, vec![Expr::TRUE]),
    ]);
    for (port, name, rule) in [(7, "a", 1), (9, "a", 0), (30, "c", 0)] {
        let decision = set.evaluate(&to(port));
        assert_eq!(decision.policy().unwrap().name(), name);
        assert_eq!(decision.rule(), Some(rule));
    }
}

#[test]
fn empty() {
    for (policies, allowed) in [
        (vec![], true),
        (vec![policy("a", Action::Allow, vec![])], false),
        (vec![policy("a", Action::Allow, vec![Expr::TRUE])], true),
        (vec![policy("a", Action::Deny, vec![])], true),
        (vec![policy("a", Action::Deny, vec![Expr::TRUE])], false),
        (vec![policy("a", Action::Audit, vec![Expr::TRUE])], true),
    ] {
        let set = set(policies);
        assert_eq!(set.evaluate(&to(1)).is_allowed(), allowed, "{set:?}");
        assert_eq!(set.evaluate_l4(&to(1)).is_allowed(), allowed, "{set:?}");
        assert_eq!(set.could_allow(&to(1)).is_allowed(), allowed, "{set:?}");
    }
    assert_eq!(
        PolicySet::default().evaluate(&to(1)).to_string(),
        "no allow policies, allow"
    );
}

/// A plaintext caller's identity is absent: a principal does not match it, a `not` does.
#[test]
fn absent_identity() {
    let identity = Identity::new("td", "a", "x").unwrap();
    let principal = || Expr::Is(Matcher::Principal(StringMatch::Present));
    let strict = set([policy(
        "strict",
        Action::Deny,
        vec![Expr::Not(Box::new(principal()))],
    )]);
    assert!(!strict.evaluate(&to(1)).is_allowed());
    let known = to(1).with_identity(Attribute::Present(&identity));
    assert!(strict.evaluate(&known).is_allowed());
    let allow = set([policy("mesh", Action::Allow, vec![principal()])]);
    assert!(!allow.evaluate(&to(1)).is_allowed());
    assert!(allow.evaluate(&known).is_allowed());
}

#[test]
fn dry_run_reports_only() {
    let dry = |policy: Policy| policy.with_dry_run(true);
    let set = set([
        policy("allow", Action::Allow, vec![port(1), port(2)]),
        dry(policy("dry-deny", Action::Deny, vec![port(2)])),
        dry(policy("dry-allow", Action::Allow, vec![port(3)])),
    ]);
    assert!(set.evaluate(&to(2)).is_allowed());
    let told = set.evaluate_dry_run(&to(2));
    assert!(told.would_deny());
    assert!(told.enforced().is_allowed());
    assert_eq!(told.denied_by().unwrap().0.to_string(), "default/dry-deny");
    assert!(told.none_allowed());
    assert_eq!(
        told.decision().to_string(),
        "explicitly denied by: default/dry-deny"
    );

    assert!(!set.evaluate(&to(3)).is_allowed());
    let told = set.evaluate_l4_dry_run(&to(3));
    assert!(!told.would_deny());
    assert!(told.decision().is_allowed());
    assert_eq!(
        told.allowed_by().unwrap().0.to_string(),
        "default/dry-allow"
    );

    let told = set.evaluate_dry_run(&to(1));
    assert_eq!(told.decision(), told.enforced());
    assert_eq!(told.denied_by(), None);
}

/// A permission under dry run that nothing matches would close what no other ALLOW policy guards.
#[test]
fn dry_run_of_the_first_allow() {
    let set = set([policy("dry", Action::Allow, vec![port(1)]).with_dry_run(true)]);
    assert!(!set.evaluate_dry_run(&to(1)).would_deny());
    let told = set.evaluate_dry_run(&to(2));
    assert!(told.would_deny());
    assert_eq!(told.decision().reason(), Reason::NoneAllowed);
}

#[test]
fn equal_sets_are_equal() {
    let policies = || {
        [
            policy("a", Action::Allow, vec![port(1)]),
            policy("b", Action::Deny, vec![]),
        ]
    };
    let (a, b) = (set(policies()), set(policies()));
    assert_eq!(a, b);
    assert_ne!(a, set(policies().into_iter().take(1)));
    #[allow(
        clippy::mutable_key_type,
        reason = "what is compiled is no part of the key"
    )]
    let seen = std::collections::HashSet::from([a]);
    assert!(seen.contains(&b));
}

#[test]
fn what_a_set_needs() {
    use mesh_authz::matcher::StringMatch;
    let method = Expr::Not(Box::new(Expr::Is(Matcher::Method(StringMatch::Exact(
        "GET".into(),
    )))));
    assert!(set([policy("l7", Action::Deny, vec![method])]).needs_request());
    assert!(!set([policy("l4", Action::Deny, vec![port(1)])]).needs_request());
}

#[test]
fn explanations_name_what_failed() {
    let identity = Identity::new("td", "a", "x").unwrap();
    let namespace = StringMatch::Exact("b".into());
    let set = set([policy(
        "clients",
        Action::Allow,
        vec![Expr::All(vec![
            port(1),
            Expr::Not(Box::new(Expr::Is(Matcher::Namespace(namespace)))),
            Expr::Is(Matcher::Method(StringMatch::Exact("GET".into()))),
        ])],
    )]);
    let attributes = to(1).with_identity(Attribute::Present(&identity));
    assert_eq!(
        set.explain_could_allow(&attributes).to_string(),
        "allowed: allowed by: default/clients\n\
         ALLOW default/clients: rule 0 matches\n  \
           rule 0 matches\n    \
             unknown: all of\n      \
               yes: destination port is 1 (it is 1)\n      \
               yes: not\n        \
                 no: source namespace is b (it is \"a\")\n      \
               unknown: method is GET (only a request can tell)\n"
    );
    let l4 = set.explain_l4(&attributes);
    assert!(!l4.is_allowed());
    assert!(
        l4.to_string()
            .contains("rule 0 does not match: it asks for a request")
    );
    assert_eq!(l4.policies()[0].matched(), None);
}

/// An explanation ends up in terminals and tickets: no credentials in it.
#[test]
fn explanations_keep_secrets() {
    use mesh_authz::RequestAttributes;
    use mesh_authz::matcher::StringMatch;
    let header = |name: http::HeaderName| {
        Expr::Is(Matcher::Header {
            name,
            value: StringMatch::Prefix("Bearer".into()),
        })
    };
    let set = set([policy(
        "tokens",
        Action::Allow,
        vec![
            header(http::header::AUTHORIZATION),
            header(http::HeaderName::from_static("x-a")),
        ],
    )]);
    let (method, mut headers) = (http::Method::GET, http::HeaderMap::new());
    headers.insert("authorization", "Basic c2VjcmV0".parse().unwrap());
    headers.insert("x-a", "shown".parse().unwrap());
    let request = RequestAttributes::new(&method, None, "/", &headers);
    let told = set.explain(&to(1).with_request(request)).to_string();
    // Neither what there was nor what the policy asks for, which may be the whole credential.
    assert!(
        told.contains("header authorization is what the policy says (it is a secret)"),
        "{told}"
    );
    assert!(
        told.contains("header x-a is Bearer* (it is \"shown\")"),
        "{told}"
    );
}

/// Nobody reads the ClientHello inside a tunnel: at L4 the condition is lost, as for a request's.
#[test]
fn server_names_that_nobody_looked_at() {
    let sni = || Expr::Is(Matcher::Sni(StringMatch::Exact("a.com".into())));
    let not = |expr| Expr::Not(Box::new(expr));
    for condition in [sni, || Expr::Is(Matcher::Sni(StringMatch::Present))] {
        for expr in [condition(), not(condition())] {
            let narrowed = Expr::All(vec![port(1), expr]);
            let deny = set([policy("deny", Action::Deny, vec![narrowed.clone()])]);
            assert_eq!(deny.evaluate_l4(&to(1)).reason(), Reason::Denied);
            assert!(deny.evaluate_l4(&to(2)).is_allowed());
            assert!(deny.could_allow(&to(1)).is_allowed());
            let allow = set([policy("allow", Action::Allow, vec![narrowed])]);
            assert_eq!(allow.evaluate_l4(&to(1)).reason(), Reason::NoneAllowed);
            assert!(allow.could_allow(&to(1)).is_allowed());
        }
    }
    // Whoever has looked is believed.
    let deny = set([policy("deny", Action::Deny, vec![sni()])]);
    for (seen, allowed) in [
        (Attribute::Present("a.com"), false),
        (Attribute::Present("b.com"), true),
        (Attribute::Absent, true),
        (Attribute::Unknown, false),
    ] {
        let attributes = to(1).with_sni(seen);
        assert_eq!(
            deny.evaluate_l4(&attributes).is_allowed(),
            allowed,
            "{seen:?}"
        );
        assert_eq!(deny.evaluate(&attributes).is_allowed(), allowed, "{seen:?}");
    }
}

/// Whoever asks why everything is denied is told that nobody wrote so.
#[test]
fn a_policy_that_cannot_be_read_denies_and_says_why() {
    let name = PolicyName::new("default", "reviews");
    let why = "mesh.yaml:30: spec.rules[0].to[0].operation.method: unknown field";
    let policies = set([
        policy("allow", Action::Allow, vec![Expr::TRUE]),
        Policy::unreadable(name, why),
    ]);
    for decision in [
        policies.evaluate(&to(1)),
        policies.evaluate_l4(&to(1)),
        policies.could_allow(&to(1)),
    ] {
        assert!(!decision.is_allowed());
        assert_eq!(decision.unreadable(), Some(why));
        let text = format!("default/reviews cannot be read, so it lets nobody in ({why})");
        assert_eq!(decision.to_string(), text);
    }
    let told = policies.explain(&to(1)).to_string();
    let line = format!("default/reviews cannot be read, so it lets nobody in: {why}");
    assert!(told.lines().any(|told| told == line), "{told}");
    assert!(!told.contains("DENY"), "{told}");
}
