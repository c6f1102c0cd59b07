//! Objects of Kubernetes itself: Namespace, Node, Service, EndpointSlice, Pod.

use std::net::IpAddr;
use std::sync::Arc;

use super::meta::{Labels, Meta, check_account, labels};
use crate::file::cursor::{Cursor, Fields, Result};
use crate::model::{AppProtocol, IpFamilies};

#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) meta: Meta,
    /// An alias of another host: nothing of its own.
    pub(crate) external: bool,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) selector: Labels,
    pub(crate) ports: Vec<ServicePort>,
    pub(crate) ip_families: IpFamilies,
    pub(crate) node_local: bool,
    pub(crate) traffic_distribution: Option<Arc<str>>,
    pub(crate) publish_not_ready: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct ServicePort {
    pub(crate) name: Arc<str>,
    pub(crate) port: u16,
    pub(crate) target: TargetPort,
    pub(crate) app_protocol: AppProtocol,
}

#[derive(Debug, Clone)]
pub(crate) enum TargetPort {
    Number(u16),
    /// Every workload says which of its ports has the name.
    Name(Arc<str>),
}

impl Service {
    pub(crate) fn read(meta: Meta, fields: &mut Fields<'_>) -> Result<Self> {
        let spec = fields.need("spec")?;
        let mut spec = spec.fields()?;
        let mut cluster_ips = spec.list("clusterIPs", cluster_ip)?;
        if cluster_ips.is_empty() {
            cluster_ips.extend(spec.map("clusterIP", cluster_ip)?);
        }
        let families = spec.list("ipFamilies", |at| {
            at.one_of(&[
                ("IPv4", IpFamilies::Ipv4Only),
                ("IPv6", IpFamilies::Ipv6Only),
            ])
        })?;
        let ports = spec.list("ports", service_port)?;
        Ok(Self {
            external: spec.text("type")?.as_ref() == "ExternalName",
            addresses: cluster_ips.into_iter().flatten().collect(),
            selector: spec.map("selector", labels)?.unwrap_or_default(),
            ports: ports.into_iter().flatten().collect(),
            ip_families: match families.as_slice() {
                [] => IpFamilies::Automatic,
                [one] => *one,
                _ => IpFamilies::Dual,
            },
            node_local: spec.text("internalTrafficPolicy")?.as_ref() == "Local",
            traffic_distribution: spec.map("trafficDistribution", Cursor::text)?,
            publish_not_ready: spec
                .map("publishNotReadyAddresses", Cursor::bool)?
                .unwrap_or(false),
            meta,
        })
    }

    pub(crate) fn port_by_name(&self, name: &str) -> Option<&ServicePort> {
        self.ports.iter().find(|port| *port.name == *name)
    }
}

/// `None` (headless) or an address.
fn cluster_ip(at: &Cursor<'_>) -> Result<Option<IpAddr>> {
    match at.str()? {
        "None" | "" => Ok(None),
        _ => at.parse("an IP address or None").map(Some),
    }
}

fn service_port(at: &Cursor<'_>) -> Result<Option<ServicePort>> {
    let mut fields = at.fields()?;
    let port = fields.need("port")?.port()?;
    let name = fields.text("name")?;
    let protocol = fields.text("protocol")?;
    let declared = fields.text("appProtocol")?;
    let target = match fields.get("targetPort") {
        None => TargetPort::Number(port),
        Some(at) => match at.u32() {
            Ok(0) => TargetPort::Number(port),
            Ok(_) => TargetPort::Number(at.port()?),
            Err(_) => {
                let name = at.nonempty()?;
                match name.parse() {
                    Ok(0) => TargetPort::Number(port),
                    Ok(number) => TargetPort::Number(number),
                    Err(_) => TargetPort::Name(name),
                }
            }
        },
    };
    // The mesh carries TCP alone.
    Ok(matches!(&*protocol, "" | "TCP").then(|| ServicePort {
        app_protocol: app_protocol(&declared, &name),
        name,
        port,
        target,
    }))
}

/// What a port speaks: what `appProtocol` says, else what its name begins with, as Istio reads them.
///
/// <https://istio.io/latest/docs/ops/configuration/traffic-management/protocol-selection/>
fn app_protocol(declared: &str, name: &str) -> AppProtocol {
    if declared.is_empty() {
        let lower = name.to_ascii_lowercase();
        if lower == "grpc-web" || lower.starts_with("grpc-web-") {
            return AppProtocol::Unknown;
        }
        return protocol(lower.split('-').next().unwrap_or_default());
    }
    match declared {
        "kubernetes.io/h2c" => AppProtocol::Http2,
        "kubernetes.io/ws" => AppProtocol::Http11,
        "kubernetes.io/wss" => AppProtocol::Tls,
        other => protocol(&other.to_ascii_lowercase()),
    }
}

/// What Istio's name of a protocol means.
pub(crate) fn protocol(name: &str) -> AppProtocol {
    match name {
        "http" => AppProtocol::Http11,
        "http2" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "tcp" => AppProtocol::Tcp,
        "https" | "tls" => AppProtocol::Tls,
        _ => AppProtocol::Unknown,
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub(crate) meta: Meta,
    pub(crate) service_account: Arc<str>,
    pub(crate) node: Arc<str>,
    pub(crate) host_network: bool,
    /// Named TCP ports of its containers.
    pub(crate) ports: Vec<(Arc<str>, u16)>,
    pub(crate) addresses: Vec<IpAddr>,
    /// Has run to its end.
    pub(crate) finished: bool,
    pub(crate) ready: bool,
}

impl Pod {
    pub(crate) fn read(meta: Meta, fields: &mut Fields<'_>) -> Result<Self> {
        let mut pod = Self {
            service_account: "default".into(),
            node: Arc::default(),
            host_network: false,
            ports: Vec::new(),
            addresses: Vec::new(),
            finished: false,
            ready: !meta.deleting,
            meta,
        };
        if let Some(spec) = fields.get("spec") {
            let mut spec = spec.fields()?;
            // The second is the first's older name.
            for name in ["serviceAccountName", "serviceAccount"] {
                if let Some(at) = spec.get(name) {
                    let account = at.text()?;
                    if !account.is_empty() {
                        check_account(&at, &pod.meta.namespace, &account)?;
                        pod.service_account = account;
                        break;
                    }
                }
            }
            pod.node = spec.text("nodeName")?;
            pod.host_network = spec.map("hostNetwork", Cursor::bool)?.unwrap_or(false);
            for container in spec.list("containers", |at| Ok(at.clone()))? {
                let ports = container.fields()?.list("ports", container_port)?;
                pod.ports.extend(ports.into_iter().flatten());
            }
        }
        if let Some(status) = fields.get("status") {
            let mut status = status.fields()?;
            pod.addresses = status.list("podIPs", |at| {
                at.fields()?.need("ip")?.parse("an IP address")
            })?;
            if pod.addresses.is_empty() {
                pod.addresses
                    .extend(status.map("podIP", |at| at.parse::<IpAddr>("an IP address"))?);
            }
            pod.finished = matches!(&*status.text("phase")?, "Succeeded" | "Failed");
            pod.ready &= condition(&mut status, "Ready")?.unwrap_or(true);
        }
        Ok(pod)
    }
}

fn container_port(at: &Cursor<'_>) -> Result<Option<(Arc<str>, u16)>> {
    let mut fields = at.fields()?;
    let name = fields.text("name")?;
    let tcp = matches!(&*fields.text("protocol")?, "" | "TCP");
    let port = fields.need("containerPort")?.port()?;
    Ok((tcp && !name.is_empty()).then_some((name, port)))
}

/// What `status.conditions` says: nothing when there are none, false when the condition is not among them.
pub(crate) fn condition(status: &mut Fields<'_>, kind: &str) -> Result<Option<bool>> {
    let conditions = status.list("conditions", |at| {
        let mut fields = at.fields()?;
        Ok((fields.text("type")?, fields.text("status")?))
    })?;
    if conditions.is_empty() {
        return Ok(None);
    }
    Ok(Some(conditions.iter().any(|(found, status)| {
        **found == *kind && status.eq_ignore_ascii_case("true")
    })))
}

#[derive(Debug, Clone)]
pub(crate) struct EndpointSlice {
    pub(crate) meta: Meta,
    /// The Service that it belongs to.
    pub(crate) service: Arc<str>,
    pub(crate) ports: Vec<(Arc<str>, u16)>,
    /// Those that stand for no Pod: a Pod says for itself what it is an endpoint of.
    pub(crate) endpoints: Vec<SliceEndpoint>,
}

#[derive(Debug, Clone)]
pub(crate) struct SliceEndpoint {
    pub(crate) address: IpAddr,
    pub(crate) ready: bool,
    pub(crate) node: Arc<str>,
    pub(crate) zone: Arc<str>,
}

impl EndpointSlice {
    pub(crate) fn read(meta: Meta, fields: &mut Fields<'_>) -> Result<Self> {
        let service = meta
            .labels
            .get("kubernetes.io/service-name")
            .cloned()
            .unwrap_or_default();
        let fqdn = fields.text("addressType")?.as_ref() == "FQDN";
        let ports = fields.list("ports", |at| {
            let mut fields = at.fields()?;
            let tcp = matches!(&*fields.text("protocol")?, "" | "TCP");
            let name = fields.text("name")?;
            let port = fields.map("port", Cursor::port)?;
            Ok(port.filter(|_| tcp).map(|port| (name, port)))
        })?;
        let mut endpoints = Vec::new();
        for at in fields.list("endpoints", |at| Ok(at.clone()))? {
            let mut endpoint = at.fields()?;
            let ready = match endpoint.get("conditions") {
                Some(conditions) => conditions
                    .fields()?
                    .map("ready", Cursor::bool)?
                    .unwrap_or(true),
                None => true,
            };
            let node = endpoint.text("nodeName")?;
            let zone = endpoint.text("zone")?;
            let is_pod = endpoint.map("targetRef", |at| {
                Ok(at.fields()?.text("kind")?.as_ref() == "Pod")
            })?;
            // Kubernetes takes the first address alone to be the endpoint's.
            let Some(address) = endpoint.need("addresses")?.items()?.into_iter().next() else {
                return Err(at.invalid_below("addresses", "expected one address at least"));
            };
            if !fqdn && is_pod != Some(true) {
                endpoints.push(SliceEndpoint {
                    address: address.parse("an IP address")?,
                    ready,
                    node,
                    zone,
                });
            }
        }
        Ok(Self {
            meta,
            service,
            ports: ports.into_iter().flatten().collect(),
            endpoints,
        })
    }
}
