//! The inbound listener of a port, as the control plane has it.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::timeout_at;

use crate::Error;
use crate::config::{Asked, Board};
use crate::mesh::MeshInner;
use crate::settings::deadline;
use crate::shutdown::drain_begins;

/// An inbound listener is demanded while this lives.
#[derive(Debug)]
pub(crate) struct Demanded {
    board: Arc<Board>,
    address: SocketAddr,
}

impl Demanded {
    fn new(board: &Arc<Board>, address: SocketAddr) -> Self {
        board.listen(address);
        Self {
            board: Arc::clone(board),
            address,
        }
    }
}

impl Drop for Demanded {
    fn drop(&mut self) {
        self.board.unlisten(self.address);
    }
}

impl MeshInner {
    /// Demands the inbound listener of a port, and waits for it as long as for policies. Where none
    /// comes the port is judged by the workload's own policies in their reduction: stricter, never wider.
    pub(super) async fn demand_listener(&self, port: u16) -> Result<Option<Demanded>, Error> {
        // No Service names a port that is not known yet.
        if port == 0 {
            return Ok(None);
        }
        self.ready().await?;
        let record = self.record_to_listen().await?;
        let Some(own) = record.addresses().first() else {
            return Ok(None);
        };
        let node = &self.node.inner;
        let address = SocketAddr::new(*own, port);
        let demanded = Demanded::new(&node.board, address);
        let deadline = deadline(self.settings().policy_wait);
        let mut published = node.published();
        let mut answered = node.board.answered();
        loop {
            published.borrow_and_update();
            answered.borrow_and_update();
            let here = {
                let snapshot = node.snapshot.load();
                let record = self.record(&snapshot);
                record.is_some_and(|record| snapshot.inbound_listener(record, port).is_some())
            };
            // `None`: the source knows of no listeners.
            if here || node.board.listener(address) != Some(Asked::Waiting) {
                break;
            }
            let changes = async {
                tokio::select! {
                    _ = published.changed() => {}
                    _ = answered.changed() => {}
                    () = drain_begins(self) => return Err(self.not_started()),
                }
                Ok(())
            };
            let Ok(changed) = timeout_at(deadline, changes).await else {
                tracing::info!(target: "mesh::inbound", %address, "no inbound listener has come: policies on requests count in their L4 reduction");
                break;
            };
            changed?;
        }
        Ok(Some(demanded))
    }
}
