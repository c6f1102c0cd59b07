use std::fmt;

use http::HeaderValue;

/// The trace of a tunnelled connection ([W3C Trace Context](https://www.w3.org/TR/trace-context/)).
///
/// istio/ztunnel makes one per connection of a user, never sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceParent {
    trace_id: u128,
    parent_id: u64,
    flags: u8,
}

impl TraceParent {
    /// A trace of random ids, not sampled. An id of zero, which the standard forbids, becomes one.
    pub fn from_random(random: [u64; 3]) -> Self {
        let trace_id = (u128::from(random[0]) << 64) | u128::from(random[1]);
        Self {
            trace_id: trace_id.max(1),
            parent_id: random[2].max(1),
            flags: 0,
        }
    }

    /// The trace; never 0.
    pub fn trace_id(&self) -> u128 {
        self.trace_id
    }

    /// The span that the connection belongs to; never 0.
    pub fn parent_id(&self) -> u64 {
        self.parent_id
    }

    /// Whether the caller recorded this trace.
    pub fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    pub(super) fn parse(value: &HeaderValue) -> Option<Self> {
        let text = value.to_str().ok()?;
        if text.len() != 55 {
            return None;
        }
        let mut parts = text.split('-');
        let (version, trace_id) = (hex(parts.next()?, 2)?, hex(parts.next()?, 32)?);
        let (parent_id, flags) = (hex(parts.next()?, 16)?, hex(parts.next()?, 2)?);
        if parts.next().is_some() || version == 0xff || trace_id == 0 || parent_id == 0 {
            return None;
        }
        Some(Self {
            trace_id,
            parent_id: u64::try_from(parent_id).ok()?,
            flags: u8::try_from(flags).ok()?,
        })
    }

    pub(super) fn value(&self) -> HeaderValue {
        super::ascii(self.to_string())
    }
}

fn hex(text: &str, len: usize) -> Option<u128> {
    let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != len || !text.bytes().all(lower) {
        return None;
    }
    u128::from_str_radix(text, 16).ok()
}

/// The header's value.
impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            self.trace_id, self.parent_id, self.flags
        )
    }
}
