use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Context;

use futures_util::task::AtomicWaker;

/// Ends a live connection from another task: every later read and write fails, and whoever waits in
/// one is woken.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    reason: AtomicU8,
    reader: AtomicWaker,
    writer: AtomicWaker,
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
}

impl Cut {
    /// Ends the connection. The first reason stays.
    pub(crate) fn cut(&self, reason: CutReason) {
        let _ = self
            .reason
            .compare_exchange(0, reason as u8, Ordering::AcqRel, Ordering::Acquire);
        self.reader.wake();
        self.writer.wake();
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
        match self.reason() {
            None => Ok(()),
            Some(reason) => Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                reason.as_str(),
            )),
        }
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
