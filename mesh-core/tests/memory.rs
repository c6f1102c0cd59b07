//! What a workload costs in the snapshot. Its own binary: the counting allocator is the whole process's.
//!
//! Workloads as istiod describes them are read from their bytes, in responses of a thousand, and applied;
//! what is still allocated when the responses are gone is the snapshot's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use mesh_core::snapshot::Snapshot;
use mesh_core::xds::decode::{Decoder, ResourceType};
use mesh_core::xds::model::{Batch, Update};

/// The goal at 100 000 workloads, in bytes of live allocations for each: 600 with all that a process has beside it.
const BOUND: usize = 400;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// The one way to see allocations; the library itself has no unsafe code here.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(rounded(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(rounded(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What a general allocator hands out for a request: a multiple of 16 bytes.
fn rounded(size: usize) -> usize {
    size.next_multiple_of(16)
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Writes protobuf: fields with a length, and numbers.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn bytes(mut self, number: u64, value: &[u8]) -> Self {
        self.varint(number << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    fn text(self, number: u64, value: &str) -> Self {
        self.bytes(number, value.as_bytes())
    }

    fn number(mut self, number: u64, value: u64) -> Self {
        self.varint(number << 3);
        self.varint(value);
        self
    }
}

/// Pods of one deployment each 16, in namespaces of 32 deployments; 50 pods a node, three zones.
fn workload(index: usize) -> (String, Vec<u8>) {
    let deployment = index / 16;
    let namespace = format!("team-{}", deployment / 32);
    let app = format!("service-{deployment}");
    let pod = format!(
        "{app}-{:08x}-{:05x}",
        deployment.wrapping_mul(0x9e37_79b9) as u32,
        index
    );
    let uid = format!("Kubernetes//Pod/{namespace}/{pod}");
    let node = index * 7 % 100_000 / 50;
    let ip = [10, (index >> 16) as u8, (index >> 8) as u8, index as u8];
    let port = Writer::default().number(1, 80).number(2, 8080).number(3, 2);
    let ports = Writer::default().bytes(1, &port.0);
    let hostname = format!("{namespace}/{app}.{namespace}.svc.cluster.local");
    let service = Writer::default().text(1, &hostname).bytes(2, &ports.0);
    let zone = format!("region-1-{}", node % 3);
    let locality = Writer::default().text(1, "region-1").text(2, &zone);
    let workload = Writer::default()
        .text(1, &pod)
        .text(2, &namespace)
        .bytes(3, &ip)
        .text(4, "network-1")
        .number(5, 1)
        .text(7, &app)
        .text(9, &format!("node-{node}.internal"))
        .text(10, &app)
        .text(11, "v1")
        .text(13, &app)
        .text(18, "Kubernetes")
        .text(20, &uid)
        .bytes(22, &service.0)
        .bytes(24, &locality.0);
    (uid, Writer::default().bytes(1, &workload.0).0)
}

fn service(index: usize) -> (String, Vec<u8>) {
    let namespace = format!("team-{}", index / 32);
    let app = format!("service-{index}");
    let hostname = format!("{app}.{namespace}.svc.cluster.local");
    let name = format!("{namespace}/{hostname}");
    let vip = Writer::default().text(1, "network-1").bytes(
        2,
        &[172, (index >> 16) as u8, (index >> 8) as u8, index as u8],
    );
    let port = Writer::default().number(1, 80).number(2, 8080).number(3, 2);
    let service = Writer::default()
        .text(1, &app)
        .text(2, &namespace)
        .text(3, &hostname)
        .bytes(4, &vip.0)
        .bytes(5, &port.0)
        .number(11, 1);
    (name, Writer::default().bytes(2, &service.0).0)
}

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
    for start in (0..services).step_by(1_000) {
        apply(
            &mut snapshot,
            (start..services.min(start + 1_000)).map(service),
        );
    }
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
