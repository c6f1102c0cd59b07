//! The policies of one destination, compiled once and asked often.

mod affixes;
mod blocks;
mod compile;
pub(crate) mod evaluate;
mod index;
mod keyed;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};

use self::index::{Compiled, Index, Reading};
use crate::attributes::{Attribute, Attributes};
use crate::decision::{Decision, DryRun, Match, Reason};
use crate::explain::{Asked, Explanation};
use crate::policy::{Action, Policy, PolicyName};

/// All policies that apply to one destination, as a decision.
///
/// The order is Istio's: CUSTOM, then DENY; without any ALLOW policy what is left is allowed, else one
/// of them has to match. AUDIT and policies under dry run never change a decision. Until external
/// authorizers can be asked, a CUSTOM policy denies what its rules match.
///
/// Clones share what is compiled, so workloads with equal policies should hold clones of one set;
/// sets compare and hash by their policies for that purpose. The first evaluation of each kind
/// compiles, which takes time and memory in proportion to the rules; from then on evaluation does not
/// allocate and looks up the rules that the connection's own values may match. (Regular expressions,
/// which only Envoy's RBAC can bring, keep scratch space for each thread that runs them.)
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use mesh_authz::policy::{Action, Expr, Matcher, Policy, PolicyName, Rule};
/// use mesh_authz::{Attribute, Attributes, Identity, PolicySet};
///
/// let only_port = Rule::new(Expr::Is(Matcher::DestinationPort(9080)));
/// let policy = Policy::new(PolicyName::new("default", "port"), Action::Allow, vec![only_port]);
/// let policies = PolicySet::new([Arc::new(policy)]);
///
/// let from = "10.0.0.7:51000".parse().unwrap();
/// let to = |port| format!("10.0.0.9:{port}").parse().unwrap();
/// assert!(policies.evaluate_l4(&Attributes::new(from, to(9080))).is_allowed());
/// let decision = policies.evaluate_l4(&Attributes::new(from, to(22)));
/// assert_eq!(decision.to_string(), "allow policies exist, but none allowed");
/// ```
#[derive(Clone)]
pub struct PolicySet {
    shared: Arc<Shared>,
}

struct Shared {
    policies: Box<[Arc<Policy>]>,
    needs_request: OnceLock<bool>,
    /// By [`Reading`] and whether of policies under dry run.
    indexes: [[OnceLock<Index>; 2]; 3],
}

impl PolicySet {
    /// Gathers policies. Cheap: each kind of evaluation compiles what it needs when it is first asked.
    pub fn new(policies: impl IntoIterator<Item = Arc<Policy>>) -> Self {
        Self {
            shared: Arc::new(Shared {
                policies: policies.into_iter().collect(),
                needs_request: OnceLock::new(),
                indexes: Default::default(),
            }),
        }
    }

    /// The policies, in the order given.
    pub fn policies(&self) -> &[Arc<Policy>] {
        &self.shared.policies
    }

    /// Whether some policy, under dry run or not, asks for what only an HTTP request can tell.
    pub fn needs_request(&self) -> bool {
        *self
            .shared
            .needs_request
            .get_or_init(|| self.policies().iter().any(|policy| policy.needs_request()))
    }

    /// Compiles what [`evaluate_l4`](Self::evaluate_l4) needs, if it is not compiled yet.
    ///
    /// Large sets take their time (about 5 µs a rule); whoever has many rules calls this, and
    /// [`compile_l7`](Self::compile_l7), away from the tasks that serve connections.
    pub fn compile_l4(&self) {
        for dry_run in [false, true] {
            self.index(Reading::L4, dry_run);
        }
    }

    /// Compiles what [`could_allow`](Self::could_allow) and [`evaluate`](Self::evaluate) need, if it is
    /// not compiled yet.
    pub fn compile_l7(&self) {
        self.index(Reading::BeforeRequest, false);
        for dry_run in [false, true] {
            self.index(Reading::Full, dry_run);
        }
    }

    /// Decides on a request.
    ///
    /// Everything should be known by now: a condition on an attribute that is unknown counts against
    /// access, false in an ALLOW rule and true in a DENY rule. Of a header with several values, a DENY
    /// rule needs one to match and an ALLOW rule all.
    pub fn evaluate(&self, attributes: &Attributes<'_>) -> Decision<'_> {
        self.decide(Reading::Full, attributes, false)
    }

    /// Decides on a connection by the L4 part of the policies, whatever the attributes tell of a request.
    ///
    /// An ALLOW rule with a condition that only a request can tell never matches; a DENY rule loses
    /// such conditions, wherever they stand, and denies more. What this admits, [`evaluate`](Self::evaluate)
    /// admits for every request on the connection.
    pub fn evaluate_l4(&self, attributes: &Attributes<'_>) -> Decision<'_> {
        self.decide(Reading::L4, attributes, false)
    }

    /// Decides whether a connection may be opened on which each request will be evaluated in full.
    ///
    /// It refuses only where three-valued logic can tell that no request would be permitted: unknown
    /// attributes count in favour of access, each on its own. What this refuses,
    /// [`evaluate`](Self::evaluate) refuses for every request on the connection.
    ///
    /// It does not solve conditions: where each may hold and all cannot (method `GET` and not `GET`),
    /// the connection is admitted, and every request on it refused.
    pub fn could_allow(&self, attributes: &Attributes<'_>) -> Decision<'_> {
        let reading = match attributes.request {
            Attribute::Unknown => Reading::BeforeRequest,
            Attribute::Present(_) | Attribute::Absent => Reading::Full,
        };
        self.decide(reading, attributes, true)
    }

    /// Tells what [`evaluate`](Self::evaluate) would answer if policies under dry run were enforced.
    pub fn evaluate_dry_run(&self, attributes: &Attributes<'_>) -> DryRun<'_> {
        self.dry_run(Reading::Full, attributes)
    }

    /// Tells what [`evaluate_l4`](Self::evaluate_l4) would answer if policies under dry run were enforced.
    pub fn evaluate_l4_dry_run(&self, attributes: &Attributes<'_>) -> DryRun<'_> {
        self.dry_run(Reading::L4, attributes)
    }

    /// Explains the decision of [`evaluate`](Self::evaluate) to a person.
    pub fn explain(&self, attributes: &Attributes<'_>) -> Explanation {
        Explanation::new(self, attributes, Asked::Full)
    }

    /// Explains the decision of [`evaluate_l4`](Self::evaluate_l4) to a person.
    pub fn explain_l4(&self, attributes: &Attributes<'_>) -> Explanation {
        Explanation::new(self, attributes, Asked::L4)
    }

    /// Explains the decision of [`could_allow`](Self::could_allow) to a person.
    pub fn explain_could_allow(&self, attributes: &Attributes<'_>) -> Explanation {
        Explanation::new(self, attributes, Asked::CouldAllow)
    }

    fn index(&self, reading: Reading, dry_run: bool) -> &Index {
        // Where nothing asks for a request, all readings are one.
        let reading = if self.needs_request() {
            reading
        } else {
            Reading::Full
        };
        self.shared.indexes[reading as usize][usize::from(dry_run)]
            .get_or_init(|| Index::new(&self.shared.policies, dry_run, reading))
    }

    fn decide(&self, reading: Reading, attributes: &Attributes<'_>, hopeful: bool) -> Decision<'_> {
        let index = self.index(reading, false);
        self.decision(index.first_match(attributes, hopeful), index.allows())
    }

    fn decision(&self, first: Option<&Compiled>, allows: bool) -> Decision<'_> {
        let Some(rule) = first else {
            return Decision::without_rule(if allows {
                Reason::NoneAllowed
            } else {
                Reason::NoAllowPolicies
            });
        };
        let by = self.matched(rule);
        let reason = match by.policy.action() {
            Action::Allow => Reason::Allowed,
            Action::Custom { .. } => Reason::CustomUnavailable,
            // AUDIT rules are never compiled.
            Action::Deny | Action::Audit => Reason::Denied,
        };
        Decision::by(reason, by)
    }

    fn matched(&self, rule: &Compiled) -> Match<'_> {
        Match {
            policy: &self.shared.policies[rule.policy as usize],
            rule: rule.rule as usize,
        }
    }

    fn dry_run(&self, reading: Reading, attributes: &Attributes<'_>) -> DryRun<'_> {
        let dry = self.index(reading, true);
        let matched = |rule: &Compiled| self.matched(rule);
        let first = dry.first_match(attributes, false);
        let deny = first.filter(|rule| rule.refuses).map(matched);
        let permit = match deny {
            None => first,
            Some(_) => dry.first_permit(attributes),
        };
        let allow = dry.allows().then(|| permit.map(matched));
        DryRun::new(self.decide(reading, attributes, false), deny, allow)
    }
}

impl Default for PolicySet {
    /// No policies: everything is allowed.
    fn default() -> Self {
        Self::new([])
    }
}

impl fmt::Debug for PolicySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.policies().iter().map(|policy| policy.name());
        f.debug_list()
            .entries(names.map(PolicyName::to_string))
            .finish()
    }
}

impl PartialEq for PolicySet {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared) || self.policies() == other.policies()
    }
}

impl Eq for PolicySet {}

impl Hash for PolicySet {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.policies().hash(state);
    }
}

#[cfg(test)]
mod tests;
