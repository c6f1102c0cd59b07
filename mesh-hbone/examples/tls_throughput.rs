//! Throughput of [`mesh_hbone::tls::TlsStream`] against bare tokio-rustls, over loopback TCP.
//!
//! `cargo run --release -p mesh-hbone --example tls_throughput [MiB per run] [runs] [read KiB] [send KiB]`
//!
//! One thread a side, 64 KiB writes, AES-256-GCM, interleaved runs, medians. On a shared machine the
//! CPU time of the two threads says more than the clock.
#![allow(clippy::print_stdout, reason = "it is a program")]

use std::error::Error;
use std::sync::Arc;
use std::thread;

use mesh_hbone::tls::{Bundle, Credentials, Options, Provider, accept, connect};
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_rustls::{TlsAcceptor, TlsConnector};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const ID: &str = "spiffe://cluster.local/ns/default/sa/bench";
const CHUNK: usize = 64 * 1024;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mib: usize = args.next().map_or(Ok(1024), |text| text.parse())?;
    let runs: usize = args.next().map_or(Ok(9), |text| text.parse())?;
    let mut options = Options::default();
    if let Some(read) = args.next() {
        options = options.read_buffer(read.parse::<usize>()? << 10);
    }
    if let Some(send) = args.next() {
        let send = send.parse::<usize>()? << 10;
        options = options.send_buffer(send).flush_at(send / 2);
    }
    let material = Material::new(options)?;
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    // One of each to warm up.
    for run in 0..=runs {
        let (a, b) = (material.bare(mib << 20)?, material.ours(mib << 20)?);
        println!("run {run}: bare {a}, ours {b}");
        if run > 0 {
            bare.push(a);
            ours.push(b);
        }
    }
    let of = |runs: &[Sample], value: fn(&Sample) -> f64| median(runs.iter().map(value).collect());
    let median = |runs: &[Sample]| Sample {
        gbits: of(runs, |sample| sample.gbits),
        send_cpu: of(runs, |sample| sample.send_cpu),
        receive_cpu: of(runs, |sample| sample.receive_cpu),
    };
    let (bare, ours) = (median(&bare), median(&ours));
    println!("median: bare {bare}, ours {ours}");
    println!(
        "throughput ratio {:.3}, CPU ratio {:.3}",
        ours.gbits / bare.gbits,
        (ours.send_cpu + ours.receive_cpu) / (bare.send_cpu + bare.receive_cpu)
    );
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// One run. CPU in seconds per GB; zero where the system does not tell.
struct Sample {
    gbits: f64,
    send_cpu: f64,
    receive_cpu: f64,
}

impl std::fmt::Display for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.2} Gbit/s (CPU s/GB {:.3} + {:.3})",
            self.gbits, self.send_cpu, self.receive_cpu
        )
    }
}

/// CPU time of this thread, in seconds.
fn thread_cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = stat.split(' ').next().and_then(|text| text.parse().ok());
    nanoseconds.unwrap_or(0.0) * 1e-9
}

/// Certificates and configurations of both kinds.
struct Material {
    credentials: Credentials,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Material {
    fn new(options: Options) -> Result<Self> {
        let root_key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let issuer = rcgen::CertifiedIssuer::self_signed(params, root_key)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(["bench.example".to_owned()])?;
        params.subject_alt_names.push(SanType::URI(ID.try_into()?));
        let leaf: CertificateDer<'static> = params.signed_by(&key, &issuer)?.der().clone();
        let key: PrivateKeyDer<'static> = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let root = issuer.der().clone();

        let bundle = Bundle::new(vec![leaf.clone()], key.clone_key(), vec![root.clone()], &[])?;
        let provider = Provider::by_feature().ok_or("no crypto provider")?;
        let mut roots = RootCertStore::empty();
        roots.add(root)?;
        Ok(Self {
            credentials: Credentials::new(provider, bundle, options)?,
            client: Arc::new(
                ClientConfig::builder_with_provider(crypto())
                    .with_safe_default_protocol_versions()?
                    .with_root_certificates(roots)
                    .with_no_client_auth(),
            ),
            server: Arc::new(
                ServerConfig::builder_with_provider(crypto())
                    .with_safe_default_protocol_versions()?
                    .with_no_client_auth()
                    .with_single_cert(vec![leaf], key)?,
            ),
        })
    }

    fn bare(&self, bytes: usize) -> Result<Sample> {
        let connector = TlsConnector::from(Arc::clone(&self.client));
        let acceptor = TlsAcceptor::from(Arc::clone(&self.server));
        run(
            bytes,
            async move |io| {
                let name = ServerName::try_from("bench.example")?;
                Ok(connector.connect(name, io).await?)
            },
            async move |io| Ok(acceptor.accept(io).await?),
        )
    }

    fn ours(&self, bytes: usize) -> Result<Sample> {
        let (client, server) = (self.credentials.clone(), self.credentials.clone());
        run(
            bytes,
            async move |io| Ok(connect(io, &client, &[ID.parse()?]).await?),
            async move |io| Ok(accept(io, &server).await?),
        )
    }
}

fn crypto() -> Arc<rustls::crypto::CryptoProvider> {
    #[cfg(feature = "aws-lc-rs")]
    return Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    #[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
    return Arc::new(rustls::crypto::ring::default_provider());
    #[cfg(not(any(feature = "ring", feature = "aws-lc-rs")))]
    panic!("no crypto provider");
}

/// Moves `bytes` from a client in a thread to a server in this one; gives what it cost.
fn run<C, S>(
    bytes: usize,
    connect: impl AsyncFnOnce(TcpStream) -> Result<C> + Send + 'static,
    accept: impl AsyncFnOnce(TcpStream) -> Result<S>,
) -> Result<Sample>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    runtime()?.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let sender = thread::spawn(move || {
            runtime()?.block_on(async {
                let tcp = TcpStream::connect(address).await?;
                tcp.set_nodelay(true)?;
                let mut stream = connect(tcp).await?;
                let chunk = vec![0x5a; CHUNK];
                let cpu = thread_cpu();
                for _ in 0..bytes / CHUNK {
                    stream.write_all(&chunk).await?;
                }
                stream.shutdown().await?;
                // A close with unread bytes (session tickets) would reset the connection.
                stream.read_to_end(&mut Vec::new()).await?;
                Result::<f64>::Ok(thread_cpu() - cpu)
            })
        });
        let (tcp, _) = listener.accept().await?;
        tcp.set_nodelay(true)?;
        let mut stream = accept(tcp).await?;
        let mut buffer = vec![0; CHUNK];
        stream.read_exact(&mut buffer).await?;
        let (start, cpu) = (Instant::now(), thread_cpu());
        let mut total = 0;
        loop {
            match stream.read(&mut buffer).await? {
                0 => break,
                count => total += count,
            }
        }
        let (seconds, receive_cpu) = (start.elapsed().as_secs_f64(), thread_cpu() - cpu);
        stream.shutdown().await?;
        let send_cpu = sender.join().map_err(|_| "the sender panicked")??;
        let gigabytes = f64::from(u32::try_from(total)?) * 1e-9;
        Ok(Sample {
            gbits: gigabytes * 8.0 / seconds,
            send_cpu: send_cpu / gigabytes,
            receive_cpu: receive_cpu / gigabytes,
        })
    })
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}
