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
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh_xds::serve::{Ca, Server};
use tokio::net::{TcpListener, TcpSocket};

pub use crate::args::{Args, complain, init_logging};
use crate::args::{Command, Serve, WorkloadCommand};
use crate::files::{Files, Problems};
use crate::pages::Pages;
use crate::state::State;

/// Connections that wait to be accepted; as tokio has it.
const BACKLOG: u32 = 1024;

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
    let mut told = pin!(told_to_end()?);
    let prepared = prepare(&args.serve, &args.state, &args.trust_domain).await?;
    let up = Arc::new(AtomicBool::new(false));
    if let Some(address) = args.serve.http {
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|error| format!("--http {address}: {error}"))?;
        args::say(&format!(
            "its clients:  http://{}/debug/syncz",
            listener.local_addr()?
        ));
        let pages = Pages {
            server: prepared.server.clone(),
            problems: prepared.files.problems.clone(),
            up: Arc::clone(&up),
        };
        tokio::spawn(pages::serve(listener, pages));
    }
    if !prepared.files.are_complete() {
        complain("nothing is served until this is right; clients keep what they have");
    }
    let running = tokio::select! {
        running = prepared.serve() => running?,
        () = told.as_mut() => return Ok(()),
    };
    up.store(true, Ordering::Relaxed);
    args::say(&format!(
        "serving {} resources on {}",
        running.server.resources(),
        running.address
    ));
    told.await;
    Ok(())
}

/// Until Ctrl-C, or until SIGTERM: what Kubernetes sends some time before it kills. Both are heard from this call on.
///
/// # Errors
///
/// No signals can be heard.
pub fn told_to_end() -> std::io::Result<impl Future<Output = ()>> {
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
    problems: Problems,
}

/// Serves the manifests in `config`, which are watched, on a port of this machine that is free. The folder
/// `state`, made when absent, keeps the root certificate, its key and the key of tokens.
///
/// # Errors
///
/// The files cannot be read, one of them is wrong as a whole or there is nothing in them, with file, line and
/// field; or the folder cannot be used.
pub async fn start(config: &Path, state: &Path, trust_domain: &str) -> Result<Running, BoxError> {
    let prepared = prepare(&Serve::on_a_free_port(config), state, trust_domain).await?;
    if !prepared.files.are_complete() {
        return Err(prepared.files.problems.get().join("; ").into());
    }
    prepared.serve().await
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

/// All but the port at which clients call: open, it would promise answers.
struct Prepared {
    server: Server,
    tls: rustls::ServerConfig,
    socket: TcpSocket,
    address: SocketAddr,
    age: Duration,
    state: PathBuf,
    tokens: token::Tokens,
    files: Files,
}

async fn prepare(args: &Serve, folder: &Path, trust_domain: &str) -> Result<Prepared, BoxError> {
    let state = State::open(folder, trust_domain)?;
    let ca = Ca::new(&state.root, &state.key)?;
    let tls = tls::config(&state, &args.server_name)?;
    let tokens = state.tokens.clone();
    let server = Server::builder(state.tokens)
        .ca(ca)
        .registration_grace(Duration::from_secs(args.registration_grace))
        .host_return(Duration::from_secs(args.host_return))
        .build();
    let socket = bind(args.listen).map_err(|error| format!("--listen {}: {error}", args.listen))?;
    let config = args.config()?;
    let files = files::load_and_watch(&config, trust_domain, args.allow_empty, server.clone());
    Ok(Prepared {
        address: socket.local_addr()?,
        files: files.await?,
        age: Duration::from_secs(args.max_connection_age),
        state: folder.to_owned(),
        server,
        tls,
        socket,
        tokens,
    })
}

impl Prepared {
    /// Serves once there is all that is to be served.
    async fn serve(mut self) -> Result<Running, BoxError> {
        self.files.completed().await?;
        let listener = self.socket.listen(BACKLOG);
        let listener = listener.map_err(|error| format!("--listen {}: {error}", self.address))?;
        tokio::spawn(serving::serve(
            listener,
            Arc::new(self.tls),
            self.server.clone(),
            self.age,
        ));
        Ok(Running {
            server: self.server,
            address: self.address,
            state: self.state,
            tokens: self.tokens,
            problems: self.files.problems,
        })
    }
}

/// Takes an address, and refuses connections still.
fn bind(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // As tokio's listeners: connections of the process before may linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}
