//! istio's pilot-agent on a host, and an application behind it: they join the control plane with the files of
//! `workload configure`, in the places where the agent has them.

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::task::{Context, Poll};

use http::Uri;
use mesh_xds::ads::{Client, Event, Events, Interest, Node, NodeValue, Settings};
use mesh_xds::decode::{Decoder, ResourceType};
use mesh_xds::model::{ResourceName, Verdict};
use mesh_xds::transport::Channel;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::{TcpListener, UnixStream};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::plane::{PATIENCE, Plane, until};
use crate::require;

const IDENTITY: &str = "spiffe://cluster.local/ns/default/sa/forum";
/// Where the application is.
const PORT: u16 = 18081;

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: forum, namespace: default}
spec: {selector: {app: forum}, ports: [{port: 80, targetPort: 18081}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: forum, namespace: default}
spec:
  metadata: {labels: {app: forum}}
  template: {serviceAccount: forum}
  probe: {periodSeconds: 1, tcpSocket: {port: 18081}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: forum, namespace: default}
spec:
  selector: {matchLabels: {app: forum}}
  rules: [{to: [{operation: {methods: [GET]}}]}]
"#;

/// The program, in a folder that is the root of its host; killed when dropped.
struct Agent {
    process: Child,
    folder: PathBuf,
}

impl Agent {
    /// Does what istio's `istio-start.sh` does, but for the redirection; an address takes the place of a line in
    /// `/etc/hosts`.
    fn start(program: &Path, plane: &Plane, folder: &Path) -> Self {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(folder.join("log"))
            .unwrap();
        let cluster = fs::read_to_string(folder.join("var/lib/istio/envoy/cluster.env")).unwrap();
        // None of these values has a quote in it.
        let cluster = cluster.lines().filter_map(|line| {
            let (key, value) = line.split_once('=')?;
            Some((key.to_owned(), value.trim_matches('\'').to_owned()))
        });
        let cluster: BTreeMap<_, _> = cluster.collect();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let status = listener.local_addr().unwrap().port();
        drop(listener);
        let config = format!(
            "discoveryAddress: {}\nstatusPort: {status}\ncontrolPlaneAuthPolicy: MUTUAL_TLS\n",
            plane.address()
        );
        let process = Command::new(program)
            .args(["proxy", "sidecar"])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("INSTANCE_IP", &cluster["ISTIO_SVC_IP"])
            .env("POD_NAME", "forum")
            .env("PROV_CERT", "./etc/certs")
            .env("OUTPUT_CERTS", "./etc/certs")
            .env("PROXY_CONFIG", config)
            .env("ISTIOD_SAN", "istiod.istio-system.svc")
            .env("DISABLE_ENVOY", "true")
            .env("ISTIO_META_ENABLE_HBONE", "true")
            // It asks nobody outside where it is.
            .env("CLOUD_PLATFORM", "none")
            .envs(&cluster)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self {
            process,
            folder: folder.to_owned(),
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// The certificate that the agent has put there for its application.
    fn certificate(&self) -> Option<Vec<u8>> {
        let chain = fs::read(self.folder.join("etc/certs/cert-chain.pem")).ok()?;
        let leaf = CertificateDer::from_pem_slice(&chain).ok()?;
        Some(leaf.to_vec())
    }

    /// What it gives a proxyless application to start with.
    fn bootstrap(&self) -> Option<Value> {
        let path = self.folder.join("etc/istio/proxy/grpc-bootstrap.json");
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }
}

impl Drop for Agent {
    #[expect(clippy::print_stderr, reason = "who sees the test fail wants it")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Puts the files where the agent has them on a host.
fn install(files: &Path) -> TempDir {
    let host = tempfile::tempdir().unwrap();
    for (name, place) in [
        ("cluster.env", "var/lib/istio/envoy/cluster.env"),
        ("mesh.yaml", "etc/istio/config/mesh"),
        ("root-cert.pem", "etc/certs/root-cert.pem"),
        ("istio-token", "var/run/secrets/tokens/istio-token"),
    ] {
        let place = host.path().join(place);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::copy(files.join(name), place).unwrap();
    }
    fs::create_dir_all(host.path().join("etc/istio/proxy")).unwrap();
    host
}

/// The way to the agent's socket.
#[derive(Clone)]
struct Socket(PathBuf);

impl tower_service::Service<Uri> for Socket {
    type Response = UnixStream;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<UnixStream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(UnixStream::connect(self.0.clone()))
    }
}

/// An application behind the agent, which says of itself what the agent has written.
fn application(agent: &Agent, bootstrap: &Value) -> (Client, Events) {
    let told = &bootstrap["node"];
    let metadata = NodeValue::read_yaml(Path::new("node"), &told["metadata"].to_string()).unwrap();
    let NodeValue::Map(metadata) = metadata else {
        panic!("{told}");
    };
    let mut node = Node::new(told["id"].as_str().unwrap());
    for (key, value) in metadata {
        node = node.with_metadata(key, value);
    }
    let settings = Settings::new(node)
        // Of what is not Envoy's the agent hands nothing on.
        .with_type(ResourceType::Listener.url(), Interest::Named);
    let channel = Channel::builder(Uri::from_static("http://agent"));
    let channel = channel
        .build(Socket(agent.folder.join("etc/istio/proxy/XDS")))
        .unwrap();
    let (client, events, worker) = Client::new(channel, settings, Decoder::new()).unwrap();
    tokio::spawn(worker.run());
    (client, events)
}

/// Asks for the listener of an address, and waits until it is here.
async fn receive(client: &Client, events: &mut Events, address: SocketAddr) {
    let url = ResourceType::Listener.url();
    let listener = format!("xds.istio.io/grpc/lds/inbound/{address}");
    client.want(url, &listener).await.unwrap();
    let comes = async {
        while let Some(event) = events.next().await {
            let Event::Batch(batch) = event else {
                continue;
            };
            let (updates, _, reply) = batch.into_parts();
            let names: Vec<_> = updates.iter().map(|update| update.name()).collect();
            let is_here = names.contains(&ResourceName::InboundListener(address));
            reply.send(names.into_iter().map(Verdict::accepted).collect());
            if is_here {
                return;
            }
        }
    };
    let came = tokio::time::timeout(PATIENCE, comes).await;
    assert!(came.is_ok(), "{listener} does not come");
}

/// V028: our server certificate, our answers to its requests for certificates, and what we make of its node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_has_its_certificate_from_us_and_registers_its_host() {
    let test = "an_agent_has_its_certificate_from_us_and_registers_its_host";
    let Some(program) = require::peer(test, "PEER_PILOT_AGENT") else {
        return;
    };
    let plane = Plane::start(
        9,
        MANIFESTS,
        &["--registration-grace", "1", "--host-return", "0"],
    )
    .await;
    let own = plane.ip(2);
    let manifests = plane.path("mesh.yaml");
    let arguments = ["--autoregister", "--config", manifests.to_str().unwrap()];
    let host = install(&plane.configure_as("forum", "forum", own, &arguments));
    let agent = Agent::start(&program, &plane, host.path());
    until("a certificate", async || agent.certificate().is_some()).await;
    let leaf = agent.certificate().unwrap();
    let (_, parsed) = X509Certificate::from_der(&leaf).unwrap();
    let names = parsed.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names, [GeneralName::URI(IDENTITY)]);

    until("what an application starts with", async || {
        agent.bootstrap().is_some()
    })
    .await;
    let bootstrap = agent.bootstrap().unwrap();
    let (client, mut events) = application(&agent, &bootstrap);
    let address = SocketAddr::new(own, PORT);
    receive(&client, &mut events, address).await;
    let entry = format!("forum-{own}");

    // Its probe is the agent's.
    let hosts = async || plane.syncz().await["hosts"].clone();
    until("it is registered, and not well", async || {
        let hosts = hosts().await;
        hosts[0]["entry"] == format!("default/{entry}")
            && hosts[0]["unhealthy_because"]
                .as_str()
                .is_some_and(|why| why.contains("refused"))
    })
    .await;
    let up = TcpListener::bind((own, PORT)).await.unwrap();
    until("it is well", async || hosts().await[0]["healthy"] == true).await;
    let page = plane.syncz().await;
    let types = page["clients"][0]["types"].as_array().unwrap().clone();
    assert_eq!(page["clients"].as_array().unwrap().len(), 1);
    for one in types {
        assert_eq!(one["refused"], Value::Null, "{one}");
    }

    drop((client, events, agent));
    until("its entry is gone", async || {
        hosts().await == serde_json::json!([])
    })
    .await;

    // The certificate that it has does in place of a token that is gone.
    fs::remove_file(host.path().join("var/run/secrets/tokens/istio-token")).unwrap();
    let agent = Agent::start(&program, &plane, host.path());
    until("another certificate", async || {
        agent.certificate().is_some_and(|now| now != leaf)
    })
    .await;
    let bootstrap = agent.bootstrap().unwrap();
    let (client, mut events) = application(&agent, &bootstrap);
    receive(&client, &mut events, address).await;
    until("it is well again", async || {
        hosts().await[0]["healthy"] == true
    })
    .await;
    drop(up);
}
