//! Where configuration comes from: the first of the two traits of our own.

#[cfg(feature = "file")]
mod file;
mod fixed;

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Weak};

use mesh_xds::model::{Batch, Verdict};

use crate::node::NodeInner;
use crate::{Error, ErrorKind};

#[cfg(feature = "file")]
pub use file::File;
pub use fixed::Fixed;

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

    fn node(&self) -> Result<Arc<NodeInner>, Error> {
        self.node
            .upgrade()
            .ok_or_else(|| Error::new(ErrorKind::Draining).with_detail("the mesh has gone"))
    }

    /// Says whether the source itself can be read; before the first configuration this is why the
    /// mesh is not ready.
    #[cfg(feature = "file")]
    fn source_problem(&self, problem: Option<String>) -> Result<(), Error> {
        self.node()?.source_problem(problem);
        Ok(())
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
