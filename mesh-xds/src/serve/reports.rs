//! What a stream reports of its host's health: one report in an interval counts. No I/O; whoever drives it says
//! what time it is.

use std::time::Duration;

use tokio::time::Instant;

/// How a host says that its application is, with what is wrong.
pub(super) type Report = Result<(), String>;

/// The reports of one stream.
#[derive(Debug)]
pub(super) struct Reports {
    every: Duration,
    /// When one counted last.
    last: Option<Instant>,
    /// The newest that came too soon.
    waiting: Option<Report>,
}

impl Reports {
    pub(super) fn new(every: Duration) -> Self {
        Self {
            every,
            last: None,
            waiting: None,
        }
    }

    /// Takes a report, in the place of one that waits.
    pub(super) fn take(&mut self, report: Report) {
        self.waiting = Some(report);
    }

    /// When the one that waits counts; `None` if none does, or no clock can say when.
    pub(super) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        self.waiting.as_ref()?;
        self.last
            .map_or(Some(now), |last| last.checked_add(self.every))
    }

    /// The report that counts from now on, if there is one.
    pub(super) fn due(&mut self, now: Instant) -> Option<Report> {
        if self.poll_timeout(now)? > now {
            return None;
        }
        self.last = Some(now);
        self.waiting.take()
    }
}
