//! Paired runs with real peers: `cargo build --release -p lab`, then `target/release/lab <row>`; `--help` lists the rows.

use std::process::ExitCode;

fn main() -> ExitCode {
    lab::run()
}
