//! Envoy's string matchers, and the regular expressions that istiod writes for identities.

use mesh_authz::matcher::StringMatch;
use mesh_authz::policy::{Expr, Matcher};

use super::field::{Field, Problem};
use crate::proto::envoy::r#type::matcher::v3::StringMatcher;
use crate::proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;

/// Whether a comparison of an attribute minds the case of ASCII letters, when nobody says otherwise.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Case {
    Minds,
    Ignores,
}

/// A matcher of whole values; `attribute` is how the attribute that it is for compares letters.
pub(super) fn text(
    matcher: &StringMatcher,
    attribute: Case,
    field: &Field<'_>,
) -> Result<StringMatch, Problem> {
    let ignores = matcher.ignore_case;
    let own = if ignores { Case::Ignores } else { Case::Minds };
    let plain =
        |make: fn(std::sync::Arc<str>) -> StringMatch, literal: &str, around: (&str, &str)| {
            if own == attribute || !literal.bytes().any(|byte| byte.is_ascii_alphabetic()) {
                return Ok(make(literal.into()));
            }
            let (before, after) = around;
            let flags = if ignores { "(?i)" } else { "" };
            let literal = escape(literal);
            regex(&format!("{flags}{before}{literal}{after}"), field)
        };
    match &matcher.match_pattern {
        Some(MatchPattern::Exact(literal)) => plain(StringMatch::Exact, literal, ("", "")),
        Some(MatchPattern::Prefix(literal)) => {
            plain(StringMatch::Prefix, literal, ("", r"(?s:.*)"))
        }
        Some(MatchPattern::Suffix(literal)) => {
            plain(StringMatch::Suffix, literal, (r"(?s:.*)", ""))
        }
        Some(MatchPattern::Contains(literal)) => {
            let flags = if ignores { "(?i)" } else { "" };
            let literal = escape(literal);
            regex(&format!(r"{flags}(?s:.*){literal}(?s:.*)"), field)
        }
        // What istiod writes for presence. No value here has a line break.
        Some(MatchPattern::SafeRegex(pattern)) if pattern.regex == ".+" => Ok(StringMatch::Present),
        Some(MatchPattern::SafeRegex(pattern)) => regex(&pattern.regex, &field.at("safe_regex")),
        Some(MatchPattern::Custom(_)) => Err(field.unsupported("a custom matcher")),
        None => Err(field.unsupported("a matcher without a pattern")),
    }
}

/// A matcher of a peer's certificate, which names it by the URI `spiffe://<principal>`.
pub(super) fn principal(matcher: &StringMatcher, field: &Field<'_>) -> Result<Expr, Problem> {
    let is = |value| Expr::Is(Matcher::Principal(value));
    if matcher.ignore_case {
        return Err(field.unsupported("an identity without regard to case"));
    }
    Ok(match &matcher.match_pattern {
        Some(MatchPattern::Exact(literal)) => match literal.strip_prefix(SCHEME) {
            Some(rest) => is(StringMatch::Exact(rest.into())),
            None => Expr::FALSE,
        },
        Some(MatchPattern::Prefix(literal)) => match literal.strip_prefix(SCHEME) {
            Some("") => is(StringMatch::Present),
            Some(rest) => is(StringMatch::Prefix(rest.into())),
            None if SCHEME.starts_with(literal.as_str()) => is(StringMatch::Present),
            None => Expr::FALSE,
        },
        Some(MatchPattern::Suffix(literal)) => {
            // It may be the end of the principal, or the principal with some end of the scheme.
            let mut any = vec![is(StringMatch::Suffix(literal.as_str().into()))];
            let ends = (0..SCHEME.len()).filter_map(|from| literal.strip_prefix(&SCHEME[from..]));
            any.extend(ends.map(|rest| is(StringMatch::Exact(rest.into()))));
            Expr::Any(any)
        }
        Some(MatchPattern::SafeRegex(pattern)) => {
            let field = field.at("safe_regex");
            return identity_regex(&pattern.regex, &field);
        }
        Some(MatchPattern::Contains(_)) => return Err(field.unsupported("a part of an identity")),
        Some(MatchPattern::Custom(_)) => return Err(field.unsupported("a custom matcher")),
        None => return Err(field.unsupported("a matcher without a pattern")),
    })
}

const SCHEME: &str = "spiffe://";

/// The forms in which istiod asks for namespaces, service accounts and principals with wildcards; of
/// others, those that begin with the scheme.
fn identity_regex(pattern: &str, field: &Field<'_>) -> Result<Expr, Problem> {
    let is = |matcher| Ok(Expr::Is(matcher));
    if matches!(pattern, ".+" | ".*") {
        return is(Matcher::Principal(StringMatch::Present));
    }
    let namespace = pattern
        .strip_prefix(".*/ns/")
        .and_then(|rest| rest.strip_suffix("/.*"));
    // Anything else than text between the slashes could reach beyond them.
    let is_plain = |namespace: &&str| {
        let text = namespace.replace(".*", "");
        !namespace.contains('/') && (text.is_empty() || literal(&text).is_some())
    };
    if let Some(namespace) = namespace.filter(is_plain) {
        return is(Matcher::Namespace(wildcards(namespace, field)?));
    }
    let Some(rest) = pattern.strip_prefix(SCHEME) else {
        return Err(field.unsupported(format_args!("{pattern:?} of an identity")));
    };
    let account = rest
        .strip_prefix(".+/ns/")
        .and_then(|rest| rest.strip_suffix("(/.+)?")?.split_once("/(.+/|)sa/"));
    if let Some((namespace, name)) = account
        && let (Some(namespace), Some(name)) = (literal(namespace), literal(name))
    {
        let (namespace, name) = (namespace.into(), name.into());
        return is(Matcher::ServiceAccount { namespace, name });
    }
    if is_no_rest(rest) {
        return Err(field.unsupported(format_args!("{pattern:?} of an identity")));
    }
    is(Matcher::Principal(wildcards(rest, field)?))
}

/// Reads a pattern with `.*` at one end, or without, as the comparison that it is.
fn wildcards(pattern: &str, field: &Field<'_>) -> Result<StringMatch, Problem> {
    if pattern == ".*" {
        // Of an identity no part is empty.
        return Ok(StringMatch::Present);
    }
    if let Some(exact) = literal(pattern) {
        return Ok(StringMatch::Exact(exact.into()));
    }
    if let Some(suffix) = pattern.strip_prefix(".*").and_then(literal) {
        return Ok(StringMatch::Suffix(suffix.into()));
    }
    if let Some(prefix) = pattern.strip_suffix(".*").and_then(literal) {
        return Ok(StringMatch::Prefix(prefix.into()));
    }
    regex(pattern, field)
}

fn regex(pattern: &str, field: &Field<'_>) -> Result<StringMatch, Problem> {
    StringMatch::regex(pattern).map_err(|_| {
        field.wrong(
            format_args!("{pattern:?}"),
            "an RE2 expression of at most 1 MiB",
        )
    })
}

/// The only text that an expression matches, if it is quoted text (RE2's `QuoteMeta`).
fn literal(pattern: &str) -> Option<String> {
    let mut text = String::with_capacity(pattern.len());
    let mut rest = pattern.chars();
    while let Some(next) = rest.next() {
        text.push(match next {
            '\\' => rest.next().filter(|quoted| quoted.is_ascii_punctuation())?,
            '.' | '+' | '*' | '?' | '(' | ')' | '|' | '[' | ']' | '{' | '}' | '^' | '$' => {
                return None;
            }
            plain => plain,
        });
    }
    Some(text)
}

/// Quotes what an expression would read otherwise.
fn escape(literal: &str) -> String {
    let mut quoted = String::with_capacity(literal.len());
    for next in literal.chars() {
        if next.is_ascii_punctuation() {
            quoted.push('\\');
        }
        quoted.push(next);
    }
    quoted
}

/// Whether what follows a text in an expression may belong to that text, or be an alternative to it, so
/// that the text is not the beginning of all that matches. In doubt it may.
fn is_no_rest(rest: &str) -> bool {
    if rest.starts_with(['?', '*', '+', '{']) {
        return true;
    }
    if !rest.contains('|') {
        return false;
    }
    // In classes, quotations and comments parentheses do not count.
    if rest.contains('[') || rest.contains("\\Q") || rest.contains("(?") {
        return true;
    }
    let mut depth = 0_i32;
    let mut rest = rest.chars();
    while let Some(next) = rest.next() {
        match next {
            '\\' => _ = rest.next(),
            '(' => depth += 1,
            ')' => depth -= 1,
            '|' if depth <= 0 => return true,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests;
