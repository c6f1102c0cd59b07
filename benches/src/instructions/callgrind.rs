//! Runs `counted` under callgrind and reads what it collected.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Count, Failure, Run, said};

/// The function whose calls are the cases.
pub(super) const MEASURED: &str = "counted::measured";

/// What asks for memory, however it is reached.
const ALLOCATORS: [&str; 6] = [
    "malloc",
    "calloc",
    "realloc",
    "posix_memalign",
    "aligned_alloc",
    "memalign",
];

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
        let (case, operations) = line
            .split_once('\t')
            .and_then(|(case, count)| Some((case, count.parse::<u32>().ok()?)))
            .ok_or_else(|| Failure::Failed(format!("{name}: not a case: {line}")))?;
        let dump = PathBuf::from(format!("{}.{part}", out.display()));
        let text = std::fs::read_to_string(&dump).map_err(|error| failed(&dump, &error))?;
        let (total, allocates) = read(&text)
            .filter(|(total, _)| *total > 0.0)
            .ok_or_else(|| Failure::Failed(format!("{name}: {case}: nothing was collected")))?;
        let count = Count {
            instructions: total / f64::from(operations),
            allocates,
        };
        counts.insert((name.clone(), case.to_owned()), count);
    }
    Ok(counts)
}

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Failed(format!("{}: {error}", path.display()))
}

/// Instructions in all, and whether an allocator was among what was called.
///
/// callgrind names a function at its first mention, `fn=(7) name` or `cfn=(7) name`, and writes only
/// what cost something while collecting; the cost of a call follows its `calls=`.
fn read(text: &str) -> Option<(f64, bool)> {
    let mut names = HashMap::new();
    let (mut total, mut allocates) = (None, false);
    let mut called = "";
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(function) = line
            .strip_prefix("fn=")
            .or_else(|| line.strip_prefix("cfn="))
        {
            let (id, name) = function.split_once(' ').unwrap_or((function, ""));
            if !name.is_empty() {
                names.insert(id, name);
            }
            if line.starts_with('c') {
                called = names.get(id).copied().unwrap_or_default();
            }
        } else if line.starts_with("calls=") {
            let cost = lines.next()?.split(' ').nth(1)?;
            allocates |= cost != "0" && ALLOCATORS.contains(&called);
        } else if let Some(sum) = line.strip_prefix("totals: ") {
            total = Some(sum.parse().ok()?);
        }
    }
    Some((total?, allocates))
}
