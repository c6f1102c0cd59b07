//! R-30: istio/ztunnel and a workload of the mesh, one at each end of a tunnel.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use mesh_core::identity::Istiod;
use mesh_core::{ErrorKind, Mesh, config};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::envoy::{noise, soon};
use crate::ztunnel::{Pod, Ztunnel};
use crate::{istiod, require};

const HOUR: Duration = Duration::from_secs(3600);
/// The ports of the applications at both ends, and one that policy keeps to itself.
const OPEN: u16 = 8080;
const FORBIDDEN: u16 = 8081;

/// The workload `app`, which is a mesh in this process, and the workload `peer`, which has a ztunnel.
struct Stage {
    pod: Pod,
    istiod: Arc<istiod::Istiod>,
    ztunnel: Ztunnel,
    folder: TempDir,
}

impl Stage {
    /// Says on standard output why there is none.
    async fn new(test: &str) -> Option<Self> {
        let program = require::peer(test, "PEER_ZTUNNEL")?;
        let pod = Pod::new()
            .map_err(|error| require::skip(test, &error))
            .ok()?;
        let folder = tempfile::tempdir().unwrap();
        let istiod = istiod::Istiod::start(24 * HOUR, SystemTime::now);
        let certificates = serve(&istiod, &pod).await;
        save(&folder, &pod, "app", "peer");
        let file = folder.path().join("mesh.yaml");
        let mut ztunnel = Ztunnel::start(
            &program,
            &pod,
            "default/peer/peer",
            &[
                ("LOCAL_XDS_PATH", file.to_str().unwrap()),
                ("XDS_ADDRESS", ""),
                ("CA_ADDRESS", &format!("https://{certificates}")),
                ("CA_ROOT_CA", &istiod.root_pem()),
                ("ALT_CA_HOSTNAME", istiod::NAME),
                ("AUTH_TOKEN", &istiod.token("peer", HOUR)),
            ],
        );
        ztunnel.ready().await;
        Some(Self {
            pod,
            istiod,
            ztunnel,
            folder,
        })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn app(&self) -> Mesh {
        std::fs::write(self.file("root.pem"), self.istiod.root_pem()).unwrap();
        std::fs::write(self.file("token"), self.istiod.token("app", HOUR)).unwrap();
        let control_plane = self
            .istiod
            .control_plane()
            .root_cert_file(self.file("root.pem"))
            .token_file(self.file("token"));
        Mesh::builder()
            .workload("default", "app", "app")
            .config(config::File::watch(self.file("mesh.yaml")))
            .identity(Istiod::new(control_plane))
            .build()
            .unwrap()
    }

    /// Where the application of `peer` dials the service `app`.
    fn service(&self, port: u16) -> SocketAddr {
        (self.pod.service, port).into()
    }

    /// The application of `peer`: what its ztunnel dials at [`OPEN`].
    async fn behind(&self) -> TcpListener {
        let listener = TcpListener::bind((self.pod.outside, 0)).await.unwrap();
        self.pod.application(OPEN, listener.local_addr().unwrap());
        listener
    }
}

/// The istiod's certificates over TCP, where the Pod reaches them.
async fn serve(istiod: &Arc<istiod::Istiod>, pod: &Pod) -> SocketAddr {
    let listener = TcpListener::bind((pod.outside, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let istiod = Arc::clone(istiod);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = istiod.connect();
            tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    address
}

/// Saves a mesh where either of the two admits the other at [`OPEN`]: `app` the service account
/// `admitted`, `peer` the service account `app`.
fn save(folder: &TempDir, pod: &Pod, app: &str, admitted: &str) {
    let (address, peer, service) = (pod.outside, pod.inside, pod.service);
    let policy = |name: &str, account: &str| {
        format!(
            r#"
- name: {name}
  namespace: default
  scope: WorkloadSelector
  action: Allow
  dryRun: false
  rules:
  - - - serviceAccounts: [{{namespace: default, serviceAccount: {account}}}]
    - - destinationPorts: [{OPEN}]"#
        )
    };
    let (of_app, of_peer) = (policy("of-app", admitted), policy("of-peer", app));
    let yaml = format!(
        r#"
workloads:
- uid: app
  name: app
  namespace: default
  serviceAccount: app
  trustDomain: cluster.local
  workloadIps: [{address}]
  protocol: HBONE
  authorizationPolicies: [default/of-app]
  services: {{default/app.default.svc.cluster.local: {{80: {OPEN}, 81: {FORBIDDEN}}}}}
- uid: peer
  name: peer
  namespace: default
  serviceAccount: peer
  trustDomain: cluster.local
  workloadIps: [{peer}]
  protocol: HBONE
  authorizationPolicies: [default/of-peer]
  services: {{}}
services:
- name: app
  namespace: default
  hostname: app.default.svc.cluster.local
  vips: ["/{service}"]
  ports: {{80: {OPEN}, 81: {FORBIDDEN}}}
policies:{of_app}{of_peer}
"#
    );
    let new = folder.path().join("new");
    std::fs::write(&new, yaml).unwrap();
    std::fs::rename(&new, folder.path().join("mesh.yaml")).unwrap();
}

/// Both ends send and end at once, and both receive it whole.
async fn exchange<A, B>(near: &mut A, far: &mut B)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    async fn end(io: &mut (impl AsyncRead + AsyncWrite + Unpin), own: u64, other: u64) {
        let size = usize::try_from(require::bulk() << 20).unwrap() / 8;
        let (sent, expected) = (noise(size, own), noise(size, other));
        let (mut read, mut write) = tokio::io::split(io);
        let send = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let receive = async { read.read_to_end(&mut received).await.unwrap() };
        tokio::join!(send, receive);
        assert!(received == expected, "{} bytes", received.len());
    }
    soon("data both ways", async {
        tokio::join!(end(near, 1, 2), end(far, 2, 1));
    })
    .await;
}

#[tokio::test]
async fn a_workload_behind_a_ztunnel_calls_a_mesh_and_its_policies_hold() {
    let test = "a_workload_behind_a_ztunnel_calls_a_mesh_and_its_policies_hold";
    let Some(stage) = Stage::new(test).await else {
        return;
    };
    let mesh = stage.app();
    let mut listener = mesh.listen(OPEN).await.unwrap();
    let _forbidden = mesh.listen(FORBIDDEN).await.unwrap();

    let dial = TcpStream::connect(stage.service(80));
    let open = async { tokio::join!(dial, listener.accept()) };
    let (near, far) = soon("a tunnel", open).await;
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    let identity = "spiffe://cluster.local/ns/default/sa/peer";
    assert_eq!(far.context().identity().unwrap().to_string(), identity);
    exchange(&mut near, &mut far).await;

    let mut refused = TcpStream::connect(stage.service(81)).await.unwrap();
    let ended = soon("a refusal", refused.read(&mut [0; 1])).await;
    assert!(ended.is_err() || ended.unwrap() == 0);
    stage.ztunnel.logged(&["http status: 401"]).await;

    let dial = TcpStream::connect(stage.service(80));
    let open = async { tokio::join!(dial, listener.accept()) };
    let (near, far) = soon("another", open).await;
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    near.write_all(b"x").await.unwrap();
    soon("a byte", far.read_u8()).await.unwrap();
    save(&stage.folder, &stage.pod, "app", "somebody-else");
    let cut = soon("the cut", far.read_u8()).await.unwrap_err();
    assert_eq!(cut.kind(), std::io::ErrorKind::ConnectionAborted);
    let ended = soon("the client's end", near.read(&mut [0; 1])).await;
    assert!(ended.is_err() || ended.unwrap() == 0);
    mesh.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_mesh_calls_a_workload_behind_a_ztunnel_whose_policies_hold() {
    let test = "a_mesh_calls_a_workload_behind_a_ztunnel_whose_policies_hold";
    let Some(stage) = Stage::new(test).await else {
        return;
    };
    let behind = stage.behind().await;
    let mesh = stage.app();
    let asked = |port: u16| SocketAddr::from((stage.pod.inside, port)).to_string();

    let near = mesh.connect(asked(OPEN));
    let open = async { tokio::join!(near, behind.accept()) };
    let (near, far) = soon("a tunnel", open).await;
    let (mut near, mut far) = (near.unwrap(), far.unwrap().0);
    exchange(&mut near, &mut far).await;
    let line = r#"src.identity="spiffe://cluster.local/ns/default/sa/app""#;
    stage.ztunnel.logged(&[line, "direction=\"inbound\""]).await;

    let refused = soon("a refusal", mesh.connect(asked(FORBIDDEN))).await;
    let refused = refused.unwrap_err();
    let status = ErrorKind::TunnelRefused(StatusCode::UNAUTHORIZED);
    assert_eq!(refused.kind(), status, "{refused:?}");
    mesh.shutdown(Duration::ZERO).await;
}
