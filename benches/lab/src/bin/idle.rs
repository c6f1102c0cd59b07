//! What an idle tunnel keeps on the heap of one end: `cargo run --release -p lab --bin idle [tunnels]`.
//!
//! The end that is measured and its peer are processes of their own. Each tunnel has moved a byte each way before it
//! is idle, all are on one connection, and what the allocator was asked for is what counts, in steps of 16 bytes.
#![allow(clippy::print_stdout, reason = "it is a program")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::error::Error;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mesh_core::{Mesh, MeshListener, MeshStream, config, identity};
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
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

type BoxError = Box<dyn Error + Send + Sync>;
type Done = Result<(), BoxError>;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// The one way to see allocations.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size().next_multiple_of(16), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size().next_multiple_of(16), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PORT: u16 = 7070;
/// Until tasks have done what they do when nothing comes any more.
const SETTLE: Duration = Duration::from_millis(500);

fn main() -> Done {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match words[..] {
        ["peer", end, folder, tunnels] => {
            let (end, tunnels) = (End::named(end)?, tunnels.parse()?);
            runtime.block_on(end.run(Path::new(folder), tunnels, None))
        }
        ["measure", end, folder, tunnels] => {
            let (end, tunnels) = (End::named(end)?, tunnels.parse()?);
            runtime.block_on(end.run(Path::new(folder), tunnels, Some(Marks::default())))
        }
        [] => report(100),
        [tunnels] => report(tunnels.parse()?),
        _ => Err("expected: idle [tunnels]".into()),
    }
}

/// What is measured, in processes of its own each.
fn report(tunnels: usize) -> Done {
    println!("{tunnels} idle tunnels on a connection; bytes of heap at one end");
    println!("{:<28}{:>12}{:>14}", "", "per tunnel", "per connection");
    for end in END {
        let folder = tempfile::tempdir()?;
        prepare(folder.path())?;
        let run = |role: &str, end: End| -> Result<Running, BoxError> {
            let mut child = Command::new(std::env::current_exe()?)
                .args([role, end.name()])
                .arg(folder.path())
                .arg(tunnels.to_string())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            let stdout = child.stdout.take().ok_or("it says nothing")?;
            let mut stdout = BufReader::new(stdout);
            if end.listens() {
                stdout.read_line(&mut String::new())?;
            }
            Ok(Running { child, stdout })
        };
        // Who listens is first.
        let (measured, peer);
        if end.listens() {
            measured = run("measure", end)?;
            peer = run("peer", end.other())?;
        } else {
            peer = run("peer", end.other())?;
            measured = run("measure", end)?;
        }
        let mut measured = measured;
        let mut line = String::new();
        measured.stdout.read_line(&mut line)?;
        let mut marks = line.split_whitespace().map(str::parse::<f64>);
        let mut next = || marks.next().ok_or("the end that is measured has ended");
        let (before, first, all) = (next()??, next()??, next()??);
        let each = (all - first) / (tunnels - 1) as f64;
        let connection = first - before - each;
        println!("{:<28}{each:>12.0}{connection:>14.0}", end.name());
        drop((measured, peer));
    }
    Ok(())
}

/// A process, killed when dropped.
struct Running {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Live bytes: with nothing, with one tunnel, with all.
#[derive(Debug, Default)]
struct Marks(Vec<usize>);

impl Marks {
    async fn note(this: &mut Option<Self>) {
        if let Some(Self(marks)) = this {
            sleep(SETTLE).await;
            marks.push(LIVE.load(Ordering::Relaxed));
        }
    }

    fn say(this: &Option<Self>) -> Done {
        if let Some(Self(marks)) = this {
            let marks: Vec<String> = marks.iter().map(ToString::to_string).collect();
            println!("{}", marks.join(" "));
            std::io::stdout().flush()?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// mesh-hbone's tunnels alone.
    HboneClient,
    HboneServer,
    /// `Mesh::connect` and `Mesh::listen`: what an application holds.
    MeshClient,
    MeshServer,
}

const END: [End; 4] = [
    End::HboneClient,
    End::HboneServer,
    End::MeshClient,
    End::MeshServer,
];

impl End {
    fn name(self) -> &'static str {
        match self {
            Self::HboneClient => "mesh-hbone-client",
            Self::HboneServer => "mesh-hbone-server",
            Self::MeshClient => "mesh-core-connect",
            Self::MeshServer => "mesh-core-listen",
        }
    }

    fn named(name: &str) -> Result<Self, BoxError> {
        let found = END.into_iter().find(|end| end.name() == name);
        found.ok_or_else(|| format!("no end {name:?}").into())
    }

    fn listens(self) -> bool {
        matches!(self, Self::HboneServer | Self::MeshServer)
    }

    fn other(self) -> Self {
        match self {
            Self::HboneClient => Self::HboneServer,
            Self::HboneServer => Self::HboneClient,
            Self::MeshClient => Self::MeshServer,
            Self::MeshServer => Self::MeshClient,
        }
    }

    async fn run(self, folder: &Path, tunnels: usize, mut marks: Option<Marks>) -> Done {
        match self {
            Self::HboneClient => {
                let credentials = credentials(folder, "client")?;
                let expected = [spiffe("server").parse()?];
                Marks::note(&mut marks).await;
                let stream = TcpStream::connect((server(folder), PORT)).await?;
                let tls = tls::connect(stream, &credentials, &expected).await?;
                let (connection, sender) = client::handshake(tls, &Config::default()).await?;
                tokio::spawn(connection);
                let mut held = Vec::with_capacity(tunnels);
                while held.len() < tunnels {
                    let request = ConnectRequest::new(
                        SocketAddr::from((server(folder), PORT))
                            .to_string()
                            .parse()?,
                        ConnectHeaders::default(),
                    );
                    let (mut tunnel, _) = sender.connect(request).await?;
                    ask(&mut tunnel).await?;
                    held.push(tunnel);
                    if held.len() == 1 {
                        Marks::note(&mut marks).await;
                        // The other end looks now.
                        sleep(SETTLE * 3).await;
                    }
                }
                Marks::note(&mut marks).await;
                Marks::say(&marks)?;
                stay(held).await
            }
            Self::HboneServer => {
                let credentials = credentials(folder, "server")?;
                let listener = TcpListener::bind((server(folder), PORT)).await?;
                Marks::note(&mut marks).await;
                ready()?;
                let (stream, _) = listener.accept().await?;
                let tls = tls::accept(stream, &credentials).await?;
                let mut connection = server::handshake(tls, &Config::default());
                let (arrived, mut arriving) = tokio::sync::mpsc::unbounded_channel();
                tokio::spawn(async move {
                    while let Some(Ok(incoming)) = connection.accept().await {
                        if let Ok(tunnel) = incoming.accept(None) {
                            let _ = arrived.send(tunnel);
                        }
                    }
                });
                let mut held = Vec::with_capacity(tunnels);
                while held.len() < tunnels {
                    let mut tunnel = arriving.recv().await.ok_or("the client has gone")?;
                    echo(&mut tunnel).await?;
                    held.push(tunnel);
                    if held.len() == 1 {
                        Marks::note(&mut marks).await;
                    }
                }
                Marks::note(&mut marks).await;
                Marks::say(&marks)?;
                stay(held).await
            }
            Self::MeshClient => {
                let mesh = join(folder, "client").await?;
                Marks::note(&mut marks).await;
                let to = SocketAddr::from((server(folder), PORT)).to_string();
                let mut held: Vec<MeshStream> = Vec::with_capacity(tunnels);
                while held.len() < tunnels {
                    let mut stream = mesh.connect(&to).await?;
                    ask(&mut stream).await?;
                    held.push(stream);
                    if held.len() == 1 {
                        Marks::note(&mut marks).await;
                        // The other end looks now.
                        sleep(SETTLE * 3).await;
                    }
                }
                Marks::note(&mut marks).await;
                Marks::say(&marks)?;
                stay((held, mesh)).await
            }
            Self::MeshServer => {
                let mesh = join(folder, "server").await?;
                let mut listener: MeshListener = mesh.listen(PORT).await?;
                Marks::note(&mut marks).await;
                ready()?;
                let mut held = Vec::with_capacity(tunnels);
                while held.len() < tunnels {
                    let mut stream = listener.accept().await?;
                    echo(&mut stream).await?;
                    held.push(stream);
                    if held.len() == 1 {
                        Marks::note(&mut marks).await;
                    }
                }
                Marks::note(&mut marks).await;
                Marks::say(&marks)?;
                stay((held, mesh)).await
            }
        }
    }
}

fn ready() -> Done {
    println!("ready");
    Ok(std::io::stdout().flush()?)
}

/// Until the process is killed.
async fn stay<T>(held: T) -> Done {
    std::future::pending::<()>().await;
    drop(held);
    Ok(())
}

async fn ask(io: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Done {
    io.write_all(b"x").await?;
    io.flush().await?;
    io.read_u8().await?;
    Ok(())
}

async fn echo(io: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Done {
    let byte = io.read_u8().await?;
    io.write_all(&[byte]).await?;
    io.flush().await?;
    Ok(())
}

fn spiffe(account: &str) -> String {
    format!("spiffe://cluster.local/ns/default/sa/{account}")
}

/// The addresses are of the folder's process, so that two of these do not meet.
fn address(folder: &Path, last: u8) -> Ipv4Addr {
    let text = fs::read_to_string(folder.join("id")).unwrap_or_default();
    let id: u32 = text.parse().unwrap_or_default();
    Ipv4Addr::new(127, 64 + (id % 32) as u8, (id / 32 % 256) as u8, last)
}

fn server(folder: &Path) -> Ipv4Addr {
    address(folder, 2)
}

/// Writes everybody's certificates and the mesh of both.
fn prepare(folder: &Path) -> Done {
    fs::write(folder.join("id"), std::process::id().to_string())?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    fs::write(folder.join("root.pem"), root.pem())?;
    let mut mesh = "workloads:".to_owned();
    for (account, last) in [("client", 1), ("server", 2)] {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(spiffe(account))?)];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &root)?;
        fs::write(folder.join(format!("{account}.crt")), leaf.pem())?;
        fs::write(folder.join(format!("{account}.key")), key.serialize_pem())?;
        mesh += &format!(
            "
- uid: {account}
  name: {account}
  namespace: default
  serviceAccount: {account}
  trustDomain: cluster.local
  workloadIps: [{}]
  protocol: HBONE",
            address(folder, last)
        );
    }
    Ok(fs::write(folder.join("mesh.yaml"), mesh)?)
}

fn credentials(folder: &Path, account: &str) -> Result<Credentials, BoxError> {
    let read = |name: &str| fs::read(folder.join(name));
    let chain = read(&format!("{account}.crt"))?;
    let key = read(&format!("{account}.key"))?;
    let bundle = Bundle::from_pem(&chain, &key, &read("root.pem")?, &[])?;
    Ok(Credentials::new(
        Provider::aws_lc_rs(),
        bundle,
        Options::default(),
    )?)
}

async fn join(folder: &Path, account: &str) -> Result<Mesh, BoxError> {
    let path = |name: &str| folder.join(name);
    let mesh = Mesh::builder()
        .workload("default", account, account)
        .config(config::File::watch(path("mesh.yaml")))
        .identity(identity::Files::new(
            path(&format!("{account}.crt")),
            path(&format!("{account}.key")),
            path("root.pem"),
        ))
        .build()?;
    mesh.ready().await?;
    Ok(mesh)
}
