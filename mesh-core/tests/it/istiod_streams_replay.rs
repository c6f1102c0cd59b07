//! A snapshot that follows a recorded stream is the one that the same manifests make.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_core::snapshot::{Snapshot, WorkloadRecord};
use mesh_core::xds::model::{Batch, InboundListener, Update, Workload};

use crate::istiod_stream::{Manifests, Message, messages};
use crate::require;

/// What is not the same on purpose: a part of the resource's name, and why. Each has to be met.
type Exceptions = [(&'static str, &'static str)];

const BOOKINFO: &Exceptions = &[
    (
        "Pod/default/netshoot",
        "a Pod without istio-cni's annotation is enrolled by its namespace's label",
    ),
    (
        "/ServiceEntry/",
        "istiod lets every selector choose an endpoint that has no labels",
    ),
];

const NETWORKS: &Exceptions = &[
    (
        "/ServiceEntry/",
        "istiod lets every selector choose an endpoint that has no labels",
    ),
    (
        "Pod/shop/store-",
        "a container's port without protocol is TCP; nobody had filled it in for istiod",
    ),
    (
        "bank/pinned.example.org",
        "exportTo [.] of a ServiceEntry is visibility Namespace",
    ),
    (
        "withheld",
        "istiod withholds AUDIT, CUSTOM and dry-run policies",
    ),
    (
        "waypoint",
        "a waypoint that a label names and no Gateway makes stays in the way; istiod lets callers around it",
    ),
];

#[derive(Clone, Copy, PartialEq)]
enum Coverage {
    All,
    /// With multi-network the workloads of other networks are withheld, but for their gateways.
    OwnNetwork,
    /// Who asks by name gets what was asked for, so not every exception is met.
    OnDemand,
}

#[test]
fn of_bookinfo() {
    replay("bookinfo", "ztunnel", BOOKINFO, Coverage::All);
    replay("bookinfo", "sdk", BOOKINFO, Coverage::All);
    replay("bookinfo", "ondemand", BOOKINFO, Coverage::OnDemand);
}

#[test]
fn of_every_field_of_the_workload_api() {
    replay("networks", "ztunnel", NETWORKS, Coverage::All);
    replay("networks", "ondemand", NETWORKS, Coverage::OnDemand);
}

#[test]
fn of_several_networks() {
    let recording = "networks-multicluster";
    replay(recording, "ztunnel", NETWORKS, Coverage::OwnNetwork);
    replay(recording, "ondemand", NETWORKS, Coverage::OnDemand);
}

fn replay(recording: &str, client: &str, exceptions: &Exceptions, coverage: Coverage) {
    let Some(data) = require::data(recording) else {
        return;
    };
    let root = data.join("istiod").join(recording);
    let mut messages = messages(&root.join(client)).into_iter().peekable();
    let mut streamed = Snapshot::new();
    let mut loaded = Snapshot::new();
    let mut met = BTreeSet::new();
    for manifests in Manifests::new(&root.join("manifests")) {
        loaded = apply(&loaded, &manifests);
        while let Some(message) = messages.next_if(|message| message.step == manifests.step) {
            streamed = apply(&streamed, &message);
        }
        compare(
            &manifests.step,
            &streamed,
            &loaded,
            exceptions,
            coverage,
            &mut met,
        );
    }
    assert!(messages.next().is_none());
    let unmet: Vec<_> = exceptions
        .iter()
        .filter(|(name, _)| !met.contains(name))
        .collect();
    assert!(
        coverage == Coverage::OnDemand || unmet.is_empty(),
        "{recording} {client}: exceptions that nothing needs: {unmet:?}"
    );
}

/// All of a batch must be accepted. What the two sources say in another order, or only one of them can
/// say, is left out: the order of a list of policies and request authentications.
fn apply(snapshot: &Snapshot, message: &Message) -> Snapshot {
    let updates = message.updates.iter().map(|update| match update {
        Update::Workload(workload) => {
            let mut policies = workload.authorization_policies().to_vec();
            policies.sort();
            Workload::clone(workload)
                .with_authorization_policies(policies)
                .with_request_authentications(Vec::new())
                .into()
        }
        update => update.clone(),
    });
    let applied = snapshot.apply(&Batch::new(updates.collect(), message.removed.clone()));
    for verdict in applied.verdicts {
        verdict
            .result()
            .unwrap_or_else(|error| panic!("{}: {error}", verdict.resource()));
    }
    applied.snapshot
}

fn compare(
    step: &str,
    streamed: &Snapshot,
    loaded: &Snapshot,
    exceptions: &Exceptions,
    coverage: Coverage,
    met: &mut BTreeSet<&'static str>,
) {
    let mut check = |name: &str, same: bool, kinds: &[&str]| {
        let by_name = exceptions.iter().find(|(part, _)| name.contains(part));
        let by_kind = exceptions.iter().find(|(part, _)| kinds.contains(part));
        match by_name.or(by_kind) {
            Some((part, _)) if !same => _ = met.insert(*part),
            _ => assert!(same, "{step}: {name} differs"),
        }
    };
    for theirs in streamed.workloads() {
        let Some(ours) = loaded.workload(theirs.uid()) else {
            let gateway = coverage != Coverage::All && theirs.uid().starts_with("NetworkGateway/");
            assert!(gateway, "{step}: {} is in no manifest", theirs.uid());
            continue;
        };
        let mut kinds = Vec::new();
        if theirs.waypoint().is_none() && ours.waypoint().is_some() {
            kinds.push("waypoint");
        }
        if theirs.authorization_policies().len() < ours.authorization_policies().len() {
            kinds.push("withheld");
        }
        check(theirs.uid(), same(theirs, ours), &kinds);
    }
    for theirs in streamed.services() {
        let name = theirs.name();
        let ours = loaded
            .service(name)
            .unwrap_or_else(|| panic!("{step}: {name} is in no manifest"));
        let waypoint = theirs.waypoint().is_none() && ours.waypoint().is_some();
        let kinds: &[&str] = if waypoint { &["waypoint"] } else { &[] };
        check(&name.to_string(), theirs == ours, kinds);
        if coverage == Coverage::All {
            let uids = |snapshot: &Snapshot| -> BTreeSet<_> {
                snapshot
                    .endpoints(name)
                    .map(|one| Arc::clone(one.uid()))
                    .collect()
            };
            assert_eq!(uids(streamed), uids(loaded), "{step}: endpoints of {name}");
        }
    }
    if coverage == Coverage::All {
        assert_eq!(streamed.workload_count(), loaded.workload_count(), "{step}");
        assert_eq!(
            streamed.services().count(),
            loaded.services().count(),
            "{step}"
        );
    }
    // The decisions of each are compared where they are made: in mesh-xds.
    let policies = |snapshot: &Snapshot| -> BTreeMap<_, _> {
        let policies = snapshot.all_policies();
        policies
            .map(|(policy, scope)| (policy.name().clone(), scope.clone()))
            .collect()
    };
    let (theirs, ours) = (policies(streamed), policies(loaded));
    for (name, scope) in &theirs {
        assert_eq!(ours.get(name), Some(scope), "{step}: {name}");
    }
}

/// In all but the version since which each has listed its policies.
fn same(a: &WorkloadRecord, b: &WorkloadRecord) -> bool {
    let place = |one: &WorkloadRecord| {
        let parts = [
            one.network(),
            one.node(),
            one.cluster_id(),
            one.region(),
            one.zone(),
            one.subzone(),
        ];
        parts.map(Arc::clone)
    };
    let names = |one: &WorkloadRecord| {
        let parts = [
            one.uid(),
            one.namespace(),
            one.trust_domain(),
            one.service_account(),
        ];
        let labels = [
            one.canonical_name(),
            one.canonical_revision(),
            one.workload_name(),
        ];
        (
            parts.map(Arc::clone),
            labels.map(Arc::clone),
            one.name().to_owned(),
            one.hostname().cloned(),
            one.identity().cloned(),
        )
    };
    let kind = |one: &WorkloadRecord| {
        let tunnels = (
            one.protocol(),
            one.hbone_port(),
            one.native_tunnel(),
            one.application_tunnel(),
        );
        (
            tunnels,
            one.network_mode(),
            one.workload_type(),
            one.health(),
            one.capacity(),
        )
    };
    place(a) == place(b)
        && names(a) == names(b)
        && kind(a) == kind(b)
        && a.addresses() == b.addresses()
        && a.authorization_policies() == b.authorization_policies()
        && a.waypoint() == b.waypoint()
        && a.network_gateway() == b.network_gateway()
        && a.memberships() == b.memberships()
}

/// Of a policy on requests the ambient stream has what is left without them, the listener all.
#[test]
fn the_listener_of_details_has_the_policies_of_its_port() {
    let Some(data) = require::data("the_listener_of_details_has_the_policies_of_its_port") else {
        return;
    };
    let mut snapshot = Snapshot::new();
    for message in messages(&data.join("istiod/bookinfo/sdk")) {
        snapshot = apply(&snapshot, &message);
    }
    let details = snapshot.workload_named("default", "details-v1-1").unwrap();
    assert_eq!(snapshot.inbound_ports(details).collect::<Vec<_>>(), [9080]);
    let names = |port| {
        let view = snapshot.policies_on(details.uid(), port).unwrap();
        let set = Arc::clone(view.ready().unwrap());
        let names = set
            .policies()
            .iter()
            .map(|policy| policy.name().to_string());
        names.collect::<BTreeSet<_>>()
    };
    let whole = [
        "default-details-deny-l7",
        "default-details-l7-selector",
        "istio-system-mesh-wide",
    ];
    assert_eq!(names(9080), whole.map(|name| format!("/{name}")).into());
    let reduced = [
        "default/details-deny-l7",
        "default/details-l7-selector",
        "istio-system/mesh-wide",
    ];
    assert_eq!(names(9081), reduced.map(str::to_owned).into());
    let db = snapshot.workload_named("default", "db-0").unwrap();
    let strict = db.authorization_policies().iter();
    assert_eq!(
        strict.filter(|name| InboundListener::keeps(name)).count(),
        1
    );
}
