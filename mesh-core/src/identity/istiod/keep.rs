//! Certificates that outlive the process, in a directory.
//!
//! `<trust domain>/<namespace>/<service account>/` has `certificate.pem`, the private key with its chain
//! in one file so that they always belong together, and `roots.pem`.

use std::path::{Path, PathBuf};

use mesh_authz::Identity;
use mesh_hbone::tls::Bundle;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::control_plane::read_certificates;
use crate::identity::private_files::{
    check_folder, check_private, make_folder, open_if_there, put, text,
};
use crate::identity::{Error, ErrorKind};

const CERTIFICATE: &str = "certificate.pem";
const ROOTS: &str = "roots.pem";

/// No part of a SPIFFE id can leave the directory: none is `.` or `..`, none has a slash.
fn folder(directory: &Path, identity: &Identity) -> PathBuf {
    directory
        .join(identity.trust_domain())
        .join(identity.namespace())
        .join(identity.service_account())
}

/// Puts a certificate there, blocking. `certificate` is the private key and the chain in PEM.
pub(super) fn store(
    directory: &Path,
    identity: &Identity,
    certificate: &str,
    roots: &str,
) -> Result<(), Error> {
    let folder = folder(directory, identity);
    make_folder(&folder)?;
    check_folder(&folder)?;
    // Roots do no harm beside an older certificate.
    put(&folder.join(ROOTS), roots.as_bytes())?;
    put(&folder.join(CERTIFICATE), certificate.as_bytes())
}

/// Reads what was put there, blocking; `None` if nothing was.
pub(super) fn load(directory: &Path, identity: &Identity) -> Result<Option<Bundle>, Error> {
    let folder = folder(directory, identity);
    let (certificate, roots) = (folder.join(CERTIFICATE), folder.join(ROOTS));
    let (Some(file), Some(root_file)) = (open_if_there(&certificate)?, open_if_there(&roots)?)
    else {
        return Ok(None);
    };
    check_folder(&folder)?;
    check_private(&file, &certificate)?;
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
