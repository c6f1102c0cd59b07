//! `--once`: a control plane on some port, a client that joins it, and what it was served.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use mesh_authz::Identity;
use mesh_xds::ads::{Client, Event, Interest, Node, Settings};
use mesh_xds::ca::{Client as CaClient, SigningRequest};
use mesh_xds::decode::{Decoder, ResourceType};
use mesh_xds::model::Verdict;
use mesh_xds::transport::Channel;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::args::Serve;
use crate::tls::SERVER_NAME;
use crate::{BoxError, args, start, tls};

const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn run(serve: &Serve) -> Result<(), BoxError> {
    let folder = tempfile::tempdir()?;
    // Any port: another may be running.
    let running = start(&serve.config()?, folder.path(), "cluster.local").await?;
    let token = running.token("default", "caller", PATIENCE * 2);
    let roots = std::fs::read_to_string(running.root_cert_file())?;
    args::say(&format!(
        "serving {} resources over TLS",
        running.server.resources()
    ));
    let channel = Channel::builder(format!("https://{SERVER_NAME}:15012").parse()?)
        .token(move || {
            let token = token.clone();
            async { Ok(Some(token)) }
        })
        .build(Connector::new(&roots, running.address)?)?;
    tokio::time::timeout(PATIENCE, join(channel, &running.server)).await?
}

async fn join(channel: Channel, server: &mesh_xds::serve::Server) -> Result<(), BoxError> {
    let identity = Identity::new("cluster.local", "default", "caller")?;
    let request = SigningRequest::new(&identity)?;
    let hour = Duration::from_secs(60 * 60);
    CaClient::new(channel.clone())
        .create(request.pem(), hour, None)
        .await?;
    args::say(&format!("a certificate of {identity}"));

    let node = Node::new("ztunnel~127.0.0.1~caller.default~default.svc.cluster.local")
        .with_metadata("NAMESPACE", "default");
    let types = [ResourceType::Address, ResourceType::Authorization];
    let settings = types
        .into_iter()
        .fold(Settings::new(node), |settings, kind| {
            settings.with_type(kind.url(), Interest::All)
        });
    let (_client, mut events, worker) = Client::new(channel, settings, Decoder::new())?;
    tokio::spawn(worker.run());
    let (mut synced, mut resources) = (0, 0);
    while synced < types.len() {
        match events.next().await.ok_or("the client has ended")? {
            Event::Batch(batch) => {
                let (updates, _, reply) = batch.into_parts();
                for update in &updates {
                    args::say(&format!("  {}", update.name()));
                }
                resources += updates.len();
                let accepted = updates
                    .iter()
                    .map(|update| Verdict::accepted(update.name()));
                reply.send(accepted.collect());
            }
            Event::Synced(_) => synced += 1,
            Event::Disconnected(error) => {
                return Err(error.map_or("the stream ended".into(), Into::into));
            }
            _ => {}
        }
    }
    if resources == server.resources() {
        args::say(&format!("{resources} resources: all of them"));
        Ok(())
    } else {
        Err(format!("{resources} resources of {}", server.resources()).into())
    }
}

/// TLS to a server that is known by its name, wherever it is.
#[derive(Clone)]
struct Connector {
    tls: TlsConnector,
    address: SocketAddr,
}

impl Connector {
    fn new(roots: &str, address: SocketAddr) -> Result<Self, BoxError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(tls::roots(roots)?)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
            address,
        })
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = TlsStream<TcpStream>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (tls, address) = (self.tls.clone(), self.address);
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::try_from(SERVER_NAME).map_err(std::io::Error::other)?;
            tls.connect(name, stream).await
        })
    }
}
