//! Runs `counted` under callgrind and reads what it collected.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Count, Failure, Run, said};

/// The function whose calls are the cases.
pub(super) const MEASURED: &str = "counted::measured";

/// std's hash tables take their keys from here; with these keys a count is the same every time.
const RANDOM: &str = "
#include <stddef.h>
#include <string.h>
long getrandom(void *to, size_t size, unsigned flags) {
    (void)flags;
    memset(to, 0x5a, size);
    return (long)size;
}
";

/// Builds the program; gives its path.
pub(super) fn build() -> Result<PathBuf, Failure> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--quiet", "--locked", "--profile", "counted"])
        .args(["--package", "mesh-benches", "--bin", "counted"])
        .args(["--no-default-features", "--message-format", "json"]);
    let said = said(&mut cargo)?;
    // One JSON object a line; only the program's own has a path here.
    let path = said.lines().find_map(|line| {
        let (_, rest) = line.split_once("\"executable\":\"")?;
        rest.split('"').next()
    });
    path.map(PathBuf::from)
        .ok_or_else(|| Failure::Failed("cargo named no executable".to_owned()))
}

/// Builds a library to preload, where there is a C compiler.
pub(super) fn fixed_random(scratch: &Path) -> Result<Option<PathBuf>, Failure> {
    let (source, library) = (scratch.join("random.c"), scratch.join("random.so"));
    std::fs::write(&source, RANDOM).map_err(|error| failed(&source, &error))?;
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&library)
        .arg(&source);
    match said(&mut cc) {
        Ok(_) => Ok(Some(library)),
        Err(Failure::Missing(_)) => Ok(None),
        Err(failure) => Err(failure),
    }
}

type Counts = BTreeMap<(String, String), Count>;

/// Runs one group of cases.
pub(super) fn run(
    program: &Path,
    run: &Run,
    preload: Option<&Path>,
    scratch: &Path,
) -> Result<Counts, Failure> {
    let name = run.arguments.join(" ");
    let out = scratch.join(format!("callgrind.{}", run.arguments.join("-")));
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--quiet", "--tool=callgrind"])
        .arg(format!("--toggle-collect={}", run.only))
        .arg(format!("--dump-after={MEASURED}"))
        .arg(format!("--callgrind-out-file={}", out.display()));
    if let Some(preload) = preload {
        valgrind.env("LD_PRELOAD", preload);
    }
    let said = said(valgrind.arg(program).args(run.arguments))?;
    let mut counts = Counts::new();
    for (line, part) in said.lines().zip(1..) {
        let [case, operations, allocations] = line.split('\t').collect::<Vec<_>>()[..] else {
            return Err(Failure::Failed(format!("{name}: not a case: {line}")));
        };
        let number = |text: &str| {
            text.parse::<u32>()
                .map(f64::from)
                .map_err(|_| Failure::Failed(format!("{name}: {case}: not a number: {text}")))
        };
        let dump = PathBuf::from(format!("{}.{part}", out.display()));
        let text = std::fs::read_to_string(&dump).map_err(|error| failed(&dump, &error))?;
        let total = total(&text)
            .filter(|total| *total > 0.0)
            .ok_or_else(|| Failure::Failed(format!("{name}: {case}: nothing was collected")))?;
        let count = Count {
            instructions: total / number(operations)?,
            allocations: number(allocations)? / number(operations)?,
        };
        counts.insert((name.clone(), case.to_owned()), count);
    }
    Ok(counts)
}

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Failed(format!("{}: {error}", path.display()))
}

/// Instructions in all.
fn total(text: &str) -> Option<f64> {
    let sum = text
        .lines()
        .find_map(|line| line.strip_prefix("totals: "))?;
    sum.parse().ok()
}
