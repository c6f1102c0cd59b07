//! What a workload costs in the snapshot. Its own binary: the counting allocator is the whole process's.
//!
//! Workloads as istiod describes them are read from their bytes, in responses of a thousand, and applied;
//! what is still allocated when the responses are gone is the snapshot's.

mod large_mesh;

use std::sync::atomic::Ordering;

use mesh_core::snapshot::Snapshot;
use mesh_core::xds::decode::{Decoder, ResourceType};
use mesh_core::xds::model::{Batch, Update};

use large_mesh::{LIVE, service, workload};

/// The goal at 100 000 workloads, in bytes of live allocations for each: 600 with all that a process has beside it.
const BOUND: usize = 400;

/// The same for a service of which no workload is known.
const SERVICE_BOUND: usize = 1_000;

fn apply(snapshot: &mut Snapshot, resources: impl Iterator<Item = (String, Vec<u8>)>) {
    let mut reader = Decoder::new().reader();
    let decode = |(name, bytes): (String, Vec<u8>)| -> Update {
        let update = reader.decode(ResourceType::Address, &name, &bytes);
        update.unwrap().unwrap()
    };
    let updates = resources.map(decode).collect();
    let applied = snapshot.apply(&Batch::new(updates, Vec::new()));
    assert!(
        applied
            .verdicts
            .iter()
            .all(|verdict| verdict.result().is_ok())
    );
    *snapshot = applied.snapshot;
}

#[test]
#[allow(clippy::print_stdout, reason = "the figure is worth seeing")]
fn a_workload_costs_at_most_400_bytes() {
    let mut snapshot = Snapshot::new();
    let workloads = 100_000;
    let services = workloads / 16;
    let before = LIVE.load(Ordering::Relaxed);
    for start in (0..services).step_by(1_000) {
        apply(
            &mut snapshot,
            (start..services.min(start + 1_000)).map(service),
        );
    }
    let service_each = (LIVE.load(Ordering::Relaxed) - before) / services;
    println!("bytes a service: {service_each}");
    assert!(
        service_each <= SERVICE_BOUND,
        "{service_each} bytes a service"
    );
    let mut live = Vec::new();
    for start in (0..workloads).step_by(1_000) {
        if start % 10_000 == 0 {
            live.push(LIVE.load(Ordering::Relaxed));
        }
        apply(&mut snapshot, (start..start + 1_000).map(workload));
    }
    live.push(LIVE.load(Ordering::Relaxed));
    assert_eq!(snapshot.workload_count(), workloads);
    let each: Vec<_> = live
        .windows(2)
        .map(|pair| (pair[1] - pair[0]) / 10_000)
        .collect();
    let all = (live[live.len() - 1] - live[0]) / workloads;
    println!("bytes a workload: {all}, by ten thousand: {each:?}");
    assert!(all <= BOUND, "{all} bytes a workload: {each:?}");
    // More workloads do not make each dearer, as copies for each batch would.
    assert!(each.iter().all(|one| *one <= BOUND * 5 / 4), "{each:?}");
}
