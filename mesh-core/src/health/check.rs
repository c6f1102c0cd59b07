//! One try.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll};

use ::http::Uri;
use mesh_xds::grpc_health;
use mesh_xds::transport::Channel;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;
use tower_service::Service;

use super::{Check, Probe, Target, http};
use crate::node::report;

/// What a try needs of the workload.
#[derive(Clone)]
pub(super) struct Surroundings {
    /// The workload's address.
    pub(super) own: IpAddr,
    /// Looks up names, within the node's bounds.
    pub(super) look_up: LookUp,
}

/// The addresses of a host, or why there are none.
pub(super) type LookUp = Arc<dyn Fn(&str) -> Found + Send + Sync>;
pub(super) type Found = Pin<Box<dyn Future<Output = Result<Arc<[IpAddr]>, String>> + Send>>;

impl Probe {
    /// Tries once: `Err` says why the application is to get no traffic.
    pub(super) async fn attempt(&self, around: &Surroundings) -> Result<(), String> {
        let limit = self.timing.timeout;
        let what = self.check.describe(around.own);
        let outcome = match timeout(limit, self.check.attempt(around)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("no answer within {limit:?}")),
        };
        outcome.map_err(|why| format!("{what}: {why}"))
    }
}

impl Check {
    fn describe(&self, own: IpAddr) -> String {
        match self {
            Self::Http { target, path, .. } => {
                format!("GET http://{}{path}", target.authority(own))
            }
            Self::Tcp(target) => format!("TCP {}", target.authority(own)),
            Self::Grpc { target, service } => {
                format!("grpc.health.v1 {}/{service}", target.authority(own))
            }
            Self::Exec(command) => format!("exec {}", command.first().map_or("", |first| first)),
        }
    }

    async fn attempt(&self, around: &Surroundings) -> Result<(), String> {
        match self {
            Self::Http {
                target,
                path,
                headers,
            } => {
                let io = target.connect(around).await?;
                let status = http::get(io, &target.authority(around.own), path, headers).await?;
                match (200..400).contains(&status) {
                    true => Ok(()),
                    false => Err(format!("status {status}")),
                }
            }
            Self::Tcp(target) => target.connect(around).await.map(drop),
            Self::Grpc { target, service } => serving(target, around, service).await,
            Self::Exec(command) => exec(command).await,
        }
    }
}

impl Target {
    pub(super) fn authority(&self, own: IpAddr) -> String {
        match &self.host {
            Some(host) if host.contains(':') => format!("[{host}]:{}", self.port),
            Some(host) => format!("{host}:{}", self.port),
            None => SocketAddr::new(own, self.port).to_string(),
        }
    }

    async fn connect(&self, around: &Surroundings) -> Result<TcpStream, String> {
        let looked_up;
        let addresses = match self.host.as_deref().map(|host| (host, host.parse())) {
            None => std::slice::from_ref(&around.own),
            Some((_, Ok(address))) => &[address],
            Some((host, Err(_))) => {
                looked_up = (around.look_up)(host).await?;
                &*looked_up
            }
        };
        let mut last = "there is no address".to_owned();
        for address in addresses {
            match TcpStream::connect((*address, self.port)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }
}

async fn serving(target: &Target, around: &Surroundings, service: &str) -> Result<(), String> {
    let text = |error: mesh_xds::Error| report(&error);
    let uri = Uri::try_from(format!("http://{}", target.authority(around.own)));
    let uri = uri.map_err(|error| error.to_string())?;
    let connector = Connector {
        target: target.clone(),
        around: around.clone(),
    };
    let channel = Channel::builder(uri).build(connector).map_err(text)?;
    let status = grpc_health::check(&channel, service).await.map_err(text)?;
    match status.is_serving() {
        true => Ok(()),
        false => Err(status.to_string()),
    }
}

#[derive(Clone)]
struct Connector {
    target: Target,
    around: Surroundings,
}

impl Service<Uri> for Connector {
    type Response = TcpStream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let connected = this.target.connect(&this.around).await;
            connected.map_err(io::Error::other)
        })
    }
}

async fn exec(command: &[String]) -> Result<(), String> {
    let Some((program, arguments)) = command.split_first() else {
        return Err("there is no program".to_owned());
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    #[cfg(unix)]
    command.process_group(0);
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    // The time-out drops both, the group first: its number is nobody else's before the child was waited for.
    let group = Group::of(&child);
    let status = child.wait().await;
    group.has_ended();
    let status = status.map_err(|error| error.to_string())?;
    match status.success() {
        true => Ok(()),
        false => Err(status.to_string()),
    }
}

/// The processes that a program has started, itself included; dropping it kills them.
struct Group {
    #[cfg(unix)]
    leader: Option<rustix::process::Pid>,
}

#[cfg(unix)]
impl Group {
    fn of(child: &tokio::process::Child) -> Self {
        let leader = child.id().and_then(|id| i32::try_from(id).ok());
        Self {
            leader: leader.and_then(rustix::process::Pid::from_raw),
        }
    }

    /// What the program left running when it exited is meant to run.
    fn has_ended(mut self) {
        self.leader = None;
    }
}

#[cfg(unix)]
impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.leader {
            // They may all have ended.
            let _ = rustix::process::kill_process_group(leader, rustix::process::Signal::KILL);
        }
    }
}

#[cfg(not(unix))]
impl Group {
    fn of(_: &tokio::process::Child) -> Self {
        Self {}
    }

    fn has_ended(self) {}
}
