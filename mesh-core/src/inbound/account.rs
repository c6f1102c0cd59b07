//! What inbound connections report.

use std::net::SocketAddr;

use mesh_hbone::headers::{Baggage, ConnectHeaders};

use mesh_xds::model::WorkloadType;

use super::registry::Judgement;
use crate::account::{self, Connection};
use crate::mesh::MeshInner;
use crate::net::MeshStream;
use crate::snapshot::{Snapshot, WorkloadRecord};
use crate::telemetry::{AccessLog, Labels, Peer, Reporter, SecurityPolicy};
use crate::{ConnectionContext, Error};

/// Who talks to us, and as what.
pub(crate) fn labels(
    mesh: &MeshInner,
    context: &ConnectionContext,
    headers: Option<&ConnectHeaders>,
) -> Labels {
    let snapshot = mesh.node.inner.snapshot.load();
    let record = mesh.record(&snapshot);
    let destination = record.map_or_else(Peer::unknown, |record| account::peer(record));
    let service = record.and_then(|record| {
        let host = headers.and_then(ConnectHeaders::forwarded_host);
        snapshot.service_of_inbound(record, context.destination().port(), None, host)
    });
    let security = match context.identity() {
        Some(_) => SecurityPolicy::MutualTls,
        None => SecurityPolicy::Unknown,
    };
    Labels::new(
        Reporter::Destination,
        source(
            mesh,
            &snapshot,
            context,
            headers.and_then(ConnectHeaders::baggage),
        ),
        destination.with_principal(mesh.identity()),
        service.map(|service| account::service(service)),
        security,
    )
}

/// The peer by its address, where what is there has the identity that was proven; else by its baggage.
fn source(
    mesh: &MeshInner,
    snapshot: &Snapshot,
    context: &ConnectionContext,
    baggage: Option<&Baggage>,
) -> Peer {
    let network = &mesh.settings().network;
    let record = snapshot
        .workload_at(network, context.source().ip())
        .filter(|record| {
            context
                .identity()
                .is_none_or(|identity| record.identity() == Some(identity))
        });
    let peer = match (record, baggage) {
        (Some(record), _) => account::peer(record),
        (None, Some(baggage)) => from_baggage(baggage, context),
        (None, None) => Peer::unknown(),
    };
    match context.identity() {
        Some(identity) => peer.with_principal(identity.clone()),
        None => peer,
    }
}

/// A peer says what it is called, but its namespace is what its certificate says.
fn from_baggage(baggage: &Baggage, context: &ConnectionContext) -> Peer {
    let namespace = match context.identity() {
        Some(identity) => identity.namespace(),
        None => baggage.namespace().unwrap_or_default(),
    };
    let workload = baggage.workload_name().unwrap_or_default();
    Peer::new(workload, namespace)
        .with_canonical_service(baggage.canonical_name().unwrap_or_default())
        .with_canonical_revision(baggage.canonical_revision().unwrap_or_default())
        .with_app(workload)
        .with_cluster(baggage.cluster().unwrap_or_default())
        .with_locality(
            baggage.region().unwrap_or_default(),
            baggage.zone().unwrap_or_default(),
        )
}

/// What the answer to a CONNECT says of this workload.
pub(crate) fn own_baggage(mesh: &MeshInner) -> Baggage {
    let snapshot = mesh.node.inner.snapshot.load();
    mesh.record(&snapshot)
        .map_or_else(Baggage::default, |record| baggage(record))
}

/// The owner's kind in the keys of the `baggage` header: `k8s.<kind>.name`.
fn kind(workload_type: WorkloadType) -> &'static str {
    match workload_type {
        WorkloadType::CronJob => "cronjob",
        WorkloadType::Pod => "pod",
        WorkloadType::Job => "job",
        _ => "deployment",
    }
}

/// A workload in the form of the `baggage` header.
pub(crate) fn baggage(record: &WorkloadRecord) -> Baggage {
    Baggage::default()
        .with_cluster(&**record.cluster_id())
        .with_namespace(&**record.namespace())
        .with_workload(kind(record.workload_type()), &**record.workload_name())
        .with_canonical_name(&**record.canonical_name())
        .with_canonical_revision(&**record.canonical_revision())
        .with_region(&**record.region())
        .with_zone(&**record.zone())
}

fn log(mesh: &MeshInner, context: &ConnectionContext, labels: &Labels) -> AccessLog {
    let destination = context.destination();
    if !context.is_mutual_tls() {
        return AccessLog::new(labels, context.source(), destination);
    }
    let snapshot = mesh.node.inner.snapshot.load();
    let port = mesh.hbone_port(&snapshot);
    AccessLog::new(
        labels,
        context.source(),
        SocketAddr::new(destination.ip(), port),
    )
    .with_hbone_address(destination.to_string())
}

/// Reports a refused connection.
pub(crate) fn refused(
    mesh: &MeshInner,
    context: &ConnectionContext,
    labels: &Labels,
    error: &Error,
) {
    account::refused(
        &mesh.node.inner.metrics,
        labels,
        &log(mesh, context, labels),
        error,
    );
}

/// Reports a connection that was refused before it was known what it was for.
pub(crate) fn early_refused(source: SocketAddr, local: SocketAddr, error: &Error) {
    AccessLog::refused(Reporter::Destination, source, local, error);
}

/// Makes a stream report itself, unless its requests do.
pub(crate) fn accounted(
    mesh: &MeshInner,
    stream: MeshStream,
    labels: &Labels,
    judgement: Judgement,
) -> MeshStream {
    match judgement {
        Judgement::PerRequest => {
            stream.context().set_labels(labels.clone());
            stream.with_first_byte_within(mesh.settings().header_timeout)
        }
        Judgement::L4 => {
            let log = log(mesh, stream.context(), labels);
            let connection = Connection::open(&mesh.node.inner.metrics, labels, log);
            stream.with_account(Box::new(connection))
        }
    }
}
