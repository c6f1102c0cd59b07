//! Who we say we are.

use std::net::IpAddr;

use mesh_xds::ads::{Node, NodeValue};

use super::{Mode, Xds};
use crate::WorkloadId;
use crate::health::Probe;

/// istiod shows it in `istioctl proxy-status`. It is not of the form of an Istio version, which istiod takes
/// for the newest.
const VERSION: &str = concat!("mesh-core-", env!("CARGO_PKG_VERSION"));

impl Xds {
    /// The node that the stream is of. `workload` is the one that it speaks for, if it is one's.
    pub(crate) fn node(
        &self,
        workload: Option<&WorkloadId>,
        addresses: &[IpAddr],
        network: &str,
        probe: Option<&Probe>,
    ) -> Node {
        let (kind, namespace, name) = match (&self.mode, workload) {
            (Mode::NodeProxy { namespace, name }, _) => ("ztunnel", &**namespace, &**name),
            (Mode::Sidecar, Some(id)) => ("sidecar", id.namespace(), id.name()),
            (Mode::Sidecar, None) => ("sidecar", "", ""),
        };
        let own = addresses.first().map(IpAddr::to_string).unwrap_or_default();
        // The domain is literal, whatever the cluster's (ztunnel.md 3.1).
        let id = format!("{kind}~{own}~{name}.{namespace}~{namespace}.svc.cluster.local");
        let addresses: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
        let mut node = Node::new(id)
            .with_metadata("NAME", name)
            .with_metadata("NAMESPACE", namespace)
            // One text: a list ends the stream (vm.md 2).
            .with_metadata("INSTANCE_IPS", addresses.join(","))
            .with_metadata("ISTIO_VERSION", VERSION)
            .with_metadata("PROXY_CONFIG", NodeValue::Map([].into()));
        if let Some(id) = workload {
            node = node
                .with_metadata("SERVICE_ACCOUNT", id.service_account())
                .with_metadata("ENABLE_HBONE", "true");
        }
        if !network.is_empty() {
            node = node.with_metadata("NETWORK", network);
        }
        // A node proxy that names a generator crashes istiod.
        let metadata = self.metadata.iter().filter(|(key, _)| *key != "GENERATOR");
        for (key, value) in metadata {
            node = node.with_metadata(key, value.clone());
        }
        if let Some(probe) = probe {
            node = node.with_metadata("PROXY_CONFIG", self.with_probe(probe));
        }
        if self.mode == Mode::Sidecar {
            node = node.with_metadata("GENERATOR", "grpc");
        }
        if let Some([region, zone, subzone]) = &self.locality {
            node = node.with_locality(region, zone, subzone);
        }
        node
    }

    /// By a probe in it istiod knows that the host reports its health.
    fn with_probe(&self, probe: &Probe) -> NodeValue {
        let mut config = match self.metadata.get("PROXY_CONFIG") {
            Some(NodeValue::Map(config)) => config.clone(),
            _ => [].into(),
        };
        let given = config.entry("readinessProbe".to_owned());
        given.or_insert_with(|| probe.to_metadata());
        NodeValue::Map(config)
    }
}
