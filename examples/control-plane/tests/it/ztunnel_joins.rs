//! istio/ztunnel and the SDK join one control plane, have their certificates from it, and talk.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mesh_core::{ControlPlane, Mesh, config, identity};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use crate::require;
use crate::ztunnel::{Pod, Ztunnel};

const SERVER_NAME: &str = "istiod.istio-system.svc";
const PATIENCE: Duration = Duration::from_secs(30);
/// The port of the applications at both ends.
const PORT: u16 = 8080;

/// Fails, naming what was waited for, rather than hanging.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = timeout(PATIENCE, future).await;
    waited.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// The program, killed when dropped.
struct Running {
    process: Child,
    address: SocketAddr,
}

impl Running {
    fn start(pod: &Pod, folder: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_control-plane"))
            .arg("--state")
            .arg(folder.join("state"))
            .arg("--config")
            .arg(folder.join("mesh.yaml"))
            .args(["--listen", &format!("{}:0", pod.outside)])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = process.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let address = line.rsplit(' ').next().unwrap_or_default().trim();
        let address = address.parse().unwrap_or_else(|_| panic!("{line:?}"));
        Self { process, address }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The files with which `account` joins.
fn configure(folder: &Path, account: &str) -> PathBuf {
    let output = folder.join(account);
    let configured = Command::new(env!("CARGO_BIN_EXE_control-plane"))
        .args(["workload", "configure", "--namespace", "default"])
        .args(["--name", account, "--service-account", account])
        .arg("--state")
        .arg(folder.join("state"))
        .arg("--output")
        .arg(&output)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&configured.stderr).into_owned();
    assert!(configured.status.success(), "{said}");
    output
}

/// Saves the manifests: the Pods `app` and `peer`, the Service `app`, and who may call either of them.
fn save(folder: &TempDir, pod: &Pod, admitted_by_app: &str) {
    let (app, peer, service) = (pod.outside, pod.inside, pod.service);
    let pod = |name: &str, address| {
        format!(
            "
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default, labels: {{app: {name}}}}}
spec: {{serviceAccountName: {name}}}
status: {{phase: Running, conditions: [{{type: Ready, status: \"True\"}}], podIP: {address}}}"
        )
    };
    let policy = |of: &str, admitted: &str| {
        format!(
            "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: of-{of}, namespace: default}}
spec:
  selector: {{matchLabels: {{app: {of}}}}}
  rules:
  - from: [{{source: {{principals: [cluster.local/ns/default/sa/{admitted}]}}}}]"
        )
    };
    let yaml = [
        "apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {istio.io/dataplane-mode: ambient}}"
            .to_owned(),
        format!(
            "
---
apiVersion: v1
kind: Service
metadata: {{name: app, namespace: default}}
spec: {{clusterIP: {service}, selector: {{app: app}}, ports: [{{port: 80, targetPort: {PORT}}}]}}"
        ),
        pod("app", app),
        pod("peer", peer),
        policy("app", admitted_by_app),
        policy("peer", "app"),
    ];
    let new = folder.path().join("new");
    fs::write(&new, yaml.concat()).unwrap();
    fs::rename(&new, folder.path().join("mesh.yaml")).unwrap();
}

/// A question one way, its answer the other way, and the end of both.
async fn talk<A, B>(asking: &mut A, answering: &mut B)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let question = vec![b'?'; 1 << 20];
    let ask = async {
        asking.write_all(&question).await.unwrap();
        asking.shutdown().await.unwrap();
        let mut answer = String::new();
        asking.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "an answer");
    };
    let answer = async {
        let mut received = Vec::new();
        answering.read_to_end(&mut received).await.unwrap();
        assert!(received == question, "{} bytes", received.len());
        answering.write_all(b"an answer").await.unwrap();
        answering.shutdown().await.unwrap();
    };
    soon("a question and its answer", async {
        tokio::join!(ask, answer)
    })
    .await;
}

/// V028.
#[tokio::test]
async fn a_ztunnel_joins_and_talks_with_an_application_both_ways() {
    let test = "a_ztunnel_joins_and_talks_with_an_application_both_ways";
    let Some(program) = require::peer(test, "PEER_ZTUNNEL") else {
        return;
    };
    let pod = match Pod::new() {
        Ok(pod) => pod,
        Err(error) => return require::skip(test, &error),
    };
    let folder = tempfile::tempdir().unwrap();
    save(&folder, &pod, "peer");
    let running = Running::start(&pod, folder.path());
    let (app, peer) = (
        configure(folder.path(), "app"),
        configure(folder.path(), "peer"),
    );

    let at = format!("https://{}", running.address);
    let file = |name: &str| peer.join(name).to_str().unwrap().to_owned();
    let (root, token) = (file("root-cert.pem"), file("istio-token"));
    let mut ztunnel = Ztunnel::start(
        &program,
        &pod,
        "default/peer/peer",
        &[
            ("POD_NAME", "peer"),
            ("POD_NAMESPACE", "default"),
            ("XDS_ADDRESS", &at),
            ("XDS_ROOT_CA", &root),
            ("ALT_XDS_HOSTNAME", SERVER_NAME),
            ("CA_ADDRESS", &at),
            ("CA_ROOT_CA", &root),
            ("ALT_CA_HOSTNAME", SERVER_NAME),
            ("AUTH_TOKEN", &token),
        ],
    );
    ztunnel.ready().await;
    let address = format!("{SERVER_NAME}:{}", running.address.port());
    let control_plane = ControlPlane::new(address)
        .at(pod.outside.into())
        .root_cert_file(app.join("root-cert.pem"))
        .token_file(app.join("istio-token"));
    let xds = config::Xds::istiod(control_plane.clone()).addresses([pod.outside.into()]);
    let mesh = Mesh::builder()
        .workload("default", "app", "app")
        .config(xds)
        .identity(identity::Istiod::new(control_plane))
        .build()
        .unwrap();

    let mut listener = mesh.listen(PORT).await.unwrap();
    let dial = TcpStream::connect((pod.service, 80));
    let open = async { tokio::join!(dial, listener.accept()) };
    let (near, far) = soon("a tunnel from ztunnel", open).await;
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    let caller = far.context().identity().unwrap().to_string();
    assert_eq!(caller, "spiffe://cluster.local/ns/default/sa/peer");
    talk(&mut near, &mut far).await;

    let behind = TcpListener::bind((pod.outside, 0)).await.unwrap();
    pod.application(PORT, behind.local_addr().unwrap());
    let asked = SocketAddr::from((pod.inside, PORT)).to_string();
    let open = async { tokio::join!(mesh.connect(&asked), behind.accept()) };
    let (near, far) = soon("a tunnel to ztunnel", open).await;
    talk(&mut near.unwrap(), &mut far.unwrap().0).await;

    // What the files come to say holds at both.
    save(&folder, &pod, "somebody-else");
    let refused = async {
        while !ztunnel.log().contains("http status: 401") {
            let mut client = TcpStream::connect((pod.service, 80)).await.unwrap();
            // One that is still admitted is cut when it no longer is.
            let _ = client.read(&mut [0; 1]).await;
            sleep(Duration::from_millis(20)).await;
        }
    };
    soon("the application to refuse", refused).await;
    mesh.shutdown(Duration::ZERO).await;
}
