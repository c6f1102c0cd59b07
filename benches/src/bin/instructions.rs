//! Counts instructions: `cargo run -p mesh-benches --bin instructions [-- --bless]`.
//!
//! Prints what each case takes and the baseline's deviations; exits 1 when a bound or the baseline does
//! not hold. `--bless` makes what was counted the baseline.
#![allow(clippy::print_stdout, reason = "it is a program")]

use std::error::Error;
use std::process::ExitCode;

use mesh_benches::instructions::{self, Compared};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let bless = std::env::args()
        .skip(1)
        .any(|argument| argument == "--bless");
    let scratch = std::env::temp_dir().join(format!("mesh-benches-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    let report = instructions::count(&scratch);
    std::fs::remove_dir_all(&scratch)?;
    let report = report?;
    print!("{report}");
    let mut broken = report.broken();
    if bless {
        instructions::bless(&report)?;
    } else if let Compared::To { more, less } = instructions::compare(&report)? {
        for line in less {
            println!("less: {line}");
        }
        broken.extend(more);
    } else {
        println!("nothing to compare with");
    }
    for line in &broken {
        println!("too much: {line}");
    }
    if broken.is_empty() {
        Ok(ExitCode::SUCCESS)
    } else {
        Ok(ExitCode::FAILURE)
    }
}
