//! New tunnels against bare handshakes: in both TCP, TLS 1.3 with certificates on both sides, one byte each way and
//! the end; a tunnel has HTTP/2 and a CONNECT on top. Between them the same tunnel by tokio-rustls and h2 alone.
//!
//! Clients in one thread, servers in another, over the loopback; the same chain, cipher suite and key exchange, no
//! tickets, no resumption.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use mesh_authz::Identity;
use mesh_hbone::client::{self, ConnectRequest};
use mesh_hbone::config::Config;
use mesh_hbone::headers::ConnectHeaders;
use mesh_hbone::server;
use mesh_hbone::tls::{self, Bundle, Credentials, Options, Provider};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::args::{Handshakes, say};
use crate::bare::{self, GROUP, Keys, SUITE};
use crate::certificates::{Root, identity};
use crate::connect;
use crate::spread::Spread;
use crate::{BoxError, Done, machine};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Bare,
    /// HBONE's protocol by tokio-rustls and h2, with nothing of the mesh: what is the least for it.
    Alone,
    Tunnel,
}

const SHAPES: [(Shape, &str); 3] = [
    (Shape::Bare, "bare handshakes"),
    (Shape::Alone, "CONNECT by h2 alone"),
    (Shape::Tunnel, "new tunnels"),
];

#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Connections per second.
    rate: f64,
    /// CPU of both threads per connection, in microseconds.
    cpu: f64,
    /// Of it the servers'.
    servers: f64,
}

pub(crate) fn run(of: &Handshakes) -> Done {
    machine::print();
    let world = Arc::new(World::new(of.strangers)?);
    if !SHAPES.iter().any(|(_, name)| name.contains(&of.only)) {
        return Err(format!(
            "--only: expected a part of one of {:?}",
            SHAPES.map(|of| of.1)
        )
        .into());
    }
    let mut samples = [Vec::new(), Vec::new(), Vec::new()];
    // The first round warms up.
    for round in 0..=of.rounds {
        for ((shape, name), samples) in SHAPES.into_iter().zip(&mut samples) {
            if !name.contains(&of.only) {
                continue;
            }
            let sample = measure(&world, shape, of)?;
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    machine::print();
    say(&format!(
        "{} rounds of {} connections, {} at once, {SUITE:?}, {GROUP:?}",
        of.rounds, of.count, of.at_once
    ));
    say(&format!(
        "{:<20}{:>26}{:>26}{:>26}",
        "", "connections/s", "CPU µs each", "of it the servers'"
    ));
    let measured = SHAPES.into_iter().zip(&samples);
    for ((_, name), samples) in measured.filter(|(_, samples)| !samples.is_empty()) {
        let rate = Spread::of(samples.iter().map(|sample: &Sample| sample.rate));
        let cpu = Spread::of(samples.iter().map(|sample| sample.cpu));
        let servers = Spread::of(samples.iter().map(|sample| sample.servers));
        say(&format!("{name:<20}{rate:>26}{cpu:>26}{servers:>26}"));
    }
    let [bare, alone, tunnels] = &samples;
    for (name, ours, others, bound) in [
        ("new tunnels to bare", tunnels, bare, " (at least 0.8)"),
        ("h2 alone to bare", alone, bare, ""),
        ("new tunnels to h2 alone", tunnels, alone, ""),
    ] {
        if ours.is_empty() || others.is_empty() {
            continue;
        }
        let pairs = || ours.iter().zip(others);
        let rate = Spread::of(pairs().map(|(ours, other)| ours.rate / other.rate));
        let cpu = Spread::of(pairs().map(|(ours, other)| ours.cpu / other.cpu));
        say(&format!("{name}: rate {rate}{bound}, CPU {cpu}"));
    }
    Ok(())
}

/// Certificates and configurations of both kinds.
struct World {
    credentials: Credentials,
    expected: [Identity; 1],
    client: Arc<rustls::ClientConfig>,
    server: Arc<rustls::ServerConfig>,
    alone: (TlsConnector, TlsAcceptor),
}

impl World {
    fn new(strangers: bool) -> Result<Self, BoxError> {
        let keys = Keys::issue(&Root::new()?)?;
        let Keys {
            chain,
            key,
            trusted,
        } = &keys;
        let bundle = Bundle::new(chain.clone(), key.clone_key(), vec![trusted.clone()], &[])?;
        let mut options = Options::default();
        if strangers {
            options = options.remembered_certificates(0);
        }
        Ok(Self {
            credentials: Credentials::new(Provider::aws_lc_rs(), bundle, options)?,
            expected: [identity(bare::ACCOUNT).parse()?],
            client: Arc::new(keys.client()?),
            server: Arc::new(keys.server()?),
            alone: (connect::connector(&keys)?, connect::acceptor(&keys)?),
        })
    }
}

fn measure(world: &Arc<World>, shape: Shape, of: &Handshakes) -> Result<Sample, BoxError> {
    let (told, address) = std::sync::mpsc::channel();
    let (count, at_once) = (of.count, of.at_once);
    let client = Arc::clone(world);
    let dialling = thread::spawn(move || {
        local(async {
            let address = address.recv()?;
            let (cpu, start) = (thread_cpu()?, Instant::now());
            let mut running = JoinSet::new();
            for _ in 0..count {
                if running.len() >= at_once {
                    running.join_next().await.ok_or("nothing runs")???;
                }
                running.spawn(dial(Arc::clone(&client), address, shape));
            }
            while let Some(done) = running.join_next().await {
                done??;
            }
            Ok((thread_cpu()? - cpu, start.elapsed().as_secs_f64()))
        })
    });
    let cpu = local(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        told.send(listener.local_addr()?)?;
        let cpu = thread_cpu()?;
        let mut running = JoinSet::new();
        for _ in 0..count {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            running.spawn(answer(Arc::clone(world), stream, shape));
        }
        while let Some(done) = running.join_next().await {
            done??;
        }
        Ok(thread_cpu()? - cpu)
    })?;
    let (dialling_cpu, seconds) = dialling.join().map_err(|_| "the clients panicked")??;
    Ok(Sample {
        rate: count as f64 / seconds,
        cpu: (cpu + dialling_cpu) * 1e6 / count as f64,
        servers: cpu * 1e6 / count as f64,
    })
}

async fn dial(world: Arc<World>, to: SocketAddr, shape: Shape) -> Done {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    match shape {
        Shape::Bare => {
            let connector = TlsConnector::from(Arc::clone(&world.client));
            ask(&mut bare::connect(&connector, stream).await?).await
        }
        Shape::Alone => {
            let tls = bare::connect(&world.alone.0, stream).await?;
            let (sender, connection) = h2::client::handshake(tls).await?;
            let connection = tokio::spawn(connection);
            ask(&mut connect::open(sender, to).await?).await?;
            Ok(connection.await??)
        }
        Shape::Tunnel => {
            let tls = tls::connect_unflushed(stream, &world.credentials, &world.expected).await?;
            if (tls.cipher_suite(), tls.key_exchange()) != (Some(SUITE), Some(GROUP)) {
                return Err("another cipher or key exchange".into());
            }
            let (connection, sender) = client::start(tls, &Config::default()).await?;
            let connection = tokio::spawn(connection);
            let request = ConnectRequest::new("10.0.0.7:80".parse()?, ConnectHeaders::default());
            let (mut tunnel, _) = sender.connect(request).await?;
            ask(&mut tunnel).await?;
            drop((tunnel, sender));
            Ok(connection.await??)
        }
    }
}

async fn answer(world: Arc<World>, stream: TcpStream, shape: Shape) -> Done {
    match shape {
        Shape::Bare => {
            let acceptor = TlsAcceptor::from(Arc::clone(&world.server));
            echo(&mut acceptor.accept(stream).await?).await
        }
        Shape::Alone => {
            // Who asks notices what fails. At the end h2 may still have something to say to who has closed.
            let each = |mut stream| async move {
                let _ = echo(&mut stream).await;
            };
            let _ = connect::serve(world.alone.1.accept(stream).await?, each).await;
            Ok(())
        }
        Shape::Tunnel => {
            let tls = tls::accept(stream, &world.credentials).await?;
            let mut connection = server::handshake(tls, &Config::default());
            let incoming = connection.accept().await.ok_or("no tunnel")??;
            let mut tunnel = incoming.accept(None)?;
            let echoing = tokio::spawn(async move { echo(&mut tunnel).await });
            while let Some(incoming) = connection.accept().await {
                drop(incoming?);
            }
            echoing.await?
        }
    }
}

async fn ask(io: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Done {
    io.write_all(b"x").await?;
    io.flush().await?;
    io.read_u8().await?;
    io.shutdown().await?;
    // Until the other side has ended too.
    io.read_to_end(&mut Vec::new()).await?;
    Ok(())
}

async fn echo(io: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Done {
    let byte = io.read_u8().await?;
    io.write_all(&[byte]).await?;
    io.flush().await?;
    io.read_to_end(&mut Vec::new()).await?;
    io.shutdown().await?;
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
