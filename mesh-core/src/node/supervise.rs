//! Tasks whose end is told.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use futures_util::FutureExt;

use super::{NodeInner, report};
use crate::sync::lock;
use crate::{Error, ErrorKind};

/// The task that runs it, and what readiness calls it.
pub(super) const CONFIG_SOURCE: &str = "configuration source";

/// What readiness calls the runtime of what keeps configuration and certificates current, when it has ended.
const CONTROL_RUNTIME: &str = "control runtime";

impl NodeInner {
    /// Runs a source; its failure turns readiness off with its reason, and so does the end of its runtime.
    pub(super) fn supervise(
        self: &Arc<Self>,
        what: &'static str,
        task: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) {
        let node = Arc::downgrade(self);
        let guarded = Guarded {
            ends: Ends {
                node: Weak::clone(&node),
                has_ended: false,
            },
            task: Box::pin(supervised(node, what, task)),
        };
        self.tasks.spawn(guarded);
    }

    /// The runtime that kept configuration and certificates current has been shut down.
    fn no_longer_current(&self) {
        // Where there is one runtime the process ends, or at least the mesh.
        if self.settings.control_runtime.is_none() {
            return;
        }
        let reason = "it was shut down; expected it to live as long as the mesh";
        // There may be several tasks that ended with it.
        if !self.gate.pend(CONTROL_RUNTIME, reason) {
            return;
        }
        let what = format!("the {CONTROL_RUNTIME} has ended: {reason}");
        self.gate.cannot_start(Some(what.clone()));
        self.stale(Some(what));
        // Whose meshes have all begun their shutdown, or are gone, may end it; one that is made after that finds the reason.
        let had_some = !lock(&self.meshes).is_empty();
        if had_some && self.meshes().iter().all(|mesh| mesh.live.is_draining()) {
            return;
        }
        // With the other runtime the process ends, and then nobody is to be alarmed.
        self.work.runtime().spawn(async move {
            tracing::error!(
                target: "mesh::node", reason,
                "the control runtime has ended: the last configuration stays, certificates are not renewed, and when they expire connections end"
            );
        });
    }
}

/// A task with a guard that is there before it runs for the first time, which on a runtime that has ended it never does.
struct Guarded<F> {
    /// Dropped first: who waits for what the task has is to find the reason when that goes.
    ends: Ends,
    task: Pin<Box<F>>,
}

impl<F: Future<Output = ()>> Future for Guarded<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.task.as_mut().poll(cx));
        self.ends.has_ended = true;
        Poll::Ready(())
    }
}

/// Tells of a task that is dropped before it ends, while its node lives: nobody else would notice.
struct Ends {
    node: Weak<NodeInner>,
    has_ended: bool,
}

impl Drop for Ends {
    fn drop(&mut self) {
        if !self.has_ended
            && let Some(node) = self.node.upgrade()
        {
            node.no_longer_current();
        }
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
