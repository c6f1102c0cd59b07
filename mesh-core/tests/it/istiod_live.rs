//! A live istiod: the program of a release in front of an API server of our own, or one that runs elsewhere.
//!
//! `PEER_ISTIOD` is the path of a `pilot-discovery`, which is started, or the discovery address of an istiod as
//! `ip:port`; then `PEER_KUBERNETES` is where its cluster's API is in plain HTTP, as `kubectl proxy` serves it. Each
//! test has a namespace of its own, which it deletes.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use mesh_core::ControlPlane;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::envoy::soon;
use crate::istiod::NAME;
use crate::kubernetes::Kubernetes;
use crate::require;

/// What istiod waits for before it reads any of them.
const DEFINITIONS: [&str; 14] = [
    "authorizationpolicies.security.istio.io",
    "peerauthentications.security.istio.io",
    "requestauthentications.security.istio.io",
    "destinationrules.networking.istio.io",
    "envoyfilters.networking.istio.io",
    "gateways.networking.istio.io",
    "proxyconfigs.networking.istio.io",
    "serviceentries.networking.istio.io",
    "sidecars.networking.istio.io",
    "virtualservices.networking.istio.io",
    "workloadentries.networking.istio.io",
    "workloadgroups.networking.istio.io",
    "telemetries.telemetry.istio.io",
    "wasmplugins.extensions.istio.io",
];

pub(crate) struct Cluster {
    api: SocketAddr,
    discovery: SocketAddr,
    namespace: String,
    /// What is in other namespaces, by its path.
    elsewhere: Mutex<Vec<String>>,
    /// Only of an istiod that we started.
    own: Option<Own>,
    folder: TempDir,
}

struct Own {
    program: PathBuf,
    /// What it is told of the mesh.
    mesh: Value,
    pages: SocketAddr,
    process: Mutex<Child>,
}

impl Cluster {
    /// Says on standard output why there is none.
    pub(crate) async fn new(test: &str) -> Option<Self> {
        Self::with(test, None).await
    }

    /// With this mesh configuration, which is for an istiod of ours alone to have.
    pub(crate) async fn with_mesh(test: &str, mesh: &Value) -> Option<Self> {
        Self::with(test, Some(mesh)).await
    }

    async fn with(test: &str, mesh: Option<&Value>) -> Option<Self> {
        let program = require::peer(test, "PEER_ISTIOD")?;
        let address = |text: &Path| text.to_str().and_then(|text| text.parse().ok());
        if let Some(discovery) = address(&program) {
            if mesh.is_some() {
                require::skip(test, "this istiod's mesh is not ours to configure");
                return None;
            }
            let api = require::peer(test, "PEER_KUBERNETES")?;
            let api = address(&api).expect("PEER_KUBERNETES is an ip:port");
            return Some(Self::at(api, discovery).await);
        }
        let mut cluster = Self::at(Kubernetes::start().await, free()).await;
        for name in ["default", "istio-system"] {
            cluster
                .apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
                .await;
        }
        for name in DEFINITIONS {
            let definition = json!({
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {"name": name},
            });
            cluster.apply(definition).await;
        }
        let pages = free();
        let mesh = mesh.cloned().unwrap_or_else(|| json!({}));
        let process = cluster.start(&program, &mesh, pages);
        cluster.own = Some(Own {
            program,
            mesh,
            pages,
            process: Mutex::new(process),
        });
        cluster.ready().await;
        Some(cluster)
    }

    /// One that somebody has started, with a namespace that nobody else has.
    async fn at(api: SocketAddr, discovery: SocketAddr) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let cluster = Self {
            api,
            discovery,
            namespace: format!("mesh-test-{}-{number}", std::process::id()),
            elsewhere: Mutex::default(),
            own: None,
            folder: tempfile::tempdir().unwrap(),
        };
        let name = cluster.namespace();
        cluster
            .apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
            .await;
        cluster
    }

    /// The same istiod, as somebody else has it.
    pub(crate) async fn join(&self) -> Self {
        Self::at(self.api, self.discovery).await
    }

    /// Where the workloads of the test are.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Where the istiod is.
    pub(crate) fn discovery(&self) -> SocketAddr {
        self.discovery
    }

    fn start(&self, program: &Path, mesh: &Value, pages: SocketAddr) -> Child {
        let file = |name: &str, text: String| {
            let path = self.folder.path().join(name);
            fs::write(&path, text).unwrap();
            path.into_os_string().into_string().unwrap()
        };
        let api = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": {"server": format!("http://{}", self.api)}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": ""}}],
            "current-context": "here",
        });
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .unwrap();
        Command::new(program)
            .arg("discovery")
            .args(["--kubeconfig", &file("kubeconfig", api.to_string())])
            .args(["--meshConfig", &file("mesh", mesh.to_string())])
            .args(["--secureGRPCAddr", &self.discovery.to_string()])
            .args(["--httpAddr", &pages.to_string()])
            .args(["--grpcAddr=", "--httpsAddr=", "--monitoringAddr="])
            .args(["--ctrlz_port=0", "--clusterID=Kubernetes"])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("POD_NAMESPACE", "istio-system")
            .env("POD_NAME", "istiod-1")
            .env("PILOT_ENABLE_AMBIENT", "true")
            .env("INJECT_ENABLED", "false")
            .env("VALIDATION_WEBHOOK_CONFIG_NAME", "")
            .env("INJECTION_WEBHOOK_CONFIG_NAME", "")
            .env("ENABLE_LEADER_ELECTION", "false")
            .env("CA_TRUSTED_NODE_ACCOUNTS", "istio-system/ztunnel")
            .env("PILOT_WORKLOAD_ENTRY_GRACE_PERIOD", "1s")
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// Waits until it serves, and its root is where Pods have it from.
    async fn ready(&self) {
        let own = self.own.as_ref().unwrap();
        let ready = soon("istiod starts", async {
            loop {
                let ended = own.process.lock().unwrap().try_wait().unwrap();
                if ended.is_some() {
                    return false;
                }
                if self.page("/ready").await.is_some() && self.root().await.is_some() {
                    return true;
                }
                sleep(Duration::from_millis(50)).await;
            }
        });
        assert!(ready.await, "{}", self.log());
    }

    /// What it said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    async fn root(&self) -> Option<String> {
        let path = "/api/v1/namespaces/default/configmaps/istio-ca-root-cert";
        let (status, map) = self.ask(Method::GET, path, None).await;
        let root = map["data"]["root-cert.pem"].as_str().map(str::to_owned);
        root.filter(|_| status.is_success())
    }

    /// One of its debug pages; `None` while it does not serve, or is somebody else's.
    pub(crate) async fn page(&self, target: &str) -> Option<String> {
        let pages = self.own.as_ref()?.pages;
        let request = Request::get(format!("http://{pages}{target}"));
        let (status, body) = send(request.body(Full::default()).unwrap()).await?;
        status.is_success().then_some(body)
    }

    /// Ends it as a crash does, and starts it once more. Says whether it is ours to do so.
    pub(crate) async fn restart(&self) -> bool {
        let Some(own) = &self.own else {
            return false;
        };
        {
            let mut process = own.process.lock().unwrap();
            process.kill().unwrap();
            process.wait().unwrap();
            *process = self.start(&own.program, &own.mesh, own.pages);
        }
        self.ready().await;
        true
    }

    /// Has the API server hold the object as it is given.
    pub(crate) async fn apply(&self, object: Value) {
        let path = format!("{}?fieldManager=mesh&force=true", path_of(&object));
        let (status, told) = self.ask(Method::PATCH, &path, Some(&object)).await;
        assert!(status.is_success(), "{path}: {status} {told}");
    }

    /// Has the API server hold the object's status as it is given.
    pub(crate) async fn apply_status(&self, object: Value) {
        let path = format!("{}/status?fieldManager=mesh&force=true", path_of(&object));
        let (status, told) = self.ask(Method::PATCH, &path, Some(&object)).await;
        assert!(status.is_success(), "{path}: {status} {told}");
    }

    pub(crate) async fn delete(&self, object: &Value) {
        let (status, told) = self.ask(Method::DELETE, &path_of(object), None).await;
        assert!(status.is_success(), "{status} {told}");
    }

    /// The object as the API server has it.
    pub(crate) async fn get(&self, object: &Value) -> Option<Value> {
        let (status, told) = self.ask(Method::GET, &path_of(object), None).await;
        status.is_success().then_some(told)
    }

    /// The control plane as a Pod of this service account has it.
    pub(crate) async fn control_plane(&self, account: &str) -> ControlPlane {
        let spec = json!({"audiences": ["istio-ca"], "expirationSeconds": 3600});
        self.control_plane_of(&self.namespace, account, spec).await
    }

    /// Leaves a service account with a token that nobody believes.
    pub(crate) fn spoil_token(&self, account: &str) {
        fs::write(self.folder.path().join(account), "spoiled").unwrap();
    }

    /// The control plane as the proxy of the host of all Pods has it, in a Pod of `istio-system`.
    pub(crate) async fn node_proxy(&self, account: &str) -> ControlPlane {
        let name = format!("{account}-{}", self.namespace);
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "istio-system"},
            "spec": {
                "serviceAccountName": account, "nodeName": "node",
                "containers": [{"name": "proxy", "image": "proxy"}],
            },
        });
        self.apply(pod.clone()).await;
        self.elsewhere.lock().unwrap().push(path_of(&pod));
        let (_, pod) = self.ask(Method::GET, &path_of(&pod), None).await;
        let bound =
            json!({"kind": "Pod", "apiVersion": "v1", "name": name, "uid": pod["metadata"]["uid"]});
        let spec =
            json!({"audiences": ["istio-ca"], "expirationSeconds": 3600, "boundObjectRef": bound});
        let istiod = self.control_plane_of("istio-system", account, spec).await;
        istiod.cluster_id("Kubernetes")
    }

    async fn control_plane_of(&self, namespace: &str, account: &str, spec: Value) -> ControlPlane {
        let file = |name: &str| self.folder.path().join(name);
        let (root, token) = (file("root"), file(account));
        fs::write(&root, self.root().await.unwrap()).unwrap();
        fs::write(&token, self.token(namespace, account, spec).await).unwrap();
        ControlPlane::new(format!("{NAME}:{}", self.discovery.port()))
            .at(self.discovery.ip())
            .root_cert_file(root)
            .token_file(token)
    }

    /// What a host of this service account is given.
    pub(crate) async fn root_and_token(&self, account: &str) -> (String, String) {
        let spec = json!({"audiences": ["istio-ca"], "expirationSeconds": 3600});
        let token = self.token(&self.namespace, account, spec).await;
        (self.root().await.unwrap(), token)
    }

    async fn token(&self, namespace: &str, account: &str, spec: Value) -> String {
        let of = json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": account, "namespace": namespace},
        });
        self.apply(of.clone()).await;
        let path = format!("{}/token", path_of(&of));
        let asked =
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        let (status, told) = self.ask(Method::POST, &path, Some(&asked)).await;
        assert!(status.is_success(), "{path}: {status} {told}");
        told["status"]["token"].as_str().unwrap().to_owned()
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> (StatusCode, Value) {
        let request = Request::builder()
            .method(&method)
            .uri(format!("http://{}{path}", self.api))
            .header(
                "content-type",
                match method {
                    Method::PATCH => "application/apply-patch+yaml",
                    _ => "application/json",
                },
            );
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = request.body(Full::from(body)).unwrap();
        let (status, told) = send(request).await.expect("the API server");
        (status, serde_json::from_str(&told).unwrap_or_default())
    }
}

impl Cluster {
    /// Deletes what the test has made.
    fn leave(&self) -> io::Result<()> {
        let elsewhere = self.elsewhere.lock().unwrap().clone();
        let own = format!("/api/v1/namespaces/{}", self.namespace);
        let mut all = elsewhere.into_iter().chain([own]);
        all.try_for_each(|path| self.leave_path(path))
    }

    /// The API server may be on this runtime, which has other workers.
    fn leave_path(&self, path: String) -> io::Result<()> {
        let host = self.api;
        let leaving = std::thread::spawn(move || {
            let mut stream = TcpStream::connect_timeout(&host, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            let request =
                format!("DELETE {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            match answer.starts_with("HTTP/1.1 2") {
                true => Ok(()),
                false => Err(io::Error::other(answer)),
            }
        });
        leaving.join().expect("it does not panic")
    }
}

impl Drop for Cluster {
    #[expect(clippy::print_stderr, reason = "who sees the test fail wants it")]
    fn drop(&mut self) {
        if let Some(own) = &self.own {
            if std::thread::panicking() {
                eprintln!("{}", self.log());
            }
            let mut process = own.process.lock().unwrap();
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        } else if let Err(error) = self.leave() {
            eprintln!("something of {} is left behind: {error}", self.namespace);
        }
    }
}

async fn send(request: Request<Full<Bytes>>) -> Option<(StatusCode, String)> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let response = client.request(request).await.ok()?;
    let (head, body) = response.into_parts();
    let body = body.collect().await.ok()?.to_bytes();
    Some((head.status, String::from_utf8_lossy(&body).into_owned()))
}

fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

fn path_of(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let mut plural = kind.to_lowercase();
    if plural.ends_with('y') {
        plural.truncate(plural.len() - 1);
        plural += "ie";
    }
    let group = if version.contains('/') { "apis" } else { "api" };
    let metadata = &object["metadata"];
    let namespace = metadata["namespace"].as_str();
    let namespace = namespace.map(|namespace| format!("/namespaces/{namespace}"));
    format!(
        "/{group}/{version}{}/{plural}s/{}",
        namespace.unwrap_or_default(),
        text(&metadata["name"])
    )
}
