use std::sync::Arc;

use mesh_core::authz::PolicySet;
use mesh_core::authz::policy::{Action, Expr, Policy, PolicyName, Rule};
use mesh_core::snapshot::{PolicyView, Snapshot};
use mesh_core::xds::model::{
    AttachedPolicy, Batch, GatewayAddress, GatewayDestination, JwtRule, Membership, ObjectName,
    RequestAuthentication, ResourceName, Scope, Service, ServiceName, Target, TokenLocation,
    Update, Workload,
};
use proptest::prelude::*;

fn policy_name(name: &str) -> PolicyName {
    PolicyName::new("default", name)
}

fn policy(name: &str, scope: Scope) -> AttachedPolicy {
    let rules = vec![Rule::new(Expr::TRUE)];
    AttachedPolicy::new(
        Arc::new(Policy::new(policy_name(name), Action::Allow, rules)),
        scope,
    )
}

/// The same name with other rules.
fn changed(name: &str, scope: Scope) -> AttachedPolicy {
    AttachedPolicy::new(
        Arc::new(Policy::new(policy_name(name), Action::Deny, vec![])),
        scope,
    )
}

fn gone(name: &str) -> ResourceName {
    ResourceName::Policy(policy_name(name))
}

fn workload(uid: &str, listed: &[&str]) -> Workload {
    let listed = listed.iter().map(|name| policy_name(name)).collect();
    Workload::new(uid, "default", uid).with_authorization_policies(listed)
}

fn apply(snapshot: &Snapshot, updates: Vec<Update>) -> Snapshot {
    snapshot.apply(&Batch::new(updates, Vec::new())).snapshot
}

fn remove(snapshot: &Snapshot, removed: Vec<ResourceName>) -> Snapshot {
    snapshot.apply(&Batch::new(Vec::new(), removed)).snapshot
}

fn load(updates: Vec<Update>) -> Snapshot {
    apply(&Snapshot::new(), updates)
}

fn names(set: &PolicySet) -> Vec<&str> {
    set.policies()
        .iter()
        .map(|policy| policy.name().name())
        .collect()
}

fn ready(snapshot: &Snapshot, uid: &str) -> Arc<PolicySet> {
    match snapshot.policies(uid).unwrap() {
        PolicyView::Ready(set) => set,
        other => panic!("unexpected {other:?}"),
    }
}

fn missing(snapshot: &Snapshot, uid: &str) -> (Vec<ResourceName>, Option<Arc<PolicySet>>) {
    match snapshot.policies(uid).unwrap() {
        PolicyView::Pending {
            missing, previous, ..
        } => (missing, previous),
        other => panic!("unexpected {other:?}"),
    }
}

#[test]
fn the_meshs_the_namespaces_and_the_listed_ones() {
    let snapshot = load(vec![
        policy("mesh", Scope::Mesh).into(),
        policy("namespace", Scope::Namespace("default".into())).into(),
        policy("elsewhere", Scope::Namespace("other".into())).into(),
        policy("listed", Scope::Workload).into(),
        policy("unlisted", Scope::Workload).into(),
        workload("one", &["listed", "namespace"]).into(),
    ]);
    assert_eq!(
        names(&ready(&snapshot, "one")),
        ["listed", "mesh", "namespace"]
    );
    assert!(snapshot.policies("nobody").is_none());
}

#[test]
fn workloads_with_the_same_policies_share_one_set() {
    let snapshot = load(vec![
        policy("a", Scope::Workload).into(),
        policy("b", Scope::Workload).into(),
        workload("one", &["a", "b"]).into(),
        workload("two", &["b", "a"]).into(),
        workload("three", &["a"]).into(),
    ]);
    assert!(Arc::ptr_eq(
        &ready(&snapshot, "one"),
        &ready(&snapshot, "two")
    ));
    assert!(!Arc::ptr_eq(
        &ready(&snapshot, "one"),
        &ready(&snapshot, "three")
    ));
}

#[test]
fn a_set_stays_the_same_until_a_member_changes() {
    let first = load(vec![
        policy("a", Scope::Workload).into(),
        workload("one", &["a"]).into(),
    ]);
    let set = ready(&first, "one");
    let view = first.policies("one").unwrap();
    // Neither another policy, nor another workload, nor something else of its own changes it.
    let same = apply(
        &first,
        vec![
            policy("a", Scope::Workload).into(),
            policy("b", Scope::Workload).into(),
            workload("one", &["a"]).with_capacity(5).into(),
            workload("two", &[]).into(),
        ],
    );
    assert!(Arc::ptr_eq(&set, &ready(&same, "one")));
    assert!(view.judges_like(&same.policies("one").unwrap()));

    let other = apply(&same, vec![changed("a", Scope::Workload).into()]);
    assert!(!Arc::ptr_eq(&set, &ready(&other, "one")));
    assert!(!view.judges_like(&other.policies("one").unwrap()));
    assert_eq!(ready(&other, "one").policies()[0].action(), &Action::Deny);
    // Who still holds the old snapshot still gets the old answer.
    assert_eq!(ready(&first, "one").policies()[0].action(), &Action::Allow);
}

#[test]
fn branches_of_one_snapshot_do_not_mix_up_their_policies() {
    let base = load(vec![workload("one", &["a"]).into()]);
    let allow = apply(&base, vec![policy("a", Scope::Workload).into()]);
    let deny = apply(&base, vec![changed("a", Scope::Workload).into()]);
    for _ in 0..2 {
        assert_eq!(ready(&allow, "one").policies()[0].action(), &Action::Allow);
        assert_eq!(ready(&deny, "one").policies()[0].action(), &Action::Deny);
    }
}

#[test]
fn a_new_list_takes_effect_together_with_its_policies() {
    let first = load(vec![
        policy("a", Scope::Workload).into(),
        workload("one", &["a"]).into(),
    ]);
    let set = ready(&first, "one");

    let listed = apply(&first, vec![workload("one", &["a", "b"]).into()]);
    let (names_missing, previous) = missing(&listed, "one");
    assert_eq!(names_missing, [gone("b")]);
    assert!(Arc::ptr_eq(&previous.unwrap(), &set));
    // Nothing changes for connections that live.
    assert!(
        first
            .policies("one")
            .unwrap()
            .judges_like(&listed.policies("one").unwrap())
    );
    assert!(listed.policies("one").unwrap().ready().is_none());

    let here = apply(&listed, vec![policy("b", Scope::Workload).into()]);
    assert_eq!(names(&ready(&here, "one")), ["a", "b"]);
}

/// A typo in one list must not hold up a denial for the whole mesh.
#[test]
fn a_denial_binds_while_another_policy_is_missing() {
    let first = load(vec![
        policy("a", Scope::Workload).into(),
        workload("one", &["a"]).into(),
    ]);
    ready(&first, "one");
    let pending = apply(&first, vec![workload("one", &["a", "typo"]).into()]);
    let (_, before) = missing(&pending, "one");
    for scope in [Scope::Mesh, Scope::Namespace("default".into())] {
        let denied = apply(&pending, vec![changed("deny", scope).into()]);
        let (_, in_force) = missing(&denied, "one");
        assert_eq!(names(&in_force.unwrap()), ["a", "deny"]);
        let (was, is) = (pending.policies("one"), denied.policies("one"));
        assert!(!was.unwrap().judges_like(&is.unwrap()));
        // What only permits waits, and a denial that is lifted binds no more.
        let lifted = remove(&denied, vec![gone("deny")]);
        let lifted = apply(&lifted, vec![policy("allow", Scope::Mesh).into()]);
        let (_, in_force) = missing(&lifted, "one");
        assert_eq!(names(&in_force.unwrap()), ["a"]);
    }
    assert_eq!(names(&before.unwrap()), ["a"]);
}

#[test]
fn without_an_earlier_set_there_is_none_to_go_by() {
    let snapshot = load(vec![workload("one", &["a"]).into()]);
    let (_, previous) = missing(&snapshot, "one");
    assert!(previous.is_none());
    assert!(snapshot.policies("one").unwrap().in_force().is_none());
}

#[test]
fn what_was_removed_while_listed_counts_as_gone() {
    let first = load(vec![
        policy("a", Scope::Workload).into(),
        policy("b", Scope::Workload).into(),
        workload("one", &["a", "b"]).into(),
    ]);
    let removed = remove(&first, vec![gone("b")]);
    assert_eq!(names(&ready(&removed, "one")), ["a"]);
    // It comes back.
    let back = apply(&removed, vec![policy("b", Scope::Workload).into()]);
    assert_eq!(names(&ready(&back, "one")), ["a", "b"]);
}

#[test]
fn what_was_removed_before_it_was_listed_is_missing() {
    let first = load(vec![
        policy("a", Scope::Workload).into(),
        workload("one", &["a"]).into(),
    ]);
    let removed = remove(&first, vec![gone("a")]);
    let later = apply(&removed, vec![workload("two", &["a", "b"]).into()]);
    assert_eq!(names(&ready(&later, "one")), [""; 0]);
    let (names_missing, _) = missing(&later, "two");
    assert_eq!(names_missing, [gone("a"), gone("b")]);

    // In one batch, too, the removal comes first.
    let updates = vec![workload("three", &["b"]).into()];
    let batch = Batch::new(updates, vec![gone("b")]);
    let same = vec![
        policy("b", Scope::Workload).into(),
        workload("four", &["a", "b"]).into(),
    ];
    let same = apply(&first, same);
    let same = same.apply(&batch).snapshot;
    assert_eq!(missing(&same, "three").0, [gone("b")]);

    // Nobody lists it any more: its removal is forgotten.
    let unlisted = remove(&first, vec![gone("a")]);
    let unlisted = remove(&unlisted, vec![ResourceName::Workload("one".into())]);
    let again = apply(&unlisted, vec![workload("one", &["a"]).into()]);
    assert_eq!(missing(&again, "one").0, [gone("a")]);
}

#[test]
fn a_replica_s_history_is_not_a_workload_s_own() {
    let first = load(vec![
        policy("a", Scope::Workload).into(),
        policy("b", Scope::Workload).into(),
        workload("old", &["a", "b"]).into(),
        workload("moves", &["a"]).into(),
    ]);
    let removed = remove(&first, vec![gone("b")]);
    assert_eq!(names(&ready(&removed, "old")), ["a"]);
    let later = apply(
        &removed,
        vec![
            workload("new", &["a", "b"]).into(),
            workload("moves", &["a", "b"]).into(),
        ],
    );
    // Whoever begins to list it after its removal waits for one that is to come.
    for uid in ["new", "moves"] {
        assert_eq!(missing(&later, uid).0, [gone("b")], "{uid}");
    }
    assert_eq!(names(&ready(&later, "old")), ["a"]);
}

#[test]
fn a_removal_outlasts_other_changes_of_the_workload() {
    let first = load(vec![
        policy("a", Scope::Workload).into(),
        policy("b", Scope::Workload).into(),
        workload("one", &["a", "b"]).into(),
    ]);
    let removed = remove(&first, vec![gone("b")]);
    let changes = [
        workload("one", &["a", "b"]).with_canonical_revision("v2"),
        workload("one", &["a", "b"]).with_services(vec![Membership::new(ratings())]),
        workload("one", &["b", "a"]),
        workload("one", &["b", "a", "c"]),
    ];
    let mut snapshot = removed;
    for change in changes {
        let waits = change.authorization_policies().len() == 3;
        snapshot = apply(&snapshot, vec![change.into()]);
        if waits {
            assert_eq!(missing(&snapshot, "one").0, [gone("c")]);
        } else {
            assert_eq!(names(&ready(&snapshot, "one")), ["a"]);
        }
    }
    // Not listed for a while, it is listed anew.
    let dropped = apply(&snapshot, vec![workload("one", &["a"]).into()]);
    let again = apply(&dropped, vec![workload("one", &["a", "b"]).into()]);
    assert_eq!(missing(&again, "one").0, [gone("b")]);
}

fn ratings() -> ServiceName {
    ServiceName::new("default", "ratings.default.svc.cluster.local")
}

fn member(uid: &str, service: ServiceName) -> Workload {
    workload(uid, &[]).with_services(vec![Membership::new(service)])
}

fn on(target: Target) -> AttachedPolicy {
    policy("targeted", Scope::Targets(vec![target]))
}

#[test]
fn a_policy_on_a_service_binds_its_workloads_unless_it_has_a_waypoint() {
    let target = Target::Service(ObjectName::new("default", "ratings"));
    let gateway = GatewayDestination::Hostname(ServiceName::new("default", "waypoint"));
    let waypoint = GatewayAddress::new(gateway, 15008);
    let snapshot = load(vec![
        on(target).into(),
        member("one", ratings()).into(),
        member(
            "two",
            ServiceName::new("other", "ratings.other.svc.cluster.local"),
        )
        .into(),
    ]);
    // Even before the service is known.
    assert_eq!(names(&ready(&snapshot, "one")), ["targeted"]);
    assert_eq!(names(&ready(&snapshot, "two")), [""; 0]);

    let plain = apply(&snapshot, vec![Service::new(ratings()).into()]);
    assert_eq!(names(&ready(&plain, "one")), ["targeted"]);

    let batch = Batch::new(
        vec![Service::new(ratings()).with_waypoint(waypoint).into()],
        vec![],
    );
    let behind = plain.apply(&batch);
    assert!(behind.changes.may_change_policies());
    assert_eq!(names(&ready(&behind.snapshot, "one")), [""; 0]);

    let plain = apply(&behind.snapshot, vec![Service::new(ratings()).into()]);
    assert_eq!(names(&ready(&plain, "one")), ["targeted"]);
}

#[test]
fn a_policy_on_a_service_entry_binds_by_the_entrys_name() {
    let entry = ServiceName::new("default", "api.example.com");
    let target = Target::ServiceEntry(ObjectName::new("default", "external"));
    let snapshot = load(vec![
        on(target).into(),
        Service::new(entry.clone())
            .with_object_name("external")
            .into(),
        Service::new(ratings()).with_object_name("external").into(),
        member("one", entry).into(),
        member("two", ratings()).into(),
    ]);
    assert_eq!(names(&ready(&snapshot, "one")), ["targeted"]);
    let gateways = vec![Target::Gateway(ObjectName::new("default", "external"))];
    let gateway = policy("targeted", Scope::Targets(gateways));
    let snapshot = apply(&snapshot, vec![gateway.into()]);
    assert_eq!(names(&ready(&snapshot, "one")), [""; 0]);
}

#[test]
fn a_policy_that_changes_what_it_binds_leaves_where_it_was() {
    let mut snapshot = load(vec![workload("one", &[]).into()]);
    let scopes = [
        (Scope::Mesh, true),
        (Scope::Namespace("other".into()), false),
        (Scope::Namespace("default".into()), true),
        (Scope::Workload, false),
        (Scope::Mesh, true),
    ];
    for (scope, binds) in scopes {
        snapshot = apply(&snapshot, vec![policy("p", scope.clone()).into()]);
        assert_eq!(
            names(&ready(&snapshot, "one")).len(),
            usize::from(binds),
            "{scope:?}"
        );
        assert_eq!(snapshot.policy(&policy_name("p")).unwrap().1, &scope);
        assert_eq!(snapshot.all_policies().count(), 1);
    }
    let snapshot = remove(&snapshot, vec![gone("p")]);
    assert_eq!(snapshot.all_policies().count(), 0);
}

#[test]
fn tokens_are_looked_for_where_any_request_authentication_says() {
    let authentication = |name: &str, scope, parameter: &str| {
        let locations = vec![TokenLocation::QueryParam(parameter.into())];
        let rule = JwtRule::new("issuer").with_locations(locations);
        RequestAuthentication::new(
            ObjectName::new("default", name),
            scope,
            vec![rule.clone(), rule],
        )
    };
    let listed = vec![ObjectName::new("default", "c")];
    let first = load(vec![
        authentication("a", Scope::Mesh, "one").into(),
        authentication("b", Scope::Namespace("default".into()), "two").into(),
        authentication("c", Scope::Workload, "one").into(),
        authentication("d", Scope::Workload, "four").into(),
        workload("one", &[])
            .with_request_authentications(listed)
            .into(),
    ]);
    let parameters = |snapshot: &Snapshot| -> Vec<String> {
        let tokens = snapshot.request_authentication("one").unwrap();
        let locations = tokens.iter().flat_map(|rule| rule.locations());
        let parameters = locations.map(|location| match location {
            TokenLocation::QueryParam(name) => name.to_string(),
            other => panic!("unexpected {other:?}"),
        });
        parameters.collect()
    };
    assert_eq!(parameters(&first), ["one", "two"]);
    // They are no policies.
    assert_eq!(names(&ready(&first, "one")), [""; 0]);

    let without = remove(
        &first,
        vec![ResourceName::RequestAuthentication(ObjectName::new(
            "default", "b",
        ))],
    );
    assert_eq!(parameters(&without), ["one"]);
    assert!(Arc::ptr_eq(&ready(&first, "one"), &ready(&without, "one")));

    // A listed one that is not here is waited for like a policy.
    let missing_one = vec![ObjectName::new("default", "missing")];
    let pending = apply(
        &without,
        vec![
            workload("one", &[])
                .with_request_authentications(missing_one)
                .into(),
        ],
    );
    let (missing, _) = missing(&pending, "one");
    assert_eq!(
        missing,
        [ResourceName::RequestAuthentication(ObjectName::new(
            "default", "missing"
        ))]
    );
}

#[test]
fn answers_are_right_for_more_workloads_than_are_kept() {
    let count = 50;
    let mut updates: Vec<Update> = vec![policy("mesh", Scope::Mesh).into()];
    for number in 0..count {
        let name = format!("p{number}");
        updates.push(policy(&name, Scope::Workload).into());
        updates.push(workload(&format!("w{number}"), &[&name]).into());
    }
    let snapshot = apply(&Snapshot::new().with_max_policy_views(4), updates);
    for _ in 0..2 {
        for number in 0..count {
            let set = ready(&snapshot, &format!("w{number}"));
            assert_eq!(names(&set), ["mesh".to_owned(), format!("p{number}")]);
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Put(usize, u8, bool),
    Remove(usize),
    /// The workload's list, and its revision: what else of it may change.
    List(usize, Vec<usize>, bool),
    Leave(usize),
}

const POLICIES: [&str; 4] = ["p0", "p1", "p2", "p3"];
const WORKLOADS: [&str; 2] = ["w0", "w1"];

fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let step = prop_oneof![
        (0..4_usize, 0..4_u8, any::<bool>())
            .prop_map(|(name, scope, other)| Step::Put(name, scope, other)),
        (0..4_usize).prop_map(Step::Remove),
        (
            0..2_usize,
            prop::sample::subsequence(vec![0, 1, 2, 3], 0..=3),
            any::<bool>()
        )
            .prop_map(|(workload, listed, other)| Step::List(workload, listed, other)),
        (0..2_usize).prop_map(Step::Leave),
    ];
    prop::collection::vec(prop::collection::vec(step, 1..2), 1..30)
}

fn scope_of(number: u8) -> Scope {
    match number {
        0 => Scope::Mesh,
        1 => Scope::Namespace("default".into()),
        2 => Scope::Namespace("other".into()),
        _ => Scope::Workload,
    }
}

proptest! {
    /// What is in force is all that binds; whatever is listed is there, or was removed since.
    #[test]
    fn policies_like_a_naive_reading(steps in steps()) {
        let mut snapshot = Snapshot::new();
        let mut policies: [Option<(u8, bool)>; 4] = [None; 4];
        let mut lists: [Option<Vec<(usize, bool)>>; 2] = [None, None];
        let mut last: [Option<Arc<PolicySet>>; 2] = [None, None];
        for step in steps.iter().flatten() {
            let batch = match step {
                Step::Put(name, scope, other) => {
                    policies[*name] = Some((*scope, *other));
                    // It is here again: whoever listed it waits for its next removal.
                    for (listed, removed) in lists.iter_mut().flatten().flatten() {
                        *removed &= listed != name;
                    }
                    let make = if *other { changed } else { policy };
                    Batch::new(vec![make(POLICIES[*name], scope_of(*scope)).into()], vec![])
                }
                Step::Remove(name) => {
                    policies[*name] = None;
                    for (listed, removed) in lists.iter_mut().flatten().flatten() {
                        *removed |= listed == name;
                    }
                    Batch::new(vec![], vec![gone(POLICIES[*name])])
                }
                Step::List(number, listed, other) => {
                    let names: Vec<&str> = listed.iter().map(|name| POLICIES[*name]).collect();
                    let old = lists[*number].take().unwrap_or_default();
                    // What it goes on listing keeps its history; what it begins to list has none,
                    // whatever a replica's is.
                    let removed = |name| old.iter().any(|(own, removed)| *own == name && *removed);
                    lists[*number] =
                        Some(listed.iter().map(|name| (*name, removed(*name))).collect());
                    let revision = if *other { "v2" } else { "v1" };
                    let update = workload(WORKLOADS[*number], &names);
                    Batch::new(vec![update.with_canonical_revision(revision).into()], vec![])
                }
                Step::Leave(number) => {
                    lists[*number] = None;
                    Batch::new(vec![], vec![ResourceName::Workload(WORKLOADS[*number].into())])
                }
            };
            snapshot = snapshot.apply(&batch).snapshot;
            for number in 0..2 {
                let view = snapshot.policies(WORKLOADS[number]);
                let Some(listed) = &lists[number] else {
                    prop_assert!(view.is_none());
                    continue;
                };
                let expected: Vec<(usize, bool)> = (0..4)
                    .filter_map(|name| {
                        let (scope, other) = policies[name]?;
                        let listed = listed.iter().any(|(own, _)| *own == name);
                        (scope < 2 || listed).then_some((name, other))
                    })
                    .collect();
                let waiting: Vec<ResourceName> = listed
                    .iter()
                    .filter(|(name, removed)| policies[*name].is_none() && !removed)
                    .map(|(name, _)| gone(POLICIES[*name]))
                    .collect();
                match view.unwrap() {
                    PolicyView::Ready(set) => {
                        prop_assert!(waiting.is_empty(), "{:?}", waiting);
                        let got: Vec<(usize, bool)> = set.policies().iter().map(|policy| {
                            let name = POLICIES.iter().position(|name| *name == policy.name().name());
                            (name.unwrap(), *policy.action() == Action::Deny)
                        }).collect();
                        prop_assert_eq!(&got, &expected);
                        last[number] = Some(set);
                    }
                    PolicyView::Pending { missing, previous, .. } => {
                        prop_assert_eq!(missing, waiting);
                        let before = last[number].as_ref();
                        prop_assert_eq!(previous.is_some(), before.is_some());
                        if let (Some(previous), Some(before)) = (previous, before) {
                            let mut in_force: Vec<_> = before.policies().to_vec();
                            for (name, _) in expected.iter().filter(|(_, denies)| *denies) {
                                let name = policy_name(POLICIES[*name]);
                                let (here, _) = snapshot.policy(&name).unwrap();
                                if !in_force.iter().any(|old| Arc::ptr_eq(old, here)) {
                                    in_force.push(Arc::clone(here));
                                }
                            }
                            prop_assert_eq!(previous.policies(), in_force);
                        }
                    }
                    other => panic!("unexpected {other:?}"),
                }
            }
        }
    }
}
