//! an application that blocks a thread of its runtime, a control plane that keeps one busy, and a control
//! runtime that ends too early.

use std::pin::pin;
use std::sync::mpsc;
use std::time::Duration;

use mesh_core::ErrorKind;
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::admin::get;
use crate::layers_logs::capture;
use crate::mesh_world::{PORT, World, connect_to, echo, ping, until};

/// A runtime of one thread for what keeps a mesh current. To drop a runtime is to wait for it, which is not
/// permitted here, nor where a test fails.
struct Control(Option<Runtime>);

impl Control {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        Self(Some(runtime.unwrap()))
    }

    fn handle(&self) -> Handle {
        self.0.as_ref().unwrap().handle().clone()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Blocks a thread of the runtime until it is told to go on.
async fn block(runtime: &Handle) -> (mpsc::Sender<()>, JoinHandle<()>) {
    let (go_on, goes_on) = mpsc::channel();
    let (block, blocked) = oneshot::channel();
    let blocks = runtime.spawn(async move {
        block.send(()).unwrap();
        // An error is that of a test that has failed.
        let _ = goes_on.recv();
    });
    blocked.await.unwrap();
    (go_on, blocks)
}

/// One of two is blocked until all is done; the other serves what comes, on old connections and on new ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_worker_leaves_the_mesh_to_the_others() {
    let world = World::new(205);
    let (client, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let mut kept = client.connect(format!("server:{PORT}")).await.unwrap();
    ping(&mut kept).await.unwrap();

    let (go_on, blocks) = block(&Handle::current()).await;
    let served = async {
        for _ in 0..50 {
            ping(&mut kept).await.unwrap();
            let mut new = client.connect(format!("server:{PORT}")).await.unwrap();
            ping(&mut new).await.unwrap();
            // A connection of its own, from its handshake on.
            let bare = world.bare_client("client", 2, "server").await;
            let authority = format!("{}:{PORT}", world.ip(2));
            bare.connect(connect_to(authority)).await.unwrap();
        }
    };
    let served = timeout(Duration::from_secs(60), served).await;
    go_on.send(()).unwrap();
    served.expect("the other thread does it all");
    blocks.await.unwrap();
}

/// Connections go on, old and new, with their handshakes; the configuration waits.
#[tokio::test]
async fn a_control_runtime_that_is_busy_holds_up_no_connection() {
    let control = Control::new();
    let world = World::with(207, |node| node.control_runtime(control.handle()));
    let outside = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let outside = (outside.local_addr().unwrap().port(), outside);
    let (client, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let mut kept = client.connect(format!("server:{PORT}")).await.unwrap();
    ping(&mut kept).await.unwrap();

    let (go_on, blocks) = block(&control.handle()).await;
    let mut change = pin!(world.control.set(vec![world.workload("late", 3).into()]));
    let served = async {
        for _ in 0..20 {
            ping(&mut kept).await.unwrap();
            let mut new = client.connect(format!("server:{PORT}")).await.unwrap();
            ping(&mut new).await.unwrap();
            let bare = world.bare_client("client", 2, "server").await;
            let authority = format!("{}:{PORT}", world.ip(2));
            bare.connect(connect_to(authority)).await.unwrap();
            // One whose host is to be looked up.
            let named = format!("localhost:{}", outside.0);
            client.connect(named).await.unwrap();
        }
    };
    tokio::select! {
        biased;
        () = &mut change => panic!("it was read on the runtime of the connections"),
        served = timeout(Duration::from_secs(60), served) => served.expect("none of it needs the other runtime"),
    }
    go_on.send(()).unwrap();
    change.await;
    blocks.await.unwrap();
}

/// Whoever set the runtime up and let go of it would find out when certificates expire, a day later.
#[tokio::test]
async fn a_control_runtime_that_ends_before_the_mesh_is_told_once() {
    let (lines, _guard) = capture("mesh=info");
    let control = Control::new();
    let world = World::with(246, |node| node.control_runtime(control.handle()));
    let (client, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    client.ready().await.unwrap();
    assert!(client.readiness().is_ready());

    drop(control);
    until("it is told", || lines.text().contains("ERROR")).await;
    let why = "it was shut down; expected it to live as long as the mesh";
    lines.has(&[
        "ERROR",
        "the control runtime has ended",
        "certificates are not renewed",
        why,
    ]);
    let pending: Vec<_> = client
        .readiness()
        .pending()
        .map(|(name, why)| format!("{name}: {why}"))
        .collect();
    assert_eq!(pending, [format!("control runtime: {why}")]);
    let dump = get(&client.admin(), "/config_dump").await.json();
    assert!(dump["stale"].to_string().contains(why), "{}", dump["stale"]);
    // What is there goes on, and what would wait for news is told that there will be none.
    ping(&mut client.connect(format!("server:{PORT}")).await.unwrap())
        .await
        .unwrap();
    let error = world.mesh("late").ready().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotReady);
    assert!(error.detail().unwrap().contains(why), "{error:?}");
    // Three tasks of its kind have ended with it, and one that never began.
    assert_eq!(lines.text().matches("ERROR").count(), 1, "{}", lines.text());
}

/// There will be no configuration: nobody waits for it.
#[tokio::test(start_paused = true)]
async fn a_control_runtime_that_has_ended_before_the_start_fails_it_at_once() {
    let ended = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().handle().clone()
    });
    let handle = ended.join().unwrap();
    let world = World::with(247, |node| node.control_runtime(handle));
    let began = Instant::now();
    let error = world.mesh("client").ready().await.unwrap_err();
    let detail = error.detail().unwrap();
    assert!(
        detail.contains("the control runtime has ended"),
        "{error:?}"
    );
    assert_eq!(began.elapsed(), Duration::ZERO);
}

/// So a program ends that has done all as it should.
#[tokio::test]
async fn of_a_control_runtime_that_ends_after_the_shutdown_nothing_is_told() {
    let (lines, _guard) = capture("mesh=warn");
    let control = Control::new();
    let world = World::with(248, |node| node.control_runtime(control.handle()));
    let (client, server) = world.pair().await;
    client.ready().await.unwrap();
    server.ready().await.unwrap();
    for mesh in [&client, &server] {
        mesh.shutdown(Duration::from_secs(5)).await;
    }
    drop(server);
    drop(control);
    until("the source has ended", || world.control.is_unwanted()).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(lines.text(), "");
    // A mesh that is made now would not be kept current.
    assert!(!client.readiness().is_ready());
}
