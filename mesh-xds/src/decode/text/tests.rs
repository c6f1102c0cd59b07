use mesh_authz::matcher::StringMatch;
use mesh_authz::policy::{Expr, Matcher};

use super::*;
use crate::proto::envoy::r#type::matcher::v3::RegexMatcher;

fn of(pattern: MatchPattern, ignore_case: bool) -> StringMatcher {
    StringMatcher {
        ignore_case,
        match_pattern: Some(pattern),
    }
}

fn regex_of(regex: &str) -> StringMatcher {
    let regex = regex.to_owned();
    let engine_type = None;
    of(
        MatchPattern::SafeRegex(RegexMatcher { regex, engine_type }),
        false,
    )
}

fn principal_of(matcher: &StringMatcher) -> Result<Expr, String> {
    principal(matcher, &Field::root("p")).map_err(|problem| problem.to_string())
}

fn text_of(matcher: &StringMatcher, attribute: Case) -> StringMatch {
    text(matcher, attribute, &Field::root("t")).unwrap_or_else(|problem| panic!("{problem}"))
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

#[test]
fn what_istiod_asks_of_identities() {
    let is = |matcher| Ok(Expr::Is(matcher));
    let namespace = |value| is(Matcher::Namespace(value));
    let principal = |value| is(Matcher::Principal(value));
    let account = |namespace: &str, name: &str| {
        let (namespace, name) = (namespace.into(), name.into());
        is(Matcher::ServiceAccount { namespace, name })
    };
    for (pattern, expected) in [
        (".+", principal(StringMatch::Present)),
        (".*/ns/quarantine/.*", namespace(exact("quarantine"))),
        (r".*/ns/rule\[0\]-ns/.*", namespace(exact("rule[0]-ns"))),
        (".*/ns/a-.*/.*", namespace(StringMatch::Prefix("a-".into()))),
        (".*/ns/.*-b/.*", namespace(StringMatch::Suffix("-b".into()))),
        (".*/ns/.*/.*", namespace(StringMatch::Present)),
        (
            ".*/ns/a.*b/.*",
            namespace(StringMatch::regex("a.*b").unwrap()),
        ),
        (
            r"spiffe://.*/sa/x\-y",
            principal(StringMatch::Suffix("/sa/x-y".into())),
        ),
        (
            "spiffe://td/.*",
            principal(StringMatch::Prefix("td/".into())),
        ),
        (
            "spiffe://td/ns/(a|b)/sa/c",
            principal(StringMatch::regex("td/ns/(a|b)/sa/c").unwrap()),
        ),
        ("spiffe://.+/ns/a/(.+/|)sa/b(/.+)?", account("a", "b")),
        (r"spiffe://.+/ns/a\.x/(.+/|)sa/b(/.+)?", account("a.x", "b")),
    ] {
        assert_eq!(principal_of(&regex_of(pattern)), expected, "{pattern}");
    }
    for pattern in [
        "td/ns/.*",
        ".*x",
        "spiffe://a|b",
        "spiffe://a)|(b",
        r"spiffe://\Qa|b\E",
        "spiffe://[|](a|b)",
        "spiffe://([(]a)|b",
        "spiffe://?a",
        "spiffe://{0}a",
        "spiffe://(",
    ] {
        assert!(principal_of(&regex_of(pattern)).is_err(), "{pattern}");
    }
}

/// Against the URI itself, which is what Envoy compares.
#[test]
fn literals_of_identities_are_compared_with_the_whole_uri() {
    let uri = "spiffe://td/ns/a/sa/b";
    let holds = |expr: &Expr| {
        fn one(expr: &Expr, value: &str) -> bool {
            match expr {
                Expr::Any(parts) => parts.iter().any(|part| one(part, value)),
                Expr::Is(Matcher::Principal(matcher)) => matcher.matches(value),
                other => panic!("{other:?}"),
            }
        }
        one(expr, "td/ns/a/sa/b")
    };
    let mut matched = 0;
    for from in 0..=uri.len() {
        for piece in [&uri[from..], &uri[..from], "x", "spiffe://x"] {
            for (pattern, expected) in [
                (MatchPattern::Exact(piece.into()), uri == piece),
                (MatchPattern::Prefix(piece.into()), uri.starts_with(piece)),
                (MatchPattern::Suffix(piece.into()), uri.ends_with(piece)),
            ] {
                let expr = principal_of(&of(pattern.clone(), false)).unwrap();
                assert_eq!(holds(&expr), expected, "{pattern:?}");
                matched += usize::from(expected);
            }
        }
    }
    assert!(matched > 2 * uri.len());
}

#[test]
fn case_counts_as_the_matcher_says_whatever_the_attribute() {
    for pattern in [
        MatchPattern::Exact("A.b".into()),
        MatchPattern::Prefix("A.b".into()),
        MatchPattern::Suffix("A.b".into()),
        MatchPattern::Contains("A.b".into()),
    ] {
        for ignore_case in [false, true] {
            for attribute in [Case::Minds, Case::Ignores] {
                let matcher = text_of(&of(pattern.clone(), ignore_case), attribute);
                let matches = |value: &str| match attribute {
                    Case::Minds => matcher.matches(value),
                    Case::Ignores => matcher.matches_ignoring_case(value),
                };
                assert!(matches("A.b"), "{matcher}");
                assert_eq!(matches("a.B"), ignore_case, "{matcher}");
                assert!(!matches("Axb"), "{matcher}");
            }
        }
    }
    let all = text_of(&regex_of(".+"), Case::Minds);
    assert_eq!(all, StringMatch::Present);
}
