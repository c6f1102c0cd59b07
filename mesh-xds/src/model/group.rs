//! Groups of hosts outside Kubernetes: the template of the entries that they register.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Locality, ObjectName};

/// A template for the entries of hosts that register with a control plane (Istio's WorkloadGroup).
///
/// It says nothing of the mesh by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadGroup {
    name: ObjectName,
    labels: BTreeMap<Arc<str>, Arc<str>>,
    annotations: BTreeMap<Arc<str>, Arc<str>>,
    service_account: Arc<str>,
    network: Arc<str>,
    locality: Locality,
    weight: Option<u32>,
    ports: Vec<(Arc<str>, u16)>,
    probed: bool,
}

impl WorkloadGroup {
    /// Makes a group whose hosts may run as anybody of its namespace, and are healthy unasked.
    pub fn new(name: ObjectName) -> Self {
        Self {
            name,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            service_account: Arc::default(),
            network: Arc::default(),
            locality: Locality::default(),
            weight: None,
            ports: Vec::new(),
            probed: false,
        }
    }

    /// Sets [`labels`](Self::labels).
    #[must_use]
    pub fn with_labels(mut self, labels: BTreeMap<Arc<str>, Arc<str>>) -> Self {
        self.labels = labels;
        self
    }

    /// Sets [`annotations`](Self::annotations).
    #[must_use]
    pub fn with_annotations(mut self, annotations: BTreeMap<Arc<str>, Arc<str>>) -> Self {
        self.annotations = annotations;
        self
    }

    /// Sets [`service_account`](Self::service_account).
    #[must_use]
    pub fn with_service_account(mut self, service_account: impl Into<Arc<str>>) -> Self {
        self.service_account = service_account.into();
        self
    }

    /// Sets [`network`](Self::network).
    #[must_use]
    pub fn with_network(mut self, network: impl Into<Arc<str>>) -> Self {
        self.network = network.into();
        self
    }

    /// Sets [`locality`](Self::locality).
    #[must_use]
    pub fn with_locality(mut self, locality: Locality) -> Self {
        self.locality = locality;
        self
    }

    /// Sets [`weight`](Self::weight).
    #[must_use]
    pub fn with_weight(mut self, weight: u32) -> Self {
        self.weight = Some(weight);
        self
    }

    /// Sets [`ports`](Self::ports).
    #[must_use]
    pub fn with_ports(mut self, ports: Vec<(Arc<str>, u16)>) -> Self {
        self.ports = ports;
        self
    }

    /// Sets [`is_probed`](Self::is_probed).
    #[must_use]
    pub fn with_probe(mut self, probed: bool) -> Self {
        self.probed = probed;
        self
    }

    /// Namespace and name.
    pub fn name(&self) -> &ObjectName {
        &self.name
    }

    /// The labels of its entries: those of the template under those of its metadata.
    pub fn labels(&self) -> &BTreeMap<Arc<str>, Arc<str>> {
        &self.labels
    }

    /// The annotations of its entries.
    pub fn annotations(&self) -> &BTreeMap<Arc<str>, Arc<str>> {
        &self.annotations
    }

    /// The service account that its hosts have to run as; empty for any of the namespace.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// The network of its hosts, where they do not say; empty for the mesh's own.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// Where its hosts are, where they do not say.
    pub fn locality(&self) -> &Locality {
        &self.locality
    }

    /// The share of its hosts in what is balanced; unset, the default.
    pub fn weight(&self) -> Option<u32> {
        self.weight
    }

    /// The ports that its hosts have, by the name that a service calls them.
    pub fn ports(&self) -> &[(Arc<str>, u16)] {
        &self.ports
    }

    /// Whether its hosts have a readiness probe, so that they are unhealthy until they say otherwise.
    pub fn is_probed(&self) -> bool {
        self.probed
    }
}
