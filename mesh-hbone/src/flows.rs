//! The receive windows of a connection's tunnels.

use std::collections::HashMap;
use std::sync::Mutex;

use h2::{FlowControl, RecvStream, StreamId};

use crate::driver::lock;

/// One handle for each live tunnel, by which its peer is told again how far it may send.
///
/// h2 tells it when enough was read, which it judges by the window as it is then. A window that
/// shrinks later by SETTINGS can leave the peer with nothing, and a reader that has read all has no
/// reason to say so again.
#[derive(Default)]
pub(crate) struct Flows {
    // Never locked while h2 is: a handle that goes away takes h2's lock.
    of: Mutex<HashMap<StreamId, FlowControl>>,
}

impl Flows {
    pub(crate) fn insert(&self, recv: &mut RecvStream) {
        let flow = recv.flow_control().clone();
        lock(&self.of).insert(recv.stream_id(), flow);
    }

    pub(crate) fn remove(&self, recv: &RecvStream) {
        let id = recv.stream_id();
        let removed = lock(&self.of).remove(&id);
        drop(removed);
    }

    /// Has h2 judge every window again.
    pub(crate) fn judge_again(&self) {
        for flow in lock(&self.of).values_mut() {
            // Nothing is released, so nothing is too much; h2 leaves out streams that have ended.
            let _ = flow.release_capacity(0);
        }
    }

    pub(crate) fn clear(&self) {
        let all = std::mem::take(&mut *lock(&self.of));
        drop(all);
    }
}
