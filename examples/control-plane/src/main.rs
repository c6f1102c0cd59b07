//! A control plane on one machine: discovery and certificates out of files, for the SDK and for ztunnel.

mod args;
mod configure;
mod files;
mod once;
mod pages;
mod serving;
mod state;
mod tls;
mod token;

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use mesh_xds::serve::{Ca, Server};
use tokio::net::TcpListener;

use crate::args::{Args, Command, Serve, WorkloadCommand};
use crate::state::State;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    args::init_logging();
    let outcome = match &args.command {
        Some(Command::Workload(WorkloadCommand::Configure(of))) => configure::run(&args, of),
        None if args.serve.once => once::run(&args.serve).await,
        None => stay_up(&args).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes =
                std::iter::successors(Some(&*error as &dyn std::error::Error), |e| e.source());
            let causes: Vec<_> = causes.map(ToString::to_string).collect();
            args::complain(&format!("control-plane: {}", causes.join(": ")));
            ExitCode::FAILURE
        }
    }
}

/// Serves until Ctrl-C.
async fn stay_up(args: &Args) -> Result<(), BoxError> {
    let state = State::open(&args.state, &args.trust_domain)?;
    let running = start(&args.serve, state).await?;
    args::say(&format!(
        "serving {} resources on {}",
        running.server.resources(),
        running.address
    ));
    if let Some(address) = args.serve.http {
        let listener = bind("--http", address).await?;
        args::say(&format!(
            "its clients:  http://{}/debug/syncz",
            listener.local_addr()?
        ));
        tokio::spawn(pages::serve(listener, running.server.clone()));
    }
    tokio::signal::ctrl_c().await?;
    Ok(())
}

/// A control plane that serves.
struct Running {
    server: Server,
    address: std::net::SocketAddr,
}

async fn start(args: &Serve, state: State) -> Result<Running, BoxError> {
    let ca = Ca::new(&state.root, &state.key)?;
    let tls = tls::config(&state, &args.server_name)?;
    let server = Server::builder(state.tokens).ca(ca).build();
    files::load_and_watch(&args.config()?, &state.trust_domain, server.clone())?;
    let listener = bind("--listen", args.listen).await?;
    let address = listener.local_addr()?;
    tokio::spawn(serving::serve(listener, Arc::new(tls), server.service()));
    Ok(Running { server, address })
}

async fn bind(flag: &str, address: std::net::SocketAddr) -> Result<TcpListener, BoxError> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|error| format!("{flag} {address}: {error}").into())
}
