//! The small files that a control plane's clients read.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::identity::{Error, ErrorKind};

/// No root file, token or CRL of a mesh is larger; whatever is, is something else.
const MAX_FILE: u64 = 4 << 20;

/// What a file holds; `None` if there is none. Wiped when dropped: it may be a token or a key.
pub(crate) type Read = Option<Zeroizing<Vec<u8>>>;

/// Reads a file whole, blocking.
pub(crate) fn read_file(path: &Path) -> io::Result<Read> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // Room for all of it from the start: a vector that grows leaves copies behind.
    let size = file.metadata()?.len().min(MAX_FILE);
    let mut content = Zeroizing::new(Vec::with_capacity(size as usize + 1));
    file.take(MAX_FILE + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_FILE {
        let detail = format!("expected at most {MAX_FILE} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, detail));
    }
    Ok(Some(content))
}

/// Reads a file whole on a thread that may block.
pub(super) async fn read(path: &Arc<Path>) -> io::Result<Read> {
    let path = Arc::clone(path);
    tokio::task::spawn_blocking(move || read_file(&path))
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// The usable certificates of a PEM text, each once. What is damaged is skipped with a warning that
/// says where it is from: one bad root must not take the good ones away.
///
/// # Errors
///
/// None is usable.
pub(crate) fn read_certificates(
    pem: &[u8],
    from: &str,
) -> Result<Vec<CertificateDer<'static>>, Error> {
    let mut usable: Vec<CertificateDer<'static>> = Vec::new();
    for (index, section) in CertificateDer::pem_slice_iter(pem).enumerate() {
        let problem = match section {
            Ok(certificate) if usable.contains(&certificate) => continue,
            Ok(certificate) => match X509Certificate::from_der(&certificate) {
                Ok(([], _)) => {
                    usable.push(certificate);
                    continue;
                }
                Ok(_) => "it has trailing bytes".to_owned(),
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        };
        tracing::warn!(target: "mesh::identity", from, index, %problem, "a root certificate is skipped");
    }
    if usable.is_empty() {
        let detail =
            format!("{from}: expected root certificates in PEM, found none that is usable");
        return Err(Error::new(ErrorKind::Invalid, detail));
    }
    Ok(usable)
}
