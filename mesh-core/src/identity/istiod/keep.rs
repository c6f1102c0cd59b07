//! Certificates that outlive the process, in a directory.
//!
//! `<trust domain>/<namespace>/<service account>/` has `certificate.pem`, the private key with its chain
//! in one file so that they always belong together, and `roots.pem`.

use std::path::{Path, PathBuf};

use mesh_authz::Identity;
use mesh_hbone::tls::Bundle;

use crate::identity::private_files::{check_private, make_folder, open_if_there, put, text};
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
    check_private(&file, &certificate)?;
    let pem = text(file, &certificate)?;
    let roots = text(root_file, &roots)?;
    let bundle = Bundle::from_pem(pem.as_bytes(), pem.as_bytes(), roots.as_bytes(), b"");
    let bundle = bundle.map_err(|error| {
        let detail = certificate.display().to_string();
        Error::new(ErrorKind::Invalid, detail).with_source(error)
    })?;
    Ok(Some(bundle))
}
