//! What a CONNECT and its answer say besides the destination.
//!
//! They are for telemetry and for choosing among what the peer's certificate permits. Nothing here is
//! authenticated beyond "the peer said so": no decision about access reads it.

mod baggage;
mod forwarded;
mod trace_context;

use http::{HeaderMap, HeaderName, HeaderValue};

pub use self::baggage::Baggage;
pub use self::forwarded::Forwarded;
pub use self::trace_context::TraceParent;

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const FORWARDED: HeaderName = http::header::FORWARDED;
/// Only on the inner request of a tunnel through a gateway of another network.
const NETWORK: HeaderName = HeaderName::from_static("x-forwarded-network");

/// The headers of a CONNECT.
///
/// A header that is malformed reads as one that is not there, as istio/ztunnel reads it: a tunnel
/// does not fail for what only telemetry wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectHeaders {
    baggage: Option<Baggage>,
    forwarded: Option<Forwarded>,
    traceparent: Option<TraceParent>,
    network: Option<Box<str>>,
}

impl ConnectHeaders {
    /// The three headers that are always sent.
    pub fn new(baggage: Baggage, forwarded: Forwarded, traceparent: TraceParent) -> Self {
        Self {
            baggage: Some(baggage),
            forwarded: Some(forwarded),
            traceparent: Some(traceparent),
            network: None,
        }
    }

    /// The workload that opened the tunnel, as it describes itself.
    pub fn baggage(&self) -> Option<&Baggage> {
        self.baggage.as_ref()
    }

    /// Where the tunnelled connection comes from and which service it asked for.
    pub fn forwarded(&self) -> Option<&Forwarded> {
        self.forwarded.as_ref()
    }

    /// The service that the tunnelled connection asked for.
    pub fn forwarded_host(&self) -> Option<&str> {
        self.forwarded.as_ref()?.host()
    }

    /// The trace of the tunnelled connection.
    pub fn traceparent(&self) -> Option<&TraceParent> {
        self.traceparent.as_ref()
    }

    /// The network that a connection through a gateway comes from; compare it without regard to case.
    pub fn network(&self) -> Option<&str> {
        self.network.as_deref()
    }

    /// Reads the headers of a CONNECT.
    pub fn parse(headers: &HeaderMap) -> Self {
        Self {
            baggage: Baggage::parse(headers.get_all(BAGGAGE)),
            forwarded: headers.get(FORWARDED).and_then(Forwarded::parse),
            traceparent: headers.get(TRACEPARENT).and_then(TraceParent::parse),
            network: headers
                .get(NETWORK)
                .and_then(|value| value.to_str().ok())
                .map(Into::into),
        }
    }

    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        if let Some(baggage) = &self.baggage {
            headers.insert(BAGGAGE, baggage.value());
        }
        if let Some(forwarded) = &self.forwarded {
            headers.insert(FORWARDED, forwarded.value());
        }
        if let Some(traceparent) = &self.traceparent {
            headers.insert(TRACEPARENT, traceparent.value());
        }
        if let Some(network) = &self.network
            && let Ok(network) = HeaderValue::from_str(network)
        {
            headers.insert(NETWORK, network);
        }
    }
}

pub(crate) fn write_baggage(baggage: &Baggage, headers: &mut HeaderMap) {
    headers.insert(BAGGAGE, baggage.value());
}

pub(crate) fn read_baggage(headers: &HeaderMap) -> Option<Baggage> {
    Baggage::parse(headers.get_all(BAGGAGE))
}

/// Text of a header value; the caller made sure that every byte is visible ASCII.
fn ascii(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests;
