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
    /// Reads the folder; what is not there is made.
    pub(crate) fn open(folder: &Path, trust_domain: &str) -> Result<Self, BoxError> {
        let at = |error: io::Error| format!("--state {}: {error}", folder.display());
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(at)?;
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
        let root = match fs::read_to_string(&root_path) {
            Ok(root) => root,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let root = new_root(&KeyPair::from_pem(&key)?, trust_domain)?;
                put(&root_path, root.as_bytes())?;
                root
            }
            Err(error) => return Err(format!("{}: {error}", root_path.display()).into()),
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

/// A secret, if it is there; one that others can read is none.
fn read(path: &Path) -> Result<Option<String>, BoxError> {
    let at = |error: io::Error| format!("{}: {error}", path.display());
    let mut file = match open(path, false) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(error).into()),
    };
    let mode = file.metadata().map_err(at)?.mode();
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
