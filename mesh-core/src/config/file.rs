use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use mesh_xds::file::{Change, Limits, Loaded, Loader, Settings, Watcher};
use mesh_xds::model::{ResourceName, Verdict};

use super::{ConfigLink, ConfigSource};
use crate::{Error, ErrorKind};

/// What readiness calls it.
const NAME: &str = "configuration files";

/// Configuration in a file or a folder, watched: the mesh without a control plane.
///
/// Reads Kubernetes and Istio manifests as people have them, and the YAML or JSON that ztunnel reads
/// (`workloads`, `services`, `policies`). A file that does not parse is refused whole, an object
/// that fails validation alone; what is refused is logged with file, line and field under the target
/// `mesh::config`, stands in [`Node::problems`](crate::Node::problems), and its last good version stays.
/// Fields that a kind does not have are logged too, and stand in [`Node::warnings`](crate::Node::warnings).
///
/// Files that are not there yet are waited for, at most the [start time-out](crate::Builder::start_timeout), and
/// logged. Once they are there they are all there is: a file that does not parse, or that has not got the
/// workload, fails [`Mesh::ready`](crate::Mesh::ready) and `listen` at once.
///
/// A file of a watched folder that is removed takes its objects with it, which is logged. When the watched
/// file or folder itself is gone, or cannot be read, what was read last stays in force; that is logged, and
/// `/config_dump` says since when (`stale`).
///
/// # Examples
///
/// ```
/// use mesh_core::config::File;
///
/// let source = File::watch("bookinfo.yaml");
/// # let _ = source;
/// ```
#[derive(Debug, Clone)]
pub struct File {
    path: PathBuf,
    every: Duration,
    settings: Option<Settings>,
}

impl File {
    /// Watches a file, or all `.yaml`, `.yml` and `.json` files of a folder.
    pub fn watch(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            every: Duration::from_millis(500),
            settings: None,
        }
    }

    /// Sets how often the files are looked at: 500 ms unless set. A change takes effect once two
    /// looks saw the same; the second comes 500 ms after the first at the latest, and so does the next where
    /// nothing was found yet. Files that were last changed more than ten seconds before the start are taken at the
    /// first look.
    #[must_use]
    pub fn every(mut self, interval: Duration) -> Self {
        self.every = interval.max(Duration::from_millis(1));
        self
    }

    /// Sets what the manifests do not say of the mesh itself: trust domain, root namespace, cluster.
    /// The builder's settings unless set.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = Some(settings);
        self
    }
}

impl ConfigSource for File {
    async fn run(self, link: ConfigLink) -> Result<(), Error> {
        let settings = match self.settings {
            Some(settings) => settings,
            None => link.file_settings()?,
        };
        let mut work = Work {
            watcher: Watcher::new(self.path, Limits::new().with_interval(self.every)),
            loader: Loader::new(settings),
            refused: BTreeMap::new(),
            unsettled: false,
            files: Vec::new(),
            incomplete: None,
            unreadable: None,
        };
        link.complete()?;
        let mut pause = Duration::ZERO;
        loop {
            tokio::time::sleep(pause).await;
            // Files are read and parsed where blocking is permitted.
            let step = tokio::task::spawn_blocking(move || {
                let outcome = work.step();
                (work, outcome)
            });
            let (back, outcome) = step.await.map_err(|error| {
                Error::new(ErrorKind::Internal)
                    .with_detail("reading configuration files")
                    .with_source(error)
            })?;
            work = back;
            // What is not there at the start may be mounted in a moment.
            pause = match work.unsettled || work.files.is_empty() {
                true => self.every.min(SETTLES),
                false => self.every,
            };
            match outcome {
                Ok(None) => work.readable(&link)?,
                Ok(Some((loaded, removed))) => {
                    for file in removed {
                        tracing::warn!(target: "mesh::config", file = %file.display(), "configuration file removed, and with it what it held");
                    }
                    work.readable(&link)?;
                    work.take_effect(&link, loaded)?;
                }
                Err(error) => work.unreadable(&link, &error)?,
            }
        }
    }
}

/// So long a change has to stay as it was seen: whoever writes a file in parts is done sooner.
const SETTLES: Duration = Duration::from_millis(500);

struct Work {
    watcher: Watcher,
    loader: Loader,
    /// What the mesh refused and has not accepted since: a later batch does not speak of it again.
    refused: BTreeMap<ResourceName, Verdict>,
    /// What was seen last was not seen before.
    unsettled: bool,
    /// What was loaded last, sorted.
    files: Vec<PathBuf>,
    /// What keeps the first load from being one.
    incomplete: Option<String>,
    /// Why the last look failed.
    unreadable: Option<String>,
}

impl Work {
    /// What was loaded, and which files are there no more.
    fn step(&mut self) -> std::io::Result<Option<(Loaded, Vec<PathBuf>)>> {
        self.unsettled = false;
        let change = self.watcher.poll()?;
        self.unsettled = matches!(change, Change::Unsettled);
        let Change::Settled(files) = change else {
            return Ok(None);
        };
        let now = files.iter().map(|(path, _)| path.clone()).collect();
        let mut removed = std::mem::replace(&mut self.files, now);
        removed.retain(|path| self.files.binary_search(path).is_err());
        Ok(Some((self.loader.load(files), removed)))
    }

    fn readable(&mut self, link: &ConfigLink) -> Result<(), Error> {
        if self.unreadable.take().is_none() {
            return Ok(());
        }
        if !self.files.is_empty() {
            tracing::info!(target: "mesh::config", "configuration files can be read again");
        }
        link.stale(None)?;
        link.source_problem(NAME, None)?;
        match &self.incomplete {
            Some(what) => link.pend(NAME, what),
            None => Ok(()),
        }
    }

    fn unreadable(&mut self, link: &ConfigLink, error: &std::io::Error) -> Result<(), Error> {
        let problem = error.to_string();
        let known = self.unreadable.replace(problem.clone());
        if !self.files.is_empty() && known.as_ref() != Some(&problem) {
            tracing::warn!(target: "mesh::config", %problem, "configuration files cannot be read; what they held last stays in force");
        }
        if !self.files.is_empty() {
            link.stale(Some(problem.clone()))?;
        }
        // It may be put there in a moment.
        let comes = error.kind() == std::io::ErrorKind::NotFound;
        link.source_problem(NAME, Some((problem, comes)))
    }

    fn take_effect(&mut self, link: &ConfigLink, loaded: Loaded) -> Result<(), Error> {
        let complete = loaded.is_complete();
        link.set_warnings(loaded.warnings().iter().map(ToString::to_string).collect())?;
        // Who finds itself missing is not to hear of all kinds that have no workload.
        let of_no_use = self.loader.skipped().iter();
        let of_no_use = of_no_use.filter(|what| what.hides_workload());
        link.set_of_no_use(of_no_use.map(ToString::to_string).collect())?;
        let (batch, problems, skipped) = loaded.into_parts();
        for what in skipped {
            tracing::info!(target: "mesh::config", %what, "of no use as it is");
        }
        let closed = problems.iter().filter(|problem| problem.is_closed());
        let closed = closed.map(ToString::to_string).collect();
        let mut problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        if !complete {
            // Until all files were readable at once, a workload could appear without its policies.
            let what = problems.join("; ");
            link.pend(NAME, &what)?;
            link.cannot_start(Some(what.clone()))?;
            self.incomplete = Some(what);
            return link.report(problems);
        }
        self.incomplete = None;
        link.cannot_start(None)?;
        link.source_problem(NAME, None)?;
        let changed = batch.updates().len() + batch.removed().len();
        if self.refused.is_empty() {
            // Who finds itself missing is told why.
            link.report_closed(problems.clone(), &closed)?;
        }
        let verdicts = link.apply(batch)?;
        for verdict in verdicts {
            match verdict.result() {
                Ok(()) => self.refused.remove(verdict.resource()),
                Err(_) => self.refused.insert(verdict.resource().clone(), verdict),
            };
        }
        self.refused
            .retain(|name, _| self.loader.origin(name).is_some());
        let refused = self
            .refused
            .values()
            .filter_map(|verdict| self.loader.refusal(verdict));
        problems.extend(refused.map(|problem| problem.to_string()));
        tracing::info!(target: "mesh::config", changed, problems = problems.len(), "configuration files applied");
        link.report_closed(problems, &closed)
    }
}
