//! What who asks istiod for addresses by name gets of a mesh. The tests of mesh-core have this file too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use mesh_xds::model::{ResourceName, Service, Update, Workload};
use serde_json::Value;

/// Who asks by name: the names so far, and the workloads that were on its node when it came.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    pub(crate) names: BTreeSet<String>,
    beside: BTreeSet<ResourceName>,
}

impl Demand {
    /// Of a recorded client, which came to this mesh; the recording says its node.
    pub(crate) fn new(
        recording: &Path,
        client: &str,
        mesh: &BTreeMap<ResourceName, Update>,
    ) -> Self {
        let nodes = fs::read_to_string(recording.join("nodes.json")).unwrap();
        let nodes: Vec<Value> = serde_json::from_str(&nodes).unwrap();
        let own = nodes.iter().find(|node| node["Name"] == client).unwrap();
        let node = own["Meta"]["NODE_NAME"].as_str().unwrap();
        let beside: BTreeSet<_> = on_node(mesh, node);
        assert!(!beside.is_empty(), "{node}");
        Self {
            names: BTreeSet::new(),
            beside,
        }
    }

    /// What it has of this mesh.
    pub(crate) fn answered(&self, mesh: &BTreeMap<ResourceName, Update>) -> BTreeSet<ResourceName> {
        let mut answered = self.beside.clone();
        answered.retain(|one| mesh.contains_key(one));
        answered.extend(self.names.iter().flat_map(|name| brought(mesh, name)));
        answered
    }
}

/// The resources that `name` brings: a workload by its uid or an address; a service by its name or an address,
/// with its workloads. An address is `<network>/<ip>`; of a range it is the first.
pub(crate) fn brought(mesh: &BTreeMap<ResourceName, Update>, name: &str) -> BTreeSet<ResourceName> {
    let services = mesh.values().filter_map(|update| match update {
        Update::Service(service) if is_service(service, name) => Some(service.name()),
        _ => None,
    });
    let services: Vec<_> = services.collect();
    let mut found: BTreeSet<_> = services
        .iter()
        .map(|service| ResourceName::Service((*service).clone()))
        .collect();
    for workload in workloads(mesh) {
        let mut memberships = workload.services().iter();
        if is_workload(workload, name) || memberships.any(|own| services.contains(&own.service())) {
            found.insert(uid(workload));
        }
    }
    found
}

/// The workloads on a node, which its clients get unasked.
fn on_node(mesh: &BTreeMap<ResourceName, Update>, node: &str) -> BTreeSet<ResourceName> {
    let own = workloads(mesh).filter(|workload| workload.node() == node);
    own.map(uid).collect()
}

fn workloads(mesh: &BTreeMap<ResourceName, Update>) -> impl Iterator<Item = &Workload> {
    mesh.values().filter_map(|update| match update {
        Update::Workload(workload) => Some(workload),
        _ => None,
    })
}

fn uid(workload: &Workload) -> ResourceName {
    ResourceName::Workload(workload.uid().into())
}

fn is_workload(workload: &Workload, name: &str) -> bool {
    let mut addresses = workload.addresses().iter();
    workload.uid() == name || addresses.any(|ip| format!("{}/{ip}", workload.network()) == name)
}

fn is_service(service: &Service, name: &str) -> bool {
    let mut addresses = service.addresses().iter();
    service.name().to_string() == name
        || addresses.any(|one| format!("{}/{}", one.network(), one.range().addr()) == name)
}
