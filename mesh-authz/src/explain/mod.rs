//! Decisions told to a person.

mod condition;

use std::fmt;
use std::sync::Arc;

pub use self::condition::Condition;
use crate::attributes::Attributes;
use crate::decision::{Decision, Reason};
use crate::engine::PolicySet;
use crate::engine::evaluate::{Lean, View};
use crate::policy::{Action, Policy, PolicyName};

/// Of how many rules the conditions are told; of others only whether they matched.
const DETAILED_RULES: usize = 1000;

/// Tells a person why a decision is what it is: each policy, each rule, each condition.
///
/// `Display` writes it as lines of text. The conditions of at most 1000 rules are told (and always
/// those of the rule that decided), so that the text of a large set stays readable.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use mesh_authz::policy::{Action, Expr, Matcher, Policy, PolicyName, Rule};
/// use mesh_authz::{Attributes, PolicySet};
///
/// let rule = Rule::new(Expr::Is(Matcher::DestinationPort(9080)));
/// let policy = Policy::new(PolicyName::new("default", "port"), Action::Allow, vec![rule]);
/// let policies = PolicySet::new([Arc::new(policy)]);
///
/// let attributes = Attributes::new("10.0.0.7:51000".parse().unwrap(), "10.0.0.9:22".parse().unwrap());
/// assert_eq!(
///     policies.explain(&attributes).to_string(),
///     "denied: allow policies exist, but none allowed\n\
///      ALLOW default/port: no rule matches\n  \
///        rule 0 does not match\n    \
///          no: destination port is 9080 (it is 22)\n"
/// );
/// ```
#[derive(Debug, Clone)]
pub struct Explanation {
    reason: Reason,
    summary: String,
    decided_by: Option<(PolicyName, usize)>,
    policies: Vec<PolicyExplanation>,
}

/// What one policy had to say.
#[derive(Debug, Clone)]
pub struct PolicyExplanation {
    policy: Arc<Policy>,
    rules: Vec<RuleExplanation>,
}

/// Whether one rule matched, and why.
#[derive(Debug, Clone)]
pub struct RuleExplanation {
    matched: bool,
    condition: Option<Condition>,
    /// Why the rule does not count whatever its conditions say.
    void: Option<&'static str>,
}

/// Which question the decision answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Full,
    L4,
    CouldAllow,
}

impl Explanation {
    pub(crate) fn new(set: &PolicySet, attributes: &Attributes<'_>, asked: Asked) -> Self {
        let decision = match asked {
            Asked::Full => set.evaluate(attributes),
            Asked::L4 => set.evaluate_l4(attributes),
            Asked::CouldAllow => set.could_allow(attributes),
        };
        let mut told = 0;
        let policies = set
            .policies()
            .iter()
            .map(|policy| {
                let decided = (decision.policy() == Some(policy.name())).then(|| decision.rule());
                let rules = policy.rules().iter().enumerate().map(|(at, _)| {
                    told += 1;
                    let detailed = told <= DETAILED_RULES || decided.flatten() == Some(at);
                    RuleExplanation::new(policy, at, attributes, asked, detailed)
                });
                PolicyExplanation {
                    rules: rules.collect(),
                    policy: policy.clone(),
                }
            })
            .collect();
        Self::from_parts(decision, policies)
    }

    fn from_parts(decision: Decision<'_>, policies: Vec<PolicyExplanation>) -> Self {
        Self {
            reason: decision.reason(),
            summary: decision.to_string(),
            decided_by: decision.policy().cloned().zip(decision.rule()),
            policies,
        }
    }

    /// Whether the decision permits.
    pub fn is_allowed(&self) -> bool {
        self.reason.is_allowed()
    }

    /// The decision's reason.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The policy and the rule that decided, where one did.
    pub fn decided_by(&self) -> Option<(&PolicyName, usize)> {
        self.decided_by.as_ref().map(|(name, rule)| (name, *rule))
    }

    /// What each policy had to say, in the order of the set.
    pub fn policies(&self) -> &[PolicyExplanation] {
        &self.policies
    }
}

impl PolicyExplanation {
    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Its rules.
    pub fn rules(&self) -> &[RuleExplanation] {
        &self.rules
    }

    /// The first rule that matched.
    pub fn matched(&self) -> Option<usize> {
        self.rules.iter().position(RuleExplanation::matched)
    }
}

impl RuleExplanation {
    fn new(
        policy: &Policy,
        at: usize,
        attributes: &Attributes<'_>,
        asked: Asked,
        detailed: bool,
    ) -> Self {
        let rule = &policy.rules()[at];
        let permits = *policy.action() == Action::Allow;
        let lean = if permits { Lean::PERMIT } else { Lean::REFUSE };
        let (view, lean) = match asked {
            Asked::Full => (View::Full, lean),
            Asked::L4 => (View::L4, lean),
            Asked::CouldAllow => (View::Full, lean.hopeful()),
        };
        let condition = Condition::new(rule.when(), attributes, view, lean);
        let void = (asked == Asked::L4 && permits && rule.needs_request())
            .then_some("it asks for a request, and without one never permits");
        Self {
            matched: void.is_none() && condition.outcome().unwrap_or(lean.unknown),
            condition: detailed.then_some(condition),
            void,
        }
    }

    /// Whether it matched.
    pub fn matched(&self) -> bool {
        self.matched
    }

    /// Its condition, told; `None` beyond the first 1000 rules.
    pub fn condition(&self) -> Option<&Condition> {
        self.condition.as_ref()
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_allowed() {
            "allowed"
        } else {
            "denied"
        };
        writeln!(f, "{verdict}: {}", self.summary)?;
        for policy in &self.policies {
            fmt::Display::fmt(policy, f)?;
        }
        Ok(())
    }
}

impl fmt::Display for PolicyExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action = match self.policy.action() {
            Action::Allow => "ALLOW",
            Action::Deny => "DENY",
            Action::Audit => "AUDIT",
            Action::Custom { .. } => "CUSTOM",
        };
        let dry_run = if self.policy.dry_run() {
            " (dry run)"
        } else {
            ""
        };
        if let Some(why) = self.policy.why_unreadable() {
            let name = self.policy.name();
            return writeln!(f, "{name} cannot be read, so it lets nobody in: {why}");
        }
        write!(f, "{action} {}{dry_run}: ", self.policy.name())?;
        match self.matched() {
            _ if self.rules.is_empty() => writeln!(f, "has no rules, so none matches")?,
            Some(rule) => writeln!(f, "rule {rule} matches")?,
            None => writeln!(f, "no rule matches")?,
        }
        for (at, rule) in self.rules.iter().enumerate() {
            let matches = if rule.matched {
                "matches"
            } else {
                "does not match"
            };
            match (rule.void, &rule.condition) {
                (_, None) => continue,
                (Some(void), _) => writeln!(f, "  rule {at} {matches}: {void}")?,
                (None, _) => writeln!(f, "  rule {at} {matches}")?,
            }
            if let Some(condition) = &rule.condition {
                condition.write(f, 4)?;
            }
        }
        Ok(())
    }
}
