//! The program ends when it is told, also before it serves.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

/// Longer than anything takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// As the first process of a container it would not even be killed by a signal that it does not handle.
#[tokio::test]
async fn one_that_is_ended_while_it_waits_for_its_start_ends_well() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_hyper-server"))
        // A file is no folder: it is told at once that this cannot be read, and waited for.
        .args([
            "--file",
            concat!(env!("CARGO_MANIFEST_DIR"), "/mesh.yaml/none"),
        ])
        .args(["--ca-dir", env!("CARGO_TARGET_TMPDIR")])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let waits = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("WARN") && line.contains("waiting for it") {
                return;
            }
        }
        panic!("it ended");
    };
    timeout(PATIENCE, waits).await.expect("it waits");
    let id = child.id().expect("still up");
    let kill = Command::new("sh")
        .arg("-c")
        .arg(format!("kill -TERM {id}"))
        .status()
        .await;
    assert!(kill.unwrap().success());
    let ended = timeout(PATIENCE, child.wait()).await;
    let ended = ended.expect("the end").unwrap();
    assert!(ended.success(), "{ended}");
}
