//! The frames that h2 writes, with the payloads that it never saw: a state machine without I/O.

use std::io;
use std::sync::Arc;

use crate::frame_buf::FrameBuf;
use crate::payloads::Payloads;

const FRAME_HEADER: usize = 9;
const DATA: u8 = 0;
const PADDED: u8 = 0x8;

/// A payload of so many bytes is copied to join the frames around it: a record of its own costs more.
const SMALL: usize = 1024;

/// Frames leave together once they are so many bytes: with one more small one they fit a TLS record.
const TOGETHER: usize = 16 * 1024 - FRAME_HEADER - SMALL;

/// Follows what h2 writes from header to header.
pub(crate) struct Framing {
    payloads: Arc<Payloads>,
    header: [u8; FRAME_HEADER],
    /// How much of the header is here.
    have: usize,
    rest: Rest,
    /// Frames that leave together.
    together: FrameBuf,
    /// A frame that leaves after them, in its own buffer.
    alone: Option<FrameBuf>,
}

/// What is left of the frame that has begun.
#[derive(Debug, Clone, Copy)]
enum Rest {
    /// As h2 writes it.
    Bytes(usize),
    /// In the place of a payload.
    Placeholder(usize),
    /// Nothing more is understood.
    Failed,
}

impl Framing {
    /// Of a connection whose first `preface` bytes are no frames.
    pub(crate) fn new(payloads: Arc<Payloads>, preface: usize) -> Self {
        Self {
            payloads,
            header: [0; FRAME_HEADER],
            have: 0,
            rest: Rest::Bytes(preface),
            together: FrameBuf::default(),
            alone: None,
        }
    }

    pub(crate) fn payloads(&self) -> &Arc<Payloads> {
        &self.payloads
    }

    /// Takes of what h2 writes as much as it can before something has to leave: all, or less.
    ///
    /// # Errors
    ///
    /// If h2 writes DATA that nobody gave it: nothing may be sent in its place.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut left = bytes;
        while !left.is_empty() && !self.must_leave() {
            let count = match &mut self.rest {
                Rest::Bytes(0) | Rest::Placeholder(0) => {
                    let count = (FRAME_HEADER - self.have).min(left.len());
                    self.header[self.have..self.have + count].copy_from_slice(&left[..count]);
                    self.have += count;
                    if self.have == FRAME_HEADER {
                        self.have = 0;
                        self.rest = Rest::Failed;
                        self.begin()?;
                    }
                    count
                }
                Rest::Bytes(rest) => {
                    let count = (*rest).min(left.len()).min(TOGETHER - self.together.len());
                    *rest -= count;
                    join(&mut self.together, &left[..count]);
                    count
                }
                Rest::Failed => return Err(io::ErrorKind::BrokenPipe.into()),
                Rest::Placeholder(rest) => {
                    let count = (*rest).min(left.len());
                    *rest -= count;
                    count
                }
            };
            left = &left[count..];
        }
        Ok(bytes.len() - left.len())
    }

    /// A frame's header is here.
    fn begin(&mut self) -> io::Result<()> {
        let [high, mid, low, kind, flags, stream @ ..] = self.header;
        let length = u32::from_be_bytes([0, high, mid, low]) as usize;
        let stream = u32::from_be_bytes(stream) & (u32::MAX >> 1);
        if kind != DATA || length == 0 {
            self.rest = Rest::Bytes(length);
            join(&mut self.together, &self.header);
            return Ok(());
        }
        let payload = match flags & PADDED {
            0 => self.payloads.take(stream, length),
            _ => None,
        };
        let mut payload =
            payload.ok_or_else(|| io::Error::other("no payload for a frame of DATA"))?;
        self.rest = Rest::Placeholder(length);
        if length <= SMALL {
            join(&mut self.together, &self.header);
            join(&mut self.together, payload.bytes());
        } else {
            payload.prepend(&self.header);
            self.alone = Some(payload);
        }
        Ok(())
    }

    /// Whether nothing can be taken before something has left. What was written in part has to leave
    /// whole: a buffer that something is always added to would only grow.
    pub(crate) fn must_leave(&self) -> bool {
        let together = &self.together;
        let begun = !together.is_empty() && together.is_begun();
        self.alone.is_some() || begun || together.len() >= TOGETHER
    }

    /// What leaves next. It is gone once it is empty.
    pub(crate) fn next(&mut self) -> Option<&mut FrameBuf> {
        if !self.together.is_empty() {
            return Some(&mut self.together);
        }
        if self.alone.as_ref().is_some_and(FrameBuf::is_empty) {
            self.alone = None;
        }
        self.alone.as_mut()
    }
}

fn join(together: &mut FrameBuf, bytes: &[u8]) {
    if together.is_empty() {
        *together = FrameBuf::with_capacity(bytes.len().max(64));
    }
    together.extend(bytes);
}

#[cfg(test)]
mod tests;
