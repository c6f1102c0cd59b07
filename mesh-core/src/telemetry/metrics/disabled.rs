//! The same interface without the feature `metrics`: a connection's own traffic is all that is counted.

use tokio::time::Instant;

use super::{ConnectionFlag, Labels, MetricsSettings, RequestOutcome, Traffic};
use traffic::TrafficCounters;

#[path = "traffic.rs"]
mod traffic;

/// Counts nothing: the feature `metrics` is off.
#[derive(Debug, Clone, Default)]
pub struct Metrics;

impl Metrics {
    /// Metrics that count nothing.
    pub fn new() -> Self {
        Self
    }

    /// Metrics that count nothing, whatever the settings.
    pub fn with_settings(_settings: MetricsSettings) -> Self {
        Self
    }

    /// Begins a connection.
    pub fn tcp_opened(&self, _labels: &Labels) -> TcpConnection {
        TcpConnection::default()
    }

    /// Counts nothing.
    pub fn tcp_refused(&self, _labels: &Labels, _flag: ConnectionFlag) {}

    /// Counts nothing.
    pub fn request(&self, _labels: &Labels, _outcome: &RequestOutcome) {}

    /// Forgets nothing.
    pub fn evict_idle(&self, _now: Instant) -> usize {
        0
    }

    /// None.
    pub fn series(&self) -> usize {
        0
    }
}

/// A live connection's traffic.
#[derive(Debug, Default)]
pub struct TcpConnection {
    traffic: TrafficCounters,
}

impl TcpConnection {
    /// Counts bytes from the client to the server.
    pub fn add_received(&self, bytes: u64) {
        self.traffic.add_from_client(bytes);
    }

    /// Counts bytes from the server to the client.
    pub fn add_sent(&self, bytes: u64) {
        self.traffic.add_from_server(bytes);
    }

    /// What this connection carried so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic.get()
    }

    /// Ends the connection and says what it carried.
    pub fn close(self, _flag: ConnectionFlag) -> Traffic {
        self.traffic.get()
    }
}
