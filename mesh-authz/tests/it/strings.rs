//! PT-02: what a policy writes literally is never read as a pattern.

use std::sync::Arc;

use http::{HeaderMap, Method};
use mesh_authz::matcher::StringMatch;
use mesh_authz::policy::istio::{AuthorizationPolicy, Operation, Rule, Source};
use mesh_authz::policy::{Action, Expr, Matcher, Policy, PolicyName, TrustDomains};
use mesh_authz::{Attribute, Attributes, ErrorKind, Identity, PolicySet, RequestAttributes};
use proptest::prelude::*;

use crate::generate::config;

/// Every printable character, at every place of a literal.
#[test]
fn metacharacters_are_literal() {
    for byte in b' '..=b'~' {
        let meta = char::from(byte);
        for literal in [format!("{meta}b"), format!("a{meta}b"), format!("a{meta}")] {
            for other in ["ab", "aab", "axb", "b", "a", "xb", "ax", "abb", "AB", ""] {
                if other == literal {
                    continue;
                }
                let exact = StringMatch::Exact(literal.as_str().into());
                assert!(exact.matches(&literal));
                assert!(!exact.matches(other), "{literal:?} {other:?}");
                let prefix = StringMatch::Prefix(literal.as_str().into());
                assert_eq!(prefix.matches(other), other.starts_with(&literal));
                let suffix = StringMatch::Suffix(literal.as_str().into());
                assert_eq!(suffix.matches(other), other.ends_with(&literal));
            }
        }
    }
}

/// CVE-2026-39350: dots of a service account are dots.
#[test]
fn dots_are_dots() {
    let from = |change: fn(&mut Source)| {
        let mut source = Source::default();
        change(&mut source);
        let mut rule = Rule::default();
        rule.from = vec![source];
        let mut policy = AuthorizationPolicy::new("a", "dots");
        policy.rules = vec![rule];
        PolicySet::new([Arc::new(policy.lower(&TrustDomains::default()).unwrap())])
    };
    let sets = [
        from(|source| source.service_accounts = vec!["x.y".into()]),
        from(|source| source.service_accounts = vec!["a/x.y".into()]),
        from(|source| source.principals = vec!["cluster.local/ns/a/sa/x.y".into()]),
        from(|source| source.principals = vec!["*/ns/a/sa/x.y".into()]),
    ];
    for set in &sets {
        for (account, allowed) in [
            ("x.y", true),
            ("xzy", false),
            ("x-y", false),
            ("x.y.z", false),
        ] {
            let identity = Identity::new("cluster.local", "a", account).unwrap();
            let attributes =
                Attributes::new("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap())
                    .with_identity(Attribute::Present(&identity));
            assert_eq!(set.evaluate(&attributes).is_allowed(), allowed, "{account}");
        }
    }
    let namespaces = from(|source| source.namespaces = vec!["a.b".into(), "c.*d".into()]);
    for (namespace, allowed) in [
        ("a.b", true),
        ("axb", false),
        ("c.d", true),
        ("cxd", false),
        ("c.xd", true),
    ] {
        let identity = Identity::new("cluster.local", namespace, "x").unwrap();
        let attributes =
            Attributes::new("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap())
                .with_identity(Attribute::Present(&identity));
        assert_eq!(
            namespaces.evaluate(&attributes).is_allowed(),
            allowed,
            "{namespace}"
        );
    }
}

/// Policies name principals without their scheme; with it they could never match, so it is an error.
#[test]
fn principals_have_no_scheme() {
    let mut source = Source::default();
    source.not_principals = vec!["spiffe://cluster.local/ns/a/sa/x".into()];
    let mut rule = Rule::default();
    rule.from = vec![source];
    let mut policy = AuthorizationPolicy::new("a", "scheme");
    policy.rules = vec![rule];
    let error = policy.lower(&TrustDomains::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Principal);
    assert_eq!(
        error.field(),
        "spec.rules[0].from[0].source.notPrincipals[0]"
    );
}

#[test]
fn presence_is_not_empty() {
    assert!(StringMatch::Present.matches("a"));
    assert!(!StringMatch::Present.matches(""));
    assert!(StringMatch::from_istio("*").matches("*"));
    assert_eq!(
        StringMatch::from_istio("**"),
        StringMatch::Suffix("*".into())
    );
}

#[test]
fn expressions_match_in_full() {
    for (pattern, value, matches) in [
        ("a|b", "a", true),
        ("a|b", "ab", false),
        ("a|b", "xb", false),
        ("a.*", "a\n", false),
        ("a", "a\n", false),
        ("(?m)a$", "a\nb", false),
    ] {
        let expression = StringMatch::regex(pattern).unwrap();
        assert_eq!(expression.matches(value), matches, "{pattern:?} {value:?}");
    }
    assert!(StringMatch::regex("a)|(b").is_err());
}

/// CVE-2022-39278, ISTIO-SECURITY-2026-006: nobody makes us compile more than a MiB.
#[test]
fn expressions_have_a_size() {
    for pattern in ["(a{1000}){1000}", "((a{99}){99}){99}", r"(\pL{500}){20}"] {
        assert!(StringMatch::regex(pattern).is_err(), "{pattern}");
    }
    assert!(StringMatch::regex("a{1000}").is_ok());
}

/// S-16, CVE-2021-39155, CVE-2024-12224. Comparison of hosts: letter case and port, nothing else.
#[test]
fn hosts() {
    let set = |host: &str| {
        let mut operation = Operation::default();
        operation.hosts = vec![host.to_owned()];
        let mut rule = Rule::default();
        rule.to = vec![operation];
        let mut policy = AuthorizationPolicy::new("a", "host");
        policy.rules = vec![rule];
        PolicySet::new([Arc::new(policy.lower(&TrustDomains::default()).unwrap())])
    };
    for (pattern, host, allowed) in [
        ("a.com", "A.COM", true),
        ("A.com", "a.com", true),
        ("a.com", "a.com:80", false),
        ("a.com:*", "A.com:80", true),
        ("a.com:*", "a.com", false),
        ("*.COM", "a.com", true),
        ("a.com", "a.com.", false),
        ("a.com", "u@a.com", false),
        ("[::1]*", "[::1]:80", true),
        ("*", "a", true),
        ("a.c*", "a", false),
        ("*aa.com", "a.com", false),
        // International names are compared as they are sent: no label is one that decodes to it.
        ("example.org", "xn--example-.org", false),
        ("xn--example-.org", "example.org", false),
        ("xn--example-.org", "XN--Example-.org", true),
        ("*example.org", "xn--example-.org", false),
        ("example.org", "xn--.example.org", false),
        ("m\u{fc}nchen.example", "xn--mnchen-3ya.example", false),
        ("xn--mnchen-3ya.example", "m\u{fc}nchen.example", false),
        ("m\u{fc}nchen.example", "M\u{dc}NCHEN.example", false),
        // Full-width letters and dots that a mapping would make ASCII.
        ("a.com", "\u{ff41}.com", false),
        ("a.com", "a\u{3002}com", false),
        ("k.com", "\u{212a}.com", false),
    ] {
        let (method, headers) = (Method::GET, HeaderMap::new());
        let request = RequestAttributes::new(&method, Some(host), "/", &headers);
        let attributes =
            Attributes::new("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap())
                .with_request(request);
        assert_eq!(
            set(pattern).evaluate(&attributes).is_allowed(),
            allowed,
            "{pattern} {host}"
        );
    }
}

/// `<issuer>/<subject>` is divided at the last slash.
#[test]
fn request_principals() {
    let exact = |text: &str| StringMatch::Exact(text.into());
    let prefix = |text: &str| StringMatch::Prefix(text.into());
    let suffix = |text: &str| StringMatch::Suffix(text.into());
    let any = || StringMatch::Present;
    for (text, issuer, subject) in [
        ("https://i/s", exact("https://i"), exact("s")),
        ("i/j/s", exact("i/j"), exact("s")),
        ("i", exact("i"), exact("")),
        ("*", any(), any()),
        ("*/s", any(), exact("s")),
        ("*i/s", suffix("i"), exact("s")),
        ("*s", any(), suffix("s")),
        ("i/*", exact("i"), any()),
        ("i/s*", exact("i"), prefix("s")),
        ("https://i/*", exact("https://i"), any()),
        ("i*", prefix("i"), any()),
    ] {
        assert_eq!(
            Matcher::request_principal(text),
            Matcher::RequestPrincipal { issuer, subject },
            "{text}"
        );
    }
}

fn allow(matcher: Matcher) -> PolicySet {
    let rule = mesh_authz::policy::Rule::new(Expr::Is(matcher));
    let name = PolicyName::new("a", "one");
    PolicySet::new([Arc::new(Policy::new(name, Action::Allow, vec![rule]))])
}

proptest! {
    #![proptest_config(config())]

    /// The index finds what the forms mean, for any text.
    #[test]
    fn forms_mean_what_str_does(text in "[ -~]{0,4}", namespace in "[a-c][a-c.]{0,2}") {
        let identity = Identity::new("td", &namespace, "x").unwrap();
        let attributes = Attributes::new("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap())
            .with_identity(Attribute::Present(&identity));
        let arc = || Arc::<str>::from(text.as_str());
        for (matcher, expected) in [
            (Matcher::Namespace(StringMatch::Exact(arc())), namespace == text),
            (Matcher::Namespace(StringMatch::Prefix(arc())), namespace.starts_with(&text)),
            (Matcher::Namespace(StringMatch::Suffix(arc())), namespace.ends_with(&text)),
            (Matcher::Principal(StringMatch::Prefix(arc())), identity.principal().starts_with(&text)),
            (Matcher::Principal(StringMatch::Suffix(arc())), identity.principal().ends_with(&text)),
        ] {
            prop_assert_eq!(allow(matcher.clone()).evaluate(&attributes).is_allowed(), expected, "{}", matcher);
        }
    }
}
