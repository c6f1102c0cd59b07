//! How far a peer may send ahead on each tunnel of a connection: a state machine without I/O.
//!
//! A tunnel starts with the [stream window](crate::config::Config::stream_window), which is also what
//! it may cost unread. A connection of few tunnels whose readers keep up gets the larger bulk window,
//! by SETTINGS_INITIAL_WINDOW_SIZE ([RFC 9113 section
//! 6.9.2](https://www.rfc-editor.org/rfc/rfc9113#section-6.9.2)), and gives it back when it has more
//! tunnels or less to move. When all connections together have promised more than the budget, they
//! fall back to HTTP/2's own initial window. A connection grows its windows at most once in an interval:
//! each change is a SETTINGS, of which a peer bears only so many.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// HTTP/2's initial window (RFC 9113 section 6.9.2), which no budget takes away.
const LEAST: u32 = 65_535;

/// Tunnels of one connection that may all have the bulk window.
const FEW: usize = 4;

/// Stream windows that have to arrive within an interval before it counts as bulk: more than the few
/// tunnels can hold unread, so that somebody has read.
const BULK: u64 = 2 * FEW as u64;

/// What all connections of one process have promised their peers to bear.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    promised: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            promised: AtomicU64::new(0),
        }
    }

    #[cfg(test)]
    fn promised(&self) -> u64 {
        self.promised.load(Ordering::Relaxed)
    }
}

/// The windows of one connection's tunnels.
#[derive(Debug)]
pub(crate) struct Windows {
    stream: u32,
    bulk: u32,
    few: usize,
    interval: Duration,
    budget: Arc<Budget>,
    /// This connection's part of what is promised.
    promised: u64,
    live: usize,
    asked: u32,
    /// What was wanted could not be asked for yet.
    refused: bool,
    grew: bool,
    moves_bulk: bool,
    since: Instant,
    arrived_before: u64,
}

impl Windows {
    /// `stream` is what the first SETTINGS said, `connection` the window of the connection, which the
    /// bulk windows have to fit.
    pub(crate) fn new(
        stream: u32,
        bulk: u32,
        connection: u32,
        interval: Duration,
        budget: Arc<Budget>,
        now: Instant,
    ) -> Self {
        let bulk = bulk.max(stream);
        Self {
            stream,
            bulk,
            few: FEW.min((connection / bulk) as usize),
            interval,
            budget,
            promised: 0,
            live: 0,
            asked: stream,
            refused: false,
            grew: false,
            moves_bulk: false,
            since: now,
            arrived_before: 0,
        }
    }

    /// The window to ask for next, if another than before: with `live` tunnels, after `arrived` bytes
    /// in all. Without [`ask`](Self::ask) it is wanted again.
    pub(crate) fn poll(&mut self, now: Instant, live: usize, arrived: u64) -> Option<u32> {
        let enough = BULK * u64::from(self.stream);
        let mut judge = self.refused || live != self.live;
        self.live = live;
        let new = arrived - self.arrived_before;
        if now >= self.since + self.interval {
            self.moves_bulk = new >= enough;
            self.since = now;
            self.arrived_before = arrived;
            self.grew = false;
            judge = true;
        } else if !self.moves_bulk && new >= enough {
            self.moves_bulk = true;
            judge = true;
        }
        if !judge {
            return None;
        }
        self.promise(self.asked);
        let wanted = self.wanted();
        // Without tunnels a change would be for nobody.
        let changes = live > 0 && wanted != self.asked && !(self.grew && wanted > self.asked);
        self.refused = changes;
        changes.then_some(wanted)
    }

    /// What the peer was told last.
    pub(crate) fn asked(&self) -> u32 {
        self.asked
    }

    /// The peer is being told of `window`.
    pub(crate) fn ask(&mut self, window: u32) {
        self.grew |= window > self.asked;
        self.refused = false;
        self.asked = window;
        self.promise(window);
    }

    fn wanted(&self) -> u32 {
        let all = self.budget.promised.load(Ordering::Relaxed);
        let others = all.saturating_sub(self.promised);
        let fits = |window: u32, limit: u64| others + self.cost(window) <= limit;
        let limit = self.budget.limit;
        if self.moves_bulk && (1..=self.few).contains(&self.live) && fits(self.bulk, limit) {
            return self.bulk;
        }
        // Who has given back takes again only when there is room to spare, so that it lasts.
        let limit = if self.asked < self.stream {
            limit / 4 * 3
        } else {
            limit
        };
        if fits(self.stream, limit) {
            self.stream
        } else {
            self.stream.min(LEAST)
        }
    }

    fn cost(&self, window: u32) -> u64 {
        self.live as u64 * u64::from(window)
    }

    fn promise(&mut self, window: u32) {
        let cost = self.cost(window);
        let promised = &self.budget.promised;
        promised.fetch_add(cost.wrapping_sub(self.promised), Ordering::Relaxed);
        self.promised = cost;
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        self.live = 0;
        self.promise(0);
    }
}

#[cfg(test)]
mod tests;
