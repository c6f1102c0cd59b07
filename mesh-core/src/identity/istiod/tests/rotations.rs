//! Certificates change under traffic, and nobody notices.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;

use mesh_xds::model::{Batch, TunnelProtocol, Workload};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::sync::mpsc;

use super::*;
use crate::config::{ConfigLink, ConfigSource};
use crate::{BoxedIo, Incoming, Mesh, MeshStream, Node, Transport};

type Arriving = (BoxedIo, SocketAddr);
type Listeners = Arc<Mutex<HashMap<SocketAddr, mpsc::Sender<Arriving>>>>;

/// A network in memory: no socket that fake time would not wait for.
fn network() -> Transport {
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

struct Config;

impl ConfigSource for Config {
    async fn run(self, link: ConfigLink) -> Result<(), crate::Error> {
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

/// A client, and a server that echoes.
async fn pair(source: &Istiod) -> (Mesh, Mesh) {
    let clock = source.settings.control_plane.clone();
    let node = Node::builder()
        .transport(network())
        .clock(move || clock.now())
        .config(Config)
        .identity(source.clone())
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
                    stream.write_all(&buffer[..count]).await.unwrap();
                }
            });
        }
    });
    (client, server)
}

async fn ping(stream: &mut MeshStream) {
    stream.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"ping");
}

/// each certificate lives ten seconds. Keys are reused: what is tested is the exchange of
/// certificates, and 10 000 keys would only make it slow.
#[tokio::test(start_paused = true)]
async fn ten_thousand_rotations_under_traffic_fail_no_request() {
    let service = Service {
        life: Duration::from_secs(10),
        takes: Duration::from_millis(20),
        ..Service::new()
    };
    let source = service.source(|istiod| istiod.poll_interval(HOUR));
    let (client, _server) = pair(&source).await;
    let address = SocketAddr::from((SERVER, 80)).to_string();
    // One tunnel lives through all of it.
    let mut long = client.connect(&address).await.unwrap();
    let mut requests = 0;
    while service.issued() < 10_000 {
        ping(&mut long).await;
        let mut stream = client.connect(&address).await.unwrap();
        ping(&mut stream).await;
        requests += 1;
        // The authority fails now and then, for less than what is left of a certificate.
        let fails = requests % 50 == 0;
        service.fail(fails.then_some(ErrorKind::Unavailable));
        tokio::time::sleep(Duration::from_millis(2500)).await;
        service.fail(None);
        tokio::time::sleep(Duration::from_millis(2500)).await;
    }
    assert!(requests > 4000, "{requests}");
    assert!(service.asked() > service.issued(), "some failed");
}
