//! A control plane on one machine: discovery and certificates out of files, for the SDK and for ztunnel.
//!
//! `main.rs` is the program; a program that brings its control plane along calls [`start`].

mod args;
mod configure;
mod files;
mod group;
mod hosts;
mod once;
mod pages;
mod serving;
mod state;
mod tls;
mod token;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_xds::serve::{Ca, Server};
use tokio::net::TcpListener;

pub use crate::args::{Args, complain, init_logging};
use crate::args::{Command, Serve, WorkloadCommand};
use crate::state::State;

/// What went wrong.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Does what the command line asks for.
///
/// # Errors
///
/// What is wrong with the command line, the files or the address, or what failed.
pub async fn run(args: &Args) -> Result<(), BoxError> {
    match &args.command {
        Some(Command::Workload(WorkloadCommand::Configure(of))) => configure::run(args, of),
        None if args.serve.once => once::run(&args.serve).await,
        None => stay_up(args).await,
    }
}

/// Serves until Ctrl-C or SIGTERM.
async fn stay_up(args: &Args) -> Result<(), BoxError> {
    let told = told_to_end()?;
    let running = serve(&args.serve, &args.state, &args.trust_domain).await?;
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
    told.await;
    Ok(())
}

/// Until Ctrl-C, or until SIGTERM: what Kubernetes sends some time before it kills. Both are heard from this call on.
fn told_to_end() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// A control plane that serves, for as long as the runtime lives.
pub struct Running {
    server: Server,
    address: SocketAddr,
    state: PathBuf,
    tokens: token::Tokens,
    problems: files::Problems,
}

/// Serves the manifests in `config`, which are watched, on a port of this machine that is free. The folder
/// `state`, made when absent, keeps the root certificate, its key and the key of tokens.
///
/// # Errors
///
/// The files cannot be read, or the folder cannot be used.
pub async fn start(config: &Path, state: &Path, trust_domain: &str) -> Result<Running, BoxError> {
    serve(&Serve::on_a_free_port(config), state, trust_domain).await
}

impl Running {
    /// Where discovery and certificates are served, over TLS.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The file with the root certificate, by which clients know this control plane and each other.
    pub fn root_cert_file(&self) -> PathBuf {
        self.state.join(state::ROOT)
    }

    /// A token with which its holder becomes a service account.
    pub fn token(&self, namespace: &str, account: &str, lifetime: Duration) -> String {
        self.tokens.issue(namespace, account, lifetime)
    }

    /// What is wrong with the manifests as they are now; the last good versions are served.
    pub fn problems(&self) -> Vec<String> {
        self.problems.get()
    }

    /// What is served, and to whom.
    pub fn server(&self) -> &Server {
        &self.server
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running")
            .field("address", &self.address)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

async fn serve(args: &Serve, folder: &Path, trust_domain: &str) -> Result<Running, BoxError> {
    let state = State::open(folder, trust_domain)?;
    let ca = Ca::new(&state.root, &state.key)?;
    let tls = tls::config(&state, &args.server_name)?;
    let tokens = state.tokens.clone();
    let server = Server::builder(state.tokens)
        .ca(ca)
        .registration_grace(Duration::from_secs(args.registration_grace))
        .host_return(Duration::from_secs(args.host_return))
        .build();
    let problems = files::load_and_watch(&args.config()?, trust_domain, server.clone())?;
    let listener = bind("--listen", args.listen).await?;
    let address = listener.local_addr()?;
    let age = Duration::from_secs(args.max_connection_age);
    tokio::spawn(serving::serve(
        listener,
        Arc::new(tls),
        server.service(),
        age,
    ));
    Ok(Running {
        server,
        address,
        state: folder.to_owned(),
        tokens,
        problems,
    })
}

async fn bind(flag: &str, address: SocketAddr) -> Result<TcpListener, BoxError> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|error| format!("{flag} {address}: {error}").into())
}
