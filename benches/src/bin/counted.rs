//! What the gate counts instructions of; [`mesh_benches::instructions`] runs it under callgrind.
//!
//! Each case runs once, inside [`measured`]: callgrind collects in there only, and dumps what it
//! collected at its end. Then it prints `name<TAB>operations<TAB>allocations`.
#![allow(clippy::print_stdout, reason = "it is a program")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use mesh_benches::floods::FLOODS;
use mesh_benches::mesh::{EVEN, Mesh, NEAR};
use mesh_benches::policies;
use mesh_core::snapshot::{Resolution, Target};
use mesh_core::xds::model::Batch;

/// How often each decision is made.
const ROUNDS: u32 = 50;
/// How many changes are made, one at a time.
const CHANGES: u32 = 100;

#[inline(never)]
fn measured(case: &mut dyn FnMut()) {
    case();
    // So that the call above is no jump.
    black_box(());
}

fn case(name: &str, operations: u32, mut case: impl FnMut()) {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    measured(&mut case);
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
    println!("{name}\t{operations}\t{allocations}");
}

/// How often memory was asked for, `realloc` included: callgrind's own counts of calls include those
/// that were made while nothing was collected.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static COUNTING: Counting = Counting;

struct Counting;

// The one way to see allocations.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's obligations are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's obligations are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's obligations are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let group = arguments.next().unwrap_or_default();
    let sizes: Vec<u32> = arguments
        .map(|text| text.parse().expect("a size"))
        .collect();
    match (group.as_str(), &sizes[..]) {
        ("control", []) => control(),
        ("authorization", [count]) => authorization(*count),
        ("mesh", [workloads, endpoints]) => mesh(*workloads, *endpoints),
        ("flood", [steps]) => floods(*steps),
        ("pick", [endpoints]) => picks(&Mesh::new(*endpoints, *endpoints)),
        _ => panic!(
            "expected control, authorization <policies>, flood <steps>, mesh <workloads> <endpoints> or pick <endpoints>"
        ),
    }
}

/// What is known: that allocations are seen, and how much the measuring itself takes.
fn control() {
    case("nothing", 1, || {});
    case("allocations", ROUNDS, || {
        for size in 1..=ROUNDS as usize {
            black_box(Vec::<u8>::with_capacity(black_box(size)));
        }
    });
}

fn authorization(count: u32) {
    let set = policies::set(count);
    set.compile_l4();
    set.compile_l7();
    for request in policies::requests(count) {
        let attributes = request.attributes();
        // For the first run of each kind may set things up.
        assert_eq!(
            set.evaluate(&attributes).is_allowed(),
            request.allowed,
            "{request:?}"
        );
        assert!(set.could_allow(&attributes).is_allowed() || !request.allowed);
        black_box(set.evaluate_l4(&attributes).is_allowed());
        case(&format!("request: {}", request.name), ROUNDS, || {
            for _ in 0..ROUNDS {
                black_box(set.evaluate(black_box(&attributes)).is_allowed());
            }
        });
        case(&format!("connection: {}", request.name), ROUNDS, || {
            for _ in 0..ROUNDS {
                black_box(set.evaluate_l4(black_box(&attributes)).is_allowed());
            }
        });
    }
}

/// After so many steps buffers have their sizes.
const FIRST_STEPS: u32 = 100;

fn floods(steps: u32) {
    for flood in FLOODS {
        let mut server = flood.server();
        let steps = flood.steps(steps);
        server.take(flood.bytes(0..FIRST_STEPS));
        let mut bytes = flood.bytes(FIRST_STEPS..FIRST_STEPS + steps);
        case(flood.name, steps, || {
            server.take(std::mem::take(&mut bytes));
        });
        // What was cut off would not have cost anything.
        assert!(server.goes_on(), "{}", flood.name);
    }
}

fn mesh(workloads: u32, endpoints: u32) {
    let mut mesh = Mesh::new(workloads, endpoints);
    picks(&mesh);
    let changes = mesh.workload_changes(CHANGES);
    change(&mut mesh, "a workload", &changes);
    let changes = mesh.endpoint_changes(CHANGES.min(endpoints));
    change(&mut mesh, "one endpoint of many", &changes);
    let (comings, goings) = mesh.comings_and_goings(CHANGES);
    change(&mut mesh, "a new workload", &comings);
    change(&mut mesh, "a workload less", &goings);
    let changes = mesh.mesh_wide_policies(CHANGES);
    change(&mut mesh, "a mesh-wide policy", &changes);
}

/// Roads to the large service, whose endpoints are all alike, and to the one that prefers near ones.
fn picks(mesh: &Mesh) {
    let (first, neighbour) = (mesh.caller(), mesh.neighbour());
    let mut random = random();
    for (name, host, caller) in [
        ("any endpoint", EVEN, &first),
        ("a near endpoint", NEAR, &first),
        ("an endpoint near another client", NEAR, &neighbour),
    ] {
        case(&format!("to {name}"), CHANGES, || {
            for _ in 0..CHANGES {
                let target = Target::Host {
                    name: host,
                    port: 80,
                };
                let found = mesh.snapshot.resolve(caller, target, &[], &mut random);
                assert!(matches!(black_box(found), Resolution::Found(_)));
            }
        });
    }
}

fn change(mesh: &mut Mesh, name: &str, batches: &[Batch]) {
    let mut different = true;
    let count = u32::try_from(batches.len()).expect("few");
    case(&format!("change: {name}"), count, || {
        for batch in batches {
            let applied = mesh.snapshot.apply(batch);
            different &= !applied.changes.is_empty();
            // Readers see the new one, and the old one goes with its last reader.
            mesh.snapshot = applied.snapshot;
        }
    });
    assert!(different, "{name}: nothing changed");
}

/// The numbers of a linear congruential generator, high bits first.
fn random() -> impl FnMut() -> u64 {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state ^ (state >> 29)
    }
}
