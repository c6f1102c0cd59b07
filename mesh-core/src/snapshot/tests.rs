use std::collections::HashSet;
use std::hash::{BuildHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Weak};

use foldhash::fast::FixedState;
use mesh_authz::policy::PolicyName;
use mesh_xds::model::{
    Batch, Locality, Membership, NetworkMode, ResourceName, Service, ServiceName, Update, Workload,
};

use super::hashing::Seeded;
use super::index::Interner;
use super::{Changes, Remains, Snapshot};

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
fn deployments_share_the_texts_that_they_have_in_common() {
    let service = ServiceName::new("default", "ratings.default.svc.cluster.local");
    let known = Batch::new(vec![Service::new(service.clone()).into()], Vec::new());
    let known = Snapshot::new().apply(&known).snapshot;
    let revised = |number: usize| {
        let account = format!("account-{number}");
        pod(number)
            .with_service_account(account)
            .with_canonical_revision(format!("v{}", 1))
    };
    let snapshot = put(&known, (0..2).map(revised));
    assert_eq!(snapshot.tables.profiles.len(), 2);

    let (name, _) = snapshot.tables.services.get_key_value(&service).unwrap();
    let first = snapshot.workloads().next().unwrap();
    for workload in snapshot.workloads() {
        let (own, profile) = (workload.memberships()[0].service(), &workload.profile);
        assert!(Arc::ptr_eq(own.shared_hostname(), name.shared_hostname()));
        assert!(Arc::ptr_eq(&profile.namespace, name.shared_namespace()));
        let shared = &first.profile;
        assert!(Arc::ptr_eq(&profile.trust_domain, &shared.trust_domain));
        assert!(Arc::ptr_eq(
            &profile.canonical_revision,
            &shared.canonical_revision
        ));
    }
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

#[cfg(feature = "istiod")]
#[test]
fn what_is_put_in_between_steps_of_settling_is_as_if_it_came_at_once() {
    let snapshot = put(&Snapshot::new(), (0..10).map(pod));
    let changed = |numbers: std::ops::Range<usize>| {
        let changed = numbers.map(|number| pod(number).with_authorization_policies(Vec::new()));
        Batch::new(changed.map(Update::from).collect(), Vec::new())
    };
    let listed = |tables: &super::Tables| tables.attachments.listed();
    assert_eq!(listed(&snapshot.tables), 1);

    // The last that lists a policy is gone, and one comes that does.
    let mut draft = snapshot.draft();
    assert!(
        draft
            .put(&changed(0..10), &mut Changes::default())
            .is_empty()
    );
    while draft.settle(1) {}
    let again = Batch::new(vec![pod(10).into()], Vec::new());
    assert!(draft.put(&again, &mut Changes::default()).is_empty());
    let settled = draft.finish();
    assert_eq!(listed(&settled.tables), 1);
    assert_eq!(settled.tables.profiles.len(), 2);

    // Half settled only, when more comes.
    let mut draft = snapshot.draft();
    assert!(
        draft
            .put(&changed(0..10), &mut Changes::default())
            .is_empty()
    );
    assert!(draft.settle(1));
    assert!(draft.put(&again, &mut Changes::default()).is_empty());
    let settled = draft.finish();
    assert_eq!(listed(&settled.tables), 1);
    assert_eq!(settled.tables.profiles.len(), 2);
    assert_eq!(settled.tables.places.len(), 2);
}

#[test]
fn of_a_snapshot_services_and_shared_values_go_in_steps_too() {
    let service = |number: usize| {
        let hostname = format!("service-{number}.default.svc.cluster.local");
        let name = ServiceName::new("default", hostname);
        Update::from(Service::new(name))
    };
    let own = |number: usize| {
        Update::from(
            pod(number)
                .with_node(format!("node-{number}"))
                .with_service_account(format!("account-{number}")),
        )
    };
    let updates = (0..1_000).flat_map(|number| [own(number), service(number)]);
    let batch = Batch::new(updates.collect(), Vec::new());
    let snapshot = Snapshot::new().apply(&batch).snapshot;
    let profiles: Vec<_> = snapshot
        .workloads()
        .map(|of| Arc::downgrade(&of.profile))
        .collect();
    let places: Vec<_> = snapshot
        .workloads()
        .map(|of| Arc::downgrade(&of.place))
        .collect();
    let services: Vec<_> = snapshot.services().map(Arc::downgrade).collect();
    assert_eq!(services.len(), 1_000);
    let live = || {
        let profiles = profiles.iter().filter(|one| one.strong_count() > 0);
        let places = places.iter().filter(|one| one.strong_count() > 0);
        let services = services.iter().filter(|one| one.strong_count() > 0);
        profiles.count() + places.count() + services.count()
    };
    let mut remains = Remains::of(Arc::new(snapshot)).ok().unwrap();
    let mut left = live();
    assert_eq!(left, 3_000);
    while remains.shed() {
        let now = live();
        assert!(left - now <= 64, "{left} to {now}");
        left = now;
    }
    drop(remains);
    assert!(left <= 64, "{left} go with what is left");
    assert_eq!(live(), 0);
}

#[test]
fn of_a_snapshot_workloads_with_host_names_go_in_steps_too() {
    let named = |number: usize| pod(number).with_hostname(format!("host-{}", number / 2));
    let snapshot = put(&Snapshot::new(), (0..1_000).map(named));
    let records: Vec<_> = snapshot.workloads().map(Arc::downgrade).collect();
    let live = || records.iter().filter(|one| one.strong_count() > 0).count();
    let mut remains = Remains::of(Arc::new(snapshot)).ok().unwrap();
    let mut left = live();
    assert_eq!(left, 1_000);
    while remains.shed() {
        let now = live();
        assert!(left - now <= 64, "{left} to {now}");
        left = now;
    }
    assert!(left <= 64, "{left} go with what is left");
}

/// Any hash may be another value's, too.
#[test]
fn values_that_hash_alike_are_shared_each_by_its_own() {
    #[derive(PartialEq, Eq, Debug)]
    struct Alike(u32);
    impl Hash for Alike {
        fn hash<H: Hasher>(&self, state: &mut H) {
            state.write_u8(0);
        }
    }
    let mut values = Interner::default();
    let shared: Vec<_> = (0..100)
        .map(|number| values.share(Alike(number)).0)
        .collect();
    values.settle(shared.iter().map(|value| (Arc::clone(value), 1)));
    for (number, value) in (0..100).zip(&shared) {
        let (again, new) = values.share(Alike(number));
        assert!(!new && Arc::ptr_eq(&again, value), "{number}");
    }
    let gone: Vec<_> = shared.iter().step_by(2).map(Arc::clone).collect();
    let unused = values.settle(gone.into_iter().map(|value| (value, -1)));
    assert_eq!(unused.len(), 50);
    assert_eq!(values.len(), 50);
    assert!(values.share(Alike(0)).1, "it was let go of");
    assert!(!values.share(Alike(1)).1);
}

#[test]
fn a_snapshot_is_let_go_of_in_steps_when_nobody_reads_it() {
    let snapshot = Arc::new(put(&Snapshot::new(), (0..1_000).map(pod)));
    let read = Arc::clone(&snapshot);
    let snapshot = Remains::of(snapshot).err().unwrap();
    drop(read);
    let copy = Snapshot::clone(&snapshot);
    let snapshot = Remains::of(snapshot).err().unwrap();
    let last = put(
        &copy,
        (0..1_000).map(|number| pod(number).with_cluster_id("other")),
    );
    let records: Vec<_> = copy.workloads().map(Arc::downgrade).collect();
    drop(copy);

    let mut remains = Remains::of(snapshot).ok().unwrap();
    let live = || records.iter().filter(|record| record.strong_count() > 0);
    assert_eq!(live().count(), records.len());
    // In all tables, and as endpoints of their one service.
    let held = || records.iter().map(Weak::strong_count).sum::<usize>();
    let mut left = held();
    assert!(left > 4 * records.len(), "{left}");
    while remains.shed() {
        let now = held();
        assert!(left - now <= 64, "{left} to {now}");
        left = now;
    }
    assert!(left <= 64, "{left} go with what is left");
    drop(remains);
    assert_eq!(live().count(), 0);
    assert_eq!(last.workloads().count(), records.len());
}

#[test]
fn a_first_batch_is_found_as_workloads_that_come_one_by_one_are() {
    // In their order, against it, and in none.
    first_batch((0..100).map(pod).collect());
    first_batch((0..100).rev().map(pod).collect());
    first_batch((0..100).map(|number| pod(number * 37 % 100)).collect());
}

fn first_batch(mut pods: Vec<Workload>) {
    // They are found by name and address before some come again, and by those that are last.
    for number in 0..100 {
        let found = put(&Snapshot::new(), pods.clone());
        let name = format!("ratings-{number}");
        assert!(found.workload_named("default", &name).is_some());
    }
    pods.push(pod(7).with_addresses(vec![IpAddr::from([10, 0, 1, 7])]));
    pods.push(pod(8).with_network("other"));
    pods.push(pod(9).with_network_mode(NetworkMode::HostNetwork));
    pods.push(pod(100).with_addresses(vec![IpAddr::from([10, 0, 1, 8]); 2]));
    let first = put(&Snapshot::new(), pods.clone());
    let mut later = Snapshot::new();
    for pod in pods {
        later = put(&later, [pod]);
    }
    let uid = |found: Option<&Arc<super::WorkloadRecord>>| found.map(|one| one.uid().clone());
    for number in 0..=100 {
        let name = format!("ratings-{number}");
        let named = uid(first.workload_named("default", &name));
        assert!(named.is_some());
        assert_eq!(named, uid(later.workload_named("default", &name)));
    }
    let mut found = 0;
    for (third, fourth) in (0..2).flat_map(|third| (0..40).map(move |fourth| (third, fourth))) {
        for network in ["", "other"] {
            let ip = IpAddr::from([10, 0, third, fourth]);
            let at = uid(first.tables.workload_addresses.get(network, ip));
            assert_eq!(at, uid(later.tables.workload_addresses.get(network, ip)));
            found += usize::from(at.is_some());
        }
    }
    assert_eq!(found, 34 + 3);
    let uids = first.workloads().map(|one| one.uid().clone());
    let removed = uids.map(ResourceName::Workload).collect();
    let empty = first.apply(&Batch::new(Vec::new(), removed)).snapshot;
    assert!(empty.tables.workload_names.is_empty());
    assert!(empty.tables.workload_addresses.is_empty());
}

/// Their second halves are the constant that foldhash, not seeded by anybody, combines them with: whatever the
/// first halves are, it would multiply by zero.
fn alike_by_published_constants() -> impl Iterator<Item = u128> {
    (0..1000).map(|low: u64| (0xc0ac_29b7_c97c_50dd_u128 << 64) | u128::from(low))
}

#[test]
fn addresses_made_to_hash_alike_do_not() {
    let published = FixedState::with_seed(1);
    let numbers: HashSet<u64> = alike_by_published_constants()
        .map(|number| published.hash_one(number))
        .collect();
    assert_eq!(numbers.len(), 1, "so these are not alike");

    for _ in 0..8 {
        let hasher = Seeded::default();
        let numbers: HashSet<u64> = alike_by_published_constants()
            .map(|number| hasher.hash_one(number))
            .collect();
        assert!(numbers.len() > 990, "{} hashes", numbers.len());

        let addresses: HashSet<u64> = alike_by_published_constants()
            .map(|number| IpAddr::V6(Ipv6Addr::from(number.to_ne_bytes())))
            .map(|address| hasher.hash_one(address))
            .collect();
        assert!(addresses.len() > 990, "{} hashes", addresses.len());
    }
}
