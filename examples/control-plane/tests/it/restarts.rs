//! A control plane that is killed again and again, under connections that are all new. It has the one who is
//! called, a host, in memory alone.

use mesh_core::config::AppHealth;

use crate::cast::{call, echo, join_afresh, knows};
use crate::load::{self, Load};
use crate::plane::{Plane, join, until};

/// How often it is killed.
const KILLS: usize = 20;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_fails_while_the_control_plane_is_killed_twenty_times() {
    let mut plane = Plane::start(5, &manifests(0), &[]).await;
    let own = plane.ip(2);
    let server = join(&plane.configure_as("echo", "echo", own, &["--autoregister"]));
    let caller = join(&plane.configure("caller", plane.ip(3)));
    let (afresh, _) = join_afresh(&plane, "caller", 3);
    server.ready().await.unwrap();
    tokio::spawn(echo(server.clone()));
    // Whoever starts anew has heard nothing of it.
    server.report_health(AppHealth::Healthy);
    for mesh in [&caller, &afresh] {
        until("it answers", async || call(mesh).await.is_ok()).await;
    }

    let load = Load::begin(&caller, &afresh);
    for generation in 1..=KILLS {
        plane.kill();
        let before = load.done();
        plane.save(&manifests(generation));
        // Of either kind some begin while there is no control plane, whatever was under way when it was killed.
        until("connections go on", async || {
            let now = load.done();
            let more = [now[0] - before[0], now[1] - before[1]];
            more[0] >= load::MOST + 100 && more[1] >= load::MOST / load::AFRESH + 10
        })
        .await;
        plane.run();
        for mesh in [&caller, &afresh, &server] {
            until("the new one is heard", async || {
                knows(mesh, generation).await
            })
            .await;
        }
    }
    let outcome = load.end().await;
    println(&outcome.to_string());
}

#[expect(clippy::print_stdout, reason = "a figure for who runs the tests")]
fn println(text: &str) {
    println!("{text}");
}
