//! Paired runs with real peers: the program `lab`, and `member`, an application of a mesh.
//!
//! Each row compares deployments that do the same work and take turns, round after round, so that what else the
//! machine does falls on all of them. Figures are medians of rounds with the least and the most; ratios are taken
//! within a round. CPU is user and system time of all processes of a deployment. What a peer needs (a
//! program, root) and does not have is said, and its deployment left out.

mod app;
mod args;
mod bare;
mod certificates;
mod changes;
mod connect;
mod control;
mod echo;
mod fleet;
mod flood;
mod flooding;
mod half_open;
mod handshakes;
mod held;
mod load;
mod machine;
mod member;
mod namespaces;
mod newcomers;
mod peers;
mod processes;
mod reach;
mod refused;
mod requests;
mod revocation;
mod scale;
mod silent;
mod soak;
mod spread;
#[path = "../../../mesh-hbone/tests/it/hostile/wire.rs"]
#[allow(dead_code, reason = "tests use the rest")]
mod wire;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command, Reach};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Done = Result<(), BoxError>;

/// The program `lab`: rows, and the roles of their processes.
pub fn run() -> ExitCode {
    ended(match Args::parse().command {
        Command::Requests(of) => requests::run(&of),
        Command::Handshakes(of) => handshakes::run(&of),
        Command::Scale(of) => scale::run(&of),
        Command::Revocation(of) => revocation::run(&of),
        Command::HalfOpen(of) => half_open::run(&of),
        Command::Flood(of) => flood::run(&of),
        Command::Soak(of) => soak::run(&of),
        Command::Serve(of) => on_two_threads(app::run(of)),
        Command::Load(of) => on_two_threads(load::run(of)),
        Command::Control(of) => on_two_threads(control::run(of)),
        Command::Echo(of) => on_two_threads(echo::run(of)),
        Command::Held(of) => on_two_threads(held::run(of)),
        Command::Silent(of) => on_two_threads(silent::run(of)),
        Command::Flooding(of) => on_two_threads(flooding::run(of)),
        Command::Refused(of) => on_two_threads(refused::run(of)),
        Command::Newcomers(of) => on_two_threads(newcomers::run(of)),
    })
}

/// The program `member`: an application and nothing else, which is what its memory is to be of.
pub fn member() -> ExitCode {
    ended(on_two_threads(reach::run(Reach::parse())))
}

fn ended(outcome: Done) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            args::complain(&format!("lab: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// What peers have: each process of the lab, its own.
fn on_two_threads(role: impl Future<Output = Done>) -> Done {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(role)
}
