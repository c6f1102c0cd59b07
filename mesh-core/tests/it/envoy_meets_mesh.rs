//! R-30: Envoy and a workload of the mesh, one at each end of a tunnel.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use mesh_core::identity::Files;
use mesh_core::{ErrorKind, Mesh, Side, config};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::envoy::{Envoy, Pki, Role, noise, soon};
use crate::require;

const APP: &str = "spiffe://cluster.local/ns/default/sa/app";
const ENVOY: &str = "spiffe://cluster.local/ns/default/sa/envoy";

/// An address that other runs of these tests do not have: the application's ends in 1, Envoy's in 2.
fn address(last: u8) -> Ipv4Addr {
    let id = std::process::id();
    Ipv4Addr::new(127, 192 + (id % 32) as u8, (id / 32 % 256) as u8, last)
}

/// The workload `app` and its mesh: Envoy is another workload, with tunnels on `envoy_port`.
struct Stage {
    pki: Pki,
    folder: TempDir,
    envoy_port: u16,
}

impl Stage {
    fn new(pki: Pki, envoy_port: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            pki,
            folder,
            envoy_port,
        }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("mesh.yaml")
    }

    /// Saves a mesh where Envoy has the service account `account` and `app` admits `principal` alone.
    fn save(&self, account: &str, principal: &str) {
        let (app, envoy, port) = (address(1), address(2), self.envoy_port);
        let yaml = format!(
            r#"
workloads:
- uid: app
  name: app
  namespace: default
  serviceAccount: app
  workloadIps: [{app}]
  protocol: HBONE
  authorizationPolicies: [default/admit]
- uid: envoy
  name: envoy
  namespace: default
  serviceAccount: {account}
  workloadIps: [{envoy}]
  protocol: HBONE
  hbonePort: {port}
policies:
- name: admit
  namespace: default
  scope: WorkloadSelector
  action: Allow
  rules:
  - - - principals: [{{Exact: {principal}}}]
"#
        );
        let new = self.folder.path().join("new");
        std::fs::write(&new, yaml).unwrap();
        std::fs::rename(&new, self.file()).unwrap();
    }

    fn app(&self) -> Mesh {
        let files = self.pki.issue(APP);
        Mesh::builder()
            .workload("default", "app", "app")
            .config(config::File::watch(self.file()))
            .identity(Files::new(files.chain, files.key, files.roots))
            .hbone_port(0)
            .build()
            .unwrap()
    }
}

#[tokio::test]
async fn a_policy_on_envoys_identity_admits_and_cuts_its_tunnels() {
    let test = "a_policy_on_envoys_identity_admits_and_cuts_its_tunnels";
    let Some(program) = require::peer(test, "PEER_ENVOY") else {
        return;
    };
    let stage = Stage::new(Pki::new(), 1);
    stage.save("envoy", "cluster.local/ns/default/sa/envoy");
    let mesh = stage.app();
    let mut listener = mesh.listen(0).await.unwrap();
    let (tunnels, here) = (mesh.hbone_addrs().await[0], listener.local_addr());
    let role = Role::client(&stage.pki.issue(ENVOY), APP, tunnels, &here.to_string());
    let envoy = Envoy::start(&program, &role).await;

    let mut client = TcpStream::connect(envoy.addr()).await.unwrap();
    let mut app = soon("a tunnel", listener.accept()).await.unwrap();
    assert_eq!(app.context().identity().unwrap().to_string(), ENVOY);
    assert_eq!(app.context().destination(), here);
    soon("data both ways", async {
        let (question, answer) = (noise(1 << 20, 1), noise(1 << 20, 2));
        let ask = async {
            client.write_all(&question).await.unwrap();
            client.shutdown().await.unwrap();
            let mut received = Vec::new();
            client.read_to_end(&mut received).await.unwrap();
            assert!(received == answer, "{} bytes", received.len());
        };
        let reply = async {
            let mut received = Vec::new();
            app.read_to_end(&mut received).await.unwrap();
            assert!(received == question, "{} bytes", received.len());
            app.write_all(&answer).await.unwrap();
            app.shutdown().await.unwrap();
        };
        tokio::join!(ask, reply);
    })
    .await;

    let mut live = TcpStream::connect(envoy.addr()).await.unwrap();
    let mut app = soon("a tunnel", listener.accept()).await.unwrap();
    live.write_all(b"x").await.unwrap();
    soon("a byte", app.read_u8()).await.unwrap();
    stage.save("envoy", "cluster.local/ns/default/sa/somebody-else");
    let cut = soon("the cut", app.read_u8()).await.unwrap_err();
    assert_eq!(cut.kind(), std::io::ErrorKind::ConnectionAborted);
    drop(app);
    assert!(soon("the client's end", live.read_u8()).await.is_err());
    envoy.counted("cluster.tunnels.http2.rx_reset").await;
    let mut refused = TcpStream::connect(envoy.addr()).await.unwrap();
    assert!(soon("the refusal", refused.read_u8()).await.is_err());
    envoy.logged(&["tunnel_response:401"]).await;
    mesh.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_workload_reaches_another_one_through_envoy_if_it_is_that_one() {
    let test = "a_workload_reaches_another_one_through_envoy_if_it_is_that_one";
    let Some(program) = require::peer(test, "PEER_ENVOY") else {
        return;
    };
    let pki = Pki::new();
    let behind = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (on, to) = (address(2).into(), behind.local_addr().unwrap());
    let envoy = Envoy::start(&program, &Role::server(&pki.issue(ENVOY), on, APP, to)).await;
    let stage = Stage::new(pki, envoy.addr().port());
    stage.save("envoy", "cluster.local/ns/default/sa/envoy");
    let mesh = stage.app();

    let asked = SocketAddr::from((address(2), 7070)).to_string();
    let open = async { tokio::join!(mesh.connect(&asked), behind.accept()) };
    let (near, far) = soon("a tunnel", open).await;
    let (mut near, mut far) = (near.unwrap(), far.unwrap().0);
    soon("an echo", async {
        near.write_all(b"question").await.unwrap();
        near.shutdown().await.unwrap();
        let mut question = String::new();
        far.read_to_string(&mut question).await.unwrap();
        far.write_all(question.as_bytes()).await.unwrap();
        far.shutdown().await.unwrap();
        let mut echo = String::new();
        near.read_to_string(&mut echo).await.unwrap();
        assert_eq!(echo, "question");
    })
    .await;
    let line = format!("CONNECT {asked} 200 flags - from {APP}");
    envoy.logged(&[&line]).await;

    let stage = Stage::new(stage.pki, envoy.addr().port());
    stage.save("somebody-else", "cluster.local/ns/default/sa/envoy");
    let mesh = stage.app();
    let error = soon("a refusal", mesh.connect(&asked)).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.side()),
        (ErrorKind::TlsHandshake, Side::Upstream),
        "{error:?}"
    );
}
