//! What the control plane said last, in a file that outlives the process.

mod form;
#[cfg(test)]
mod tests;
mod waiting;

use std::cmp::Reverse;
use std::fs::{File, Metadata};
use std::future::pending;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_xds::ads::Kept;
use rpds::HashTrieMapSync;
use tokio::task::{JoinHandle, spawn_blocking, yield_now};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::bootstrap::Registering;
use crate::identity::private_files::{Owner, make_folder, open_if_there, put};
use crate::identity::{Error, ErrorKind};
use form::Content;
use waiting::Waiting;

/// A mesh of 500 000 workloads takes less; what is larger is something else, or not kept.
const MAX_FILE: u64 = 256 << 20;

const SUFFIX: &str = ".snapshot";

/// For so long a start waits for the file system; then it is as if nothing were kept.
const LOAD: Duration = Duration::from_secs(5);

/// How long after a change it is written, for others come with it, and how long between two writes.
const SOON: Duration = Duration::from_secs(1);
const BETWEEN: Duration = Duration::from_secs(10);

/// By how much a file has to be older than what was just written, to be a former one. What a process uses is written at
/// every change, and with every stream that brings policies anew: istiod ends a stream after half an hour.
const FORMER: Duration = Duration::from_secs(24 * 60 * 60);

/// So many files there are at most: the oldest beyond go, whoever they are of. A host behind NAT cannot tell which of its
/// addresses it has had (`Registering::had`).
const MOST_FILES: usize = 64;

/// Within so many bytes of a file it is said whose it is: three names and the control plane's take less.
const MAX_HEAD: u64 = 4096;

/// What was read at the start.
pub(super) struct Found {
    pub(super) kept: Vec<Kept>,
    pub(super) saved: SystemTime,
    /// The addresses by which the workload was known.
    pub(super) addresses: Vec<IpAddr>,
}

/// What is in effect, as it came, and what of that is in the file.
pub(super) struct Keeper {
    path: Arc<Path>,
    /// Whose files by other addresses go when there is one by this.
    host: Option<Registering>,
    content: Content,
    /// What is in effect, but not among it yet.
    waiting: Waiting,
    /// After some of that was put there.
    pause: Duration,
    /// Whether this is all that is in effect: part of it could allow what the whole does not.
    whole: bool,
    due: Option<Instant>,
    written: Option<Instant>,
    writing: Option<JoinHandle<Result<(), Error>>>,
}

/// The file of `whose`, a text that says for whom the stream speaks and with whom.
pub(super) async fn open(
    folder: &Path,
    name: &str,
    whose: String,
    host: Option<Registering>,
    pause: Duration,
) -> (Keeper, Option<Found>) {
    let path: Arc<Path> = path_of(folder, name).into();
    let (file, owner) = (Arc::clone(&path), whose.clone());
    let loading = spawn_blocking(move || load(&file, &owner));
    let loaded = match timeout(LOAD, loading).await {
        Ok(Ok(loaded)) => loaded,
        Ok(Err(error)) => {
            let detail = format!("reading {}", path.display());
            Err(Error::new(ErrorKind::Io, detail).with_source(error))
        }
        Err(elapsed) => {
            let detail = format!("reading {}: no answer within {LOAD:?}", path.display());
            Err(Error::new(ErrorKind::Io, detail).with_source(elapsed))
        }
    };
    let found = loaded.unwrap_or_else(|error| {
        let causes = crate::node::report(&error);
        tracing::warn!(target: "mesh::config", error = causes, "the kept configuration cannot be used: the control plane is waited for");
        None
    });
    let keeper = Keeper {
        path,
        host,
        content: Content {
            whose,
            addresses: Vec::new(),
            saved: SystemTime::UNIX_EPOCH,
            resources: HashTrieMapSync::new_sync(),
        },
        waiting: Waiting::default(),
        pause,
        whole: false,
        due: None,
        written: None,
        writing: None,
    };
    let found = found.map(|content| Found {
        kept: content
            .resources
            .values()
            .map(|one| Kept::clone(one))
            .collect(),
        saved: content.saved,
        addresses: content.addresses,
    });
    (keeper, found)
}

/// The names in a namespace of whom something is kept, the last that was written first. Blocking.
pub(super) fn names(folder: &Path, namespace: &str) -> Vec<String> {
    let below = folder.join("discovery");
    // What others may have put there says nothing of who this host is.
    if check_folders(&below.join(SUFFIX)).is_err() {
        return Vec::new();
    }
    let files = files(&below).into_iter();
    files
        .filter_map(|(_, file)| {
            let name = file.file_name()?.to_str()?.strip_suffix(SUFFIX)?;
            let name = name.strip_prefix(namespace)?.strip_prefix('_')?;
            Some(name.to_owned())
        })
        .collect()
}

/// What is kept in a folder, the last that was written first. Blocking.
fn files(below: &Path) -> Vec<(Reverse<SystemTime>, PathBuf)> {
    let Ok(all) = std::fs::read_dir(below) else {
        return Vec::new();
    };
    let mut files = Vec::new();
    for file in all.flatten() {
        let name = file.file_name();
        let metadata = file.metadata().ok().filter(Metadata::is_file);
        let modified = metadata.and_then(|metadata| metadata.modified().ok());
        if let Some(modified) = modified
            && let Some(name) = name.to_str()
            // A killed process may leave one that was not whole yet.
            && name.strip_suffix(".new").unwrap_or(name).ends_with(SUFFIX)
        {
            files.push((Reverse(modified), file.path()));
        }
    }
    files.sort();
    files
}

/// One file for each for whom a stream speaks.
fn path_of(folder: &Path, name: &str) -> PathBuf {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let name: String = name
        .chars()
        .map(|c| if plain(c) { c } else { '_' })
        .collect();
    folder.join("discovery").join(format!("{name}{SUFFIX}"))
}

/// Blocking; `None` if nothing was kept.
fn load(path: &Path, whose: &str) -> Result<Option<Content>, Error> {
    let Some(file) = open_if_there(path)? else {
        return Ok(None);
    };
    check_folders(path)?.check_private(&file, path)?;
    let bytes = read(file, path)?;
    let content = Content::decode(&bytes).map_err(|problem| {
        let detail = format!("{}: {problem}", path.display());
        Error::new(ErrorKind::Invalid, detail)
    })?;
    if content.whose != whose {
        let detail = format!(
            "{}: expected to be of {whose}, is of {}",
            path.display(),
            content.whose
        );
        return Err(Error::new(ErrorKind::Invalid, detail));
    }
    Ok(Some(content))
}

/// Whoever can write in one of them can put another file in its place.
fn check_folders(path: &Path) -> Result<Owner, Error> {
    let below = path.parent().unwrap_or(path);
    let owner = Owner::in_folder(below)?;
    owner.check_folder(below)?;
    owner.check_folder(below.parent().unwrap_or(below))?;
    Ok(owner)
}

fn read(file: File, path: &Path) -> Result<Vec<u8>, Error> {
    let at = |error| {
        let detail = format!("reading {}", path.display());
        Error::new(ErrorKind::Io, detail).with_source(error)
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(at)?;
    if bytes.len() as u64 > MAX_FILE {
        let detail = format!("{}: expected at most {MAX_FILE} bytes", path.display());
        return Err(Error::new(ErrorKind::Invalid, detail));
    }
    Ok(bytes)
}

/// Blocking.
fn store(path: &Path, content: &Content) -> Result<(), Error> {
    if let Some(folder) = path.parent() {
        make_folder(folder)?;
    }
    check_folders(path)?;
    let bytes = content.encode();
    if bytes.len() as u64 > MAX_FILE {
        // An older one would be believed.
        let _ = std::fs::remove_file(path);
        let detail = format!(
            "{}: {} bytes, at most {MAX_FILE} are kept",
            path.display(),
            bytes.len()
        );
        return Err(Error::new(ErrorKind::Full, detail));
    }
    put(path, &bytes)
}

/// Removes what was kept of a host by addresses that it does not have any more. Blocking.
fn forget_former(path: &Path, whose: &str, host: &Registering) {
    let Some(folder) = path.parent().and_then(Path::parent) else {
        return;
    };
    let names = names(folder, host.namespace()).into_iter();
    for name in names.filter(|name| host.had(name)) {
        let name = format!("{}/{name}", host.namespace());
        let former = path_of(folder, &name);
        if !is_former(&former, &name, path, whose).unwrap_or(false) {
            continue;
        }
        remove(
            &former,
            "it was kept by an address that this host does not have any more",
        );
    }
}

/// Removes the oldest files beside this one, which was just written, that are too many. Blocking.
fn remove_surplus(path: &Path) {
    let files = files(path.parent().unwrap_or(path)).into_iter();
    let others = files.map(|(_, file)| file).filter(|file| file != path);
    for surplus in others.skip(MOST_FILES - 1) {
        remove(&surplus, "there are as many newer ones as are kept");
    }
}

fn remove(file: &Path, why: &str) {
    let name = file.display();
    match std::fs::remove_file(file) {
        Ok(()) => tracing::info!(target: "mesh::config", file = %name, why, "removed"),
        Err(error) => {
            tracing::debug!(target: "mesh::config", file = %name, %error, "cannot be removed");
        }
    }
}

/// Whether `former` is of `name` as the file that was just written is of its own, which is for the same mode and control
/// plane, and nobody has written it for long. Blocking.
fn is_former(former: &Path, name: &str, path: &Path, whose: &str) -> std::io::Result<bool> {
    let file = File::open(former)?;
    let written = path.metadata()?.modified()?;
    let age = written.duration_since(file.metadata()?.modified()?);
    if !age.is_ok_and(|age| age >= FORMER) {
        return Ok(false);
    }
    let mut head = Vec::new();
    file.take(MAX_HEAD).read_to_end(&mut head)?;
    let (_, rest) = whose.split_once(", ").unwrap_or_default();
    Ok(Content::whose(&head) == Some(&*format!("{name}, {rest}")))
}

impl Keeper {
    pub(super) fn addresses(&mut self, own: &[IpAddr]) {
        self.content.addresses = own.to_vec();
    }

    /// What was found is in effect.
    pub(super) fn restored(&mut self, kept: Vec<Kept>) {
        for one in kept {
            self.content.put(one);
        }
        self.whole = true;
    }

    /// What has come is all of it: from now on it is written.
    pub(super) fn is_whole(&mut self) {
        if !std::mem::replace(&mut self.whole, true) {
            self.changed();
        }
    }

    /// What was found is not to be used, and what comes adds to it: nothing is kept until the next start.
    pub(super) fn discard(self) {
        drop(spawn_blocking(move || std::fs::remove_file(&self.path)));
    }

    /// Little by little, while it is [tended](Self::tend): a whole mesh would keep a worker for some 0.1 s.
    pub(super) fn take(&mut self, put: Vec<Kept>, gone: Vec<(Arc<str>, Box<str>)>) {
        self.waiting.push(put, gone);
        self.changed();
    }

    /// Waits until it can take more: what is not with the rest yet has bounds. Without pauses, for no news is read meanwhile.
    pub(super) async fn make_room(&mut self) {
        while !self.waiting.has_room() {
            self.waiting.put_some(&mut self.content);
            yield_now().await;
        }
    }

    async fn rest(&self) {
        match self.whole {
            true if !self.pause.is_zero() => sleep(self.pause).await,
            // What comes first, before which nothing is served, is in a hurry.
            _ => yield_now().await,
        }
    }

    fn changed(&mut self) {
        let soon = Instant::now() + SOON;
        let next = self
            .written
            .map_or(soon, |written| soon.max(written + BETWEEN));
        self.due.get_or_insert(next);
    }

    /// Puts what was taken with the rest, and writes when that is due. It never ends; dropping it loses nothing.
    pub(super) async fn tend(&mut self, now: impl Fn() -> SystemTime) {
        // Some of it with what it replaces was never in effect, and is not written.
        while self.waiting.put_some(&mut self.content) {
            self.rest().await;
        }
        loop {
            if let Some(writing) = &mut self.writing {
                let outcome = writing.await;
                self.writing = None;
                self.written = Some(Instant::now());
                let outcome = outcome.unwrap_or_else(|error| {
                    let detail = format!("writing {}", self.path.display());
                    Err(Error::new(ErrorKind::Io, detail).with_source(error))
                });
                if let Err(error) = outcome {
                    let causes = crate::node::report(&error);
                    tracing::warn!(target: "mesh::config", error = causes, "the configuration is not kept for the next start");
                }
            }
            match self.due.filter(|_| self.whole) {
                Some(due) => sleep_until(due).await,
                None => pending().await,
            }
            self.due = None;
            self.content.saved = now();
            let (path, content) = (Arc::clone(&self.path), self.content.clone());
            let host = self.host.clone();
            self.writing = Some(spawn_blocking(move || {
                store(&path, &content)?;
                if let Some(host) = host {
                    forget_former(&path, &content.whose, &host);
                }
                remove_surplus(&path);
                Ok(())
            }));
        }
    }
}
