//! PT-07: more denials never allow more, fewer permissions neither, but for the last one.

use std::sync::Arc;

use mesh_authz::PolicySet;
use mesh_authz::policy::{Action, Policy, PolicyName, Rule};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::generate::{config, connection, expr, policies, request};

proptest! {
    #![proptest_config(config())]

    #[test]
    fn changes_have_one_direction(
        policies in policies(),
        rules in vec(expr(), 0..3),
        requests in vec((connection(), request()), 8),
        place in any::<prop::sample::Index>(),
    ) {
        let before = PolicySet::new(policies.clone());
        let with = |action: Action, dry_run| {
            let rules = rules.iter().cloned().map(Rule::new).collect();
            let policy = Policy::new(PolicyName::new("ns", "new"), action, rules).with_dry_run(dry_run);
            let mut policies = policies.clone();
            policies.insert(place.index(policies.len() + 1), Arc::new(policy));
            PolicySet::new(policies)
        };
        let denying = with(Action::Deny, false);
        let custom = with(Action::Custom { provider: "p".into() }, false);
        let allowing = with(Action::Allow, false);
        let silent = [
            with(Action::Audit, false),
            with(Action::Deny, true),
            with(Action::Allow, true),
            with(Action::Custom { provider: "p".into() }, true),
        ];
        let had_allow = policies
            .iter()
            .any(|policy| *policy.action() == Action::Allow && !policy.dry_run());
        for (connection, request) in &requests {
            for attributes in [connection.attributes(), connection.with(request)] {
                for evaluate in [PolicySet::evaluate, PolicySet::evaluate_l4, PolicySet::could_allow] {
                    let was = evaluate(&before, &attributes).is_allowed();
                    prop_assert!(was || !evaluate(&denying, &attributes).is_allowed());
                    prop_assert!(was || !evaluate(&custom, &attributes).is_allowed());
                    // Removing the ALLOW again: it may have opened, and was not the last one.
                    if had_allow {
                        prop_assert!(!was || evaluate(&allowing, &attributes).is_allowed());
                    } else {
                        prop_assert!(was || !evaluate(&allowing, &attributes).is_allowed());
                    }
                    for silent in &silent {
                        let (a, b) = (evaluate(&before, &attributes), evaluate(silent, &attributes));
                        prop_assert_eq!(a, b);
                    }
                }
            }
        }
    }
}

/// The last ALLOW gone, everything is allowed: that is Istio's rule, and the one exception.
#[test]
fn the_last_allow_is_the_exception() {
    let nothing = Policy::new(PolicyName::new("ns", "nothing"), Action::Allow, Vec::new());
    let attributes =
        mesh_authz::Attributes::new("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
    assert!(
        !PolicySet::new([Arc::new(nothing)])
            .evaluate(&attributes)
            .is_allowed()
    );
    assert!(PolicySet::default().evaluate(&attributes).is_allowed());
}
