//! Whether a live connection's certificates still stand.

use std::time::{Duration, SystemTime};

use mesh_hbone::tls::{Credentials, Peer};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::net::CutReason;
use crate::settings::{WallClock, has_expired, valid_for};

/// The clock may be set at any time, so it is asked at least this often.
const LOOK: Duration = Duration::from_secs(60);

/// Watches both ends' certificates of one connection.
pub(super) struct Validity {
    peer: Peer,
    credentials: Credentials,
    renewed: watch::Receiver<u64>,
    clock: WallClock,
    close_expired: bool,
    retired: bool,
}

/// What to do with the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Open no more tunnels on it.
    Retire,
    Close(CutReason),
}

impl Validity {
    pub(super) fn new(
        peer: Peer,
        credentials: Credentials,
        clock: WallClock,
        close_expired: bool,
    ) -> Self {
        let mut renewed = credentials.subscribe();
        // What was renewed during the handshake has not judged this peer.
        renewed.mark_changed();
        Self {
            peer,
            credentials,
            renewed,
            clock,
            close_expired,
            retired: false,
        }
    }

    pub(super) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Waits until something is to be done.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing is forgotten.
    pub(super) async fn ends(&mut self) -> Outcome {
        loop {
            let now = self.clock.now();
            if let Some(outcome) = self.judge(now) {
                return outcome;
            }
            tokio::select! {
                () = sleep(self.next(now)) => {}
                changed = self.renewed.changed() => match changed {
                    Ok(()) => self.renewed.mark_changed(),
                    // Nothing will be renewed any more; what there is may still expire.
                    Err(_) => sleep(self.next(now)).await,
                },
            }
        }
    }

    fn judge(&mut self, now: SystemTime) -> Option<Outcome> {
        if has_expired(self.credentials.current().not_after(), now) {
            return Some(Outcome::Close(CutReason::Expired));
        }
        if self.renewed.has_changed().unwrap_or(false) {
            self.renewed.mark_unchanged();
            if is_revoked(&self.peer, &self.credentials) {
                return Some(Outcome::Close(CutReason::Revoked));
            }
        }
        if has_expired(self.peer.not_after(), now) && !self.retired {
            self.retired = true;
            return Some(match self.close_expired {
                true => Outcome::Close(CutReason::Expired),
                false => Outcome::Retire,
            });
        }
        None
    }

    fn next(&self, now: SystemTime) -> Duration {
        let own = self.credentials.current().not_after();
        let until = match self.retired {
            true => own,
            false => own.min(self.peer.not_after()),
        };
        let left = valid_for(until, now).unwrap_or_default();
        left.max(Duration::from_millis(1)).min(LOOK)
    }
}

/// Whether a CRL that is known now lists a certificate that the peer presented.
pub(crate) fn is_revoked(peer: &Peer, credentials: &Credentials) -> bool {
    let judged = peer.judge_again(credentials);
    judged.is_err_and(|error| error.kind() == mesh_hbone::ErrorKind::Revoked)
}
