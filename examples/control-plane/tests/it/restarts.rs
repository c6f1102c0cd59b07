//! A control plane that is killed again and again, under connections that are all new. It has the one who is
//! called, a host, in memory alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use mesh_core::Mesh;
use mesh_core::config::AppHealth;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::plane::{Plane, join, until};

/// How often it is killed.
const KILLS: usize = 20;

/// New connections in a second, if the machine is fast enough.
const RATE: u64 = 500;

/// Connections at a time.
const MOST: usize = 200;

fn manifests(generation: usize) -> String {
    let mut all = String::from(
        r#"
apiVersion: v1
kind: Namespace
metadata:
  name: default
  labels:
    istio.io/dataplane-mode: ambient
---
apiVersion: v1
kind: Service
metadata:
  name: echo
  namespace: default
spec:
  selector:
    app: echo
  ports:
  - port: 7000
"#,
    );
    // Its policy has another name each time.
    all += &format!(
        r#"---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata:
  name: echo
  namespace: default
spec:
  metadata:
    labels:
      app: echo
  template:
    serviceAccount: echo
  probe:
    tcpSocket:
      port: 7000
---
apiVersion: v1
kind: Pod
metadata:
  name: caller
  namespace: default
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
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: echo-{generation}
  namespace: default
spec:
  selector:
    matchLabels:
      app: echo
  rules:
  - from:
    - source:
        principals: ["cluster.local/ns/default/sa/caller"]
"#
    );
    // Whoever knows this name has what was written after the last kill.
    all += &format!(
        r#"---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: generation
  namespace: default
spec:
  hosts: ["generation-{generation}.example"]
  addresses: ["240.0.0.1"]
  ports:
  - number: 80
    name: http
  resolution: STATIC
"#
    );
    all
}

/// Serves one connection after the other: what comes goes back.
async fn echo(mesh: Mesh) {
    let mut listener = mesh.listen(7000).await.unwrap();
    while let Ok(mut stream) = listener.accept().await {
        tokio::spawn(async move {
            let mut bytes = [0; 4];
            if stream.read_exact(&mut bytes).await.is_ok() {
                let _ = stream.write_all(&bytes).await;
                let _ = stream.shutdown().await;
            }
        });
    }
}

async fn once(mesh: &Mesh) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut stream = mesh.connect("echo.default:7000").await?;
    stream.write_all(b"ping").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    if answer == b"ping" {
        Ok(())
    } else {
        Err(format!("{answer:?}").into())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_fails_while_the_control_plane_is_killed_twenty_times() {
    let mut plane = Plane::start(5, &manifests(0), &[]).await;
    let own = plane.ip(2);
    let server = join(&plane.configure_as("echo", "echo", own, &["--autoregister"]));
    let caller = join(&plane.configure("caller", plane.ip(3)));
    server.ready().await.unwrap();
    caller.ready().await.unwrap();
    tokio::spawn(echo(server.clone()));
    // Whoever starts anew has heard nothing of it.
    server.report_health(AppHealth::Healthy);
    until("it answers", async || once(&caller).await.is_ok()).await;

    let (stop, done) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let load = {
        let (mesh, stop, done) = (caller.clone(), Arc::clone(&stop), Arc::clone(&done));
        tokio::spawn(async move {
            let mut ticks = interval(Duration::from_secs(1) / u32::try_from(RATE).unwrap());
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let mut running = JoinSet::new();
            let mut failures = Vec::new();
            while !stop.load(Ordering::Relaxed) || !running.is_empty() {
                tokio::select! {
                    _ = ticks.tick(), if running.len() < MOST && !stop.load(Ordering::Relaxed) => {
                        let mesh = mesh.clone();
                        running.spawn(async move { once(&mesh).await });
                    }
                    Some(ended) = running.join_next() => match ended.unwrap() {
                        Ok(()) => _ = done.fetch_add(1, Ordering::Relaxed),
                        Err(error) => failures.push(format!("{error:?}")),
                    },
                }
            }
            failures
        })
    };
    let started = Instant::now();
    for generation in 1..=KILLS {
        plane.kill();
        let before = done.load(Ordering::Relaxed);
        plane.save(&manifests(generation));
        // Some connections are made while there is no control plane.
        until("connections go on", async || {
            done.load(Ordering::Relaxed) >= before + 20
        })
        .await;
        plane.run();
        let name = format!("generation-{generation}.example");
        for mesh in [&caller, &server] {
            until("the new one is heard", async || {
                mesh.resolve(&name).await.is_ok()
            })
            .await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let failures = load.await.unwrap();
    let (done, took) = (done.load(Ordering::Relaxed), started.elapsed());
    assert!(
        failures.is_empty(),
        "{} of {done} in {took:?}: {:?}",
        failures.len(),
        failures.first()
    );
    println(&format!("{done} connections in {took:?}, none failed"));
}

#[expect(clippy::print_stdout, reason = "a figure for who runs the tests")]
fn println(text: &str) {
    println!("{text}");
}
