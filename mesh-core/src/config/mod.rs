//! Where configuration comes from: the first of the two traits of our own.

mod demand;
#[cfg(feature = "file")]
mod file;
mod fixed;
#[cfg(feature = "istiod")]
mod xds;

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use mesh_authz::Identity;
use mesh_hbone::tls::{Bundle, Credentials};
use mesh_xds::model::{Batch, Verdict};

use crate::node::NodeInner;
use crate::{Error, ErrorKind};

pub use demand::{AppHealth, Demand, Demands};
pub(crate) use demand::{Asked, Board};
#[cfg(feature = "file")]
pub use file::File;
pub use fixed::Fixed;
#[cfg(feature = "istiod")]
pub use xds::Xds;

/// A source of configuration: a file, a control plane, code.
///
/// # Examples
///
/// A source that gives one batch and has no more to say:
///
/// ```
/// use mesh_core::Error;
/// use mesh_core::config::{ConfigLink, ConfigSource};
/// use mesh_core::xds::model::Batch;
///
/// struct Once(Batch);
///
/// impl ConfigSource for Once {
///     async fn run(self, link: ConfigLink) -> Result<(), Error> {
///         for verdict in link.apply(self.0)? {
///             println!("{verdict:?}");
///         }
///         Ok(())
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no source of configuration",
    note = "of a builder, `Missing` means that `.config(…)` was not called"
)]
pub trait ConfigSource: Send + 'static {
    /// Feeds the mesh until there will never be more: returning `Ok` keeps the last state for good,
    /// an error turns readiness off with its reason and keeps the last state too.
    fn run(self, link: ConfigLink) -> impl Future<Output = Result<(), Error>> + Send;
}

/// A source's end of the mesh.
#[derive(Clone)]
pub struct ConfigLink {
    node: Weak<NodeInner>,
}

impl ConfigLink {
    pub(crate) fn new(node: Weak<NodeInner>) -> Self {
        Self { node }
    }

    /// Applies a batch as one change and says what became of each resource in it.
    ///
    /// What is wrong is refused alone: its last good version stays and the rest of the batch applies.
    /// The first batch, even an empty one, is what makes the mesh's configuration ready.
    ///
    /// # Errors
    ///
    /// When the mesh has gone: the source should end.
    pub fn apply(&self, batch: Batch) -> Result<Vec<Verdict>, Error> {
        Ok(self.node()?.apply(batch))
    }

    /// Applies a batch as [`apply`](Self::apply) does, but the mesh's configuration is not ready by it: for
    /// sources of which the first answer comes in parts. The first [`apply`](Self::apply), even of an
    /// empty batch, ends that.
    ///
    /// # Errors
    ///
    /// When the mesh has gone.
    pub fn prepare(&self, batch: Batch) -> Result<Vec<Verdict>, Error> {
        Ok(self.node()?.prepare(batch))
    }

    /// Takes changes that are to take effect with the next batch that is [applied](Self::apply) or
    /// [prepared](Self::prepare), and not before: for sources of which an answer comes in parts. Returns the
    /// verdicts on those that are refused; a reply that the batch wants is not sent.
    ///
    /// # Errors
    ///
    /// When the mesh has gone.
    pub fn add(&self, batch: &Batch) -> Result<Vec<Verdict>, Error> {
        Ok(self.node()?.add(batch))
    }

    /// How many updates and removals were [added](Self::add) since the last batch.
    #[cfg(feature = "istiod")]
    fn added(&self) -> Result<usize, Error> {
        Ok(self.node()?.added())
    }

    /// Prepares some of what was [added](Self::add) to take effect; `false` if there is no more to prepare.
    #[cfg(feature = "istiod")]
    fn settle(&self) -> Result<bool, Error> {
        Ok(self.node()?.settle())
    }

    /// Drops what was [added](Self::add) since the last batch.
    ///
    /// # Errors
    ///
    /// When the mesh has gone.
    pub fn discard(&self) -> Result<(), Error> {
        self.node()?.discard();
        Ok(())
    }

    /// Takes what the mesh demands of its source, from now on and so far. One source takes it once.
    ///
    /// # Errors
    ///
    /// When the mesh has gone.
    pub fn demands(&self) -> Result<Demands, Error> {
        Ok(self.node()?.board.take(false))
    }

    /// Takes what the mesh demands, for a source that has only what it is [asked for](Demand::Want).
    /// Connections wait, at most the [policy wait](crate::Builder::policy_wait), until what they go to is
    /// applied or [absent](Self::absent).
    ///
    /// # Errors
    ///
    /// When the mesh has gone.
    pub fn demands_by_name(&self) -> Result<Demands, Error> {
        Ok(self.node()?.board.take(true))
    }

    /// Answers [`Demand::Want`]: there is no such service or workload, so far.
    ///
    /// # Errors
    ///
    /// When the mesh has gone.
    pub fn absent(&self, name: &str) -> Result<(), Error> {
        self.node()?.board.absent(name);
        Ok(())
    }

    /// Answers [`Demand::Want`] where the source cannot ask for it.
    #[cfg(feature = "istiod")]
    pub(crate) fn refuse(&self, name: &str) -> Result<(), Error> {
        self.node()?.board.refuse(name);
        Ok(())
    }

    /// Answers [`Demand::Listener`]: there is none, so far.
    ///
    /// # Errors
    ///
    /// When the mesh has gone.
    pub fn no_listener(&self, address: SocketAddr) -> Result<(), Error> {
        self.node()?.board.no_listener(address);
        Ok(())
    }

    /// Answers [`Demand::Listener`] where the source does not ask for it, and why.
    #[cfg(feature = "istiod")]
    fn refuse_listener(&self, address: SocketAddr, why: &'static str) -> Result<(), Error> {
        self.node()?.board.refuse_listener(address, why);
        Ok(())
    }

    /// The current certificate of an identity of the node; `None` before the first.
    ///
    /// # Errors
    ///
    /// When the mesh has gone.
    pub fn certificate(&self, identity: &Identity) -> Result<Option<Arc<Bundle>>, Error> {
        let certificates = self.node()?.credentials();
        Ok(certificates.get(identity).map(Credentials::current))
    }

    /// Says whether the configuration is kept current: `Some` reason why not makes `/config_dump` mark it
    /// stale. It stays in effect, and the mesh stays ready.
    ///
    /// # Errors
    ///
    /// When the mesh has gone.
    pub fn stale(&self, reason: Option<String>) -> Result<(), Error> {
        self.node()?.stale(reason);
        Ok(())
    }

    /// Says that what will be applied is all there is, as files are: who finds nothing of itself in it is told so
    /// at once, and does not wait for it until the start time-out. To be said before the first batch.
    ///
    /// # Errors
    ///
    /// When the mesh has gone.
    pub fn complete(&self) -> Result<(), Error> {
        self.node()?.whole();
        Ok(())
    }

    /// Says why there is no first configuration and, unless somebody changes something, will be none:
    /// who waits for it is told so at once. `None` takes it back, as does a batch.
    ///
    /// # Errors
    ///
    /// When the mesh has gone.
    pub fn cannot_start(&self, reason: Option<String>) -> Result<(), Error> {
        self.node()?.gate.cannot_start(reason);
        Ok(())
    }

    /// Replaces what [`Node::warnings`](crate::Node::warnings) says: what the source passed over.
    ///
    /// # Errors
    ///
    /// When the mesh has gone.
    pub fn set_warnings(&self, warnings: Vec<String>) -> Result<(), Error> {
        self.node()?.report_warnings(warnings);
        Ok(())
    }

    /// Replaces what [`Node::problems`](crate::Node::problems) says: what the source refused itself
    /// and of which the last good version stays.
    ///
    /// # Errors
    ///
    /// When the mesh has gone.
    pub fn report(&self, problems: Vec<String>) -> Result<(), Error> {
        self.node()?.report_problems(problems);
        Ok(())
    }

    /// Replaces what the configuration has that makes no workload as it is: who finds itself missing is told of it.
    #[cfg(feature = "file")]
    fn set_of_no_use(&self, what: Vec<String>) -> Result<(), Error> {
        *crate::sync::lock(&self.node()?.of_no_use) = what;
        Ok(())
    }

    /// As [`report`](Self::report), of a source that knows for which objects something narrower stands.
    #[cfg(feature = "file")]
    fn report_closed(
        &self,
        problems: Vec<String>,
        closed: &std::collections::HashSet<String>,
    ) -> Result<(), Error> {
        self.node()?.report_closed(problems, closed);
        Ok(())
    }

    /// As [`report`](Self::report), of a source that knows which of all problems are new.
    #[cfg(feature = "istiod")]
    fn report_changed(&self, new: &[Arc<str>], all: Vec<Arc<str>>) -> Result<(), Error> {
        self.node()?.report_changed(new, all);
        Ok(())
    }

    fn node(&self) -> Result<Arc<NodeInner>, Error> {
        self.node
            .upgrade()
            .ok_or_else(|| Error::new(ErrorKind::Draining).with_detail("the mesh has gone"))
    }

    /// Workloads but the first get nothing of this source.
    #[cfg(feature = "istiod")]
    fn speak_for_one(&self) -> Result<(), Error> {
        self.node()?.board.speak_for_one();
        Ok(())
    }

    /// Says whether the source itself, which is named, can be read; before the first configuration this
    /// is why the mesh is not ready.
    /// The flag says whether it may right itself.
    #[cfg(any(feature = "file", feature = "istiod"))]
    fn source_problem(&self, name: &str, problem: Option<(String, bool)>) -> Result<(), Error> {
        self.node()?.source_problem(name, problem);
        Ok(())
    }

    /// Takes readiness away until the source says that it has no problem of this name.
    #[cfg(any(feature = "file", feature = "istiod"))]
    fn pend(&self, name: &str, why: &str) -> Result<(), Error> {
        self.node()?.gate.pend(name, why);
        Ok(())
    }

    #[cfg(feature = "istiod")]
    fn probe(&self) -> Result<Option<crate::health::Probe>, Error> {
        Ok(self.node()?.settings.readiness_probe.clone())
    }

    #[cfg(feature = "istiod")]
    fn network(&self) -> Result<String, Error> {
        Ok(self.node()?.settings.network.clone())
    }

    #[cfg(feature = "file")]
    fn file_settings(&self) -> Result<mesh_xds::file::Settings, Error> {
        Ok(self.node()?.settings.file_settings())
    }
}

impl fmt::Debug for ConfigLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConfigLink")
    }
}
