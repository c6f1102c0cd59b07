//! Counts instructions under callgrind: `count() -> Report`, `report.broken() -> what is too much`.
//!
//! Counts do not depend on what else the machine does, so they can be a gate where times cannot. The
//! program `counted` is built without the tunnel, and run with the same "random" numbers every time.

mod baseline;
mod bounds;
mod callgrind;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

pub use baseline::{Compared, bless, compare};

/// Why nothing was counted.
#[derive(Debug)]
#[non_exhaustive]
pub enum Failure {
    /// A tool is not here.
    Missing(String),
    /// A program failed, or said what is not understood.
    Failed(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(tool) => write!(f, "{tool} is not installed"),
            Self::Failed(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Failure {}

/// What one operation took, in the mean over a case.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Count {
    /// Instructions.
    pub instructions: f64,
    /// How often memory was asked for; of a choice among endpoints in the whole resolution.
    pub allocations: f64,
}

/// A run of `counted`: its arguments, and whether only endpoint choice is collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    arguments: &'static [&'static str],
    only: &'static str,
}

impl Run {
    const fn of(arguments: &'static [&'static str]) -> Self {
        Self {
            arguments,
            only: callgrind::MEASURED,
        }
    }

    const fn choice(arguments: &'static [&'static str]) -> Self {
        Self {
            arguments,
            only: "mesh_core::snapshot::endpoints::Endpoints::choose",
        }
    }
}

/// The largest first, so that they do not come last alone.
const RUNS: [Run; 10] = [
    Run::of(&["mesh", "100000", "10000"]),
    Run::of(&["authorization", "10000"]),
    Run::of(&["flood", "2000"]),
    Run::choice(&["pick", "10000"]),
    Run::of(&["authorization", "1000"]),
    Run::of(&["mesh", "1000", "100"]),
    Run::choice(&["pick", "100"]),
    Run::of(&["flood", "200"]),
    Run::of(&["authorization", "10"]),
    Run::of(&["control"]),
];

/// What everything took, by run and case.
#[derive(Debug)]
pub struct Report {
    /// Compiler, valgrind and processor: counts under another key are not comparable.
    pub key: String,
    /// Whether "random" numbers were the same as every time, without which counts differ by 2 %.
    pub repeatable: bool,
    counts: BTreeMap<(String, String), Count>,
}

impl Report {
    fn get(&self, run: &str, case: &str) -> Option<Count> {
        let key = (run.to_owned(), case.to_owned());
        self.counts.get(&key).copied()
    }

    fn rows(&self) -> impl Iterator<Item = (&str, &str, Count)> {
        let rows = self.counts.iter();
        rows.map(|((run, case), count)| (run.as_str(), case.as_str(), *count))
    }

    /// The bounds that do not hold, in words.
    pub fn broken(&self) -> Vec<String> {
        bounds::broken(self)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.key)?;
        writeln!(
            f,
            "{:>12} {:>12}  per operation",
            "instructions", "allocations"
        )?;
        for (run, case, count) in self.rows() {
            let Count {
                instructions,
                allocations,
            } = count;
            writeln!(
                f,
                "{instructions:12.0} {allocations:12.2}  {run:<20} {case}"
            )?;
        }
        for ratio in bounds::ratios(self) {
            writeln!(f, "{ratio}")?;
        }
        Ok(())
    }
}

/// Builds what is counted and counts it. Files go to `scratch`.
///
/// # Errors
///
/// Where valgrind is missing, and when a program fails.
pub fn count(scratch: &Path) -> Result<Report, Failure> {
    let valgrind = said(Command::new("valgrind").arg("--version"))?;
    let rustc = said(Command::new("rustc").arg("--version"))?;
    let key = format!("{}, {}, {}", rustc.trim(), valgrind.trim(), processor());
    let program = callgrind::build()?;
    let preload = callgrind::fixed_random(scratch)?;
    let open = Mutex::new(RUNS.iter());
    let done = Mutex::new(Ok(BTreeMap::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(run) = take(&open) {
                    let counted = callgrind::run(&program, run, preload.as_deref(), scratch);
                    let mut done = done.lock().expect("nothing panics with the lock");
                    match (counted, done.as_mut()) {
                        (Ok(counted), Ok(all)) => all.extend(counted),
                        (Err(failure), Ok(_)) => *done = Err(failure),
                        (_, Err(_)) => return,
                    }
                }
            });
        }
    });
    Ok(Report {
        key,
        repeatable: preload.is_some(),
        counts: done.into_inner().expect("nothing panics with the lock")?,
    })
}

fn take(open: &Mutex<std::slice::Iter<'static, Run>>) -> Option<&'static Run> {
    open.lock().expect("nothing panics with the lock").next()
}

/// What a program prints.
fn said(command: &mut Command) -> Result<String, Failure> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Failure::Missing(program.clone()),
        _ => Failure::Failed(format!("{program}: {error}")),
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(Failure::Failed(format!(
        "{command:?}: {}\n{text}",
        output.status
    )))
}

/// The processor's name, where the system tells.
fn processor() -> String {
    let about = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = about.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    });
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}
