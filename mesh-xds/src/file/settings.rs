//! What manifests leave to the mesh.

use std::sync::Arc;

/// What Istio keeps in its MeshConfig and its installation, and manifests do not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    trust_domain: Arc<str>,
    trust_domain_aliases: Vec<Arc<str>>,
    root_namespace: Arc<str>,
    cluster_id: Arc<str>,
    cluster_domain: Arc<str>,
    network: Arc<str>,
    max_nodes: usize,
}

impl Default for Settings {
    /// Istio's own defaults.
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".into(),
            trust_domain_aliases: Vec::new(),
            root_namespace: "istio-system".into(),
            cluster_id: "Kubernetes".into(),
            cluster_domain: "cluster.local".into(),
            network: Arc::default(),
            max_nodes: 5_000_000,
        }
    }
}

impl Settings {
    /// Makes the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`trust_domain`](Self::trust_domain).
    #[must_use]
    pub fn with_trust_domain(mut self, trust_domain: impl Into<Arc<str>>) -> Self {
        self.trust_domain = trust_domain.into();
        self
    }

    /// Sets [`trust_domain_aliases`](Self::trust_domain_aliases).
    #[must_use]
    pub fn with_trust_domain_aliases(mut self, trust_domain_aliases: Vec<Arc<str>>) -> Self {
        self.trust_domain_aliases = trust_domain_aliases;
        self
    }

    /// Sets [`root_namespace`](Self::root_namespace).
    #[must_use]
    pub fn with_root_namespace(mut self, root_namespace: impl Into<Arc<str>>) -> Self {
        self.root_namespace = root_namespace.into();
        self
    }

    /// Sets [`cluster_id`](Self::cluster_id).
    #[must_use]
    pub fn with_cluster_id(mut self, cluster_id: impl Into<Arc<str>>) -> Self {
        self.cluster_id = cluster_id.into();
        self
    }

    /// Sets [`cluster_domain`](Self::cluster_domain).
    #[must_use]
    pub fn with_cluster_domain(mut self, cluster_domain: impl Into<Arc<str>>) -> Self {
        self.cluster_domain = cluster_domain.into();
        self
    }

    /// Sets [`network`](Self::network).
    #[must_use]
    pub fn with_network(mut self, network: impl Into<Arc<str>>) -> Self {
        self.network = network.into();
        self
    }

    /// Sets [`max_nodes`](Self::max_nodes).
    #[must_use]
    pub fn with_max_nodes(mut self, max_nodes: usize) -> Self {
        self.max_nodes = max_nodes;
        self
    }

    /// The trust domain of identities. Default: `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Other names of the trust domain in policies. Default: none.
    pub fn trust_domain_aliases(&self) -> &[Arc<str>] {
        &self.trust_domain_aliases
    }

    /// The namespace whose policies without selector bind the whole mesh. Default: `istio-system`.
    pub fn root_namespace(&self) -> &str {
        &self.root_namespace
    }

    /// The cluster that workloads belong to. Default: `Kubernetes`.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// The end of the hostnames of Services: `<name>.<namespace>.svc.<this>`. Default: `cluster.local`.
    pub fn cluster_domain(&self) -> &str {
        &self.cluster_domain
    }

    /// The network of addresses that name none. Default: what the root namespace's label
    /// `topology.istio.io/network` says, else the empty one.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// How many values (keys, scalars, lists, mappings) one file may hold. Default: 5 million, more
    /// than 16 MiB of manifests hold.
    pub fn max_nodes(&self) -> usize {
        self.max_nodes
    }
}
