//! The files, loaded at once and then watched, and the hosts that register: what is served is made of both.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_xds::file::{Change, Limits, Loader, Settings, Watcher};
use mesh_xds::serve::{Registrations, Server};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::{BoxError, args, hosts};

/// From one load for the sake of hosts to the next, at least; where a load takes longer, as long as it takes.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves what the files say, and what they come to say. What is wrong with them is told on standard error;
/// at the start, files that cannot be read are an error.
///
/// Nothing is served before all files were good at once, and made something or may be `empty`: what is missing
/// would be gone to clients that have it.
pub(crate) async fn load_and_watch(
    path: &Path,
    trust_domain: &str,
    empty: bool,
    server: Server,
) -> Result<Files, BoxError> {
    let mut watcher = Watcher::new(path, Limits::default());
    let problems = Problems::default();
    let (complete, completed) = watch::channel(false);
    let files = Files {
        problems: problems.clone(),
        complete: completed,
    };
    let mut source = Source {
        path: path.to_owned(),
        empty,
        settings: Settings::default().with_trust_domain(trust_domain),
        loader: Loader::new(Settings::default()),
        files: Vec::new(),
        gone: None,
        registrations: server.registrations(),
        problems,
        told: Told::default(),
        complete,
        server,
    };
    let loaded = spawn_blocking(move || -> std::io::Result<_> {
        loop {
            if let Change::Settled(files) = watcher.poll()? {
                source.take(files);
                return Ok((watcher, source));
            }
        }
    });
    let (watcher, source) = loaded.await??;
    tokio::spawn(watch(watcher, source));
    Ok(files)
}

/// What has become of the files.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    /// What is wrong with them as they are now.
    pub(crate) problems: Problems,
    complete: watch::Receiver<bool>,
}

impl Files {
    /// Whether what they say is served.
    pub(crate) fn are_complete(&self) -> bool {
        *self.complete.borrow()
    }

    /// Waits until they are.
    pub(crate) async fn completed(&mut self) -> Result<(), BoxError> {
        let completed = self.complete.wait_for(|complete| *complete).await;
        completed.map_err(|_| "the files are watched no more")?;
        Ok(())
    }
}

/// What is wrong with the files as they are now.
#[derive(Debug, Clone, Default)]
pub(crate) struct Problems(Arc<Mutex<Vec<String>>>);

impl Problems {
    pub(crate) fn get(&self) -> Vec<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set(&self, problems: Vec<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = problems;
    }
}

/// Files are read and loaded where blocking is permitted.
async fn watch(mut watcher: Watcher, mut source: Source) {
    let mut ticks = interval(watcher.limits().interval());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut complaint = None;
    // Every change of a host loads all files: hosts that come and go, or are well and unwell, in turn must
    // not keep a processor.
    let mut next_for_hosts = Instant::now();
    loop {
        let of_hosts = async {
            sleep_until(next_for_hosts).await;
            source.registrations.changed().await;
        };
        let by_hosts = tokio::select! {
            _ = ticks.tick() => false,
            () = of_hosts => true,
        };
        let started = Instant::now();
        let worked = spawn_blocking(move || {
            let change = if by_hosts {
                source.load();
                Ok(Change::Unchanged)
            } else {
                watcher.poll()
            };
            let change = change.map(|change| {
                if let Change::Settled(files) = change {
                    source.take(files);
                }
            });
            (watcher, source, change)
        });
        let Ok(done) = worked.await else {
            return;
        };
        let trouble;
        (watcher, source, trouble) = done;
        if by_hosts {
            next_for_hosts = Instant::now() + started.elapsed().max(PAUSE);
            continue;
        }
        let trouble = trouble.err().map(|error| error.to_string());
        // Once, not at every poll.
        if let Some(text) = trouble
            .as_ref()
            .filter(|text| complaint.as_ref() != Some(*text))
        {
            args::complain(text);
        }
        complaint = trouble;
    }
}

struct Source {
    path: PathBuf,
    /// Whether there may be nothing to serve.
    empty: bool,
    settings: Settings,
    loader: Loader,
    /// As they were read last.
    files: Vec<(PathBuf, Vec<u8>)>,
    /// That they are there no more.
    gone: Option<String>,
    registrations: Registrations,
    problems: Problems,
    told: Told,
    complete: watch::Sender<bool>,
    server: Server,
}

/// What was printed of what is still wrong.
#[derive(Debug, Default)]
struct Told(BTreeSet<String>);

impl Told {
    /// What of all that is wrong now was not wrong before.
    fn news(&mut self, now: Vec<String>) -> Vec<String> {
        let before = std::mem::replace(&mut self.0, now.iter().cloned().collect());
        now.into_iter()
            .filter(|line| !before.contains(line))
            .collect()
    }
}

impl Source {
    /// Takes new contents. A folder whose files are all gone is more likely one that is not mounted.
    fn take(&mut self, files: Vec<(PathBuf, Vec<u8>)>) {
        if files.is_empty() && !self.empty && *self.complete.borrow() {
            let path = self.path.display();
            self.gone = Some(format!(
                "{path}: no manifests any more; those that were there last stay (--allow-empty: they go)"
            ));
        } else {
            self.gone = None;
            self.files = files;
        }
        self.load();
    }

    /// Says what is wrong, and what of it stands. Hosts come and go: what was wrong before is not said again.
    fn load(&mut self) {
        let complete = *self.complete.borrow();
        if !complete {
            // What could not be served counts for nothing: neither as good nor as there.
            self.loader = Loader::new(self.settings.clone());
        }
        let mut files = self.files.clone();
        files.extend(self.registrations.entries().iter().map(hosts::document));
        let loaded = self.loader.load(files);
        let mut wrong: Vec<_> = loaded.warnings().iter().map(ToString::to_string).collect();
        let is_whole = loaded.is_complete();
        let (batch, problems, skipped) = loaded.into_parts();
        for what in skipped {
            tracing::info!(%what, "of no use as it is");
        }
        let mut problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
        let groups: Vec<_> = self.loader.workload_groups().cloned().collect();
        let is_nothing = batch.updates().is_empty() && groups.is_empty() && !self.empty;
        if !complete && is_whole && is_nothing {
            problems.push(format!(
                "{}: nothing to serve, expected manifests (--allow-empty: serve nothing)",
                self.path.display()
            ));
        }
        if !complete && (!is_whole || is_nothing) {
            wrong.extend(problems.iter().cloned());
            self.tell(wrong, problems);
            return;
        }
        let problems = Arc::new(Mutex::new(problems));
        let refused = Arc::clone(&problems);
        self.server.apply(batch.with_reply(move |verdicts| {
            let mut problems = refused.lock().unwrap_or_else(PoisonError::into_inner);
            for verdict in verdicts {
                if let Err(rejection) = verdict.result() {
                    problems.push(format!("{}: {rejection}", verdict.resource()));
                }
            }
        }));
        self.server.set_workload_groups(groups);
        let problems = problems.lock().unwrap_or_else(PoisonError::into_inner);
        wrong.extend(problems.iter().cloned());
        self.tell(wrong, problems.clone());
        self.complete.send_replace(true);
    }

    /// Prints what of all that is wrong is new, and shows what stands.
    fn tell(&mut self, mut wrong: Vec<String>, mut problems: Vec<String>) {
        wrong.extend(self.gone.clone());
        problems.extend(self.gone.clone());
        for line in self.told.news(wrong) {
            args::complain(&line);
        }
        self.problems.set(problems);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_wrong_before_is_not_said_again() {
        let lines = |of: &[&str]| of.iter().map(|&one| one.to_owned()).collect::<Vec<_>>();
        let mut told = Told::default();
        assert_eq!(told.news(lines(&["a", "b"])), ["a", "b"]);
        assert_eq!(told.news(lines(&["a", "b"])), lines(&[]));
        assert_eq!(told.news(lines(&["b", "c"])), ["c"]);
        // It has been right meanwhile.
        assert_eq!(told.news(lines(&["a", "c"])), ["a"]);
    }
}
