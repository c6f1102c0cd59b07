//! The command line and the environment: read here and nowhere else.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// Paired runs with real peers.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// HTTP requests over kept connections: no mesh, bare mutual TLS, CONNECT by h2 alone, the SDK at both ends, two
    /// ztunnels, two Envoys. Takes root.
    Requests(Requests),
    /// New tunnels against bare handshakes with certificates on both sides.
    Handshakes(Handshakes),
    /// A mesh of any size: what a member and a ztunnel need to be ready, and to stay current. Takes root.
    Scale(Scale),
    /// Live tunnels that policy or a CRL refuses from now on: how long until each is cut.
    Revocation(Revocation),
    /// New tunnels while handshakes are held half open.
    HalfOpen(HalfOpen),
    /// New tunnels, and bytes on those that live, while one connection floods.
    Flood(Flood),
    /// A server under load for long, while its certificate is renewed, its policies change, and clients are refused: what
    /// grows.
    Soak(Soak),
    /// A role: an HTTP server.
    #[command(hide = true)]
    Serve(Serve),
    /// A role: clients of an HTTP server, told by lines on standard input.
    #[command(hide = true)]
    Load(Load),
    /// A role: the control plane.
    #[command(hide = true)]
    Control(Control),
    /// A role: a member that echoes, told of changes of its policies by lines on standard input.
    #[command(hide = true)]
    Echo(Echo),
    /// A role: clients with tunnels that live, told by lines on standard input.
    #[command(hide = true)]
    Held(Held),
    /// A role: clients that begin handshakes and do not end them.
    #[command(hide = true)]
    Silent(Silent),
    /// A role: a client that floods, told by lines on standard input.
    #[command(hide = true)]
    Flooding(Flooding),
    /// A role: clients with new tunnels, told by lines on standard input.
    #[command(hide = true)]
    Newcomers(Newcomers),
    /// A role: clients that policy refuses, told by lines on standard input.
    #[command(hide = true)]
    Refused(Refused),
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Revocation {
    /// How many rounds are counted, after one that warms up.
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,

    /// How many tunnels live; half of them are affected.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) tunnels: usize,

    /// How many TLS connections they are on.
    #[arg(long, default_value_t = 100)]
    pub(crate) connections: usize,

    /// Only changes whose name has this in it.
    #[arg(long, default_value = "")]
    pub(crate) only: String,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct HalfOpen {
    /// How many rounds are counted.
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: usize,

    /// How many connections hold a handshake half open.
    #[arg(long, default_value_t = 16_000)]
    pub(crate) count: usize,

    /// How many of those that the server closes are opened again, per second.
    #[arg(long, default_value_t = 500)]
    pub(crate) again: u64,

    /// How many new tunnels per second are measured.
    #[arg(long, default_value_t = 100)]
    pub(crate) rate: u64,

    /// How long they are measured each time, in milliseconds.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) millis: u64,

    /// Only attacks whose name has this in it.
    #[arg(long, default_value = "")]
    pub(crate) only: String,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Echo {
    /// The folder of the member's files.
    #[arg(long)]
    pub(crate) folder: PathBuf,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Held {
    /// The folder of the clients' files.
    #[arg(long)]
    pub(crate) folder: PathBuf,
    /// Tunnels of each of the two clients.
    #[arg(long)]
    pub(crate) tunnels: usize,
    /// TLS connections of each of them.
    #[arg(long)]
    pub(crate) connections: usize,
}

/// How far a handshake goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stop {
    /// A connection, and nothing on it.
    Nothing,
    /// Half of a ClientHello, and a byte more every second.
    Half,
    /// A ClientHello, and nothing after it.
    Hello,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Silent {
    /// The folder of the files of who would be the client.
    #[arg(long)]
    pub(crate) folder: PathBuf,
    #[arg(long)]
    pub(crate) stop: Stop,
    #[arg(long)]
    pub(crate) count: usize,
    /// From how many source addresses.
    #[arg(long)]
    pub(crate) sources: usize,
    /// How many are opened again, per second.
    #[arg(long)]
    pub(crate) again: u64,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Flood {
    /// How many rounds are counted.
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: usize,

    /// How many new tunnels per second are measured.
    #[arg(long, default_value_t = 50)]
    pub(crate) rate: u64,

    /// How many bytes per second go there and back on tunnels that live.
    #[arg(long, default_value_t = 500)]
    pub(crate) kept: u64,

    /// How long each is measured, in milliseconds.
    #[arg(long, default_value_t = 3_000)]
    pub(crate) millis: u64,

    /// Only floods whose name has this in it.
    #[arg(long, default_value = "")]
    pub(crate) only: String,

    /// The attacker has the last core to itself, and the server and who is measured share the others: what is lost then is
    /// what the server does for the attacker.
    #[arg(long)]
    pub(crate) apart: bool,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Soak {
    /// For how long, in seconds. In less, what clients keep to be used again may count as growth.
    #[arg(long, default_value_t = 600)]
    pub(crate) seconds: usize,

    /// How many new tunnels per second.
    #[arg(long, default_value_t = 50)]
    pub(crate) rate: u64,

    /// How many bytes per second go there and back on tunnels that live.
    #[arg(long, default_value_t = 200)]
    pub(crate) kept: u64,

    /// How many times per second a client that no policy admits asks for a tunnel.
    #[arg(long, default_value_t = 50)]
    pub(crate) refused: u64,

    /// How many MB of memory more an hour a process may certainly have.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) memory: f64,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Flooding {
    /// The folder of the client's files.
    #[arg(long)]
    pub(crate) folder: PathBuf,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Newcomers {
    /// The folder of the client's files.
    #[arg(long)]
    pub(crate) folder: PathBuf,
    /// How many per second.
    #[arg(long)]
    pub(crate) rate: u64,
    /// Not new ones: a byte each way on tunnels that live.
    #[arg(long)]
    pub(crate) kept: bool,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Refused {
    /// The folder of the clients' files.
    #[arg(long)]
    pub(crate) folder: PathBuf,
    /// How many times per second one asks.
    #[arg(long)]
    pub(crate) rate: u64,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Requests {
    /// How many rounds are counted, after one that warms up.
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,

    /// How long each deployment is measured in a round, in milliseconds.
    #[arg(long, default_value_t = 2_000)]
    pub(crate) millis: u64,

    /// How many connections there are; each has one request on its way.
    #[arg(long, default_value_t = 32)]
    pub(crate) connections: usize,

    /// istio/ztunnel; else what PEER_ZTUNNEL names, else it is left out.
    #[arg(long)]
    pub(crate) ztunnel: Option<PathBuf>,

    /// Envoy; else what PEER_ENVOY names, else it is left out.
    #[arg(long)]
    pub(crate) envoy: Option<PathBuf>,

    /// Only deployments whose name has this in it, and the one without a mesh.
    #[arg(long, default_value = "")]
    pub(crate) only: String,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Handshakes {
    /// How many rounds are counted, after one that warms up.
    #[arg(long, default_value_t = 9)]
    pub(crate) rounds: usize,

    /// How many connections each way of making them makes in a round.
    #[arg(long, default_value_t = 2_000)]
    pub(crate) count: usize,

    /// How many are on their way at once.
    #[arg(long, default_value_t = 8)]
    pub(crate) at_once: usize,

    /// Nothing is remembered of a peer: each tunnel is with one that was never seen before.
    #[arg(long)]
    pub(crate) strangers: bool,

    /// Only the ways of making them whose name has this in it: for a profile of one.
    #[arg(long, default_value = "")]
    pub(crate) only: String,
}

/// How an application reaches another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Road {
    /// TCP; a mesh, if any, is not the application's business.
    Plain,
    /// Mutual TLS by tokio-rustls, and nothing else.
    Tls,
    /// CONNECT streams by h2 on one such connection.
    Connect,
    /// `Mesh::connect` to `Mesh::listen`: L4, as ztunnel has it.
    Tunnel,
    /// `Mesh::http_client` to `Mesh::listen_http`: L7, as Envoy has it.
    Http,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Serve {
    #[arg(long)]
    pub(crate) road: Road,
    /// Where it listens; of a member of the mesh only the port counts.
    #[arg(long)]
    pub(crate) listen: SocketAddr,
    /// The folder of the server's files.
    #[arg(long)]
    pub(crate) folder: Option<PathBuf>,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Load {
    #[arg(long)]
    pub(crate) road: Road,
    #[arg(long)]
    pub(crate) to: SocketAddr,
    /// The folder of the client's files.
    #[arg(long)]
    pub(crate) folder: Option<PathBuf>,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Control {
    #[arg(long)]
    pub(crate) listen: SocketAddr,
    /// The folder of the root and its key.
    #[arg(long)]
    pub(crate) folder: PathBuf,
    /// How many workloads there are beside the client's and the server's.
    #[arg(long, default_value_t = 0)]
    pub(crate) workloads: u32,
    /// How many services they are behind.
    #[arg(long, default_value_t = 0)]
    pub(crate) services: u32,
}

/// New connections to a service, told by lines on standard input.
#[derive(Debug, Parser)]
pub(crate) struct Reach {
    #[arg(long)]
    pub(crate) road: Road,
    #[arg(long)]
    pub(crate) to: SocketAddr,
    /// The control plane of a member.
    #[arg(long)]
    pub(crate) control: SocketAddr,
    /// The folder of the member's files.
    #[arg(long)]
    pub(crate) folder: PathBuf,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Scale {
    /// How many rounds are counted.
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: usize,

    /// How many workloads there are.
    #[arg(long, default_value_t = 100_000)]
    pub(crate) workloads: u32,

    /// How many services there are.
    #[arg(long, default_value_t = 6_000)]
    pub(crate) services: u32,

    /// How many times one workload changes, in each round.
    #[arg(long, default_value_t = 5)]
    pub(crate) changes: usize,

    /// How many times all workloads change, in the last round, while connections are made.
    #[arg(long, default_value_t = 40)]
    pub(crate) pushes: usize,

    /// The control plane gives way to all others while it pushes: elsewhere it has a machine of its own.
    #[arg(long)]
    pub(crate) aside: bool,

    /// istio/ztunnel; else what PEER_ZTUNNEL names, else it is left out.
    #[arg(long)]
    pub(crate) ztunnel: Option<PathBuf>,
}

/// A peer's program: the flag, or else the variable.
#[expect(
    clippy::disallowed_methods,
    reason = "peers are named by the environment"
)]
pub(crate) fn peer(flag: Option<&PathBuf>, variable: &str) -> Option<PathBuf> {
    let named = || std::env::var_os(variable).map(PathBuf::from);
    flag.cloned().or_else(named)
}

/// Prints a line. A reader who went away is no reason to end.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Prints a line to standard error.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
