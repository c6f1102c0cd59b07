use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_xds::model::{
    HealthPolicy, IpFamilies, LoadBalancingMode, LocalityScope, NetworkAddress, Visibility,
};
use serde::{Serialize, Serializer};

use super::{GatewayDump, ServiceName, health};
use crate::snapshot::{ServiceRecord, Snapshot, WorkloadRecord};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceDump<'a> {
    name: &'a str,
    namespace: &'a str,
    hostname: &'a str,
    vips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cidr_vips: Vec<CidrDump<'a>>,
    /// A target of 0 is one that each endpoint says.
    ports: BTreeMap<u16, u16>,
    endpoints: BTreeMap<&'a str, EndpointDump<'a>>,
    subject_alt_names: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<GatewayDump>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    weighted_waypoints: Vec<WeightedDump>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_balancer: Option<LoadBalancerDump>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_families: Option<&'static str>,
    canonical: bool,
    visibility: &'static str,
}

#[derive(Serialize)]
struct CidrDump<'a> {
    network: &'a str,
    cidr: String,
}

#[derive(Serialize)]
struct WeightedDump {
    destination: GatewayDump,
    weight: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LoadBalancerDump {
    routing_preferences: Vec<&'static str>,
    mode: &'static str,
    health_policy: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndpointDump<'a> {
    workload_uid: &'a str,
    port: BTreeMap<u16, u16>,
    status: &'static str,
}

impl<'a> EndpointDump<'a> {
    fn new(record: &'a WorkloadRecord, name: &ServiceName) -> Self {
        let membership = record.membership(name);
        let ports = membership.map_or(&[][..], |membership| membership.ports());
        let known = membership.and_then(|membership| membership.health());
        Self {
            workload_uid: record.uid(),
            port: ports.iter().copied().collect(),
            status: health(known.unwrap_or(record.health())),
        }
    }
}

impl<'a> ServiceDump<'a> {
    fn new(snapshot: &'a Snapshot, record: &'a ServiceRecord) -> Self {
        let addresses = record.addresses();
        let single = addresses.iter().filter(|address| address.ip().is_some());
        let ranges = addresses.iter().filter(|address| address.ip().is_none());
        let ports = record.ports().iter();
        let weighted = record.weighted_waypoints().iter();
        Self {
            name: record.object_name(),
            namespace: record.namespace(),
            hostname: record.hostname(),
            vips: single.map(NetworkAddress::to_string).collect(),
            cidr_vips: ranges
                .map(|address| CidrDump {
                    network: address.network(),
                    cidr: address.range().to_string(),
                })
                .collect(),
            ports: ports
                .map(|port| (port.service_port(), port.target_port().unwrap_or(0)))
                .collect(),
            endpoints: endpoints(snapshot, record.name()),
            subject_alt_names: {
                let names = record.subject_alt_names().iter();
                names.map(ToString::to_string).collect()
            },
            waypoint: record.waypoint().map(GatewayDump::new),
            weighted_waypoints: weighted
                .map(|(gateway, weight)| WeightedDump {
                    destination: GatewayDump::new(gateway),
                    weight: *weight,
                })
                .collect(),
            load_balancer: LoadBalancerDump::new(record),
            ip_families: match record.ip_families() {
                IpFamilies::Ipv4Only => Some("IPv4"),
                IpFamilies::Ipv6Only => Some("IPv6"),
                IpFamilies::Dual => Some("Dual"),
                _ => None,
            },
            canonical: record.canonical(),
            visibility: match record.visibility() {
                Visibility::Namespace => "Namespace",
                _ => "Public",
            },
        }
    }
}

impl LoadBalancerDump {
    /// `None` of the default.
    fn new(record: &ServiceRecord) -> Option<Self> {
        let preferences = record.routing_preference();
        let (mode, policy) = (record.load_balancing_mode(), record.health_policy());
        if preferences.is_empty() && mode == Default::default() && policy == Default::default() {
            return None;
        }
        Some(Self {
            routing_preferences: preferences.iter().map(|scope| name_of(*scope)).collect(),
            mode: match mode {
                LoadBalancingMode::Strict => "Strict",
                LoadBalancingMode::Failover => "Failover",
                LoadBalancingMode::Passthrough => "Passthrough",
                _ => "Standard",
            },
            health_policy: match policy {
                HealthPolicy::AllowAll => "AllowAll",
                _ => "OnlyHealthy",
            },
        })
    }
}

fn name_of(scope: LocalityScope) -> &'static str {
    match scope {
        LocalityScope::Region => "Region",
        LocalityScope::Zone => "Zone",
        LocalityScope::Subzone => "Subzone",
        LocalityScope::Node => "Node",
        LocalityScope::Cluster => "Cluster",
        LocalityScope::Network => "Network",
        _ => "Unspecified",
    }
}

fn endpoints<'a>(
    snapshot: &'a Snapshot,
    name: &ServiceName,
) -> BTreeMap<&'a str, EndpointDump<'a>> {
    let records = snapshot.endpoints(name);
    records
        .map(|record| (&**record.uid(), EndpointDump::new(record, name)))
        .collect()
}

/// Sorted by hostname.
pub(super) fn all<S: Serializer>(snapshot: &Arc<Snapshot>, to: S) -> Result<S::Ok, S::Error> {
    let mut records: Vec<_> = snapshot.services().collect();
    records.sort_by_key(|record| (record.hostname(), record.namespace()));
    let services = records.into_iter();
    to.collect_seq(services.map(|record| ServiceDump::new(snapshot, record)))
}

/// Endpoints that are here before their service, by its name.
pub(super) fn staged<S: Serializer>(snapshot: &Arc<Snapshot>, to: S) -> Result<S::Ok, S::Error> {
    let mut names: Vec<_> = snapshot.staged_services().collect();
    names.sort();
    let staged = names.into_iter();
    to.collect_map(staged.map(|name| (name.to_string(), endpoints(snapshot, name))))
}
