use std::sync::Arc;

use mesh_core::snapshot::{ServiceRecord, Snapshot, WorkloadRecord};
use mesh_core::xds::model::{
    Batch, Membership, Port, ResourceName, Service, ServiceName, TunnelProtocol, Update, Workload,
};
use proptest::prelude::*;

use crate::snapshot_model::{batch_of, batches, play};

/// All that can be seen of a snapshot without asking it about one thing.
type Seen<'a> = (Vec<&'a Arc<WorkloadRecord>>, Vec<SeenService<'a>>);

/// Its name, its record when it is known, and its endpoints.
type SeenService<'a> = (
    &'a ServiceName,
    Option<&'a Arc<ServiceRecord>>,
    Vec<&'a str>,
);

fn seen(snapshot: &Snapshot) -> Seen<'_> {
    let mut workloads: Vec<_> = snapshot.workloads().collect();
    workloads.sort_by_key(|workload| workload.uid().clone());
    let known = snapshot.services().map(|service| service.name());
    let mut names: Vec<_> = known.chain(snapshot.staged_services()).collect();
    names.sort();
    let services = names.into_iter().map(|name| {
        let endpoints = snapshot.endpoints(name).map(|workload| &**workload.uid());
        (name, snapshot.service(name), endpoints.collect())
    });
    (workloads, services.collect())
}

proptest! {
    #[test]
    fn changes_one_by_one_give_what_loading_all_at_once_gives(batches in batches()) {
        let (snapshot, naive) = play(&batches);
        let fresh = naive.load();
        prop_assert_eq!(seen(&snapshot), seen(&fresh));
        prop_assert_eq!(snapshot.workload_count(), naive.workloads.len());
        prop_assert_eq!(snapshot.services().count(), naive.services.len());
    }

    #[test]
    fn earlier_snapshots_stay_as_they_were(batches in batches()) {
        let half = batches.len() / 2;
        let (before, naive) = play(&batches[..half]);
        let mut after = before.clone();
        for changes in &batches[half..] {
            after = after.apply(&batch_of(changes)).snapshot;
        }
        let fresh = naive.load();
        prop_assert_eq!(seen(&before), seen(&fresh));
    }

    #[test]
    fn applying_the_same_again_changes_nothing(batches in batches()) {
        let (snapshot, _) = play(&batches);
        let last = batches.last().unwrap();
        let again = snapshot.apply(&batch_of(last));
        prop_assert!(again.changes.is_empty(), "{:?}", again.changes);
        prop_assert_eq!(seen(&snapshot), seen(&again.snapshot));
    }
}

const UID: &str = "Kubernetes//Pod/default/ratings-v1";

fn ratings() -> ServiceName {
    ServiceName::new("default", "ratings.default.svc.cluster.local")
}

fn pod() -> Workload {
    Workload::new(UID, "default", "ratings-v1")
        .with_addresses(vec!["10.0.0.1".parse().unwrap()])
        .with_protocol(TunnelProtocol::Hbone)
        .with_services(vec![Membership::new(ratings())])
}

fn uid() -> ResourceName {
    ResourceName::Workload(UID.into())
}

#[test]
fn a_wrong_resource_is_rejected_alone_and_its_last_good_version_stays() {
    let good = Batch::new(vec![pod().into()], Vec::new());
    let snapshot = Snapshot::new().apply(&good).snapshot;

    let wrong = pod().with_service_account("no/slash").with_capacity(7);
    let neighbour = Service::new(ratings());
    let batch = Batch::new(vec![wrong.into(), neighbour.into()], Vec::new());
    let applied = snapshot.apply(&batch);

    let reason = applied.verdicts[0]
        .result()
        .unwrap_err()
        .reason()
        .to_owned();
    assert!(reason.contains("service account"), "{reason}");
    assert_eq!(applied.verdicts[0].resource(), &uid());
    assert_eq!(applied.verdicts[1].result(), Ok(()));
    assert_eq!(applied.snapshot.workload(UID).unwrap().capacity(), 1);
    assert!(applied.snapshot.service(&ratings()).is_some());
    assert!(applied.changes.workloads().is_empty());
}

#[test]
fn each_wrong_field_is_named() {
    let cases: Vec<(Update, &str)> = vec![
        (Workload::new("", "default", "a").into(), "uid"),
        (pod().with_hbone_port(0).into(), "hbone_port"),
        (
            pod()
                .with_addresses(vec!["0.0.0.0".parse().unwrap()])
                .into(),
            "address 0.0.0.0",
        ),
        (
            pod()
                .with_addresses(vec!["ff02::1".parse().unwrap()])
                .into(),
            "address ff02::1",
        ),
        (
            pod()
                .with_services(vec![Membership::new(ratings()), Membership::new(ratings())])
                .into(),
            "services: default/ratings.default.svc.cluster.local",
        ),
        (
            pod()
                .with_services(vec![
                    Membership::new(ratings()).with_ports(vec![Port::new(0)]),
                ])
                .into(),
            "services",
        ),
        (
            Service::new(ServiceName::new("default", "")).into(),
            "hostname",
        ),
        (
            Service::new(ratings())
                .with_ports(vec![Port::new(0)])
                .into(),
            "ports",
        ),
        (
            Service::new(ratings())
                .with_ports(vec![Port::new(80).with_target_port(0)])
                .into(),
            "ports",
        ),
    ];
    for (update, field) in cases {
        let applied = Snapshot::new().apply(&Batch::new(vec![update], Vec::new()));
        let reason = applied.verdicts[0].result().unwrap_err().reason();
        assert!(reason.starts_with(field), "{reason} should name {field}");
        assert!(reason.contains("expected"), "{reason}");
        assert!(applied.changes.is_empty());
    }
}

#[test]
fn a_workload_that_takes_no_tunnels_needs_no_identity() {
    let pod = pod()
        .with_service_account("")
        .with_protocol(TunnelProtocol::None);
    let applied = Snapshot::new().apply(&Batch::new(vec![pod.into()], Vec::new()));
    assert_eq!(applied.verdicts[0].result(), Ok(()));
    assert_eq!(applied.snapshot.workload(UID).unwrap().identity(), None);
}

#[test]
fn removals_come_before_updates_and_a_name_in_both_is_replaced() {
    let snapshot = Snapshot::new()
        .apply(&Batch::new(vec![pod().into()], Vec::new()))
        .snapshot;
    let moved = Workload::new(
        "Kubernetes//Pod/default/ratings-v2",
        "default",
        "ratings-v2",
    )
    .with_addresses(vec!["10.0.0.1".parse().unwrap()]);
    let batch = Batch::new(
        vec![moved.into(), pod().with_capacity(3).into()],
        vec![uid()],
    );
    let applied = snapshot.apply(&batch);
    assert_eq!(applied.snapshot.workload(UID).unwrap().capacity(), 3);

    // A replacement that is wrong does not remove either.
    let wrong = Batch::new(vec![pod().with_hbone_port(0).into()], vec![uid()]);
    let applied = applied.snapshot.apply(&wrong);
    assert!(applied.verdicts[0].result().is_err());
    assert_eq!(applied.snapshot.workload(UID).unwrap().capacity(), 3);

    let applied = applied.snapshot.apply(&Batch::new(Vec::new(), vec![uid()]));
    assert!(applied.snapshot.workload(UID).is_none());
    let left = applied
        .snapshot
        .workload_at("", "10.0.0.1".parse().unwrap())
        .unwrap();
    assert_eq!(left.name(), "ratings-v2");
}

#[test]
fn endpoints_that_come_before_their_service_wait_for_it() {
    let snapshot = Snapshot::new()
        .apply(&Batch::new(vec![pod().into()], Vec::new()))
        .snapshot;
    assert!(snapshot.service(&ratings()).is_none());
    assert_eq!(snapshot.staged_services().collect::<Vec<_>>(), [&ratings()]);
    assert_eq!(snapshot.endpoint_count(&ratings()), 1);

    let service = Batch::new(vec![Service::new(ratings()).into()], Vec::new());
    let snapshot = snapshot.apply(&service).snapshot;
    assert_eq!(snapshot.staged_services().count(), 0);
    assert_eq!(snapshot.endpoint_count(&ratings()), 1);

    let gone = Batch::new(Vec::new(), vec![ResourceName::Service(ratings())]);
    let snapshot = snapshot.apply(&gone).snapshot;
    assert_eq!(snapshot.staged_services().count(), 1);
    assert_eq!(snapshot.endpoint_count(&ratings()), 1);
}

#[test]
fn changes_name_what_is_different_and_nothing_else() {
    let both = Batch::new(
        vec![pod().into(), Service::new(ratings()).into()],
        Vec::new(),
    );
    let first = Snapshot::new().apply(&both);
    assert_eq!(first.changes.workloads(), [Arc::<str>::from(UID)]);
    assert_eq!(first.changes.services(), [ratings()]);

    let again = first.snapshot.apply(&Batch::new(
        vec![pod().into(), Service::new(ratings()).into()],
        Vec::new(),
    ));
    assert!(again.changes.is_empty());

    let one = Batch::new(
        vec![
            pod().with_capacity(9).into(),
            Service::new(ratings()).into(),
        ],
        Vec::new(),
    );
    let one = first.snapshot.apply(&one);
    assert_eq!(one.changes.workloads(), [Arc::<str>::from(UID)]);
    assert!(one.changes.services().is_empty());

    let absent = Batch::new(Vec::new(), vec![ResourceName::Workload("nobody".into())]);
    assert!(first.snapshot.apply(&absent).changes.is_empty());
}
