use std::net::IpAddr;

use mesh_authz::policy::PolicyName;
use mesh_xds::model::{Batch, Locality, Membership, ResourceName, ServiceName, Update, Workload};

use super::Snapshot;

fn pod(number: usize) -> Workload {
    let service = ServiceName::new("default", "ratings.default.svc.cluster.local");
    Workload::new(
        format!("Kubernetes//Pod/default/ratings-{number}"),
        "default",
        format!("ratings-{number}"),
    )
    .with_addresses(vec![IpAddr::from([10, 0, 0, number as u8 / 3])])
    .with_node(format!("node-{}", number % 2))
    .with_locality(Locality::new("region", "zone", ""))
    .with_authorization_policies(vec![PolicyName::new("default", "listed")])
    .with_services(vec![Membership::new(service)])
}

fn put(snapshot: &Snapshot, workloads: impl IntoIterator<Item = Workload>) -> Snapshot {
    let updates = workloads.into_iter().map(Update::from).collect();
    snapshot.apply(&Batch::new(updates, Vec::new())).snapshot
}

#[test]
fn replicas_share_what_they_have_in_common() {
    let snapshot = put(&Snapshot::new(), (0..10).map(pod));
    assert_eq!(snapshot.tables.profiles.len(), 1);
    assert_eq!(snapshot.tables.places.len(), 2);

    let changed = (0..10).map(|number| pod(number).with_service_account("other"));
    let snapshot = put(&snapshot, changed);
    assert_eq!(snapshot.tables.profiles.len(), 1);
}

#[test]
fn nothing_is_left_of_workloads_that_are_gone() {
    let snapshot = put(&Snapshot::new(), (0..10).map(pod));
    let uids = snapshot.workloads().map(|workload| workload.uid().clone());
    let removed = uids.map(ResourceName::Workload).collect();
    let snapshot = snapshot.apply(&Batch::new(Vec::new(), removed)).snapshot;

    let tables = &snapshot.tables;
    assert_eq!(tables.profiles.len(), 0);
    assert_eq!(tables.places.len(), 0);
    assert!(tables.workloads.is_empty());
    assert!(tables.services.is_empty());
    assert!(tables.workload_names.is_empty());
    assert!(tables.workload_addresses.is_empty());
    assert_eq!(tables.attachments.listed(), 0);
}
