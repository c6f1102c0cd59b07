//! Waypoints in front of services and workloads, and gateways to other networks.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Assembled, World};
use crate::manifest::gateway::Gateway;
use crate::manifest::meta::{Labels, Meta};
use crate::model::{GatewayAddress, GatewayDestination, ServiceName, WaypointFor, Workload};

/// What a waypoint would stand in front of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Traffic {
    Service,
    Workload,
}

/// The class of Gateways that stand for gateways of other networks.
const REMOTE_CLASS: &str = "istio-remote";

const USE_WAYPOINT: &str = "istio.io/use-waypoint";

/// The port at which every waypoint takes HBONE unless its Gateway says otherwise.
const HBONE_PORT: u16 = 15008;

impl World<'_> {
    /// The waypoint that an object uses: as its own label says, else its namespace's.
    ///
    /// One that does not exist is used all the same, at the Service that would be made for it: a
    /// caller that cannot reach it fails, where one that never heard of it would go around it and
    /// around its policies. istiod leaves it out.
    ///
    /// <https://istio.io/latest/docs/ambient/usage/waypoint/>
    pub(super) fn waypoint(&self, meta: &Meta, traffic: Traffic) -> Option<GatewayAddress> {
        if is_gateway(meta) {
            return None;
        }
        let (namespace, name) = match used(&meta.labels, &meta.namespace) {
            Some(own) => own,
            None => used(self.namespaces.get(&meta.namespace)?, &meta.namespace)?,
        };
        if name == "none" {
            return None;
        }
        let Some((_, gateway)) = self.gateways.get(&(namespace, name)) else {
            let service = ServiceName::new(namespace, self.hostname(namespace, name));
            let destination = GatewayDestination::Hostname(service);
            return Some(GatewayAddress::new(destination, HBONE_PORT));
        };
        let listener = gateway.hbone()?;
        let serves = match gateway.waypoint_for {
            WaypointFor::All => true,
            WaypointFor::Service => traffic == Traffic::Service,
            WaypointFor::Workload => traffic == Traffic::Workload,
            WaypointFor::None => false,
        };
        if *gateway.class == *REMOTE_CLASS
            || !serves
            || !gateway.allows(listener, &meta.namespace, &self.namespaces)
        {
            return None;
        }
        Some(self.address(gateway, listener.port))
    }

    /// Names the labels that ask for a waypoint which does not exist.
    pub(super) fn name_missing_waypoints(&self, made: &mut Assembled) {
        let of_objects = (self.services.iter().map(|(at, it)| (*at, &it.meta)))
            .chain(self.service_entries.iter().map(|(at, it)| (*at, &it.meta)))
            .chain(self.pods.iter().map(|(at, it)| (*at, &it.meta)))
            .chain(self.workload_entries.iter().map(|(at, it)| (*at, &it.meta)))
            .filter(|(_, meta)| !is_gateway(meta))
            .map(|(at, meta)| (at, &meta.labels, &*meta.namespace));
        let of_namespaces = self
            .namespace_objects
            .iter()
            .map(|(at, meta)| (*at, &meta.labels, &*meta.name));
        for (at, labels, namespace) in of_objects.chain(of_namespaces) {
            let Some((namespace, name)) = used(labels, namespace) else {
                continue;
            };
            if name != "none" && !self.gateways.contains_key(&(namespace, name)) {
                let message = format!(
                    "there is no Gateway {namespace}/{name}; until there is, what should go through \
                     it is refused"
                );
                made.dangling
                    .push((at, format!("metadata.labels[{USE_WAYPOINT}]"), message));
            }
        }
    }

    /// Where a waypoint is: as its status says, else at the Service that is made for it.
    fn address(&self, gateway: &Gateway, port: u16) -> GatewayAddress {
        let namespace = &gateway.meta.namespace;
        let hostname = |host: Arc<str>| {
            GatewayDestination::Hostname(ServiceName::new(Arc::clone(namespace), host))
        };
        let destination = match gateway.addresses.first() {
            None => hostname(self.hostname(namespace, &gateway.meta.name)),
            Some((_, value)) => match value.parse() {
                Ok(ip) => GatewayDestination::Address {
                    network: Arc::clone(&self.network),
                    ip,
                },
                Err(_) => hostname(Arc::clone(value)),
            },
        };
        GatewayAddress::new(destination, port)
    }

    /// Makes a workload for each address of each gateway to another network, and says which gateway
    /// leads to which network: the first by namespace and name.
    pub(super) fn make_network_gateways(
        &self,
        made: &mut Assembled,
    ) -> BTreeMap<Arc<str>, GatewayAddress> {
        let mut by_network = BTreeMap::new();
        for (at, gateway) in self.gateways.values() {
            let network = gateway.meta.labels.get("topology.istio.io/network");
            let (Some(network), Some(listener)) = (network, gateway.hbone()) else {
                continue;
            };
            if *gateway.class != *REMOTE_CLASS {
                continue;
            }
            let account = gateway
                .meta
                .annotation("gateway.istio.io/service-account")
                .map_or_else(
                    || format!("{}-{}", gateway.meta.name, gateway.class),
                    Into::into,
                );
            for (_, value) in &gateway.addresses {
                let port = listener.port;
                let uid: Arc<str> = format!("NetworkGateway/{network}/{value}/{port}").into();
                let ip: Option<IpAddr> = value.parse().ok();
                let mut workload =
                    Workload::new(Arc::clone(&uid), Arc::clone(&gateway.meta.namespace), uid)
                        .with_network(Arc::clone(network))
                        .with_service_account(account.as_str())
                        .with_trust_domain(self.settings.trust_domain())
                        .with_cluster_id(self.settings.cluster_id());
                let destination = match ip {
                    Some(ip) => {
                        workload = workload.with_addresses(vec![ip]);
                        GatewayDestination::Address {
                            network: Arc::clone(network),
                            ip,
                        }
                    }
                    None => {
                        workload = workload.with_hostname(Arc::clone(value));
                        GatewayDestination::Hostname(ServiceName::new(
                            Arc::clone(&gateway.meta.namespace),
                            Arc::clone(value),
                        ))
                    }
                };
                by_network
                    .entry(Arc::clone(network))
                    .or_insert_with(|| GatewayAddress::new(destination, port));
                made.resources.push((*at, workload.into()));
            }
        }
        by_network
    }
}

/// Namespace and name of the waypoint that labels name, of an object in the given namespace or of that
/// namespace.
fn used<'l>(labels: &'l Labels, namespace: &'l str) -> Option<(&'l str, &'l str)> {
    let name = labels.get(USE_WAYPOINT)?;
    let namespace = labels
        .get("istio.io/use-waypoint-namespace")
        .map_or(namespace, |namespace| namespace);
    Some((namespace, name))
}

/// Whether the object is part of a gateway or waypoint itself, so that none stands in front of it.
pub(super) fn is_gateway(meta: &Meta) -> bool {
    meta.label("gateway.istio.io/managed").is_some()
        || meta
            .label("gateway.networking.k8s.io/gateway-name")
            .is_some()
}
