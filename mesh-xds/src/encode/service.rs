use std::net::IpAddr;

use bytes::Bytes;

use crate::model::{
    AppProtocol, GatewayAddress, GatewayDestination, HealthPolicy, IpFamilies, LoadBalancing,
    LoadBalancingMode, LocalityScope, NetworkAddress, Port, Service, Visibility,
};
use crate::proto::istio::workload as wire;

pub(super) fn service(of: &Service) -> wire::Service {
    let sans = of.subject_alt_names().iter();
    let weighted = of.weighted_waypoints().iter();
    wire::Service {
        name: of.object_name().into(),
        namespace: of.namespace().into(),
        hostname: of.hostname().into(),
        addresses: of.addresses().iter().map(network_address).collect(),
        ports: ports(of.ports()),
        subject_alt_names: sans.map(ToString::to_string).collect(),
        waypoint: of.waypoint().map(gateway),
        load_balancing: load_balancing(of.load_balancing()),
        ip_families: match of.ip_families() {
            IpFamilies::Automatic => wire::IpFamilies::Automatic,
            IpFamilies::Ipv4Only => wire::IpFamilies::Ipv4Only,
            IpFamilies::Ipv6Only => wire::IpFamilies::Ipv6Only,
            IpFamilies::Dual => wire::IpFamilies::Dual,
        }
        .into(),
        canonical: of.canonical(),
        weighted_waypoints: weighted
            .map(|one| wire::WeightedWaypoint {
                destination: Some(gateway(one.gateway())),
                weight: one.weight(),
            })
            .collect(),
        visibility: match of.visibility() {
            Visibility::Public => wire::service::Visibility::Public,
            Visibility::Namespace => wire::service::Visibility::Namespace,
        }
        .into(),
        ..wire::Service::default()
    }
}

pub(super) fn ports(of: &[Port]) -> Vec<wire::Port> {
    let port = |of: &Port| wire::Port {
        service_port: of.service_port().into(),
        target_port: of.target_port().map_or(0, u32::from),
        app_protocol: match of.app_protocol() {
            AppProtocol::Unknown => wire::AppProtocol::Unknown,
            AppProtocol::Http11 => wire::AppProtocol::Http11,
            AppProtocol::Http2 => wire::AppProtocol::Http2,
            AppProtocol::Grpc => wire::AppProtocol::Grpc,
            AppProtocol::Tcp => wire::AppProtocol::Tcp,
            AppProtocol::Tls => wire::AppProtocol::Tls,
        }
        .into(),
    };
    of.iter().map(port).collect()
}

pub(super) fn gateway(of: &GatewayAddress) -> wire::GatewayAddress {
    use wire::gateway_address::Destination;
    let destination = match of.destination() {
        GatewayDestination::Hostname(name) => Destination::Hostname(wire::NamespacedHostname {
            namespace: name.namespace().into(),
            hostname: name.hostname().into(),
        }),
        GatewayDestination::Address { network, ip } => Destination::Address(wire::NetworkAddress {
            network: network.to_string(),
            address: octets(*ip),
            length: None,
        }),
    };
    wire::GatewayAddress {
        hbone_mtls_port: of.hbone_mtls_port().into(),
        destination: Some(destination),
    }
}

fn network_address(of: &NetworkAddress) -> wire::NetworkAddress {
    let range = of.range();
    wire::NetworkAddress {
        network: of.network().into(),
        address: octets(range.addr()),
        length: of.ip().is_none().then(|| range.prefix_len().into()),
    }
}

fn load_balancing(of: &LoadBalancing) -> Option<wire::LoadBalancing> {
    use wire::load_balancing as kinds;
    let scope = |scope: &LocalityScope| match scope {
        LocalityScope::Unspecified => kinds::Scope::UnspecifiedScope,
        LocalityScope::Region => kinds::Scope::Region,
        LocalityScope::Zone => kinds::Scope::Zone,
        LocalityScope::Subzone => kinds::Scope::Subzone,
        LocalityScope::Node => kinds::Scope::Node,
        LocalityScope::Cluster => kinds::Scope::Cluster,
        LocalityScope::Network => kinds::Scope::Network,
    };
    let is_default = *of == LoadBalancing::default();
    let preference = of.routing_preference().iter();
    (!is_default).then(|| wire::LoadBalancing {
        routing_preference: preference.map(|one| scope(one).into()).collect(),
        mode: match of.mode() {
            LoadBalancingMode::Standard => kinds::Mode::UnspecifiedMode,
            LoadBalancingMode::Strict => kinds::Mode::Strict,
            LoadBalancingMode::Failover => kinds::Mode::Failover,
            LoadBalancingMode::Passthrough => kinds::Mode::Passthrough,
        }
        .into(),
        health_policy: match of.health_policy() {
            HealthPolicy::OnlyHealthy => kinds::HealthPolicy::OnlyHealthy,
            HealthPolicy::AllowAll => kinds::HealthPolicy::AllowAll,
        }
        .into(),
    })
}

pub(super) fn octets(ip: IpAddr) -> Bytes {
    match ip {
        IpAddr::V4(ip) => Bytes::copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => Bytes::copy_from_slice(&ip.octets()),
    }
}
