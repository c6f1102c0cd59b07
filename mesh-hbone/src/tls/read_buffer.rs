//! Ciphertext on its way from the transport to rustls.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::{fmt, io};

use tokio::io::{AsyncRead, ReadBuf};

/// Buffers that nobody reads into just now, so that an idle connection holds none and a busy one
/// neither allocates nor clears memory for each read.
pub(super) struct ReadBuffers {
    size: usize,
    keep: usize,
    // Held for a push or a pop.
    spare: Mutex<Vec<Box<[u8]>>>,
}

impl ReadBuffers {
    pub(super) fn new(size: usize, keep: usize) -> Self {
        Self {
            size,
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

/// One connection's borrowed buffer, and what in it rustls has not seen.
#[derive(Debug)]
pub(super) struct Incoming {
    buffers: Arc<ReadBuffers>,
    bytes: Option<Box<[u8]>>,
    start: usize,
    end: usize,
}

impl Incoming {
    pub(super) fn new(buffers: Arc<ReadBuffers>) -> Self {
        Self {
            buffers,
            bytes: None,
            start: 0,
            end: 0,
        }
    }

    pub(super) fn unread(&self) -> &[u8] {
        match &self.bytes {
            Some(bytes) => &bytes[self.start..self.end],
            None => &[],
        }
    }

    /// Begins with bytes that were read by somebody else.
    pub(super) fn start_with(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.bytes = Some(bytes.into());
            (self.start, self.end) = (0, bytes.len());
        }
    }

    pub(super) fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
    }

    pub(super) fn clear(&mut self) {
        self.start = self.end;
    }

    /// Reads once from `io` into the empty buffer; gives the buffer back if there is nothing.
    pub(super) fn poll_fill<IO: AsyncRead + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        debug_assert!(self.unread().is_empty());
        // What the session began with came in a buffer of its own size.
        self.bytes.take_if(|bytes| bytes.len() != self.buffers.size);
        let bytes = self.bytes.get_or_insert_with(|| self.buffers.take());
        let mut buf = ReadBuf::new(bytes);
        let polled = Pin::new(io).poll_read(cx, &mut buf);
        (self.start, self.end) = (0, buf.filled().len());
        if self.end == 0 {
            self.release();
        }
        ready!(polled)?;
        Poll::Ready(Ok(self.end))
    }

    fn release(&mut self) {
        (self.start, self.end) = (0, 0);
        if let Some(bytes) = self.bytes.take() {
            self.buffers.give(bytes);
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::task::{Context, Waker};

    use tokio::io::AsyncWriteExt as _;

    use super::{Incoming, ReadBuffers};

    #[tokio::test]
    async fn an_idle_connection_holds_no_buffer() {
        let buffers = Arc::new(ReadBuffers::new(1024, 1));
        let mut incoming = Incoming::new(Arc::clone(&buffers));
        let (mut near, mut far) = tokio::io::duplex(64);

        far.write_all(b"12345").await.unwrap();
        let count = poll_fn(|cx| incoming.poll_fill(&mut near, cx))
            .await
            .unwrap();
        assert_eq!((count, incoming.unread()), (5, &b"12345"[..]));
        assert!(incoming.bytes.is_some());

        incoming.consume(5);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(incoming.poll_fill(&mut near, &mut cx).is_pending());
        assert!(incoming.bytes.is_none());
        assert_eq!(buffers.lock().len(), 1);
    }

    #[test]
    fn buffers_of_another_size_are_not_kept() {
        let buffers = Arc::new(ReadBuffers::new(1024, 1));
        let mut incoming = Incoming::new(Arc::clone(&buffers));
        incoming.start_with(b"hello");
        assert_eq!(incoming.unread(), b"hello");
        drop(incoming);
        assert!(buffers.lock().is_empty());
    }

    #[test]
    fn no_more_buffers_are_kept_than_the_setting_says() {
        let buffers = ReadBuffers::new(16, 2);
        let taken: Vec<_> = (0..5).map(|_| buffers.take()).collect();
        taken.into_iter().for_each(|buffer| buffers.give(buffer));
        assert_eq!(buffers.lock().len(), 2);
    }
}
