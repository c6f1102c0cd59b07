//! Certificates that outlive the process, in a directory.
//!
//! `<trust domain>/<namespace>/<service account>/` has `certificate.pem`, the private key with its chain
//! in one file so that they always belong together, and `roots.pem`.

use std::path::{Path, PathBuf};

use mesh_authz::Identity;
use mesh_hbone::tls::Bundle;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use crate::control_plane::read_certificates;
use crate::identity::private_files::{Owner, make_folder, open_if_there, put, text};
use crate::identity::{Error, ErrorKind};

const CERTIFICATE: &str = "certificate.pem";
const ROOTS: &str = "roots.pem";

/// What is put there. It has no `Debug`: it holds a key.
pub(super) struct Content {
    /// The private key and the chain, in PEM.
    pub(super) certificate: Zeroizing<String>,
    /// In PEM.
    pub(super) roots: String,
}

/// The directory and its folders on the way to an identity's own, which comes last.
///
/// No part of a SPIFFE id can leave the directory: none is `.` or `..`, none has a slash.
fn folders(directory: &Path, identity: &Identity) -> [PathBuf; 4] {
    let domain = directory.join(identity.trust_domain());
    let namespace = domain.join(identity.namespace());
    let account = namespace.join(identity.service_account());
    [directory.to_owned(), domain, namespace, account]
}

/// Whoever can write in one of them can put another in the place of those below.
fn check(folders: &[PathBuf; 4]) -> Result<Owner, Error> {
    let [directory, ..] = folders;
    let owner = Owner::in_folder(directory)?;
    folders
        .iter()
        .try_for_each(|folder| owner.check_folder(folder))?;
    Ok(owner)
}

/// Puts a certificate there, blocking. One caller at a time.
pub(super) fn store(directory: &Path, identity: &Identity, content: &Content) -> Result<(), Error> {
    let folders = folders(directory, identity);
    let [.., folder] = &folders;
    make_folder(folder)?;
    check(&folders)?;
    // Roots do no harm beside an older certificate.
    put(&folder.join(ROOTS), content.roots.as_bytes())?;
    put(&folder.join(CERTIFICATE), content.certificate.as_bytes())
}

/// Reads what was put there, blocking; `None` if nothing was.
pub(super) fn load(directory: &Path, identity: &Identity) -> Result<Option<Bundle>, Error> {
    let folders = folders(directory, identity);
    let [.., folder] = &folders;
    let (certificate, roots) = (folder.join(CERTIFICATE), folder.join(ROOTS));
    let (Some(file), Some(root_file)) = (open_if_there(&certificate)?, open_if_there(&roots)?)
    else {
        return Ok(None);
    };
    let owner = check(&folders)?;
    owner.check_private(&file, &certificate)?;
    owner.check_private(&root_file, &roots)?;
    let pem = text(file, &certificate)?;
    let from = roots.display().to_string();
    let roots = read_certificates(text(root_file, &roots)?.as_bytes(), &from)?;
    let invalid = || Error::new(ErrorKind::Invalid, certificate.display().to_string());
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>();
    let chain = chain.map_err(|error| invalid().with_source(error))?;
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes());
    let key = key.map_err(|error| invalid().with_source(error))?;
    let bundle = Bundle::new(chain, key, roots, &[]);
    bundle
        .map(Some)
        .map_err(|error| invalid().with_source(error))
}
