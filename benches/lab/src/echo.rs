//! The server: a member of the mesh that echoes on every tunnel, and whose policies change as it is told.
//!
//! On standard input: a change of `changes`, or `revoke` and `restore`, after which a CRL lists the certificate of the
//! client `refused`, or does not; with either comes the certificate that is in the files now. Each is answered by the time at which the change began and the milliseconds until it
//! was in effect, which of a CRL nobody is told: `NaN`. `tasks` is answered by how many there are.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::stream::unfold;
use mesh_authz::Identity;
use mesh_core::config::{ConfigLink, ConfigSource};
use mesh_core::identity::{CertificateSource, CertificateStream, Error as SourceError, ErrorKind};
use mesh_core::{Error, Mesh, MeshStream};
use mesh_hbone::client::{self, ConnectRequest, Sender};
use mesh_hbone::config::Config;
use mesh_hbone::headers::ConnectHeaders;
use mesh_hbone::tls::{self, Bundle, Credentials};
use mesh_hbone::{Error as HboneError, Tunnel};
use mesh_xds::model::Batch;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::args::{Echo, say};
use crate::certificates::{Root, identity};
use crate::changes::{Change, first};
use crate::processes::Process;
use crate::{BoxError, Done};

/// Where the server is.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 77, 2);
const HBONE: u16 = 15008;
pub(crate) const PORT: u16 = 7070;

/// The client that policies refuse, and the one that they do not.
pub(crate) const REFUSED: &str = "refused";
pub(crate) const ADMITTED: &str = "admitted";

/// A client that no policy admits, ever.
pub(crate) const STRANGER: &str = "stranger";

/// The list that revokes the certificate of [`REFUSED`].
const CRL: &str = "refused.crl";

/// The server, a process of its own, and the folder with the files of all members.
pub(crate) struct Deployment {
    pub(crate) root: Root,
    pub(crate) server: Process,
    /// Gone last.
    pub(crate) folder: TempDir,
}

impl Deployment {
    pub(crate) fn start() -> Result<Self, BoxError> {
        let folder = tempfile::tempdir()?;
        let root = prepare(folder.path())?;
        let server = member(&folder, "server", &["echo"])?;
        Ok(Self {
            root,
            server,
            folder,
        })
    }

    /// A member in a role of this program, with arguments of that.
    pub(crate) fn member(&self, name: &'static str, role: &[&str]) -> Result<Process, BoxError> {
        member(&self.folder, name, role)
    }

    /// What the server answers to a line.
    pub(crate) fn ask(&mut self, line: &str) -> Result<String, BoxError> {
        self.server.tell(line)?;
        self.server.line()
    }

    /// Clients that open so many tunnels a second, or say so many bytes on tunnels that they keep.
    pub(crate) fn clients(
        &self,
        name: &'static str,
        rate: u64,
        kept: bool,
    ) -> Result<Process, BoxError> {
        let rate = rate.to_string();
        let role = ["newcomers", "--rate", &rate, "--kept"];
        self.member(name, &role[..3 + usize::from(kept)])
    }
}

fn member(folder: &TempDir, name: &'static str, role: &[&str]) -> Result<Process, BoxError> {
    let path = folder.path();
    let named = path.to_str().ok_or("a folder whose name is no text")?;
    Process::role_here(name, path, &[role, &["--folder", named]].concat())
}

/// Writes the files of all members.
fn prepare(folder: &Path) -> Result<Root, BoxError> {
    let root = Root::new()?;
    root.write(folder, SERVER.into())?;
    for account in ["server", ADMITTED, STRANGER] {
        root.write_member(folder, account)?;
    }
    let refused = root.write_member(folder, REFUSED)?;
    fs::write(folder.join(CRL), root.revoke(&refused)?)?;
    Ok(root)
}

/// Microseconds since 1970: what processes of one machine can compare.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO).as_micros() as u64
}

struct Told(mpsc::UnboundedReceiver<Batch>);

impl ConfigSource for Told {
    async fn run(mut self, link: ConfigLink) -> Result<(), Error> {
        while let Some(batch) = self.0.recv().await {
            link.apply(batch)?;
        }
        Ok(())
    }
}

/// The member's files, with a list that is told: no file is polled, so that times are of the change and not of that.
struct Listing {
    folder: PathBuf,
    revoked: watch::Receiver<bool>,
}

impl Listing {
    fn bundle(folder: &Path, revoked: bool) -> Result<Bundle, BoxError> {
        let read = |name: &str| fs::read(folder.join(name));
        let list = if revoked { read(CRL)? } else { Vec::new() };
        let (chain, key) = (read("server.crt")?, read("server.key")?);
        Ok(Bundle::from_pem(&chain, &key, &read("root.pem")?, &list)?)
    }
}

impl CertificateSource for Listing {
    fn watch(&self, _: Identity) -> CertificateStream {
        let mut revoked = self.revoked.clone();
        revoked.mark_changed();
        let begin = (self.folder.clone(), revoked);
        Box::pin(unfold(begin, async |(folder, mut revoked)| {
            revoked.changed().await.ok()?;
            let listed = *revoked.borrow_and_update();
            let bundle = Self::bundle(&folder, listed);
            let bundle =
                bundle.map_err(|error| SourceError::new(ErrorKind::Invalid, error.to_string()));
            Some((bundle, (folder, revoked)))
        }))
    }
}

pub(crate) async fn run(of: Echo) -> Done {
    let (changes, told) = mpsc::unbounded_channel();
    let (revoke, revoked) = watch::channel(false);
    let mesh = Mesh::builder()
        .workload("default", "server", "server")
        .config(Told(told))
        .identity(Listing {
            folder: of.folder,
            revoked,
        })
        .max_connections(30_000)
        .build()?;
    let apply = async |Change { updates, removed }| -> Result<u64, BoxError> {
        let (answer, answered) = oneshot::channel();
        let batch = Batch::new(updates, removed).with_reply(|verdicts| {
            let _ = answer.send(verdicts);
        });
        let begin = now();
        changes
            .send(batch)
            .map_err(|_| "the configuration has ended")?;
        for verdict in answered.await? {
            verdict.result().map_err(ToString::to_string)?;
        }
        Ok(begin)
    };
    apply(first()?).await?;
    let mut listener = mesh.listen(PORT).await?;
    tokio::spawn(async move {
        while let Ok(stream) = listener.accept().await {
            tokio::spawn(echo(stream));
        }
    });
    say("ready");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        if let Some(listed) = ["restore", "revoke"].iter().position(|told| *told == line) {
            let begin = now();
            revoke.send_replace(listed == 1);
            say(&format!("{begin} NaN"));
            continue;
        }
        if line == "tasks" {
            let tasks = Handle::current().metrics().num_alive_tasks();
            say(&tasks.to_string());
            continue;
        }
        let change = Change::named(&line)?;
        let since = Instant::now();
        let begin = apply(change).await?;
        let applied = since.elapsed().as_secs_f64() * 1e3;
        say(&format!("{begin} {applied:.3}"));
    }
    Ok(())
}

async fn echo(mut stream: MeshStream) {
    let mut buffer = [0; 64];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    let _ = stream.shutdown().await;
}

/// A connection of a bare client to the server.
pub(crate) async fn connect(credentials: &Credentials) -> Result<Sender, BoxError> {
    speak(dial().await?, credentials).await
}

pub(crate) async fn dial() -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect((SERVER, HBONE)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// TLS and HTTP/2 on what was dialled.
pub(crate) async fn speak(
    stream: TcpStream,
    credentials: &Credentials,
) -> Result<Sender, BoxError> {
    let expected = [identity("server").parse()?];
    let stream = tls::connect(stream, credentials, &expected).await?;
    let (connection, sender) = client::handshake(stream, &Config::default()).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// A tunnel on it that has echoed.
pub(crate) async fn tunnel(sender: &Sender) -> Result<Tunnel, BoxError> {
    let authority = SocketAddr::from((SERVER, PORT)).to_string();
    let authority = authority.parse().map_err(|error: HboneError| error)?;
    let request = ConnectRequest::new(authority, ConnectHeaders::default());
    let (mut tunnel, _) = sender.connect(request).await?;
    ping(&mut tunnel).await?;
    Ok(tunnel)
}

pub(crate) async fn ping(tunnel: &mut Tunnel) -> std::io::Result<()> {
    tunnel.write_all(b"x").await?;
    tunnel.read_u8().await?;
    Ok(())
}

/// Where handshakes go.
pub(crate) fn hbone() -> SocketAddr {
    SocketAddr::from((SERVER, HBONE))
}
