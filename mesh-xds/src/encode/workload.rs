use mesh_authz::policy::PolicyName;
use prost::Message;

use super::service::{gateway, octets, ports};
use crate::model::{
    ApplicationProtocol, ApplicationTunnel, HBONE_PORT, Health, Locality, NetworkMode,
    TunnelProtocol, Workload, WorkloadType,
};
use crate::proto::google::protobuf::Any;
use crate::proto::istio::workload as wire;
use crate::proto::type_url;

/// As istiod writes it: what the wire takes for granted is empty.
pub(super) fn workload(of: &Workload, withheld: impl Fn(&PolicyName) -> bool) -> wire::Workload {
    let policies = of.authorization_policies().iter();
    let services = of.services().iter().map(|membership| {
        let ports = ports(membership.ports());
        (membership.service().to_string(), wire::PortList { ports })
    });
    wire::Workload {
        uid: of.uid().into(),
        name: of.name().into(),
        namespace: of.namespace().into(),
        addresses: of.addresses().iter().map(|ip| octets(*ip)).collect(),
        network: of.network().into(),
        tunnel_protocol: match of.protocol() {
            TunnelProtocol::None => wire::TunnelProtocol::None,
            TunnelProtocol::Hbone => wire::TunnelProtocol::Hbone,
        }
        .into(),
        trust_domain: unless(of.trust_domain(), "cluster.local"),
        service_account: unless(of.service_account(), "default"),
        waypoint: of.waypoint().map(gateway),
        node: of.node().into(),
        canonical_name: of.canonical_name().into(),
        canonical_revision: of.canonical_revision().into(),
        workload_type: match of.workload_type() {
            WorkloadType::Deployment => wire::WorkloadType::Deployment,
            WorkloadType::CronJob => wire::WorkloadType::Cronjob,
            WorkloadType::Pod => wire::WorkloadType::Pod,
            WorkloadType::Job => wire::WorkloadType::Job,
        }
        .into(),
        workload_name: of.workload_name().into(),
        native_tunnel: of.native_tunnel(),
        authorization_policies: policies
            .filter(|name| !withheld(name))
            .map(PolicyName::to_string)
            .collect(),
        status: match health(of) {
            Health::Healthy => wire::WorkloadStatus::Healthy,
            Health::Unhealthy => wire::WorkloadStatus::Unhealthy,
        }
        .into(),
        cluster_id: of.cluster_id().into(),
        network_gateway: of.network_gateway().map(gateway),
        hostname: of.hostname().into(),
        services: services.collect(),
        application_tunnel: of.application_tunnel().map(application_tunnel),
        locality: locality(of.locality()),
        network_mode: match of.network_mode() {
            NetworkMode::Standard => wire::NetworkMode::Standard,
            NetworkMode::HostNetwork => wire::NetworkMode::HostNetwork,
        }
        .into(),
        extensions: hbone_port(of.hbone_port()).into_iter().collect(),
        capacity: Some(of.capacity()).filter(|capacity| *capacity != 1),
    }
}

/// The wire has one health for all services: unhealthy, unless some service would use it.
fn health(of: &Workload) -> Health {
    let mut services = of.services().iter();
    let all_unhealthy = services.all(|membership| of.health_in(membership) == Health::Unhealthy);
    match of.services() {
        [] => of.health(),
        _ if all_unhealthy => Health::Unhealthy,
        _ => Health::Healthy,
    }
}

/// Istio knows one port; another goes along as an extension, which those who do not know it ignore.
fn hbone_port(port: u16) -> Option<wire::Extension> {
    if port == HBONE_PORT {
        return None;
    }
    let value = u32::from(port).encode_to_vec().into();
    let type_url = type_url::UINT32_VALUE.into();
    Some(wire::Extension {
        name: type_url::HBONE_PORT_EXTENSION.into(),
        config: Some(Any { type_url, value }),
    })
}

fn locality(of: &Locality) -> Option<wire::Locality> {
    let all_empty = *of == Locality::default();
    (!all_empty).then(|| wire::Locality {
        region: of.region().into(),
        zone: of.zone().into(),
        subzone: of.subzone().into(),
    })
}

fn application_tunnel(of: &ApplicationTunnel) -> wire::ApplicationTunnel {
    wire::ApplicationTunnel {
        protocol: match of.protocol() {
            ApplicationProtocol::None => wire::application_tunnel::Protocol::None,
            ApplicationProtocol::Proxy => wire::application_tunnel::Protocol::Proxy,
        }
        .into(),
        port: of.port().map_or(0, u32::from),
    }
}

fn unless(text: &str, default: &str) -> String {
    match text {
        text if text == default => String::new(),
        text => text.into(),
    }
}
