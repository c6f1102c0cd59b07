use std::collections::{HashMap, HashSet};
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use futures_util::{FutureExt, StreamExt};
use mesh_authz::Identity;
use mesh_hbone::pool::Pool;
use mesh_hbone::tls::{self, Credentials, Provider};
use mesh_xds::model::{Batch, Verdict};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};

use crate::builder::{Builder, Missing};
use crate::config::{Board, ConfigLink, ConfigSource};
use crate::error::Chain;
use crate::identity::{self, CertificateSource};
use crate::mesh::{Mesh, MeshInner, WorkloadId};
use crate::net::Transport;
use crate::outbound::{Hosts, PoolKey};
use crate::random::Random;
use crate::ready::{Gate, PATIENCE, Readiness, Told};
use crate::settings::Settings;
use crate::snapshot::{Changes, Draft, Remains, Snapshot, verdicts};
use crate::sync::lock;
use crate::tasks::Tasks;
use crate::telemetry::Metrics;
use crate::{Error, ErrorKind};

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
    /// What of the configuration makes nothing as it is.
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

/// The certificates of one identity as they come; `None` until the first.
pub(crate) type Certificate = watch::Receiver<CertificateState>;

#[derive(Debug, Clone, Default)]
pub(crate) struct CertificateState {
    pub(crate) credentials: Option<Credentials>,
    pub(crate) error: Option<Arc<str>>,
    /// Why waiting for the first one is of no use.
    pub(crate) permanent: Option<identity::Error>,
}

/// Since when the configuration is not kept current, and why.
#[derive(Debug, Clone)]
#[cfg_attr(
    not(feature = "admin"),
    expect(dead_code, reason = "the config dump shows it")
)]
pub(crate) struct Stale {
    pub(crate) since: SystemTime,
    pub(crate) reason: String,
}

/// From how many changes on what was before is let go of little by little: for so long at once, and then a pause.
const LARGE: usize = 1000;
const BITE: Duration = Duration::from_micros(200);
const PAUSE: Duration = Duration::from_millis(1);

/// How many shared values are settled at once.
#[cfg(feature = "istiod")]
const SETTLED: usize = 64;

/// How many pauses a snapshot may still be read for, before it goes with who reads it.
const READ: usize = 100;

/// The task that runs it, and what readiness calls it.
const CONFIG_SOURCE: &str = "configuration source";

type Run = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// What an item costs differs too much to count them: whoever frees the last of many may pay for all.
fn shed(last: &mut Remains) -> bool {
    let begun = tokio::time::Instant::now();
    while last.shed() {
        if begun.elapsed() > BITE {
            return true;
        }
    }
    false
}

/// Of a whole mesh it takes a while, in which others have better to do with the core.
async fn let_go(last: Arc<Snapshot>) {
    let mut last = Remains::of(last);
    for _ in 0..READ {
        let Err(read) = last else { break };
        tokio::time::sleep(PAUSE).await;
        last = Remains::of(read);
    }
    if let Ok(mut last) = last {
        while shed(&mut last) {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

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
    /// Applies a batch as one change; the configuration is ready by it.
    pub(crate) fn apply(&self, batch: Batch) -> Vec<Verdict> {
        self.apply_as(batch, true)
    }

    /// Applies a batch as one change; it is not all of the first configuration.
    pub(crate) fn prepare(&self, batch: Batch) -> Vec<Verdict> {
        self.apply_as(batch, false)
    }

    /// Puts a batch where nobody sees it before the next one is applied.
    pub(crate) fn add(&self, batch: &Batch) -> Vec<Verdict> {
        let rejected = {
            let mut writer = lock(&self.writer);
            let mut draft = self.draft(&mut writer);
            let rejected = draft.put(batch, &mut Changes::default());
            *writer = Some(draft);
            rejected
        };
        let rejected = rejected.into_iter();
        let verdict =
            |(at, rejection): (usize, _)| Verdict::rejected(batch.updates()[at].name(), rejection);
        let verdicts = rejected.map(verdict).collect::<Vec<_>>();
        refused(&verdicts);
        verdicts
    }

    /// How many updates and removals are to take effect with the next batch.
    #[cfg(feature = "istiod")]
    pub(crate) fn added(&self) -> usize {
        lock(&self.writer).as_ref().map_or(0, Draft::size)
    }

    /// Does some of what is to be done before that takes effect, some 0.3 ms; `false` if there is no more of it.
    #[cfg(feature = "istiod")]
    pub(crate) fn settle(&self) -> bool {
        let mut writer = lock(&self.writer);
        let draft = writer.as_mut();
        draft.is_some_and(|draft| draft.settle(SETTLED))
    }

    /// Drops what was to take effect with the next batch.
    pub(crate) fn discard(&self) {
        let draft = lock(&self.writer).take();
        if draft.as_ref().is_some_and(|draft| draft.size() >= LARGE) {
            self.tasks.runtime().spawn_blocking(move || drop(draft));
        }
    }

    /// The one that was begun, or a new one. It is taken out, so that none is left half changed.
    fn draft(&self, begun: &mut Option<Draft>) -> Draft {
        let begun = begun.take();
        begun.unwrap_or_else(|| self.snapshot.load().draft())
    }

    fn apply_as(&self, batch: Batch, ready: bool) -> Vec<Verdict> {
        let (rejected, last) = {
            let mut writer = lock(&self.writer);
            let mut draft = self.draft(&mut writer);
            let rejected = draft.put(&batch, &mut Changes::default());
            let is_large = draft.size() >= LARGE;
            let snapshot = Arc::new(draft.finish());
            let last = self.snapshot.swap(Arc::clone(&snapshot));
            for mesh in lock(&self.meshes).iter().filter_map(Weak::upgrade) {
                mesh.configuration_changed(&snapshot);
            }
            (rejected, is_large.then_some(last))
        };
        if let Some(last) = last {
            self.tasks.runtime().spawn(let_go(last));
        }
        let verdicts = verdicts(&batch, rejected);
        if ready {
            self.gate.configured();
        }
        self.published.send_modify(|version| *version += 1);
        refused(&verdicts);
        let (_, _, reply) = batch.into_parts();
        if reply.is_wanted() {
            reply.send(verdicts.clone());
        }
        verdicts
    }

    pub(crate) fn report_problems(&self, problems: Vec<String>) {
        self.report_closed(problems, &HashSet::new());
    }

    /// As [`report_problems`](Self::report_problems), of who knows for what something narrower stands.
    pub(crate) fn report_closed(&self, problems: Vec<String>, closed: &HashSet<String>) {
        let problems: Vec<Arc<str>> = problems.into_iter().map(Arc::from).collect();
        let mut standing = lock(&self.problems);
        let known: HashSet<&Arc<str>> = standing.iter().collect();
        let new = problems.iter().filter(|problem| !known.contains(problem));
        self.warn_of(new, |problem| closed.contains(problem));
        *standing = problems;
    }

    /// As [`report_problems`](Self::report_problems), of who knows what is new.
    #[cfg(feature = "istiod")]
    pub(crate) fn report_changed(&self, new: &[Arc<str>], all: Vec<Arc<str>>) {
        let mut standing = lock(&self.problems);
        self.warn_of(new, |_| false);
        *standing = all;
    }

    fn warn_of<'a>(
        &self,
        problems: impl IntoIterator<Item = &'a Arc<str>>,
        is_closed: impl Fn(&str) -> bool,
    ) {
        let nothing = self.gate.current().start_failure().is_some();
        for problem in problems {
            if nothing {
                tracing::warn!(target: "mesh::config", %problem, "refused; there is no configuration before it is right");
            } else if is_closed(problem) {
                tracing::warn!(target: "mesh::config", %problem, "refused, and it has no last good version");
            } else {
                tracing::warn!(target: "mesh::config", %problem, "refused; its last good version stays, if there is one");
            }
        }
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        lock(&self.warnings).clone()
    }

    pub(crate) fn report_warnings(&self, warnings: Vec<String>) {
        let mut standing = lock(&self.warnings);
        let known: HashSet<&String> = standing.iter().collect();
        for warning in warnings.iter().filter(|warning| !known.contains(warning)) {
            tracing::warn!(target: "mesh::config", %warning, "most likely a slip");
        }
        *standing = warnings;
    }

    pub(crate) fn whole(&self) {
        self.whole.store(true, Ordering::Release);
    }

    /// Whether what is configured is all there is: nothing that is not there is waited for.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Acquire)
    }

    /// Says whether a source of configuration can be read. What is wrong may right itself (it `comes`), as where the
    /// control plane starts beside the application.
    #[cfg(any(feature = "file", feature = "istiod"))]
    pub(crate) fn source_problem(self: &Arc<Self>, name: &str, problem: Option<(String, bool)>) {
        match problem {
            None => self.gate.done(name),
            // Once there was a configuration, it stays in effect and the mesh stays ready.
            Some((problem, _)) if self.gate.is_configured() => {
                tracing::debug!(target: "mesh::config", %problem, "cannot read; the last good version stays");
            }
            Some((problem, comes)) => self.awaits(Awaited::Configuration, name, &problem, comes),
        }
    }

    /// Tells of something that the start waits for: at once, and once more and louder if it does not come.
    fn awaits(self: &Arc<Self>, what: Awaited, name: &str, why: &str, comes: bool) {
        let Some(told) = self.gate.wait(name, why, comes) else {
            return;
        };
        what.tell(name, why, told);
        let Told::Begins(began) = told else {
            return;
        };
        let (node, name) = (Arc::downgrade(self), name.to_owned());
        self.tasks.spawn(async move {
            tokio::time::sleep(PATIENCE).await;
            let late = node.upgrade().and_then(|node| node.gate.late(&name, began));
            if let Some(why) = late {
                what.tell(&name, &why, Told::Late);
            }
        });
    }

    pub(crate) fn stale(&self, reason: Option<String>) {
        let mut stale = lock(&self.stale);
        match (reason, &mut *stale) {
            (None, stale) => *stale = None,
            // Since when stays.
            (Some(reason), Some(stale)) => stale.reason = reason,
            (Some(reason), none) => {
                let since = self.settings.wall_clock.now();
                *none = Some(Stale { since, reason });
            }
        }
    }

    /// Since when and why the configuration is not kept current.
    #[cfg(feature = "admin")]
    pub(crate) fn staleness(&self) -> Option<Stale> {
        lock(&self.stale).clone()
    }

    /// Told after each published snapshot.
    pub(crate) fn published(&self) -> watch::Receiver<u64> {
        self.published.subscribe()
    }

    /// The workloads of the node, in no order.
    pub(crate) fn meshes(&self) -> Vec<Arc<MeshInner>> {
        let meshes = lock(&self.meshes);
        meshes.iter().filter_map(Weak::upgrade).collect()
    }

    /// The certificates of all identities, in no order.
    #[cfg(feature = "admin")]
    pub(crate) fn certificates(&self) -> Vec<(Identity, CertificateState)> {
        let certificates = lock(&self.certificates);
        let states = certificates.iter();
        states
            .map(|(identity, state)| (identity.clone(), state.borrow().clone()))
            .collect()
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        let problems = lock(&self.problems);
        problems.iter().map(ToString::to_string).collect()
    }

    /// The certificates of `identity`, fetched from now on if they were not before, and for as long as
    /// somebody holds the second value.
    fn certificate(self: &Arc<Self>, identity: &Identity) -> (Certificate, Arc<()>) {
        let mut wanted = lock(&self.wanted);
        let want = wanted.get(identity).and_then(Weak::upgrade);
        let want = want.unwrap_or_default();
        wanted.insert(identity.clone(), Arc::downgrade(&want));
        let mut certificates = lock(&self.certificates);
        if let Some(certificate) = certificates.get(identity) {
            return (certificate.clone(), want);
        }
        let (sender, receiver) = watch::channel(CertificateState::default());
        certificates.insert(identity.clone(), receiver.clone());
        drop((certificates, wanted));
        let name = certificate_name(identity);
        self.gate.pend(&name, "no certificate yet");
        let watch = || self.vouches.watch(identity.clone());
        let bundles = self.tasks.enter(watch);
        let node = Arc::downgrade(self);
        self.supervise(
            "certificate source",
            keep_certificate(node, identity.clone(), bundles, sender),
        );
        (receiver, want)
    }

    /// The credentials of every identity that has some.
    pub(crate) fn credentials(&self) -> HashMap<Identity, Credentials> {
        let certificates = lock(&self.certificates);
        certificates
            .iter()
            .filter_map(|(identity, state)| {
                Some((identity.clone(), state.borrow().credentials.clone()?))
            })
            .collect()
    }

    /// Puts another certificate in the place of one of `asked`. Where nobody said the trust domain the authority
    /// does, and it may say another than before: the mesh has been renamed, or the host is in another one now.
    fn exchange(
        &self,
        asked: &Identity,
        credentials: &Credentials,
        bundle: tls::Bundle,
    ) -> Result<(), mesh_hbone::Error> {
        let (before, now) = (credentials.current(), bundle.identity().clone());
        credentials.replace(bundle)?;
        if *before.identity() != now {
            tracing::warn!(target: "mesh::identity", before = %before.identity(), %now, "the trust domain is another: nobody has set one, so it is the certificate's");
            // What is opened from now on is opened as who we are now; who dials looks again when it has dialled.
            for (key, sender) in self.pool.senders() {
                if key.source() == asked {
                    sender.retire();
                }
            }
            #[cfg(feature = "http")]
            for mesh in self.meshes() {
                if mesh.asked == *asked {
                    mesh.http.close_idle();
                }
            }
        }
        Ok(())
    }

    /// Lets go of the certificates that no workload of the node has any more.
    pub(crate) fn forget_unwanted(&self) {
        let mut wanted = lock(&self.wanted);
        let mut certificates = lock(&self.certificates);
        wanted.retain(|identity, want| {
            let keep = want.strong_count() > 0;
            if !keep {
                certificates.remove(identity);
                self.gate.done(&certificate_name(identity));
            }
            keep
        });
    }

    /// Runs a source; its failure turns readiness off with its reason.
    fn supervise(
        self: &Arc<Self>,
        what: &'static str,
        task: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) {
        let node = Arc::downgrade(self);
        self.tasks.spawn(supervised(node, what, task));
    }
}

/// Tells of what is refused.
fn refused(verdicts: &[Verdict]) {
    for verdict in verdicts {
        if let Err(rejection) = verdict.result() {
            tracing::warn!(target: "mesh::config", resource = %verdict.resource(), %rejection, "refused; its last good version stays, if there is one");
        }
    }
}

/// Runs a task whose failure turns readiness off with its reason.
pub(crate) async fn supervised(
    node: Weak<NodeInner>,
    what: &'static str,
    task: impl Future<Output = Result<(), Error>> + Send,
) {
    let reason = match AssertUnwindSafe(task).catch_unwind().await {
        Ok(Ok(())) => return,
        // How every task ends when its node does.
        Ok(Err(error)) if error.kind() == ErrorKind::Draining => return,
        Ok(Err(error)) => report(&error),
        Err(_) => "it panicked".to_owned(),
    };
    tracing::error!(target: "mesh::node", task = what, %reason, "a task has ended; the last state stays");
    if let Some(node) = node.upgrade() {
        if what == CONFIG_SOURCE {
            node.gate.cannot_start(Some(reason.clone()));
        }
        node.gate.pend(what, reason);
    }
}

/// What a start waits for.
#[derive(Debug, Clone, Copy)]
enum Awaited {
    #[cfg(any(feature = "file", feature = "istiod"))]
    Configuration,
    Certificate,
}

impl Awaited {
    fn tell(self, name: &str, why: &str, told: Told) {
        match (self, told) {
            #[cfg(any(feature = "file", feature = "istiod"))]
            (Self::Configuration, Told::Late) => {
                tracing::warn!(target: "mesh::config", source = name, problem = why, "no configuration yet: still waiting for it");
            }
            #[cfg(any(feature = "file", feature = "istiod"))]
            (Self::Configuration, _) => {
                tracing::info!(target: "mesh::config", source = name, problem = why, "no configuration yet: waiting for it");
            }
            (Self::Certificate, Told::Late) => {
                tracing::warn!(target: "mesh::identity", name, reason = why, "no certificate yet: still waiting for it");
            }
            (Self::Certificate, _) => {
                tracing::info!(target: "mesh::identity", name, reason = why, "no certificate yet: waiting for it");
            }
        }
    }
}

/// What readiness calls it.
pub(crate) fn certificate_name(identity: &Identity) -> String {
    format!("certificate of {identity}")
}

async fn keep_certificate(
    node: Weak<NodeInner>,
    identity: Identity,
    mut bundles: identity::CertificateStream,
    sender: watch::Sender<CertificateState>,
) -> Result<(), Error> {
    let name = certificate_name(&identity);
    let mut last_error = None;
    loop {
        let next = tokio::select! {
            next = bundles.next() => next,
            // Nobody wants them any more.
            () = sender.closed() => return Ok(()),
        };
        let Some(node) = node.upgrade() else {
            return Ok(());
        };
        let Some(next) = next else {
            // Why its last item was an error says more.
            if sender.borrow().permanent.is_none() {
                let ended = last_error.unwrap_or_else(|| {
                    identity::Error::new(identity::ErrorKind::Unavailable, "its source has ended")
                });
                let reason = report(&ended);
                // A good certificate is one until it expires.
                if sender.borrow().credentials.is_none() {
                    node.gate.pend(&name, &reason);
                }
                sender.send_modify(|state| {
                    state.error = Some(reason.into());
                    state.permanent = Some(ended);
                });
            }
            return Ok(());
        };
        let outcome = next.and_then(|bundle| {
            let current = sender.borrow().credentials.clone();
            if !(node.settings.trust_domain_of).permits(&identity, bundle.identity()) {
                return Err(identity::Error::new(
                    identity::ErrorKind::WrongIdentity,
                    format!("the source gave one of {} instead", bundle.identity()),
                ));
            }
            match current {
                Some(credentials) => node
                    .exchange(&identity, &credentials, bundle)
                    .map(|()| credentials),
                None => {
                    Credentials::new(node.provider.clone(), bundle, node.settings.tls_options())
                }
            }
            .map_err(|error| {
                identity::Error::new(identity::ErrorKind::Invalid, "it cannot be used")
                    .with_source(error)
            })
        });
        last_error = outcome.as_ref().err().cloned();
        match outcome {
            Ok(credentials) => {
                node.gate.done(&name);
                sender.send_replace(CertificateState {
                    credentials: Some(credentials),
                    error: None,
                    permanent: None,
                });
                // Its CRLs may speak of peers that are connected, and it may expire before others.
                node.revoke_tunnels();
                node.sooner.notify_one();
            }
            Err(error) => {
                let reason = report(&error);
                if sender.borrow().credentials.is_some() {
                    tracing::warn!(target: "mesh::identity", %name, %reason, "no new certificate; a good one is kept until it expires");
                } else {
                    let comes = matches!(
                        error.kind(),
                        identity::ErrorKind::Io
                            | identity::ErrorKind::Token
                            | identity::ErrorKind::Unavailable
                    );
                    node.awaits(Awaited::Certificate, &name, &reason, comes);
                }
                sender.send_modify(|state| {
                    state.error = Some(reason.into());
                    state.permanent = Some(error).filter(identity::Error::is_permanent);
                });
            }
        }
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
