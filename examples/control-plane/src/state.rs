//! The folder that outlives the process: the root with its key, and the key of tokens.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};

use crate::BoxError;
use crate::token::Tokens;

pub(crate) const ROOT: &str = "root-cert.pem";
const ROOT_KEY: &str = "root-key.pem";
const TOKEN_KEY: &str = "token-key";

pub(crate) struct State {
    /// PEM.
    pub(crate) root: String,
    /// PKCS#8 in PEM.
    pub(crate) key: String,
    pub(crate) tokens: Tokens,
}

impl State {
    /// Reads the folder of a control plane that has been started: hosts that trust another root join nobody.
    pub(crate) fn existing(folder: &Path, trust_domain: &str) -> Result<Self, BoxError> {
        if folder.join(ROOT_KEY).exists() {
            return Self::open(folder, trust_domain);
        }
        let whole = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        let whole = whole.display();
        Err(format!("--state {whole}: no control plane has been started with this folder; expected the --state of the one that hosts are to join, `.mesh-control-plane` in the folder where it was started unless it was set").into())
    }

    /// Reads the folder; what is not there is made.
    pub(crate) fn open(folder: &Path, trust_domain: &str) -> Result<Self, BoxError> {
        let at = |error: io::Error| format!("--state {}: {error}", folder.display());
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(at)?;
        let metadata = fs::metadata(folder).map_err(at)?;
        check_owner(&metadata, folder)?;
        // Who may write there may put other keys in the place of ours.
        let mode = metadata.mode() & 0o7777;
        if mode & 0o022 != 0 {
            let folder = folder.display();
            return Err(format!(
                "--state {folder}: others can write to it (mode {mode:o}), expected mode 0700"
            )
            .into());
        }
        // Two that start at once would make two roots.
        let lock = open(&folder.join("lock"), true).map_err(at)?;
        lock.lock().map_err(at)?;
        let (root_path, key_path) = (folder.join(ROOT), folder.join(ROOT_KEY));
        let key = match read(&key_path)? {
            Some(key) => key,
            None => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?.serialize_pem();
                put(&key_path, key.as_bytes())?;
                key
            }
        };
        let root = match read(&root_path)? {
            Some(root) => root,
            None => {
                let root = new_root(&KeyPair::from_pem(&key)?, trust_domain)?;
                put(&root_path, root.as_bytes())?;
                root
            }
        };
        let token_path = folder.join(TOKEN_KEY);
        let secret = match read(&token_path)? {
            Some(secret) => secret,
            None => {
                let mut bytes = [0; 32];
                aws_lc_rs::rand::fill(&mut bytes).map_err(|_| "no random bytes")?;
                let secret = data_encoding::HEXLOWER.encode(&bytes);
                put(&token_path, secret.as_bytes())?;
                secret
            }
        };
        if secret.trim().len() < 64 {
            let path = token_path.display();
            return Err(format!(
                "{path}: expected 64 hexadecimal digits; remove it to make new ones"
            )
            .into());
        }
        Ok(Self {
            root,
            key,
            tokens: Tokens::new(secret.trim().as_bytes(), trust_domain),
        })
    }
}

fn new_root(key: &KeyPair, trust_domain: &str) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, trust_domain);
    name.push(DnType::CommonName, "control-plane root");
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let (from, to) = crate::tls::validity(10 * 365);
    (params.not_before, params.not_after) = (from, to);
    Ok(params.self_signed(key)?.pem())
}

fn open(path: &Path, create: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(create)
        .create(create)
        .truncate(false)
        .mode(0o600);
    options.open(path)
}

/// What somebody else made is none of ours, whatever its mode is.
fn check_owner(metadata: &fs::Metadata, path: &Path) -> Result<(), BoxError> {
    let (owner, me) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner == me {
        return Ok(());
    }
    let path = path.display();
    Err(format!("{path}: owned by user {owner}, expected user {me}, as whom this runs").into())
}

/// A file of ours, if it is there; one that others can read is none.
fn read(path: &Path) -> Result<Option<String>, BoxError> {
    let at = |error: io::Error| format!("{}: {error}", path.display());
    let mut file = match open(path, false) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(error).into()),
    };
    let metadata = file.metadata().map_err(at)?;
    check_owner(&metadata, path)?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        let path = path.display();
        return Err(
            format!("{path}: others can read it (mode {mode:o}), expected mode 0600").into(),
        );
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(at)?;
    Ok(Some(text))
}

/// Puts a file in place at once.
fn put(path: &Path, content: &[u8]) -> Result<(), BoxError> {
    let at = |error: io::Error| format!("{}: {error}", path.display());
    let beside = path.with_extension("new");
    let mut file = open(&beside, true).map_err(at)?;
    file.set_len(0).map_err(at)?;
    file.write_all(content).map_err(at)?;
    file.sync_all().map_err(at)?;
    fs::rename(&beside, path).map_err(at)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;

    fn open(folder: &Path) -> Result<State, String> {
        State::open(folder, "cluster.local").map_err(|error| error.to_string())
    }

    #[test]
    fn a_folder_is_kept_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path()).unwrap();
        let again = open(folder.path()).unwrap();
        assert_eq!((first.root, first.key), (again.root, again.key));
        for name in [ROOT, ROOT_KEY, TOKEN_KEY] {
            let mode = fs::metadata(folder.path().join(name)).unwrap().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn a_folder_without_a_root_is_left_as_it_is_by_who_wants_one() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let refused = State::existing(&state, "td").err().unwrap().to_string();
        let expected = format!("--state {}: no control plane has", state.display());
        assert!(refused.starts_with(&expected), "{refused}");
        assert!(!state.exists());
        let first = open(&state).unwrap();
        let found = State::existing(&state, "cluster.local").unwrap();
        assert_eq!(found.root, first.root);
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_refused() {
        for mode in [0o770, 0o702, 0o777] {
            let folder = tempfile::tempdir().unwrap();
            fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
            let refused = open(folder.path()).err().unwrap();
            let expected = format!("others can write to it (mode {mode:o}), expected mode 0700");
            assert!(refused.ends_with(&expected), "{refused}");
            assert_eq!(
                fs::read_dir(folder.path()).unwrap().count(),
                0,
                "nothing is put there"
            );
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        open(folder.path()).unwrap();
        let key = folder.path().join(ROOT_KEY);
        fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
        let refused = open(folder.path()).err().unwrap();
        assert!(
            refused.ends_with("others can read it (mode 640), expected mode 0600"),
            "{refused}"
        );
    }

    #[test]
    fn what_another_user_owns_is_refused() {
        let me = rustix::process::geteuid().as_raw();
        let refusal = |path: &Path, open_it: &Path| {
            // Only root can give files away; for anybody else, what root owns is another's.
            if me == 0 {
                chown(path, Some(65534), None).unwrap();
                return open(open_it).err().unwrap();
            }
            check_owner(&fs::metadata("/").unwrap(), path)
                .unwrap_err()
                .to_string()
        };
        let expected = format!("expected user {me}, as whom this runs");
        let folder = tempfile::tempdir().unwrap();
        let refused = refusal(folder.path(), folder.path());
        assert!(refused.ends_with(&expected), "{refused}");
        let folder = tempfile::tempdir().unwrap();
        open(folder.path()).unwrap();
        let refused = refusal(&folder.path().join(ROOT), folder.path());
        assert!(refused.ends_with(&expected), "{refused}");
    }
}
