//! One try.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll};

use ::http::Uri;
use mesh_xds::grpc_health;
use mesh_xds::transport::Channel;
use tokio::net::{TcpStream, lookup_host};
use tokio::process::Command;
use tokio::time::timeout;
use tower_service::Service;

use super::{Check, Probe, Target, http};
use crate::node::report;

impl Probe {
    /// Tries once: `Err` says why the application is to get no traffic. `own` is the workload's address.
    pub(super) async fn attempt(&self, own: IpAddr) -> Result<(), String> {
        let limit = self.timing.timeout;
        let what = self.check.describe(own);
        let outcome = match timeout(limit, self.check.attempt(own)).await {
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

    async fn attempt(&self, own: IpAddr) -> Result<(), String> {
        match self {
            Self::Http {
                target,
                path,
                headers,
            } => {
                let io = target.connect(own).await?;
                let status = http::get(io, &target.authority(own), path, headers).await?;
                match (200..400).contains(&status) {
                    true => Ok(()),
                    false => Err(format!("status {status}")),
                }
            }
            Self::Tcp(target) => target.connect(own).await.map(drop),
            Self::Grpc { target, service } => serving(target, own, service).await,
            Self::Exec(command) => exec(command).await,
        }
    }
}

impl Target {
    fn authority(&self, own: IpAddr) -> String {
        match &self.host {
            Some(host) if host.contains(':') => format!("[{host}]:{}", self.port),
            Some(host) => format!("{host}:{}", self.port),
            None => SocketAddr::new(own, self.port).to_string(),
        }
    }

    async fn connect(&self, own: IpAddr) -> Result<TcpStream, String> {
        let connected = match &self.host {
            None => TcpStream::connect((own, self.port)).await,
            Some(host) => dial(host, self.port).await,
        };
        connected.map_err(|error| error.to_string())
    }
}

async fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in lookup_host((host, port)).await? {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn serving(target: &Target, own: IpAddr, service: &str) -> Result<(), String> {
    let text = |error: mesh_xds::Error| report(&error);
    let uri = Uri::try_from(format!("http://{}", target.authority(own)));
    let uri = uri.map_err(|error| error.to_string())?;
    let connector = Connector {
        target: target.clone(),
        own,
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
    own: IpAddr,
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
            let connected = this.target.connect(this.own).await;
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
        // The time-out drops it.
        .kill_on_drop(true);
    let status = command.status().await.map_err(|error| error.to_string())?;
    match status.success() {
        true => Ok(()),
        false => Err(status.to_string()),
    }
}
