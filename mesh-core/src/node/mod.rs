mod apply;
mod certificates;
mod problems;
mod supervise;

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, Weak};

use arc_swap::ArcSwap;
use mesh_authz::Identity;
use mesh_hbone::pool::Pool;
use mesh_hbone::tls::{self, Provider};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};

use self::problems::Stale;
use self::supervise::CONFIG_SOURCE;
use crate::builder::{Builder, Missing};
use crate::config::{Board, ConfigLink, ConfigSource};
use crate::error::Chain;
use crate::identity::CertificateSource;
use crate::mesh::{Mesh, MeshInner, WorkloadId};
use crate::net::Transport;
use crate::outbound::{Hosts, PoolKey};
use crate::random::Random;
use crate::ready::{Gate, Readiness};
use crate::settings::Settings;
use crate::snapshot::{Draft, Snapshot};
use crate::sync::lock;
use crate::tasks::Tasks;
use crate::telemetry::Metrics;
use crate::{Error, ErrorKind};

pub(crate) use self::certificates::{Certificate, CertificateState, certificate_name};
pub(crate) use self::supervise::supervised;

/// What the workloads of one process share: configuration, certificates, tunnels, metrics.
///
/// [`Mesh::builder`] makes a private one; build one with [`Node::builder`] to have several workloads
/// in one process. Its tasks run on the runtime that built it and end with its last handle: those
/// are the clones of the node, its [`Mesh`]es, their listeners, and what they have opened: streams and
/// responses.
///
/// # Examples
///
/// ```no_run
/// use mesh_core::{Node, config, identity};
///
/// # async fn example() -> Result<(), mesh_core::Error> {
/// let node = Node::builder()
///     .config(config::File::watch("bookinfo.yaml"))
///     .identity(identity::DevCa::in_dir(".mesh-dev", "cluster.local"))
///     .build_node()?;
/// let reviews = node.workload("default", "reviews-v1", "bookinfo-reviews")?;
/// let ratings = node.workload("default", "ratings-v1", "bookinfo-ratings")?;
/// # let _ = (reviews, ratings);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Node {
    pub(crate) inner: Arc<NodeInner>,
}

pub(crate) struct NodeInner {
    pub(crate) settings: Settings,
    provider: Provider,
    pub(crate) transport: Transport,
    pub(crate) snapshot: ArcSwap<Snapshot>,
    /// Held while a batch is applied, with what is to take effect with the next one. Never taken on the data path.
    writer: Mutex<Option<Draft>>,
    /// Told after each published snapshot.
    published: watch::Sender<u64>,
    meshes: Mutex<Vec<Weak<MeshInner>>>,
    problems: Mutex<Vec<Arc<str>>>,
    warnings: Mutex<Vec<String>>,
    /// What of the configuration makes no workload as it is.
    pub(crate) of_no_use: Mutex<Vec<String>>,
    /// Whether what is configured is all there is.
    whole: AtomicBool,
    stale: Mutex<Option<Stale>>,
    /// What is demanded of the configuration source.
    pub(crate) board: Arc<Board>,
    certificates: Mutex<HashMap<Identity, Certificate>>,
    /// Whether some workload still has the identity.
    wanted: Mutex<HashMap<Identity, Weak<()>>>,
    vouches: Box<dyn CertificateSource>,
    pub(crate) admission: tls::Admission,
    /// Room for inbound sockets.
    pub(crate) sockets: Arc<Semaphore>,
    pub(crate) pool: Pool<PoolKey>,
    pub(crate) hosts: Hosts,
    pub(crate) metrics: Metrics,
    pub(crate) gate: Gate,
    pub(crate) random: Random,
    /// What keeps the configuration and the certificates current.
    pub(crate) tasks: Tasks,
    /// What works for connections: upkeep of pools, look-ups, answers. Where the tasks of its workloads run, too.
    pub(crate) work: Tasks,
    /// Wakes who looks after certificates: there is one that may expire sooner.
    pub(crate) sooner: Arc<Notify>,
}

type Run = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// A configuration source, its type forgotten.
pub(crate) struct StartConfig(Box<dyn FnOnce(ConfigLink) -> Run + Send>);

impl StartConfig {
    pub(crate) fn new(source: impl ConfigSource) -> Self {
        Self(Box::new(|link| Box::pin(source.run(link))))
    }
}

impl Node {
    /// Starts building a node.
    pub fn builder() -> Builder<Missing, Missing, Missing> {
        Builder::new()
    }

    pub(crate) fn start(
        settings: Settings,
        config: StartConfig,
        vouches: impl CertificateSource,
    ) -> Result<Self, Error> {
        let runtime = Handle::try_current().map_err(|_| {
            Error::new(ErrorKind::Config).with_detail(
                "build: expected to be called on a tokio runtime, on which the mesh's tasks run",
            )
        })?;
        let provider = settings.provider.clone().or_else(Provider::by_feature).ok_or_else(|| {
            Error::new(ErrorKind::Config).with_detail("crypto: expected a provider: turn on the feature `aws-lc-rs` or `ring`, or set one")
        })?;
        let transport = settings.transport.clone().unwrap_or_else(Transport::tcp);
        let control = settings.control_runtime.clone();
        let control = control.unwrap_or_else(|| runtime.clone());
        let inner = Arc::new(NodeInner {
            provider,
            hosts: Hosts::new(&settings, transport.clone()),
            transport,
            snapshot: ArcSwap::from_pointee(Snapshot::new()),
            writer: Mutex::default(),
            published: watch::Sender::new(0),
            meshes: Mutex::default(),
            problems: Mutex::default(),
            warnings: Mutex::default(),
            of_no_use: Mutex::default(),
            whole: AtomicBool::new(false),
            stale: Mutex::default(),
            board: Board::new(),
            certificates: Mutex::default(),
            wanted: Mutex::default(),
            vouches: Box::new(vouches),
            // Silent sockets have places, too: they give way to each other before all are taken.
            admission: tls::Admission::new(
                settings
                    .admission
                    .clone()
                    .waiting_at_most(settings.max_connections / 2),
            ),
            sockets: Arc::new(Semaphore::new(settings.max_node_connections)),
            pool: Pool::new(settings.hbone.clone()).on_runtime(runtime.clone()),
            metrics: Metrics::with_settings(settings.metrics.clone()),
            gate: Gate::new(),
            random: Random::new(settings.rng_seed),
            tasks: Tasks::new(control),
            work: Tasks::new(runtime),
            sooner: Arc::default(),
            settings,
        });
        let link = ConfigLink::new(Arc::downgrade(&inner));
        let source = inner.tasks.enter(|| (config.0)(link));
        let node = Arc::downgrade(&inner);
        inner.supervise(CONFIG_SOURCE, async move {
            source.await?;
            if let Some(node) = node.upgrade() {
                node.gate
                    .cannot_start(Some(format!("the {CONFIG_SOURCE} has ended without any")));
            }
            Ok(())
        });
        let node = Arc::downgrade(&inner);
        let upkeep = crate::upkeep::run(Weak::clone(&node));
        // It holds locks that connections want: not on a thread that may have to wait for a core.
        inner.work.spawn(supervised(node, "upkeep", async {
            upkeep.await;
            Ok(())
        }));
        Ok(Self { inner })
    }

    /// Adds a workload: its namespace, its name (the Pod's or WorkloadEntry's `metadata.name`) and
    /// its service account.
    ///
    /// # Errors
    ///
    /// When the three do not make a SPIFFE id, or when the source of configuration speaks for another
    /// workload alone, as `config::Xds` (feature `istiod`) does; made before the source began, the
    /// workload's listeners and connections have that error.
    pub fn workload(
        &self,
        namespace: impl Into<String>,
        name: impl Into<String>,
        service_account: impl Into<String>,
    ) -> Result<Mesh, Error> {
        let id = WorkloadId::new(namespace, name, service_account);
        let identity = id.identity(self.inner.settings.trust_domain())?;
        self.mesh(id, identity)
    }

    pub(crate) fn mesh(&self, id: WorkloadId, identity: Identity) -> Result<Mesh, Error> {
        if let Some(why) = self.inner.board.refusal(&id) {
            return Err(Error::new(ErrorKind::Config).with_detail(why));
        }
        let certificate = self.inner.certificate(&identity);
        self.inner.board.workload(&id, &identity);
        let mesh = MeshInner::new(self.clone(), id, identity, certificate);
        {
            let _writer = lock(&self.inner.writer);
            mesh.configuration_changed(&self.inner.snapshot.load());
            let mut meshes = lock(&self.inner.meshes);
            meshes.retain(|mesh| mesh.strong_count() > 0);
            meshes.push(Arc::downgrade(&mesh));
        }
        Ok(Mesh { inner: mesh })
    }

    /// What the node still waits for.
    pub fn readiness(&self) -> Readiness {
        self.inner.gate.current()
    }

    /// What sources of configuration refused, with file, line and field where there is one; the last
    /// good versions stay in effect.
    pub fn problems(&self) -> Vec<String> {
        self.inner.problems()
    }

    /// What sources of configuration passed over, with file, line and field: most likely slips, such as
    /// `podIp` for `podIP`. The rest of the objects is in effect.
    pub fn warnings(&self) -> Vec<String> {
        self.inner.warnings()
    }

    /// The metrics of all workloads of the node.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }
}

impl NodeInner {
    /// Told after each published snapshot.
    pub(crate) fn published(&self) -> watch::Receiver<u64> {
        self.published.subscribe()
    }

    /// The workloads of the node, in no order.
    pub(crate) fn meshes(&self) -> Vec<Arc<MeshInner>> {
        let meshes = lock(&self.meshes);
        meshes.iter().filter_map(Weak::upgrade).collect()
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("readiness", &self.readiness())
            .finish_non_exhaustive()
    }
}

/// An error with all its sources, on one line.
pub(crate) fn report(error: &(dyn std::error::Error + 'static)) -> String {
    Chain(error).to_string()
}
