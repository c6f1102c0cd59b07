//! Gateway of the Gateway API.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::meta::{LabelSelector, Labels, Meta};
use crate::file::cursor::{Cursor, Fields, Result};
use crate::model::{self, AllowedNamespaces, ObjectName, WaypointFor};

#[derive(Debug, Clone)]
pub(crate) struct Gateway {
    pub(crate) meta: Meta,
    pub(crate) class: Arc<str>,
    pub(crate) listeners: Vec<Listener>,
    /// Type and value, from `status`, else from `spec`.
    pub(crate) addresses: Vec<(Arc<str>, Arc<str>)>,
    pub(crate) waypoint_for: WaypointFor,
}

#[derive(Debug, Clone)]
pub(crate) struct Listener {
    pub(crate) name: Arc<str>,
    pub(crate) port: u16,
    pub(crate) protocol: Arc<str>,
    pub(crate) hostname: Option<Arc<str>>,
    pub(crate) allowed: Allowed,
}

#[derive(Debug, Clone)]
pub(crate) enum Allowed {
    Same,
    All,
    Selector(LabelSelector),
}

impl Gateway {
    pub(crate) fn read(meta: Meta, document: &Cursor<'_>, fields: &mut Fields<'_>) -> Result<Self> {
        let spec = fields.need("spec")?;
        let mut spec = spec.fields()?;
        let class = spec.need("gatewayClassName")?.nonempty()?;
        let listeners = spec.list("listeners", listener)?;
        let mut addresses = match fields.get("status") {
            Some(status) => status.fields()?.list("addresses", address)?,
            None => Vec::new(),
        };
        if addresses.is_empty() {
            addresses = spec.list("addresses", address)?;
        }
        let waypoint_for = match meta.label("istio.io/waypoint-for") {
            None | Some("service") => WaypointFor::Service,
            Some("workload") => WaypointFor::Workload,
            Some("all") => WaypointFor::All,
            Some("none") => WaypointFor::None,
            Some(other) => {
                return Err(document.invalid_below(
                    "metadata.labels[istio.io/waypoint-for]",
                    format_args!("expected one of service, workload, all, none, found {other:?}"),
                ));
            }
        };
        Ok(Self {
            meta,
            class,
            listeners,
            addresses,
            waypoint_for,
        })
    }

    /// The listener that takes HBONE.
    pub(crate) fn hbone(&self) -> Option<&Listener> {
        self.listeners
            .iter()
            .find(|listener| *listener.protocol == *"HBONE")
    }

    /// Whether workloads and services of the namespace may use a listener.
    pub(crate) fn allows(
        &self,
        listener: &Listener,
        namespace: &str,
        namespaces: &BTreeMap<Arc<str>, Labels>,
    ) -> bool {
        match &listener.allowed {
            Allowed::Same => *self.meta.namespace == *namespace,
            Allowed::All => true,
            Allowed::Selector(selector) => namespaces
                .get(namespace)
                .is_some_and(|labels| selector.matches(labels)),
        }
    }

    pub(crate) fn to_model(&self, namespaces: &BTreeMap<Arc<str>, Labels>) -> model::Gateway {
        let name = ObjectName::new(
            Arc::clone(&self.meta.namespace),
            Arc::clone(&self.meta.name),
        );
        let listeners = self.listeners.iter().map(|listener| {
            let allowed = match &listener.allowed {
                Allowed::Same => AllowedNamespaces::Same,
                Allowed::All => AllowedNamespaces::All,
                Allowed::Selector(selector) => AllowedNamespaces::Selected(
                    namespaces
                        .iter()
                        .filter(|(_, labels)| selector.matches(labels))
                        .map(|(name, _)| Arc::clone(name))
                        .collect(),
                ),
            };
            let built = model::Listener::new(
                Arc::clone(&listener.name),
                listener.port,
                Arc::clone(&listener.protocol),
            )
            .with_allowed_namespaces(allowed);
            match &listener.hostname {
                Some(hostname) => built.with_hostname(Arc::clone(hostname)),
                None => built,
            }
        });
        model::Gateway::new(name, Arc::clone(&self.class))
            .with_listeners(listeners.collect())
            .with_addresses(
                self.addresses
                    .iter()
                    .map(|(_, value)| Arc::clone(value))
                    .collect(),
            )
            .with_waypoint_for(self.waypoint_for)
    }
}

fn listener(at: &Cursor<'_>) -> Result<Listener> {
    let mut fields = at.fields()?;
    let allowed = match fields.get("allowedRoutes") {
        Some(routes) => match routes.fields()?.get("namespaces") {
            Some(namespaces) => allowed(&namespaces)?,
            None => Allowed::Same,
        },
        None => Allowed::Same,
    };
    Ok(Listener {
        name: fields.need("name")?.nonempty()?,
        port: fields.need("port")?.port()?,
        protocol: fields.need("protocol")?.nonempty()?,
        hostname: fields.map("hostname", Cursor::nonempty)?,
        allowed,
    })
}

fn allowed(at: &Cursor<'_>) -> Result<Allowed> {
    let mut fields = at.fields()?;
    let selector = fields.map("selector", LabelSelector::read)?;
    match &*fields.text("from")? {
        "" | "Same" => Ok(Allowed::Same),
        "All" => Ok(Allowed::All),
        "Selector" => match selector {
            Some(selector) => Ok(Allowed::Selector(selector)),
            None => Err(at.invalid_below("selector", "missing: from Selector needs one")),
        },
        // No namespace: nothing is chosen.
        "None" => Ok(Allowed::Selector(LabelSelector::nothing())),
        other => Err(at.invalid_below(
            "from",
            format_args!("expected one of Same, All, Selector, None, found {other:?}"),
        )),
    }
}

fn address(at: &Cursor<'_>) -> Result<(Arc<str>, Arc<str>)> {
    let mut fields = at.fields()?;
    let kind = fields.text("type")?;
    let kind = if kind.is_empty() {
        "IPAddress".into()
    } else {
        kind
    };
    Ok((kind, fields.need("value")?.nonempty()?))
}
