use ipnet::IpNet;

use super::field::{Field, Problem};
use crate::model::{
    AppProtocol, GatewayAddress, GatewayDestination, HealthPolicy, IpFamilies, LoadBalancing,
    LoadBalancingMode, LocalityScope, NetworkAddress, Port, Service, ServiceName, Visibility,
    WeightedWaypoint,
};
use crate::proto::istio::workload as wire;

pub(super) fn service(message: wire::Service, field: &Field<'_>) -> Result<Service, Problem> {
    let mut addresses = Vec::with_capacity(message.addresses.len());
    let at = field.at("addresses");
    for (index, address) in message.addresses.iter().enumerate() {
        addresses.push(network_address(address, &at.index(index))?);
    }
    let mut names = Vec::with_capacity(message.subject_alt_names.len());
    let at = field.at("subject_alt_names");
    for (index, name) in message.subject_alt_names.iter().enumerate() {
        let parsed = name.parse();
        names.push(
            parsed.map_err(|error| Problem::new(format_args!("{}: {error}", at.index(index))))?,
        );
    }
    field.at("namespace").is_part(&message.namespace)?;
    field.at("hostname").is_part(&message.hostname)?;
    let name = ServiceName::new(message.namespace, message.hostname);
    let mut service = Service::new(name)
        .with_object_name(message.name)
        .with_addresses(addresses)
        .with_ports(ports(&message.ports, &field.at("ports"))?)
        .with_subject_alt_names(names)
        .with_ip_families(ip_families(message.ip_families, &field.at("ip_families"))?)
        .with_canonical(message.canonical)
        .with_visibility(
            match wire::service::Visibility::try_from(message.visibility) {
                Ok(wire::service::Visibility::Namespace) => Visibility::Namespace,
                // As istio/ztunnel: the one enum of which an unknown value has a meaning.
                Ok(wire::service::Visibility::Public) | Err(_) => Visibility::Public,
            },
        );
    if let Some(balancing) = &message.load_balancing {
        let balancing = load_balancing(balancing, &field.at("load_balancing"))?;
        service = service.with_load_balancing(balancing);
    }
    if let Some(address) = message.waypoint {
        service = service.with_waypoint(gateway(address, &field.at("waypoint"))?);
    }
    let mut weighted = Vec::with_capacity(message.weighted_waypoints.len());
    let at = field.at("weighted_waypoints");
    for (index, one) in message.weighted_waypoints.into_iter().enumerate() {
        let at = at.index(index);
        let at = at.at("destination");
        let address = one.destination.ok_or_else(|| at.missing("a gateway"))?;
        weighted.push(WeightedWaypoint::new(gateway(address, &at)?, one.weight));
    }
    Ok(service.with_weighted_waypoints(weighted))
}

pub(super) fn ports(ports: &[wire::Port], field: &Field<'_>) -> Result<Vec<Port>, Problem> {
    let port = |(index, port): (usize, &wire::Port)| {
        let field = field.index(index);
        let model = Port::new(field.at("service_port").port(port.service_port)?)
            .with_app_protocol(app_protocol(port.app_protocol, &field.at("app_protocol"))?);
        Ok(match field.at("target_port").port(port.target_port)? {
            // A named port: each workload says its own.
            0 => model,
            target => model.with_target_port(target),
        })
    };
    ports.iter().enumerate().map(port).collect()
}

pub(super) fn gateway(
    message: wire::GatewayAddress,
    field: &Field<'_>,
) -> Result<GatewayAddress, Problem> {
    use wire::gateway_address::Destination;
    let destination = match message.destination {
        Some(Destination::Hostname(name)) => {
            GatewayDestination::Hostname(ServiceName::new(name.namespace, name.hostname))
        }
        Some(Destination::Address(address)) => {
            let field = field.at("address");
            GatewayDestination::Address {
                ip: field.at("address").ip(&address.address)?,
                network: address.network.into(),
            }
        }
        None => return Err(field.at("destination").missing("a hostname or an address")),
    };
    let port = field.at("hbone_mtls_port").port(message.hbone_mtls_port)?;
    Ok(GatewayAddress::new(destination, port))
}

fn network_address(
    message: &wire::NetworkAddress,
    field: &Field<'_>,
) -> Result<NetworkAddress, Problem> {
    let ip = field.at("address").ip(&message.address)?;
    let network = message.network.as_str();
    let Some(length) = message.length else {
        return Ok(NetworkAddress::new(network, ip));
    };
    let range = u8::try_from(length)
        .ok()
        .and_then(|length| IpNet::new(ip, length).ok());
    let range = range.ok_or_else(|| {
        let most = if ip.is_ipv4() { 32 } else { 128 };
        field
            .at("length")
            .wrong(length, format_args!("at most {most}"))
    })?;
    Ok(NetworkAddress::cidr(network, range))
}

fn load_balancing(
    message: &wire::LoadBalancing,
    field: &Field<'_>,
) -> Result<LoadBalancing, Problem> {
    use wire::load_balancing as kinds;
    let mut preference = Vec::with_capacity(message.routing_preference.len());
    let at = field.at("routing_preference");
    for (index, scope) in message.routing_preference.iter().enumerate() {
        let expected = "a scope, 0 to 6";
        preference.push(match at.index(index).one_of(*scope, expected)? {
            kinds::Scope::UnspecifiedScope => LocalityScope::Unspecified,
            kinds::Scope::Region => LocalityScope::Region,
            kinds::Scope::Zone => LocalityScope::Zone,
            kinds::Scope::Subzone => LocalityScope::Subzone,
            kinds::Scope::Node => LocalityScope::Node,
            kinds::Scope::Cluster => LocalityScope::Cluster,
            kinds::Scope::Network => LocalityScope::Network,
        });
    }
    let at = field.at("mode");
    let mode = match at.one_of(message.mode, "a mode, 0 to 3")? {
        kinds::Mode::UnspecifiedMode => LoadBalancingMode::Standard,
        kinds::Mode::Strict => LoadBalancingMode::Strict,
        kinds::Mode::Failover => LoadBalancingMode::Failover,
        kinds::Mode::Passthrough => LoadBalancingMode::Passthrough,
    };
    let at = field.at("health_policy");
    let health = match at.one_of(message.health_policy, "ONLY_HEALTHY (0) or ALLOW_ALL (1)")? {
        kinds::HealthPolicy::OnlyHealthy => HealthPolicy::OnlyHealthy,
        kinds::HealthPolicy::AllowAll => HealthPolicy::AllowAll,
    };
    Ok(LoadBalancing::new()
        .with_routing_preference(preference)
        .with_mode(mode)
        .with_health_policy(health))
}

fn ip_families(value: i32, field: &Field<'_>) -> Result<IpFamilies, Problem> {
    let expected = "AUTOMATIC (0), IPV4_ONLY (1), IPV6_ONLY (2) or DUAL (3)";
    Ok(match field.one_of(value, expected)? {
        wire::IpFamilies::Automatic => IpFamilies::Automatic,
        wire::IpFamilies::Ipv4Only => IpFamilies::Ipv4Only,
        wire::IpFamilies::Ipv6Only => IpFamilies::Ipv6Only,
        wire::IpFamilies::Dual => IpFamilies::Dual,
    })
}

fn app_protocol(value: i32, field: &Field<'_>) -> Result<AppProtocol, Problem> {
    Ok(match field.one_of(value, "a protocol, 0 to 5")? {
        wire::AppProtocol::Unknown => AppProtocol::Unknown,
        wire::AppProtocol::Http11 => AppProtocol::Http11,
        wire::AppProtocol::Http2 => AppProtocol::Http2,
        wire::AppProtocol::Grpc => AppProtocol::Grpc,
        wire::AppProtocol::Tcp => AppProtocol::Tcp,
        wire::AppProtocol::Tls => AppProtocol::Tls,
    })
}
