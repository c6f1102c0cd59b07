//! What is waited for at the start, and what is said when it does not come.

use std::time::Duration;

use mesh_core::identity::DevCa;
use mesh_core::{ErrorKind, Mesh, Node};

use crate::mesh_world::{Control, PORT, World, echo, ping};

/// The error and its causes on one line.
fn all(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

#[tokio::test(start_paused = true)]
async fn what_is_pending_is_said_after_the_start_time_out() {
    let world = World::with(80, |node| node.start_timeout(Duration::from_secs(7)));
    let mesh = world.mesh("server");
    let began = tokio::time::Instant::now();
    let error = mesh.listen(PORT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotReady);
    assert_eq!(began.elapsed().as_secs(), 7);
    assert!(
        error.detail().unwrap().contains("configuration"),
        "{error:?}"
    );
    assert!(!mesh.readiness().is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_workload_without_a_record_is_told_near_names() {
    let world = World::new(81);
    world.pair().await;
    let error = world.mesh("serfer").listen(PORT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRecord);
    assert!(error.detail().unwrap().contains("server"), "{error:?}");
}

#[tokio::test]
async fn a_record_that_comes_late_is_waited_for() {
    let world = World::new(82);
    let server = world.mesh("server");
    let listens = tokio::spawn({
        let server = server.clone();
        async move { server.listen(PORT).await }
    });
    let (client, _) = world.pair().await;
    echo(listens.await.unwrap().unwrap());
    ping(&mut client.connect(format!("server:{PORT}")).await.unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_workload_that_makes_no_spiffe_id_is_refused_at_once() {
    let world = World::new(83);
    for (namespace, account) in [("", "a"), ("a", ""), ("a/b", "c"), ("a", "b c")] {
        let error = world.node.workload(namespace, "name", account).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{namespace:?} {account:?}");
    }
}

/// Two nodes as in two processes: each with a source of configuration and an authority of its own.
async fn two(net: u8, first: DevCa, second: DevCa) -> (World, Mesh, Mesh) {
    let world = World::with_ca(net, first, |node| node);
    let (_, server) = world.pair().await;
    let (control, batches) = Control::new();
    let node = Node::builder()
        .config(batches)
        .identity(second)
        .build_node()
        .unwrap();
    control
        .set(vec![
            world.workload("client", 1).into(),
            world.workload("server", 2).into(),
            world.service("server", 2).into(),
        ])
        .await;
    let client = node.workload("default", "client", "client").unwrap();
    (world, client, server)
}

#[tokio::test]
async fn processes_that_share_a_folder_trust_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = [(); 2].map(|()| DevCa::in_dir(folder.path(), "cluster.local"));
    let (_world, client, server) = two(84, first, second).await;
    echo(server.listen(PORT).await.unwrap());
    ping(&mut client.connect(format!("server:{PORT}")).await.unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn different_roots_are_named_with_both_fingerprints() {
    let [first, second] = [(); 2].map(|()| DevCa::ephemeral("cluster.local"));
    let (ours, theirs) = (
        second.fingerprint().await.unwrap(),
        first.fingerprint().await.unwrap(),
    );
    let (_world, client, server) = two(85, first, second).await;
    echo(server.listen(PORT).await.unwrap());
    let error = client.connect(format!("server:{PORT}")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TlsHandshake);
    let text = all(&error);
    for fingerprint in [ours, theirs] {
        assert!(
            text.contains(&fingerprint.to_string()),
            "no {fingerprint} in {text}"
        );
    }
}
