use std::collections::BTreeMap;

use mesh_authz::policy::PolicyName;
use prost::Message;

use super::field::{Field, Problem};
use super::or_default;
use super::service::{gateway, ports};
use crate::model::{
    ApplicationProtocol, ApplicationTunnel, Health, Locality, Membership, NetworkMode, ServiceName,
    TunnelProtocol, Workload, WorkloadType,
};
use crate::proto::istio::workload as wire;
use crate::proto::type_url;

/// The rules of istio/ztunnel: what is empty or unset has a default, what cannot be meant is refused.
pub(super) fn workload(message: wire::Workload, field: &Field<'_>) -> Result<Workload, Problem> {
    let mut addresses = Vec::with_capacity(message.addresses.len());
    let at = field.at("addresses");
    for (index, bytes) in message.addresses.iter().enumerate() {
        addresses.push(at.index(index).ip(bytes)?);
    }
    let mut policies = Vec::with_capacity(message.authorization_policies.len());
    let at = field.at("authorization_policies");
    for (index, text) in message.authorization_policies.iter().enumerate() {
        let (namespace, name) = at.index(index).pair(text)?;
        policies.push(PolicyName::new(namespace, name));
    }
    let locality = message.locality.unwrap_or_default();
    let mut workload = Workload::new(message.uid, message.namespace, message.name)
        .with_addresses(addresses)
        .with_network(message.network)
        .with_network_mode(network_mode(
            message.network_mode,
            &field.at("network_mode"),
        )?)
        .with_protocol(protocol(
            message.tunnel_protocol,
            &field.at("tunnel_protocol"),
        )?)
        .with_trust_domain(or_default(&message.trust_domain, "cluster.local"))
        .with_service_account(or_default(&message.service_account, "default"))
        .with_hostname(message.hostname)
        .with_node(message.node)
        .with_cluster_id(or_default(&message.cluster_id, "Kubernetes"))
        .with_locality(Locality::new(
            locality.region,
            locality.zone,
            locality.subzone,
        ))
        .with_canonical_name(message.canonical_name)
        .with_canonical_revision(message.canonical_revision)
        .with_workload_type(workload_type(
            message.workload_type,
            &field.at("workload_type"),
        )?)
        .with_workload_name(message.workload_name)
        .with_native_tunnel(message.native_tunnel)
        .with_authorization_policies(policies)
        .with_health(health(message.status, &field.at("status"))?)
        .with_capacity(message.capacity.unwrap_or(1))
        .with_services(memberships(&message.services, &field.at("services"))?);
    if let Some(tunnel) = &message.application_tunnel {
        let tunnel = application_tunnel(tunnel, &field.at("application_tunnel"))?;
        workload = workload.with_application_tunnel(tunnel);
    }
    if let Some(port) = hbone_port(&message.extensions, &field.at("extensions"))? {
        workload = workload.with_hbone_port(port);
    }
    if let Some(address) = message.waypoint {
        workload = workload.with_waypoint(gateway(address, &field.at("waypoint"))?);
    }
    if let Some(address) = message.network_gateway {
        workload = workload.with_network_gateway(gateway(address, &field.at("network_gateway"))?);
    }
    Ok(workload)
}

/// Which Istio does not know: our own control plane says it where several workloads share a machine.
fn hbone_port(of: &[wire::Extension], field: &Field<'_>) -> Result<Option<u16>, Problem> {
    let found = of
        .iter()
        .position(|one| one.name == type_url::HBONE_PORT_EXTENSION);
    let Some(index) = found else {
        return Ok(None);
    };
    let field = field.index(index);
    let field = field.at("config");
    let config = of[index].config.as_ref();
    let config = config.filter(|any| any.type_url == type_url::UINT32_VALUE);
    let port = config.and_then(|any| u32::decode(&*any.value).ok());
    match port.ok_or_else(|| field.missing("a UInt32Value"))? {
        0 => Err(field.wrong(0, "a port, 1 to 65535")),
        port => field.port(port).map(Some),
    }
}

fn memberships(
    services: &BTreeMap<String, wire::PortList>,
    field: &Field<'_>,
) -> Result<Vec<Membership>, Problem> {
    let mut memberships = Vec::with_capacity(services.len());
    for (name, list) in services {
        let field = field.key(name);
        let (namespace, hostname) = name
            .split_once('/')
            .ok_or_else(|| field.wrong("the key has no '/'", "<namespace>/<hostname>"))?;
        let ports = ports(&list.ports, &field.at("ports"))?;
        memberships.push(Membership::new(ServiceName::new(namespace, hostname)).with_ports(ports));
    }
    // The map's order is that of the whole names, in which '-' comes before '/'.
    memberships.sort_by(|a, b| a.service().cmp(b.service()));
    Ok(memberships)
}

fn application_tunnel(
    tunnel: &wire::ApplicationTunnel,
    field: &Field<'_>,
) -> Result<ApplicationTunnel, Problem> {
    let protocol = field.at("protocol");
    let protocol = match protocol.one_of(tunnel.protocol, "NONE (0) or PROXY (1)")? {
        wire::application_tunnel::Protocol::None => ApplicationProtocol::None,
        wire::application_tunnel::Protocol::Proxy => ApplicationProtocol::Proxy,
    };
    let model = ApplicationTunnel::new(protocol);
    Ok(match field.at("port").port(tunnel.port)? {
        0 => model,
        port => model.with_port(port),
    })
}

fn protocol(value: i32, field: &Field<'_>) -> Result<TunnelProtocol, Problem> {
    let expected = "NONE (0) or HBONE (1)";
    match field.one_of(value, expected)? {
        wire::TunnelProtocol::None => Ok(TunnelProtocol::None),
        wire::TunnelProtocol::Hbone => Ok(TunnelProtocol::Hbone),
        wire::TunnelProtocol::LegacyIstioMtls => Err(field.wrong("LEGACY_ISTIO_MTLS", expected)),
    }
}

fn network_mode(value: i32, field: &Field<'_>) -> Result<NetworkMode, Problem> {
    Ok(
        match field.one_of(value, "STANDARD (0) or HOST_NETWORK (1)")? {
            wire::NetworkMode::Standard => NetworkMode::Standard,
            wire::NetworkMode::HostNetwork => NetworkMode::HostNetwork,
        },
    )
}

fn workload_type(value: i32, field: &Field<'_>) -> Result<WorkloadType, Problem> {
    let expected = "DEPLOYMENT (0), CRONJOB (1), POD (2) or JOB (3)";
    Ok(match field.one_of(value, expected)? {
        wire::WorkloadType::Deployment => WorkloadType::Deployment,
        wire::WorkloadType::Cronjob => WorkloadType::CronJob,
        wire::WorkloadType::Pod => WorkloadType::Pod,
        wire::WorkloadType::Job => WorkloadType::Job,
    })
}

fn health(value: i32, field: &Field<'_>) -> Result<Health, Problem> {
    Ok(match field.one_of(value, "HEALTHY (0) or UNHEALTHY (1)")? {
        wire::WorkloadStatus::Healthy => Health::Healthy,
        wire::WorkloadStatus::Unhealthy => Health::Unhealthy,
    })
}
