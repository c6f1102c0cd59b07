//! The tasks of HTTP connections, also of those that nobody has any more.

use std::error::Error as StdError;
use std::fmt;
use std::sync::{Arc, Weak};

use hyper::rt::Executor as _;
use tokio::sync::watch;

use crate::mesh::MeshInner;

/// The tasks of a connection.
#[derive(Clone)]
pub(super) struct Running {
    stop: Arc<watch::Sender<bool>>,
    ended: watch::Receiver<()>,
}

impl Running {
    pub(super) fn new(mesh: &Arc<MeshInner>) -> (Self, Spawner) {
        let (stop, stopped) = watch::channel(false);
        let (end, ended) = watch::channel(());
        let spawner = Spawner {
            mesh: Arc::downgrade(mesh),
            stopped,
            end,
        };
        let stop = Arc::new(stop);
        (Self { stop, ended }, spawner)
    }

    /// Ends it at once: an orderly end needs a turn of its task.
    pub(super) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Has ended; its tunnel's place is free then, or in nobody's way.
    pub(super) async fn ended(mut self) {
        while self.ended.changed().await.is_ok() {}
    }

    fn has_ended(&self) -> bool {
        self.ended.has_changed().is_err()
    }
}

/// Runs the tasks of one connection among the workload's: HTTP/2 has several.
#[derive(Clone)]
pub(super) struct Spawner {
    mesh: Weak<MeshInner>,
    stopped: watch::Receiver<bool>,
    /// Gone with the last task.
    end: watch::Sender<()>,
}

impl Spawner {
    /// Runs `after` when the connection has ended by itself.
    pub(super) fn spawn_connection<E: StdError + 'static>(
        &self,
        connection: impl Future<Output = Result<(), E>> + Send + 'static,
        after: impl Future<Output = ()> + Send + 'static,
    ) {
        self.execute(async move {
            if let Err(error) = connection.await {
                tracing::debug!(target: "mesh::outbound", error = &error as &dyn StdError, "HTTP connection failed");
            }
            after.await;
        });
    }
}

impl<F> hyper::rt::Executor<F> for Spawner
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        let Some(mesh) = self.mesh.upgrade() else {
            return;
        };
        let (mut stopped, end) = (self.stopped.clone(), self.end.clone());
        mesh.tasks.spawn(async move {
            // Dropped after the task, however this ends.
            let _end = end;
            tokio::select! {
                biased;
                Ok(_) = stopped.wait_for(|stopped| *stopped) => {}
                () = task => {}
            }
        });
    }
}

/// All HTTP connections through tunnels that have not ended, whoever has them.
#[derive(Default)]
pub(super) struct Connections(Vec<Connection>);

struct Connection {
    running: Running,
    /// By whom it may be used again, or is used.
    held: Weak<dyn Send + Sync>,
}

impl Connections {
    /// `held` goes with the last who has it.
    pub(super) fn add(&mut self, running: Running, held: Weak<dyn Send + Sync>) {
        if self.0.len() == self.0.capacity() {
            self.forget_ended();
            // As many come before the next look.
            self.0.reserve(self.0.len().max(4));
        }
        self.0.push(Connection { running, held });
    }

    pub(super) fn forget_ended(&mut self) {
        self.0.retain(|connection| !connection.running.has_ended());
        self.0.shrink_to(self.0.len() * 2);
    }

    /// Those that nobody has, and that end by themselves, but later.
    pub(super) fn leaving(&self) -> impl Iterator<Item = &Running> {
        let leaving = |connection: &&Connection| connection.held.strong_count() == 0;
        let running = self.0.iter().filter(leaving).map(|left| &left.running);
        running.filter(|running| !running.has_ended())
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connections").field(&self.0.len()).finish()
    }
}
