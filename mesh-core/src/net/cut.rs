use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, OnceLock};
use std::task::Context;

use futures_util::task::AtomicWaker;
use mesh_hbone::ResetHandle;

use super::stream::PlainIo;

use crate::sync::lock;

/// Ends a live connection from another task: its peer is told at once, every later read and write
/// fails, and whoever waits in one is woken.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    reason: AtomicU8,
    /// More than the reason, for the log.
    why: OnceLock<String>,
    reader: AtomicWaker,
    writer: AtomicWaker,
    /// Taken by who ends it. Not looked at while the connection lives.
    wire: Mutex<Option<Wire>>,
}

/// How the peer is told: whoever holds the stream may never poll it again.
#[derive(Debug)]
pub(super) enum Wire {
    /// RST_STREAM (CONNECT_ERROR).
    Tunnel(ResetHandle),
    /// Closes the socket, with RST unless it was shut down.
    Plain(PlainIo),
}

impl Wire {
    fn end(self) {
        match self {
            Self::Tunnel(tunnel) => tunnel.reset(),
            Self::Plain(io) => io.close(),
        }
    }
}

/// Why a live connection was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum CutReason {
    /// A policy, or its attachment to the workload, changed and now refuses the connection.
    Policy = 1,
    /// The drain deadline passed.
    Drain = 2,
    /// A CRL lists the peer's certificate.
    Revoked = 3,
    /// The peer's certificate expired, or our own did without a successor.
    Expired = 4,
}

impl CutReason {
    /// The words of istio/ztunnel where it has some.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Policy => "connection closed due to policy change",
            Self::Drain => "connection closed due to connection drain",
            Self::Revoked => "connection closed: peer certificate revoked by CRL",
            Self::Expired => "connection closed: certificate expired",
        }
    }

    pub(super) fn error(self) -> io::Error {
        io::Error::new(io::ErrorKind::ConnectionAborted, self.as_str())
    }
}

impl Cut {
    /// Ends the connection. The first reason stays.
    pub(crate) fn cut(&self, reason: CutReason) {
        self.win(reason);
        self.end();
    }

    /// Whether it is the first reason.
    fn win(&self, reason: CutReason) -> bool {
        self.reason
            .compare_exchange(0, reason as u8, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    fn end(&self) {
        self.end_wire();
        self.reader.wake();
        self.writer.wake();
    }

    /// Ends the connection, and says for the log what the reason was in particular.
    pub(crate) fn cut_because(&self, reason: CutReason, why: String) {
        // Before anybody is woken who would log it.
        if self.win(reason) {
            let _ = self.why.set(why);
        }
        self.end();
    }

    /// What the reason was in particular.
    pub(crate) fn why(&self) -> Option<&str> {
        self.why.get().map(String::as_str)
    }

    /// Gives it the connection to end, which ends now if it was cut already.
    pub(super) fn attach(&self, wire: Wire) {
        *self.wire() = Some(wire);
        if self.reason().is_some() {
            self.end_wire();
        }
    }

    fn end_wire(&self) {
        let wire = self.wire().take();
        if let Some(wire) = wire {
            wire.end();
        }
    }

    fn wire(&self) -> std::sync::MutexGuard<'_, Option<Wire>> {
        lock(&self.wire)
    }

    /// The reason, once there is one.
    pub(crate) fn reason(&self) -> Option<CutReason> {
        match self.reason.load(Ordering::Acquire) {
            0 => None,
            1 => Some(CutReason::Policy),
            2 => Some(CutReason::Drain),
            3 => Some(CutReason::Revoked),
            _ => Some(CutReason::Expired),
        }
    }

    pub(crate) fn check(&self) -> io::Result<()> {
        self.reason().map_or(Ok(()), |reason| Err(reason.error()))
    }

    /// Called when a read has to wait; the caller checks once more afterwards.
    pub(crate) fn register_reader(&self, cx: &Context<'_>) {
        self.reader.register(cx.waker());
    }

    /// Called when a write has to wait; the caller checks once more afterwards.
    pub(crate) fn register_writer(&self, cx: &Context<'_>) {
        self.writer.register(cx.waker());
    }
}

#[cfg(test)]
mod tests;
