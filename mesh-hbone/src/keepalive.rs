//! When to PING, and when to give up: a state machine without I/O.

use std::time::Duration;

use tokio::time::Instant;

/// The PINGs of one connection.
///
/// The first goes out one interval after the start, the next one interval after each answer, as
/// istio/ztunnel does. Call [`poll`](Self::poll) after every event and at the time that it names.
#[derive(Debug, Clone)]
pub struct KeepAlive {
    interval: Duration,
    timeout: Duration,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Idle { next: Instant },
    Waiting { until: Instant },
}

/// What a [`KeepAlive`] wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Nothing before this time.
    Wait(Instant),
    /// Send a PING now. Until its answer there is no other.
    Ping,
    /// The peer did not answer: it is gone.
    GiveUp,
}

impl KeepAlive {
    /// Starts the clock of a new connection.
    pub fn new(now: Instant, interval: Duration, timeout: Duration) -> Self {
        Self {
            interval,
            timeout,
            state: State::Idle {
                next: now + interval,
            },
        }
    }

    /// What to do at `now`.
    pub fn poll(&mut self, now: Instant) -> Action {
        match self.state {
            State::Idle { next } if now < next => Action::Wait(next),
            State::Idle { .. } => {
                self.state = State::Waiting {
                    until: now + self.timeout,
                };
                Action::Ping
            }
            State::Waiting { until } if now < until => Action::Wait(until),
            State::Waiting { .. } => Action::GiveUp,
        }
    }

    /// Something else came from the peer: it is there, and its answer may be queued behind it, or our
    /// PING behind what we sent. The wait for the answer begins anew.
    pub fn heard(&mut self, now: Instant) {
        if let State::Waiting { until } = &mut self.state {
            *until = now + self.timeout;
        }
    }

    /// The answer to the PING is here. Ignored when none was sent.
    pub fn answered(&mut self, now: Instant) {
        if matches!(self.state, State::Waiting { .. }) {
            self.state = State::Idle {
                next: now + self.interval,
            };
        }
    }
}

#[cfg(test)]
mod tests;
