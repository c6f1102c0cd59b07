//! The end of a workload's service, in order.

use std::time::Duration;

use tokio::time::timeout;

use crate::Mesh;
use crate::inbound::{LAST_WORDS, Phase, reaches};
use crate::mesh::MeshInner;

impl Mesh {
    /// Resolves when a drain begins: what axum's and tonic's graceful shutdown want.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + 'static {
        drain_begins(&self.inner)
    }

    /// Drains: stops accepting, tells peers to open no more tunnels, waits for live connections to
    /// end, and cuts what is left at the deadline. Also begins the drain for [`draining`](Self::draining).
    ///
    /// A connection has ended when its stream was dropped *and* all that was written to it is out: for
    /// tunnels, when the peer has taken it and the TLS connection that they shared is closed
    /// (close_notify and all); for plaintext, when the kernel has it. What is cut is told to the peer
    /// (RST_STREAM, RST), for which the call takes up to a second more.
    ///
    /// Says what was cut. Calling it again waits for the same drain. Connections that the workload opened
    /// itself are the application's to end, but for idle ones of [`http_client`](Self::http_client): what is being
    /// answered may need others until then. Once the drain is over no more are opened ([`ErrorKind::Draining`](crate::ErrorKind::Draining)).
    ///
    /// # Cancel safety
    ///
    /// The drain has begun as soon as this was polled and goes on when the future is dropped, but
    /// then nothing is cut at the deadline.
    pub async fn shutdown(&self, deadline: Duration) -> Drained {
        let mesh = &self.inner;
        let live = &mesh.live;
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
