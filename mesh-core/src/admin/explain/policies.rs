//! What each policy had to say.

use mesh_authz::Explanation;
use mesh_authz::explain::{Condition, PolicyExplanation};
use mesh_authz::policy::Action;
use serde_json::{Value, json};

/// How many policies, rules and conditions are told as JSON in all.
const NODES: usize = 5_000;
/// How deep conditions are told.
const DEPTH: usize = 64;

#[derive(Debug)]
pub(super) struct Told(Explanation);

impl Told {
    pub(super) fn new(explanation: Explanation) -> Self {
        Self(explanation)
    }

    pub(super) fn explanation(&self) -> &Explanation {
        &self.0
    }

    pub(super) fn decided_by(&self) -> Option<Value> {
        let (policy, rule) = self.0.decided_by()?;
        Some(json!({ "policy": policy.to_string(), "rule": rule }))
    }

    /// The policies, and whether some of it was left out.
    pub(super) fn to_json(&self) -> (Vec<Value>, bool) {
        let mut left = Left(NODES);
        let policies = self.0.policies().iter();
        let told = policies.map_while(|policy| tell(policy, &mut left));
        let told: Vec<_> = told.collect();
        (told, left.0 == 0)
    }
}

/// How much may still be told.
struct Left(usize);

impl Left {
    fn take(&mut self) -> Option<()> {
        self.0 = self.0.checked_sub(1)?;
        Some(())
    }
}

fn tell(told: &PolicyExplanation, left: &mut Left) -> Option<Value> {
    left.take()?;
    let policy = told.policy();
    let rules = told.rules().iter().enumerate().map_while(|(at, rule)| {
        left.take()?;
        let condition = rule.condition().and_then(|it| condition(it, 0, left));
        Some(json!({ "rule": at, "matches": rule.matched(), "condition": condition }))
    });
    let rules: Vec<_> = rules.collect();
    Some(json!({
        "policy": policy.name().to_string(),
        "action": match policy.action() {
            Action::Allow => "ALLOW",
            Action::Deny => "DENY",
            Action::Custom { .. } => "CUSTOM",
            _ => "AUDIT",
        },
        "dryRun": policy.dry_run(),
        "unreadable": policy.why_unreadable(),
        "matched": told.matched(),
        "rules": rules,
    }))
}

fn condition(told: &Condition, depth: usize, left: &mut Left) -> Option<Value> {
    left.take()?;
    let parts = told.parts().iter().filter(|_| depth < DEPTH);
    let parts: Vec<_> = parts
        .map_while(|part| condition(part, depth + 1, left))
        .collect();
    Some(json!({ "holds": told.outcome(), "text": told.text(), "parts": parts }))
}
