//! Bytes that go out in the buffer they were collected in.

use std::fmt;

use crate::spares::Spares;

/// Room that lower layers have in front: a frame's header in front of its payload, and the header of a
/// TLS record in front of that.
const FRONT: usize = 9 + RECORD_HEADER;

/// Content type, version, length (RFC 8446 section 5.1).
pub(crate) const RECORD_HEADER: usize = 5;

/// Room behind, for a record's own content type and its tag.
const BACK: usize = 1 + 16;

/// Bytes to be written, with room around them for what TLS adds: they are encrypted where they are, and
/// their buffer is used again.
///
/// [`DeferredFlush::poll_write_frame`](crate::DeferredFlush::poll_write_frame) takes it. Other I/O than
/// this crate's writes [`bytes`](Self::bytes) and [`advance`](Self::advance)s, or keeps it whole
/// ([`std::mem::take`]).
#[derive(Default)]
pub struct FrameBuf {
    buffer: Vec<u8>,
    start: usize,
    spares: Option<Spares>,
}

impl FrameBuf {
    /// Room for `capacity` bytes.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        let mut buffer = Vec::with_capacity(FRONT + capacity + BACK);
        buffer.resize(FRONT, 0);
        Self {
            buffer,
            start: FRONT,
            spares: None,
        }
    }

    /// Room for `capacity` bytes, in a buffer of `spares` and for them to have again.
    pub(crate) fn spare(spares: &Spares, capacity: usize) -> Self {
        let mut buffer = spares.take();
        buffer.reserve(FRONT + capacity + BACK);
        buffer.resize(FRONT, 0);
        Self {
            buffer,
            start: FRONT,
            spares: Some(spares.clone()),
        }
    }

    /// As it is, without room around it.
    pub(crate) fn of(buffer: Vec<u8>) -> Self {
        Self {
            buffer,
            start: 0,
            spares: None,
        }
    }

    /// What is to be written.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// The first `count` bytes are written.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len(), "advanced past the end");
        self.start += count;
    }

    /// How many bytes are to be written.
    pub fn len(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Whether nothing is to be written.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes fit without another buffer.
    pub(crate) fn room(&self) -> usize {
        (self.buffer.capacity() - self.buffer.len()).saturating_sub(BACK)
    }

    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Where more bytes are put; what is there stays.
    pub(crate) fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Puts `bytes` in front; only as many as there was room for.
    pub(crate) fn prepend(&mut self, bytes: &[u8]) {
        self.start -= bytes.len();
        self.buffer[self.start..][..bytes.len()].copy_from_slice(bytes);
    }

    /// What is to be written, to be changed where it is.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..]
    }

    /// Takes the last `count` bytes away.
    pub(crate) fn cut(&mut self, count: usize) {
        self.buffer
            .truncate(self.buffer.len() - count.min(self.len()));
    }

    /// Whether it was written in part, if nothing was put in front.
    pub(crate) fn is_begun(&self) -> bool {
        self.start > FRONT
    }

    /// Whether a record's header fits in front.
    pub(crate) fn has_front(&self) -> bool {
        self.start >= RECORD_HEADER
    }
}

impl Drop for FrameBuf {
    fn drop(&mut self) {
        if let Some(spares) = &self.spares {
            spares.give(std::mem::take(&mut self.buffer));
        }
    }
}

impl fmt::Debug for FrameBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameBuf")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
