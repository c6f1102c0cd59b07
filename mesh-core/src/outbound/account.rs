//! What outbound connections and requests report, and say of themselves to the next hop.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

#[cfg(feature = "http")]
use http::Request;
use mesh_hbone::headers::{Baggage, ConnectHeaders, Forwarded, TraceParent};

use super::target::Destination;
use crate::account::{self, Connection};
use crate::mesh::MeshInner;
use crate::net::MeshStream;
use crate::snapshot::{Hop, Route, ServiceRecord, Snapshot, WorkloadRecord};
#[cfg(feature = "http")]
use crate::telemetry::RequestLog;
use crate::telemetry::{AccessLog, DestinationService, Labels, Peer, Reporter, SecurityPolicy};
use crate::{Error, ErrorKind};

/// Whom we talk to, and as what.
pub(super) fn labels(mesh: &MeshInner, route: &Route) -> Labels {
    let snapshot = mesh.node.inner.snapshot.load();
    let tunnel = matches!(route.hop(), Hop::Hbone(_));
    let own = mesh
        .record(&snapshot)
        .map_or_else(Peer::unknown, |record| account::peer(record));
    let source = if tunnel {
        own.with_principal(mesh.identity())
    } else {
        own
    };
    let destination = match route.workload() {
        None => Peer::unknown(),
        Some(record) => match record.identity() {
            Some(identity) => account::peer(record).with_principal(identity.clone()),
            None => account::peer(record),
        },
    };
    let service = match route.service() {
        Some(service) => Some(account::service(service)),
        None if matches!(route.hop(), Hop::Passthrough(_)) => {
            Some(DestinationService::passthrough())
        }
        None => None,
    };
    let security = if tunnel {
        SecurityPolicy::MutualTls
    } else {
        SecurityPolicy::Unknown
    };
    Labels::new(Reporter::Source, source, destination, service, security)
}

/// Whom we would have talked to, as far as the configuration tells.
fn unrouted_labels(mesh: &MeshInner, destination: &Destination, kind: ErrorKind) -> Labels {
    let snapshot = mesh.node.inner.snapshot.load();
    let own = mesh.record(&snapshot);
    let (service, workload) = match own {
        None => (None, None),
        Some(own) => known(mesh, &snapshot, own, destination),
    };
    let service = match (service, kind) {
        (Some(service), _) => Some(account::service(service)),
        (None, ErrorKind::UnknownHost) => Some(DestinationService::black_hole()),
        (None, ErrorKind::HostLookup) if workload.is_none() => {
            Some(DestinationService::passthrough())
        }
        (None, _) => None,
    };
    let peer = |record: Option<&Arc<WorkloadRecord>>| {
        record.map_or_else(Peer::unknown, |record| account::peer(record))
    };
    let security = SecurityPolicy::Unknown;
    Labels::new(
        Reporter::Source,
        peer(own),
        peer(workload),
        service,
        security,
    )
}

type Known<'a> = (
    Option<&'a Arc<ServiceRecord>>,
    Option<&'a Arc<WorkloadRecord>>,
);

/// What the configuration has under the destination's name or address.
fn known<'a>(
    mesh: &MeshInner,
    snapshot: &'a Snapshot,
    own: &WorkloadRecord,
    destination: &Destination,
) -> Known<'a> {
    let namespace = own.namespace();
    match destination {
        Destination::Addr(address) => {
            let (network, ip) = (own.network(), address.ip().to_canonical());
            match snapshot.service_at(network, ip, namespace) {
                Some(service) => (Some(service), None),
                None => (None, snapshot.workload_at(network, ip)),
            }
        }
        Destination::Host { name, .. } => {
            let domain = &mesh.settings().cluster_domain;
            match snapshot.service_by_name(name, namespace, domain) {
                Some(service) => (Some(service), None),
                None => (None, snapshot.workload_by_name(name, namespace, domain)),
            }
        }
    }
}

/// Reports a connection for which there was no way.
pub(super) fn unrouted(mesh: &MeshInner, destination: &Destination, error: &Error) {
    let labels = unrouted_labels(mesh, destination, error.kind());
    let log = AccessLog::unaddressed(&labels, own_address(mesh));
    let log = match destination {
        Destination::Addr(address) => log.with_destination(*address),
        Destination::Host { .. } => log,
    };
    account::refused(&mesh.node.inner.metrics, &labels, &log, error);
}

/// What a request reports for which there was no way.
#[cfg(feature = "http")]
pub(super) fn unrouted_request<B>(
    mesh: &MeshInner,
    destination: &Destination,
    error: &Error,
    request: &Request<B>,
) -> (Labels, RequestLog) {
    let labels = unrouted_labels(mesh, destination, error.kind());
    let log = RequestLog::new(&labels, own_address(mesh), request);
    let log = match destination {
        Destination::Addr(address) => log.with_destination(*address),
        Destination::Host { .. } => log,
    };
    (labels, log)
}

/// This workload's own address, as far as it has one.
pub(super) fn own_address(mesh: &MeshInner) -> SocketAddr {
    let snapshot = mesh.node.inner.snapshot.load();
    let ip = mesh
        .record(&snapshot)
        .and_then(|record| record.addresses().first().copied());
    SocketAddr::new(ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), 0)
}

fn log(mesh: &MeshInner, route: &Route, labels: &Labels) -> AccessLog {
    let next_hop = next_hop(route).unwrap_or_else(|| own_address(mesh));
    let log = AccessLog::new(labels, own_address(mesh), next_hop);
    match route.hop() {
        Hop::Hbone(tunnel) => log.with_hbone_address(tunnel.authority().to_string()),
        _ => log,
    }
}

/// Makes a stream report itself.
pub(super) fn accounted(mesh: &MeshInner, route: &Route, stream: MeshStream) -> MeshStream {
    let labels = labels(mesh, route);
    let log = log(mesh, route, &labels);
    let connection = Connection::open(&mesh.node.inner.metrics, &labels, log);
    stream.with_account(Box::new(connection))
}

/// Reports a connection that could not be opened, and whether another attempt follows.
pub(super) fn failed(mesh: &MeshInner, route: &Route, error: &Error, again: bool) {
    let labels = labels(mesh, route);
    let log = log(mesh, route, &labels);
    let metrics = &mesh.node.inner.metrics;
    match again {
        true => account::passed_over(metrics, &labels, &log, error),
        false => account::refused(metrics, &labels, &log, error),
    }
}

/// The address that is dialled; unknown while a hostname has yet to be looked up.
pub(super) fn next_hop(route: &Route) -> Option<SocketAddr> {
    match route.hop() {
        Hop::Hbone(tunnel) => Some(tunnel.next_hop()),
        Hop::Plain(address) | Hop::Passthrough(address) => Some(*address),
        Hop::Resolve(_) => None,
    }
}

/// Says once per host that it is not of the mesh.
pub(super) fn passthrough(mesh: &MeshInner, destination: &Destination) {
    if mesh.passthrough_is_new(&destination.to_string()) {
        tracing::info!(target: "mesh::outbound", %destination, "not known to the mesh: connecting in plaintext (PassthroughCluster)");
    }
}

/// What a CONNECT tells the next hop.
pub(super) fn connect_headers(mesh: &MeshInner, route: &Route) -> ConnectHeaders {
    let snapshot = mesh.node.inner.snapshot.load();
    let baggage = mesh
        .record(&snapshot)
        .map_or_else(Baggage::default, |record| crate::inbound::baggage(record));
    let mut forwarded = Forwarded::new(own_address(mesh));
    if let Some(service) = route.service() {
        forwarded = forwarded.with_host(service.name().hostname());
    }
    let random = &mesh.node.inner.random;
    let traceparent = TraceParent::from_random([random.next(), random.next(), random.next()]);
    ConnectHeaders::new(baggage, forwarded, traceparent)
}
