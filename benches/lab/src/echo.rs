//! The server: a member of the mesh that echoes on every tunnel, and whose policies change as it is told.
//!
//! On standard input: `deny` and `allow` add and remove a policy of the namespace that refuses the client `refused`;
//! `attach` and `detach` change the server's own record, so that it has a policy that is there already, or has not.
//! Each is answered by the time at which the change began and the milliseconds until it was in effect.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_authz::policy::istio::{AuthorizationPolicy, Rule, Source};
use mesh_authz::policy::{Action, PolicyName, TrustDomains};
use mesh_core::config::{ConfigLink, ConfigSource};
use mesh_core::{Error, Mesh, MeshStream};
use mesh_hbone::client::{self, ConnectRequest, Sender};
use mesh_hbone::config::Config;
use mesh_hbone::headers::ConnectHeaders;
use mesh_hbone::tls::{self, Credentials};
use mesh_hbone::{Error as HboneError, Tunnel};
use mesh_xds::model::{
    AttachedPolicy, Batch, ResourceName, Scope, TunnelProtocol, Update, Workload,
};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::args::{Echo, say};
use crate::certificates::{Root, identity};
use crate::{BoxError, Done, member};

/// Where the server is.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 77, 2);
const HBONE: u16 = 15008;
const PORT: u16 = 7070;

/// The client that policies refuse, and the one that they do not.
pub(crate) const REFUSED: &str = "refused";
pub(crate) const ADMITTED: &str = "admitted";

/// Writes the files of all members.
pub(crate) fn prepare(folder: &Path) -> Done {
    let root = Root::new()?;
    root.write(folder, SERVER.into())?;
    for account in ["server", REFUSED, ADMITTED] {
        root.write_member(folder, account)?;
    }
    Ok(())
}

/// Microseconds since 1970: what processes of one machine can compare.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO).as_micros() as u64
}

struct Told(mpsc::UnboundedReceiver<Batch>);

impl ConfigSource for Told {
    async fn run(mut self, link: ConfigLink) -> Result<(), Error> {
        while let Some(batch) = self.0.recv().await {
            link.apply(batch)?;
        }
        Ok(())
    }
}

fn server(policies: Vec<PolicyName>) -> Update {
    let workload = Workload::new("uid/server", "default", "server")
        .with_addresses(vec![SERVER.into()])
        .with_service_account("server")
        .with_protocol(TunnelProtocol::Hbone)
        .with_authorization_policies(policies);
    workload.into()
}

/// A DENY for the client that is refused.
fn deny(name: &str, scope: Scope) -> Result<Update, BoxError> {
    let mut source = Source::default();
    source.principals = vec![format!("cluster.local/ns/default/sa/{REFUSED}")];
    let mut policy = AuthorizationPolicy::new("default", name);
    policy.action = Action::Deny;
    let mut rule = Rule::default();
    rule.from = vec![source];
    policy.rules = vec![rule];
    let policy = policy.lower(&TrustDomains::default())?;
    Ok(AttachedPolicy::new(Arc::new(policy), scope).into())
}

pub(crate) async fn run(of: Echo) -> Done {
    let (changes, told) = mpsc::unbounded_channel();
    let mesh = Mesh::builder()
        .workload("default", "server", "server")
        .config(Told(told))
        .identity(member::files(&of.folder, "server"))
        .max_connections(30_000)
        .build()?;
    let attached = PolicyName::new("default", "attached");
    let namespace = || Scope::Namespace("default".into());
    let apply = async |updates: Vec<Update>, removed| -> Result<u64, BoxError> {
        let (answer, answered) = oneshot::channel();
        let batch = Batch::new(updates, removed).with_reply(|verdicts| {
            let _ = answer.send(verdicts);
        });
        let begin = now();
        changes
            .send(batch)
            .map_err(|_| "the configuration has ended")?;
        for verdict in answered.await? {
            verdict.result().map_err(ToString::to_string)?;
        }
        Ok(begin)
    };
    let first = vec![server(Vec::new()), deny("attached", Scope::Workload)?];
    apply(first, Vec::new()).await?;
    let mut listener = mesh.listen(PORT).await?;
    tokio::spawn(async move {
        while let Ok(stream) = listener.accept().await {
            tokio::spawn(echo(stream));
        }
    });
    say("ready");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let since = Instant::now();
        let begin = match line.as_str() {
            "deny" => apply(vec![deny("added", namespace())?], Vec::new()).await?,
            "allow" => {
                let name = PolicyName::new("default", "added");
                apply(Vec::new(), vec![ResourceName::Policy(name)]).await?
            }
            "attach" => apply(vec![server(vec![attached.clone()])], Vec::new()).await?,
            "detach" => apply(vec![server(Vec::new())], Vec::new()).await?,
            other => return Err(format!("no change {other:?}").into()),
        };
        say(&format!(
            "{begin} {:.3}",
            since.elapsed().as_secs_f64() * 1e3
        ));
    }
    Ok(())
}

async fn echo(mut stream: MeshStream) {
    let mut buffer = [0; 64];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    let _ = stream.shutdown().await;
}

/// A connection of a bare client to the server.
pub(crate) async fn connect(credentials: &Credentials) -> Result<Sender, BoxError> {
    let stream = TcpStream::connect((SERVER, HBONE)).await?;
    stream.set_nodelay(true)?;
    let expected = [identity("server").parse()?];
    let stream = tls::connect(stream, credentials, &expected).await?;
    let (connection, sender) = client::handshake(stream, &Config::default()).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// A tunnel on it that has echoed.
pub(crate) async fn tunnel(sender: &Sender) -> Result<Tunnel, BoxError> {
    let authority = SocketAddr::from((SERVER, PORT)).to_string();
    let authority = authority.parse().map_err(|error: HboneError| error)?;
    let request = ConnectRequest::new(authority, ConnectHeaders::default());
    let (mut tunnel, _) = sender.connect(request).await?;
    ping(&mut tunnel).await?;
    Ok(tunnel)
}

pub(crate) async fn ping(tunnel: &mut Tunnel) -> std::io::Result<()> {
    tunnel.write_all(b"x").await?;
    tunnel.read_u8().await?;
    Ok(())
}

/// Where handshakes go.
pub(crate) fn hbone() -> SocketAddr {
    SocketAddr::from((SERVER, HBONE))
}
