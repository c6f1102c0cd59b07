//! What a peer may cost by frames that carry nothing: a state machine over the headers of what arrives.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Config;

/// The time over which frames are counted.
const WINDOW: Duration = Duration::from_secs(10);

const FRAME_HEADER: usize = 9;
/// `PRI * HTTP/2.0 …`, with which a client begins (RFC 9113 section 3.4).
pub(crate) const PREFACE: usize = 24;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

/// Bytes of a header block of which each can be a field: together they are as much to do as a tunnel.
const FIELDS: usize = 32;

const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// Follows the frames of one connection from header to header. Payloads are not looked at: a full
/// DATA frame costs the decoding of 9 bytes.
#[derive(Debug)]
pub(crate) struct Frames {
    /// What is left of the frame that has begun.
    payload: usize,
    header: [u8; FRAME_HEADER],
    /// How much of the header is here.
    have: usize,
    /// What all of them weigh.
    weight: u64,
    control: Rate,
    resets: Rate,
    /// Streams on which data came last, each at its place: to end one of them is no premature reset.
    used: [u32; USED],
    /// Of a client's connection.
    owed: Option<Owed>,
    block: Block,
    block_since: Option<Instant>,
    /// How many of our SETTINGS the peer has acknowledged.
    acknowledged: u32,
}

/// Streams that are remembered to have carried data: about as many as a connection has at once.
const USED: usize = 128;

/// Header blocks that a server owes its client: for each request its answer and its trailers. What
/// comes beyond them are 1xx answers, which h2 keeps until somebody takes them.
#[derive(Debug, Clone)]
pub(crate) struct Owed {
    blocks: Arc<AtomicUsize>,
    most: usize,
}

const BLOCKS_PER_REQUEST: usize = 2;

impl Owed {
    /// For so many requests at once.
    pub(crate) fn new(requests: u32) -> Self {
        Self {
            blocks: Arc::default(),
            most: BLOCKS_PER_REQUEST * requests as usize,
        }
    }

    /// A request is about to be sent.
    pub(crate) fn asked(&self) {
        let more = |blocks: usize| Some((blocks + BLOCKS_PER_REQUEST).min(self.most));
        let _ = self
            .blocks
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    fn answered(&self) -> bool {
        let less = |blocks: usize| blocks.checked_sub(1);
        let updated = self
            .blocks
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        updated.is_ok()
    }
}

/// How far a header block has come (HEADERS and its CONTINUATIONs).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    None,
    Open,
    /// Its last frame has begun.
    Ending,
}

impl Frames {
    /// Of a connection whose first `preface` bytes are no frames.
    pub(crate) fn new(config: &Config, preface: usize) -> Self {
        Self {
            payload: preface,
            header: [0; FRAME_HEADER],
            have: 0,
            weight: 0,
            control: Rate::new(config.max_control_frames),
            resets: Rate::new(config.max_resets.saturating_mul(10)),
            used: [0; USED],
            owed: None,
            block: Block::None,
            block_since: None,
            acknowledged: 0,
        }
    }

    /// Of a client, which is owed answers.
    pub(crate) fn of_client(config: &Config, owed: Owed) -> Self {
        Self {
            owed: Some(owed),
            ..Self::new(config, 0)
        }
    }

    /// Takes what arrived.
    ///
    /// # Errors
    ///
    /// What there was too much of.
    pub(crate) fn arrived(
        &mut self,
        mut bytes: &[u8],
        now: impl Fn() -> Instant,
    ) -> Result<(), &'static str> {
        loop {
            let count = self.payload.min(bytes.len());
            self.payload -= count;
            bytes = &bytes[count..];
            if self.payload == 0 && self.block == Block::Ending {
                self.block = Block::None;
                self.block_since = None;
            }
            if bytes.is_empty() {
                break;
            }
            match bytes.split_first_chunk() {
                // As it is nearly always.
                Some((header, rest)) if self.have == 0 => {
                    self.header = *header;
                    bytes = rest;
                }
                _ => {
                    let count = (FRAME_HEADER - self.have).min(bytes.len());
                    self.header[self.have..self.have + count].copy_from_slice(&bytes[..count]);
                    self.have = (self.have + count) % FRAME_HEADER;
                    bytes = &bytes[count..];
                    if self.have != 0 {
                        continue;
                    }
                }
            }
            self.begin(&now)?;
        }
        if self.block != Block::None && self.block_since.is_none() {
            self.block_since = Some(now());
        }
        Ok(())
    }

    /// A frame's header is here.
    fn begin(&mut self, now: impl Fn() -> Instant) -> Result<(), &'static str> {
        self.weight += 1;
        let [high, mid, low, kind, flags, stream @ ..] = self.header;
        self.payload = u32::from_be_bytes([0, high, mid, low]) as usize;
        let stream = u32::from_be_bytes(stream) & (u32::MAX >> 1);
        // A client's streams are odd.
        let place = (stream / 2) as usize % USED;
        match kind {
            // DATA; an empty one that ends its stream says something.
            0 if self.payload > 0 => self.used[place] = stream,
            0 if flags & END_STREAM != 0 => {}
            HEADERS | CONTINUATION => {
                // That of a tunnel is shorter.
                if self.payload > 2 * FIELDS {
                    self.weight += (self.payload / FIELDS) as u64;
                }
                let unasked =
                    kind == HEADERS && self.owed.as_ref().is_some_and(|owed| !owed.answered());
                if unasked && !self.control.admits(now()) {
                    return Err("answers");
                }
                self.block = match flags & END_HEADERS {
                    0 => Block::Open,
                    _ => Block::Ending,
                };
                if self.block == Block::Ending && self.payload == 0 {
                    self.block = Block::None;
                    self.block_since = None;
                }
            }
            // RST_STREAM, which is how a tunnel that was used is torn down
            3 if self.used[place] == stream => {}
            3 if !self.resets.admits(now()) => return Err("resets"),
            // h2 takes one answer for each SETTINGS that we sent.
            4 if flags & ACK != 0 => self.acknowledged = self.acknowledged.wrapping_add(1),
            // WINDOW_UPDATE comes with every read of a tunnel at the other end.
            3 | 8 => {}
            // Empty DATA, PRIORITY, SETTINGS, PING, GOAWAY, and what is ignored.
            _ if !self.control.admits(now()) => return Err("control frames"),
            _ => {}
        }
        Ok(())
    }

    /// What all frames weigh that have begun, ever.
    pub(crate) fn weight(&self) -> u64 {
        self.weight
    }

    /// How many of our SETTINGS the peer has acknowledged, counted round.
    pub(crate) fn acknowledged(&self) -> u32 {
        self.acknowledged
    }

    /// Since when a header block is incomplete.
    pub(crate) fn block_since(&self) -> Option<Instant> {
        self.block_since
    }
}

/// So many per [`WINDOW`], at once or one by one (the generic cell rate algorithm).
#[derive(Debug)]
struct Rate {
    interval: Duration,
    /// When all that came would have come at the even rate.
    even: Option<Instant>,
}

impl Rate {
    fn new(per_window: u32) -> Self {
        Self {
            interval: WINDOW / per_window.max(1),
            even: None,
        }
    }

    fn admits(&mut self, now: Instant) -> bool {
        let even = self.even.map_or(now, |even| even.max(now)) + self.interval;
        self.even = Some(even);
        even - now <= WINDOW
    }
}

#[cfg(test)]
mod tests;
