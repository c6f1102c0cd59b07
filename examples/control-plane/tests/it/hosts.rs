//! A host outside Kubernetes: it registers, is given traffic while its application is well, and is forgotten.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use mesh_core::config::AppHealth;
use mesh_core::{ErrorKind, Mesh};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::plane::{Plane, join, request, told, until};
use crate::way::{Mode, Way};

const URI: &str = "http://forum.default/";

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Service
metadata:
  name: forum
  namespace: default
spec:
  selector:
    app: forum
  ports:
  - port: 80
    targetPort: 8080
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata:
  name: forum
  namespace: default
spec:
  metadata:
    labels:
      app: forum
  template:
    serviceAccount: forum
  probe:
    periodSeconds: 1
    timeoutSeconds: 30 # a busy machine is not an unwell application
    httpGet:
      path: /ready
      port: 8080
---
apiVersion: v1
kind: Pod
metadata:
  name: caller
  namespace: default
  labels:
    istio.io/dataplane-mode: ambient
spec:
  serviceAccountName: caller
status:
  phase: Running
  conditions:
  - type: Ready
    status: "True"
  podIP: 127.0.1.3
  podIPs:
  - ip: 127.0.1.3
"#;

/// How often it is tried whether the application is up.
const PERIOD: Duration = Duration::from_secs(10);

/// What a busy machine may take from the probe to the caller. Less than a period, so that none is left out.
const SLACK: Duration = Duration::from_secs(8);

/// With a longer period.
static SELDOM: LazyLock<String> = LazyLock::new(|| {
    assert!(MANIFESTS.contains("periodSeconds: 1\n"));
    let period = format!("periodSeconds: {}\n", PERIOD.as_secs());
    MANIFESTS.replace("periodSeconds: 1\n", &period)
});

/// The machine that the host is: with it everything on it ends, and nobody is told.
struct Machine {
    runtime: Option<Runtime>,
    mesh: Mesh,
}

impl Machine {
    /// With its application.
    async fn start(files: PathBuf) -> Self {
        let machine = Self::boot(files).await;
        machine.serve().await;
        machine
    }

    /// Its application is not started.
    async fn boot(files: PathBuf) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let mesh = runtime.spawn(async move { join(&files) });
        Self {
            mesh: mesh.await.unwrap(),
            runtime: Some(runtime),
        }
    }

    /// Starts the application: the mesh calls it on port 8080, and so does the probe.
    async fn serve(&self) {
        let (up, is_up) = oneshot::channel();
        let mesh = self.mesh.clone();
        self.runtime.as_ref().unwrap().spawn(async move {
            let http = mesh.listen_http(8080).await.unwrap();
            let _ = up.send(());
            let router = Router::new()
                .route("/", get(|| async { "the forum" }))
                .route("/ready", get(|| async {}));
            axum::serve(http.listener, http.layer.wrap(router)).await
        });
        is_up.await.unwrap();
    }

    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn answers(caller: &Mesh) -> bool {
    let answer = request(caller, "GET", URI).await;
    answer.is_ok_and(|(status, text)| status == 200 && text == "the forum")
}

/// The status and the flag that whoever waits for the caller is told.
async fn refusal(caller: &Mesh) -> Option<(u16, &'static str)> {
    let error = request(caller, "GET", URI).await.err()?;
    let reply = error.kind().reply();
    Some((reply.status().as_u16(), reply.flag()?.code()))
}

/// How many requests of the caller's were told of with the status 503 and the flag UH.
async fn reported(caller: &Mesh) -> usize {
    let metrics = told(caller, "/metrics").await;
    let metrics = String::from_utf8(metrics.into()).unwrap();
    let mut lines = metrics.lines().filter(|line| {
        let labels = ["response_code=\"503\"", "response_flags=\"UH\""];
        line.starts_with("istio_requests_total{") && labels.iter().all(|one| line.contains(one))
    });
    let count = lines.next().and_then(|line| line.rsplit(' ').next());
    assert_eq!(lines.next(), None);
    count.map_or(0, |count| count.parse().unwrap())
}

/// V026: its health reaches those who call it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_has_traffic_while_it_is_well_and_none_after_it_is_gone() {
    // No host was here before it.
    let arguments = ["--registration-grace", "1", "--host-return", "0"];
    let plane = Plane::start(1, &SELDOM, &arguments).await;
    let caller = join(&plane.configure("caller", plane.ip(3)));
    caller.ready().await.unwrap();
    let manifests = plane.path("mesh.yaml");
    let manifests = manifests.to_str().unwrap();
    let arguments = ["--autoregister", "--config", manifests];
    let files = plane.configure_as("forum", "forum", plane.ip(2), &arguments);
    for name in [
        "cluster.env",
        "mesh.yaml",
        "root-cert.pem",
        "istio-token",
        "hosts",
    ] {
        assert!(files.join(name).exists(), "{name}");
    }
    let mut host = Machine::boot(files.clone()).await;
    let name = format!("forum-{}", plane.ip(2));
    assert_eq!(host.mesh.workload().name(), name);

    // It is registered and has not said how its application is.
    until("it is registered, and not well", async || {
        let hosts = plane.syncz().await["hosts"].clone();
        hosts[0]["entry"] == format!("default/{name}") && hosts[0]["healthy"] == false
    })
    .await;
    until("callers are told", async || {
        refusal(&caller).await == Some((503, "UH"))
    })
    .await;

    // Just after a probe, so that the next one is a period away.
    until("the probe has failed", async || {
        let because = plane.syncz().await["hosts"][0]["unhealthy_because"].clone();
        because.is_string() && because != "no report yet"
    })
    .await;
    let before = reported(&caller).await;
    assert_eq!(refusal(&caller).await, Some((503, "UH")));
    assert_eq!(reported(&caller).await, before + 1);
    let started = Instant::now();
    host.serve().await;
    until("it answers", async || answers(&caller).await).await;
    let took = started.elapsed();
    assert!(took <= PERIOD + SLACK, "a probe was left out: {took:?}");

    let down = "the database is away".to_owned();
    host.mesh
        .report_health(AppHealth::Unhealthy(down.as_str().into()));
    until("callers are told again", async || {
        refusal(&caller).await == Some((503, "UH"))
    })
    .await;
    let page = plane.syncz().await;
    assert_eq!(page["hosts"][0]["unhealthy_because"], down);
    host.mesh.report_health(AppHealth::Healthy);
    until("it answers again", async || answers(&caller).await).await;

    host.kill();
    until("its entry is gone", async || {
        plane.syncz().await["hosts"] == serde_json::json!([])
    })
    .await;
    until("callers know", async || {
        let error = request(&caller, "GET", URI).await.err();
        error.is_some_and(|error| error.kind() == ErrorKind::NoHealthyUpstream)
    })
    .await;
    // Whoever has its address now is asked nothing.
    let listener = TcpListener::bind((plane.ip(2), 15008)).await.unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let listening = tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    for _ in 0..20 {
        assert_eq!(refusal(&caller).await, Some((503, "UH")));
    }
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    listening.abort();
    let _ = listening.await;

    // And it may come back.
    let _again = Machine::start(files).await;
    until("it answers after its return", async || {
        answers(&caller).await
    })
    .await;
}

/// What the host says comes no more, and neither does the end of its connection. The control plane asks for a sign of
/// life after 30 s, and waits 10 s for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_falls_silent_is_forgotten() {
    // No host was here before it.
    let arguments = ["--registration-grace", "1", "--host-return", "0"];
    let plane = Plane::start(19, MANIFESTS, &arguments).await;
    let caller = join(&plane.configure("caller", plane.ip(3)));
    let way = Way::open(plane.address()).await;
    let port = way.address().port().to_string();
    let arguments = ["--autoregister", "--ingress-port", &port];
    let files = plane.configure_as("forum", "forum", plane.ip(2), &arguments);
    let mut host = Machine::start(files).await;
    host.mesh.report_health(AppHealth::Healthy);
    until("it answers", async || answers(&caller).await).await;
    let hosts = async || plane.syncz().await["hosts"].as_array().unwrap().len();
    way.turn(Mode::Lost);
    host.kill();
    assert_eq!(hosts().await, 1, "nobody knows yet");
    until("its entry is gone", async || hosts().await == 0).await;
    until("callers know", async || {
        refusal(&caller).await == Some((503, "UH"))
    })
    .await;
}

/// V031: GOAWAY is nothing out of the ordinary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_too_old_is_replaced_and_nothing_is_lost() {
    // No host was here before it.
    let mut arguments = vec!["--host-return", "0"];
    arguments.extend(["--max-connection-age", "1", "--registration-grace", "5"]);
    let plane = Plane::start(6, MANIFESTS, &arguments).await;
    let caller = join(&plane.configure("caller", plane.ip(3)));
    let files = plane.configure_as("forum", "forum", plane.ip(2), &["--autoregister"]);
    let host = Machine::start(files).await;
    host.mesh.report_health(AppHealth::Healthy);
    until("it answers", async || answers(&caller).await).await;
    let uid = plane.syncz().await["hosts"][0]["uid"].clone();
    assert!(uid.is_u64());
    let streams = async || -> BTreeSet<u64> {
        let page = plane.syncz().await;
        let clients = page["clients"].as_array().unwrap().iter();
        clients.filter_map(|one| one["stream"].as_u64()).collect()
    };
    let first = streams().await;
    assert_eq!(first.len(), 2, "the host's and the caller's");
    until("both have new streams", async || {
        assert!(answers(&caller).await);
        let now = streams().await;
        now.len() == 2 && now.is_disjoint(&first)
    })
    .await;
    let page = plane.syncz().await;
    assert_eq!(page["hosts"][0]["uid"], uid, "it was never away");
    assert_eq!(page["hosts"][0]["healthy"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_may_not_register_is_told_why() {
    let plane = Plane::start(3, MANIFESTS, &[]).await;
    // Of another service account than the group's, and of a group that there is not.
    for (name, account) in [("forum", "caller"), ("nobody", "nobody")] {
        let own = plane.ip(2);
        let files = plane.configure_as(name, account, own, &["--autoregister"]);
        let mesh = Mesh::builder()
            .bootstrap_dir(files)
            .unwrap()
            .start_timeout(Duration::from_secs(3))
            .build()
            .unwrap();
        assert!(mesh.ready().await.is_err());
        let readiness = mesh.readiness();
        let pending: String = readiness.pending().map(|(_, why)| why).collect();
        assert!(
            pending.contains(&format!("WorkloadGroup default/{name}")),
            "{pending}"
        );
        assert_eq!(plane.syncz().await["hosts"], serde_json::json!([]));
    }
}
