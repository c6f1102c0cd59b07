use std::sync::mpsc;
use std::time::Duration;

use futures_util::FutureExt;

use super::*;
use crate::config::{ConfigLink, ConfigSource};
use crate::identity::DevCa;
use crate::xds::model::Batch;

struct Once;

impl ConfigSource for Once {
    async fn run(self, link: ConfigLink) -> Result<(), Error> {
        link.apply(Batch::new(Vec::new(), Vec::new()))?;
        std::future::pending().await
    }
}

#[tokio::test]
async fn a_ready_mesh_asks_its_board_no_more() {
    let mesh = Mesh::builder()
        .workload("default", "client", "client")
        .config(Once)
        .identity(DevCa::ephemeral("cluster.local"))
        .build()
        .unwrap();
    mesh.ready().await.unwrap();

    let (done, answered) = mpsc::channel();
    let board = Arc::clone(&mesh.inner.node.inner.board);
    let held = board.held();
    let asks = std::thread::spawn({
        let mesh = mesh.clone();
        move || done.send(mesh.ready().now_or_never().map(|ready| ready.is_ok()))
    });
    // Long enough for a thread to start; one that waits for the board never answers.
    let outcome = answered.recv_timeout(Duration::from_secs(10));
    drop(held);
    asks.join().unwrap().ok();
    assert_eq!(outcome, Ok(Some(true)));
}
