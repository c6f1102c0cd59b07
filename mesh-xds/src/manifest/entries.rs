//! ServiceEntry, WorkloadEntry and WorkloadGroup of Istio.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_authz::Identity;

use super::core::{condition, protocol};
use super::meta::{Labels, Meta, check_account, labels};
use crate::file::cursor::{Cursor, Fields, Result};
use crate::model::{AppProtocol, Locality, ObjectName, WorkloadGroup};

/// What a WorkloadEntry's `spec` and an endpoint of a ServiceEntry say.
#[derive(Debug, Clone, Default)]
pub(crate) struct EntrySpec {
    /// As written: an IP address or a hostname; empty when only the network is known.
    pub(crate) address: Arc<str>,
    pub(crate) ports: Vec<(Arc<str>, u16)>,
    pub(crate) labels: Labels,
    pub(crate) network: Arc<str>,
    pub(crate) locality: Locality,
    pub(crate) weight: u32,
    pub(crate) service_account: Arc<str>,
}

impl EntrySpec {
    fn read(at: &Cursor<'_>, namespace: &str) -> Result<Self> {
        let mut fields = at.fields()?;
        let spec = Self::read_fields(&mut fields, namespace)?;
        fields.finish()?;
        Ok(spec)
    }

    fn read_fields(fields: &mut Fields<'_>, namespace: &str) -> Result<Self> {
        let network = fields.text("network")?;
        let address = match fields.get("address") {
            Some(at) => at.text()?,
            None => Arc::default(),
        };
        if address.is_empty() && network.is_empty() {
            return Err(fields
                .at()
                .invalid_below("address", "missing, and no network either"));
        }
        if address.starts_with("unix:") {
            return Err(fields.at().invalid_below(
                "address",
                "expected an IP address or a hostname; sockets of the host are not supported",
            ));
        }
        let ports = match fields.get("ports") {
            Some(at) => at
                .entries()?
                .into_iter()
                .map(|(name, port)| Ok((Arc::clone(name), port.port()?)))
                .collect::<Result<_>>()?,
            None => Vec::new(),
        };
        let account = match fields.get("serviceAccount") {
            Some(at) => {
                let account = at.text()?;
                if !account.is_empty() {
                    check_account(&at, namespace, &account)?;
                }
                account
            }
            None => Arc::default(),
        };
        Ok(Self {
            address,
            ports,
            labels: fields.map("labels", labels)?.unwrap_or_default(),
            network,
            locality: locality(&fields.text("locality")?),
            weight: fields.map("weight", Cursor::u32)?.unwrap_or(1),
            service_account: if account.is_empty() {
                "default".into()
            } else {
                account
            },
        })
    }

    pub(crate) fn ip(&self) -> Option<IpAddr> {
        self.address.parse().ok()
    }

    pub(crate) fn port(&self, name: &str) -> Option<u16> {
        let found = self.ports.iter().find(|(found, _)| **found == *name);
        found.map(|(_, port)| *port)
    }
}

/// `region/zone/subzone`.
fn locality(text: &str) -> Locality {
    let mut parts = text.splitn(3, '/');
    let mut next = || parts.next().unwrap_or_default();
    Locality::new(next(), next(), next())
}

#[derive(Debug, Clone)]
pub(crate) struct WorkloadEntry {
    pub(crate) meta: Meta,
    pub(crate) spec: EntrySpec,
    pub(crate) healthy: bool,
}

impl WorkloadEntry {
    pub(crate) fn read(mut meta: Meta, fields: &mut Fields<'_>) -> Result<Self> {
        let spec = EntrySpec::read(&fields.need("spec")?, &meta.namespace)?;
        let healthy = match fields.get("status") {
            Some(status) => condition(&mut status.fields()?, "Healthy")?.unwrap_or(true),
            None => true,
        };
        let own = spec.labels.iter();
        meta.labels
            .extend(own.map(|(key, value)| (Arc::clone(key), Arc::clone(value))));
        Ok(Self {
            healthy: healthy && !meta.deleting,
            meta,
            spec,
        })
    }
}

/// Reads a WorkloadGroup, a template for entries.
pub(crate) fn read_group(meta: &Meta, fields: &mut Fields<'_>) -> Result<WorkloadGroup> {
    let spec = fields.need("spec")?;
    let mut spec = spec.fields()?;
    let probed = spec.get("probe").is_some();
    let (mut own, mut annotations) = (Labels::new(), Labels::new());
    if let Some(metadata) = spec.get("metadata") {
        let mut metadata = metadata.fields()?;
        own = metadata.map("labels", labels)?.unwrap_or_default();
        annotations = metadata.map("annotations", labels)?.unwrap_or_default();
        metadata.finish()?;
    }
    let template = spec.need("template")?;
    let mut template = template.fields()?;
    let mut all = template.map("labels", labels)?.unwrap_or_default();
    all.extend(own);
    let mut account = Arc::default();
    if let Some(at) = template.get("serviceAccount") {
        account = at.text()?;
        if !account.is_empty() {
            check_account(&at, &meta.namespace, &account)?;
        }
    }
    let ports = match template.get("ports") {
        Some(at) => at
            .entries()?
            .into_iter()
            .map(|(name, port)| Ok((Arc::clone(name), port.port()?)))
            .collect::<Result<_>>()?,
        None => Vec::new(),
    };
    let name = ObjectName::new(Arc::clone(&meta.namespace), Arc::clone(&meta.name));
    let mut group = WorkloadGroup::new(name)
        .with_labels(all)
        .with_annotations(annotations)
        .with_service_account(account)
        .with_network(template.text("network")?)
        .with_locality(locality(&template.text("locality")?))
        .with_ports(ports)
        .with_probe(probed);
    if let Some(weight) = template.map("weight", Cursor::u32)? {
        group = group.with_weight(weight);
    }
    template.ignore(&["address"]);
    template.finish()?;
    spec.finish()?;
    Ok(group)
}

#[derive(Debug, Clone)]
pub(crate) struct ServiceEntry {
    pub(crate) meta: Meta,
    pub(crate) hosts: Vec<Arc<str>>,
    pub(crate) addresses: Vec<IpNet>,
    pub(crate) ports: Vec<EntryPort>,
    pub(crate) resolution: Resolution,
    pub(crate) endpoints: Vec<EntrySpec>,
    pub(crate) selector: Labels,
    pub(crate) own_namespace_only: bool,
    pub(crate) subject_alt_names: Vec<Identity>,
}

#[derive(Debug, Clone)]
pub(crate) struct EntryPort {
    pub(crate) name: Arc<str>,
    pub(crate) number: u16,
    pub(crate) target: u16,
    pub(crate) app_protocol: AppProtocol,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolution {
    None,
    Static,
    Dns,
}

impl ServiceEntry {
    pub(crate) fn read(meta: Meta, fields: &mut Fields<'_>) -> Result<Self> {
        let at = fields.need("spec")?;
        let mut spec = at.fields()?;
        let hosts = spec.list("hosts", Cursor::nonempty)?;
        if hosts.is_empty() {
            return Err(at.invalid_below("hosts", "expected one host at least"));
        }
        let mut addresses = spec.list("addresses", address)?;
        let resolution = spec.map("resolution", |at| {
            at.one_of(&[
                ("NONE", Resolution::None),
                ("STATIC", Resolution::Static),
                ("DNS", Resolution::Dns),
                ("DNS_ROUND_ROBIN", Resolution::Dns),
                ("DYNAMIC_DNS", Resolution::Dns),
            ])
        })?;
        spec.map("location", |at| {
            at.one_of(&[("MESH_EXTERNAL", ()), ("MESH_INTERNAL", ())])
        })?;
        let ports = spec.list("ports", |at| {
            let mut fields = at.fields()?;
            let number = fields.need("number")?.port()?;
            let target = fields.map("targetPort", Cursor::port_or_zero)?.unwrap_or(0);
            let port = EntryPort {
                name: fields.text("name")?,
                number,
                target: if target == 0 { number } else { target },
                app_protocol: protocol(&fields.text("protocol")?.to_ascii_lowercase()),
            };
            fields.finish()?;
            Ok(port)
        })?;
        let endpoints = spec.list("endpoints", |at| EntrySpec::read(at, &meta.namespace))?;
        let selector = spec.map("workloadSelector", |at| {
            let mut fields = at.fields()?;
            let chosen = fields.map("labels", labels)?.unwrap_or_default();
            fields.finish()?;
            Ok(chosen)
        })?;
        if selector.is_some() && !endpoints.is_empty() {
            return Err(at.invalid_below(
                "workloadSelector",
                "excludes endpoints: expected only one of the two",
            ));
        }
        let export_to = spec.texts("exportTo")?;
        // Names of certificates of the application's own TLS are no business of the mesh.
        let names = spec.list("subjectAltNames", |at| {
            let name = at.str()?;
            if !name.starts_with("spiffe://") {
                return Ok(None);
            }
            Identity::parse(name)
                .map(Some)
                .map_err(|error| at.invalid(error))
        })?;
        spec.finish()?;
        if addresses.is_empty()
            && let Some(status) = fields.get("status")
        {
            let allocated = status
                .fields()?
                .list("addresses", |at| address(&at.fields()?.need("value")?))?;
            addresses.extend(allocated);
        }
        Ok(Self {
            meta,
            hosts,
            addresses,
            ports,
            resolution: resolution.unwrap_or(Resolution::None),
            endpoints,
            selector: selector.unwrap_or_default(),
            own_namespace_only: !export_to.is_empty() && export_to.iter().all(|to| **to == *"."),
            subject_alt_names: names.into_iter().flatten().collect(),
        })
    }
}

/// An address or a range.
fn address(at: &Cursor<'_>) -> Result<IpNet> {
    let text = at.str()?;
    match text.parse::<IpAddr>() {
        Ok(ip) => Ok(ip.into()),
        Err(_) => at.parse("an IP address or a CIDR such as 10.0.0.0/8"),
    }
}
