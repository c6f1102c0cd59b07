//! What was read from the transport, in buffers that are borrowed for as long as something is in them.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::{fmt, io};

use tokio::io::{AsyncRead, ReadBuf};

use super::records::MAX_RECORD;

/// Unread bytes at most where the buffer is smaller: a message of a handshake, which is taken whole.
const MAX_UNREAD: usize = 128 * 1024;

/// A buffer is kept while its connection waits if at least one of so many bytes is in use, so that a
/// peer that leaves records unfinished holds no more than so many times what it sent.
const WELL_FILLED: usize = 8;

/// Buffers that nobody reads into just now, so that an idle connection holds none and a busy one
/// neither allocates nor clears memory for each read.
pub(super) struct ReadBuffers {
    size: usize,
    keep: usize,
    // Held for a push or a pop.
    spare: Mutex<Vec<Box<[u8]>>>,
}

impl ReadBuffers {
    /// Of `size` bytes, or of a whole record.
    pub(super) fn new(size: usize, keep: usize) -> Self {
        Self {
            size: size.max(MAX_RECORD),
            keep,
            spare: Mutex::new(Vec::new()),
        }
    }

    fn take(&self) -> Box<[u8]> {
        let spare = self.lock().pop();
        spare.unwrap_or_else(|| vec![0; self.size].into_boxed_slice())
    }

    fn give(&self, buffer: Box<[u8]>) {
        let mut spare = self.lock();
        if buffer.len() == self.size && spare.len() < self.keep {
            spare.push(buffer);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Box<[u8]>>> {
        // A push or pop leaves the stack whole.
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ReadBuffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadBuffers").finish_non_exhaustive()
    }
}

/// One connection's borrowed buffer, and what in it nobody has taken.
#[derive(Debug)]
pub(super) struct Incoming {
    buffers: Arc<ReadBuffers>,
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    /// How far the buffer was written to.
    used: usize,
}

impl Incoming {
    pub(super) fn new(buffers: Arc<ReadBuffers>) -> Self {
        Self {
            buffers,
            bytes: Box::default(),
            start: 0,
            end: 0,
            used: 0,
        }
    }

    pub(super) fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(super) fn unread_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    /// Begins with bytes that were read by somebody else.
    pub(super) fn start_with(&mut self, bytes: &[u8]) {
        self.hold(bytes.into());
    }

    pub(super) fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
    }

    pub(super) fn clear(&mut self) {
        self.start = self.end;
    }

    /// Reads once from `io`, behind what is unread. Where nothing comes, it holds on to little more
    /// memory than what is unread.
    ///
    /// # Errors
    ///
    /// Those of `io`; [`io::ErrorKind::InvalidData`] if what is unread fills all the room there may be.
    pub(super) fn poll_fill<IO: AsyncRead + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.make_room()?;
        let mut buf = ReadBuf::new(&mut self.bytes[self.end..]);
        let polled = Pin::new(io).poll_read(cx, &mut buf);
        let count = buf.filled().len();
        self.end += count;
        self.used = self.used.max(self.end);
        if count == 0 {
            self.settle();
        }
        ready!(polled)?;
        Poll::Ready(Ok(count))
    }

    fn make_room(&mut self) -> io::Result<()> {
        let unread = self.end - self.start;
        let size = match self.bytes.len().max(self.buffers.size) {
            size if unread < size => size,
            size if size < MAX_UNREAD => (2 * size).min(MAX_UNREAD),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        if self.bytes.len() == size {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, unread);
            return Ok(());
        }
        let mut larger = match size {
            size if size == self.buffers.size => self.buffers.take(),
            size => vec![0; size].into_boxed_slice(),
        };
        larger[..unread].copy_from_slice(self.unread());
        self.hold(larger);
        (self.end, self.used) = (unread, unread);
        Ok(())
    }

    /// Gives the buffer back unless it is well filled.
    fn settle(&mut self) {
        let unread = self.end - self.start;
        if unread * WELL_FILLED < self.bytes.len() {
            let rest = self.unread().into();
            self.hold(rest);
        }
    }

    /// Holds `bytes` instead of what it held, all of them unread.
    fn hold(&mut self, bytes: Box<[u8]>) {
        (self.start, self.end) = (0, bytes.len());
        let mut before = std::mem::replace(&mut self.bytes, bytes);
        // Records are decrypted in it, and the next connection is somebody else's.
        before[..self.used].fill(0);
        self.used = self.end;
        self.buffers.give(before);
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.hold(Box::default());
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::task::{Context, Waker};

    use tokio::io::AsyncWriteExt as _;

    use super::{Incoming, ReadBuffers};

    const SIZE: usize = 32 * 1024;

    #[tokio::test]
    async fn an_idle_connection_holds_no_buffer() {
        let buffers = Arc::new(ReadBuffers::new(SIZE, 1));
        let mut incoming = Incoming::new(Arc::clone(&buffers));
        let (mut near, mut far) = tokio::io::duplex(64);

        far.write_all(b"12345").await.unwrap();
        let count = poll_fn(|cx| incoming.poll_fill(&mut near, cx))
            .await
            .unwrap();
        assert_eq!((count, incoming.unread()), (5, &b"12345"[..]));
        assert_eq!(incoming.bytes.len(), SIZE);

        incoming.consume(5);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(incoming.poll_fill(&mut near, &mut cx).is_pending());
        assert!(incoming.bytes.is_empty());
        assert_eq!(buffers.lock().len(), 1);
    }

    #[tokio::test]
    async fn the_beginning_of_a_record_is_kept_and_its_buffer_is_not() {
        let buffers = Arc::new(ReadBuffers::new(SIZE, 1));
        let mut incoming = Incoming::new(Arc::clone(&buffers));
        let (mut near, mut far) = tokio::io::duplex(64);
        let mut fill = async |incoming: &mut Incoming| {
            poll_fn(|cx| incoming.poll_fill(&mut near, cx))
                .await
                .unwrap();
            let mut cx = Context::from_waker(Waker::noop());
            assert!(incoming.poll_fill(&mut near, &mut cx).is_pending());
        };

        far.write_all(b"12345").await.unwrap();
        fill(&mut incoming).await;
        assert_eq!(
            (incoming.unread(), incoming.bytes.len()),
            (&b"12345"[..], 5)
        );
        assert_eq!(buffers.lock().len(), 1);

        incoming.consume(2);
        far.write_all(b"678").await.unwrap();
        fill(&mut incoming).await;
        assert_eq!(incoming.unread(), b"345678");
        assert_eq!(buffers.lock().len(), 1);
    }

    #[tokio::test]
    async fn what_is_unread_is_bounded() {
        let buffers = Arc::new(ReadBuffers::new(SIZE, 1));
        let mut incoming = Incoming::new(buffers);
        let mut endless = tokio::io::repeat(7);
        let failed = loop {
            if let Err(error) = poll_fn(|cx| incoming.poll_fill(&mut endless, cx)).await {
                break error;
            }
            assert!(incoming.unread().len() <= super::MAX_UNREAD);
        };
        assert_eq!(failed.kind(), std::io::ErrorKind::InvalidData);
        assert_eq!(incoming.unread().len(), super::MAX_UNREAD);
    }

    #[test]
    fn buffers_of_another_size_are_not_kept() {
        let buffers = Arc::new(ReadBuffers::new(SIZE, 1));
        let mut incoming = Incoming::new(Arc::clone(&buffers));
        incoming.start_with(b"hello");
        assert_eq!(incoming.unread(), b"hello");
        drop(incoming);
        assert!(buffers.lock().is_empty());
    }

    #[test]
    fn no_more_buffers_are_kept_than_the_setting_says() {
        let buffers = ReadBuffers::new(SIZE, 2);
        let taken: Vec<_> = (0..5).map(|_| buffers.take()).collect();
        taken.into_iter().for_each(|buffer| buffers.give(buffer));
        assert_eq!(buffers.lock().len(), 2);
    }
}
