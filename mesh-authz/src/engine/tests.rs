use std::sync::Arc;

use super::PolicySet;
use super::index::Reading;
use crate::matcher::{PathMatch, StringMatch, parse_cidr};
use crate::policy::{Action, Expr, Matcher, Policy, PolicyName, Rule};
use crate::{Attribute, Attributes, Identity, RequestAttributes};

/// Enough to see a walk. (Compiling is slow in a debug build.)
const POLICIES: u32 = 500;
const RULES: u32 = 10;

fn text(value: impl Into<String>) -> StringMatch {
    StringMatch::Exact(value.into().into())
}

/// 500 policies of 10 rules, each asking for what `of` makes of its number.
fn set(of: impl Fn(u32) -> Expr) -> PolicySet {
    PolicySet::new((0..POLICIES).map(|policy| {
        let rules = (0..RULES).map(|rule| Rule::new(of(policy * RULES + rule)));
        let action = match policy % 2 {
            0 => Action::Allow,
            _ => Action::Deny,
        };
        let name = PolicyName::new("ns", format!("{policy}"));
        Arc::new(Policy::new(name, action, rules.collect()))
    }))
}

/// How many rules one decision tries, of all that there are.
#[track_caller]
fn tries(set: &PolicySet, reading: Reading, attributes: &Attributes<'_>, at_most: u32) {
    let index = set.index(reading, false);
    index.first_match(attributes, false);
    let tried = index.tried();
    assert!(tried <= at_most, "{tried} rules were tried");
}

#[test]
fn few_rules_are_tried() {
    let principal = |n: u32| format!("cluster.local/ns/ns-{}/sa/sa-{n}", n % 100);
    let net = |n: u32| {
        let [_, a, b, c] = n.to_be_bytes();
        parse_cidr(&format!("10.{a}.{b}.{c}/{}", 24 + n % 9)).unwrap()
    };
    let port = || Expr::Is(Matcher::DestinationPort(8080));
    let not = |matcher: Matcher| Expr::Not(Box::new(Expr::Is(matcher)));
    let identity = Identity::new("cluster.local", "ns-42", "sa-4242").unwrap();
    let method = http::Method::GET;
    let headers = http::HeaderMap::new();
    let attributes = Attributes::new(
        "10.0.4.146:1000".parse().unwrap(),
        "10.0.0.9:8080".parse().unwrap(),
    )
    .with_identity(Attribute::Present(&identity));
    let request = attributes.clone().with_request(RequestAttributes::new(
        &method,
        None,
        "/path/4242",
        &headers,
    ));

    // Whatever else all rules share: the port, exceptions, a namespace.
    let common = |own: Expr| {
        Expr::All(vec![
            port(),
            not(Matcher::Namespace(text("other"))),
            Expr::Any(vec![
                Expr::Is(Matcher::TrustDomain(text("cluster.local"))),
                Expr::Is(Matcher::Namespace(text("ns-42"))),
            ]),
            own,
        ])
    };
    for reading in [Reading::Full, Reading::L4, Reading::BeforeRequest] {
        let by_principal = set(|n| common(Expr::Is(Matcher::Principal(text(principal(n))))));
        tries(&by_principal, reading, &attributes, 1);
        let by_account = set(|n| {
            common(Expr::Is(Matcher::ServiceAccount {
                namespace: format!("ns-{}", n % 100).into(),
                name: format!("sa-{n}").into(),
            }))
        });
        tries(&by_account, reading, &attributes, 1);
        let by_namespace = set(|n| common(Expr::Is(Matcher::Namespace(text(format!("ns-{n}"))))));
        tries(&by_namespace, reading, &attributes, 1);
        let by_source = set(|n| common(Expr::Is(Matcher::SourceIp(net(n)))));
        tries(&by_source, reading, &attributes, 40);
        let by_port = set(|n| {
            let port = u16::try_from(n).unwrap();
            Expr::All(vec![
                Expr::Is(Matcher::DestinationPort(port)),
                not(Matcher::Namespace(text("other"))),
            ])
        });
        tries(&by_port, reading, &attributes, 2);
        let by_list = set(|n| {
            let list = (0..10).map(|m| Expr::Is(Matcher::Principal(text(principal(n * 10 + m)))));
            common(Expr::Any(list.collect()))
        });
        tries(&by_list, reading, &attributes, 1);
        let by_prefix = set(|n| {
            let prefix = StringMatch::Prefix(format!("{}/", principal(n)).into());
            common(Expr::Is(Matcher::Principal(prefix)))
        });
        tries(&by_prefix, reading, &attributes, 1);
        // Where a request is what tells the rules apart.
        let by_path = |n| {
            let path = PathMatch::String(text(format!("/path/{n}")));
            common(Expr::Is(Matcher::Path(path)))
        };
        let by_path = set(by_path);
        match reading {
            Reading::Full => tries(&by_path, reading, &request, 1),
            // Without one they are all alike: the first decides.
            Reading::L4 => tries(&by_path, reading, &attributes, 1),
            Reading::BeforeRequest => tries(&by_path, reading, &attributes, 1),
        }
    }
}

/// One rule with a long list: a set, not a walk; the same for an exception.
#[test]
fn long_lists_are_sets() {
    let list = || {
        let all =
            (0..10_000).map(|n| Expr::Is(Matcher::Principal(text(format!("td/ns/a/sa/{n}")))));
        Expr::Any(all.collect())
    };
    for when in [list(), Expr::Not(Box::new(list()))] {
        let node = super::compile::Node::new(&when, super::compile::Hidden::Nothing);
        assert!(node.size() <= 2, "{}", node.size());
    }
}
