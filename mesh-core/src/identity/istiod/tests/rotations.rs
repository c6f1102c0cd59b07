//! Certificates change under traffic, and nobody notices.

#[path = "../../../../tests/it/memory_network.rs"]
mod memory_network;

use std::future::pending;
use std::{fs, io};

use futures_util::stream;
use memory_network::{ADDRESS, network, pair, ping};
use mesh_hbone::config::Config as HboneConfig;
use mesh_xds::model::{Batch, TunnelProtocol, Workload};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex, split};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::*;
use crate::config::{ConfigLink, ConfigSource};
use crate::identity::{CertificateSource, CertificateStream};
use crate::{BoxedIo, Mesh, MeshListener, MeshStream, Node, Transport};

fn clock(source: &Istiod) -> impl Fn() -> SystemTime + Clone + Send + Sync + use<> {
    let control_plane = source.settings.control_plane.clone();
    move || control_plane.now()
}

/// Who there is, beside the server: one with a connection that lasts, and those that make a new one each time.
const STEADY: &str = "steady";
const FRESH: [&str; 4] = ["fresh-1", "fresh-2", "fresh-3", "fresh-4"];

struct Config;

impl ConfigSource for Config {
    async fn run(self, link: ConfigLink) -> Result<(), crate::Error> {
        let workload = |name: &str, address: u8| {
            Workload::new(format!("uid/{name}"), "default", name)
                .with_addresses(vec![[10, 0, 0, address].into()])
                .with_service_account(name)
                .with_workload_name(name)
                .with_protocol(TunnelProtocol::Hbone)
                .into()
        };
        let mut updates = vec![workload(STEADY, 1), workload("server", 2)];
        updates.extend(
            FRESH
                .iter()
                .zip(3..)
                .map(|(name, address)| workload(name, address)),
        );
        link.apply(Batch::new(updates, Vec::new()))?;
        pending().await
    }
}

fn node(
    transport: Transport,
    hbone: HboneConfig,
    source: impl CertificateSource,
    clock: impl Fn() -> SystemTime + Send + Sync + 'static,
) -> Node {
    Node::builder()
        .transport(transport)
        .hbone(hbone)
        .clock(clock)
        .config(Config)
        .identity(source)
        .build_node()
        .unwrap()
}

fn workload(node: &Node, name: &str) -> Mesh {
    node.workload("default", name, name).unwrap()
}

/// A connection is gone once its last tunnel is.
fn no_reuse() -> HboneConfig {
    HboneConfig::default().idle_timeout(Duration::from_millis(1))
}

/// The same network, further away.
fn further(inner: &Transport, latency: Duration) -> Transport {
    let (dialled, listened) = (inner.clone(), inner.clone());
    Transport::new(
        move |to| {
            let inner = dialled.clone();
            async move {
                let (near, between) = duplex(64 * 1024);
                let (from_near, to_near) = split(between);
                let (from_far, to_far) = split(inner.dial(to).await?);
                tokio::spawn(carry(from_near, to_far, latency));
                tokio::spawn(carry(from_far, to_near, latency));
                Ok(BoxedIo::new(near))
            }
        },
        move |on| {
            let inner = listened.clone();
            async move { inner.listen(on).await }
        },
    )
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    latency: Duration,
) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        sleep(latency).await;
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    // The other end may be gone.
    let _ = to.shutdown().await;
}

async fn echo(mut listener: MeshListener) {
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
}

async fn request(client: &Mesh) -> io::Result<()> {
    let mut stream: MeshStream = client.connect(ADDRESS).await.map_err(io::Error::other)?;
    ping(&mut stream).await
}

/// each certificate lives four seconds, and those of six identities change. Keys are reused: what is tested is
/// the exchange of certificates, and 10 000 keys would only make it slow.
#[tokio::test(start_paused = true)]
async fn ten_thousand_rotations_under_traffic_fail_no_request() {
    const ROTATIONS: usize = 10_000;
    let service = Service {
        life: Duration::from_secs(4),
        takes: Duration::from_millis(20),
        ..Service::new()
    };
    let base = Duration::from_millis(100);
    let source = service.source(|istiod| istiod.backoff(base, 5 * base));
    let clock = clock(&source);
    let network = network();
    let near = node(
        network.clone(),
        HboneConfig::default(),
        source.clone(),
        clock.clone(),
    );
    let server = workload(&near, "server");
    tokio::spawn(echo(server.listen(80).await.unwrap()));

    let mut clients = JoinSet::new();
    // Some 20 ms for each request, one each 250 ms, over one connection and one tunnel that live through all of it.
    let further_away = further(&network, Duration::from_millis(5));
    let away = node(
        further_away,
        HboneConfig::default(),
        source.clone(),
        clock.clone(),
    );
    let client = workload(&away, STEADY);
    let rotating = service.clone();
    clients.spawn(async move {
        let mut long = client.connect(ADDRESS).await.unwrap();
        let mut across = 0;
        while rotating.issued() < ROTATIONS {
            let before = rotating.had_by(STEADY);
            let next = Instant::now() + Duration::from_millis(250);
            request(&client).await.unwrap();
            ping(&mut long).await.unwrap();
            across += usize::from(rotating.had_by(STEADY) != before);
            tokio::time::sleep_until(next).await;
        }
        ("requests", across)
    });
    // A handshake takes some 200 ms.
    let far_away = further(&network, Duration::from_millis(50));
    let away = node(far_away, no_reuse(), source.clone(), clock);
    for (name, number) in FRESH.into_iter().zip(0..) {
        let client = workload(&away, name);
        let rotating = service.clone();
        clients.spawn(async move {
            sleep(Duration::from_millis(1200) * number).await;
            let mut across = 0;
            while rotating.issued() < ROTATIONS {
                let before = rotating.had_by(name);
                let next = Instant::now() + Duration::from_millis(4800);
                request(&client).await.unwrap();
                across += usize::from(rotating.had_by(name) != before);
                tokio::time::sleep_until(next).await;
            }
            ("handshakes", across)
        });
    }
    // The authority fails now and then, for less than what is left of a certificate.
    let failing = service.clone();
    let fails = tokio::spawn(async move {
        loop {
            sleep(Duration::from_secs(20)).await;
            failing.fail(ErrorKind::Unavailable);
            sleep(Duration::from_millis(500)).await;
            failing.fail(None);
        }
    });
    let mut across = HashMap::<_, usize>::new();
    while let Some(ended) = clients.join_next().await {
        let (what, count) = ended.unwrap();
        *across.entry(what).or_default() += count;
    }
    fails.abort();
    assert!(service.asked() > service.issued(), "some failed");
    // While a certificate was exchanged they were on their way.
    for what in ["requests", "handshakes"] {
        assert!(across[what] >= 100, "{across:?}");
    }
}

/// Whose certificates change all the time.
struct Restless {
    issuer: Arc<Issuer>,
    changes: Arc<AtomicUsize>,
}

impl CertificateSource for Restless {
    fn watch(&self, identity: Identity) -> CertificateStream {
        let (issuer, changes) = (Arc::clone(&self.issuer), Arc::clone(&self.changes));
        Box::pin(stream::unfold(false, move |later| {
            let (issuer, changes) = (Arc::clone(&issuer), Arc::clone(&changes));
            let identity = identity.clone();
            async move {
                if later {
                    sleep(Duration::from_millis(3)).await;
                    changes.fetch_add(1, Ordering::Relaxed);
                }
                let bundle = issuer.issue(&identity, SystemTime::now(), HOUR);
                Some((Ok(bundle), true))
            }
        }))
    }
}

/// The same on several threads, and by the real clock: handshakes and exchanges meet at any point.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn certificates_that_change_on_other_threads_fail_no_request() {
    const CHANGES: usize = 1_000;
    let changes = Arc::new(AtomicUsize::new(0));
    let source = Arc::new(Restless {
        issuer: Issuer::new("istio"),
        changes: Arc::clone(&changes),
    });
    let network = network();
    let near = node(
        network.clone(),
        HboneConfig::default(),
        Arc::clone(&source),
        SystemTime::now,
    );
    let server = workload(&near, "server");
    tokio::spawn(echo(server.listen(80).await.unwrap()));
    let away = node(network, no_reuse(), source, SystemTime::now);
    let mut clients = JoinSet::new();
    for client in [
        workload(&near, STEADY),
        workload(&away, FRESH[0]),
        workload(&away, FRESH[1]),
    ] {
        let changes = Arc::clone(&changes);
        clients.spawn(async move {
            let mut requests = 0;
            while requests < 20 || changes.load(Ordering::Relaxed) < CHANGES {
                request(&client).await.unwrap();
                requests += 1;
                // Those that make new connections let the last one go.
                sleep(Duration::from_millis(2)).await;
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_comes_ends_what_its_certificate_had() {
    let dir = tempfile::tempdir().unwrap();
    let crls = dir.path().join("crl.pem");
    fs::write(&crls, "").unwrap();
    let service = Service::new();
    let source = service.source(|istiod| istiod.crls(&crls).poll_interval(Duration::from_secs(1)));
    let (client, server) = pair(source.clone(), clock(&source)).await;
    let mut stream = client.connect(ADDRESS).await.unwrap();
    ping(&mut stream).await.unwrap();
    let mut own = source.watch(identity("client"));
    let serial = next(&mut own).await.unwrap().serial_number().to_owned();
    fs::write(&crls, service.issuer.crl(&[&serial])).unwrap();
    let begin = Instant::now();
    stream.read_u8().await.unwrap_err();
    assert!(begin.elapsed() <= Duration::from_secs(3));
    client.connect(ADDRESS).await.unwrap_err();
    drop(server);
}
