//! The folder that processes share.

use std::fs::{self, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::root::{BEGIN_ANEW, Root};
use crate::identity::private_files::{
    at, check_private, make_folder, open_if_there, open_private, put, text,
};
use crate::identity::{Error, ErrorKind};

const ROOT: &str = "root-cert.pem";
const KEY: &str = "root-key.pem";
const LOCK: &str = ".lock";

/// How often to ask for the lock while another process creates the root, which takes milliseconds.
const POLL: Duration = Duration::from_millis(20);

pub(super) fn lock_path(folder: &Path) -> PathBuf {
    folder.join(LOCK)
}

/// Opens the folder's root, or creates it. Waits, as long as it takes, while somebody else does.
///
/// A blocking thread is used per try, none while waiting, so that giving up leaves none behind.
pub(super) async fn open(
    folder: &Arc<Path>,
    trust_domain: &str,
    now: SystemTime,
) -> Result<Arc<Root>, Error> {
    loop {
        let (folder, trust_domain) = (Arc::clone(folder), trust_domain.to_owned());
        let attempt = tokio::task::spawn_blocking(move || attempt(&folder, &trust_domain, now));
        match attempt.await {
            Ok(Ok(Some(root))) => return Ok(Arc::new(root)),
            Ok(Ok(None)) => tokio::time::sleep(POLL).await,
            // Nobody but the user mends a folder.
            Ok(Err(error)) => return Err(error.lasting()),
            Err(error) => {
                let detail = "reading the folder of the development root";
                return Err(Error::new(ErrorKind::Io, detail).with_source(error));
            }
        }
    }
}

/// `None`: another process holds the lock.
fn attempt(folder: &Path, trust_domain: &str, now: SystemTime) -> Result<Option<Root>, Error> {
    if let Some(root) = load(folder, trust_domain)? {
        return Ok(Some(root));
    }
    make_folder(folder)?;
    let path = lock_path(folder);
    let lock = open_private(&path, OpenOptions::new().write(true).create(true))
        .map_err(at("creating", &path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(at("locking", &path)(error)),
    }
    // It may have been created between the look and the lock. The lock ends with `lock`.
    match load(folder, trust_domain)? {
        Some(root) => Ok(Some(root)),
        None => create(folder, trust_domain, now).map(Some),
    }
}

/// Reads the root; `None` if its certificate is not there.
///
/// Needs no lock: the certificate is the last to be put there, and each file is put there whole.
fn load(folder: &Path, trust_domain: &str) -> Result<Option<Root>, Error> {
    let (root, key) = (folder.join(ROOT), folder.join(KEY));
    let Some(file) = open_if_there(&root)? else {
        return Ok(None);
    };
    let certificates = text(file, &root)?;
    let Some(file) = open_if_there(&key)? else {
        let detail = format!(
            "{}: expected the private key of {ROOT}, found no file; {BEGIN_ANEW}",
            key.display()
        );
        return Err(Error::new(ErrorKind::Invalid, detail));
    };
    check_private(&file, &key)?;
    let private = text(file, &key)?;
    let (root, key) = (root.display().to_string(), key.display().to_string());
    Root::load(&certificates, &root, &private, &key, trust_domain).map(Some)
}

/// Makes a new root. Called under the lock.
fn create(folder: &Path, trust_domain: &str, now: SystemTime) -> Result<Root, Error> {
    let (root_path, key_path) = (folder.join(ROOT), folder.join(KEY));
    if fs::symlink_metadata(&key_path).is_ok() {
        let detail = format!(
            "{}: expected the certificate of {KEY}, found no file; {BEGIN_ANEW}",
            root_path.display()
        );
        return Err(Error::new(ErrorKind::Invalid, detail));
    }
    let root = Root::create(trust_domain, now)?;
    put(&folder.join(".gitignore"), b"*\n")?;
    put(&key_path, root.key_pem().as_bytes())?;
    put(&root_path, root.pem().as_bytes())?;
    tracing::info!(
        target: "mesh::identity",
        folder = %folder.display(),
        trust_domain,
        root = %root.fingerprint(),
        "created a development root"
    );
    Ok(root)
}
