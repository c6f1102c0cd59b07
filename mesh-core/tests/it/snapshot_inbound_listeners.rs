//! The policies of a port that has a listener of the control plane's.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_core::authz::PolicySet;
use mesh_core::authz::policy::{Action, Expr, Policy, PolicyName, Rule};
use mesh_core::snapshot::{PolicyView, Snapshot};
use mesh_core::xds::model::{
    AttachedPolicy, Batch, InboundListener, ResourceName, Scope, Update, Workload,
};

const STRICT: &str = "istio_converted_static_strict";
const PORT_LEVEL: &str = "converted_peer_authentication_default";

fn policy(name: &str) -> Arc<Policy> {
    let rules = vec![Rule::new(Expr::TRUE)];
    Arc::new(Policy::new(
        PolicyName::new("default", name),
        Action::Allow,
        rules,
    ))
}

fn attached(name: &str, scope: Scope) -> Update {
    AttachedPolicy::new(policy(name), scope).into()
}

fn workload(listed: &[&str]) -> Update {
    let listed = listed.iter().map(|name| PolicyName::new("default", *name));
    Workload::new("uid", "default", "details")
        .with_addresses(vec![
            "10.0.0.1".parse().unwrap(),
            "fd00::1".parse().unwrap(),
        ])
        .with_authorization_policies(listed.collect())
        .into()
}

fn listener(address: &str, policies: &[&str]) -> Update {
    let policies = policies.iter().map(|name| policy(name)).collect();
    InboundListener::new(address.parse().unwrap(), policies).into()
}

fn removed(address: &str) -> ResourceName {
    ResourceName::InboundListener(address.parse().unwrap())
}

fn apply(snapshot: &Snapshot, updates: Vec<Update>, removed: Vec<ResourceName>) -> Snapshot {
    let applied = snapshot.apply(&Batch::new(updates, removed));
    assert!(applied.verdicts.iter().all(|one| one.result().is_ok()));
    applied.snapshot
}

fn names(set: &PolicySet) -> Vec<&str> {
    let policies = set.policies().iter();
    policies.map(|policy| policy.name().name()).collect()
}

fn on(snapshot: &Snapshot, port: u16) -> Arc<PolicySet> {
    let view = snapshot.policies_on("uid", port).unwrap();
    Arc::clone(view.ready().unwrap())
}

fn world() -> Snapshot {
    let updates = vec![
        attached("mesh", Scope::Mesh),
        attached("namespace", Scope::Namespace("default".into())),
        attached("listed", Scope::Workload),
        attached(STRICT, Scope::Workload),
        attached(PORT_LEVEL, Scope::Workload),
        workload(&["listed", STRICT, PORT_LEVEL]),
    ];
    apply(&Snapshot::new(), updates, Vec::new())
}

#[test]
fn a_listeners_policies_replace_all_but_those_of_peer_authentication() {
    let before = world();
    let all = [
        "converted_peer_authentication_default",
        STRICT,
        "listed",
        "mesh",
        "namespace",
    ];
    let sorted = |set: &PolicySet| {
        let mut names: Vec<_> = names(set).into_iter().map(str::to_owned).collect();
        names.sort();
        names
    };
    let mut expected: Vec<_> = all.to_vec();
    expected.sort_unstable();
    assert_eq!(sorted(&on(&before, 9080)), expected);

    let update = listener("10.0.0.1:9080", &["whole"]);
    let after = apply(&before, vec![update], Vec::new());
    assert_eq!(names(&on(&after, 9080)), [PORT_LEVEL, STRICT, "whole"]);
    assert_eq!(sorted(&on(&after, 9081)), expected, "another port");
    let general = after.policies("uid").unwrap();
    assert_eq!(sorted(general.ready().unwrap()), expected);
    assert_eq!(sorted(&on(&before, 9080)), expected, "the snapshot before");

    let gone = apply(&after, Vec::new(), vec![removed("10.0.0.1:9080")]);
    assert_eq!(sorted(&on(&gone, 9080)), expected);
}

#[test]
fn a_listener_without_policies_permits_what_peer_authentication_does() {
    let update = listener("[fd00::1]:9080", &[]);
    let snapshot = apply(&world(), vec![update], Vec::new());
    assert_eq!(names(&on(&snapshot, 9080)), [PORT_LEVEL, STRICT]);
    let workload = snapshot.workload("uid").unwrap();
    assert_eq!(snapshot.inbound_ports(workload).collect::<Vec<_>>(), [9080]);
}

#[test]
fn listeners_of_other_addresses_say_nothing() {
    let update = listener("10.0.0.2:9080", &["whole"]);
    let snapshot = apply(&world(), vec![update], Vec::new());
    assert!(names(&on(&snapshot, 9080)).contains(&"mesh"));
    let workload = snapshot.workload("uid").unwrap();
    assert!(snapshot.inbound_listener(workload, 9080).is_none());
    assert_eq!(snapshot.inbound_ports(workload).count(), 0);
}

#[test]
fn a_closed_listener_denies_and_goes_before_an_open_one() {
    let closed = InboundListener::closed_because(
        "[fd00::1]:9080".parse().unwrap(),
        "http_filters[0]: envoy.filters.http.ext_authz is not supported",
    );
    let updates = vec![listener("10.0.0.1:9080", &["whole"]), closed.into()];
    let snapshot = apply(&world(), updates, Vec::new());
    let set = on(&snapshot, 9080);
    let attributes = mesh_core::authz::Attributes::new(
        "10.0.0.9:1".parse().unwrap(),
        "10.0.0.1:9080".parse().unwrap(),
    );
    for decision in [set.evaluate_l4(&attributes), set.could_allow(&attributes)] {
        assert!(!decision.is_allowed());
        let name = decision.policy().unwrap().name();
        assert!(name.contains("ext_authz is not supported"), "{name}");
    }
}

/// What a listener brings whole need not arrive reduced as well; the others are waited for.
#[test]
fn only_policies_of_peer_authentication_are_waited_for() {
    let updates = vec![
        workload(&["listed", PORT_LEVEL]),
        listener("10.0.0.1:9080", &["whole"]),
    ];
    let snapshot = apply(&Snapshot::new(), updates, Vec::new());
    let missing = |port| match snapshot.policies_on("uid", port).unwrap() {
        PolicyView::Pending { missing, .. } => missing.len(),
        _ => 0,
    };
    assert_eq!((missing(9080), missing(9081)), (1, 2));
    let here = vec![attached(PORT_LEVEL, Scope::Workload)];
    let snapshot = apply(&snapshot, here, Vec::new());
    assert_eq!(names(&on(&snapshot, 9080)), [PORT_LEVEL, "whole"]);
}

#[test]
fn the_same_listener_again_changes_nothing() {
    let update = listener("10.0.0.1:9080", &["whole"]);
    let first = world().apply(&Batch::new(vec![update], Vec::new()));
    let name = removed("10.0.0.1:9080");
    assert_eq!(first.changes.policies(), [name]);
    assert!(first.changes.may_change_policies());
    let again = listener("10.0.0.1:9080", &["whole"]);
    let again = first.snapshot.apply(&Batch::new(vec![again], Vec::new()));
    assert!(again.changes.is_empty() && !again.changes.may_change_policies());
    assert!(Arc::ptr_eq(
        &on(&first.snapshot, 9080),
        &on(&again.snapshot, 9080)
    ));
    let gone = vec![removed("10.0.0.7:1")];
    let nothing = first.snapshot.apply(&Batch::new(Vec::new(), gone));
    assert!(nothing.changes.is_empty());
}

#[test]
fn an_address_that_is_no_workloads_is_refused() {
    for address in ["0.0.0.0:9080", "[::]:9080", "224.0.0.1:9080", "10.0.0.1:0"] {
        let batch = Batch::new(vec![listener(address, &[])], Vec::new());
        let applied = Snapshot::new().apply(&batch);
        let reason = applied.verdicts[0].result().unwrap_err().to_string();
        assert!(
            reason.contains("expected a port of one workload"),
            "{reason}"
        );
    }
    let mapped: SocketAddr = "[::ffff:10.0.0.1]:9080".parse().unwrap();
    let mapped = InboundListener::new(mapped, Vec::new());
    assert_eq!(mapped.address().to_string(), "10.0.0.1:9080");
}
