//! Counts under callgrind: independent of what else the machine does.

use std::path::Path;

use mesh_benches::instructions::{self, Compared, Failure};

use crate::require;

#[test]
#[allow(
    clippy::print_stdout,
    reason = "the figures, for whoever asks to see them"
)]
fn nothing_costs_more_than_it_may() {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("instructions");
    std::fs::create_dir_all(&scratch).unwrap();
    let report = match instructions::count(&scratch) {
        Ok(report) => report,
        Err(Failure::Missing(tool)) => {
            require::skip("instructions", &format!("{tool} is not installed"));
            return;
        }
        Err(failure) => panic!("{failure}"),
    };
    println!("{report}");
    assert_eq!(report.broken(), Vec::<String>::new());
    match instructions::compare(&report).unwrap() {
        Compared::To { more, .. } => assert_eq!(more, Vec::<String>::new()),
        _ => println!(
            "skipped: instructions: nothing to compare with: {}",
            report.key
        ),
    }
}
