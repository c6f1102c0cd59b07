//! The program: see `control-plane --help`.

use std::process::ExitCode;

use clap::Parser;
use control_plane::{Args, complain, init_logging, run};

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    init_logging();
    match run(&args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes =
                std::iter::successors(Some(&*error as &dyn std::error::Error), |e| e.source());
            let causes: Vec<_> = causes.map(ToString::to_string).collect();
            complain(&format!("control-plane: {}", causes.join(": ")));
            ExitCode::FAILURE
        }
    }
}
