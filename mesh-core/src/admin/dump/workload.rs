use std::net::IpAddr;
use std::sync::Arc;

use mesh_xds::model::{ApplicationProtocol, HBONE_PORT, NetworkMode, TunnelProtocol, WorkloadType};
use serde::{Serialize, Serializer};

use super::{GatewayDump, health, is_empty};
use crate::snapshot::{Snapshot, WorkloadRecord};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WorkloadDump<'a> {
    workload_ips: &'a [IpAddr],
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<GatewayDump>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network_gateway: Option<GatewayDump>,
    protocol: &'static str,
    network_mode: &'static str,
    #[serde(skip_serializing_if = "is_empty")]
    uid: &'a str,
    name: &'a str,
    namespace: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    trust_domain: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    service_account: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    network: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    workload_name: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    workload_type: &'static str,
    #[serde(skip_serializing_if = "is_empty")]
    canonical_name: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    canonical_revision: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    hostname: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    node: &'a str,
    #[serde(skip_serializing_if = "is_false")]
    native_tunnel: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    application_tunnel: Option<TunnelDump>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    authorization_policies: Vec<String>,
    status: &'static str,
    cluster_id: &'a str,
    #[serde(skip_serializing_if = "LocalityDump::is_empty")]
    locality: LocalityDump<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    services: Vec<String>,
    capacity: u32,
    /// Where it is not 15008. Our extension of ztunnel's file.
    #[serde(skip_serializing_if = "Option::is_none")]
    hbone_port: Option<u16>,
    /// Istio sends these to waypoints only, so ztunnel has no key for them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    request_authentications: Vec<String>,
}

#[derive(Serialize)]
struct TunnelDump {
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

#[derive(Serialize)]
struct LocalityDump<'a> {
    region: &'a str,
    zone: &'a str,
    subzone: &'a str,
}

impl LocalityDump<'_> {
    fn is_empty(&self) -> bool {
        self.region.is_empty() && self.zone.is_empty() && self.subzone.is_empty()
    }
}

impl<'a> WorkloadDump<'a> {
    pub(super) fn new(record: &'a WorkloadRecord) -> Self {
        let hbone = record.protocol() == TunnelProtocol::Hbone;
        let host_network = record.network_mode() == NetworkMode::HostNetwork;
        let tunnel = record.application_tunnel();
        Self {
            workload_ips: record.addresses(),
            waypoint: record.waypoint().map(GatewayDump::new),
            network_gateway: record.network_gateway().map(GatewayDump::new),
            protocol: if hbone { "HBONE" } else { "TCP" },
            network_mode: if host_network {
                "HostNetwork"
            } else {
                "Standard"
            },
            uid: record.uid(),
            name: record.name(),
            namespace: record.namespace(),
            trust_domain: record.trust_domain(),
            service_account: record.service_account(),
            network: record.network(),
            workload_name: record.workload_name(),
            workload_type: match record.workload_type() {
                WorkloadType::CronJob => "cronjob",
                WorkloadType::Pod => "pod",
                WorkloadType::Job => "job",
                // The default.
                _ => "",
            },
            canonical_name: record.canonical_name(),
            canonical_revision: record.canonical_revision(),
            hostname: record.hostname().map_or("", |hostname| hostname),
            node: record.node(),
            native_tunnel: record.native_tunnel(),
            application_tunnel: tunnel.map(|(protocol, port)| TunnelDump {
                protocol: match protocol {
                    ApplicationProtocol::Proxy => "PROXY",
                    _ => "NONE",
                },
                port,
            }),
            authorization_policies: names(record.authorization_policies()),
            status: health(record.health()),
            cluster_id: record.cluster_id(),
            locality: LocalityDump {
                region: record.region(),
                zone: record.zone(),
                subzone: record.subzone(),
            },
            services: {
                let memberships = record.memberships().iter();
                let services = memberships.map(|membership| membership.service().to_string());
                services.collect()
            },
            capacity: record.capacity(),
            hbone_port: Some(record.hbone_port()).filter(|port| *port != HBONE_PORT),
            request_authentications: names(record.request_authentications()),
        }
    }
}

fn names(names: &[impl ToString]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Sorted by uid.
pub(super) fn all<S: Serializer>(snapshot: &Arc<Snapshot>, to: S) -> Result<S::Ok, S::Error> {
    let mut records: Vec<_> = snapshot.workloads().collect();
    records.sort_by(|a, b| a.uid().cmp(b.uid()));
    to.collect_seq(records.into_iter().map(|record| WorkloadDump::new(record)))
}
