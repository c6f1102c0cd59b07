//! The policies of one destination, compiled once and asked often.

mod evaluate;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use self::evaluate::{Lean, View};
use crate::attributes::Attributes;
use crate::decision::{Decision, DryRun, Reason};
use crate::explain::Explanation;
use crate::policy::{Action, Policy};

/// All policies that apply to one destination, as a decision.
#[derive(Clone, Default)]
pub struct PolicySet {
    policies: Arc<[Arc<Policy>]>,
}

impl PolicySet {
    /// Gathers policies. Cheap: they are compiled by the first evaluation.
    pub fn new(policies: impl IntoIterator<Item = Arc<Policy>>) -> Self {
        Self {
            policies: policies.into_iter().collect(),
        }
    }

    /// The policies, in the order given.
    pub fn policies(&self) -> &[Arc<Policy>] {
        &self.policies
    }

    /// Whether some policy asks for what only an HTTP request can tell.
    pub fn needs_request(&self) -> bool {
        self.policies.iter().any(|policy| policy.needs_request())
    }

    /// Decides in full.
    pub fn evaluate(&self, attributes: &Attributes<'_>) -> Decision<'_> {
        self.decide(attributes, View::Full, Lean::REFUSE, Lean::PERMIT)
    }

    /// Decides by the L4 part of the policies alone.
    pub fn evaluate_l4(&self, attributes: &Attributes<'_>) -> Decision<'_> {
        self.decide(attributes, View::L4, Lean::REFUSE, Lean::PERMIT)
    }

    /// Decides whether some request on the connection may be permitted.
    pub fn could_allow(&self, attributes: &Attributes<'_>) -> Decision<'_> {
        let (refuse, permit) = (Lean::REFUSE.hopeful(), Lean::PERMIT.hopeful());
        self.decide(attributes, View::Full, refuse, permit)
    }

    /// Tells what the policies under dry run would decide.
    pub fn evaluate_dry_run(&self, attributes: &Attributes<'_>) -> DryRun<'_> {
        DryRun {
            deny: None,
            allow: None,
            decision: self.evaluate(attributes),
        }
    }

    /// Explains the decision of [`evaluate`](Self::evaluate) to a person.
    pub fn explain(&self, attributes: &Attributes<'_>) -> Explanation {
        Explanation::new(self.evaluate(attributes))
    }

    fn decide(
        &self,
        attributes: &Attributes<'_>,
        view: View,
        refuse: Lean,
        permit: Lean,
    ) -> Decision<'_> {
        let find = |wanted: fn(&Action) -> bool, lean: Lean| {
            self.policies
                .iter()
                .filter(|policy| !policy.dry_run() && wanted(policy.action()))
                .find_map(|policy| {
                    let rule = policy.rules().iter().position(|rule| {
                        !(view == View::L4
                            && matches!(policy.action(), Action::Allow)
                            && rule.needs_request())
                            && evaluate::holds(rule.when(), attributes, view, lean)
                    })?;
                    Some((policy.name(), rule))
                })
        };
        if let Some(hit) = find(|action| matches!(action, Action::Custom { .. }), refuse) {
            return Decision::by(Reason::CustomUnavailable, hit.0, hit.1);
        }
        if let Some(hit) = find(|action| matches!(action, Action::Deny), refuse) {
            return Decision::by(Reason::Denied, hit.0, hit.1);
        }
        let allow =
            |policy: &Arc<Policy>| !policy.dry_run() && matches!(policy.action(), Action::Allow);
        if !self.policies.iter().any(allow) {
            return Decision::without_rule(Reason::NoAllowPolicies);
        }
        match find(|action| matches!(action, Action::Allow), permit) {
            Some(hit) => Decision::by(Reason::Allowed, hit.0, hit.1),
            None => Decision::without_rule(Reason::NoneAllowed),
        }
    }
}

impl fmt::Debug for PolicySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.policies.iter().map(|policy| policy.name()))
            .finish()
    }
}

impl PartialEq for PolicySet {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.policies, &other.policies) || self.policies == other.policies
    }
}

impl Eq for PolicySet {}

impl Hash for PolicySet {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.policies.hash(state);
    }
}
