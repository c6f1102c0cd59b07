//! Finds out when files changed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// So long files have to be as they are for the first poll to hand them out: far longer than anybody takes to
/// write one, also where file systems count in seconds and other hosts' clocks are some seconds off.
const AT_REST: Duration = Duration::from_secs(10);

/// A time of last change before this, 2001, is none: clocks that were never set begin in 1970 or 2000.
const PLAUSIBLE: Duration = Duration::from_secs(1_000_000_000);

/// Watches a file or a folder by reading it, and says when it has changed and come to rest.
///
/// Nothing is awaited: call [`poll`](Self::poll) every [`interval`](Limits::interval), on a thread that may
/// block on files.
///
/// A change counts when two reads in a row were equal, so half a file that an editor is still writing
/// does not. The first poll reads twice itself if what it finds was last changed more than ten seconds before,
/// so that who starts with files that have long been there need not wait; a time of last change that lies ahead, or
/// before 2001, says nothing, and is waited for as others are. Of a folder, files ending in `.yaml`, `.yml` or `.json` count, without those of folders in
/// it and without names that begin with a dot. Symbolic links are followed at every read: the way in
/// which Kubernetes swaps the contents of a mounted ConfigMap is one change, not several.
#[derive(Debug)]
pub struct Watcher {
    path: PathBuf,
    limits: Limits,
    /// Nothing was read yet.
    is_new: bool,
    /// The read before this one, unless it was handed out or failed.
    candidate: Option<Files>,
    /// What was handed out last.
    settled: Option<Files>,
}

type Files = Vec<(PathBuf, Vec<u8>)>;

/// What a [`Watcher`] reads at most, and how often it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    interval: Duration,
    max_bytes: u64,
    max_files: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(500),
            max_bytes: 16 << 20,
            max_files: 1000,
        }
    }
}

impl Limits {
    /// Makes the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`interval`](Self::interval).
    #[must_use]
    pub fn with_interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Sets [`max_bytes`](Self::max_bytes).
    #[must_use]
    pub fn with_max_bytes(mut self, max_bytes: u64) -> Self {
        self.max_bytes = max_bytes;
        self
    }

    /// Sets [`max_files`](Self::max_files).
    #[must_use]
    pub fn with_max_files(mut self, max_files: usize) -> Self {
        self.max_files = max_files;
        self
    }

    /// The time between two reads. Default: 500 ms, so that an edit takes effect within about a second.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// The bytes of all files together. Default: 16 MiB, some 20 000 Pods. Reading a change takes about
    /// twenty times as much memory for a moment, and a second or two of one processor.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// The files of a folder. Default: 1000.
    pub fn max_files(&self) -> usize {
        self.max_files
    }
}

/// What a poll found.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// The same as was handed out before.
    Unchanged,
    /// Something else, which may still be changing: the next poll tells.
    Unsettled,
    /// New contents, twice the same: all files, sorted by path.
    Settled(Vec<(PathBuf, Vec<u8>)>),
}

impl Watcher {
    /// Watches a file or a folder, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>, limits: Limits) -> Self {
        Self {
            path: path.into(),
            limits,
            is_new: true,
            candidate: None,
            settled: None,
        }
    }

    /// The file or folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Reads the files once more and says whether they changed. The first contents take two polls, unless they
    /// have long been as they are.
    ///
    /// # Errors
    ///
    /// What could not be read, or was more than the [`Limits`] allow ([`io::ErrorKind::FileTooLarge`]). What was
    /// handed out last stays good: a file that is missing for a while has not become empty.
    pub fn poll(&mut self) -> io::Result<Change> {
        // A read that failed settles nothing: what comes next has to be read twice.
        let mut candidate = self.candidate.take();
        let is_new = std::mem::take(&mut self.is_new);
        let mut now = self.read()?;
        if is_new && self.is_at_rest(&now) {
            // Links may have been swapped between one file and the next.
            candidate = Some(std::mem::replace(&mut now, self.read()?));
        }
        if self.settled.as_ref() == Some(&now) {
            return Ok(Change::Unchanged);
        }
        if candidate.as_ref() == Some(&now) {
            self.settled = Some(now.clone());
            return Ok(Change::Settled(now));
        }
        self.candidate = Some(now);
        Ok(Change::Unsettled)
    }

    /// Whether the files, and the folder that holds them, were last changed long ago.
    fn is_at_rest(&self, files: &Files) -> bool {
        let now = SystemTime::now();
        let is_old = |path: &Path| {
            let changed = fs::metadata(path).and_then(|about| about.modified());
            changed.is_ok_and(|changed| is_long_before(changed, now))
        };
        // Files may be on their way to an empty folder.
        !files.is_empty() && is_old(&self.path) && files.iter().all(|(path, _)| is_old(path))
    }

    fn read(&self) -> io::Result<Files> {
        let mut left = self.limits.max_bytes;
        if !fs::metadata(&self.path)
            .map_err(|e| at(&self.path, &e))?
            .is_dir()
        {
            let content = read_file(&self.path, &mut left)?;
            return Ok(vec![(self.path.clone(), content)]);
        }
        let mut paths = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(|e| at(&self.path, &e))? {
            let path = entry.map_err(|e| at(&self.path, &e))?.path();
            if counts(&path) && !fs::metadata(&path).map_err(|e| at(&path, &e))?.is_dir() {
                paths.push(path);
            }
            if paths.len() > self.limits.max_files {
                let message = format!("more than {} files", self.limits.max_files);
                let error = io::Error::new(io::ErrorKind::FileTooLarge, message);
                return Err(at(&self.path, &error));
            }
        }
        paths.sort();
        paths
            .into_iter()
            .map(|path| {
                let content = read_file(&path, &mut left)?;
                Ok((path, content))
            })
            .collect()
    }
}

fn is_long_before(changed: SystemTime, now: SystemTime) -> bool {
    let is_plausible = changed
        .duration_since(SystemTime::UNIX_EPOCH)
        .is_ok_and(|since| since >= PLAUSIBLE);
    is_plausible && now.duration_since(changed).is_ok_and(|age| age > AT_REST)
}

/// Whether a file of a folder is one of ours.
fn counts(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(OsStr::to_str);
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

fn read_file(path: &Path, left: &mut u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    // Opening a pipe would wait for its writer.
    if !fs::metadata(path).map_err(|e| at(path, &e))?.is_file() {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
        return Err(at(path, &error));
    }
    let file = File::open(path).map_err(|e| at(path, &e))?;
    // One byte more than allowed, to tell a file that fits from one that does not.
    let limit = left.saturating_add(1);
    let read = file
        .take(limit)
        .read_to_end(&mut content)
        .map_err(|e| at(path, &e))?;
    *left = left.checked_sub(read as u64).ok_or_else(|| {
        let message = "more bytes than the limit of all files together";
        at(path, &io::Error::new(io::ErrorKind::FileTooLarge, message))
    })?;
    Ok(content)
}

/// Says which file it was.
fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
