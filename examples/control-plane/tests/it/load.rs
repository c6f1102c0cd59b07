//! New connections at a rate, whatever becomes of those before: each that is due is made, however late.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mesh_core::Mesh;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::cast::call;

/// New connections in a second.
const RATE: u32 = 500;

/// Every tenth is a TLS connection of its own, the others share some.
pub(crate) const AFRESH: usize = 10;

/// Connections at a time; what is due then waits.
pub(crate) const MOST: usize = 200;

pub(crate) struct Load {
    done: Arc<[AtomicUsize; 2]>,
    begun: Instant,
    stop: oneshot::Sender<Instant>,
    running: JoinHandle<(usize, Vec<String>)>,
}

/// What became of a load.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// For how long connections fell due.
    took: Duration,
    /// Those that were made and answered, and how many of them were TLS connections of their own.
    done: usize,
    pub(crate) afresh: usize,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { took, done, afresh } = self;
        write!(
            f,
            "{done} connections in {took:?}, {afresh} of them TLS connections of their own; none failed"
        )
    }
}

impl Load {
    /// Begins, with a member that shares its connections and one that does not.
    pub(crate) fn begin(shared: &Mesh, afresh: &Mesh) -> Self {
        let done = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        let (stop, stopped) = oneshot::channel();
        let begun = Instant::now();
        let meshes = [shared.clone(), afresh.clone()];
        Self {
            running: tokio::spawn(run(begun, meshes, stopped, Arc::clone(&done))),
            done,
            begun,
            stop,
        }
    }

    /// How many were answered: on shared connections, on their own.
    pub(crate) fn done(&self) -> [usize; 2] {
        [0, 1].map(|at: usize| self.done[at].load(Ordering::Relaxed))
    }

    /// No more fall due. Waits for those that did.
    ///
    /// # Panics
    ///
    /// If one of them has failed, or was left out.
    pub(crate) async fn end(self) -> Outcome {
        let took = self.begun.elapsed();
        let _ = self.stop.send(self.begun + took);
        let (due, failures) = self.running.await.unwrap();
        let [shared, afresh] = [0, 1].map(|at: usize| self.done[at].load(Ordering::Relaxed));
        let done = shared + afresh;
        let count = failures.len();
        assert!(
            failures.is_empty(),
            "{count} of {due} in {took:?}, the first: {}",
            failures[0]
        );
        assert_eq!(done, due, "none was left out");
        assert!(done as f64 + 1.0 >= took.as_secs_f64() * f64::from(RATE));
        Outcome { took, done, afresh }
    }
}

async fn run(
    begun: Instant,
    meshes: [Mesh; 2],
    mut stopped: oneshot::Receiver<Instant>,
    done: Arc<[AtomicUsize; 2]>,
) -> (usize, Vec<String>) {
    let every = Duration::from_secs(1) / RATE;
    let (mut next, mut end, mut started) = (begun, None, 0);
    let mut running = JoinSet::new();
    let mut failures = Vec::new();
    loop {
        let is_due = end.is_none_or(|end| next <= end);
        tokio::select! {
            at = &mut stopped, if end.is_none() => end = Some(at.unwrap_or(next)),
            () = sleep_until(next), if is_due && running.len() < MOST => {
                let kind = usize::from(started % AFRESH == 0);
                let mesh = meshes[kind].clone();
                running.spawn(async move { (kind, call(&mesh).await) });
                started += 1;
                next += every;
            }
            Some(ended) = running.join_next() => match ended.unwrap() {
                (kind, Ok(())) => _ = done[kind].fetch_add(1, Ordering::Relaxed),
                (_, Err(error)) => failures.push(format!("{error:?}")),
            },
            else => return (started, failures),
        }
    }
}
