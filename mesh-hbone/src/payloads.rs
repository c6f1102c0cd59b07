//! What tunnels have given h2 to send: h2 gets a placeholder of the same length, so that it decides when
//! a frame leaves and how large it is, and never touches what is in it.
//!
//! [`Framing`](crate::framing::Framing) puts the bytes behind their header. They are copied once, from
//! their writer into the buffer in which they are encrypted.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::{Arc, Mutex};

use bytes::Buf;

use crate::driver::lock;
use crate::frame_buf::FrameBuf;

/// What a placeholder shows of what it stands for.
static NOTHING: [u8; 16 * 1024] = [0; 16 * 1024];

/// Streams whose place in an empty table is kept.
const KEPT: usize = 64;

/// The payloads of one connection, each stream's in the order in which they were given.
#[derive(Default)]
pub(crate) struct Payloads {
    // Locked while h2 may be, and never the other way round.
    of: Mutex<Queues>,
}

#[derive(Default)]
struct Queues {
    streams: HashMap<u32, Queue>,
    /// How many there were.
    given: u64,
}

/// Most streams have one at a time, which costs no allocation.
struct Queue {
    first: Payload,
    more: VecDeque<Payload>,
}

struct Payload {
    number: u64,
    bytes: FrameBuf,
    /// Held while it has not left.
    _token: Arc<()>,
}

impl Payloads {
    /// What h2 is to send in place of `bytes`. `token` is held until they have left or are forgotten.
    pub(crate) fn give(
        self: &Arc<Self>,
        stream: u32,
        bytes: FrameBuf,
        token: Arc<()>,
    ) -> Placeholder {
        let left = bytes.len();
        if left == 0 {
            // The end of a stream has no bytes to wait for: h2 lets go of it when it is on its way.
            return Placeholder {
                left,
                of: None,
                _token: Some(token),
            };
        }
        let queues = &mut *lock(&self.of);
        let number = queues.given;
        queues.given += 1;
        let payload = Payload {
            number,
            bytes,
            _token: token,
        };
        match queues.streams.entry(stream) {
            Entry::Occupied(mut queue) => queue.get_mut().more.push_back(payload),
            Entry::Vacant(place) => {
                place.insert(Queue {
                    first: payload,
                    more: VecDeque::new(),
                });
            }
        }
        Placeholder {
            left,
            of: Some((Arc::clone(self), stream, number)),
            _token: None,
        }
    }

    /// The next `count` bytes of a stream, if its next payload has as many.
    pub(crate) fn take(&self, stream: u32, count: usize) -> Option<FrameBuf> {
        let queues = &mut *lock(&self.of);
        let first = &mut queues.streams.get_mut(&stream)?.first.bytes;
        match first.len().cmp(&count) {
            Ordering::Less => None,
            Ordering::Equal => queues.pop(stream),
            Ordering::Greater => {
                // h2 has cut the frame, at the end of a window.
                let mut part = FrameBuf::with_capacity(count);
                part.extend(&first.bytes()[..count]);
                first.advance(count);
                Some(part)
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.of).streams.is_empty()
    }

    /// h2 has thrown away what was left of a placeholder. What it has written of it may be on its way.
    fn forget(&self, stream: u32, number: u64, left: usize) {
        let queues = &mut *lock(&self.of);
        let Some(queue) = queues.streams.get_mut(&stream) else {
            return;
        };
        if queue.first.number == number {
            queue.first.bytes.cut(left);
            if queue.first.bytes.is_empty() {
                queues.pop(stream);
            }
        } else {
            queue.more.retain_mut(|payload| {
                if payload.number == number {
                    payload.bytes.cut(left);
                }
                !payload.bytes.is_empty()
            });
        }
    }
}

impl Queues {
    fn pop(&mut self, stream: u32) -> Option<FrameBuf> {
        let Entry::Occupied(mut queue) = self.streams.entry(stream) else {
            return None;
        };
        let first = match queue.get_mut().more.pop_front() {
            Some(next) => std::mem::replace(&mut queue.get_mut().first, next),
            None => queue.remove().first,
        };
        if self.streams.is_empty() && self.streams.capacity() > KEPT {
            self.streams = HashMap::new();
        }
        Some(first.bytes)
    }
}

/// As many bytes as a payload has, of which h2 sees none.
pub(crate) struct Placeholder {
    left: usize,
    of: Option<(Arc<Payloads>, u32, u64)>,
    _token: Option<Arc<()>>,
}

impl Buf for Placeholder {
    fn remaining(&self) -> usize {
        self.left
    }

    fn chunk(&self) -> &[u8] {
        &NOTHING[..self.left.min(NOTHING.len())]
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.left, "advanced past the end");
        self.left -= count;
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        if self.left > 0
            && let Some((payloads, stream, number)) = self.of.take()
        {
            payloads.forget(stream, number, self.left);
        }
    }
}

impl fmt::Debug for Placeholder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Placeholder")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Payloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Payloads").finish_non_exhaustive()
    }
}
