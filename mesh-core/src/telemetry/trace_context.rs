//! W3C trace context: which trace a request belongs to.

use std::fmt;
use std::str::FromStr;

use http::{HeaderMap, HeaderValue};

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
/// Length of version 00, and the least of any later one.
const LENGTH: usize = 55;

/// One `traceparent` header ([W3C Trace Context](https://www.w3.org/TR/trace-context/#traceparent-header)).
///
/// The mesh's layers pass `traceparent` and `tracestate` on byte for byte, and invent neither. Use
/// [`TraceContext::ensure`] where a trace should begin if none came, and [`TraceContext::of`] to put
/// the trace in your own logs.
///
/// The `traceparent` of a tunnel's CONNECT is another one, of the connection; it is never joined with
/// that of the requests inside.
///
/// # Examples
///
/// ```
/// use mesh_core::telemetry::TraceContext;
///
/// let context: TraceContext = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse()?;
/// assert!(context.is_sampled());
/// assert_eq!(context.to_string(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
/// # Ok::<(), mesh_core::telemetry::InvalidTraceContext>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace_id: [u8; 16],
    parent_id: [u8; 8],
    flags: u8,
}

impl TraceContext {
    /// Parses the value of a `traceparent` header.
    ///
    /// A version after 00 is read as far as 00 goes, as the standard asks.
    ///
    /// # Errors
    ///
    /// [`InvalidTraceContext`] names the part that is wrong. Upper-case digits are wrong.
    pub fn parse(value: &str) -> Result<Self, InvalidTraceContext> {
        let invalid = |part, expected| Err(InvalidTraceContext { part, expected });
        let bytes = value.as_bytes();
        if bytes.len() < LENGTH {
            return invalid("length", "55 bytes");
        }
        let Some([version]) = hex::<1>(&bytes[..2]) else {
            return invalid("version", "two lower-case hexadecimal digits");
        };
        match (version, bytes.get(LENGTH)) {
            (0xff, _) => return invalid("version", "any but ff"),
            (0, Some(_)) => return invalid("length", "55 bytes"),
            (_, Some(next)) if *next != b'-' => return invalid("length", "55 bytes, or '-' then"),
            _ => {}
        }
        if [2, 35, 52].iter().any(|at| bytes[*at] != b'-') {
            return invalid("separator", "'-' between the parts");
        }
        let Some(trace_id) = hex::<16>(&bytes[3..35]).filter(|id| *id != [0; 16]) else {
            return invalid("trace id", "32 lower-case hexadecimal digits, not all 0");
        };
        let Some(parent_id) = hex::<8>(&bytes[36..52]).filter(|id| *id != [0; 8]) else {
            return invalid("parent id", "16 lower-case hexadecimal digits, not all 0");
        };
        let Some([flags]) = hex::<1>(&bytes[53..LENGTH]) else {
            return invalid("flags", "two lower-case hexadecimal digits");
        };
        Ok(Self {
            trace_id,
            parent_id,
            flags,
        })
    }

    /// Begins a trace with ids from `random`, not sampled.
    ///
    /// An id of all zeros is invalid; it is replaced by one.
    pub fn from_random(random: [u8; 24]) -> Self {
        let mut trace_id = [0; 16];
        let mut parent_id = [0; 8];
        trace_id.copy_from_slice(&random[..16]);
        parent_id.copy_from_slice(&random[16..]);
        if trace_id == [0; 16] {
            trace_id[15] = 1;
        }
        if parent_id == [0; 8] {
            parent_id[7] = 1;
        }
        Self {
            trace_id,
            parent_id,
            flags: 0,
        }
    }

    /// The trace of a request; `None` if its `traceparent` is missing, not valid, or not the only one.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let only = values.next().filter(|_| values.next().is_none())?;
        Self::parse(only.to_str().ok()?).ok()
    }

    /// The trace of a request, begun from `random` if it has none.
    ///
    /// Valid headers stay as they are. Where a trace begins, a `tracestate` goes: it belonged to a trace
    /// that is not there (W3C Trace Context 4.3, "restart the trace").
    pub fn ensure(headers: &mut HeaderMap, random: impl FnOnce() -> [u8; 24]) -> Self {
        if let Some(context) = Self::of(headers) {
            return context;
        }
        let context = Self::from_random(random());
        headers.remove(TRACESTATE);
        headers.insert(TRACEPARENT, context.header_value());
        context
    }

    /// The trace's id, in 16 bytes.
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace_id
    }

    /// The id of the span that made the request, in 8 bytes.
    pub fn parent_id(&self) -> [u8; 8] {
        self.parent_id
    }

    /// Whether the caller may have recorded the trace.
    pub fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// Sets whether the trace is recorded.
    pub fn with_sampled(mut self, sampled: bool) -> Self {
        self.flags = (self.flags & !1) | u8::from(sampled);
        self
    }

    /// The same trace, seen from a span within it.
    pub fn with_parent_id(mut self, parent_id: std::num::NonZeroU64) -> Self {
        self.parent_id = parent_id.get().to_be_bytes();
        self
    }

    /// The header's value, always of version 00.
    pub fn header_value(&self) -> HeaderValue {
        HeaderValue::try_from(self.to_string()).expect("hexadecimal digits and '-'")
    }
}

/// Lower case only, as the standard demands.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            u128::from_be_bytes(self.trace_id),
            u64::from_be_bytes(self.parent_id),
            self.flags
        )
    }
}

impl FromStr for TraceContext {
    type Err = InvalidTraceContext;

    fn from_str(value: &str) -> Result<Self, InvalidTraceContext> {
        Self::parse(value)
    }
}

/// Says which part of a `traceparent` is wrong and what was expected there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid traceparent: {part}: expected {expected}")]
pub struct InvalidTraceContext {
    part: &'static str,
    expected: &'static str,
}

impl InvalidTraceContext {
    /// The part that is wrong: `length`, `version`, `separator`, `trace id`, `parent id` or `flags`.
    pub fn part(&self) -> &'static str {
        self.part
    }
}
