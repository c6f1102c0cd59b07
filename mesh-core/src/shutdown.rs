//! The end of a workload's service, in order.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use crate::Mesh;
use crate::inbound::{LAST_WORDS, Phase, reaches};
use crate::mesh::MeshInner;

impl Mesh {
    /// Resolves when a drain has begun and callers have had notice of it: what axum's and tonic's graceful shutdown want.
    ///
    /// That is the [drain notice](crate::Builder::drain_notice) after the call of [`shutdown`](Self::shutdown), or when the last
    /// connection has ended before.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + 'static {
        noticed(&self.inner)
    }

    /// Drains: stops accepting, tells peers to open no more tunnels, has HTTP/1 answers say `connection: close`, then
    /// tells the application ([`draining`](Self::draining)), waits for live connections to end, and cuts what is left at the deadline.
    ///
    /// A connection has ended when its stream was dropped *and* all that was written to it is out: for
    /// tunnels, when the peer has taken it and the TLS connection that they shared is closed
    /// (close_notify and all); for plaintext, when the kernel has it. What is cut is told to the peer
    /// (RST_STREAM, RST), for which the call takes up to a second more.
    ///
    /// Says what was cut. Calling it again waits for the same drain. Connections that the workload opened
    /// itself are the application's to end, but for idle ones of [`http_client`](Self::http_client): what is being
    /// answered may need others until then. Once the drain is over no more are opened ([`ErrorKind::Draining`](crate::ErrorKind::Draining)).
    /// What still waits for the mesh to be [ready](Self::ready) ends at once with that error.
    ///
    /// # Cancel safety
    ///
    /// The drain has begun as soon as this was polled and goes on when the future is dropped, but
    /// then nothing is cut at the deadline.
    pub async fn shutdown(&self, deadline: Duration) -> Drained {
        let mesh = &self.inner;
        let live = &mesh.live;
        let notice = mesh.settings().drain_notice.min(deadline / 4);
        mesh.notice.get_or_init(|| Instant::now() + notice);
        live.drain();
        let before = live.registry.left();
        let waited = timeout(deadline, live.ended()).await;
        let finished = live.registry.left() - before;
        let (mut cut, mut unsent) = (0, 0);
        if waited.is_ok() {
            live.end();
        } else {
            unsent = live.unsent();
            cut = live.cut();
        }
        #[cfg(feature = "http")]
        mesh.http.close_idle();
        if cut > 0 || unsent > 0 {
            tracing::warn!(target: "mesh::node", cut, unsent, "drain duration expired with pending connections, forcefully shutting down");
        }
        // What was cut is on its way to the peers; each session bounds the wait by itself.
        let _ = timeout(2 * LAST_WORDS, live.sessions.emptied()).await;
        Drained {
            finished,
            cut,
            unsent,
        }
    }
}

/// What a drain came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    finished: usize,
    cut: usize,
    unsent: usize,
}

impl Drained {
    /// How many inbound connections ended by themselves.
    pub fn finished(&self) -> usize {
        self.finished
    }

    /// How many were cut at the deadline, those in plaintext included that were still to be judged.
    pub fn cut(&self) -> usize {
        self.cut
    }

    /// How many TLS connections had only tunnels that had ended, but whose peer had not taken all that
    /// they said, or not closed, by the deadline.
    pub fn unsent(&self) -> usize {
        self.unsent
    }
}

/// Resolves when the workload begins to drain, or is gone.
pub(crate) fn drain_begins(mesh: &MeshInner) -> impl Future<Output = ()> + Send + Sync + use<> {
    reaches(mesh.live.phases(), Phase::Draining)
}

/// Resolves when the workload drains and callers have had notice of it, or is gone.
pub(crate) fn noticed(mesh: &MeshInner) -> impl Future<Output = ()> + Send + Sync + use<> {
    let (phases, notice) = (mesh.live.phases(), Arc::clone(&mesh.notice));
    async move {
        reaches(phases.clone(), Phase::Draining).await;
        // A mesh that is gone without a drain has no notice.
        if let Some(until) = notice.get() {
            tokio::select! {
                () = sleep_until(*until) => {}
                () = reaches(phases, Phase::Over) => {}
            }
        }
    }
}
