//! A host outside Kubernetes, from the files that `istioctl x workload entry configure` writes.

mod address;
#[cfg(test)]
mod tests;
mod variables;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use mesh_xds::ads::NodeValue;

use crate::config::Xds;
use crate::health::Probe;
use crate::{ControlPlane, Error, ErrorKind, WorkloadId};
use address::Found;

pub(crate) use address::Registering;

/// Where the control plane is when `mesh.yaml` does not say.
const CONTROL_PLANE: &str = "istiod.istio-system.svc:15012";

/// What the files say of a host.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) workload: WorkloadId,
    pub(crate) trust_domain: Option<String>,
    pub(crate) network: String,
    pub(crate) xds: Xds,
    pub(crate) probe: Option<Probe>,
    /// Where certificates come from.
    pub(crate) authority: ControlPlane,
    /// A host that registers: by which address, and so under which name.
    pub(crate) registering: Option<Registering>,
    /// What makes it a member of the mesh, for who waits for that.
    pub(crate) record_is: String,
}

/// A file by its name in the folder, and by its place on a host on which istio-agent is installed.
fn find(dir: &Path, name: &str, installed: &str) -> Option<PathBuf> {
    [name, installed]
        .into_iter()
        .map(|path| dir.join(path))
        .find(|path| path.exists())
}

fn wrong(file: &Path, key: &str, message: impl std::fmt::Display) -> Error {
    let detail = format!("{}: {key}: {message}", file.display());
    Error::new(ErrorKind::Config).with_detail(detail)
}

fn read(file: &Path) -> Result<String, Error> {
    std::fs::read_to_string(file).map_err(|error| {
        let detail = format!("{} cannot be read", file.display());
        Error::new(ErrorKind::Config)
            .with_detail(detail)
            .with_source(error)
    })
}

/// The variables of `cluster.env`, beside what `mesh.yaml` has of them, which counts less.
struct Settings {
    env: Option<PathBuf>,
    mesh: PathBuf,
    config: NodeValue,
    variables: BTreeMap<String, String>,
}

impl Settings {
    fn read(dir: &Path) -> Result<Self, Error> {
        let mesh = find(dir, "mesh.yaml", "etc/istio/config/mesh").ok_or_else(|| {
            let detail = format!("{} is missing", dir.join("mesh.yaml").display());
            Error::new(ErrorKind::Config).with_detail(detail)
        })?;
        let document = NodeValue::read_yaml(&mesh, &read(&mesh)?)
            .map_err(|problem| Error::new(ErrorKind::Config).with_detail(problem.to_string()))?;
        let config = match document.get("defaultConfig") {
            Some(config @ NodeValue::Map(_)) => config.clone(),
            Some(_) => return Err(wrong(&mesh, "defaultConfig", "expected a mapping")),
            None => NodeValue::Map([].into()),
        };
        let mut variables = BTreeMap::new();
        if let Some(NodeValue::Map(metadata)) = config.get("proxyMetadata") {
            for (key, value) in metadata {
                let text = value.text().ok_or_else(|| {
                    let key = format!("defaultConfig.proxyMetadata.{key}");
                    wrong(&mesh, &key, "expected a string")
                })?;
                variables.insert(key.clone(), text.to_owned());
            }
        }
        let env = find(dir, "cluster.env", "var/lib/istio/envoy/cluster.env");
        if let Some(file) = &env {
            variables.extend(variables::read(file, &read(file)?)?);
        }
        Ok(Self {
            env,
            mesh,
            config,
            variables,
        })
    }

    /// A variable that is there and not empty: istioctl writes what it does not know as empty.
    fn get(&self, key: &str) -> Option<&str> {
        let value = self.variables.get(key)?;
        (!value.is_empty()).then_some(value)
    }

    /// The file to name when a variable is wrong.
    fn file(&self) -> &Path {
        self.env.as_deref().unwrap_or(&self.mesh)
    }

    fn need(&self, key: &str, what: &str) -> Result<&str, Error> {
        self.get(key).ok_or_else(|| {
            wrong(
                self.file(),
                key,
                format_args!("expected {what}, found nothing"),
            )
        })
    }
}

impl Host {
    /// Reads the files of a folder.
    pub(crate) fn read(dir: &Path) -> Result<Self, Error> {
        let settings = Settings::read(dir)?;
        let root = find(dir, "root-cert.pem", "etc/certs/root-cert.pem").ok_or_else(|| {
            let detail = format!("{} is missing", dir.join("root-cert.pem").display());
            Error::new(ErrorKind::Config).with_detail(detail)
        })?;
        // It may come later, or be gone after a restart that a certificate outlives.
        let token = find(dir, "istio-token", "var/run/secrets/tokens/istio-token");
        let token = token.unwrap_or_else(|| dir.join("istio-token"));
        let hosts = match find(dir, "hosts", "hosts") {
            Some(file) => hosts(&file, &read(&file)?)?,
            None => BTreeMap::new(),
        };
        let control_plane = |address: &str| {
            let control_plane = ControlPlane::new(address)
                .root_cert_file(&root)
                .token_file(&token);
            let control_plane = match settings.get("ISTIOD_SAN") {
                Some(name) => control_plane.server_names([name]),
                None => control_plane,
            };
            let name = address.rsplit_once(':').map_or(address, |(name, _)| name);
            match hosts.get(name) {
                Some(at) => control_plane.at(*at),
                None => control_plane,
            }
        };
        let address = match settings.config.get("discoveryAddress") {
            Some(NodeValue::Text(address)) if !address.is_empty() => address.as_str(),
            Some(NodeValue::Text(_)) | None => CONTROL_PLANE,
            Some(_) => {
                let key = "defaultConfig.discoveryAddress";
                return Err(wrong(&settings.mesh, key, "expected host:port"));
            }
        };
        let discovery = control_plane(address);
        let authority = settings
            .get("CA_ADDR")
            .map_or_else(|| discovery.clone(), control_plane);
        let own = settings.own_address()?;
        let network = settings.get("ISTIO_META_NETWORK").unwrap_or_default();
        let namespace = match settings.get("POD_NAMESPACE") {
            Some(namespace) => namespace,
            None => settings.need("ISTIO_NAMESPACE", "the namespace of this host")?,
        };
        let service_account = settings.get("SERVICE_ACCOUNT").unwrap_or("default");
        let group = settings.get("ISTIO_META_AUTO_REGISTER_GROUP");
        let registering = group.map(|group| Registering {
            namespace: namespace.to_owned(),
            group: group.to_owned(),
            network: network.to_owned(),
            service_account: service_account.to_owned(),
            file: settings.file().to_owned(),
            found: match own {
                Some(own) => Found::Said(own),
                None => Found::by_route(known_at(&hosts, address)),
            },
        });
        let workload = match &registering {
            Some(registering) => registering.workload(),
            None => WorkloadId::new(namespace, settings.entry()?, service_account),
        };
        let record_is = match group {
            Some(group) => format!(
                "the entry that the control plane makes for this host by the WorkloadGroup {namespace}/{group}, with which it registers"
            ),
            None => format!(
                "a WorkloadEntry of this name, for this host does not register: {} has no ISTIO_META_AUTO_REGISTER_GROUP, which --autoregister writes",
                settings.file().display()
            ),
        };
        let address = registering.as_ref().and_then(Registering::address);
        let authority = match settings.get("ISTIO_META_CLUSTER_ID") {
            Some(cluster) => authority.cluster_id(cluster),
            None => authority,
        };
        Ok(Self {
            workload,
            trust_domain: settings.get("TRUST_DOMAIN").map(str::to_owned),
            network: network.to_owned(),
            probe: settings.probe(own)?,
            xds: settings.discovery(discovery, own.or(address))?,
            authority,
            registering,
            record_is,
        })
    }
}

impl Settings {
    /// The address that istiod knows this host by, if the files have it.
    fn own_address(&self) -> Result<Option<IpAddr>, Error> {
        let own = self.get("ISTIO_SVC_IP").map(|own| {
            own.parse().map_err(|_| {
                let expected = format_args!("expected an IP address, found {own:?}");
                wrong(self.file(), "ISTIO_SVC_IP", expected)
            })
        });
        own.transpose()
    }

    /// The name of the entry that a host has which does not register.
    fn entry(&self) -> Result<&str, Error> {
        let what = "the name of this host's WorkloadEntry";
        match self.get("ISTIO_META_WORKLOAD_ENTRY") {
            Some(entry) => Ok(entry),
            None => self.need("ISTIO_META_WORKLOAD_NAME", what),
        }
    }

    /// The group's readiness probe.
    fn probe(&self, own: Option<IpAddr>) -> Result<Option<Probe>, Error> {
        let Some(probe) = self.config.get("readinessProbe") else {
            return Ok(None);
        };
        let at = |field: &str| match field {
            "" => "defaultConfig.readinessProbe".to_owned(),
            field => format!("defaultConfig.readinessProbe.{field}"),
        };
        let probe = Probe::read(probe)
            .map_err(|(field, message)| wrong(&self.mesh, &at(&field), message))?;
        // A host that is known by an address of a gateway is not there by that address itself.
        let local = self.get("REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION") == Some("true");
        let probe = match (local, own) {
            (true, _) => probe.or_host("localhost"),
            (false, Some(own)) => probe.or_host(&own.to_string()),
            // The first address of its record, when that has come.
            (false, None) => probe,
        };
        probe
            .validate()
            .map_err(|error| wrong(&self.mesh, &at(""), error))?;
        Ok(Some(probe))
    }

    fn discovery(&self, control_plane: ControlPlane, own: Option<IpAddr>) -> Result<Xds, Error> {
        let mut xds = Xds::istiod(control_plane)
            .addresses(own)
            .metadata("PROXY_CONFIG", self.config.clone());
        for (key, value) in &self.variables {
            if value.is_empty() {
                continue;
            }
            if let Some(name) = key.strip_prefix("ISTIO_METAJSON_") {
                let file = self.file();
                let value = NodeValue::read_yaml(file, value).map_err(|problem| {
                    wrong(
                        file,
                        key,
                        format_args!("expected JSON: {}", problem.message()),
                    )
                })?;
                xds = xds.metadata(name, value);
            } else if let Some(name) = key.strip_prefix("ISTIO_META_") {
                xds = match name {
                    "CLUSTER_ID" => xds.cluster_id(value),
                    // Names are resolved by `Mesh::resolve`; nothing captures DNS here.
                    "DNS_CAPTURE" => xds,
                    _ => xds.metadata(name, value.as_str()),
                };
            }
        }
        Ok(xds)
    }
}

/// Where the control plane is, if that needs no look-up.
fn known_at(hosts: &BTreeMap<String, IpAddr>, control_plane: &str) -> Option<SocketAddr> {
    if let Ok(address) = control_plane.parse() {
        return Some(address);
    }
    let (name, port) = control_plane.rsplit_once(':')?;
    Some(SocketAddr::new(*hosts.get(name)?, port.parse().ok()?))
}

/// Lines as of `/etc/hosts`: addresses by name.
fn hosts(file: &Path, text: &str) -> Result<BTreeMap<String, IpAddr>, Error> {
    let mut hosts = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(address) = words.next() else {
            continue;
        };
        let address: IpAddr = address.parse().map_err(|_| {
            let at = format!("line {}", number + 1);
            wrong(
                file,
                &at,
                format_args!("expected an IP address, found {address:?}"),
            )
        })?;
        for name in words {
            hosts.entry(name.to_owned()).or_insert(address);
        }
    }
    Ok(hosts)
}
