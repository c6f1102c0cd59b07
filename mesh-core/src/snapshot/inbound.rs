//! What a tunnel asks of a workload of this process: whether it may, which port, which service that is.

use std::net::IpAddr;
use std::sync::Arc;

use super::Snapshot;
use super::record::{ServiceRecord, WorkloadRecord};
use super::route::Authority;

/// A tunnel that asks for what this workload has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inbound {
    port: u16,
    application_tunnel: Option<u16>,
}

impl Inbound {
    /// The application's port that policies judge.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port to connect to: of the application's own tunnel when it has one on a port.
    pub fn connect_port(&self) -> u16 {
        self.application_tunnel.unwrap_or(self.port)
    }
}

/// Why a tunnel is refused before policies are asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InboundRefusal {
    /// The tunnel asks for an address that is not this workload's (HTTP 400).
    #[error("ip mismatch: {own} != {asked}")]
    IpMismatch {
        /// The address that the tunnel came to.
        own: IpAddr,
        /// The address that it asks for.
        asked: IpAddr,
    },
    /// The tunnel asks for a service's name and port of which this workload has no port (HTTP 503).
    #[error("no port for {authority}")]
    NoPort {
        /// What it asks for.
        authority: Authority,
    },
}

impl Snapshot {
    /// Checks that a tunnel which came to `own_ip` asks for something of the workload `own`, and finds
    /// the port (ztunnel.md 5.2 and 5.3).
    ///
    /// Of an address the tunnel may ask for this workload's own, for any when the application has a
    /// tunnel of its own, and for those of services and workloads whose waypoint it is.
    ///
    /// # Errors
    ///
    /// [`InboundRefusal`] says what was asked for and is not this workload's.
    pub fn inbound(
        &self,
        own: &WorkloadRecord,
        own_ip: IpAddr,
        authority: &Authority,
    ) -> Result<Inbound, InboundRefusal> {
        let port = match authority {
            Authority::Addr(addr) => {
                let asked = addr.ip().to_canonical();
                let own_ip = own_ip.to_canonical();
                if !(asked == own_ip
                    || own.addresses().contains(&asked)
                    || own.application_tunnel().is_some()
                    || self.is_waypoint_of(own, asked))
                {
                    return Err(InboundRefusal::IpMismatch { own: own_ip, asked });
                }
                addr.port()
            }
            Authority::Host(host, port) => {
                self.port_of(own, host, *port)
                    .ok_or_else(|| InboundRefusal::NoPort {
                        authority: authority.clone(),
                    })?
            }
        };
        Ok(Inbound {
            port,
            application_tunnel: own.application_tunnel_port(),
        })
    }

    /// The service that a connection to this workload was most likely meant for (ztunnel.md 5.7): what
    /// the authority or the `forwarded` header names, else the first of its services that has `port`
    /// as a target.
    pub fn service_of_inbound(
        &self,
        own: &WorkloadRecord,
        port: u16,
        authority: Option<&Authority>,
        forwarded: Option<&str>,
    ) -> Option<&Arc<ServiceRecord>> {
        if let Some(Authority::Host(host, _)) = authority {
            let service = self.service_with_hostname(host, own.namespace())?;
            return own.membership(service.name()).map(|_| service);
        }
        let named = forwarded.and_then(|host| {
            let mut memberships = own.memberships().iter();
            let membership = memberships.find(|own| own.service().hostname() == host)?;
            self.service(membership.service())
        });
        if named.is_some() {
            return named;
        }
        let mut memberships = own.memberships().iter();
        memberships.find_map(|membership| {
            let service = self.service(membership.service())?;
            let own_target = membership.ports().iter().any(|(_, target)| *target == port);
            let target = || {
                let mut ports = service.ports().iter();
                ports.any(|service_port| {
                    service_port.target_port() == Some(port)
                        && membership
                            .target_port(service_port.service_port())
                            .is_none()
                })
            };
            (own_target || target()).then_some(service)
        })
    }

    fn is_waypoint_of(&self, own: &WorkloadRecord, asked: IpAddr) -> bool {
        let network = own.network();
        let workload = self
            .workload_at(network, asked)
            .and_then(|workload| workload.waypoint());
        if workload.is_some_and(|waypoint| self.is_gateway(own, waypoint)) {
            return true;
        }
        let services = self.tables.virtual_addresses.get(network, &asked);
        services.is_some_and(|services| {
            services.iter().any(|service| {
                let weighted = service
                    .weighted_waypoints()
                    .iter()
                    .map(|(waypoint, _)| waypoint);
                let mut waypoints = service.waypoint().into_iter().chain(weighted);
                waypoints.any(|waypoint| self.is_gateway(own, waypoint))
            })
        })
    }

    fn port_of(&self, own: &WorkloadRecord, host: &str, port: u16) -> Option<u16> {
        let service = self.service_with_hostname(host, own.namespace())?;
        let mapped = own
            .membership(service.name())
            .and_then(|own| own.target_port(port));
        mapped.or_else(|| service.port(port)?.target_port())
    }
}
