//! Conditions in the form "all of any of all": clauses, matches, fields.

use std::borrow::Cow;
use std::mem;

use mesh_authz::matcher::StringMatch;
use mesh_authz::policy::{Expr, Matcher};

/// Matches that a rule may have; one that would need more is reduced as if it could not be said.
const MAX_MATCHES: usize = 4096;

/// What a rule does when it matches: tells how what cannot be said counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// What cannot be said is not met.
    Permits,
    /// What cannot be said is met.
    Refuses,
}

/// One field of a match: some of the values, or none of them. All matchers are of one [`kind`].
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Literal<'a> {
    pub(super) negated: bool,
    pub(super) any: Vec<Cow<'a, Matcher>>,
}

type Match<'a> = Vec<Literal<'a>>;
type Clause<'a> = Vec<Match<'a>>;

/// A condition without negations but at its literals.
#[derive(Debug, Clone)]
enum Normal<'a> {
    All(Vec<Normal<'a>>),
    Any(Vec<Normal<'a>>),
    Is(Literal<'a>),
}

impl Normal<'_> {
    fn constant(value: bool) -> Self {
        if value {
            Self::All(Vec::new())
        } else {
            Self::Any(Vec::new())
        }
    }

    fn is_constant(&self, value: bool) -> bool {
        match self {
            Self::All(parts) => value && parts.is_empty(),
            Self::Any(parts) => !value && parts.is_empty(),
            Self::Is(_) => false,
        }
    }
}

/// The clauses of a condition; none are always met. `None` for what is never met.
pub(super) fn clauses(when: &Expr, side: Side) -> Option<Vec<Clause<'_>>> {
    let normal = normal(when, false, side);
    if normal.is_constant(false) {
        return None;
    }
    match conjunction(&normal) {
        Some(clauses) => Some(clauses),
        None if side == Side::Refuses => Some(Vec::new()),
        None => None,
    }
}

fn normal(expr: &Expr, negated: bool, side: Side) -> Normal<'_> {
    match expr {
        Expr::All(parts) => join(parts, negated, side, !negated),
        Expr::Any(parts) => join(parts, negated, side, negated),
        Expr::Not(part) => normal(part, !negated, side),
        Expr::Is(matcher) => match said(matcher) {
            Said::Always(value) => Normal::constant(value != negated),
            Said::As(matcher) => Normal::Is(Literal {
                negated,
                any: vec![matcher],
            }),
            Said::Not => Normal::constant(side == Side::Refuses),
        },
        _ => Normal::constant(side == Side::Refuses),
    }
}

/// Joins parts with "and" or "or": constants go, and so do levels that say nothing.
fn join(parts: &[Expr], negated: bool, side: Side, and: bool) -> Normal<'_> {
    let mut joined = Vec::with_capacity(parts.len());
    for part in parts {
        let part = normal(part, negated, side);
        if part.is_constant(!and) {
            return part;
        }
        match part {
            Normal::All(inner) if and => joined.extend(inner),
            Normal::Any(inner) if !and => joined.extend(inner),
            part => joined.push(part),
        }
    }
    if joined.len() == 1
        && let Some(only) = joined.pop()
    {
        return only;
    }
    if and {
        Normal::All(joined)
    } else {
        Normal::Any(joined)
    }
}

/// What the wire makes of a matcher.
enum Said<'a> {
    As(Cow<'a, Matcher>),
    Always(bool),
    Not,
}

fn said(matcher: &Matcher) -> Said<'_> {
    let text = |text: &StringMatch| match text {
        StringMatch::Exact(text) => Some(!text.is_empty()),
        StringMatch::Prefix(text) | StringMatch::Suffix(text) => Some(!text.is_empty()),
        StringMatch::Present => Some(true),
        _ => None,
    };
    match matcher {
        Matcher::Principal(value) | Matcher::Namespace(value) => match text(value) {
            Some(true) => Said::As(Cow::Borrowed(matcher)),
            // No peer that has an identity has an empty one.
            Some(false) if matches!(value, StringMatch::Exact(_)) => Said::Always(false),
            Some(false) => Said::As(Cow::Owned(Matcher::Principal(StringMatch::Present))),
            None => Said::Not,
        },
        Matcher::ServiceAccount { namespace, name } => {
            if namespace.is_empty() || name.is_empty() {
                Said::Always(false)
            } else {
                Said::As(Cow::Borrowed(matcher))
            }
        }
        // A principal begins with its trust domain.
        Matcher::TrustDomain(value) => match value {
            StringMatch::Exact(domain) => {
                let prefix = StringMatch::Prefix(format!("{domain}/").into());
                Said::As(Cow::Owned(Matcher::Principal(prefix)))
            }
            StringMatch::Present => Said::As(Cow::Owned(Matcher::Principal(StringMatch::Present))),
            _ => Said::Not,
        },
        Matcher::SourceIp(_) | Matcher::DestinationIp(_) | Matcher::DestinationPort(_) => {
            Said::As(Cow::Borrowed(matcher))
        }
        _ => Said::Not,
    }
}

/// Clauses that all have to match. `None` where there would be too many.
fn conjunction<'a>(normal: &Normal<'a>) -> Option<Vec<Clause<'a>>> {
    match normal {
        Normal::Is(literal) => Some(vec![vec![vec![literal.clone()]]]),
        Normal::All(parts) => {
            let mut all = Vec::new();
            for part in parts {
                all.extend(conjunction(part)?);
                bounded(&all)?;
            }
            Some(all)
        }
        Normal::Any(parts) => {
            if let Some(any) = disjunction(normal) {
                return Some(vec![any]);
            }
            // (a and b) or c: (a or c) and (b or c).
            let mut product: Vec<Clause<'a>> = vec![Vec::new()];
            for part in parts {
                let clauses = conjunction(part)?;
                let mut next = Vec::with_capacity(capacity(product.len(), clauses.len()));
                for left in &product {
                    for right in &clauses {
                        next.push(left.iter().chain(right).cloned().collect());
                        bounded(&next)?;
                    }
                }
                product = next;
            }
            Some(product)
        }
    }
}

/// Of a product: no more than it takes to find that it is too large.
fn capacity(left: usize, right: usize) -> usize {
    left.saturating_mul(right).min(MAX_MATCHES + 1)
}

fn bounded(clauses: &[Clause<'_>]) -> Option<()> {
    let matches: usize = clauses.iter().map(|clause| clause.len().max(1)).sum();
    (matches <= MAX_MATCHES).then_some(())
}

/// Matches of which some has to match. `None` where a match cannot say it, or there would be too many.
fn disjunction<'a>(normal: &Normal<'a>) -> Option<Clause<'a>> {
    match normal {
        Normal::Is(literal) => Some(vec![vec![literal.clone()]]),
        Normal::Any(parts) => {
            let mut any: Clause<'a> = Vec::new();
            for part in parts {
                for one in disjunction(part)? {
                    add(&mut any, one);
                }
                (any.len() <= MAX_MATCHES).then_some(())?;
            }
            Some(any)
        }
        Normal::All(parts) => {
            let mut product: Clause<'a> = vec![Vec::new()];
            for part in parts {
                let any = disjunction(part)?;
                let mut next = Vec::with_capacity(capacity(product.len(), any.len()));
                for left in &product {
                    for right in &any {
                        next.push(both(left, right)?);
                        (next.len() <= MAX_MATCHES).then_some(())?;
                    }
                }
                product = next;
            }
            Some(product)
        }
    }
}

/// Adds an alternative: to the one before, where both are some values of the same field.
fn add<'a>(any: &mut Clause<'a>, mut one: Match<'a>) {
    if let (Some([last]), [new]) = (any.last_mut().map(Vec::as_mut_slice), one.as_mut_slice())
        && !last.negated
        && !new.negated
        && kind(last) == kind(new)
    {
        last.any.append(&mut new.any);
        return;
    }
    any.push(one);
}

/// One match that says both; `None` if both are some values of the same field, which is not one list.
fn both<'a>(left: &Match<'a>, right: &Match<'a>) -> Option<Match<'a>> {
    let clash = |new: &Literal<'_>| {
        let mut same = left.iter().filter(|old| !old.negated && !new.negated);
        same.any(|old| kind(old) == kind(new))
    };
    if right.iter().any(clash) {
        return None;
    }
    Some(left.iter().chain(right).cloned().collect())
}

fn kind(literal: &Literal<'_>) -> Option<mem::Discriminant<Matcher>> {
    literal
        .any
        .first()
        .map(|matcher| mem::discriminant(&**matcher))
}
