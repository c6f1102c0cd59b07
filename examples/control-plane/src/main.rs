//! The program: see `control-plane --help`.

use std::process::ExitCode;

use control_plane::{Args, complain, init_logging, run};

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
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
