use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Serialize;

use crate::ConnectionContext;
use crate::inbound::Judgement;
use crate::mesh::MeshInner;
use crate::outbound::Outbound;
use crate::snapshot::Snapshot;

/// One workload of this process.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StateDump {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<Connections>,
    info: Info,
    /// Not of ztunnel, as the rest.
    identity: String,
    /// How the ports that it listens on are judged: `http` by request, `tcp` by connection.
    listeners: BTreeMap<u16, &'static str>,
    /// Policies that it lists and that are not here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing: Vec<String>,
}

#[derive(Serialize)]
struct Connections {
    inbound: Vec<Inbound>,
    outbound: Vec<OutboundDump>,
}

/// A connection that the workload opened. Connections of a pool are listed while somebody has them
/// open, in use or not.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutboundDump {
    /// Without a port where the connection shares its socket with others.
    src: SocketAddr,
    /// What was asked for, by name if it was so.
    original_dst: String,
    actual_dst: SocketAddr,
    protocol: &'static str,
    /// Not of ztunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    dst_identity: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Inbound {
    src: SocketAddr,
    original_dst: Option<String>,
    actual_dst: SocketAddr,
    protocol: &'static str,
    /// Not of ztunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    src_identity: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    name: String,
    namespace: String,
    service_account: String,
}

impl StateDump {
    pub(super) fn of(mesh: &MeshInner, snapshot: &Snapshot) -> (String, Self) {
        let record = mesh.record(snapshot);
        let missing = mesh.missing_policies();
        let up = record.is_some() && missing.is_empty() && mesh.has_certificate();
        let contexts = mesh.live.registry.connections();
        let mut inbound: Vec<Inbound> = contexts.iter().map(Inbound::new).collect();
        inbound.sort_by_key(|connection| (connection.src, connection.actual_dst));
        let live = mesh.outbound.connections();
        let mut outbound: Vec<_> = live.iter().map(OutboundDump::new).collect();
        outbound
            .sort_by(|a, b| (a.actual_dst, &a.original_dst).cmp(&(b.actual_dst, &b.original_dst)));
        let key = record.map_or_else(|| mesh.id.to_string(), |record| record.uid().to_string());
        let state = Self {
            state: if up { "Up" } else { "Pending" },
            connections: (up || !inbound.is_empty() || !outbound.is_empty())
                .then_some(Connections { inbound, outbound }),
            info: Info {
                name: mesh.id.name().to_owned(),
                namespace: mesh.id.namespace().to_owned(),
                service_account: mesh.id.service_account().to_owned(),
            },
            identity: mesh.identity().to_string(),
            listeners: {
                let ports = mesh.ports();
                let ports = ports.iter();
                ports
                    .map(|(port, it)| (*port, kind(it.judgement)))
                    .collect()
            },
            missing,
        };
        (key, state)
    }
}

impl Inbound {
    fn new(context: &ConnectionContext) -> Self {
        Self {
            src: context.source(),
            original_dst: None,
            actual_dst: context.destination(),
            protocol: protocol(context),
            src_identity: context.identity().map(ToString::to_string),
        }
    }
}

impl OutboundDump {
    fn new(outbound: &Outbound) -> Self {
        let Outbound { asked, context } = outbound;
        Self {
            src: context.source(),
            original_dst: asked.to_string(),
            actual_dst: context.destination(),
            protocol: protocol(context),
            dst_identity: context.identity().map(ToString::to_string),
        }
    }
}

fn protocol(context: &ConnectionContext) -> &'static str {
    match context.is_mutual_tls() {
        true => "HBONE",
        false => "TCP",
    }
}

fn kind(judgement: Judgement) -> &'static str {
    match judgement {
        Judgement::L4 => "tcp",
        Judgement::PerRequest => "http",
    }
}
