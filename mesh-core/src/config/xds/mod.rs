//! Configuration from istiod, or whoever speaks its discovery.

mod follow;
mod keep;
mod node;
mod problems;
mod prove;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_authz::policy::ztunnel::EmptyMatch;
use mesh_xds::ads::NodeValue;

use super::{ConfigLink, ConfigSource};
use crate::bootstrap::Registering;
use crate::{ControlPlane, Error};

/// Configuration from istiod over one stream of aggregated discovery.
///
/// The stream carries workloads, services and policies as an ambient mesh has them and, for each port on
/// which the application serves HTTP, that port's own inbound listener. On the ambient stream policies arrive
/// without the parts that need a request, the listener has them whole: so
/// [`listen_http`](crate::Mesh::listen_http) waits for it, at most the
/// [policy wait](crate::Builder::policy_wait). Where istiod sends none, because no Service names the port,
/// the port is judged by what the ambient stream has of the policies: an ALLOW rule with parts that need
/// a request allows nothing there, a DENY rule denies more. `/explain` says which it is.
///
/// The token and the root file are read anew for each stream. Where the token is missing or refused, the
/// workload's current certificate proves who asks, as istio-agent has it.
///
/// Before everything has come once, the mesh is not ready, and says why. After that, a control plane that
/// is away takes nothing away: what it said last stays in effect, `/config_dump` marks it stale, and
/// the next stream asks for what has changed since.
///
/// # One workload, or a node's
///
/// istiod permits to say who one is, and sends listeners, to a `sidecar~` node, which is one workload: the
/// default, and the one of the [`Mesh`](crate::Mesh) that is built with this source: its token and its certificate
/// prove that one alone. Several workloads in a process are a mesh each, built with a source each; one more
/// on the [`Node`](crate::Node) of another is an error. The [proxy of a host](Self::node_proxy) speaks for all of its
/// node's.
///
/// # Examples
///
/// ```no_run
/// use mesh_core::{ControlPlane, Mesh, config, identity};
///
/// # async fn example() -> Result<(), mesh_core::Error> {
/// let istiod = ControlPlane::new("istiod.istio-system.svc:15012").cluster_id("Kubernetes");
/// let mesh = Mesh::builder()
///     .workload("default", "reviews-v1-5b8d", "bookinfo-reviews")
///     .config(config::Xds::istiod(istiod.clone()))
///     .identity(identity::Istiod::new(istiod))
///     .build()?;
/// # let _ = mesh;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Xds {
    control_plane: ControlPlane,
    mode: Mode,
    by_name: bool,
    addresses: Vec<IpAddr>,
    metadata: BTreeMap<String, NodeValue>,
    locality: Option<[String; 3]>,
    backoff: Option<(Duration, Duration)>,
    seed: Option<u64>,
    max_resources: Option<usize>,
    max_names: Option<usize>,
    pause: Duration,
    max_initial_versions: Option<usize>,
    state_dir: Option<Arc<Path>>,
    /// A host that had other names by other addresses.
    registering: Option<Registering>,
    empty_match: EmptyMatch,
}

/// As which type of node the stream is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mode {
    /// One workload, which also gets its inbound listeners.
    Sidecar,
    /// The proxy of a host, by name and namespace.
    NodeProxy { namespace: String, name: String },
}

impl Xds {
    /// Takes where the control plane is, with its root, token and headers: an address as `host:port` has
    /// the defaults of a Pod. Nothing is dialled or read here.
    pub fn istiod(control_plane: impl Into<ControlPlane>) -> Self {
        Self {
            control_plane: control_plane.into(),
            mode: Mode::Sidecar,
            by_name: false,
            addresses: Vec::new(),
            metadata: BTreeMap::new(),
            locality: None,
            backoff: None,
            seed: None,
            max_resources: None,
            max_names: None,
            pause: Duration::from_micros(500),
            max_initial_versions: None,
            state_dir: None,
            registering: None,
            empty_match: EmptyMatch::default(),
        }
    }

    /// Speaks as the proxy of a host, `ztunnel~`, for all workloads of the node: policies of all namespaces
    /// are kept current, and there are no inbound listeners. Takes the proxy's own namespace and name.
    ///
    /// Never `GENERATOR=grpc` beside it: a `ztunnel~` node that asks for listeners so crashes istiod, so that
    /// this key is not sent, whatever [`metadata`](Self::metadata) says.
    #[must_use]
    pub fn node_proxy(mut self, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        self.mode = Mode::NodeProxy {
            namespace: namespace.into(),
            name: name.into(),
        };
        self
    }

    /// Asks only for what is dialled, rather than for the whole mesh: for an application with few
    /// destinations in a large mesh, which then takes the memory of what it dials. All policies of the mesh come in
    /// either mode, and are kept: discovery has none by what they select, and a workload must have its own before it
    /// is called.
    ///
    /// The first connection to a destination waits for it, at most the
    /// [policy wait](crate::Builder::policy_wait). Services are found by their names in Kubernetes; one
    /// of a ServiceEntry whose host is not of Kubernetes' form only if it is in the workload's own
    /// namespace. Up to [10 000 names](Self::max_names) are asked for.
    #[must_use]
    pub fn on_demand(mut self) -> Self {
        self.by_name = true;
        self
    }

    /// Sets the workload's own addresses, the first of which says who it is: unless set, the address
    /// from which this host reaches the control plane.
    #[must_use]
    pub fn addresses(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        self.addresses = addresses.into_iter().collect();
        self
    }

    /// Sets the cluster that this host is in: `CLUSTER_ID`, for policies and locality, and the
    /// [header](ControlPlane::cluster_id) by which istiod finds who can review the token.
    #[must_use]
    pub fn cluster_id(mut self, cluster: impl Into<String>) -> Self {
        let cluster = cluster.into();
        self.control_plane = self.control_plane.cluster_id(cluster.as_str());
        self.metadata("CLUSTER_ID", cluster)
    }

    /// Sets the workload's labels, `LABELS`: istiod does without, unless it registers this host.
    #[must_use]
    pub fn labels<K: Into<String>, V: Into<String>>(
        self,
        labels: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let labels = labels.into_iter();
        self.metadata("LABELS", NodeValue::map(labels.map(|(k, v)| (k, v.into()))))
    }

    /// Sets a value of the node's metadata. Its defaults are `NAME`, `NAMESPACE`, `SERVICE_ACCOUNT`,
    /// `INSTANCE_IPS`, `NETWORK` (the builder's), `ISTIO_VERSION` (this crate's name and version) and
    /// `PROXY_CONFIG` (empty: without it istiod leaves this process out of `istioctl proxy-status`); of a
    /// workload also `GENERATOR` and `ENABLE_HBONE`.
    ///
    /// istiod is strict about kinds: what it calls a boolean is the text `"true"`.
    #[must_use]
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<NodeValue>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Sets where the host is; a part may be empty. Unset, istiod knows it by the Node of the Pod.
    #[must_use]
    pub fn locality(
        mut self,
        region: impl Into<String>,
        zone: impl Into<String>,
        subzone: impl Into<String>,
    ) -> Self {
        self.locality = Some([region.into(), zone.into(), subzone.into()]);
        self
    }

    /// Sets how long the first wait before another attempt may be, and any wait; 1.5 s and 30 s unless
    /// set, each drawn at random: see [`Settings::with_backoff`](mesh_xds::ads::Settings::with_backoff).
    #[must_use]
    pub fn backoff(mut self, first: Duration, max: Duration) -> Self {
        self.backoff = Some((first, max));
        self
    }

    /// Seeds what spreads attempts, so that it can be repeated.
    #[must_use]
    pub fn rng(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Sets how many resources of a type are kept; 2 000 000 unless set. Those beyond are refused by name.
    #[must_use]
    pub fn max_resources(mut self, resources: usize) -> Self {
        self.max_resources = Some(resources);
        self
    }

    /// Sets how many names of a type are asked for: the inbound listeners of ports, and [on demand](Self::on_demand)
    /// what is dialled; 10 000 unless set, which fit a request to istiod, and of what is dialled no more than that.
    ///
    /// Whoever dials one more is told so by an error. A port beyond it is judged as one without a listener, with a
    /// warning, and `/explain` says so.
    #[must_use]
    pub fn max_names(mut self, names: usize) -> Self {
        self.max_names = Some(names);
        self
    }

    /// Sets how long a pause is made after each 64 resources of a push, some 0.3 ms of work, so that the application's
    /// own work does not wait for a core; 0.5 ms unless set, which makes a push of 100 000 resources last 3 to 4 s: the
    /// runtime's clock has steps of 1 ms.
    /// What comes behind a push on the stream takes effect after it: a policy that denies, so much later.
    /// Zero is none, 100 ms the most. What comes first, before which nothing is served, is read without.
    #[must_use]
    pub fn push_pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// Sets up to which size the first request of a type on a new stream says which versions are here, in bytes;
    /// 3.5 MiB (3 670 016) unless set, which is some 50 000 workloads: stock istiod refuses requests beyond 4 MiB.
    ///
    /// Beyond it, and with 0 always, none is said: the control plane sends everything again, and what is not
    /// among it is dropped. A smaller one suits what stands before a control plane and takes less; a larger one,
    /// a control plane that takes more. A request that is refused as too large is tried again without them.
    #[must_use]
    pub fn max_initial_versions(mut self, bytes: usize) -> Self {
        self.max_initial_versions = Some(bytes);
        self
    }

    /// Keeps what the control plane said last in a directory, readable by its owner alone: nothing is kept
    /// unless set. After a restart it is in effect at once, marked stale in `/config_dump` until the
    /// control plane has answered whole, so that a host that comes back while the control plane is away
    /// serves as before. With [`identity::Istiod::state_dir`](crate::identity::Istiod::state_dir) it needs nobody for that.
    ///
    /// What is kept is also in memory, as it came: some 300 bytes a workload. It is written whole, a second
    /// after a change and at most every ten; a push of a large mesh is put with it as it is read, with
    /// [pauses](Self::push_pause), and written after all of it is. A file that is damaged, of another version, of another
    /// workload or control plane, writable by others or larger than 256 MiB is not used, and a warning says why.
    ///
    /// Of a host that registers ([`Builder::bootstrap_dir`](crate::Builder::bootstrap_dir)), whose name has its address,
    /// what was kept by an address that none of its interfaces has any more is removed once there is something by the new
    /// one, if that is on an interface: for the same control plane, in the same mode (whole or [on demand](Self::on_demand)), and
    /// not written for a day. The directory is one host's, in one network namespace: to another, the addresses here are on no interface.
    ///
    /// The directory holds what was kept of 64 workloads, those of all processes that share it. With each write the oldest
    /// beyond go, whoever they are of: behind NAT none of a host's addresses is on an interface.
    #[must_use]
    pub fn state_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(path.into().into());
        self
    }

    /// Does not keep what the state directory has of this host by addresses that it does not have any more.
    pub(crate) fn registering(mut self, host: Registering) -> Self {
        self.registering = Some(host);
        self
    }

    /// The names of a namespace's workloads of which a directory has something, the newest first. Blocking.
    pub(crate) fn kept_names(state_dir: &Path, namespace: &str) -> Vec<String> {
        keep::names(state_dir, namespace)
    }

    /// Sets how a match without fields counts, which stands for conditions that a policy lost on its way:
    /// as lost unless set, so that no decision is more permissive for it. istio/ztunnel never matches it.
    #[must_use]
    pub fn empty_match(mut self, empty_match: EmptyMatch) -> Self {
        self.empty_match = empty_match;
        self
    }
}

impl ConfigSource for Xds {
    /// # Errors
    ///
    /// When a setting cannot be met. A control plane that is away is no error: it is tried again.
    async fn run(self, link: ConfigLink) -> Result<(), Error> {
        follow::run(self, link).await
    }
}
