//! What every connection needs besides h2: flushes at the end of a poll, PINGs, small writes.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::config::Config;
use crate::keepalive::{Action, KeepAlive};
use crate::shared_io::SharedIo;
use crate::tunnel::Outboxes;
use crate::windows::Windows;
use crate::{DeferredFlush, Error, ErrorKind, Side};

/// Turns of h2 in one poll of a connection before other tasks have theirs.
pub(crate) const MAX_TURNS: usize = 16;

/// Frames after which no more is read in one poll of a connection, before other tasks have their turn: a peer may
/// send frames that carry nothing faster than anybody can count them. Those with many header fields weigh more than one.
pub(crate) const MAX_WEIGHT: u64 = 512;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds one of this crate's locks leaves its data half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The task goes on, as after `yield_now`, once the runtime has looked for what the system has for others: a task that wakes
/// itself is polled some sixty times before that.
pub(crate) fn comes_again(cx: &mut Context<'_>) {
    let polled = pin!(yield_now()).poll(cx);
    debug_assert!(polled.is_pending(), "it yields once");
}

pub(crate) fn from_h2(error: h2::Error, side: Side) -> Error {
    let reason = error.reason();
    let kind = if error.is_io() {
        ErrorKind::Closed
    } else if error.is_reset() {
        ErrorKind::Reset
    } else if error.is_go_away() && error.is_remote() && reason == Some(h2::Reason::NO_ERROR) {
        ErrorKind::GoingAway
    } else {
        ErrorKind::Http2
    };
    let detail = reason.map(|reason| format!("{reason:?}"));
    let mapped = Error::new(kind, side).with_source(error);
    match detail {
        Some(detail) => mapped.with_detail(detail),
        None => mapped,
    }
}

/// What is the same of h2's two kinds of connections.
pub(crate) trait Http2 {
    type Output;

    /// Moves all that can be moved, until there is something to look at.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Self::Output>;

    /// Whether the connection is polled on after this: then what is written leaves with what answers it.
    fn goes_on(output: &Self::Output) -> bool;

    /// Tells the peer of another initial window; `false` while it has not acknowledged the last SETTINGS.
    fn set_initial_window(&mut self, bytes: u32) -> bool;
}

/// The part of a connection's task that is the same for clients and servers.
pub(crate) struct Driver<IO> {
    io: SharedIo<IO>,
    ping: Option<h2::PingPong>,
    waiting_for_pong: bool,
    keepalive: KeepAlive,
    timer: Pin<Box<Sleep>>,
    outboxes: Arc<Outboxes>,
    windows: Windows,
    /// Windows become smaller with the SETTINGS after so many.
    shrinking: Option<u32>,
    header_timeout: Duration,
    linger: Duration,
    end: Option<End>,
    /// The caller flushes.
    holds: bool,
    side: Side,
}

/// What is left after the end of HTTP/2.
#[derive(Clone, Copy)]
enum End {
    /// The peer closes, or has had its time.
    Yields(Instant),
    /// Our side closes, too.
    Closes(Instant),
    /// The peer closes, too.
    Waits(Instant),
}

/// What a connection does next.
pub(crate) enum Turn {
    /// h2 has something new to do.
    Again,
    /// Everything waits, and everything written is on its way.
    Wait,
    /// The time that the caller named is here.
    Deadline,
}

impl<IO: DeferredFlush + Unpin> Driver<IO> {
    pub(crate) fn new(
        io: SharedIo<IO>,
        ping: Option<h2::PingPong>,
        config: &Config,
        streams: u32,
        side: Side,
    ) -> Self {
        let now = Instant::now();
        let outboxes = Arc::new(Outboxes::new(io.payloads()));
        Self {
            io,
            ping,
            waiting_for_pong: false,
            keepalive: KeepAlive::new(now, config.ping_interval, config.ping_timeout),
            timer: Box::pin(sleep_until(now + config.ping_interval)),
            outboxes,
            windows: config.windows_of(streams, now),
            shrinking: None,
            header_timeout: config.header_timeout,
            linger: config.linger,
            end: None,
            holds: false,
            side,
        }
    }

    /// After the end of HTTP/2: waits until both sides have closed, or for as long as the peer may take.
    pub(crate) fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let until = Instant::now() + self.linger;
            self.end = Some(match self.end {
                None if self.io.yields() => End::Yields(until),
                None => End::Waits(until),
                Some(End::Yields(end)) => {
                    if self.io.poll_peer_ends(cx).is_pending() {
                        ready!(self.poll_timer(cx, end));
                    }
                    End::Closes(until)
                }
                Some(End::Closes(end)) => {
                    if self.io.poll_close(cx).is_pending() {
                        ready!(self.poll_timer(cx, end));
                    }
                    End::Waits(end)
                }
                Some(End::Waits(end)) => {
                    if self.io.poll_peer_ends(cx).is_pending() {
                        ready!(self.poll_timer(cx, end));
                    }
                    return Poll::Ready(());
                }
            });
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<()> {
        if self.timer.deadline() != until {
            self.timer.as_mut().reset(until);
        }
        self.timer.as_mut().poll(cx)
    }

    /// As far as the transport takes it now: the end of a connection that failed.
    pub(crate) fn close(&self, cx: &mut Context<'_>) {
        if let Poll::Ready(Err(error)) = self.io.poll_close(cx) {
            tracing::trace!(target: "mesh::hbone", %error, "cannot close");
        }
    }

    /// Yields no longer.
    pub(crate) fn close_now(&mut self) {
        self.io.set_yields(false);
        if !matches!(self.end, Some(End::Waits(_))) {
            self.end = Some(End::Closes(Instant::now() + self.linger));
        }
    }

    /// Whether what is written waits for the caller's [`flush`](Self::flush) when all else waits.
    pub(crate) fn hold(&mut self, holds: bool) {
        self.holds = holds;
    }

    /// Whether the peer is to close first.
    pub(crate) fn set_yields(&self, yields: bool) {
        self.io.set_yields(yields);
    }

    pub(crate) fn outboxes(&self) -> &Arc<Outboxes> {
        &self.outboxes
    }

    pub(crate) fn error(&self, error: h2::Error) -> Error {
        self.io.error(error, self.side)
    }

    /// Polls h2 until nothing is left to do but wait.
    pub(crate) fn poll<H: Http2>(
        &mut self,
        cx: &mut Context<'_>,
        deadline: Option<Instant>,
        h2: &mut H,
    ) -> Poll<Result<Option<H::Output>, Error>> {
        self.outboxes.register(cx);
        self.adjust_windows(h2);
        for _ in 0..MAX_TURNS {
            if let Poll::Ready(value) = h2.poll_next(cx) {
                // The flush needs not be complete, only begun.
                if !H::goes_on(&value)
                    && let Poll::Ready(Err(error)) = self.io.poll_flush_now(cx)
                {
                    tracing::trace!(target: "mesh::hbone", %error, "flush failed");
                }
                return Poll::Ready(Ok(Some(value)));
            }
            match self.turn(cx, deadline)? {
                Turn::Again => {}
                Turn::Wait => {
                    self.io.end_turn();
                    return Poll::Pending;
                }
                Turn::Deadline => return Poll::Ready(Ok(None)),
            }
        }
        comes_again(cx);
        self.flush(cx)?;
        self.io.end_turn();
        Poll::Pending
    }

    fn adjust_windows(&mut self, h2: &mut impl Http2) {
        let (live, arrived) = (self.outboxes.live(), self.io.arrived());
        if let Some(window) = self.windows.poll(Instant::now(), live, arrived)
            && h2.set_initial_window(window)
        {
            // All SETTINGS before it are acknowledged, or h2 had not taken it.
            self.shrinking = (window < self.windows.asked()).then(|| self.io.acknowledged());
            self.windows.ask(window);
        }
    }

    fn turn(&mut self, cx: &mut Context<'_>, deadline: Option<Instant>) -> Result<Turn, Error> {
        if let Some(what) = self.io.excess() {
            return Err(
                Error::new(ErrorKind::Flooded, self.side).with_detail(format!("too many {what}"))
            );
        }
        let mut again = self.outboxes.send();
        if self
            .shrinking
            .is_some_and(|before| (self.io.applied().wrapping_sub(before) as i32) > 0)
        {
            self.shrinking = None;
            self.outboxes.flows().judge_again();
            again = true;
        }
        let lingering = self.outboxes.end_lingering(cx);
        let block = self.io.block_since().map(|at| at + self.header_timeout);
        loop {
            let now = Instant::now();
            if deadline.is_some_and(|deadline| deadline <= now) {
                return Ok(Turn::Deadline);
            }
            if block.is_some_and(|block| block <= now) {
                return Err(Error::new(ErrorKind::Timeout, self.side)
                    .with_detail("the peer did not finish its headers"));
            }
            self.poll_ping(cx)?;
            let wake = match self.keepalive.poll(now) {
                Action::Ping => {
                    self.outboxes.spares().clear();
                    if let Some(ping) = &mut self.ping {
                        ping.send_ping(h2::Ping::opaque())
                            .map_err(|error| from_h2(error, self.side))?;
                        self.waiting_for_pong = true;
                        again = true;
                    }
                    continue;
                }
                Action::Wait(at) => at,
                Action::GiveUp => {
                    return Err(Error::new(ErrorKind::Timeout, self.side)
                        .with_detail("the peer did not answer a PING"));
                }
            };
            if again {
                return Ok(Turn::Again);
            }
            let also = deadline.into_iter().chain(lingering).chain(block);
            let wake = also.fold(wake, Instant::min);
            if self.timer.deadline() != wake {
                self.timer.as_mut().reset(wake);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                break;
            }
            if lingering.is_some_and(|at| at <= Instant::now()) {
                return Ok(Turn::Again);
            }
        }
        if !self.holds {
            self.flush(cx)?;
        }
        Ok(Turn::Wait)
    }

    fn poll_ping(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let Some(ping) = &mut self.ping else {
            return Ok(());
        };
        if self.waiting_for_pong
            && let Poll::Ready(result) = ping.poll_pong(cx)
        {
            result.map_err(|error| from_h2(error, self.side))?;
            self.waiting_for_pong = false;
            self.keepalive.answered(Instant::now());
        } else if self.io.take_heard() {
            self.keepalive.heard(Instant::now());
        }
        Ok(())
    }

    pub(crate) fn flush(&self, cx: &mut Context<'_>) -> Result<(), Error> {
        match self.io.poll_flush_now(cx) {
            Poll::Ready(Err(error)) => Err(Error::from_io(error, self.side)),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }
}

impl<IO> Drop for Driver<IO> {
    fn drop(&mut self) {
        self.outboxes.close();
    }
}
