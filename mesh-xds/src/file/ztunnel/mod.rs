//! The local configuration of istio/ztunnel: `workloads`, `services`, `policies`, as YAML or JSON.
//!
//! Keys are ztunnel's, unknown ones are refused; a workload has `hbonePort` beside them.

mod policy;
mod service;
mod workload;

use std::net::IpAddr;
use std::sync::Arc;

use super::cursor::{Cursor, Result};
use super::settings::Settings;
use crate::model::{
    AttachedPolicy, GatewayAddress, GatewayDestination, Membership, Port, Service, ServiceName,
    Workload,
};

pub(crate) use service::Endpoint;

/// An object of such a file.
#[derive(Debug, Clone)]
pub(crate) enum Object {
    Workload(Box<Workload>),
    Service(Box<Service>, Vec<Endpoint>),
    Policy(AttachedPolicy),
}

/// The keys of which such a document has some.
pub(crate) const KEYS: [&str; 3] = ["workloads", "services", "policies"];

/// One object of a document, before it is read.
pub(crate) struct Item<'a> {
    kind: Kind,
    pub(crate) at: Cursor<'a>,
}

#[derive(Clone, Copy)]
enum Kind {
    Workload,
    Service,
    Policy,
}

/// The objects of a document. Fails when the document itself is not of this form.
pub(crate) fn items<'a>(document: &Cursor<'a>) -> Result<Vec<Item<'a>>> {
    let mut fields = document.fields()?;
    let mut items = Vec::new();
    for (key, kind) in [
        (KEYS[0], Kind::Workload),
        (KEYS[1], Kind::Service),
        (KEYS[2], Kind::Policy),
    ] {
        items.extend(fields.list(key, |at| {
            Ok(Item {
                kind,
                at: at.clone(),
            })
        })?);
    }
    fields.finish()?;
    Ok(items)
}

impl Item<'_> {
    /// The name under which the last good version of the object is kept.
    pub(crate) fn key(&self) -> Option<String> {
        let mut fields = self.at.fields().ok()?;
        let mut text = |name| Some(fields.get(name)?.str().ok()?.to_owned());
        Some(match self.kind {
            Kind::Workload => format!("workload {}", text("uid")?),
            Kind::Service => format!("service {}/{}", text("namespace")?, text("hostname")?),
            Kind::Policy => format!("policy {}/{}", text("namespace")?, text("name")?),
        })
    }

    pub(crate) fn read(&self, settings: &Settings) -> Result<Object> {
        Ok(match self.kind {
            Kind::Workload => Object::Workload(Box::new(workload::read(&self.at, settings)?)),
            Kind::Service => {
                let (service, endpoints) = service::read(&self.at)?;
                Object::Service(Box::new(service), endpoints)
            }
            Kind::Policy => Object::Policy(policy::read(&self.at)?),
        })
    }
}

/// Adds what a service says of an endpoint to the workload it names.
pub(crate) fn join(workload: Workload, service: &ServiceName, endpoint: &Endpoint) -> Workload {
    let mut services = workload.services().to_vec();
    services.retain(|membership| membership.service() != service);
    let mut membership = Membership::new(service.clone()).with_ports(endpoint.ports.clone());
    if let Some(health) = endpoint.health {
        membership = membership.with_health(health);
    }
    services.push(membership);
    services.sort_by(|a, b| a.service().cmp(b.service()));
    workload.with_services(services)
}

/// Splits `<first>/<second>`, of which the first may be empty.
fn pair(at: &Cursor<'_>, what: &str) -> Result<(Arc<str>, Arc<str>)> {
    let text = at.str()?;
    match text.split_once('/') {
        Some((first, second)) if !second.is_empty() => Ok((first.into(), second.into())),
        _ => Err(at.invalid(format_args!("expected {what}, found {text:?}"))),
    }
}

fn service_name(at: &Cursor<'_>, text: &str) -> Result<ServiceName> {
    match text.split_once('/') {
        Some((namespace, hostname)) if !namespace.is_empty() && !hostname.is_empty() => {
            Ok(ServiceName::new(namespace, hostname))
        }
        _ => Err(at.invalid(format_args!(
            "expected <namespace>/<hostname>, found {text:?}"
        ))),
    }
}

/// `{destination: "<network>/<ip>" | "<namespace>/<hostname>", hboneMtlsPort}`.
fn gateway(at: &Cursor<'_>) -> Result<GatewayAddress> {
    let mut fields = at.fields()?;
    let destination = fields.need("destination")?;
    let (first, second) = pair(
        &destination,
        "<network>/<address> or <namespace>/<hostname>",
    )?;
    let target = match second.parse::<IpAddr>() {
        Ok(ip) => GatewayDestination::Address { network: first, ip },
        Err(_) => GatewayDestination::Hostname(service_name(&destination, destination.str()?)?),
    };
    let port = fields.need("hboneMtlsPort")?.port_or_zero()?;
    fields.finish()?;
    Ok(GatewayAddress::new(target, port))
}

/// A map of service ports to target ports.
fn ports(at: &Cursor<'_>) -> Result<Vec<Port>> {
    let mut ports = Vec::new();
    for (key, value) in at.entries()? {
        let port = match key.parse() {
            Ok(0) | Err(_) => {
                return Err(value.invalid(format_args!(
                    "expected a port from 1 to 65535 as the key, found {key:?}"
                )));
            }
            Ok(port) => Port::new(port),
        };
        ports.push(match value.port_or_zero()? {
            // As on the wire: every workload says its own.
            0 => port,
            target => port.with_target_port(target),
        });
    }
    ports.sort_by_key(Port::service_port);
    Ok(ports)
}
