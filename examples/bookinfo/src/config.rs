//! The command line and the environment: read here and nowhere else.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use mesh_core::identity::DevCa;
use tracing_subscriber::EnvFilter;

use crate::BoxError;
use crate::source::Source;

/// Bookinfo, each service a member of the mesh: identities, tunnels, policies, no proxy, no root.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Args {
    /// Play the scenes, say what each showed, and exit: 0 when all held, 1 otherwise.
    #[arg(long)]
    pub(crate) once: bool,

    /// Bring a control plane along that serves the manifests: configuration and certificates come from it.
    #[arg(long)]
    pub(crate) control_plane: bool,

    /// The manifests to read and watch [default: the bookinfo.yaml beside this package]
    #[arg(long, global = true)]
    file: Option<PathBuf>,

    /// The folder of the development CA, created when absent, shared by processes.
    #[arg(long, global = true, default_value = ".mesh-dev")]
    ca_dir: PathBuf,

    /// Where to answer questions about the mesh (loopback only: nobody has to say who they are), or `off`.
    #[arg(long, default_value = "127.0.0.1:15000")]
    admin: String,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run one service as a process of its own.
    Serve {
        /// One of productpage-v1, details-v1, reviews-v1, reviews-v2, reviews-v3, ratings-v1.
        service: String,
    },
}

impl Args {
    pub(crate) fn file(&self) -> Result<PathBuf, BoxError> {
        let file = match &self.file {
            Some(file) => file.clone(),
            None => shipped_file(),
        };
        if file.exists() {
            Ok(file)
        } else {
            Err(format!(
                "--file {}: expected a file or folder of manifests that exists",
                file.display()
            )
            .into())
        }
    }

    /// The address of the admin service, unless it is off.
    pub(crate) fn admin(&self) -> Result<Option<SocketAddr>, BoxError> {
        if self.admin == "off" {
            return Ok(None);
        }
        let address = self
            .admin
            .parse()
            .map_err(|_| format!("--admin {}: expected ip:port, or off", self.admin))?;
        Ok(Some(address))
    }

    /// Where configuration and certificates come from.
    pub(crate) async fn source(&self) -> Result<Source, BoxError> {
        let file = self.file()?;
        if self.control_plane && self.command.is_some() {
            let expected = "--control-plane: expected all services in one process, found `serve`";
            return Err(expected.into());
        }
        if self.control_plane {
            return Source::control_plane(&file).await;
        }
        Ok(Source::files(file, self.identity()))
    }

    fn identity(&self) -> DevCa {
        DevCa::in_dir(&self.ca_dir, "cluster.local")
    }
}

/// The manifests that come with the example.
pub(crate) fn shipped_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("bookinfo.yaml")
}

/// Prints a line. A reader who went away is no reason to end.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Logs to standard error: warnings, or what `RUST_LOG` asks for.
///
/// The scenes provoke all that is worth a warning, and tell of it themselves.
pub(crate) fn init_logging(scenes: bool) {
    let usual = if scenes {
        "error,mesh::access=off"
    } else {
        "warn,mesh::config=info,mesh::access=off"
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(usual));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
}
