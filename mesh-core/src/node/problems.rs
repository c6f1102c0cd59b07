//! What is told of the configuration and of a start: problems, warnings, waits.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use super::NodeInner;
use crate::ready::{PATIENCE, Told};
use crate::sync::lock;

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

impl NodeInner {
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

    pub(crate) fn problems(&self) -> Vec<String> {
        let problems = lock(&self.problems);
        problems.iter().map(ToString::to_string).collect()
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
    pub(super) fn awaits(self: &Arc<Self>, what: Awaited, name: &str, why: &str, comes: bool) {
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
}

/// What a start waits for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Awaited {
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
