//! The entries of hosts that register, for whoever makes workloads of them.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::registry::HostEntry;
use super::server::Shared;

/// The entries of hosts that registered, and what becomes of them.
///
/// A host that asks for it by `AUTO_REGISTER_GROUP` in its node's metadata is registered when its stream
/// opens: see [`Server::set_workload_groups`](super::Server::set_workload_groups). Entries are no workloads yet. Whoever
/// owns this makes them some, usually by [`changed`](Self::changed) in a loop, and applies these to the server.
pub struct Registrations {
    shared: Arc<Shared>,
    changes: watch::Receiver<()>,
    seen: u64,
}

impl Registrations {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            changes: shared.registry_changes(),
            shared,
            seen: 0,
        }
    }

    /// Waits until the entries differ from what they were when this returned last; what is wrong with a host
    /// that stays unhealthy is no difference. It removes those of hosts
    /// that have not come back within the grace, so without it they stay.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what changed is seen by the next call.
    pub async fn changed(&mut self) {
        loop {
            self.changes.mark_unchanged();
            let (revision, ends) = self.shared.registry(|registry| {
                registry.handle_timeout(Instant::now());
                (registry.revision(), registry.poll_timeout())
            });
            if revision != self.seen {
                self.seen = revision;
                return;
            }
            // Not before: hosts that have come back and are still to be applied would be taken as gone.
            self.shared.settle();
            let grace = async {
                match ends {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // It cannot end: we hold the sender.
                _ = self.changes.changed() => {}
                () = grace => {}
            }
        }
    }

    /// The entries as they are now, by namespace and name. Within the
    /// [`host_return`](super::ServerBuilder::host_return) of a new server those with a probe come with their
    /// first report.
    pub fn entries(&self) -> Vec<HostEntry> {
        self.shared
            .registry(|registry| registry.entries().cloned().collect())
    }
}

impl std::fmt::Debug for Registrations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registrations")
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}
