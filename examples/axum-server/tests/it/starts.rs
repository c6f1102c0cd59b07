//! The program as a Pod: it starts, or says what is wrong. The Pod's address is the loopback address that the
//! manifests give it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use control_plane::Running;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Longer than anything takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A control plane, and what a Pod gets from its cluster.
struct Cluster {
    folder: TempDir,
    running: Running,
    ip: String,
}

impl Cluster {
    /// Each test has an address of its own for the Pod.
    async fn new(ip: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shipped =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("mesh.yaml")).unwrap();
        let manifests = folder.path().join("mesh.yaml");
        fs::write(&manifests, shipped.replace("127.0.10.1", ip)).unwrap();
        let state = folder.path().join("state");
        let running = control_plane::start(&manifests, &state, "cluster.local")
            .await
            .unwrap();
        let cluster = Self {
            folder,
            running,
            ip: ip.to_owned(),
        };
        let token = cluster.running.token("default", "hello", PATIENCE);
        fs::write(cluster.token(), token).unwrap();
        cluster
    }

    fn token(&self) -> PathBuf {
        self.folder.path().join("istio-token")
    }

    /// By a name that is in the server's certificate.
    fn address(&self) -> String {
        format!("localhost:{}", self.running.address().port())
    }

    fn start(&self, root: &Path) -> Program {
        let mut command = Command::new(env!("CARGO_BIN_EXE_axum-server"));
        command
            .env_clear()
            .env("POD_NAME", "hello")
            .env("POD_NAMESPACE", "default")
            .env("SERVICE_ACCOUNT", "hello")
            .env("POD_IPS", &self.ip)
            .env("CLUSTER_ID", "Kubernetes")
            .env("ADMIN", "off")
            .env("CONTROL_PLANE", self.address())
            .env("TOKEN_FILE", self.token())
            .env("ROOT_CERT_FILE", root);
        Program::new(&mut command)
    }

    fn start_well(&self) -> Program {
        self.start(&self.running.root_cert_file())
    }

    async fn get(&self, port: u16, path: &str) -> String {
        let mut io = TcpStream::connect((self.ip.as_str(), port)).await.unwrap();
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
            self.ip
        );
        io.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        io.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

type Lines = BufReader<Box<dyn tokio::io::AsyncRead + Send + Unpin>>;

struct Program {
    child: Child,
    output: Lines,
    errors: Lines,
}

impl Program {
    fn new(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (output, errors) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        Self {
            child,
            output: BufReader::new(Box::new(output)),
            errors: BufReader::new(Box::new(errors)),
        }
    }

    /// By SIGTERM, and well.
    async fn ends_when_told(&mut self) {
        let id = self.child.id().expect("still up");
        let kill = Command::new("sh")
            .arg("-c")
            .arg(format!("kill -TERM {id}"))
            .status()
            .await;
        assert!(kill.unwrap().success());
        let ended = timeout(PATIENCE, self.child.wait()).await;
        let ended = ended.expect("the end").unwrap();
        assert!(ended.success(), "{ended}");
    }
}

/// Reads until a line has all of it; says what else came if none does.
async fn says(lines: &mut Lines, parts: &[&str]) -> String {
    let mut all = String::new();
    let reads = async {
        loop {
            let mut line = String::new();
            let count = lines.read_line(&mut line).await.unwrap();
            all.push_str(&line);
            if count == 0 || parts.iter().all(|part| line.contains(part)) {
                return (count > 0).then_some(line);
            }
        }
    };
    let found = timeout(PATIENCE, reads).await.ok().flatten();
    found.unwrap_or_else(|| panic!("expected {parts:?}, it said: {all}"))
}

#[tokio::test]
async fn a_pod_that_kubernetes_ends_drains_and_ends_well() {
    let cluster = Cluster::new("127.0.10.28").await;
    let mut program = cluster.start_well();
    says(&mut program.output, &["hello is up on 127.0.10.28:8080"]).await;
    program.ends_when_told().await;
}

/// As the first process of a container it would not even be killed by a signal that it does not handle.
#[tokio::test]
async fn a_pod_that_is_ended_while_it_waits_for_its_start_ends_well() {
    let cluster = Cluster::new("127.0.10.29").await;
    fs::remove_file(cluster.token()).unwrap();
    let mut program = cluster.start_well();
    says(&mut program.errors, &["WARN", "is missing"]).await;
    program.ends_when_told().await;
}

/// The same outside of Kubernetes, where it reads files.
#[tokio::test]
async fn one_that_is_ended_while_it_waits_for_its_files_ends_well() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_axum-server"));
    // A file is no folder: it is told at once that this cannot be read, and waited for.
    command
        .env_clear()
        .args([
            "--file",
            concat!(env!("CARGO_MANIFEST_DIR"), "/mesh.yaml/none"),
        ])
        .arg("--ca-dir")
        .arg(folder.path());
    let mut program = Program::new(&mut command);
    says(&mut program.errors, &["WARN", "waiting for it"]).await;
    program.ends_when_told().await;
}

#[tokio::test]
async fn a_pod_joins_and_answers_at_istios_ports() {
    let cluster = Cluster::new("127.0.10.21").await;
    let mut program = cluster.start_well();
    says(&mut program.output, &["hello is up on 127.0.10.21:8080"]).await;
    let ready = cluster.get(15021, "/healthz/ready").await;
    assert!(
        ready.starts_with("HTTP/1.1 200") && ready.ends_with("ready\n"),
        "{ready}"
    );
    let metrics = cluster.get(15020, "/stats/prometheus").await;
    let build = format!(
        r#"istio_build{{component="mesh-core",tag="{}"}} 1"#,
        env!("CARGO_PKG_VERSION")
    );
    assert!(metrics.contains(&build), "{metrics}");
    // What the process knows is not for the network.
    for port in [15020, 15021] {
        let dump = cluster.get(port, "/config_dump").await;
        assert!(dump.starts_with("HTTP/1.1 404"), "{dump}");
    }
    let clients = cluster.running.server().clients();
    let client = clients.first().expect("it is connected");
    assert_eq!(
        client.node_id(),
        "sidecar~127.0.10.21~hello.default~default.svc.cluster.local"
    );
    // As `istioctl proxy-status` shows it.
    let version = format!("mesh-core-{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(client.version(), Some(&*version));
}

/// Of the process's threads one takes in what the control plane says, and has the lowest priority of all.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_the_control_plane_says_gives_way_to_requests() {
    let cluster = Cluster::new("127.0.10.30").await;
    let mut program = cluster.start_well();
    says(&mut program.output, &["hello is up on"]).await;
    let threads = format!("/proc/{}/task", program.child.id().unwrap());
    let niceness = || -> Vec<String> {
        let stats = fs::read_dir(&threads).unwrap();
        let stats = stats.filter_map(|one| fs::read_to_string(one.ok()?.path().join("stat")).ok());
        let control = stats.filter_map(|stat| {
            let (_, rest) = stat.split_once("(mesh-control) ")?;
            // The third field of all is the first here, and the nineteenth it is.
            rest.split(' ').nth(16).map(str::to_owned)
        });
        control.collect()
    };
    let lowered = async {
        while !niceness().contains(&"19".to_owned()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let lowered = timeout(PATIENCE, lowered).await;
    lowered.unwrap_or_else(|_| panic!("{:?}", niceness()));
    program.ends_when_told().await;
}

#[tokio::test]
async fn it_says_that_the_port_of_tunnels_is_taken() {
    let cluster = Cluster::new("127.0.10.22").await;
    let _ztunnel = TcpListener::bind("127.0.10.22:15008").await.unwrap();
    let mut program = cluster.start_well();
    let expected = ["127.0.10.22:15008", "istio.io/dataplane-mode: none"];
    says(&mut program.errors, &expected).await;
}

#[tokio::test]
async fn it_says_that_the_token_is_missing() {
    let cluster = Cluster::new("127.0.10.23").await;
    fs::remove_file(cluster.token()).unwrap();
    let mut program = cluster.start_well();
    let token = cluster.token().display().to_string();
    says(&mut program.errors, &["WARN", &token, "is missing"]).await;
}

#[tokio::test]
async fn it_says_that_the_token_is_refused() {
    let cluster = Cluster::new("127.0.10.24").await;
    fs::write(cluster.token(), "a.b.c").unwrap();
    let mut program = cluster.start_well();
    let address = cluster.address();
    says(
        &mut program.errors,
        &["WARN", &address, "refused the token"],
    )
    .await;
}

#[tokio::test]
async fn it_says_that_the_root_does_not_match() {
    let cluster = Cluster::new("127.0.10.25").await;
    let another = Cluster::new("127.0.10.26").await;
    let root = another.running.root_cert_file();
    let mut program = cluster.start(&root);
    let file = root.display().to_string();
    says(&mut program.errors, &["WARN", "root does not match", &file]).await;
}
