//! The program, in a folder and on ports of its own.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use mesh_core::config::Xds;
use mesh_core::identity::Istiod;
use mesh_core::{Builder, ControlPlane, Error, Mesh, OutboundPolicy, WorkloadId};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::ServiceExt;

/// How long anything may take before the test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Plane {
    folder: TempDir,
    /// The first three parts of its addresses.
    network: String,
    address: SocketAddr,
    http: SocketAddr,
    arguments: Vec<String>,
    running: Option<Child>,
}

impl Plane {
    /// Starts the program with these manifests and arguments.
    pub(crate) async fn start(last: u32, manifests: &str, arguments: &[&str]) -> Self {
        let mut plane = Self::absent(last, manifests, arguments);
        plane.run();
        plane.up().await;
        plane
    }

    /// What the program needs, before it is started. Manifests have addresses in 127.0.1.0/24; `last`, which is
    /// below 32, tells the planes of one run apart, the process id tells runs apart.
    pub(crate) fn absent(last: u32, manifests: &str, arguments: &[&str]) -> Self {
        let id = std::process::id();
        let network = format!("127.{}.{}", 128 + id % 64, (id / 64 % 7) * 32 + last);
        let address: IpAddr = format!("{network}.1").parse().unwrap();
        let plane = Self {
            folder: tempfile::tempdir().unwrap(),
            network,
            address: SocketAddr::new(address, 15012),
            http: SocketAddr::new(address, 15014),
            arguments: arguments.iter().map(|one| (*one).to_owned()).collect(),
            running: None,
        };
        plane.save(manifests);
        plane
    }

    pub(crate) async fn up(&self) {
        until("the control plane is up", async || {
            self.page("/ready").await.is_some()
        })
        .await;
    }

    /// The address that manifests have as 127.0.1.`last`.
    pub(crate) fn ip(&self, last: u8) -> IpAddr {
        format!("{}.{last}", self.network).parse().unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the manifests, at once.
    pub(crate) fn save(&self, manifests: &str) {
        let beside = self.path("mesh.new");
        let manifests = manifests.replace("127.0.1.", &format!("{}.", self.network));
        fs::write(&beside, manifests).unwrap();
        fs::rename(beside, self.path("mesh.yaml")).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_control-plane"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    pub(crate) fn run(&mut self) {
        let mut command = self.command();
        command.arg("--state").arg(self.path("state"));
        command.arg("--config").arg(self.path("mesh.yaml"));
        command.arg("--listen").arg(self.address.to_string());
        command.arg("--http").arg(self.http.to_string());
        command.args(&self.arguments);
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("log"));
        command.env_remove("RUST_LOG").stderr(log.unwrap());
        self.running = Some(command.spawn().unwrap());
    }

    /// What the program said on standard error, unless it is asked for more.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Kills the program, which is told nothing.
    pub(crate) fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.kill().unwrap();
            running.wait().unwrap();
        }
    }

    /// Stops the program where it is: its kernel accepts connections and what comes on them, and nobody answers.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let running = self.running.as_ref().expect("it runs");
        kill_process(Pid::from_child(running), signal).unwrap();
    }

    /// Writes the five files of a workload that runs as its name, and says where they are.
    pub(crate) fn configure(&self, name: &str, ip: IpAddr) -> PathBuf {
        self.configure_as(name, name, ip, &[])
    }

    pub(crate) fn configure_as(
        &self,
        name: &str,
        account: &str,
        ip: IpAddr,
        arguments: &[&str],
    ) -> PathBuf {
        let folder = self.path(name);
        let mut command = self.command();
        command.args(["workload", "configure", "--namespace", "default"]);
        command.args(["--name", name, "--service-account", account]);
        command.arg("--state").arg(self.path("state"));
        command.arg("--output").arg(&folder);
        command.args(["--ingress-ip", &self.address.ip().to_string()]);
        command.args(["--internal-ip", &ip.to_string()]);
        command.args(arguments);
        assert!(command.status().unwrap().success());
        folder
    }

    /// Where clients call.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A page of the program's, if there is one.
    pub(crate) async fn page(&self, path: &str) -> Option<String> {
        let (status, body) = self.answer(path).await?;
        (status == 200).then_some(body)
    }

    /// What the program answers: a status and a text.
    pub(crate) async fn answer(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.http).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    }

    pub(crate) async fn syncz(&self) -> Value {
        let page = self.page("/debug/syncz").await.expect("it is up");
        serde_json::from_str(&page).unwrap()
    }
}

impl Drop for Plane {
    #[expect(clippy::print_stderr, reason = "who sees the test fail wants it")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        self.kill();
    }
}

/// A mesh that joins by its files.
pub(crate) fn join(files: &Path) -> Mesh {
    let builder = Mesh::builder().bootstrap_dir(files).unwrap();
    builder
        .outbound_policy(OutboundPolicy::RegistryOnly)
        .start_timeout(PATIENCE)
        .build()
        .unwrap()
}

/// The control plane that the files of a host lead to, at this address.
pub(crate) fn control_plane(files: &Path, at: SocketAddr) -> ControlPlane {
    ControlPlane::new(format!("istiod.istio-system.svc:{}", at.port()))
        .at(at.ip())
        .root_cert_file(files.join("root-cert.pem"))
        .token_file(files.join("istio-token"))
        .cluster_id("Kubernetes")
}

/// As [`join`], of parts that a test has changed.
pub(crate) fn joining(
    name: &str,
    own: IpAddr,
    discovery: Xds,
    identity: Istiod,
) -> Builder<WorkloadId, Xds, Istiod> {
    Mesh::builder()
        .workload("default", name, name)
        .config(discovery.addresses([own]))
        .identity(identity)
        .outbound_policy(OutboundPolicy::RegistryOnly)
        .start_timeout(PATIENCE)
}

/// A page of the mesh's own.
pub(crate) async fn told(mesh: &Mesh, page: &str) -> Bytes {
    let request = Request::get(page).body(()).unwrap();
    let response = match mesh.admin().oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    response.into_body().collect().await.unwrap().to_bytes()
}

/// Why what the mesh goes by may be old, if it may.
pub(crate) async fn stale(mesh: &Mesh) -> Option<String> {
    let dump: Value = serde_json::from_slice(&told(mesh, "/config_dump").await).unwrap();
    dump["stale"]["reason"].as_str().map(str::to_owned)
}

/// What a request is answered: a status with its text, or why there is none.
pub(crate) async fn request(
    mesh: &Mesh,
    method: &str,
    uri: &str,
) -> Result<(StatusCode, String), Error> {
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = mesh.http_client().request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// Waits until it is so.
pub(crate) async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let done = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(done.is_ok(), "in {PATIENCE:?}: {what}");
}
