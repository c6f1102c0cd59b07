//! A mesh on loopback addresses: configuration given in code, certificates from an ephemeral authority.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_core::authz::policy::istio::{AuthorizationPolicy, Rule};
use mesh_core::authz::policy::{Action, TrustDomains};
use mesh_core::config::{ConfigLink, ConfigSource};
use mesh_core::hbone::client::{self, ConnectRequest, Sender};
use mesh_core::hbone::headers::ConnectHeaders;
use mesh_core::hbone::tls::{self, Bundle, Credentials, Options, Provider};
use mesh_core::hbone::{config::Config, server};
use mesh_core::identity::{CertificateSource, DevCa};
use mesh_core::xds::model::{
    AttachedPolicy, Batch, Membership, NetworkAddress, Port, ResourceName, Scope, Service,
    ServiceName, TunnelProtocol, Update, Verdict, Workload,
};
use mesh_core::{Builder, Error, Mesh, MeshListener, MeshStream, Missing, Node};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};

/// Batches of a test, each answered with its verdicts.
pub(crate) struct Batches(mpsc::UnboundedReceiver<Batch>);

impl ConfigSource for Batches {
    async fn run(mut self, link: ConfigLink) -> Result<(), Error> {
        while let Some(batch) = self.0.recv().await {
            link.apply(batch)?;
        }
        Ok(())
    }
}

/// Where a test's configuration comes from.
pub(crate) struct Control(mpsc::UnboundedSender<Batch>);

impl Control {
    pub(crate) fn new() -> (Self, Batches) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), Batches(receiver))
    }

    /// Applies a batch; it is in effect when this returns.
    pub(crate) async fn apply(
        &self,
        updates: Vec<Update>,
        removed: Vec<ResourceName>,
    ) -> Vec<Verdict> {
        let (answer, answered) = oneshot::channel();
        let batch = Batch::new(updates, removed).with_reply(|verdicts| {
            let _ = answer.send(verdicts);
        });
        assert!(self.0.send(batch).is_ok(), "the node has gone");
        answered.await.unwrap()
    }

    /// Whether the node has gone.
    pub(crate) fn is_unwanted(&self) -> bool {
        self.0.is_closed()
    }

    pub(crate) async fn set(&self, updates: Vec<Update>) {
        for verdict in self.apply(updates, Vec::new()).await {
            verdict.result().unwrap();
        }
    }
}

/// The port that all services have.
pub(crate) const PORT: u16 = 9080;

/// A node whose workloads have addresses 127.`net`.0.x.
pub(crate) struct World {
    pub(crate) node: Node,
    pub(crate) control: Control,
    pub(crate) ca: DevCa,
    net: u8,
}

pub(crate) type Settings = Builder<Missing, Missing, Missing>;

impl World {
    pub(crate) fn new(net: u8) -> Self {
        Self::with(net, |settings| settings)
    }

    pub(crate) fn with(net: u8, set: impl FnOnce(Settings) -> Settings) -> Self {
        Self::with_ca(net, DevCa::ephemeral("cluster.local"), set)
    }

    pub(crate) fn with_ca(net: u8, ca: DevCa, set: impl FnOnce(Settings) -> Settings) -> Self {
        Self::with_source(net, ca.clone(), ca, set)
    }

    /// With certificates that come from elsewhere, though `ca` issues them.
    pub(crate) fn with_source(
        net: u8,
        ca: DevCa,
        source: impl CertificateSource,
        set: impl FnOnce(Settings) -> Settings,
    ) -> Self {
        let (control, batches) = Control::new();
        let builder = set(Node::builder()).config(batches).identity(source);
        Self {
            node: builder.build_node().unwrap(),
            control,
            ca,
            net,
        }
    }

    pub(crate) fn ip(&self, host: u8) -> IpAddr {
        IpAddr::from([127, self.net, 0, host])
    }

    /// The virtual address of a service, where nobody listens.
    pub(crate) fn vip(&self, host: u8) -> IpAddr {
        IpAddr::from([240, self.net, 0, host])
    }

    /// A workload `name` with the service account `name`, in the service `name`.
    pub(crate) fn workload(&self, name: &str, host: u8) -> Workload {
        Workload::new(format!("uid/{name}"), "default", name)
            .with_addresses(vec![self.ip(host)])
            .with_service_account(name)
            .with_workload_name(name)
            .with_canonical_name(name)
            .with_canonical_revision("v1")
            .with_protocol(TunnelProtocol::Hbone)
            .with_services(vec![Membership::new(service_name(name))])
    }

    pub(crate) fn service(&self, name: &str, host: u8) -> Service {
        Service::new(service_name(name))
            .with_object_name(name)
            .with_addresses(vec![NetworkAddress::new("", self.vip(host))])
            .with_ports(vec![Port::new(PORT).with_target_port(PORT)])
    }

    /// A client and a server, known to the configuration.
    pub(crate) async fn pair(&self) -> (Mesh, Mesh) {
        self.control
            .set(vec![
                self.workload("client", 1).into(),
                self.workload("server", 2).into(),
                self.service("server", 2).into(),
            ])
            .await;
        (self.mesh("client"), self.mesh("server"))
    }

    pub(crate) fn mesh(&self, name: &str) -> Mesh {
        self.node.workload("default", name, name).unwrap()
    }

    /// A bare HBONE client with the identity of `account`, connected to the workload at `host`.
    pub(crate) async fn bare_client(&self, account: &str, host: u8, expected: &str) -> Sender {
        let credentials = self.credentials(account).await;
        let io = tokio::net::TcpStream::connect(SocketAddr::new(self.ip(host), 15008));
        let expected = [identity(expected)];
        let stream = tls::connect(io.await.unwrap(), &credentials, &expected)
            .await
            .unwrap();
        let (connection, sender) = client::handshake(stream, &Config::default()).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    pub(crate) async fn credentials(&self, account: &str) -> Credentials {
        let bundle: Bundle = self.ca.issue(identity(account)).await.unwrap();
        Credentials::new(Provider::by_feature().unwrap(), bundle, Options::default()).unwrap()
    }

    /// A bare HBONE server at `host` that says which authority was asked for, then echoes.
    pub(crate) async fn bare_server(
        &self,
        account: &str,
        host: u8,
    ) -> mpsc::UnboundedReceiver<String> {
        let credentials = self.credentials(account).await;
        let listener = tokio::net::TcpListener::bind(SocketAddr::new(self.ip(host), 15008))
            .await
            .unwrap();
        let (asked, asks) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                let stream = tls::accept(io, &credentials).await.unwrap();
                let mut connection = server::handshake(stream, &Config::default());
                let asked = asked.clone();
                tokio::spawn(async move {
                    while let Some(Ok(incoming)) = connection.accept().await {
                        let _ = asked.send(incoming.authority().to_string());
                        let mut tunnel = incoming.accept(None).unwrap();
                        tokio::spawn(async move {
                            let mut said = Vec::new();
                            tunnel.read_to_end(&mut said).await.unwrap();
                            tunnel.write_all(&said).await.unwrap();
                            tunnel.shutdown().await.unwrap();
                        });
                    }
                });
            }
        });
        asks
    }
}

pub(crate) fn service_name(name: &str) -> ServiceName {
    ServiceName::new("default", format!("{name}.default.svc.cluster.local"))
}

pub(crate) fn identity(account: &str) -> mesh_core::authz::Identity {
    mesh_core::authz::Identity::new("cluster.local", "default", account).unwrap()
}

pub(crate) fn connect_to(authority: impl std::fmt::Display) -> ConnectRequest {
    ConnectRequest::new(
        format!("{authority}").parse().unwrap(),
        ConnectHeaders::default(),
    )
}

/// The status with which a tunnel is refused.
pub(crate) async fn refusal(sender: &Sender, authority: impl std::fmt::Display) -> u16 {
    let error = sender.connect(connect_to(authority)).await.unwrap_err();
    error
        .status()
        .unwrap_or_else(|| panic!("{error:?}"))
        .as_u16()
}

/// A policy `default/name` of the namespace.
pub(crate) fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Update {
    scoped_policy(name, action, rules, Scope::Namespace("default".into()))
}

pub(crate) fn scoped_policy(name: &str, action: Action, rules: Vec<Rule>, scope: Scope) -> Update {
    let mut policy = AuthorizationPolicy::new("default", name);
    policy.action = action;
    policy.rules = rules;
    let policy = policy.lower(&TrustDomains::default()).unwrap();
    AttachedPolicy::new(Arc::new(policy), scope).into()
}

/// A rule for callers with this service account.
pub(crate) fn caller(account: &str) -> Rule {
    crate::handler::from(|source| {
        source.principals = vec![format!("cluster.local/ns/default/sa/{account}")];
    })
}

/// Echoes every connection of a listener, each after its end.
pub(crate) fn echo(mut listener: MeshListener) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while let Ok(mut stream) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                loop {
                    match stream.read(&mut buffer).await {
                        Ok(0) => return stream.shutdown().await.unwrap_or_default(),
                        Ok(count) if stream.write_all(&buffer[..count]).await.is_ok() => {}
                        _ => return,
                    }
                }
            });
        }
    })
}

/// Says something and hears it again.
pub(crate) async fn ping(stream: &mut MeshStream) -> std::io::Result<()> {
    stream.write_all(b"ping").await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"ping");
    Ok(())
}

/// Waits for what another task brings about.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waits = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), waits).await;
    assert!(waited.is_ok(), "{what}");
}
