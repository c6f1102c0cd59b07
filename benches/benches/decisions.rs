//! How long decisions and changes take: `cargo bench -p mesh-benches`.
#![allow(missing_docs, reason = "criterion's macros make functions")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use mesh_authz::matcher::PathNormalization;
use mesh_benches::mesh::{EVEN, Mesh, NEAR};
use mesh_benches::policies;
use mesh_core::snapshot::Target;

fn authorization(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("authorization");
    for count in [10, 1_000, 10_000] {
        let set = policies::set(count);
        set.compile_l7();
        for request in policies::requests(count) {
            let attributes = request.attributes();
            group.bench_function(BenchmarkId::new(request.name, count), |bencher| {
                bencher.iter(|| set.evaluate(black_box(&attributes)).is_allowed());
            });
        }
    }
    group.finish();
}

fn snapshot(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("snapshot");
    for (workloads, endpoints) in [(1_000, 100), (100_000, 10_000)] {
        let mut mesh = Mesh::new(workloads, endpoints);
        let caller = mesh.caller();
        let mut state = 1_u64;
        let mut random = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state
        };
        for (name, host) in [("to any endpoint", EVEN), ("to a near endpoint", NEAR)] {
            let target = Target::Host {
                name: host,
                port: 80,
            };
            group.bench_function(BenchmarkId::new(name, endpoints), |bencher| {
                bencher.iter(|| {
                    mesh.snapshot
                        .resolve(&caller, black_box(target), &[], &mut random)
                });
            });
        }
        let changes = mesh.workload_changes(100);
        let mut changes = changes.iter().cycle();
        group.bench_function(
            BenchmarkId::new("change of a workload", workloads),
            |bencher| {
                bencher.iter(|| mesh.apply(changes.next().expect("an endless line")));
            },
        );
    }
    group.finish();
}

fn paths(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("path");
    for (name, path) in [
        ("plain", "/productpage/reviews/7?theme=dark"),
        ("escaped", "/a/%2e%2E/b//c/./d%2Fe%5cf/../g"),
    ] {
        let mode = PathNormalization::DecodeAndMergeSlashes;
        group.bench_function(name, |bencher| {
            bencher.iter(|| mode.normalize(black_box(path)).is_ok());
        });
    }
    group.finish();
}

criterion_group! {
    name = decisions;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500));
    targets = authorization, snapshot, paths
}
criterion_main!(decisions);
