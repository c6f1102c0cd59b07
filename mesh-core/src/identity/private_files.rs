//! Files that their owner alone can read, put there whole.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::{Error, ErrorKind};

/// No root or key is larger; whatever is, is something else.
const MAX_FILE: u64 = 1 << 20;

/// Puts a file there whole or not at all, readable by its owner alone. One writer at a
/// time.
pub(crate) fn put(path: &Path, content: &[u8]) -> Result<(), Error> {
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

pub(crate) fn open_if_there(path: &Path) -> Result<Option<File>, Error> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at("reading", path)(error)),
    }
}

/// Refuses a key that others can read: they could be anybody in the mesh.
#[cfg(unix)]
pub(crate) fn check_private(file: &File, path: &Path) -> Result<(), Error> {
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
pub(crate) fn check_private(_: &File, _: &Path) -> Result<(), Error> {
    Ok(())
}

/// Who this process is to the file system.
#[cfg(feature = "istiod")]
pub(crate) struct Owner {
    #[cfg(unix)]
    uid: u32,
}

#[cfg(all(unix, feature = "istiod"))]
impl Owner {
    /// Learned from a file put into `folder`, where nothing stays of it: on some network file systems
    /// what a process creates is not owned by the user that it runs as.
    pub(crate) fn in_folder(folder: &Path) -> Result<Self, Error> {
        use std::hash::{BuildHasher, RandomState};
        use std::os::unix::fs::MetadataExt;
        let name = format!(".owner-{:016x}", RandomState::new().hash_one(0_u8));
        let path = folder.join(name);
        let file = open_private(&path, OpenOptions::new().write(true).create_new(true))
            .map_err(at("creating", &path))?;
        fs::remove_file(&path).map_err(at("removing", &path))?;
        let metadata = file.metadata().map_err(at("reading", &path))?;
        Ok(Self {
            uid: metadata.uid(),
        })
    }

    /// Refuses a folder in which others can put files: what is found there would be theirs.
    pub(crate) fn check_folder(&self, path: &Path) -> Result<(), Error> {
        use std::os::unix::fs::PermissionsExt;
        let metadata = fs::metadata(path).map_err(at("reading", path))?;
        self.check(&metadata, path)?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o022 == 0 {
            return Ok(());
        }
        let detail = format!(
            "{}: expected a folder in which its owner alone can write, found mode {mode:o}",
            path.display()
        );
        Err(Error::new(ErrorKind::Insecure, detail))
    }

    /// Refuses a file that others can read, or that is another's.
    pub(crate) fn check_private(&self, file: &File, path: &Path) -> Result<(), Error> {
        let metadata = file.metadata().map_err(at("reading", path))?;
        self.check(&metadata, path)?;
        check_private(file, path)
    }

    fn check(&self, metadata: &fs::Metadata, path: &Path) -> Result<(), Error> {
        use std::os::unix::fs::MetadataExt;
        let (found, own) = (metadata.uid(), self.uid);
        if found == own {
            return Ok(());
        }
        let detail = format!(
            "{}: expected to be owned by this process's user {own}, found user {found}",
            path.display()
        );
        Err(Error::new(ErrorKind::Insecure, detail))
    }
}

#[cfg(all(not(unix), feature = "istiod"))]
impl Owner {
    pub(crate) fn in_folder(_: &Path) -> Result<Self, Error> {
        Ok(Self {})
    }

    pub(crate) fn check_folder(&self, _: &Path) -> Result<(), Error> {
        Ok(())
    }

    pub(crate) fn check_private(&self, _: &File, _: &Path) -> Result<(), Error> {
        Ok(())
    }
}

pub(crate) fn text(file: File, path: &Path) -> Result<Zeroizing<String>, Error> {
    let mut content = Zeroizing::new(String::new());
    file.take(MAX_FILE)
        .read_to_string(&mut content)
        .map_err(at("reading", path))?;
    Ok(content)
}

pub(crate) fn make_folder(folder: &Path) -> Result<(), Error> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(at("creating", folder))
}

pub(crate) fn open_private(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options.open(path)
}

pub(crate) fn at(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let detail = format!("{doing} {}", path.display());
    |error| Error::new(ErrorKind::Io, detail).with_source(error)
}

#[cfg(all(test, unix, feature = "istiod"))]
mod tests {
    use super::*;

    #[test]
    fn folders_and_files_of_another_user_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        put(&path, b"key").unwrap();
        let file = File::open(&path).unwrap();
        let own = Owner::in_folder(dir.path()).unwrap();
        own.check_folder(dir.path()).unwrap();
        own.check_private(&file, &path).unwrap();
        let left = fs::read_dir(dir.path()).unwrap();
        assert_eq!(left.count(), 1, "the key alone");

        let another = Owner { uid: own.uid + 1 };
        for refused in [
            another.check_folder(dir.path()),
            another.check_private(&file, &path),
        ] {
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Insecure);
            let expected = format!(
                "this process's user {}, found user {}",
                another.uid, own.uid
            );
            assert!(error.detail().contains(&expected), "{error}");
        }
    }
}
