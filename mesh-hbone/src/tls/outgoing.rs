//! Records on their way to the transport.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

/// Records of one write to the transport.
const AT_ONCE: usize = 64;

/// Encrypted records in the order in which they leave.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    records: VecDeque<Vec<u8>>,
    /// What of the first has left.
    sent: usize,
    /// What of all has not.
    bytes: usize,
    /// How much has not up to the end of the last answer.
    answer: usize,
}

impl Outgoing {
    pub(super) fn push(&mut self, record: Vec<u8>) {
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
            *slice = IoSlice::new(if count == 0 {
                &record[self.sent..]
            } else {
                record
            });
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
        assert_eq!(self.sent, 0);
        (self.bytes, self.answer) = (0, 0);
        std::mem::take(&mut self.records)
            .into_iter()
            .flatten()
            .collect()
    }

    fn advance(&mut self, written: usize) {
        self.bytes -= written;
        self.answer = self.answer.saturating_sub(written);
        self.sent += written;
        while let Some(first) = self.records.front() {
            if self.sent < first.len() {
                return;
            }
            self.sent -= first.len();
            self.records.pop_front();
        }
        // An idle connection keeps no table of what has left.
        self.records = VecDeque::new();
    }
}
