//! Two workloads on a network in memory: no socket that fake time would not wait for.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use mesh_core::config::{ConfigLink, ConfigSource};
use mesh_core::identity::CertificateSource;
use mesh_core::xds::model::{Batch, TunnelProtocol, Workload};
use mesh_core::{BoxedIo, Error, Incoming, Mesh, MeshStream, Node, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::sync::mpsc;

type Arriving = (BoxedIo, SocketAddr);
type Listeners = Arc<Mutex<HashMap<SocketAddr, mpsc::Sender<Arriving>>>>;

pub(crate) fn network() -> Transport {
    let listeners = Listeners::default();
    let dialled = Arc::clone(&listeners);
    let ports = Arc::new(AtomicUsize::new(0));
    Transport::new(
        move |to| {
            let listener = dialled.lock().unwrap().get(&to).cloned();
            let port = ports.fetch_add(1, Ordering::Relaxed) % 60_000 + 1024;
            async move {
                let listener = listener.ok_or(io::ErrorKind::ConnectionRefused)?;
                let (near, far) = duplex(64 * 1024);
                let from = SocketAddr::from(([10, 0, 0, 1], port as u16));
                let arriving = (BoxedIo::new(far), from);
                listener
                    .send(arriving)
                    .await
                    .map_err(|_| io::ErrorKind::ConnectionRefused)?;
                Ok(BoxedIo::new(near))
            }
        },
        move |on| {
            let (sender, incoming) = mpsc::channel(16);
            listeners.lock().unwrap().insert(on, sender);
            async move { Ok(Box::new(Accepting { incoming, on }) as Box<dyn Incoming>) }
        },
    )
}

struct Accepting {
    incoming: mpsc::Receiver<Arriving>,
    on: SocketAddr,
}

impl Incoming for Accepting {
    fn accept(&mut self) -> Pin<Box<dyn Future<Output = Arriving> + Send + '_>> {
        Box::pin(async {
            match self.incoming.recv().await {
                Some(arriving) => arriving,
                None => std::future::pending().await,
            }
        })
    }

    fn local_addr(&self) -> SocketAddr {
        self.on
    }
}

const SERVER: [u8; 4] = [10, 0, 0, 2];

/// Where the server listens.
pub(crate) const ADDRESS: &str = "10.0.0.2:80";

struct Config;

impl ConfigSource for Config {
    async fn run(self, link: ConfigLink) -> Result<(), Error> {
        let workload = |name: &str, address: [u8; 4]| {
            Workload::new(format!("uid/{name}"), "default", name)
                .with_addresses(vec![address.into()])
                .with_service_account(name)
                .with_workload_name(name)
                .with_protocol(TunnelProtocol::Hbone)
        };
        let updates = vec![
            workload("client", [10, 0, 0, 1]).into(),
            workload("server", SERVER).into(),
        ];
        link.apply(Batch::new(updates, Vec::new()))?;
        std::future::pending().await
    }
}

/// A client, and a server that echoes on port 80.
pub(crate) async fn pair(
    source: impl CertificateSource,
    clock: impl Fn() -> SystemTime + Send + Sync + 'static,
) -> (Mesh, Mesh) {
    let node = Node::builder()
        .transport(network())
        .clock(clock)
        .config(Config)
        .identity(source)
        .build_node()
        .unwrap();
    let client = node.workload("default", "client", "client").unwrap();
    let server = node.workload("default", "server", "server").unwrap();
    let mut listener = server.listen(80).await.unwrap();
    tokio::spawn(async move {
        while let Ok(mut stream) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 64];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..count]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (client, server)
}

/// Says something and hears it again.
pub(crate) async fn ping(stream: &mut MeshStream) -> io::Result<()> {
    stream.write_all(b"ping").await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"ping");
    Ok(())
}
