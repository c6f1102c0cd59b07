use std::fmt;

use crate::policy::{Policy, PolicyName};

/// Answers whether a connection or a request is permitted, and which policy and rule said so.
///
/// `Display` gives the text that ztunnel writes to its access log:
/// `explicitly denied by: <namespace>/<name>`, `allow policies exist, but none allowed`; of a policy that
/// [cannot be read](Self::unreadable), that and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision<'a> {
    reason: Reason,
    by: Option<Match<'a>>,
}

/// A rule that matched. Of a set each policy has a name of its own, by which it is compared and shown.
#[derive(Clone, Copy)]
pub(crate) struct Match<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) rule: usize,
}

impl<'a> Match<'a> {
    fn named(self) -> (&'a PolicyName, usize) {
        (self.policy.name(), self.rule)
    }
}

impl PartialEq for Match<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.named() == other.named()
    }
}

impl Eq for Match<'_> {}

impl fmt::Debug for Match<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.named().fmt(f)
    }
}

/// Why a decision is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// No ALLOW policy applies and nothing denied: allowed.
    NoAllowPolicies,
    /// A rule of an ALLOW policy matched: allowed.
    Allowed,
    /// A rule of a DENY policy matched: denied.
    Denied,
    /// A rule of a CUSTOM policy matched and its external authorizer cannot be asked: denied.
    CustomUnavailable,
    /// ALLOW policies apply and no rule of any matched: denied.
    NoneAllowed,
}

impl Reason {
    /// Whether decisions with this reason permit.
    pub fn is_allowed(self) -> bool {
        match self {
            Self::NoAllowPolicies | Self::Allowed => true,
            Self::Denied | Self::CustomUnavailable | Self::NoneAllowed => false,
        }
    }
}

impl<'a> Decision<'a> {
    pub(crate) fn without_rule(reason: Reason) -> Self {
        Self { reason, by: None }
    }

    pub(crate) fn by(reason: Reason, by: Match<'a>) -> Self {
        let by = Some(by);
        Self { reason, by }
    }

    /// Whether it permits.
    pub fn is_allowed(&self) -> bool {
        self.reason.is_allowed()
    }

    /// Why.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The policy whose rule matched: of several, the first in the order of the set.
    pub fn policy(&self) -> Option<&'a PolicyName> {
        self.by.map(|by| by.policy.name())
    }

    /// Why [`policy`](Self::policy) cannot be read, where that is why it denies
    /// ([`Policy::unreadable`](crate::policy::Policy::unreadable)).
    pub fn unreadable(&self) -> Option<&'a str> {
        self.by?.policy.why_unreadable()
    }

    /// The index of the rule that matched in [`policy`](Self::policy).
    pub fn rule(&self) -> Option<usize> {
        self.by.map(|by| by.rule)
    }
}

impl fmt::Display for Decision<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = self.policy();
        if let (Some(policy), Some(why)) = (by, self.unreadable()) {
            return write!(f, "{policy} cannot be read, so it lets nobody in ({why})");
        }
        match (self.reason, by) {
            (Reason::Denied, Some(policy)) => write!(f, "explicitly denied by: {policy}"),
            (Reason::CustomUnavailable, Some(policy)) => {
                write!(f, "external authorization is unavailable for: {policy}")
            }
            (Reason::Allowed, Some(policy)) => write!(f, "allowed by: {policy}"),
            (reason, _) => fmt::Display::fmt(&reason, f),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoAllowPolicies => "no allow policies, allow",
            Self::Allowed => "allow policy match",
            Self::Denied => "deny policy match",
            Self::CustomUnavailable => "external authorization is unavailable",
            Self::NoneAllowed => "allow policies exist, but none allowed",
        })
    }
}

/// Tells what policies under dry run would do; they never change a [`Decision`] that is enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DryRun<'a> {
    enforced: Decision<'a>,
    deny: Option<Match<'a>>,
    /// `None` where no ALLOW policy is under dry run.
    allow: Option<Option<Match<'a>>>,
}

impl<'a> DryRun<'a> {
    pub(crate) fn new(
        enforced: Decision<'a>,
        deny: Option<Match<'a>>,
        allow: Option<Option<Match<'a>>>,
    ) -> Self {
        Self {
            enforced,
            deny,
            allow,
        }
    }

    /// The decision that is enforced.
    pub fn enforced(&self) -> Decision<'a> {
        self.enforced
    }

    /// What the decision would be if every policy under dry run were enforced with the others.
    pub fn decision(&self) -> Decision<'a> {
        match (self.enforced.reason, self.deny, self.allow) {
            (Reason::Denied | Reason::CustomUnavailable, _, _) => self.enforced,
            (_, Some(by), _) => Decision::by(Reason::Denied, by),
            (Reason::Allowed, None, _) | (_, None, None) => self.enforced,
            (_, None, Some(Some(by))) => Decision::by(Reason::Allowed, by),
            (_, None, Some(None)) => Decision::without_rule(Reason::NoneAllowed),
        }
    }

    /// The DENY (or CUSTOM) policy under dry run that matched, and its rule.
    pub fn denied_by(&self) -> Option<(&'a PolicyName, usize)> {
        self.deny.map(Match::named)
    }

    /// The ALLOW policy under dry run that matched, and its rule.
    pub fn allowed_by(&self) -> Option<(&'a PolicyName, usize)> {
        self.allow.flatten().map(Match::named)
    }

    /// Whether ALLOW policies are under dry run and none of them matched.
    pub fn none_allowed(&self) -> bool {
        self.allow == Some(None)
    }

    /// Whether enforcing the policies under dry run would deny what is allowed now.
    pub fn would_deny(&self) -> bool {
        self.enforced.is_allowed() && !self.decision().is_allowed()
    }
}
