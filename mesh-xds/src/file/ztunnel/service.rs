use std::net::IpAddr;
use std::sync::Arc;

use mesh_authz::Identity;

use super::workload::health;
use super::{gateway, pair, ports};
use crate::file::cursor::{Cursor, Result};
use crate::model::{
    Health, HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, LocalityScope,
    NetworkAddress, Port, Service, ServiceName, Visibility, WeightedWaypoint,
};

/// What a service says of one of its endpoints.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) workload_uid: Arc<str>,
    pub(crate) ports: Vec<Port>,
    pub(crate) health: Option<Health>,
}

pub(super) fn read(at: &Cursor<'_>) -> Result<(Service, Vec<Endpoint>)> {
    let mut fields = at.fields()?;
    let name = fields.need("name")?.nonempty()?;
    let namespace = fields.need("namespace")?.nonempty()?;
    let hostname = fields.need("hostname")?.nonempty()?;
    let mut addresses = fields.list("vips", |at| {
        let (network, ip) = pair(at, "<network>/<address>")?;
        let ip: IpAddr = ip
            .parse()
            .map_err(|_| at.invalid(format_args!("expected an IP address, found {ip:?}")))?;
        Ok(NetworkAddress::new(network, ip))
    })?;
    addresses.extend(fields.list("cidrVips", |at| {
        let mut fields = at.fields()?;
        let network = fields.text("network")?;
        let range = fields.need("cidr")?.parse("a CIDR such as 10.0.0.0/8")?;
        fields.finish()?;
        Ok(NetworkAddress::cidr(network, range))
    })?);
    let mut service = Service::new(ServiceName::new(namespace, hostname))
        .with_object_name(name)
        .with_addresses(addresses)
        .with_ports(fields.map("ports", ports)?.unwrap_or_default())
        .with_subject_alt_names(fields.list("subjectAltNames", |at| {
            Identity::parse(at.str()?).map_err(|error| at.invalid(error))
        })?)
        .with_weighted_waypoints(fields.list("weightedWaypoints", weighted_waypoint)?);
    let endpoints = fields.map("endpoints", endpoints)?.unwrap_or_default();
    if let Some(waypoint) = fields.map("waypoint", gateway)? {
        service = service.with_waypoint(waypoint);
    }
    if let Some(load_balancing) = fields.map("loadBalancer", load_balancing)? {
        service = service.with_load_balancing(load_balancing);
    }
    if let Some(families) = fields.map("ipFamilies", |at| {
        at.one_of(&[
            ("Dual", IpFamilies::Dual),
            ("IPv4", IpFamilies::Ipv4Only),
            ("IPv6", IpFamilies::Ipv6Only),
        ])
    })? {
        service = service.with_ip_families(families);
    }
    if let Some(canonical) = fields.map("canonical", Cursor::bool)? {
        service = service.with_canonical(canonical);
    }
    if let Some(visibility) = fields.map("visibility", |at| {
        at.one_of(&[
            ("Public", Visibility::Public),
            ("Namespace", Visibility::Namespace),
        ])
    })? {
        service = service.with_visibility(visibility);
    }
    fields.finish()?;
    Ok((service, endpoints))
}

fn weighted_waypoint(at: &Cursor<'_>) -> Result<WeightedWaypoint> {
    let mut fields = at.fields()?;
    let destination = gateway(&fields.need("destination")?)?;
    let weight = fields.need("weight")?.u32()?;
    fields.finish()?;
    Ok(WeightedWaypoint::new(destination, weight))
}

fn load_balancing(at: &Cursor<'_>) -> Result<LoadBalancing> {
    let mut fields = at.fields()?;
    let scopes = fields.list("routingPreferences", |at| {
        at.one_of(&[
            ("Region", LocalityScope::Region),
            ("Zone", LocalityScope::Zone),
            ("Subzone", LocalityScope::Subzone),
            ("Node", LocalityScope::Node),
            ("Cluster", LocalityScope::Cluster),
            ("Network", LocalityScope::Network),
        ])
    })?;
    let mode = fields.map("mode", |at| {
        at.one_of(&[
            ("Standard", LoadBalancingMode::Standard),
            ("Strict", LoadBalancingMode::Strict),
            ("Failover", LoadBalancingMode::Failover),
            ("Passthrough", LoadBalancingMode::Passthrough),
        ])
    })?;
    let health_policy = fields.map("healthPolicy", |at| {
        at.one_of(&[
            ("OnlyHealthy", HealthPolicy::OnlyHealthy),
            ("AllowAll", HealthPolicy::AllowAll),
        ])
    })?;
    fields.finish()?;
    Ok(LoadBalancing::new()
        .with_routing_preference(scopes)
        .with_mode(mode.unwrap_or_default())
        .with_health_policy(health_policy.unwrap_or_default()))
}

fn endpoints(at: &Cursor<'_>) -> Result<Vec<Endpoint>> {
    let mut endpoints = Vec::new();
    for (_, value) in at.entries()? {
        let mut fields = value.fields()?;
        endpoints.push(Endpoint {
            workload_uid: fields.need("workloadUid")?.nonempty()?,
            ports: fields.map("port", ports)?.unwrap_or_default(),
            health: fields.map("status", health)?,
        });
        fields.finish()?;
    }
    Ok(endpoints)
}
