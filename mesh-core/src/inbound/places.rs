use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many inbound sockets may live at once, of a workload and of all on its node.
#[derive(Debug)]
pub(crate) struct Places {
    own: Arc<Semaphore>,
    node: Arc<Semaphore>,
}

/// Room for one socket, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _own: OwnedSemaphorePermit,
    _node: OwnedSemaphorePermit,
}

impl Places {
    pub(crate) fn new(own: usize, node: &Arc<Semaphore>) -> Self {
        Self {
            own: Arc::new(Semaphore::new(own)),
            node: Arc::clone(node),
        }
    }

    /// `None` when there is no room: the socket is to be closed.
    pub(crate) fn take(&self) -> Option<Place> {
        Some(Place {
            _own: Arc::clone(&self.own).try_acquire_owned().ok()?,
            _node: Arc::clone(&self.node).try_acquire_owned().ok()?,
        })
    }
}
