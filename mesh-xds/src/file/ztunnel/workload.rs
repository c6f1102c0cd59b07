use std::sync::Arc;

use mesh_authz::policy::PolicyName;

use super::{gateway, pair, ports, service_name};
use crate::file::cursor::{Cursor, Result};
use crate::file::settings::Settings;
use crate::model::{
    ApplicationProtocol, ApplicationTunnel, Health, Locality, Membership, NetworkMode,
    TunnelProtocol, Workload, WorkloadType,
};

pub(super) fn read(at: &Cursor<'_>, settings: &Settings) -> Result<Workload> {
    let mut fields = at.fields()?;
    let uid = fields.need("uid")?.nonempty()?;
    let name = fields.need("name")?.nonempty()?;
    let namespace = fields.need("namespace")?.nonempty()?;
    fields.need("workloadIps")?;
    let addresses = fields.list("workloadIps", |ip| ip.parse("an IP address"))?;
    // ztunnel has no default here and would make an identity with empty parts; the defaults are those
    // that it has for the same fields over xDS.
    let mut or = |name: &'static str, default: &str| -> Result<Arc<str>> {
        let text = fields.text(name)?;
        Ok(if text.is_empty() {
            default.into()
        } else {
            text
        })
    };
    let mut workload = Workload::new(uid, namespace, name)
        .with_addresses(addresses)
        .with_trust_domain(or("trustDomain", settings.trust_domain())?)
        .with_service_account(or("serviceAccount", "default")?)
        .with_cluster_id(or("clusterId", settings.cluster_id())?)
        .with_network(or("network", settings.network())?)
        .with_workload_name(fields.text("workloadName")?)
        .with_canonical_name(fields.text("canonicalName")?)
        .with_canonical_revision(fields.text("canonicalRevision")?)
        .with_hostname(fields.text("hostname")?)
        .with_node(fields.text("node")?);
    if let Some(protocol) = fields.map("protocol", |at| {
        at.one_of(&[
            ("TCP", TunnelProtocol::None),
            ("HBONE", TunnelProtocol::Hbone),
        ])
    })? {
        workload = workload.with_protocol(protocol);
    }
    if let Some(port) = fields.map("hbonePort", Cursor::port)? {
        workload = workload.with_hbone_port(port);
    }
    if let Some(mode) = fields.map("networkMode", |at| {
        at.one_of(&[
            ("Standard", NetworkMode::Standard),
            ("HostNetwork", NetworkMode::HostNetwork),
        ])
    })? {
        workload = workload.with_network_mode(mode);
    }
    if let Some(kind) = fields.map("workloadType", |at| {
        at.one_of(&[
            ("deployment", WorkloadType::Deployment),
            ("cronjob", WorkloadType::CronJob),
            ("pod", WorkloadType::Pod),
            ("job", WorkloadType::Job),
        ])
    })? {
        workload = workload.with_workload_type(kind);
    }
    if let Some(native) = fields.map("nativeTunnel", Cursor::bool)? {
        workload = workload.with_native_tunnel(native);
    }
    if let Some(tunnel) = fields.map("applicationTunnel", application_tunnel)? {
        workload = workload.with_application_tunnel(tunnel);
    }
    let policies = fields.list("authorizationPolicies", |at| {
        let (namespace, name) = pair(at, "<namespace>/<name>")?;
        Ok(PolicyName::new(namespace, name))
    })?;
    workload = workload.with_authorization_policies(policies);
    if let Some(health) = fields.map("status", health)? {
        workload = workload.with_health(health);
    }
    if let Some(locality) = fields.map("locality", locality)? {
        workload = workload.with_locality(locality);
    }
    if let Some(capacity) = fields.map("capacity", Cursor::u32)? {
        workload = workload.with_capacity(capacity);
    }
    if let Some(waypoint) = fields.map("waypoint", gateway)? {
        workload = workload.with_waypoint(waypoint);
    }
    if let Some(gateway) = fields.map("networkGateway", gateway)? {
        workload = workload.with_network_gateway(gateway);
    }
    if let Some(services) = fields.map("services", memberships)? {
        workload = workload.with_services(services);
    }
    fields.finish()?;
    workload
        .identity()
        .map_err(|error| at.invalid(format_args!("no identity can be made of it: {error}")))?;
    Ok(workload)
}

pub(super) fn health(at: &Cursor<'_>) -> Result<Health> {
    at.one_of(&[
        ("Healthy", Health::Healthy),
        ("Unhealthy", Health::Unhealthy),
    ])
}

fn application_tunnel(at: &Cursor<'_>) -> Result<ApplicationTunnel> {
    let mut fields = at.fields()?;
    let protocol = fields.need("protocol")?.one_of(&[
        ("NONE", ApplicationProtocol::None),
        ("PROXY", ApplicationProtocol::Proxy),
    ])?;
    let tunnel = ApplicationTunnel::new(protocol);
    let tunnel = match fields.map("port", Cursor::port_or_zero)? {
        None | Some(0) => tunnel,
        Some(port) => tunnel.with_port(port),
    };
    fields.finish()?;
    Ok(tunnel)
}

fn locality(at: &Cursor<'_>) -> Result<Locality> {
    let mut fields = at.fields()?;
    let locality = Locality::new(
        fields.text("region")?,
        fields.text("zone")?,
        fields.text("subzone")?,
    );
    fields.finish()?;
    Ok(locality)
}

fn memberships(at: &Cursor<'_>) -> Result<Vec<Membership>> {
    let mut services = Vec::new();
    for (key, value) in at.entries()? {
        services.push(Membership::new(service_name(&value, key)?).with_ports(ports(&value)?));
    }
    services.sort_by(|a, b| a.service().cmp(b.service()));
    Ok(services)
}
