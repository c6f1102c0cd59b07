//! What is waited for at the start, and what is said when it does not come.

use std::time::Duration;

use http::Request;
use mesh_core::identity::DevCa;
use mesh_core::{ErrorKind, Mesh, Node};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::handler::Handler;
use crate::layers_logs::capture;
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
    let began = Instant::now();
    let error = mesh.listen(PORT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotReady);
    assert_eq!(began.elapsed().as_secs(), 7);
    assert!(
        error.detail().unwrap().contains("configuration"),
        "{error:?}"
    );
    assert!(!mesh.readiness().is_ready());
}

/// A request to the server.
fn get() -> Request<String> {
    let request = Request::get(format!("http://server:{PORT}/"));
    request.body(String::new()).unwrap()
}

/// What waits for the start of a mesh, by a name.
fn starts(mesh: &Mesh) -> JoinSet<(&'static str, Option<ErrorKind>)> {
    let mut starts = JoinSet::new();
    let [listens, requests, is_ready, connects, asks, resolves] = [(); 6].map(|()| mesh.clone());
    let kind = |error: mesh_core::Error| error.kind();
    starts.spawn(async move { ("listen", listens.listen(PORT).await.map_err(kind).err()) });
    starts.spawn(async move {
        let listening = requests.listen_http(PORT + 1).await;
        ("listen_http", listening.map_err(kind).err())
    });
    starts.spawn(async move { ("ready", is_ready.ready().await.map_err(kind).err()) });
    starts.spawn(async move {
        let connected = connects.connect(format!("server:{PORT}")).await;
        ("connect", connected.map_err(kind).err())
    });
    starts.spawn(async move {
        let response = asks.http_client().request(get()).await;
        ("request", response.map_err(kind).err())
    });
    starts.spawn(async move {
        let resolved = resolves.resolve("server").await;
        ("resolve", resolved.map_err(kind).err())
    });
    starts
}

/// Whoever is told to end is not to wait for a configuration that may never come.
#[tokio::test(start_paused = true)]
async fn what_waits_for_the_start_ends_when_a_shutdown_begins() {
    for has_configuration in [false, true] {
        let world = World::new(87);
        if has_configuration {
            // But no record of the workload.
            world.control.set(Vec::new()).await;
        }
        let mesh = world.mesh("server");
        if has_configuration {
            mesh.ready().await.unwrap();
        }
        let mut starts = starts(&mesh);
        let began = Instant::now();
        tokio::time::sleep(Duration::from_secs(1)).await;
        mesh.shutdown(Duration::from_secs(5)).await;
        while let Some(started) = starts.join_next().await {
            let (what, error) = started.unwrap();
            // That is there already.
            let expected = (what != "ready" || !has_configuration).then_some(ErrorKind::Draining);
            assert_eq!(error, expected, "{what}, configured: {has_configuration}");
        }
        assert_eq!(began.elapsed().as_secs(), 1);
        let error = mesh.listen(PORT).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Draining, "nor does it begin later");
    }
}

/// A drain may need others, and a listener that comes then would accept nothing.
#[tokio::test]
async fn a_mesh_that_drains_still_connects_but_listens_no_more() {
    let world = World::new(88);
    let (client, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    // Not over before this ends.
    let _open = {
        let own = client.listen(PORT).await.unwrap();
        let mut stream = server
            .connect(format!("{}:{PORT}", world.ip(1)))
            .await
            .unwrap();
        let echoes = echo(own);
        ping(&mut stream).await.unwrap();
        (stream, echoes)
    };
    let drain = tokio::spawn({
        let client = client.clone();
        async move { client.shutdown(Duration::from_secs(60)).await }
    });
    client.draining().await;
    ping(&mut client.connect(format!("server:{PORT}")).await.unwrap())
        .await
        .unwrap();
    let error = client.listen(PORT + 1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Draining);
    drain.abort();
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

/// Half a minute is long for who does not know what for.
#[tokio::test(start_paused = true)]
async fn the_wait_for_a_record_is_told_at_once_and_louder_when_it_lasts() {
    let world = World::new(253);
    world.pair().await;
    let (lines, _guard) = capture("mesh::config=info");
    let late = world.mesh("late");
    let [first, second, connects] = [(); 3].map(|()| late.clone());
    let starts = [
        tokio::spawn(async move { first.listen(PORT).await.map(drop) }),
        tokio::spawn(async move { second.listen_http(PORT + 1).await.map(drop) }),
        tokio::spawn(async move { connects.resolve("server").await.map(drop) }),
    ];
    let told = |what| lines.text().matches(what).count();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let wait = "no record of this workload: waiting for it workload=default/late";
    lines.has(&["INFO", wait]);
    assert_eq!(
        (told("waiting for it"), told("WARN")),
        (1, 0),
        "once for all"
    );
    tokio::time::sleep(Duration::from_secs(5)).await;
    lines.has(&["WARN", "no record of this workload: still waiting for it"]);
    assert_eq!(told("waiting for it"), 2);
    world
        .control
        .set(vec![world.workload("late", 3).into()])
        .await;
    for start in starts {
        start.await.unwrap().unwrap();
    }
    assert_eq!(told("waiting for it"), 2);
}

/// As a connection does: for the first configuration, and for the record of who makes it.
#[tokio::test]
async fn a_request_that_comes_before_the_start_is_answered_after_it() {
    let world = World::new(251);
    let client = world.mesh("client");
    let asks = tokio::spawn(client.http_client().request(get()));
    tokio::task::yield_now().await;
    let (workload, service) = (world.workload("server", 2), world.service("server", 2));
    world
        .control
        .set(vec![workload.into(), service.into()])
        .await;
    let http = world.mesh("server").listen_http(PORT).await.unwrap();
    tokio::spawn(http.serve(Handler::default()));
    assert!(!asks.is_finished());
    world
        .control
        .set(vec![world.workload("client", 1).into()])
        .await;
    assert_eq!(asks.await.unwrap().unwrap().status(), 200);
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
