//! PT-04: headers with several values.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use mesh_authz::matcher::StringMatch;
use mesh_authz::policy::{Action, Expr, Matcher, Policy, PolicyName, Rule};
use mesh_authz::{Attributes, PolicySet, RequestAttributes};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::generate::{VALUES, config, expr};

const NAME: HeaderName = HeaderName::from_static("x-a");

fn set(action: Action, when: Expr) -> PolicySet {
    let policy = Policy::new(PolicyName::new("a", "one"), action, vec![Rule::new(when)]);
    PolicySet::new([Arc::new(policy)])
}

fn headers(values: &[&[u8]]) -> HeaderMap {
    values
        .iter()
        .map(|value| (NAME, HeaderValue::from_bytes(value).unwrap()))
        .collect()
}

fn allowed(set: &PolicySet, headers: &HeaderMap) -> bool {
    let method = Method::GET;
    let attributes = Attributes::new(
        "10.0.0.1:1".parse().unwrap(),
        "10.0.0.2:80".parse().unwrap(),
    )
    .with_request(RequestAttributes::new(&method, None, "/", headers));
    set.evaluate(&attributes).is_allowed()
}

fn is(value: StringMatch) -> Expr {
    Expr::Is(Matcher::Header { name: NAME, value })
}

fn not(expr: Expr) -> Expr {
    Expr::Not(Box::new(expr))
}

#[test]
fn one_denies_all_allow() {
    let exact = || is(StringMatch::Exact("v".into()));
    let deny = set(Action::Deny, exact());
    let deny_not = set(Action::Deny, not(exact()));
    let allow = set(Action::Allow, exact());
    let allow_not = set(Action::Allow, not(exact()));
    for (values, results) in [
        (&[][..], [true, false, false, true]),
        (&[&b"v"[..]], [false, true, true, false]),
        (&[b"w"], [true, false, false, true]),
        (&[b"v", b"v"], [false, true, true, false]),
        (&[b"v", b"w"], [false, false, false, false]),
        (&[b"w", b"v"], [false, false, false, false]),
        (&[b""], [true, false, false, true]),
        (&[b"v,w"], [true, false, false, true]),
    ] {
        let headers = headers(values);
        let sets = [&deny, &deny_not, &allow, &allow_not];
        assert_eq!(
            sets.map(|set| allowed(set, &headers)),
            results,
            "{values:?}"
        );
    }
}

/// What is not text no expression can be asked about: that counts against access, either way round.
#[test]
fn bytes_that_are_not_text_never_help() {
    let headers = headers(&[b"v\xff"]);
    let expression = || is(StringMatch::regex(".*").unwrap());
    for when in [expression(), not(expression())] {
        assert!(!allowed(&set(Action::Allow, when.clone()), &headers));
        assert!(!allowed(&set(Action::Deny, when), &headers));
    }
    let prefix = is(StringMatch::Prefix("v".into()));
    assert!(allowed(&set(Action::Allow, prefix), &headers));
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn order_is_no_matter(when in expr(), values in vec(select(&VALUES[..]), 0..4)) {
        let values: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).collect();
        let reversed: Vec<&[u8]> = values.iter().rev().copied().collect();
        for action in [Action::Allow, Action::Deny] {
            let set = set(action, when.clone());
            prop_assert_eq!(allowed(&set, &headers(&values)), allowed(&set, &headers(&reversed)));
        }
    }

    /// One more value never opens what was closed; only the first changes from absent to present.
    #[test]
    fn more_values_never_help(
        when in expr(),
        values in vec(select(&VALUES[..]), 1..4),
        more in select(&VALUES[..]),
    ) {
        let mut values: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).collect();
        let before = headers(&values);
        values.push(more.as_bytes());
        let after = headers(&values);
        for action in [Action::Allow, Action::Deny] {
            let set = set(action, when.clone());
            prop_assert!(allowed(&set, &before) || !allowed(&set, &after));
        }
    }
}
