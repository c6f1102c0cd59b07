//! Where the services have configuration and certificates from: files and a development CA, or a control plane.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use control_plane::Running;
use mesh_core::config::{File, Xds};
use mesh_core::identity::{DevCa, Istiod};
use mesh_core::{ControlPlane, Mesh, Node};
use tempfile::TempDir;

use crate::BoxError;
use crate::cluster::Ports;

const NAMESPACE: &str = "default";

/// The name in the control plane's certificate, as in a cluster.
const NAME: &str = "istiod.istio-system.svc";

/// What a projected token of Kubernetes has.
const TOKEN_LIFE: Duration = Duration::from_secs(60 * 60);

/// Makes meshes.
#[derive(Debug)]
pub(crate) enum Source {
    /// All services are on one node.
    Files {
        file: PathBuf,
        ca: DevCa,
        node: Option<Node>,
    },
    /// Each service has a stream of its own, by a token of its own, as in a cluster: so each is its own node.
    ControlPlane(Box<Joining>),
}

/// A control plane in this process, and the files with which its clients join.
#[derive(Debug)]
pub(crate) struct Joining {
    running: Running,
    validity: Option<Duration>,
    folder: TempDir,
}

impl Source {
    pub(crate) fn files(file: PathBuf, ca: DevCa) -> Self {
        let node = None;
        Self::Files { file, ca, node }
    }

    /// Starts a control plane that serves these manifests.
    pub(crate) async fn control_plane(file: &Path) -> Result<Self, BoxError> {
        let folder = tempfile::tempdir()?;
        let state = folder.path().join("control-plane");
        let running = control_plane::start(file, &state, "cluster.local").await?;
        Ok(Self::ControlPlane(Box::new(Joining {
            running,
            validity: None,
            folder,
        })))
    }

    /// Certificates that are renewed every few seconds.
    pub(crate) fn validity(self, validity: Duration) -> Self {
        match self {
            Self::Files { file, ca, node } => {
                let ca = ca.validity(validity);
                Self::Files { file, ca, node }
            }
            Self::ControlPlane(mut joining) => {
                joining.validity = Some(validity);
                Self::ControlPlane(joining)
            }
        }
    }

    /// A workload: this is all that there is to being a member.
    pub(crate) fn workload(
        &mut self,
        name: &str,
        account: &str,
        ports: Ports,
    ) -> Result<Mesh, BoxError> {
        match self {
            Self::Files { file, ca, node } => {
                let node = match node {
                    Some(node) => node,
                    None => {
                        let builder = Node::builder()
                            .config(File::watch(&*file))
                            .identity(ca.clone());
                        node.insert(ports.set(builder).build_node()?)
                    }
                };
                Ok(node.workload(NAMESPACE, name, account)?)
            }
            Self::ControlPlane(joining) => joining.join(name, account, ports),
        }
    }

    /// A mesh with a node of its own, which has no tunnels yet.
    pub(crate) fn another(&self, name: &str, account: &str) -> Result<Mesh, BoxError> {
        match self {
            Self::Files { file, ca, .. } => Ok(Mesh::builder()
                .workload(NAMESPACE, name, account)
                .config(File::watch(file))
                .identity(ca.clone())
                .build()?),
            Self::ControlPlane(joining) => joining.join(name, account, Ports::AsConfigured),
        }
    }

    /// What is wrong with the manifests, as whoever reads them says.
    pub(crate) fn problems(&self) -> Vec<String> {
        match self {
            Self::Files { node, .. } => node.as_ref().map(Node::problems).unwrap_or_default(),
            Self::ControlPlane(joining) => joining.running.problems(),
        }
    }
}

impl Joining {
    /// Joins as a Pod does: by the address, the root certificate and a token.
    fn join(&self, name: &str, account: &str, ports: Ports) -> Result<Mesh, BoxError> {
        let token = self.folder.path().join(format!("{name}-token"));
        // Where certificates are short, tokens are too: renewals then go by the certificate.
        let life = self.validity.unwrap_or(TOKEN_LIFE);
        let content = self.running.token(NAMESPACE, account, life);
        replace(&token, &content)?;
        let at = self.running.address();
        let control_plane = ControlPlane::new(format!("{NAME}:{}", at.port()))
            // Nobody resolves that name here.
            .at(at.ip())
            .root_cert_file(self.running.root_cert_file())
            .token_file(token);
        let mut identity = Istiod::new(control_plane.clone());
        if let Some(validity) = self.validity {
            identity = identity.ttl(validity);
        }
        let builder = Mesh::builder()
            .workload(NAMESPACE, name, account)
            .config(Xds::istiod(control_plane))
            .identity(identity);
        Ok(ports.set(builder).build()?)
    }
}

/// Writes a file that only its user reads. Beside it, then renamed: whoever reads the old one just now reads all of it.
fn replace(file: &Path, content: &str) -> io::Result<()> {
    let beside = file.with_extension("new");
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    options.open(&beside)?.write_all(content.as_bytes())?;
    fs::rename(&beside, file)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_token_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("client-token");
        let tokens = ["a", "b"].map(|letter| letter.repeat(100_000));
        replace(&file, &tokens[0]).unwrap();
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for round in 0..200 {
                    replace(&file, &tokens[round % 2]).unwrap();
                }
            });
            while !writer.is_finished() {
                let read = fs::read_to_string(&file).unwrap();
                assert!(tokens.contains(&read), "{} bytes of one", read.len());
            }
        });
    }
}
