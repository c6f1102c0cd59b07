//! PT-01: the compiled set decides as the interpreter does; L4 and three-valued decisions agree with
//! those on requests.

use mesh_authz::{Attribute, Attributes, Decision, PolicySet};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::generate::{config, connection, known_connection, policies, request};
use crate::interpreter::{Answer, Question, decide};

fn answer(set: &PolicySet, decision: &Decision<'_>) -> Answer {
    let by = decision.policy().map(|name| {
        let mut policies = set.policies().iter();
        let at = policies.position(|policy| policy.name() == name).unwrap();
        (at, decision.rule().unwrap())
    });
    (decision.reason(), by)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn compiled_as_interpreted(
        policies in policies(),
        connections in vec((connection(), request()), 12),
    ) {
        let set = PolicySet::new(policies.clone());
        for (connection, request) in &connections {
            let naive = |request, question| decide(&policies, connection, request, question, false);
            for (attributes, request) in [
                (connection.attributes(), None),
                (connection.with(request), Some(request)),
            ] {
                prop_assert_eq!(
                    answer(&set, &set.evaluate(&attributes)),
                    naive(request, Question::Full)
                );
                prop_assert_eq!(
                    answer(&set, &set.evaluate_l4(&attributes)),
                    naive(request, Question::L4)
                );
                prop_assert_eq!(
                    answer(&set, &set.could_allow(&attributes)),
                    naive(request, Question::CouldAllow)
                );
            }
        }
    }

    #[test]
    fn dry_run_as_interpreted(
        policies in policies(),
        connections in vec((connection(), request()), 8),
    ) {
        let set = PolicySet::new(policies.clone());
        for (connection, request) in &connections {
            let attributes = connection.with(request);
            for (dry_run, question) in [
                (set.evaluate_dry_run(&attributes), Question::Full),
                (set.evaluate_l4_dry_run(&attributes), Question::L4),
            ] {
                let naive = |dry| decide(&policies, connection, Some(request), question, dry);
                let would = naive(true).0.is_allowed();
                prop_assert_eq!(answer(&set, &dry_run.enforced()), naive(false));
                prop_assert_eq!(dry_run.decision().is_allowed(), would);
                prop_assert_eq!(dry_run.would_deny(), dry_run.enforced().is_allowed() && !would);

                let only: Vec<_> = policies.iter().filter(|one| one.dry_run()).cloned().collect();
                let (reason, _) = decide(&only, connection, Some(request), question, true);
                prop_assert_eq!(
                    dry_run.denied_by().is_some(),
                    matches!(reason, mesh_authz::Reason::Denied | mesh_authz::Reason::CustomUnavailable)
                );
                if dry_run.denied_by().is_none() {
                    prop_assert_eq!(
                        dry_run.allowed_by().is_some(),
                        reason == mesh_authz::Reason::Allowed
                    );
                    prop_assert_eq!(
                        dry_run.none_allowed(),
                        reason == mesh_authz::Reason::NoneAllowed
                    );
                }
            }
        }
    }

    /// What L4 admits, every request may; what is refused before requests, no request may.
    #[test]
    fn early_decisions_hold_for_every_request(
        policies in policies(),
        connection in known_connection(),
        requests in vec(request(), 40),
    ) {
        let set = PolicySet::new(policies);
        let before = connection.attributes();
        let l4 = set.evaluate_l4(&before);
        let could = set.could_allow(&before);
        prop_assert!(could.is_allowed() || !l4.is_allowed());
        for request in &requests {
            let attributes = connection.with(request);
            let full = set.evaluate(&attributes);
            prop_assert!(full.is_allowed() || !l4.is_allowed(), "L4 {l4:?} full {full:?}");
            prop_assert!(could.is_allowed() || !full.is_allowed(), "could {could:?} full {full:?}");
            // With everything known there is nothing to hope for.
            prop_assert_eq!(set.could_allow(&attributes), full);
        }
    }

    /// Learning an attribute never turns a decision for certain into its opposite.
    #[test]
    fn unknown_counts_against_access(
        policies in policies(),
        connection in known_connection(),
        request in request(),
    ) {
        let set = PolicySet::new(policies);
        let known = connection.with(&request);
        let full = set.evaluate(&known).is_allowed();
        let hide: [fn(Attributes<'_>) -> Attributes<'_>; 2] = [
            |attributes| attributes.with_identity(Attribute::Unknown),
            |attributes| attributes.with_sni(Attribute::Unknown),
        ];
        for hide in hide {
            let hidden = hide(known.clone());
            prop_assert!(full || !set.evaluate(&hidden).is_allowed());
            prop_assert!(!full || set.could_allow(&hidden).is_allowed());
        }
        prop_assert!(full || !set.evaluate(&connection.attributes()).is_allowed());
    }

    /// What is explained is what was decided.
    #[test]
    fn explained_as_decided(
        policies in policies(),
        connection in connection(),
        request in request(),
    ) {
        let set = PolicySet::new(policies.clone());
        for attributes in [connection.attributes(), connection.with(&request)] {
            for (decision, told) in [
                (set.evaluate(&attributes), set.explain(&attributes)),
                (set.evaluate_l4(&attributes), set.explain_l4(&attributes)),
                (set.could_allow(&attributes), set.explain_could_allow(&attributes)),
            ] {
                prop_assert_eq!(told.reason(), decision.reason());
                prop_assert_eq!(told.decided_by(), decision.policy().zip(decision.rule()));
                prop_assert!(told.to_string().contains(&decision.to_string()));
                for (told, policy) in told.policies().iter().zip(&policies) {
                    prop_assert_eq!(told.policy().name(), policy.name());
                    if told.policy().name() == decision.policy().unwrap_or(policy.name())
                        && decision.policy().is_some()
                    {
                        prop_assert_eq!(told.matched(), decision.rule());
                    }
                }
                if !decision.is_allowed() && decision.policy().is_none() {
                    let none_allowed = told.policies().iter().all(|one| {
                        one.policy().dry_run()
                            || *one.policy().action() != mesh_authz::policy::Action::Allow
                            || one.matched().is_none()
                    });
                    prop_assert!(none_allowed);
                }
            }
        }
    }
}
