//! When a test may skip. The same file in every crate's `tests/it/`.
#![allow(dead_code, reason = "not every test binary has a test that may skip")]

use std::env;
use std::path::PathBuf;

#[expect(
    clippy::disallowed_methods,
    reason = "tests are configured by the environment"
)]
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Says that `test` skips and why. Where `MESH_TEST_REQUIRE` is set, as in `.ci/run`, it fails instead.
#[track_caller]
pub(crate) fn skip(test: &str, reason: &str) {
    assert!(
        variable("MESH_TEST_REQUIRE").is_none(),
        "{test} has to run here, but: {reason}"
    );
    say(test, reason);
}

/// The folder of test data that is not part of the project, from `MESH_TEST_DATA`; without it `test`
/// skips everywhere, for what must always run has committed data of its own.
pub(crate) fn data(test: &str) -> Option<PathBuf> {
    let folder = variable("MESH_TEST_DATA").map(PathBuf::from);
    if folder.is_none() {
        say(test, "MESH_TEST_DATA names no folder");
    }
    folder
}

/// A file or folder of that test data which is not in every copy of it; without it `test` skips everywhere.
pub(crate) fn data_in(test: &str, path: &str) -> Option<PathBuf> {
    let found = data(test)?.join(path);
    if found.exists() {
        return Some(found);
    }
    say(test, &format!("the test data has no {path}"));
    None
}

/// A peer's program, from a variable named `PEER_…`; without it `test` skips everywhere.
pub(crate) fn peer(test: &str, name: &str) -> Option<PathBuf> {
    let program = variable(name).map(PathBuf::from);
    if program.is_none() {
        say(test, &format!("{name} names no program"));
    }
    program
}

/// How much a bulk transfer moves, in MiB: `MESH_TEST_BULK_MIB`, 200 without it.
pub(crate) fn bulk() -> u64 {
    variable("MESH_TEST_BULK_MIB").map_or(200, |text| text.parse().expect("a number of MiB"))
}

#[expect(clippy::print_stdout, reason = "who runs the tests has to see it")]
fn say(test: &str, reason: &str) {
    println!("skipped: {test}: {reason}");
}
