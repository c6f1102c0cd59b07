//! No dependency is locked at a version with a failure that its makers have mended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::workspace::root;

/// The advisory, the crate, and the first version that is without it: of RustSec's database.
const MENDED: [(&str, &str, &str); 30] = [
    ("RUSTSEC-2026-0007", "bytes", "1.11.1"),
    ("RUSTSEC-2025-0047", "slab", "0.4.11"),
    // HTTP.
    ("RUSTSEC-2023-0034", "h2", "0.3.17"),
    ("RUSTSEC-2024-0003", "h2", "0.4.2"),
    ("RUSTSEC-2024-0332", "h2", "0.4.4"),
    ("RUSTSEC-2026-0258", "h2", "0.4.16"),
    ("RUSTSEC-2017-0002", "hyper", "0.10.2"),
    ("RUSTSEC-2020-0008", "hyper", "0.12.34"),
    ("RUSTSEC-2021-0020", "hyper", "0.14.3"),
    ("RUSTSEC-2021-0078", "hyper", "0.14.10"),
    ("RUSTSEC-2021-0079", "hyper", "0.14.10"),
    ("RUSTSEC-2024-0376", "tonic", "0.12.3"),
    ("RUSTSEC-2019-0033", "http", "0.1.20"),
    ("RUSTSEC-2022-0055", "axum-core", "0.3.0"),
    // TLS.
    ("RUSTSEC-2024-0336", "rustls", "0.23.5"),
    ("RUSTSEC-2024-0399", "rustls", "0.23.18"),
    ("RUSTSEC-2020-0019", "tokio-rustls", "0.13.1"),
    ("RUSTSEC-2023-0053", "rustls-webpki", "0.101.4"),
    ("RUSTSEC-2026-0049", "rustls-webpki", "0.103.10"),
    ("RUSTSEC-2026-0098", "rustls-webpki", "0.103.12"),
    ("RUSTSEC-2026-0099", "rustls-webpki", "0.103.12"),
    ("RUSTSEC-2026-0104", "rustls-webpki", "0.103.13"),
    ("RUSTSEC-2026-0044", "aws-lc-sys", "0.39.0"),
    ("RUSTSEC-2026-0048", "aws-lc-sys", "0.39.0"),
    // What reads configuration, and what all of it runs on.
    ("RUSTSEC-2020-0002", "prost", "0.6.1"),
    ("RUSTSEC-2021-0073", "prost-types", "0.8.0"),
    ("RUSTSEC-2022-0013", "regex", "1.5.5"),
    ("RUSTSEC-2021-0124", "tokio", "1.13.1"),
    ("RUSTSEC-2023-0005", "tokio", "1.24.2"),
    ("RUSTSEC-2021-0003", "smallvec", "1.6.1"),
];

/// Crates with failures that nothing brings with it. Whoever adds one gives it a row above.
const ABSENT: [(&str, &str); 4] = [
    ("CVE-2024-12224", "idna"),
    ("RUSTSEC-2025-0024", "crossbeam-channel"),
    ("RUSTSEC-2026-0119", "hickory-proto"),
    ("RUSTSEC-2026-0253", "lru"),
];

/// The numbers of `1.2.3`, `1.2.3+more` and `1.2.3-more`.
fn numbers(version: &str) -> [u64; 3] {
    let plain = version.split(['+', '-']).next().unwrap();
    let numbers: Vec<u64> = plain
        .split('.')
        .map(|number| number.parse().unwrap())
        .collect();
    numbers.try_into().unwrap()
}

/// All that is locked, for every platform and feature. Fuzzing has a workspace of its own.
fn locked() -> BTreeMap<String, BTreeSet<[u64; 3]>> {
    let lock = |of: &str| fs::read_to_string(root().join(of)).unwrap();
    let locks = ["Cargo.lock", "fuzz/Cargo.lock"].map(lock);
    let mut locked: BTreeMap<String, BTreeSet<[u64; 3]>> = BTreeMap::new();
    for package in locks
        .iter()
        .flat_map(|lock| lock.split("[[package]]").skip(1))
    {
        let field = |name: &str| {
            let mut lines = package.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
            value.expect(name).trim_matches('"')
        };
        let versions = locked.entry(field("name").to_owned()).or_default();
        versions.insert(numbers(field("version")));
    }
    locked
}

#[test]
fn no_locked_dependency_is_older_than_what_mended_it() {
    let locked = locked();
    assert!(locked.len() > 150, "{}", locked.len());
    for of_one in ["axum", "libfuzzer-sys"] {
        assert!(locked.contains_key(of_one), "{of_one}");
    }
    for (advisory, name, mended) in MENDED {
        let Some(versions) = locked.get(name) else {
            panic!("{advisory}: {name} is gone, and its row has to go");
        };
        for version in versions {
            assert!(
                *version >= numbers(mended),
                "{advisory}: {name} {version:?} is older than {mended}"
            );
        }
    }
    for (advisory, name) in ABSENT {
        assert!(!locked.contains_key(name), "{advisory}: {name}");
    }
}

#[test]
fn versions_are_compared_by_their_numbers() {
    assert!(numbers("0.10.0") > numbers("0.9.10"));
    assert!(numbers("0.103.9") < numbers("0.103.10"));
    assert_eq!(numbers("1.2.3+zstd.4"), numbers("1.2.3-rc.1"));
}
