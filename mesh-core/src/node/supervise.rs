//! Tasks whose end is told.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};

use futures_util::FutureExt;

use super::{NodeInner, report};
use crate::{Error, ErrorKind};

/// The task that runs it, and what readiness calls it.
pub(super) const CONFIG_SOURCE: &str = "configuration source";

impl NodeInner {
    /// Runs a source; its failure turns readiness off with its reason.
    pub(super) fn supervise(
        self: &Arc<Self>,
        what: &'static str,
        task: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) {
        let node = Arc::downgrade(self);
        self.tasks.spawn(supervised(node, what, task));
    }
}

/// Runs a task whose failure turns readiness off with its reason.
pub(crate) async fn supervised(
    node: Weak<NodeInner>,
    what: &'static str,
    task: impl Future<Output = Result<(), Error>> + Send,
) {
    let reason = match AssertUnwindSafe(task).catch_unwind().await {
        Ok(Ok(())) => return,
        // How every task ends when its node does.
        Ok(Err(error)) if error.kind() == ErrorKind::Draining => return,
        Ok(Err(error)) => report(&error),
        Err(_) => "it panicked".to_owned(),
    };
    tracing::error!(target: "mesh::node", task = what, %reason, "a task has ended; the last state stays");
    if let Some(node) = node.upgrade() {
        if what == CONFIG_SOURCE {
            node.gate.cannot_start(Some(reason.clone()));
        }
        node.gate.pend(what, reason);
    }
}
