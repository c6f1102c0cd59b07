//! The folder that processes share.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use zeroize::Zeroizing;

use super::root::{BEGIN_ANEW, Root};
use crate::identity::{Error, ErrorKind};

const ROOT: &str = "root-cert.pem";
const KEY: &str = "root-key.pem";
const LOCK: &str = ".lock";

/// How often to ask for the lock while another process creates the root, which takes milliseconds.
const POLL: Duration = Duration::from_millis(20);

/// No root or key is larger; whatever is, is something else.
const MAX_FILE: u64 = 1 << 20;

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
            Ok(Err(error)) => return Err(error),
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

/// Puts a file there whole or not at all, readable by its owner alone. Called under the lock.
fn put(path: &Path, content: &[u8]) -> Result<(), Error> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    // A killed process may have left one behind. `create_new` follows no link put in its place.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(at("removing", &temporary)(error));
        }
        _ => {}
    }
    let written = open_private(&temporary, OpenOptions::new().write(true).create_new(true))
        .and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()
        });
    written.map_err(at("writing", &temporary))?;
    fs::rename(&temporary, path).map_err(at("writing", path))
}

fn open_if_there(path: &Path) -> Result<Option<File>, Error> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at("reading", path)(error)),
    }
}

/// Refuses a key that others can read: they could be anybody in the mesh.
#[cfg(unix)]
fn check_private(file: &File, path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = file.metadata().map_err(at("reading", path))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let detail = format!(
        "{}: expected mode 600, readable by its owner alone, found {mode:o}; chmod 600 it if nobody else has read it",
        path.display()
    );
    Err(Error::new(ErrorKind::Insecure, detail))
}

#[cfg(not(unix))]
fn check_private(_: &File, _: &Path) -> Result<(), Error> {
    Ok(())
}

fn text(file: File, path: &Path) -> Result<Zeroizing<String>, Error> {
    let mut content = Zeroizing::new(String::new());
    file.take(MAX_FILE)
        .read_to_string(&mut content)
        .map_err(at("reading", path))?;
    Ok(content)
}

fn make_folder(folder: &Path) -> Result<(), Error> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(at("creating", folder))
}

fn open_private(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options.open(path)
}

fn at(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let detail = format!("{doing} {}", path.display());
    |error| Error::new(ErrorKind::Io, detail).with_source(error)
}
