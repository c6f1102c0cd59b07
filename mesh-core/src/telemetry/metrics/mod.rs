//! Istio's standard metrics.

mod encode;
mod table;
mod traffic;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::registry::Registry;
use tokio::time::Instant;

use super::outcome::OutcomeKind;
use super::{
    ConnectionFlag, Labels, MetricsSettings, Reporter, RequestOutcome, RequestProtocol, Traffic,
};
use table::{Budget, Table};
use traffic::TrafficCounters;

/// Counts connections and requests under Istio's names and labels. A handle: clones count together.
///
/// | metric | when |
/// |---|---|
/// | `istio_tcp_connections_opened_total` | a connection begins, with flag `-` |
/// | `istio_tcp_connections_closed_total` | it ends, with its final flag |
/// | `istio_tcp_connections_failed_total` | it ends with a flag other than `-` |
/// | `istio_tcp_received_bytes_total` | bytes from client to server, at both ends |
/// | `istio_tcp_sent_bytes_total` | bytes from server to client, at both ends |
/// | `istio_requests_total`, `istio_request_duration_milliseconds` | a response ends |
/// | `istio_request_bytes`, `istio_response_bytes` | a response ends: header names and values, body, trailers |
/// | `istio_build` | always 1 |
///
/// Because the flag at the end may differ from the one at the start, *opened* minus *closed* of one
/// series is no gauge; this is so in Istio too.
///
/// # Examples
///
/// ```
/// use mesh_core::telemetry::{ConnectionFlag, Labels, Metrics, Peer, Reporter, SecurityPolicy};
///
/// let metrics = Metrics::new();
/// let labels = Labels::new(
///     Reporter::Source,
///     Peer::new("productpage-v1", "default"),
///     Peer::unknown(),
///     None,
///     SecurityPolicy::Unknown,
/// );
/// let connection = metrics.tcp_opened(&labels);
/// connection.add_received(512);
/// connection.close(ConnectionFlag::None);
/// assert!(metrics.encode().contains("istio_tcp_received_bytes_total{reporter=\"source\""));
/// ```
#[derive(Debug, Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: MetricsSettings,
    budget: Budget,
    opened: Table<Labels, Opened>,
    closed: Table<(Labels, ConnectionFlag), Closed>,
    requests: Table<(Labels, OutcomeKind), Requests>,
    overflow: [Overflow; 2],
}

/// Where a reporter's counts go that have no series of their own. Exempt from the bound: a fixed few.
#[derive(Debug, Default)]
struct Overflow {
    opened: Arc<Opened>,
    closed: Closed,
    http: Requests,
    grpc: Requests,
}

#[derive(Debug, Default)]
struct Opened {
    opened: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
}

#[derive(Debug, Default)]
struct Closed {
    closed: AtomicU64,
    failed: AtomicU64,
}

/// Three histograms; the count of each is the number of requests.
#[derive(Debug, Default)]
struct Requests {
    /// In microseconds.
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
}

#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum: AtomicU64,
}

/// Upper bounds in thousandths, of milliseconds and of bytes: Envoy's default buckets, which Istio keeps for both.
const BOUNDS: [u64; 19] = [
    500,
    1_000,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
];

/// Series per record: opened, received and sent.
const OPENED_SERIES: usize = 3;
/// Series per record: the count and the histograms.
const REQUEST_SERIES: usize = 4;

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics with the default bounds.
    pub fn new() -> Self {
        Self::with_settings(MetricsSettings::default())
    }

    /// Metrics with bounds of your own.
    pub fn with_settings(settings: MetricsSettings) -> Self {
        let inner = Inner {
            budget: Budget::new(settings.max_series),
            settings,
            opened: Table::default(),
            closed: Table::default(),
            requests: Table::default(),
            overflow: Default::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Adds these metrics to a registry of the application's, to be scraped with its own.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }

    /// The metrics as OpenMetrics text, which ends with `# EOF`.
    ///
    /// Serve it as `application/openmetrics-text;charset=utf-8;version=1.0.0`.
    pub fn encode(&self) -> String {
        let mut registry = Registry::default();
        self.register(&mut registry);
        let mut text = String::new();
        // Writing to a String cannot fail, and no encoder here fails of itself.
        if prometheus_client::encoding::text::encode(&mut text, &registry).is_err() {
            debug_assert!(false, "encoding to memory failed");
        }
        text
    }

    /// Counts a connection as opened.
    pub fn tcp_opened(&self, labels: &Labels) -> TcpConnection {
        let own = self
            .inner
            .opened
            .get(labels, &self.inner.budget, OPENED_SERIES);
        let overflowed = own.is_none();
        let series = own.unwrap_or_else(|| Arc::clone(&self.overflow(labels).opened));
        series.opened.fetch_add(1, Ordering::Relaxed);
        TcpConnection {
            metrics: self.clone(),
            labels: labels.clone(),
            series,
            overflowed,
            traffic: TrafficCounters::default(),
            closed: false,
        }
    }

    /// Counts a connection that was refused before it opened, but after both its ends were known.
    pub fn tcp_refused(&self, labels: &Labels, flag: ConnectionFlag) {
        self.count_closed(labels, flag, false);
    }

    /// Counts a request whose response has ended.
    pub fn request(&self, labels: &Labels, outcome: &RequestOutcome) {
        let key = (labels.clone(), outcome.kind());
        let own = self
            .inner
            .requests
            .get(&key, &self.inner.budget, REQUEST_SERIES);
        match own {
            Some(series) => series.observe(outcome),
            None => match outcome.protocol() {
                RequestProtocol::Http => &self.overflow(labels).http,
                RequestProtocol::Grpc => &self.overflow(labels).grpc,
            }
            .observe(outcome),
        }
    }

    /// Forgets series in which nothing was counted since
    /// [`MetricsSettings::with_idle`] before `now`; returns how many. Call it about once a minute.
    ///
    /// No count reads the clock: a series' idle time begins at the first call that finds it unused. What
    /// a live connection uses stays.
    pub fn evict_idle(&self, now: Instant) -> usize {
        let Inner {
            settings, budget, ..
        } = &*self.inner;
        let idle = settings.idle;
        self.inner
            .opened
            .evict(now, idle, budget, |_| OPENED_SERIES)
            + self
                .inner
                .closed
                .evict(now, idle, budget, |(_, flag)| closed_series(*flag))
            + self
                .inner
                .requests
                .evict(now, idle, budget, |_| REQUEST_SERIES)
    }

    /// How many series there are, the overflow's excepted.
    pub fn series(&self) -> usize {
        self.inner.budget.used()
    }

    fn overflow(&self, labels: &Labels) -> &Overflow {
        match labels.reporter() {
            Reporter::Source => &self.inner.overflow[0],
            Reporter::Destination => &self.inner.overflow[1],
        }
    }

    fn count_closed(&self, labels: &Labels, flag: ConnectionFlag, overflowed: bool) {
        let own = if overflowed {
            None
        } else {
            let key = (labels.clone(), flag);
            self.inner
                .closed
                .get(&key, &self.inner.budget, closed_series(flag))
        };
        let series = own.as_deref().unwrap_or(&self.overflow(labels).closed);
        series.closed.fetch_add(1, Ordering::Relaxed);
        if flag.is_failure() {
            series.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Series per record: closed, and failed where it can be counted.
fn closed_series(flag: ConnectionFlag) -> usize {
    1 + usize::from(flag.is_failure())
}

impl Requests {
    fn observe(&self, outcome: &RequestOutcome) {
        let micros = u64::try_from(outcome.duration().as_micros()).unwrap_or(u64::MAX);
        self.duration.observe(micros, micros);
        for (histogram, bytes) in [
            (&self.request_bytes, outcome.request_bytes()),
            (&self.response_bytes, outcome.response_bytes()),
        ] {
            histogram.observe(bytes.saturating_mul(1000), bytes);
        }
    }
}

impl Histogram {
    fn observe(&self, thousandths: u64, amount: u64) {
        let bucket = BOUNDS.partition_point(|bound| *bound < thousandths);
        self.sum.fetch_add(amount, Ordering::Relaxed);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
    }
}

/// A live connection. Adding bytes costs two uncontended or relaxed additions; dropping it without
/// [`close`](Self::close) counts it as failed (`CONNECT`): whoever ended it did not say that all was well.
#[derive(Debug)]
#[must_use = "dropping it counts the connection as failed"]
pub struct TcpConnection {
    metrics: Metrics,
    labels: Labels,
    series: Arc<Opened>,
    /// What was opened in the overflow is closed there.
    overflowed: bool,
    traffic: TrafficCounters,
    closed: bool,
}

impl TcpConnection {
    /// Counts bytes from the client to the server.
    ///
    /// So it is at both ends: *received* is what came from downstream.
    pub fn add_received(&self, bytes: u64) {
        self.traffic.add_from_client(bytes);
        self.series.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes from the server to the client.
    pub fn add_sent(&self, bytes: u64) {
        self.traffic.add_from_server(bytes);
        self.series.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What this connection carried so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic.get()
    }

    /// Counts the connection as closed, and as failed unless the flag is [`ConnectionFlag::None`]; says
    /// what it carried.
    pub fn close(mut self, flag: ConnectionFlag) -> Traffic {
        self.finish(flag);
        self.traffic.get()
    }

    fn finish(&mut self, flag: ConnectionFlag) {
        if !std::mem::replace(&mut self.closed, true) {
            self.metrics
                .count_closed(&self.labels, flag, self.overflowed);
        }
    }
}

impl Drop for TcpConnection {
    fn drop(&mut self) {
        self.finish(ConnectionFlag::ConnectionFailed);
    }
}
