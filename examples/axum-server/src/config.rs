//! The command line and the environment: read here and nowhere else.

use std::env;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::Parser;
use mesh_core::ControlPlane;

use crate::BoxError;

/// An axum server in the mesh: serves until Ctrl-C. With POD_NAME and the other variables of k8s.yaml it is a Pod
/// and joins istiod; without, it reads the manifests.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Args {
    /// Also call it as another workload, show the answer, and exit.
    #[arg(long)]
    pub(crate) once: bool,

    /// The manifests to read and watch.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/mesh.yaml"))]
    pub(crate) file: PathBuf,

    /// The folder of the development CA: created when absent, shared by processes.
    #[arg(long, default_value = ".mesh-dev")]
    pub(crate) ca_dir: PathBuf,
}

/// What a Pod knows of itself.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) service_account: String,
    /// At least one.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) cluster: Option<String>,
    pub(crate) trust_domain: Option<String>,
    pub(crate) control_plane: ControlPlane,
    /// Whether questions about the mesh are answered, on loopback.
    pub(crate) admin: bool,
}

impl Pod {
    /// `None` outside Kubernetes.
    #[allow(
        clippy::disallowed_methods,
        reason = "libraries read no environment, this file does"
    )]
    pub(crate) fn from_env() -> Result<Option<Self>, BoxError> {
        Self::read(|name| env::var(name).ok())
    }

    pub(crate) fn read(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, BoxError> {
        let get = |name: &str| variable(name).filter(|value| !value.is_empty());
        let need = |name: &str| get(name).ok_or(format!("{name}: expected a value, see k8s.yaml"));
        let Some(name) = get("POD_NAME") else {
            return Ok(None);
        };
        let addresses = need("POD_IPS")?;
        let addresses = addresses.split(',').map(|one| {
            let address = one.trim().parse();
            address.map_err(|_| format!("POD_IPS: expected addresses with commas, found {one:?}"))
        });
        let mut control_plane = match get("CONTROL_PLANE") {
            Some(address) => ControlPlane::new(address),
            None => ControlPlane::default(),
        };
        if let Some(file) = get("TOKEN_FILE") {
            control_plane = control_plane.token_file(file);
        }
        if let Some(file) = get("ROOT_CERT_FILE") {
            control_plane = control_plane.root_cert_file(file);
        }
        Ok(Some(Self {
            namespace: need("POD_NAMESPACE")?,
            name,
            service_account: need("SERVICE_ACCOUNT")?,
            addresses: addresses.collect::<Result<_, _>>()?,
            cluster: get("CLUSTER_ID"),
            trust_domain: get("TRUST_DOMAIN"),
            admin: get("ADMIN").as_deref() != Some("off"),
            control_plane,
        }))
    }
}
