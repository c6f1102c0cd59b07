//! Records on their way to the transport.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use crate::FrameBuf;

/// Records of one write to the transport.
const AT_ONCE: usize = 64;

/// Places that an empty queue keeps: a burst's, so that none is an allocation of its own.
const KEPT: usize = 4;

/// Encrypted records in the order in which they leave.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    records: VecDeque<FrameBuf>,
    /// What of all has not.
    bytes: usize,
    /// How much has not up to the end of the last answer.
    answer: usize,
}

impl Outgoing {
    pub(super) fn push(&mut self, record: FrameBuf) {
        if !record.is_empty() {
            self.bytes += record.len();
            self.records.push_back(record);
        }
    }

    /// The last record is an answer to the peer, of whom nothing says that it reads.
    pub(super) fn mark_answer(&mut self) {
        self.answer = self.bytes;
    }

    /// Whether an answer has not left.
    pub(super) fn has_answer(&self) -> bool {
        self.answer > 0
    }

    /// Bytes that have not left.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// One write of what is here, which must be something.
    pub(super) fn poll_write<IO: AsyncWrite + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let mut slices = [IoSlice::new(&[]); AT_ONCE];
        let mut count = 0;
        for (slice, record) in slices.iter_mut().zip(&self.records) {
            *slice = IoSlice::new(record.bytes());
            count += 1;
        }
        let written = ready!(Pin::new(io).poll_write_vectored(cx, &slices[..count]))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(written);
        Poll::Ready(Ok(()))
    }

    /// All that has not left.
    #[cfg(test)]
    pub(super) fn take(&mut self) -> Vec<u8> {
        (self.bytes, self.answer) = (0, 0);
        let records = std::mem::take(&mut self.records);
        records.iter().flat_map(FrameBuf::bytes).copied().collect()
    }

    fn advance(&mut self, written: usize) {
        self.bytes -= written;
        self.answer = self.answer.saturating_sub(written);
        let mut left = written;
        while let Some(first) = self.records.front_mut() {
            let count = left.min(first.len());
            first.advance(count);
            left -= count;
            if !first.is_empty() {
                return;
            }
            self.records.pop_front();
        }
        if self.records.capacity() > KEPT {
            self.records = VecDeque::new();
        }
    }
}
