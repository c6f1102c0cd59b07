//! What a tunnel moves against bare tokio-rustls: `cargo run --release -p mesh-benches --bin
//! tunnel_throughput [rounds] [MiB] [part of a shape's name]`.
//!
//! Loopback TCP, one thread a side, writes and reads of 64 KiB, TLS 1.3 with AES-256-GCM, the same
//! certificates. Shapes take turns, so that what else the machine does falls on all, and each is
//! compared with the bare one of the same round. Exits 1 where a demanded ratio is not reached.
#![allow(clippy::print_stdout, reason = "it is a program")]

use std::error::Error;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use mesh_authz::Identity;
use mesh_hbone::client::{self, ConnectRequest};
use mesh_hbone::config::Config;
use mesh_hbone::headers::ConnectHeaders;
use mesh_hbone::server;
use mesh_hbone::tls::{self, Bundle, Credentials, Options, Provider};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

type BoxError = Box<dyn Error + Send + Sync>;
type Done = Result<(), BoxError>;

const ID: &str = "spiffe://cluster.local/ns/default/sa/bench";
const NAME: &str = "bench.example";
const BLOCK: usize = 64 << 10;

/// What is compared: the name, how many streams, whether tunnelled, and the least ratio to the bare
/// shape with as many connections.
const SHAPES: [(&str, usize, bool, f64); 4] = [
    ("1 bare connection", 1, false, 0.0),
    ("1 CONNECT stream", 1, true, 0.9),
    ("8 bare connections", 8, false, 0.0),
    ("8 CONNECT streams", 8, true, 0.7),
];
/// The most CPU for as much, against the bare shape.
const CPU: f64 = 1.15;

fn main() -> Result<ExitCode, BoxError> {
    let mut arguments = std::env::args().skip(1);
    let rounds: usize = arguments.next().map_or(Ok(9), |text| text.parse())?;
    let mebibytes: usize = arguments.next().map_or(Ok(1_024), |text| text.parse())?;
    let only = arguments.next().unwrap_or_default();
    let world = Arc::new(World::new()?);
    let mut samples = [const { Vec::new() }; SHAPES.len()];
    // The first round warms up.
    for round in 0..=rounds {
        for ((name, streams, tunnelled, _), samples) in SHAPES.iter().zip(&mut samples) {
            if name.contains(&only) {
                let each = (mebibytes << 20) / streams;
                let sample = measure(&world, *streams, *tunnelled, each)?;
                if round > 0 {
                    samples.push(sample);
                }
            }
        }
    }
    println!("{:<20} {:>22} {:>22}", "", "Gbit/s", "CPU s per GB");
    for ((name, ..), samples) in SHAPES.iter().zip(&samples) {
        let rate = Spread::of(samples.iter().map(|sample| sample.gigabits));
        let cpu = Spread::of(samples.iter().map(|sample| sample.cpu));
        println!("{name:<20} {rate:>22} {cpu:>22}");
    }
    println!("against bare, round by round");
    let mut reached = true;
    for (at, (name, _, tunnelled, least)) in SHAPES.iter().enumerate() {
        if *tunnelled {
            let pairs = || samples[at].iter().zip(&samples[at - 1]);
            let rate = Spread::of(pairs().map(|(ours, bare)| ours.gigabits / bare.gigabits));
            let cpu = Spread::of(pairs().map(|(ours, bare)| ours.cpu / bare.cpu));
            println!("{name:<20} {rate:>22} {cpu:>22}   at least {least}, at most {CPU}");
            // Of shapes that were left out nothing is known.
            reached &= rate.median.is_nan() || (rate.median >= *least && cpu.median <= CPU);
        }
    }
    Ok(if reached {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The median, with the least and the most.
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self {
            least: at(0),
            median: at(values.len() / 2),
            most: at(values.len().saturating_sub(1)),
        }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            least,
            median,
            most,
        } = self;
        f.pad(&format!("{median:.3} ({least:.2}..{most:.2})"))
    }
}

struct Sample {
    gigabits: f64,
    cpu: f64,
}

/// Certificates and configurations of both kinds.
struct World {
    credentials: Credentials,
    expected: Identity,
    client: Arc<rustls::ClientConfig>,
    server: Arc<rustls::ServerConfig>,
}

impl World {
    fn new() -> Result<Self, BoxError> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![
            SanType::URI(Ia5String::try_from(ID)?),
            SanType::DnsName(Ia5String::try_from(NAME)?),
        ];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        let leaf: CertificateDer<'static> = params.signed_by(&key, &root)?.der().clone();
        let key: PrivateKeyDer<'static> = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let root = root.der().clone();

        let bundle = Bundle::new(vec![leaf.clone()], key.clone_key(), vec![root.clone()], &[])?;
        let provider = Provider::by_feature().ok_or("no crypto provider")?;
        let mut crypto = aws_lc_rs::default_provider();
        crypto.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384];
        let crypto = Arc::new(crypto);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(root)?;
        let tls13 = [&rustls::version::TLS13];
        Ok(Self {
            credentials: Credentials::new(provider, bundle, Options::default())?,
            expected: ID.parse()?,
            client: Arc::new(
                rustls::ClientConfig::builder_with_provider(Arc::clone(&crypto))
                    .with_protocol_versions(&tls13)?
                    .with_root_certificates(roots)
                    .with_no_client_auth(),
            ),
            server: Arc::new(
                rustls::ServerConfig::builder_with_provider(crypto)
                    .with_protocol_versions(&tls13)?
                    .with_no_client_auth()
                    .with_single_cert(vec![leaf], key)?,
            ),
        })
    }
}

/// Moves `bytes` on each of `streams` from a client in a thread of its own to a server in this one.
fn measure(
    world: &Arc<World>,
    streams: usize,
    tunnelled: bool,
    bytes: usize,
) -> Result<Sample, BoxError> {
    let (told, address) = std::sync::mpsc::channel();
    let client = Arc::clone(world);
    let sending = thread::spawn(move || {
        local(async {
            let address = address.recv()?;
            let cpu = thread_cpu()?;
            if tunnelled {
                send_tunnelled(client, address, streams, bytes).await?;
            } else {
                send_bare(client, address, streams, bytes).await?;
            }
            Ok(thread_cpu()? - cpu)
        })
    });
    let (seconds, receiving_cpu) = local(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        told.send(listener.local_addr()?)?;
        let cpu = thread_cpu()?;
        let seconds = if tunnelled {
            receive_tunnelled(world, &listener, streams, bytes).await?
        } else {
            receive_bare(world, &listener, streams, bytes).await?
        };
        Ok((seconds, thread_cpu()? - cpu))
    })?;
    let sending_cpu = sending.join().map_err(|_| "the sender panicked")??;
    let gigabytes = (bytes * streams) as f64 / 1e9;
    Ok(Sample {
        gigabits: gigabytes * 8.0 / seconds,
        cpu: (sending_cpu + receiving_cpu) / gigabytes,
    })
}

async fn send_bare(world: Arc<World>, to: SocketAddr, streams: usize, bytes: usize) -> Done {
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(&world.client));
    let mut sending = Vec::new();
    for _ in 0..streams {
        let name = ServerName::try_from(NAME)?;
        let io = connector.connect(name, dial(to).await?).await?;
        sending.push(tokio::spawn(send(io, bytes)));
    }
    join(sending).await
}

async fn receive_bare(
    world: &World,
    listener: &TcpListener,
    streams: usize,
    bytes: usize,
) -> Result<f64, BoxError> {
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&world.server));
    let mut start = None;
    let mut receiving = Vec::new();
    for _ in 0..streams {
        let io = acceptor.accept(accept(listener).await?).await?;
        start.get_or_insert_with(Instant::now);
        receiving.push(tokio::spawn(receive(io, bytes)));
    }
    join(receiving).await?;
    Ok(start.ok_or("no streams")?.elapsed().as_secs_f64())
}

async fn send_tunnelled(world: Arc<World>, to: SocketAddr, streams: usize, bytes: usize) -> Done {
    let expected = std::slice::from_ref(&world.expected);
    let tls = tls::connect_unflushed(dial(to).await?, &world.credentials, expected).await?;
    let suite = tls.cipher_suite();
    if suite != Some(rustls::CipherSuite::TLS13_AES_256_GCM_SHA384) {
        return Err(format!("another cipher: {suite:?}").into());
    }
    let (connection, sender) = client::handshake(tls, &Config::default()).await?;
    let connection = tokio::spawn(connection);
    let mut sending = Vec::new();
    for _ in 0..streams {
        let request = ConnectRequest::new("10.0.0.7:80".parse()?, ConnectHeaders::default());
        let (tunnel, _) = sender.connect(request).await?;
        sending.push(tokio::spawn(send(tunnel, bytes)));
    }
    drop(sender);
    join(sending).await?;
    connection.await??;
    Ok(())
}

async fn receive_tunnelled(
    world: &World,
    listener: &TcpListener,
    streams: usize,
    bytes: usize,
) -> Result<f64, BoxError> {
    let tls = tls::accept(accept(listener).await?, &world.credentials).await?;
    let mut connection = server::handshake(tls, &Config::default());
    let mut start = None;
    let mut receiving = Vec::new();
    for _ in 0..streams {
        let tunnel = connection
            .accept()
            .await
            .ok_or("no tunnel")??
            .accept(None)?;
        start.get_or_insert_with(Instant::now);
        receiving.push(tokio::spawn(receive(tunnel, bytes)));
    }
    let serving = tokio::spawn(async move {
        while let Some(incoming) = connection.accept().await {
            drop(incoming?);
        }
        Done::Ok(())
    });
    join(receiving).await?;
    let seconds = start.ok_or("no streams")?.elapsed().as_secs_f64();
    serving.await??;
    Ok(seconds)
}

async fn send(mut io: impl AsyncRead + AsyncWrite + Unpin, bytes: usize) -> Done {
    let block = vec![7; BLOCK];
    let mut left = bytes;
    while left > 0 {
        let count = left.min(BLOCK);
        io.write_all(&block[..count]).await?;
        left -= count;
    }
    io.shutdown().await?;
    // Until the receiver is done too.
    io.read_to_end(&mut Vec::new()).await?;
    Ok(())
}

async fn receive(mut io: impl AsyncRead + AsyncWrite + Unpin, bytes: usize) -> Done {
    let mut block = vec![0; BLOCK];
    let mut total = 0;
    loop {
        match io.read(&mut block).await? {
            0 => break,
            count => total += count,
        }
    }
    io.shutdown().await?;
    if total == bytes {
        Ok(())
    } else {
        Err(format!("{total} of {bytes} bytes arrived").into())
    }
}

async fn dial(to: SocketAddr) -> Result<TcpStream, BoxError> {
    let io = TcpStream::connect(to).await?;
    io.set_nodelay(true)?;
    Ok(io)
}

async fn accept(listener: &TcpListener) -> Result<TcpStream, BoxError> {
    let (io, _) = listener.accept().await?;
    io.set_nodelay(true)?;
    Ok(io)
}

async fn join(tasks: Vec<tokio::task::JoinHandle<Done>>) -> Done {
    for task in tasks {
        task.await??;
    }
    Ok(())
}

fn local<T>(future: impl Future<Output = Result<T, BoxError>>) -> Result<T, BoxError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(future)
}

/// CPU time of this thread in seconds, from the scheduler's own account in nanoseconds.
fn thread_cpu() -> Result<f64, BoxError> {
    let account = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds: f64 = account.split(' ').next().unwrap_or_default().parse()?;
    Ok(nanoseconds * 1e-9)
}
