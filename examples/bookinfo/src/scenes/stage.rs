//! What the scenes play on: the cluster with wiretaps before its HBONE ports, and its manifests in a
//! folder of their own.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use mesh_core::identity::DevCa;
use mesh_core::{Mesh, MeshClient};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::BoxError;
use crate::cluster::{Cluster, Ports};
use crate::config;
use crate::relay::Relay;
use crate::source::Source;

/// Addresses that the shipped manifests do not have, so that a Bookinfo that is up is not disturbed.
const PAGE: &str = "127.0.2.1";
const OTHERS: &str = "127.0.2.";
/// What the records say, where the wiretaps stand.
const TAPPED_PORT: u16 = 15008;
/// Where the workloads really accept tunnels.
const REAL_PORT: u16 = 15009;
/// Certificates that are renewed every few seconds.
const VALIDITY: Duration = Duration::from_secs(8);

#[derive(Debug)]
pub(super) struct Stage {
    pub(super) cluster: Cluster,
    pub(super) netshoot: Mesh,
    pub(super) relays: Vec<Relay>,
    manifests: String,
    file: PathBuf,
    _folder: tempfile::TempDir,
}

impl Stage {
    pub(super) async fn set(control_plane: bool) -> Result<Self, BoxError> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("bookinfo.yaml");
        let manifests = std::fs::read_to_string(config::shipped_file())?
            .replace("127.0.0.1", PAGE)
            .replace("127.0.1.", OTHERS);
        std::fs::write(&file, &manifests)?;
        let mut relays = Vec::new();
        for last in 1..=7_u8 {
            let ip: IpAddr = [127, 0, 2, last].into();
            let (tapped, real) = (
                SocketAddr::new(ip, TAPPED_PORT),
                SocketAddr::new(ip, REAL_PORT),
            );
            relays.push(
                Relay::start(tapped, real)
                    .await
                    .map_err(|error| format!("{tapped}: {error}"))?,
            );
        }
        let source = match control_plane {
            true => Source::control_plane(&file).await?,
            false => Source::files(file.clone(), DevCa::ephemeral("cluster.local")),
        };
        let source = source.validity(VALIDITY);
        let mut cluster = Cluster::start(source, Ports::Hbone(REAL_PORT)).await?;
        let netshoot = cluster.caller("netshoot", "netshoot")?;
        Ok(Self {
            cluster,
            netshoot,
            relays,
            manifests,
            file,
            _folder: folder,
        })
    }

    pub(super) async fn strike(self) {
        self.cluster.shutdown().await;
    }

    /// The manifests as they were shipped.
    pub(super) fn manifests(&self) -> &str {
        &self.manifests
    }

    /// Saves the manifests as an editor does: whole, by renaming.
    pub(super) fn save(&self, manifests: &str) -> Result<Instant, BoxError> {
        let new = self.file.with_extension("new");
        std::fs::write(&new, manifests)?;
        std::fs::rename(&new, &self.file)?;
        Ok(Instant::now())
    }

    pub(super) fn productpage(&self) -> MeshClient {
        self.cluster.mesh("productpage-v1").http_client()
    }

    /// Where plaintext clients find the page.
    pub(super) fn page_address() -> SocketAddr {
        SocketAddr::new([127, 0, 2, 1].into(), 9080)
    }
}

/// Sends a request without a body through the mesh.
pub(super) async fn request(
    client: &MeshClient,
    method: &str,
    uri: &str,
) -> Result<(StatusCode, String), BoxError> {
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .body(Empty::<bytes::Bytes>::new())?;
    let response = client.request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), 1 << 20)
        .collect()
        .await?
        .to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// Asks for a page in plaintext, as a browser outside the mesh does. `None`: closed without an answer.
pub(super) async fn plaintext_page(address: SocketAddr) -> Option<String> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream
            .write_all(
                b"GET /productpage HTTP/1.1\r\nhost: productpage\r\nconnection: close\r\n\r\n",
            )
            .await
            .ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        (!answer.is_empty()).then(|| String::from_utf8_lossy(&answer).into_owned())
    };
    timeout(Duration::from_secs(10), ask).await.ok().flatten()
}

/// Tries until it holds; how long that took since `saved`.
pub(super) async fn until<F>(
    what: &str,
    saved: Instant,
    mut holds: impl FnMut() -> F,
) -> Result<Duration, BoxError>
where
    F: Future<Output = bool>,
{
    let deadline = saved + Duration::from_secs(20);
    while Instant::now() < deadline {
        if holds().await {
            return Ok(saved.elapsed());
        }
        sleep(Duration::from_millis(10)).await;
    }
    Err(format!("{what}: not within 20 s of the edit").into())
}
