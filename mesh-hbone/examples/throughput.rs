//! One CONNECT stream against the same bytes over bare tokio-rustls: `cargo run --release -p mesh-hbone
//! --example throughput -- [rounds] [MiB] [shape]`.
//!
//! Loopback TCP, one thread a side, 64 KiB writes and reads, TLS 1.3 with AES-256-GCM. Rounds are
//! interleaved and medians compared, so that what else the machine does falls on both. Exits 1 when the
//! tunnel moves less than 0.85 of what bare TLS moves.
#![allow(clippy::print_stdout, reason = "a report")]

use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
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
use rustls::crypto::CryptoProvider;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

type BoxError = Box<dyn Error + Send + Sync>;

const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";
const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
const BLOCK: usize = 64 << 10;
const DEMANDED: f64 = 0.85;

fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let rounds: usize = arguments.next().map_or(Ok(7), |text| text.parse())?;
    let mebibytes: usize = arguments.next().map_or(Ok(2_048), |text| text.parse())?;
    let only = arguments.next();
    let bytes = mebibytes << 20;
    let world = Arc::new(World::new()?);
    let mut shapes = vec![
        Shape {
            name: "bare tokio-rustls",
            run: bare,
            results: Vec::new(),
        },
        Shape {
            name: "bare mesh_hbone::tls",
            run: ours,
            results: Vec::new(),
        },
        Shape {
            name: "one CONNECT stream",
            run: tunnel,
            results: Vec::new(),
        },
    ];
    for round in 0..=rounds {
        for shape in &mut shapes {
            if only
                .as_deref()
                .is_some_and(|only| !shape.name.contains(only))
            {
                continue;
            }
            let result = (shape.run)(&world, if round == 0 { bytes / 8 } else { bytes })?;
            if round > 0 {
                shape.results.push(result);
            }
        }
    }
    let mut rates = Vec::new();
    for shape in &mut shapes {
        let Some((rate, cpu)) = shape.medians() else {
            continue;
        };
        println!(
            "{:<22} {rate:6.2} Gbit/s  {cpu:5.3} CPU s per GB",
            shape.name
        );
        rates.push(rate);
    }
    if let [bare, _, tunnel] = rates[..] {
        let ratio = tunnel / bare;
        println!("ratio                  {ratio:6.3}");
        if ratio < DEMANDED {
            return Err(format!("expected at least {DEMANDED} of bare TLS").into());
        }
    }
    Ok(())
}

struct Shape {
    name: &'static str,
    run: fn(&Arc<World>, usize) -> Result<Sample, BoxError>,
    results: Vec<Sample>,
}

impl Shape {
    fn medians(&mut self) -> Option<(f64, f64)> {
        let median = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied()
        };
        let rate = median(self.results.iter().map(|sample| sample.gigabits).collect())?;
        let cpu = median(self.results.iter().map(|sample| sample.cpu).collect())?;
        Some((rate, cpu))
    }
}

struct Sample {
    gigabits: f64,
    cpu: f64,
}

/// Certificates for all.
struct World {
    client: Credentials,
    server: Credentials,
    expected: Identity,
    bare_client: Arc<rustls::ClientConfig>,
    bare_server: Arc<rustls::ServerConfig>,
}

impl World {
    fn new() -> Result<Self, BoxError> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let issue =
            |name: SanType| -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), BoxError> {
                let mut params = CertificateParams::default();
                params.subject_alt_names = vec![name];
                params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
                params.extended_key_usages = vec![
                    ExtendedKeyUsagePurpose::ServerAuth,
                    ExtendedKeyUsagePurpose::ClientAuth,
                ];
                let key = KeyPair::generate()?;
                let certificate = params.signed_by(&key, &root)?;
                Ok((
                    certificate.der().clone(),
                    PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
                ))
            };
        let credentials = |uri: &str| -> Result<Credentials, BoxError> {
            let (chain, key) = issue(SanType::URI(Ia5String::try_from(uri)?))?;
            let bundle = Bundle::new(vec![chain], key, vec![root.der().clone()], &[])?;
            let provider = Provider::by_feature().ok_or("no crypto provider")?;
            Ok(Credentials::new(provider, bundle, Options::default())?)
        };
        let mut crypto = rustls::crypto::aws_lc_rs::default_provider();
        crypto.cipher_suites =
            vec![rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384];
        let crypto: Arc<CryptoProvider> = Arc::new(crypto);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(root.der().clone())?;
        let (chain, key) = issue(SanType::DnsName(Ia5String::try_from("localhost")?))?;
        let tls13 = [&rustls::version::TLS13];
        Ok(Self {
            client: credentials(CLIENT)?,
            server: credentials(SERVER)?,
            expected: SERVER.parse()?,
            bare_client: Arc::new(
                rustls::ClientConfig::builder_with_provider(Arc::clone(&crypto))
                    .with_protocol_versions(&tls13)?
                    .with_root_certificates(roots)
                    .with_no_client_auth(),
            ),
            bare_server: Arc::new(
                rustls::ServerConfig::builder_with_provider(crypto)
                    .with_protocol_versions(&tls13)?
                    .with_no_client_auth()
                    .with_single_cert(vec![chain], key)?,
            ),
        })
    }
}

fn bare(world: &Arc<World>, bytes: usize) -> Result<Sample, BoxError> {
    let (client, server) = (
        Arc::clone(&world.bare_client),
        Arc::clone(&world.bare_server),
    );
    measure(
        bytes,
        move |io| async move {
            let name = ServerName::try_from("localhost")?;
            let tls = tokio_rustls::TlsConnector::from(client)
                .connect(name, io)
                .await?;
            send(tls, bytes).await
        },
        move |io| async move {
            receive(tokio_rustls::TlsAcceptor::from(server).accept(io).await?).await
        },
    )
}

fn ours(world: &Arc<World>, bytes: usize) -> Result<Sample, BoxError> {
    let (client, server) = (Arc::clone(world), Arc::clone(world));
    measure(
        bytes,
        move |io| async move {
            let tls =
                tls::connect(io, &client.client, std::slice::from_ref(&client.expected)).await?;
            send(tls, bytes).await
        },
        move |io| async move { receive(tls::accept(io, &server.server).await?).await },
    )
}

fn tunnel(world: &Arc<World>, bytes: usize) -> Result<Sample, BoxError> {
    let (client, server) = (Arc::clone(world), Arc::clone(world));
    measure(
        bytes,
        move |io| async move {
            let tls =
                tls::connect(io, &client.client, std::slice::from_ref(&client.expected)).await?;
            assert_eq!(
                tls.cipher_suite(),
                Some(rustls::CipherSuite::TLS13_AES_256_GCM_SHA384)
            );
            let (connection, sender) = client::handshake(tls, &Config::default()).await?;
            let connection = tokio::spawn(connection);
            let request = ConnectRequest::new("10.0.0.7:80".parse()?, ConnectHeaders::default());
            let (tunnel, _) = sender.connect(request).await?;
            drop(sender);
            send(tunnel, bytes).await?;
            connection.await??;
            Ok(())
        },
        move |io| async move {
            let tls = tls::accept(io, &server.server).await?;
            let mut connection = server::handshake(tls, &Config::default());
            let tunnel = connection
                .accept()
                .await
                .ok_or("no tunnel")??
                .accept(None)?;
            let serve = async {
                while let Some(incoming) = connection.accept().await {
                    drop(incoming?);
                }
                Ok::<_, BoxError>(())
            };
            let received = tokio::spawn(receive(tunnel));
            serve.await?;
            received.await?
        },
    )
}

async fn send<W: AsyncRead + AsyncWrite + Send + Unpin>(
    mut io: W,
    bytes: usize,
) -> Result<(), BoxError> {
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

async fn receive<R: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    mut io: R,
) -> Result<(usize, f64), BoxError> {
    let mut block = vec![0; BLOCK];
    let (mut total, mut start) = (0, None);
    loop {
        let count = io.read(&mut block).await?;
        let start = start.get_or_insert_with(Instant::now);
        if count == 0 {
            let seconds = start.elapsed().as_secs_f64();
            io.shutdown().await?;
            return Ok((total, seconds));
        }
        total += count;
    }
}

fn measure<C, CF, S, SF>(bytes: usize, client: C, server: S) -> Result<Sample, BoxError>
where
    C: FnOnce(TcpStream) -> CF + Send + 'static,
    CF: Future<Output = Result<(), BoxError>> + Send + 'static,
    S: FnOnce(TcpStream) -> SF,
    SF: Future<Output = Result<(usize, f64), BoxError>> + Send + 'static,
{
    let (told, address) = std::sync::mpsc::channel::<SocketAddr>();
    let sending = thread::Builder::new()
        .name("sender".to_owned())
        .spawn(move || {
            runtime()?.block_on(async move {
                let io = TcpStream::connect(address.recv()?).await?;
                io.set_nodelay(true)?;
                tokio::spawn(client(io)).await?
            })
        })?;
    let before = cpu_seconds()?;
    let (received, seconds) = runtime()?.block_on(async move {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        told.send(listener.local_addr()?)?;
        let (io, _) = listener.accept().await?;
        io.set_nodelay(true)?;
        tokio::spawn(server(io)).await?
    })?;
    sending.join().map_err(|_| "the sender panicked")??;
    assert_eq!(received, bytes);
    Ok(Sample {
        gigabits: bytes as f64 * 8.0 / seconds / 1e9,
        cpu: (cpu_seconds()? - before) / (bytes as f64 / 1e9),
    })
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// User and system time of this process: fields 14 and 15 of /proc/self/stat, in 1/100 s.
fn cpu_seconds() -> Result<f64, BoxError> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(')').ok_or("no process name")?.1;
    let ticks: Vec<f64> = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / 100.0)
}
