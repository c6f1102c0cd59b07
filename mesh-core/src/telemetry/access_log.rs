//! One record per connection, in ztunnel's words.

use std::borrow::Cow;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tracing::Level;

use super::sanitize::sanitize;
use super::{DestinationService, Labels, Peer, Reporter, SecurityPolicy, Traffic};
use crate::ErrorKind;
use crate::error::Chain;

/// The `tracing` target of access records: `mesh::access=info` turns them on alone.
pub const ACCESS_TARGET: &str = "mesh::access";

/// What the access log says of a connection.
///
/// | level | message | when |
/// |---|---|---|
/// | DEBUG | `connection opened` | its bytes can flow |
/// | INFO | `connection complete` | it ended well |
/// | INFO | `connection complete` | it was denied by policy: whoever is can repeat it as often as it likes |
/// | WARN | `connection complete` | it could not be opened, and another attempt follows |
/// | ERROR | `connection complete` | it ended with another error |
/// | WARN | `connection failed` | it was refused before both its ends were known |
///
/// Fields, in this order, those without a value left out: `src.addr`, `src.workload`, `src.namespace`,
/// `src.identity`, `src.cluster`, `dst.addr`, `dst.hbone_addr`, `dst.service`, `dst.workload`,
/// `dst.namespace`, `dst.identity`, `dst.cluster`, `direction`, `bytes_sent`, `bytes_recv`, `duration`,
/// `error`. Identities appear only where mutual TLS proved them. Values have at most 1 KiB, and control
/// characters in them are escaped.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use mesh_core::telemetry::{AccessLog, Labels, Peer, Reporter, SecurityPolicy, Traffic};
///
/// let labels = Labels::new(
///     Reporter::Destination,
///     Peer::new("productpage-v1", "default"),
///     Peer::new("reviews-v1", "default"),
///     None,
///     SecurityPolicy::MutualTls,
/// );
/// let log = AccessLog::new(&labels, "10.0.0.7:51000".parse()?, "10.0.0.9:15008".parse()?)
///     .with_hbone_address("10.0.0.9:9080");
/// log.opened();
/// log.complete(Traffic::new(120, 4096), Duration::from_millis(13));
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Debug, Clone)]
pub struct AccessLog {
    labels: Labels,
    source: SocketAddr,
    destination: Option<SocketAddr>,
    hbone_address: Option<Arc<str>>,
}

impl AccessLog {
    /// A record of a connection.
    ///
    /// `destination` is where the connection goes at this hop: outbound the address that is dialled
    /// (with the tunnel's port), inbound the tunnel's own address, or the original destination of
    /// plaintext.
    pub fn new(labels: &Labels, source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            labels: labels.clone(),
            source,
            destination: Some(destination),
            hbone_address: None,
        }
    }

    /// A record of a connection that got no address to go to.
    pub(crate) fn unaddressed(labels: &Labels, source: SocketAddr) -> Self {
        Self {
            labels: labels.clone(),
            source,
            destination: None,
            hbone_address: None,
        }
    }

    pub(crate) fn with_destination(mut self, destination: SocketAddr) -> Self {
        self.destination = Some(destination);
        self
    }

    /// Sets the authority of the tunnel's CONNECT; without it the connection is plaintext.
    pub fn with_hbone_address(mut self, authority: impl Into<Arc<str>>) -> Self {
        self.hbone_address = Some(authority.into());
        self
    }

    /// Says that the connection is open.
    pub fn opened(&self) {
        if tracing::enabled!(target: ACCESS_TARGET, Level::DEBUG) {
            let ends = Ends::of(&self.labels);
            tracing::event!(
                target: ACCESS_TARGET,
                Level::DEBUG,
                {
                    src.addr = %self.source,
                    src.workload = ends.source.workload.as_deref(),
                    src.namespace = ends.source.namespace.as_deref(),
                    src.identity = ends.source.identity.as_deref(),
                    src.cluster = ends.source.cluster.as_deref(),
                    dst.addr = self.destination.map(tracing::field::display),
                    dst.hbone_addr = self.hbone_address().as_deref(),
                    dst.service = ends.service.as_deref(),
                    dst.workload = ends.destination.workload.as_deref(),
                    dst.namespace = ends.destination.namespace.as_deref(),
                    dst.identity = ends.destination.identity.as_deref(),
                    dst.cluster = ends.destination.cluster.as_deref(),
                    direction = self.labels.reporter().direction()
                },
                "connection opened"
            );
        }
    }

    /// Says that the connection ended well.
    pub fn complete(&self, traffic: Traffic, duration: Duration) {
        if tracing::enabled!(target: ACCESS_TARGET, Level::INFO) {
            self.ended(traffic, duration, Level::INFO, None);
        }
    }

    /// Says that the connection ended with an error; the error's sources are told too.
    pub fn failed(&self, traffic: Traffic, duration: Duration, error: &(dyn Error + 'static)) {
        let ours = error.downcast_ref::<crate::Error>();
        let denied = ours.is_some_and(|error| error.kind() == ErrorKind::Denied);
        if denied && tracing::enabled!(target: ACCESS_TARGET, Level::INFO) {
            self.ended(traffic, duration, Level::INFO, Some(&chain(error)));
        } else if !denied && tracing::enabled!(target: ACCESS_TARGET, Level::ERROR) {
            self.ended(traffic, duration, Level::ERROR, Some(&chain(error)));
        }
    }

    /// Says that the connection could not be opened, and that another attempt follows.
    pub(crate) fn passed_over(&self, error: &(dyn Error + 'static)) {
        if tracing::enabled!(target: ACCESS_TARGET, Level::WARN) {
            let (traffic, duration) = Default::default();
            self.ended(traffic, duration, Level::WARN, Some(&chain(error)));
        }
    }

    fn ended(&self, traffic: Traffic, duration: Duration, level: Level, error: Option<&str>) {
        let ends = Ends::of(&self.labels);
        // Unlike in the metrics, `sent` is what this end sent on: to the server when outbound.
        let (sent, received) = match self.labels.reporter() {
            Reporter::Source => (traffic.from_client, traffic.from_server),
            Reporter::Destination => (traffic.from_server, traffic.from_client),
        };
        macro_rules! record {
            ($level:ident) => {
                tracing::event!(
                    target: ACCESS_TARGET,
                    Level::$level,
                    {
                        src.addr = %self.source,
                        src.workload = ends.source.workload.as_deref(),
                        src.namespace = ends.source.namespace.as_deref(),
                        src.identity = ends.source.identity.as_deref(),
                        src.cluster = ends.source.cluster.as_deref(),
                        dst.addr = self.destination.map(tracing::field::display),
                        dst.hbone_addr = self.hbone_address().as_deref(),
                        dst.service = ends.service.as_deref(),
                        dst.workload = ends.destination.workload.as_deref(),
                        dst.namespace = ends.destination.namespace.as_deref(),
                        dst.identity = ends.destination.identity.as_deref(),
                        dst.cluster = ends.destination.cluster.as_deref(),
                        direction = self.labels.reporter().direction(),
                        bytes_sent = sent,
                        bytes_recv = received,
                        duration = millis(duration).as_str(),
                        error
                    },
                    "connection complete"
                )
            };
        }
        match level {
            Level::ERROR => record!(ERROR),
            Level::WARN => record!(WARN),
            _ => record!(INFO),
        }
    }

    /// Says that a connection was refused before its ends were known: a failed handshake, a malformed
    /// CONNECT.
    pub fn refused(
        reporter: Reporter,
        source: SocketAddr,
        destination: SocketAddr,
        error: &(dyn Error + 'static),
    ) {
        if tracing::enabled!(target: ACCESS_TARGET, Level::WARN) {
            tracing::event!(
                target: ACCESS_TARGET,
                Level::WARN,
                {
                    src.addr = %source,
                    dst.addr = %destination,
                    direction = reporter.direction(),
                    error = chain(error).as_str()
                },
                "connection failed"
            );
        }
    }

    fn hbone_address(&self) -> Option<Cow<'_, str>> {
        self.hbone_address.as_deref().map(sanitize)
    }
}

/// Both ends, ready to be written.
pub(super) struct Ends<'a> {
    pub(super) source: End<'a>,
    pub(super) destination: End<'a>,
    pub(super) service: Option<Cow<'a, str>>,
}

pub(super) struct End<'a> {
    pub(super) workload: Option<Cow<'a, str>>,
    pub(super) namespace: Option<Cow<'a, str>>,
    pub(super) identity: Option<String>,
    pub(super) cluster: Option<Cow<'a, str>>,
}

impl<'a> Ends<'a> {
    pub(super) fn of(labels: &'a Labels) -> Self {
        let proven = labels.security() == SecurityPolicy::MutualTls;
        let end = |peer: &'a Peer| End {
            workload: peer.instance().map(sanitize),
            namespace: peer.namespace().map(sanitize),
            identity: peer
                .principal()
                .filter(|_| proven)
                .map(|id| sanitize(&id.to_string()).into_owned()),
            cluster: peer.cluster().map(sanitize),
        };
        Self {
            source: end(labels.source()),
            destination: end(labels.destination()),
            service: labels
                .service()
                .and_then(DestinationService::hostname)
                .map(sanitize),
        }
    }
}

/// `13ms`.
pub(super) fn millis(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

/// An error with its sources, `: ` between them, bounded as any field.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    sanitize(&Chain(error).to_string()).into_owned()
}
