//! The files: loaded at once, then watched.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use mesh_xds::file::{Change, Limits, Loader, Settings, Watcher};
use mesh_xds::serve::Server;

use crate::{BoxError, args};

/// Serves what the files say, and what they come to say. What is wrong with them is told on standard error;
/// at the start, files that cannot be read are an error.
pub(crate) fn load_and_watch(
    path: &Path,
    trust_domain: &str,
    server: Server,
) -> Result<Problems, BoxError> {
    let problems = Problems::default();
    let mut watcher = Watcher::new(path, Limits::default());
    let mut loader = Loader::new(Settings::default().with_trust_domain(trust_domain));
    loop {
        if let Change::Settled(files) = watcher.poll()? {
            problems.set(load(&mut loader, files, &server));
            break;
        }
    }
    tokio::spawn(watch(watcher, loader, server, problems.clone()));
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

async fn watch(mut watcher: Watcher, mut loader: Loader, server: Server, problems: Problems) {
    let interval = watcher.limits().interval();
    let mut complaint = None;
    loop {
        tokio::time::sleep(interval).await;
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
                problems.set(load(&mut loader, files, &server));
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

/// Says what is wrong, and what of it stands.
fn load(loader: &mut Loader, files: Vec<(PathBuf, Vec<u8>)>, server: &Server) -> Vec<String> {
    let loaded = loader.load(files);
    for warning in loaded.warnings() {
        args::complain(&warning.to_string());
    }
    let (batch, problems, skipped) = loaded.into_parts();
    for kind in skipped {
        tracing::info!(kind, "a kind that has nothing to say");
    }
    let problems = Arc::new(Mutex::new(
        problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
    ));
    let refused = Arc::clone(&problems);
    server.apply(batch.with_reply(move |verdicts| {
        let mut problems = refused.lock().unwrap_or_else(PoisonError::into_inner);
        for verdict in verdicts {
            if let Err(rejection) = verdict.result() {
                problems.push(format!("{}: {rejection}", verdict.resource()));
            }
        }
    }));
    let problems = problems.lock().unwrap_or_else(PoisonError::into_inner);
    for problem in &*problems {
        args::complain(problem);
    }
    problems.clone()
}
