//! an application that blocks a thread of its runtime, and a control plane that keeps one busy.

use std::pin::pin;
use std::sync::mpsc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::mesh_world::{PORT, World, connect_to, echo, ping};

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
