use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many inbound sockets may live at once, of a workload and of all on its node. Plaintext, which
/// anybody can open, leaves room for tunnels, of which the peer is known.
#[derive(Debug)]
pub(crate) struct Places {
    own: Arc<Semaphore>,
    plaintext: Arc<Semaphore>,
    node: Arc<Semaphore>,
}

/// Room for one socket, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _own: OwnedSemaphorePermit,
    plaintext: Option<OwnedSemaphorePermit>,
    _node: OwnedSemaphorePermit,
}

impl Places {
    pub(crate) fn new(own: usize, plaintext: usize, node: &Arc<Semaphore>) -> Self {
        Self {
            own: Arc::new(Semaphore::new(own)),
            plaintext: Arc::new(Semaphore::new(plaintext)),
            node: Arc::clone(node),
        }
    }

    /// `None` when there is no room: the socket is to be closed.
    pub(crate) fn take(&self) -> Option<Place> {
        Some(Place {
            _own: Arc::clone(&self.own).try_acquire_owned().ok()?,
            plaintext: None,
            _node: Arc::clone(&self.node).try_acquire_owned().ok()?,
        })
    }

    /// As [`take`](Self::take), for a plaintext socket.
    pub(crate) fn take_plaintext(&self) -> Option<Place> {
        let plaintext = Arc::clone(&self.plaintext).try_acquire_owned().ok()?;
        let mut place = self.take()?;
        place.plaintext = Some(plaintext);
        Some(place)
    }
}
