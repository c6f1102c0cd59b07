//! Bookinfo in the mesh: `bookinfo` serves the page, `bookinfo --once` plays the scenes,
//! `bookinfo serve reviews-v2` runs one service as a process of its own, and `--control-plane` has
//! configuration and certificates from a control plane instead of files.

mod cluster;
mod config;
mod page;
mod relay;
mod scenes;
mod services;
mod source;

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;
use control_plane::told_to_end;
use tokio::net::TcpListener;

use crate::cluster::Cluster;
use crate::config::{Args, Command};

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    config::init_logging(args.once);
    let outcome = match (&args.command, args.once) {
        (Some(Command::Serve { service }), _) => serve(&args, service).await,
        (None, true) => scenes::play(args.control_plane).await,
        (None, false) => stay_up(&args).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            config::say(&format!("\nbookinfo: {}", chain(&*error)));
            ExitCode::FAILURE
        }
    }
}

/// All services in one process, until Ctrl-C.
async fn stay_up(args: &Args) -> Result<(), BoxError> {
    let admin = match args.admin()? {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let told = told_to_end()?;
    let cluster = Cluster::start(args.source().await?, cluster::Ports::AsConfigured).await?;
    let page = cluster.page().unwrap_or_default();
    config::say("");
    config::say(&format!("  Bookinfo is up:  {page}"));
    config::say(&format!(
        "  Its manifests:   {}  (edit and save: changes take effect at once)",
        args.file()?.display()
    ));
    if let Some(listener) = admin {
        let address = listener.local_addr()?;
        tokio::spawn(cluster.admin().serve(listener));
        config::say(&format!(
            "  What it knows:   http://{address}/  (config dump, explanations, metrics)"
        ));
    }
    config::say("  Each hop below is a tunnel with mutual TLS. Ctrl-C ends.");
    config::say("");
    cluster.print_hops();
    told.await;
    config::say("draining");
    cluster.shutdown().await;
    Ok(())
}

async fn listen(admin: SocketAddr) -> Result<TcpListener, BoxError> {
    TcpListener::bind(admin)
        .await
        .map_err(|error| format!("--admin {admin}: {error}; name another address, or off").into())
}

/// One service in this process, until Ctrl-C.
async fn serve(args: &Args, service: &str) -> Result<(), BoxError> {
    let told = told_to_end()?;
    let cluster = Cluster::start_one(args.source().await?, service).await?;
    match cluster.page() {
        Some(page) => config::say(&format!("{service} is up: {page}; Ctrl-C ends")),
        None => config::say(&format!("{service} is up; Ctrl-C ends")),
    }
    cluster.print_hops();
    told.await;
    cluster.shutdown().await;
    Ok(())
}

/// An error with what caused it.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;
