//! What is served when the manifests are wrong, or not there, from the start: nothing, so that clients keep what
//! they have.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use tokio::net::TcpStream;

use crate::plane::{Plane, join, until};

fn entry(name: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: [\"{name}.example\"]
  addresses: [\"240.0.0.1\"]
  ports: [{{number: 80, name: http}}]
  resolution: STATIC
---
apiVersion: v1
kind: Pod
metadata: {{name: caller, namespace: default}}
spec: {{serviceAccountName: caller}}
status: {{phase: Running, podIP: 127.0.1.3, podIPs: [{{ip: 127.0.1.3}}]}}
"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_that_is_broken_at_the_start_takes_nothing_from_clients() {
    let mut plane = Plane::start(7, &entry("first"), &[]).await;
    let caller = join(&plane.configure("caller", plane.ip(3)));
    caller.ready().await.unwrap();
    caller.resolve("first.example").await.unwrap();
    for wrong in [
        "a: [1\n",
        "apiVersion: security.istio.io/v1\nkind: AuthorisationPolicy\nmetadata: {name: slip}\n",
    ] {
        plane.kill();
        plane.save(&format!("{}---\n{wrong}", entry("first")));
        plane.run();
        until("it says what is wrong, and where", async || {
            let (status, text) = plane.answer("/ready").await.unwrap_or_default();
            status == 503 && text.contains("mesh.yaml:1")
        })
        .await;
        let refused = TcpStream::connect(plane.address()).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        let problems = plane.syncz().await["problems"].to_string();
        assert!(problems.contains("mesh.yaml:1"), "{problems}");
        caller.resolve("first.example").await.unwrap();
    }
    plane.save(&entry("second"));
    until("the new one is heard", async || {
        caller.resolve("second.example").await.is_ok()
    })
    .await;
    assert!(caller.resolve("first.example").await.is_err());
    let (status, _) = plane.answer("/ready").await.unwrap();
    assert_eq!(status, 200);
    // From now on the last good version stays.
    plane.save("a: [1\n");
    until("it is wrong again", async || {
        plane.syncz().await["problems"][0].is_string()
    })
    .await;
    caller.resolve("second.example").await.unwrap();
    let (status, _) = plane.answer("/ready").await.unwrap();
    assert_eq!(status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_without_manifests_is_served_to_who_asks_for_it_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (config, state) = (folder.path().join("config"), folder.path().join("state"));
    fs::create_dir(&config).unwrap();
    let start = || control_plane::start(&config, &state, "cluster.local");
    let refused = start().await.unwrap_err().to_string();
    assert!(refused.contains("config: nothing to serve"), "{refused}");
    // Nor is a namespace something to serve.
    let manifest = config.join("mesh.yaml");
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n";
    fs::write(&manifest, namespace).unwrap();
    let refused = start().await.unwrap_err().to_string();
    assert!(refused.contains("config: nothing to serve"), "{refused}");

    fs::write(&manifest, entry("first")).unwrap();
    let running = start().await.unwrap();
    assert_eq!(running.problems(), Vec::<String>::new());
    let resources = running.server().resources();
    assert!(resources > 0);
    // It is not mounted any more.
    fs::remove_file(&manifest).unwrap();
    until("the files are missed", async || {
        let problems = running.problems();
        problems
            .iter()
            .any(|one| one.contains("no manifests any more"))
    })
    .await;
    assert_eq!(running.server().resources(), resources);
    fs::write(&manifest, entry("second")).unwrap();
    until("they are back", async || running.problems().is_empty()).await;

    let asked = Plane::start(8, "", &["--allow-empty"]).await;
    assert_eq!(asked.syncz().await["problems"], serde_json::json!([]));
}

#[test]
fn once_fails_with_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = folder.path().join("broken.yaml");
    let once = |config: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_control-plane"));
        command.arg("--once").arg("--config").arg(config);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), text)
    };
    fs::write(&manifest, "kind: Pod\nmetadata: [\n").unwrap();
    let (code, text) = once(&manifest);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("broken.yaml:"), "{text}");
    fs::remove_file(&manifest).unwrap();
    let (code, text) = once(folder.path());
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("nothing to serve"), "{text}");
}
