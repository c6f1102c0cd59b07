//! From a destination to a way there: the decision table of ztunnel (ztunnel.md 4.2), first row that applies.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_authz::Identity;
use mesh_xds::model::{
    GatewayAddress, GatewayDestination, IpFamilies, LoadBalancingMode, ServiceName, TunnelProtocol,
};

use super::Snapshot;
use super::endpoints::{Endpoint, Wanted, allows, below};
use super::record::{ServiceRecord, WorkloadRecord};
use super::route::{
    Authority, EndpointId, Hop, Lookup, Refusal, Resolution, Route, Source, Target, Then, Tunnelled,
};

impl Snapshot {
    /// Decides how a workload connects to a destination, choosing among a service's endpoints.
    ///
    /// Endpoints in `exclude` are chosen only where there is no other, so that a retry goes
    /// elsewhere. `rng` gives uniform 64-bit numbers; it is asked at most twice.
    pub fn resolve(
        &self,
        source: &Source,
        target: Target<'_>,
        exclude: &[EndpointId],
        rng: &mut impl FnMut() -> u64,
    ) -> Resolution {
        let excluded = exclude.iter().filter_map(|id| self.workload(id.uid()));
        let mut resolver = Resolver {
            snapshot: self,
            source,
            exclude: excluded.cloned().collect(),
            rng,
        };
        match resolver.resolve(target) {
            Ok(route) => Resolution::Found(route),
            Err(Dead::Missing(name)) => Resolution::Missing(name),
            Err(Dead::Refused(refusal)) => Resolution::Refused(refusal),
            Err(Dead::Unknown) => Resolution::Unknown,
        }
    }

    /// Whether a workload is (part of) this waypoint.
    pub(super) fn is_gateway(&self, workload: &WorkloadRecord, gateway: &GatewayAddress) -> bool {
        match gateway.destination() {
            GatewayDestination::Hostname(name) => {
                workload.membership(name).is_some()
                    || workload
                        .hostname()
                        .is_some_and(|own| **own == *name.hostname())
                        && **workload.namespace() == *name.namespace()
            }
            GatewayDestination::Address { network, ip } => {
                let ip = ip.to_canonical();
                let own = **workload.network() == **network && workload.addresses().contains(&ip);
                own || self
                    .gateway_service(network, ip)
                    .is_some_and(|service| workload.membership(service.name()).is_some())
            }
            _ => false,
        }
    }

    /// The service with a gateway's address. Gateways serve whoever may not see them, too.
    fn gateway_service(&self, network: &str, ip: IpAddr) -> Option<&Arc<ServiceRecord>> {
        let services = self.tables.virtual_addresses.get(network, &ip)?;
        services.first()
    }
}

struct Resolver<'a> {
    snapshot: &'a Snapshot,
    source: &'a Source,
    exclude: Vec<Arc<WorkloadRecord>>,
    rng: &'a mut dyn FnMut() -> u64,
}

/// Why there is no route.
enum Dead {
    Missing(GatewayDestination),
    Refused(Refusal),
    Unknown,
}

impl From<Refusal> for Dead {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// A destination as it was asked for.
#[derive(Clone, Copy)]
struct Dialled<'a> {
    ip: Option<IpAddr>,
    name: Option<&'a str>,
    port: u16,
}

impl Resolver<'_> {
    fn resolve(&mut self, target: Target<'_>) -> Result<Route, Dead> {
        let dialled = match target {
            Target::Addr(addr) => Dialled {
                ip: Some(addr.ip().to_canonical()),
                name: None,
                port: addr.port(),
            },
            Target::Host { name, port } => Dialled {
                ip: literal(name),
                name: Some(name),
                port,
            },
        };
        let (snapshot, own) = (self.snapshot, &self.source.workload);
        let (namespace, domain) = (own.namespace(), self.source.cluster_domain());
        if let Some(ip) = dialled.ip {
            if let Some(service) = snapshot.service_at(own.network(), ip, namespace) {
                return self.reach_service(service, dialled);
            }
            let workload = snapshot
                .workload_at(own.network(), ip)
                .ok_or(Dead::Unknown)?;
            return self.reach_workload(workload, dialled);
        }
        let name = dialled.name.ok_or(Dead::Unknown)?;
        if let Some(service) = snapshot.service_by_name(name, namespace, domain) {
            return self.reach_service(service, dialled);
        }
        let workload = snapshot.workload_by_name(name, namespace, domain);
        self.reach_workload(workload.ok_or(Dead::Unknown)?, dialled)
    }

    /// Rows 1 and 2 of the table.
    fn reach_service(
        &mut self,
        service: &Arc<ServiceRecord>,
        dialled: Dialled<'_>,
    ) -> Result<Route, Dead> {
        if let Some(waypoint) = self.waypoint_of(service) {
            let authority = self.service_authority(service, dialled);
            let route = self.through(waypoint, authority)?;
            return Ok(Route {
                service: Some(Arc::clone(service)),
                ..route
            });
        }
        if service.load_balancing_mode() == LoadBalancingMode::Passthrough {
            return Ok(passthrough(dialled));
        }
        let (endpoint, port) = self.choose(service, dialled.port, false)?;
        let workload = Arc::clone(&endpoint.workload);
        self.same_network(&workload)?;
        let families = service.ip_families();
        let hop = self.direct(&workload, Some(service), dialled, families, port)?;
        Ok(Route {
            hop,
            workload: Some(workload),
            service: Some(Arc::clone(service)),
            waypoint: false,
        })
    }

    /// Rows 2c and 4.
    fn reach_workload(
        &mut self,
        workload: &Arc<WorkloadRecord>,
        dialled: Dialled<'_>,
    ) -> Result<Route, Dead> {
        self.same_network(workload)?;
        if let Some(waypoint) = workload.waypoint()
            && !self.snapshot.is_gateway(&self.source.workload, waypoint)
        {
            let ip = dialled
                .ip
                .or_else(|| self.pick_ip(workload, None, IpFamilies::Automatic));
            let authority = match (ip, dialled.name) {
                (Some(ip), _) => Authority::Addr(SocketAddr::new(ip, dialled.port)),
                (None, name) => Authority::Host(name.unwrap_or_default().into(), dialled.port),
            };
            return self.through(waypoint, authority);
        }
        let hop = self.direct(workload, None, dialled, IpFamilies::Automatic, dialled.port)?;
        Ok(Route {
            hop,
            workload: Some(Arc::clone(workload)),
            service: None,
            waypoint: false,
        })
    }

    /// Rows 5 and 6.
    fn direct(
        &self,
        workload: &Arc<WorkloadRecord>,
        service: Option<&Arc<ServiceRecord>>,
        dialled: Dialled<'_>,
        families: IpFamilies,
        port: u16,
    ) -> Result<Hop, Dead> {
        let ip = self.pick_ip(workload, dialled.ip, families);
        if workload.protocol() == TunnelProtocol::Hbone {
            let identities = identities(workload, service.map(Arc::as_ref))?;
            if let Some(ip) = ip {
                return Ok(Hop::Hbone(Tunnelled {
                    next_hop: SocketAddr::new(ip, workload.hbone_port()),
                    authority: Authority::Addr(SocketAddr::new(ip, port)),
                    identities,
                }));
            }
            let then = Then::Hbone {
                hbone_port: workload.hbone_port(),
                authority: None,
                identities,
            };
            return look_up(workload, dialled.name, port, then);
        }
        match ip {
            Some(ip) => Ok(Hop::Plain(SocketAddr::new(ip, port))),
            None => look_up(workload, dialled.name, port, Then::Plain),
        }
    }

    /// To a waypoint, asking it for `authority`.
    fn through(&mut self, waypoint: &GatewayAddress, authority: Authority) -> Result<Route, Dead> {
        let snapshot = self.snapshot;
        let asked_port = waypoint.hbone_mtls_port();
        let missing = || Dead::Missing(waypoint.destination().clone());
        let (service, workload, dialled) = match waypoint.destination() {
            GatewayDestination::Hostname(name) => {
                let service = snapshot.service(name);
                (
                    service,
                    snapshot.workload_with_hostname(name.hostname()),
                    None,
                )
            }
            GatewayDestination::Address { network, ip } => {
                let ip = ip.to_canonical();
                let service = snapshot.gateway_service(network, ip);
                (service, snapshot.workload_at(network, ip), Some(ip))
            }
            _ => return Err(missing()),
        };
        let (workload, port) = match (service, workload) {
            (Some(service), _) => {
                let (endpoint, port) = self.choose(service, asked_port, true)?;
                (Arc::clone(&endpoint.workload), port)
            }
            (None, Some(workload)) => (Arc::clone(workload), asked_port),
            (None, None) => return Err(missing()),
        };
        self.same_network(&workload)?;
        let families = service.map_or(IpFamilies::Automatic, |service| service.ip_families());
        let identities = identities(&workload, service.map(Arc::as_ref))?;
        let hop = match self.pick_ip(&workload, dialled, families) {
            Some(ip) => Hop::Hbone(Tunnelled {
                next_hop: SocketAddr::new(ip, port),
                authority,
                identities,
            }),
            None => {
                let then = Then::Hbone {
                    hbone_port: port,
                    authority: Some(authority),
                    identities,
                };
                look_up(&workload, None, port, then)?
            }
        };
        Ok(Route {
            hop,
            workload: Some(workload),
            service: None,
            waypoint: true,
        })
    }

    /// The waypoint of a service, sampled by weight where there are weights.
    fn waypoint_of<'s>(&mut self, service: &'s ServiceRecord) -> Option<&'s GatewayAddress> {
        let weighted = service.weighted_waypoints();
        let total: u64 = weighted.iter().map(|(_, weight)| u64::from(*weight)).sum();
        if total == 0 {
            return service.waypoint();
        }
        let mut offset = below(total, (self.rng)());
        for (waypoint, weight) in weighted {
            let weight = u64::from(*weight);
            if offset < weight {
                return Some(waypoint);
            }
            offset -= weight;
        }
        None
    }

    /// What a service's waypoint is asked for: the virtual address where there is one.
    fn service_authority(&self, service: &ServiceRecord, dialled: Dialled<'_>) -> Authority {
        let ip = dialled.ip.or_else(|| {
            let v4 = self.prefers_v4();
            service.virtual_ip(self.source.workload.network(), &[v4, !v4])
        });
        match (ip, dialled.name) {
            (Some(ip), _) => Authority::Addr(SocketAddr::new(ip, dialled.port)),
            // Of a wildcard, the name that was asked for.
            (None, Some(name)) if service.hostname().starts_with("*.") => {
                Authority::Host(name.into(), dialled.port)
            }
            _ => Authority::Host(service.hostname().into(), dialled.port),
        }
    }

    fn choose(
        &mut self,
        service: &Arc<ServiceRecord>,
        port: u16,
        waypoint: bool,
    ) -> Result<(&Endpoint, u16), Dead> {
        let name = || ServiceName::clone(service.name());
        if service.port(port).is_none() && !waypoint {
            return Err(Refusal::NoSuchPort {
                service: name(),
                port,
            }
            .into());
        }
        let wanted = Wanted {
            service,
            port,
            waypoint,
            source: &self.source.workload.place,
            exclude: &self.exclude,
        };
        let entry = self.snapshot.tables.services.get(service.name());
        let chosen = entry.and_then(|entry| entry.endpoints.choose(&wanted, self.rng));
        chosen
            .and_then(|endpoint| Some((endpoint, endpoint.target_port(service, port)?)))
            .ok_or_else(|| {
                Refusal::NoHealthyUpstream {
                    service: name(),
                    port,
                }
                .into()
            })
    }

    /// Row 3: other networks are reached through gateways and two tunnels.
    fn same_network(&self, workload: &WorkloadRecord) -> Result<(), Dead> {
        if workload.network() == self.source.workload.network() {
            return Ok(());
        }
        Err(Dead::Refused(Refusal::UnsupportedNetwork {
            uid: Arc::clone(workload.uid()),
            network: Arc::clone(workload.network()),
        }))
    }

    /// The address that was asked for when it is the workload's; else one of the family of that, or
    /// of the source.
    fn pick_ip(
        &self,
        workload: &WorkloadRecord,
        dialled: Option<IpAddr>,
        families: IpFamilies,
    ) -> Option<IpAddr> {
        if let Some(ip) = dialled
            && workload.addresses().contains(&ip)
        {
            return Some(ip);
        }
        let v4 = dialled.map_or_else(|| self.prefers_v4(), |ip| ip.is_ipv4());
        let mut allowed = workload
            .addresses()
            .iter()
            .filter(|ip| allows(families, ip.is_ipv4()));
        let first = allowed.clone().next();
        allowed.find(|ip| ip.is_ipv4() == v4).or(first).copied()
    }

    fn prefers_v4(&self) -> bool {
        let addresses = self.source.workload.addresses();
        addresses.first().is_none_or(IpAddr::is_ipv4)
    }
}

/// Who may answer: the workload itself, or what the service vouches for.
fn identities(
    workload: &WorkloadRecord,
    service: Option<&ServiceRecord>,
) -> Result<Vec<Identity>, Dead> {
    let mut identities: Vec<Identity> = workload.identity().cloned().into_iter().collect();
    for other in service.map_or(&[][..], ServiceRecord::subject_alt_names) {
        if !identities.contains(other) {
            identities.push(other.clone());
        }
    }
    if identities.is_empty() {
        let uid = Arc::clone(workload.uid());
        return Err(Dead::Refused(Refusal::NoIdentity { uid }));
    }
    Ok(identities)
}

fn look_up(
    workload: &WorkloadRecord,
    dialled: Option<&str>,
    port: u16,
    then: Then,
) -> Result<Hop, Dead> {
    let uid = || Arc::clone(workload.uid());
    let own = workload
        .hostname()
        .ok_or_else(|| Refusal::NoAddress { uid: uid() })?;
    // The endpoint of a wildcard is whatever was asked for.
    let hostname = match dialled {
        Some(name) if own.starts_with("*.") => name.into(),
        _ => Arc::clone(own),
    };
    if hostname.starts_with("*.") {
        return Err(Dead::Refused(Refusal::NoAddress { uid: uid() }));
    }
    Ok(Hop::Resolve(Lookup {
        hostname,
        port,
        then,
    }))
}

fn passthrough(dialled: Dialled<'_>) -> Route {
    let port = dialled.port;
    let hop = match dialled.ip {
        Some(ip) => Hop::Passthrough(SocketAddr::new(ip, port)),
        None => Hop::Resolve(Lookup {
            hostname: dialled.name.unwrap_or_default().into(),
            port,
            then: Then::Passthrough,
        }),
    };
    Route {
        hop,
        workload: None,
        service: None,
        waypoint: false,
    }
}

/// An address in text, with or without the brackets of a URI.
fn literal(name: &str) -> Option<IpAddr> {
    let bare = name
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(name);
    let ip: IpAddr = bare.parse().ok()?;
    Some(ip.to_canonical())
}
