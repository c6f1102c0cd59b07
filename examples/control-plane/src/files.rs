//! The files, loaded at once and then watched, and the hosts that register: what is served is made of both.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use mesh_xds::file::{Change, Limits, Loader, Settings, Watcher};
use mesh_xds::serve::{Registrations, Server};

use crate::{BoxError, args, hosts};

/// Serves what the files say, and what they come to say. What is wrong with them is told on standard error;
/// at the start, files that cannot be read are an error.
pub(crate) fn load_and_watch(
    path: &Path,
    trust_domain: &str,
    server: Server,
) -> Result<Problems, BoxError> {
    let mut watcher = Watcher::new(path, Limits::default());
    let mut source = Source {
        loader: Loader::new(Settings::default().with_trust_domain(trust_domain)),
        files: Vec::new(),
        registrations: server.registrations(),
        problems: Problems::default(),
        told: Told::default(),
        server,
    };
    loop {
        if let Change::Settled(files) = watcher.poll()? {
            source.files = files;
            source.load();
            break;
        }
    }
    let problems = source.problems.clone();
    tokio::spawn(watch(watcher, source));
    Ok(problems)
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

async fn watch(mut watcher: Watcher, mut source: Source) {
    let mut ticks = tokio::time::interval(watcher.limits().interval());
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut complaint = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = source.registrations.changed() => {
                source.load();
                continue;
            }
        }
        let polled = tokio::task::spawn_blocking(move || {
            let change = watcher.poll();
            (watcher, change)
        });
        let Ok((back, change)) = polled.await else {
            return;
        };
        watcher = back;
        let trouble = match change {
            Ok(Change::Settled(files)) => {
                source.files = files;
                source.load();
                None
            }
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        };
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
    loader: Loader,
    /// As they were read last.
    files: Vec<(PathBuf, Vec<u8>)>,
    registrations: Registrations,
    problems: Problems,
    told: Told,
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
    /// Says what is wrong, and what of it stands. Hosts come and go: what was wrong before is not said again.
    fn load(&mut self) {
        let mut files = self.files.clone();
        files.extend(self.registrations.entries().iter().map(hosts::document));
        let loaded = self.loader.load(files);
        let mut wrong: Vec<_> = loaded.warnings().iter().map(ToString::to_string).collect();
        let (batch, problems, skipped) = loaded.into_parts();
        for kind in skipped {
            tracing::info!(kind, "a kind that has nothing to say");
        }
        let problems = Arc::new(Mutex::new(
            problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ));
        let refused = Arc::clone(&problems);
        self.server.apply(batch.with_reply(move |verdicts| {
            let mut problems = refused.lock().unwrap_or_else(PoisonError::into_inner);
            for verdict in verdicts {
                if let Err(rejection) = verdict.result() {
                    problems.push(format!("{}: {rejection}", verdict.resource()));
                }
            }
        }));
        let groups = self.loader.workload_groups().cloned();
        self.server.set_workload_groups(groups.collect());
        let problems = problems.lock().unwrap_or_else(PoisonError::into_inner);
        wrong.extend(problems.iter().cloned());
        for line in self.told.news(wrong) {
            args::complain(&line);
        }
        self.problems.set(problems.clone());
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
