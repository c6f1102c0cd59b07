//! An istiod in memory and the network of those that it serves.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use mesh_core::config::Xds;
use mesh_core::identity::Istiod;
use mesh_core::{ControlPlane, Mesh, OutboundPolicy, Transport};
use prost::Message;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::admin::get;
use crate::identity_renewal::wall_clock;
use crate::istiod;
use crate::istiod_discovery::{ADDRESS, Answer, Any, Asked, Resource};
use crate::memory_network::{network, ping};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// Where the server of most tests is.
pub(crate) const SERVER: &str = "10.0.0.2:80";

#[derive(Clone, PartialEq, prost::Message)]
struct Address {
    #[prost(message, optional, tag = "1")]
    workload: Option<Workload>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Workload {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(bytes = "vec", repeated, tag = "3")]
    addresses: Vec<Vec<u8>>,
    #[prost(int32, tag = "5")]
    tunnel_protocol: i32,
    #[prost(string, tag = "6")]
    trust_domain: String,
    #[prost(string, tag = "7")]
    service_account: String,
    #[prost(string, tag = "20")]
    uid: String,
}

pub(crate) fn uid(name: &str) -> String {
    format!("Kubernetes//Pod/default/{name}")
}

/// The workload `default/name` with its name as its service account, in its newest version.
pub(crate) fn workload(name: &str, address: [u8; 4], version: &str) -> Resource {
    workload_of(name, name, address, version)
}

pub(crate) fn workload_of(name: &str, account: &str, address: [u8; 4], version: &str) -> Resource {
    // istiod says nothing where it is `cluster.local`.
    workload_in("", name, account, address, version)
}

pub(crate) fn workload_in(
    trust_domain: &str,
    name: &str,
    account: &str,
    address: [u8; 4],
    version: &str,
) -> Resource {
    let workload = Workload {
        trust_domain: trust_domain.to_owned(),
        name: name.to_owned(),
        namespace: "default".to_owned(),
        addresses: vec![address.to_vec()],
        tunnel_protocol: 1,
        service_account: account.to_owned(),
        uid: uid(name),
    };
    let address = Address {
        workload: Some(workload),
    };
    resource(&uid(name), version, address.encode_to_vec())
}

pub(crate) fn resource(name: &str, version: &str, value: Vec<u8>) -> Resource {
    Resource {
        name: name.to_owned(),
        version: version.to_owned(),
        value: Some(Any {
            type_url: ADDRESS.to_owned(),
            value,
        }),
        aliases: Vec::new(),
    }
}

pub(crate) fn addresses(resources: Vec<Resource>, removed: &[&str]) -> Answer {
    Answer {
        resources,
        removed: removed.iter().map(|name| uid(name)).collect(),
        type_url: ADDRESS.to_owned(),
        nonce: String::new(),
    }
}

/// An istiod, and the network of those that it serves.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) istiod: Arc<istiod::Istiod>,
    pub(crate) network: Transport,
    pub(crate) now: Arc<dyn Fn() -> SystemTime + Send + Sync>,
}

impl Place {
    pub(crate) fn empty() -> Self {
        Self::of(istiod::NAME)
    }

    /// The istiod's certificate has this name.
    pub(crate) fn of(name: &str) -> Self {
        let clock = wall_clock();
        let place = Self {
            dir: tempfile::tempdir().unwrap(),
            istiod: istiod::Istiod::start_as(name, 24 * HOUR, clock.clone()),
            network: network(),
            now: Arc::new(clock),
        };
        place.write("root-cert.pem", &place.istiod.root_pem());
        place
    }

    /// With a client and a server.
    pub(crate) fn new() -> Self {
        let place = Self::empty();
        let both = vec![
            workload("client", [10, 0, 0, 1], "1"),
            workload("server", [10, 0, 0, 2], "1"),
        ];
        place.istiod.discovery.say(&addresses(both, &[]));
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    pub(crate) fn control_plane(&self, account: &str) -> ControlPlane {
        self.istiod
            .control_plane()
            .root_cert_file(self.path("root-cert.pem"))
            .token_file(self.path(account))
    }

    pub(crate) fn xds(&self, account: &str, address: [u8; 4]) -> Xds {
        Xds::istiod(self.control_plane(account))
            .addresses([IpAddr::from(address)])
            .rng(7)
    }

    pub(crate) fn token(&self, account: &str, life: Duration) {
        self.write(account, &self.istiod.token(account, life));
    }

    pub(crate) fn mesh(&self, name: &str, account: &str, xds: Xds) -> Mesh {
        let now = Arc::clone(&self.now);
        Mesh::builder()
            .workload("default", name, account)
            .transport(self.network.clone())
            .clock(move || now())
            .outbound_policy(OutboundPolicy::RegistryOnly)
            .config(xds)
            .identity(Istiod::new(self.control_plane(account)).rng(7))
            .build()
            .unwrap()
    }

    pub(crate) fn client(&self) -> Mesh {
        self.token("client", 100 * HOUR);
        self.mesh("client", "client", self.xds("client", [10, 0, 0, 1]))
    }

    pub(crate) async fn server(&self) -> Mesh {
        self.token("server", 100 * HOUR);
        let mesh = self.mesh("server", "server", self.xds("server", [10, 0, 0, 2]));
        crate::mesh_world::echo(mesh.listen(80).await.unwrap());
        mesh
    }

    /// Says it, and waits until everybody who was told has answered.
    pub(crate) async fn say(&self, answer: &Answer) -> Vec<Asked> {
        let (nonce, told) = self.istiod.discovery.say(answer);
        let answers = || {
            let asked = self.istiod.discovery.asked().into_iter();
            asked
                .filter(|one| one.ask.nonce == nonce)
                .collect::<Vec<_>>()
        };
        until("an answer to each", || answers().len() == told).await;
        answers()
    }

    /// Ends all streams, and lets none come for a while.
    pub(crate) fn kill(&self) {
        self.istiod.away.store(true, Ordering::Relaxed);
        self.istiod.discovery.end_streams();
    }

    pub(crate) fn revive(&self) {
        self.istiod.away.store(false, Ordering::Relaxed);
    }
}

pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < 600 * Duration::from_secs(1), "{what}");
        sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn greet(client: &Mesh) {
    let mut stream = client.connect(SERVER).await.unwrap();
    ping(&mut stream).await.unwrap();
}

pub(crate) async fn dump(mesh: &Mesh) -> Value {
    get(&mesh.admin(), "/config_dump").await.json()
}

pub(crate) fn pending(mesh: &Mesh) -> String {
    mesh.readiness().to_string()
}
