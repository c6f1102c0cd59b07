//! Who talked to whom, as Istio's labels say it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use mesh_authz::Identity;
use mesh_xds::model::Workload;

/// Longest label value kept, in bytes. Kubernetes names have at most 253; a peer's baggage may claim more.
const MAX_VALUE: usize = 256;

/// Which end of the connection reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reporter {
    /// The client's end: outbound.
    Source,
    /// The server's end: inbound.
    Destination,
}

impl Reporter {
    /// The value of the label `reporter`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }

    /// The value of the access log's field `direction`.
    pub fn direction(self) -> &'static str {
        match self {
            Self::Source => "outbound",
            Self::Destination => "inbound",
        }
    }
}

/// How the connection was protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SecurityPolicy {
    /// Through a tunnel, both ends' identities proven.
    MutualTls,
    /// Anything else: Istio's ambient mode has no other word for plaintext.
    Unknown,
}

impl SecurityPolicy {
    /// The value of the label `connection_security_policy`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::Unknown => "unknown",
        }
    }
}

/// One end of a connection. Cloning costs three reference counts at most.
///
/// Values are cut to 256 bytes. An empty value counts as missing; a missing one is reported as `unknown`.
///
/// # Examples
///
/// ```
/// use mesh_core::telemetry::Peer;
///
/// let reviews = Peer::new("reviews-v1", "default")
///     .with_canonical_service("reviews")
///     .with_canonical_revision("v1")
///     .with_cluster("Kubernetes");
/// assert!(reviews.is_known());
/// assert!(!Peer::unknown().is_known());
/// ```
#[derive(Debug, Clone, Default)]
pub struct Peer {
    record: Option<Arc<Record>>,
    /// The pod's name: of the access log only. As a label it would make a series of every pod.
    instance: Option<Arc<str>>,
    principal: Option<Identity>,
}

/// What of a peer does not depend on the connection; part of a series' key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Record {
    workload: Option<Arc<str>>,
    namespace: Option<Arc<str>>,
    canonical_service: Option<Arc<str>>,
    canonical_revision: Option<Arc<str>>,
    app: Option<Arc<str>>,
    version: Option<Arc<str>>,
    cluster: Option<Arc<str>>,
    region: Option<Arc<str>>,
    zone: Option<Arc<str>>,
}

/// What is stored is at most [`MAX_VALUE`] long and never empty.
fn bounded(value: impl Into<Arc<str>>) -> Option<Arc<str>> {
    let value = value.into();
    match value.len() {
        0 => None,
        len if len <= MAX_VALUE => Some(value),
        _ => {
            let fits = |end: &usize| value.is_char_boundary(*end);
            let end = (0..=MAX_VALUE).rev().find(fits).unwrap_or(0);
            Some(value[..end].into())
        }
    }
}

impl Peer {
    /// A workload: the name of its Deployment (or what else owns its pods) and its namespace.
    pub fn new(workload: impl Into<Arc<str>>, namespace: impl Into<Arc<str>>) -> Self {
        let record = Record {
            workload: bounded(workload),
            namespace: bounded(namespace),
            ..Record::default()
        };
        Self {
            record: Some(Arc::new(record)),
            instance: None,
            principal: None,
        }
    }

    /// An end of which the mesh knows no workload.
    pub fn unknown() -> Self {
        Self::default()
    }

    fn with(mut self, set: impl FnOnce(&mut Record)) -> Self {
        set(Arc::make_mut(self.record.get_or_insert_default()));
        self
    }

    /// Sets the canonical service: the label `service.istio.io/canonical-name`, or `app`.
    ///
    /// It stands in for [`with_app`](Self::with_app) where that is not set, as in ztunnel.
    pub fn with_canonical_service(self, value: impl Into<Arc<str>>) -> Self {
        self.with(|record| record.canonical_service = bounded(value))
    }

    /// Sets the canonical revision; it stands in for [`with_version`](Self::with_version) where that is not set.
    ///
    /// An empty one is `latest`: istiod and Envoy say so of a workload that has none.
    pub fn with_canonical_revision(self, value: impl Into<Arc<str>>) -> Self {
        let value = bounded(value).unwrap_or_else(|| "latest".into());
        self.with(|record| record.canonical_revision = Some(value))
    }

    /// Sets the application, where it is not the canonical service: of a peer known from baggage alone,
    /// ztunnel reports the workload's name here.
    pub fn with_app(self, value: impl Into<Arc<str>>) -> Self {
        self.with(|record| record.app = bounded(value))
    }

    /// Sets the version, where it is not the canonical revision.
    pub fn with_version(self, value: impl Into<Arc<str>>) -> Self {
        self.with(|record| record.version = bounded(value))
    }

    /// Sets the cluster's id.
    pub fn with_cluster(self, value: impl Into<Arc<str>>) -> Self {
        self.with(|record| record.cluster = bounded(value))
    }

    /// Sets region and zone; an empty one is missing.
    pub fn with_locality(self, region: impl Into<Arc<str>>, zone: impl Into<Arc<str>>) -> Self {
        self.with(|record| {
            record.region = bounded(region);
            record.zone = bounded(zone);
        })
    }

    /// Sets the pod's name, which only the access log shows.
    pub fn with_instance(mut self, name: impl Into<Arc<str>>) -> Self {
        self.instance = bounded(name);
        self
    }

    /// Sets the identity. Of a source, only one that a certificate proved; of a destination, the
    /// workload's, in plaintext too.
    ///
    /// What a mesh reports as its own is that of its certificate in use when the stream or request begins. Clients may
    /// have come before, and have seen another trust domain where that has changed since
    /// ([`Mesh::identity`](crate::Mesh::identity)).
    pub fn with_principal(mut self, principal: Identity) -> Self {
        self.principal = Some(principal);
        self
    }

    /// Whether a workload is known.
    pub fn is_known(&self) -> bool {
        self.record.is_some()
    }

    fn get(&self, field: impl FnOnce(&Record) -> &Option<Arc<str>>) -> Option<&str> {
        self.record
            .as_ref()
            .and_then(|record| field(record).as_deref())
    }

    /// Everything but the pod's name.
    fn key(&self) -> PeerKey<'_> {
        (self.record.as_deref(), self.principal.as_ref())
    }

    /// The workload's name.
    pub fn workload(&self) -> Option<&str> {
        self.get(|record| &record.workload)
    }

    /// The workload's namespace.
    pub fn namespace(&self) -> Option<&str> {
        self.get(|record| &record.namespace)
    }

    /// The canonical service.
    pub fn canonical_service(&self) -> Option<&str> {
        self.get(|record| &record.canonical_service)
    }

    /// The canonical revision.
    pub fn canonical_revision(&self) -> Option<&str> {
        self.get(|record| &record.canonical_revision)
    }

    /// The application.
    pub fn app(&self) -> Option<&str> {
        self.get(|record| &record.app)
            .or_else(|| self.canonical_service())
    }

    /// The version.
    pub fn version(&self) -> Option<&str> {
        self.get(|record| &record.version)
            .or_else(|| self.canonical_revision())
    }

    /// The cluster's id.
    pub fn cluster(&self) -> Option<&str> {
        self.get(|record| &record.cluster)
    }

    /// The region.
    pub fn region(&self) -> Option<&str> {
        self.get(|record| &record.region)
    }

    /// The zone.
    pub fn zone(&self) -> Option<&str> {
        self.get(|record| &record.zone)
    }

    /// The name in access logs: the pod's, else the canonical service.
    pub fn instance(&self) -> Option<&str> {
        self.instance
            .as_deref()
            .or_else(|| self.canonical_service())
    }

    /// The identity.
    pub fn principal(&self) -> Option<&Identity> {
        self.principal.as_ref()
    }
}

/// All but the principal, which depends on the connection.
impl From<&Workload> for Peer {
    fn from(workload: &Workload) -> Self {
        let locality = workload.locality();
        Self::new(workload.workload_name(), workload.namespace())
            .with_canonical_service(workload.canonical_name())
            .with_canonical_revision(workload.canonical_revision())
            .with_cluster(workload.cluster_id())
            .with_locality(locality.region(), locality.zone())
            .with_instance(workload.name())
    }
}

/// The service that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DestinationService {
    hostname: Option<Arc<str>>,
    name: Option<Arc<str>>,
    namespace: Option<Arc<str>>,
}

impl DestinationService {
    /// A service of the mesh: its hostname (`reviews.default.svc.cluster.local`), name and namespace.
    pub fn new(
        hostname: impl Into<Arc<str>>,
        name: impl Into<Arc<str>>,
        namespace: impl Into<Arc<str>>,
    ) -> Self {
        Self {
            hostname: bounded(hostname),
            name: bounded(name),
            namespace: bounded(namespace),
        }
    }

    /// A host that the mesh does not know, under the name that Istio's dashboards have for all of them.
    ///
    /// The host itself is left out: it is the caller's text, and would make a series each.
    pub fn passthrough() -> Self {
        Self::new("", "PassthroughCluster", "")
    }

    /// A host that the mesh does not know and that nobody may connect to
    /// ([`RegistryOnly`](crate::OutboundPolicy::RegistryOnly)), under Istio's name for all of them.
    pub fn black_hole() -> Self {
        Self::new("", "BlackHoleCluster", "")
    }

    /// The hostname.
    pub fn hostname(&self) -> Option<&str> {
        self.hostname.as_deref()
    }

    /// The service's name.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The service's namespace.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }
}

/// The labels of a connection, built once and shared by all that is counted on it.
///
/// Cloning is one reference count, comparing is a pointer in the common case, the hash is kept.
#[derive(Debug, Clone)]
pub struct Labels {
    inner: Arc<LabelSet>,
}

#[derive(Debug)]
struct LabelSet {
    /// Of the key below with fixed keys: tables hash it again with their own.
    hash: u64,
    reporter: Reporter,
    source: Peer,
    destination: Peer,
    service: Option<DestinationService>,
    security: SecurityPolicy,
}

impl Labels {
    /// Labels of a connection, as seen from `reporter`.
    ///
    /// `destination` is the next workload: a waypoint where the connection goes through one;
    /// `service` stays what was asked for.
    pub fn new(
        reporter: Reporter,
        source: Peer,
        destination: Peer,
        service: Option<DestinationService>,
        security: SecurityPolicy,
    ) -> Self {
        let mut set = LabelSet {
            hash: 0,
            reporter,
            source,
            destination,
            service,
            security,
        };
        let mut hasher = DefaultHasher::new();
        set.key().hash(&mut hasher);
        set.hash = hasher.finish();
        Self {
            inner: Arc::new(set),
        }
    }

    /// Which end reports.
    pub fn reporter(&self) -> Reporter {
        self.inner.reporter
    }

    /// The client's end.
    pub fn source(&self) -> &Peer {
        &self.inner.source
    }

    /// The server's end.
    pub fn destination(&self) -> &Peer {
        &self.inner.destination
    }

    /// The service that was asked for.
    pub fn service(&self) -> Option<&DestinationService> {
        self.inner.service.as_ref()
    }

    /// How the connection was protected.
    pub fn security(&self) -> SecurityPolicy {
        self.inner.security
    }
}

type PeerKey<'a> = (Option<&'a Record>, Option<&'a Identity>);
type Key<'a> = (
    Reporter,
    SecurityPolicy,
    PeerKey<'a>,
    PeerKey<'a>,
    Option<&'a DestinationService>,
);

impl LabelSet {
    /// What tells one series from another: everything but the pods' names.
    fn key(&self) -> Key<'_> {
        (
            self.reporter,
            self.security,
            self.source.key(),
            self.destination.key(),
            self.service.as_ref(),
        )
    }
}

impl PartialEq for Labels {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
            || (self.inner.hash == other.inner.hash && self.inner.key() == other.inner.key())
    }
}

impl Eq for Labels {}

impl Hash for Labels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.inner.hash);
    }
}
