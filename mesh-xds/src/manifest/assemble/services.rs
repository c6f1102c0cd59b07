//! Services of Kubernetes and of ServiceEntries.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::waypoints::Traffic;
use super::{Assembled, World};
use crate::manifest::core::{Service, TargetPort};
use crate::manifest::entries::{Resolution, ServiceEntry};
use crate::model::{
    self, HealthPolicy, LoadBalancing, LoadBalancingMode, LocalityScope, NetworkAddress, Port,
    ServiceName, Visibility,
};

impl World<'_> {
    pub(super) fn service_name(&self, service: &Service) -> ServiceName {
        let meta = &service.meta;
        let hostname = self.hostname(&meta.namespace, &meta.name);
        ServiceName::new(Arc::clone(&meta.namespace), hostname)
    }

    pub(super) fn make_services(&self, made: &mut Assembled) {
        for (at, service) in &self.services {
            let meta = &service.meta;
            if service.external {
                let message = format!(
                    "ExternalName: the host that Service {}/{} stands for is asked for by its own name",
                    meta.namespace, meta.name
                );
                made.idle.push((*at, "spec.type", message));
                continue;
            }
            let addresses = service.addresses.iter();
            let built = model::Service::new(self.service_name(service))
                .with_object_name(Arc::clone(&meta.name))
                .with_addresses(
                    addresses
                        .map(|ip| NetworkAddress::new(Arc::clone(&self.network), *ip))
                        .collect(),
                )
                .with_ports(
                    service
                        .ports
                        .iter()
                        .map(|port| {
                            let built = Port::new(port.port).with_app_protocol(port.app_protocol);
                            match port.target {
                                TargetPort::Number(target) => built.with_target_port(target),
                                TargetPort::Name(_) => built,
                            }
                        })
                        .collect(),
                )
                .with_load_balancing(service_load_balancing(service))
                .with_ip_families(service.ip_families)
                .with_canonical(true);
            made.resources
                .push((*at, self.behind_waypoint(built, &service.meta).into()));
        }
    }

    fn behind_waypoint(
        &self,
        service: model::Service,
        meta: &crate::manifest::meta::Meta,
    ) -> model::Service {
        match self.waypoint(meta, Traffic::Service) {
            Some(waypoint) => service.with_waypoint(waypoint),
            None => service,
        }
    }

    /// One service for each host. Of several with one host, the oldest owns it, after Kubernetes' own.
    pub(super) fn make_service_entries(&self, made: &mut Assembled) {
        let mut owned: BTreeSet<Arc<str>> = self
            .services
            .iter()
            .filter(|(_, service)| !service.external)
            .map(|(_, service)| self.hostname(&service.meta.namespace, &service.meta.name))
            .collect();
        for (at, entry) in &self.service_entries {
            for host in &entry.hosts {
                let canonical = owned.insert(Arc::clone(host));
                let built = self.entry_service(entry, host).with_canonical(canonical);
                made.resources
                    .push((*at, self.behind_waypoint(built, &entry.meta).into()));
            }
            self.make_inline_endpoints(*at, entry, made);
        }
    }

    fn entry_service(&self, entry: &ServiceEntry, host: &Arc<str>) -> model::Service {
        let meta = &entry.meta;
        let addresses = entry.addresses.iter();
        let passthrough = entry.resolution == Resolution::None;
        let load_balancing = if passthrough {
            LoadBalancing::new()
                .with_mode(LoadBalancingMode::Passthrough)
                .with_health_policy(HealthPolicy::AllowAll)
        } else {
            traffic_distribution(meta.annotation(DISTRIBUTION))
        };
        let name = ServiceName::new(Arc::clone(&meta.namespace), Arc::clone(host));
        let ports = entry.ports.iter().map(|port| {
            Port::new(port.number)
                .with_target_port(port.target)
                .with_app_protocol(port.app_protocol)
        });
        model::Service::new(name)
            .with_object_name(Arc::clone(&meta.name))
            .with_addresses(
                addresses
                    .map(|range| NetworkAddress::cidr(Arc::clone(&self.network), *range))
                    .collect(),
            )
            .with_ports(ports.collect())
            .with_subject_alt_names(entry.subject_alt_names.clone())
            .with_load_balancing(load_balancing)
            .with_visibility(if entry.own_namespace_only {
                Visibility::Namespace
            } else {
                Visibility::Public
            })
    }
}

/// Istio's annotation, which overrides the field of the Service.
const DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

fn service_load_balancing(service: &Service) -> LoadBalancing {
    let built = if service.node_local {
        LoadBalancing::new()
            .with_routing_preference(vec![LocalityScope::Node])
            .with_mode(LoadBalancingMode::Strict)
    } else {
        let annotated = service.meta.annotation(DISTRIBUTION);
        traffic_distribution(annotated.or(service.traffic_distribution.as_deref()))
    };
    if service.publish_not_ready {
        built.with_health_policy(HealthPolicy::AllowAll)
    } else {
        built
    }
}

/// <https://istio.io/latest/docs/reference/config/annotations/#NetworkingTrafficDistribution>
fn traffic_distribution(value: Option<&str>) -> LoadBalancing {
    use LocalityScope::{Network, Node, Region, Subzone, Zone};
    let scopes = match value {
        Some("PreferClose" | "PreferSameZone") => vec![Network, Region, Zone],
        Some("PreferSameNode") => vec![Network, Region, Zone, Subzone, Node],
        Some("PreferSameSubzone") => vec![Network, Region, Zone, Subzone],
        Some("PreferSameRegion") => vec![Network, Region],
        Some("PreferSameNetwork") => vec![Network],
        // A distribution that is not known is a wish that cannot be met, not an error.
        _ => return LoadBalancing::new(),
    };
    LoadBalancing::new()
        .with_routing_preference(scopes)
        .with_mode(LoadBalancingMode::Failover)
}
