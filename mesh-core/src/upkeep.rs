//! What a node has to do now and then: end tunnels whose certificates do not stand any more, forget idle
//! series of metrics, idle connections and certificates that nobody wants, tell of trust domains that differ.

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};

use crate::inbound::is_revoked;
use crate::node::{NodeInner, certificate_name};
use crate::settings::{has_expired, valid_for};

/// The longest pause between two rounds.
const ROUND: Duration = Duration::from_secs(30);

/// Runs until the node is gone.
pub(crate) async fn run(node: Weak<NodeInner>) {
    loop {
        let (pause, sooner) = match node.upgrade() {
            Some(node) => (node.tend(Instant::now()), Arc::clone(&node.sooner)),
            None => return,
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = sooner.notified() => {}
        }
    }
}

impl NodeInner {
    /// One round; says when the next is due.
    fn tend(&self, now: Instant) -> Duration {
        self.metrics.evict_idle(now);
        for mesh in self.meshes() {
            mesh.tell_who_serves();
            mesh.compare_trust_domains(now);
            #[cfg(feature = "http")]
            mesh.http.sweep(now);
        }
        self.forget_unwanted();
        self.expire_tunnels(self.settings.wall_clock.now())
    }

    /// Ends outbound tunnels whose certificates have expired, ours or the peer's; says when to look
    /// again.
    fn expire_tunnels(&self, now: SystemTime) -> Duration {
        let credentials = self.credentials();
        let mut next = ROUND;
        let mut is_over = |not_after: SystemTime| match valid_for(not_after, now) {
            Some(left) => {
                next = next.min(left.max(Duration::from_millis(1)));
                false
            }
            None => true,
        };
        for (identity, credentials) in &credentials {
            if is_over(credentials.current().not_after()) {
                self.gate
                    .pend(&certificate_name(identity), "it has expired");
            }
        }
        for (key, sender) in self.pool.senders() {
            let own = credentials.get(key.source());
            let own_expired = own.is_none_or(|own| has_expired(own.current().not_after(), now));
            let peer_expired = sender.peer().is_some_and(|peer| is_over(peer.not_after()));
            if own_expired || (peer_expired && self.settings.close_expired) {
                tracing::info!(target: "mesh::outbound", peer = ?sender.peer(), "tunnel connection closed: certificate expired");
                sender.abort();
            } else if peer_expired {
                sender.retire();
            }
        }
        next
    }

    /// Ends outbound tunnels to peers that a CRL lists now.
    pub(crate) fn revoke_tunnels(&self) {
        let credentials = self.credentials();
        for (key, sender) in self.pool.senders() {
            let (Some(own), Some(peer)) = (credentials.get(key.source()), sender.peer()) else {
                continue;
            };
            if is_revoked(peer, own) {
                tracing::info!(target: "mesh::outbound", ?peer, "tunnel connection closed: peer certificate revoked by CRL");
                sender.abort();
            }
        }
    }
}
