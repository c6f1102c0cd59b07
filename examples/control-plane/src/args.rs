//! The command line and the environment: read here and nowhere else.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Args as _, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, value_parser};
use tracing_subscriber::EnvFilter;

use crate::BoxError;

/// Half an hour, as istiod's chart has it.
const MAX_CONNECTION_AGE: u64 = 1800;

/// As istiod has it.
const REGISTRATION_GRACE: u64 = 10;

/// Twice the longest wait of a client between its attempts.
const HOST_RETURN: u64 = 30;

/// A control plane on one machine: discovery and certificates out of files.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// The folder of the root certificate, its key and the key of tokens; created when absent.
    #[arg(long, global = true, default_value = ".mesh-control-plane")]
    pub(crate) state: PathBuf,

    /// The trust domain of identities.
    #[arg(long, global = true, default_value = "cluster.local")]
    pub(crate) trust_domain: String,

    #[command(flatten)]
    pub(crate) serve: Serve,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

impl Args {
    /// Reads a command line: what is for serving is for nothing else, what is for all may come before or after
    /// the command.
    ///
    /// # Errors
    ///
    /// When it says what there is not; the error exits as clap has it.
    pub fn read(
        given: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Self, clap::Error> {
        let matches = Self::command().try_get_matches_from(given)?;
        let args = Self::from_arg_matches(&matches)?;
        let serve = Serve::augment_args(clap::Command::default());
        let of_serving = serve.get_arguments().map(|one| one.get_id().as_str());
        let mut said = of_serving
            .filter(|id| matches.value_source(id) == Some(ValueSource::CommandLine))
            .map(|id| format!("--{}", id.replace('_', "-")));
        match said.next().filter(|_| args.command.is_some()) {
            Some(said) => {
                let text = format!("{said} before a command: expected it without one, to serve");
                Err(Self::command().error(clap::error::ErrorKind::ArgumentConflict, text))
            }
            None => Ok(args),
        }
    }
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Serve {
    /// The file or folder of manifests to serve and watch.
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,

    /// Serve even if the manifests have nothing to serve: clients are told that all is gone.
    #[arg(long)]
    pub(crate) allow_empty: bool,

    /// Where to serve discovery and certificates, over TLS.
    #[arg(long, default_value = "127.0.0.1:15012")]
    pub(crate) listen: SocketAddr,

    /// Another name or address of this server, beside istiod.istio-system.svc and those of this machine.
    #[arg(long)]
    pub(crate) server_name: Vec<String>,

    /// Where to answer about clients, in plaintext: nobody has to say who they are.
    #[arg(long)]
    pub(crate) http: Option<SocketAddr>,

    /// After how many seconds, a tenth more or less, clients have to connect anew; at least 1.
    #[arg(long, default_value_t = MAX_CONNECTION_AGE, value_parser = value_parser!(u64).range(1..))]
    pub(crate) max_connection_age: u64,

    /// For how many seconds the entry of a host stays that has no stream any more.
    #[arg(long, default_value_t = REGISTRATION_GRACE)]
    pub(crate) registration_grace: u64,

    /// For how many seconds after the start hosts are waited for that were here before it.
    #[arg(long, default_value_t = HOST_RETURN)]
    pub(crate) host_return: u64,

    /// Start, join a client, print what it was served, and exit: 0 when it was all of it, 1 otherwise.
    #[arg(long)]
    pub(crate) once: bool,
}

impl Serve {
    pub(crate) fn on_a_free_port(config: &Path) -> Self {
        Self {
            config: Some(config.to_owned()),
            allow_empty: false,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            server_name: Vec::new(),
            http: None,
            max_connection_age: MAX_CONNECTION_AGE,
            registration_grace: REGISTRATION_GRACE,
            host_return: HOST_RETURN,
            once: false,
        }
    }

    pub(crate) fn config(&self) -> Result<PathBuf, BoxError> {
        let path = match &self.config {
            Some(path) => path.clone(),
            None if self.once => Path::new(env!("CARGO_MANIFEST_DIR")).join("mesh.yaml"),
            None => return Err("--config: expected a file or folder of manifests".into()),
        };
        if path.exists() {
            Ok(path)
        } else {
            let path = path.display();
            Err(format!("--config {path}: expected a file or folder that exists").into())
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Prepare hosts to join.
    #[command(subcommand)]
    Workload(WorkloadCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum WorkloadCommand {
    /// Write the files with which a host joins: cluster.env, mesh.yaml, root-cert.pem, istio-token, hosts.
    Configure(Configure),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Configure {
    /// The namespace of the host's WorkloadGroup.
    #[arg(long, short)]
    pub(crate) namespace: String,

    /// The name of the host's WorkloadGroup.
    #[arg(long)]
    pub(crate) name: String,

    /// The manifests with the group, of which the host is told labels, ports and probe.
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,

    /// The service account that the host becomes; default: the group's, else "default".
    #[arg(long)]
    pub(crate) service_account: Option<String>,

    /// The folder to write to; created when absent.
    #[arg(long, short)]
    pub(crate) output: PathBuf,

    /// The address at which the host reaches this control plane.
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) ingress_ip: IpAddr,

    /// The port at which the host reaches this control plane.
    #[arg(long, default_value_t = 15012)]
    pub(crate) ingress_port: u16,

    /// The host's own address, where it cannot find it out.
    #[arg(long)]
    pub(crate) internal_ip: Option<IpAddr>,

    /// The cluster that the host belongs to.
    #[arg(long, default_value = "Kubernetes")]
    pub(crate) cluster_id: String,

    /// The network that the host is in.
    #[arg(long, default_value = "")]
    pub(crate) network: String,

    /// How long the token is valid, in seconds.
    #[arg(long, default_value_t = 3600)]
    pub(crate) token_duration: u64,

    /// Ask for registration when the host connects.
    #[arg(long)]
    pub(crate) autoregister: bool,
}

/// Prints a line. A reader who went away is no reason to end.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Prints a line to standard error.
pub fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Logs to standard error: warnings, or what `RUST_LOG` asks for.
pub fn init_logging() {
    let filter = EnvFilter::try_from_default_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| EnvFilter::new("warn")))
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_all_commands_comes_before_or_after_them() {
        let configure = [
            "workload",
            "configure",
            "-n",
            "bank",
            "--name",
            "x",
            "-o",
            "y",
        ];
        let read = |before: &[&str], after: &[&str]| {
            let program = ["control-plane"];
            let given = [&program[..], before, &configure, after].concat();
            Args::read(given)
        };
        let state = ["--state", "here"];
        for args in [read(&state, &[]), read(&[], &state)] {
            assert_eq!(args.unwrap().state, Path::new("here"));
        }
        let error = read(&["--host-return", "3"], &[]).unwrap_err().to_string();
        assert!(error.contains("--host-return before a command"), "{error}");
    }

    #[test]
    fn connections_that_end_as_they_begin_are_refused() {
        let age = |seconds: &str| {
            let given = [
                "control-plane",
                "--config",
                "x",
                "--max-connection-age",
                seconds,
            ];
            Args::read(given)
        };
        let error = age("0").unwrap_err().to_string();
        assert!(
            error.contains("--max-connection-age") && error.contains("1.."),
            "{error}"
        );
        age("1").unwrap();
    }
}
