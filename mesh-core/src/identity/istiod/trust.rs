//! The files that say whom to believe, read again and again.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::path::Path;
use std::sync::Arc;

use mesh_hbone::tls::Bundle;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior};

use super::watch::Settings;
use crate::control_plane::{Read, read_certificates, read_file};
use crate::identity::{Error, ErrorKind};

/// What has changed.
pub(super) enum Change {
    /// The token.
    Token,
    /// Roots or lists: to be composed with every certificate, then [accepted](Trust::accept).
    Files(Candidate),
    /// The files cannot be used; what was read before stays in force.
    Problem(Error),
}

/// Whom to believe beside the roots that came with a certificate, and whom no more.
#[derive(Debug, Clone, Default)]
pub(super) struct Candidate {
    roots: Vec<CertificateDer<'static>>,
    crls: Vec<CertificateRevocationListDer<'static>>,
}

impl Candidate {
    /// The certificate with all roots and lists that are in force.
    pub(super) fn compose(&self, issued: &Bundle) -> Result<Bundle, Error> {
        let mut roots = issued.roots().to_vec();
        for root in &self.roots {
            if !roots.contains(root) {
                roots.push(root.clone());
            }
        }
        issued.with_trust(roots, &self.crls).map_err(|error| {
            Error::new(ErrorKind::Invalid, "trust roots and CRLs").with_source(error)
        })
    }
}

pub(super) struct Trust {
    paths: Arc<Paths>,
    /// What is in force; an error until the lists could be read once.
    current: Result<Candidate, Error>,
    hasher: RandomState,
    seen: Hashes,
    told: Hashes,
    ticks: Interval,
    reading: Option<JoinHandle<Contents>>,
}

#[derive(Debug)]
struct Paths {
    roots: Arc<Path>,
    /// Whether peers are believed by the roots.
    for_peers: bool,
    crls: Option<Arc<Path>>,
    token: Option<Arc<Path>>,
}

type Content = io::Result<Read>;

struct Contents {
    roots: Content,
    crls: Content,
    token: Content,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Hashes {
    files: u64,
    token: u64,
}

impl Trust {
    /// Reads the files for the first time.
    pub(super) async fn open(settings: &Settings) -> Self {
        let (roots, for_peers) = settings.control_plane.roots_file();
        let paths = Arc::new(Paths {
            roots: Arc::clone(roots),
            for_peers,
            crls: settings.crls.clone(),
            token: settings.control_plane.token_path().cloned(),
        });
        let hasher = RandomState::new();
        let contents = read(Arc::clone(&paths)).await;
        let hashes = contents.as_ref().map(|contents| contents.hashes(&hasher));
        let hashes = hashes.unwrap_or_default();
        let current = match contents {
            Ok(contents) => paths.first(&contents),
            Err(error) => Err(unread(error)),
        };
        let mut ticks = tokio::time::interval(settings.poll);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            paths,
            current,
            hasher,
            seen: hashes,
            told: hashes,
            ticks,
            reading: None,
        }
    }

    /// The certificate with all roots and lists that are in force.
    pub(super) fn compose(&self, issued: &Bundle) -> Result<Bundle, Error> {
        self.current.as_ref().map_err(Clone::clone)?.compose(issued)
    }

    /// Whether a certificate that was kept is of an authority that the root file does not know: of another mesh, or
    /// of roots that have been replaced meanwhile, either here or in the file.
    pub(super) fn is_of_others(&self, kept: &Bundle) -> bool {
        let roots = self.current.as_ref().map_or(&[][..], |now| &now.roots);
        !roots.is_empty() && !kept.roots().iter().any(|root| roots.contains(root))
    }

    pub(super) fn accept(&mut self, candidate: Candidate) {
        self.current = Ok(candidate);
    }

    /// Waits for a change that two looks in a row have seen.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a look that has begun is waited for by the next call.
    pub(super) async fn changed(&mut self) -> Change {
        loop {
            let reading = match &mut self.reading {
                Some(reading) => reading,
                None => {
                    self.ticks.tick().await;
                    self.reading.insert(read(Arc::clone(&self.paths)))
                }
            };
            let contents = reading.await;
            self.reading = None;
            let change = match contents {
                Ok(contents) => self.consider(&contents),
                Err(error) => Some(Change::Problem(unread(error))),
            };
            if let Some(change) = change {
                return change;
            }
        }
    }

    fn consider(&mut self, contents: &Contents) -> Option<Change> {
        let now = contents.hashes(&self.hasher);
        let before = std::mem::replace(&mut self.seen, now);
        if now.files != self.told.files && now.files == before.files {
            self.told.files = now.files;
            return Some(match self.again(contents) {
                Ok(candidate) => Change::Files(candidate),
                Err(error) => Change::Problem(error),
            });
        }
        if now.token != self.told.token && now.token == before.token {
            self.told.token = now.token;
            return Some(Change::Token);
        }
        None
    }

    /// Roots that cannot be read stay as they were; lists that cannot be are an error.
    fn again(&self, contents: &Contents) -> Result<Candidate, Error> {
        let crls = self.paths.crls(contents)?;
        let roots = match self.paths.roots(contents) {
            Ok(roots) => roots,
            Err(error) => {
                let current = self.current.as_ref();
                let Some(current) = current.ok().filter(|current| !current.roots.is_empty()) else {
                    return Ok(Candidate {
                        roots: Vec::new(),
                        crls,
                    });
                };
                tracing::warn!(target: "mesh::identity", %error, "the roots that were there before stay trusted");
                current.roots.clone()
            }
        };
        Ok(Candidate { roots, crls })
    }
}

impl Paths {
    fn first(&self, contents: &Contents) -> Result<Candidate, Error> {
        Ok(Candidate {
            crls: self.crls(contents)?,
            // Those that come with a certificate will do; connecting says what is wrong with the file.
            roots: self.roots(contents).unwrap_or_default(),
        })
    }

    fn roots(&self, contents: &Contents) -> Result<Vec<CertificateDer<'static>>, Error> {
        if !self.for_peers {
            return Ok(Vec::new());
        }
        let from = format!("root certificate file {}", self.roots.display());
        read_certificates(found(&contents.roots, &from)?, &from)
    }

    fn crls(
        &self,
        contents: &Contents,
    ) -> Result<Vec<CertificateRevocationListDer<'static>>, Error> {
        let Some(path) = &self.crls else {
            return Ok(Vec::new());
        };
        let from = format!("CRL file {}", path.display());
        let pem = found(&contents.crls, &from)?;
        let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|error| {
                let detail = format!("{from}: expected PEM");
                Error::new(ErrorKind::Invalid, detail).with_source(error)
            })?;
        if lists.is_empty() && !pem.trim_ascii().is_empty() {
            let detail = format!("{from}: expected X509 CRL sections, found none");
            return Err(Error::new(ErrorKind::Invalid, detail));
        }
        Ok(lists)
    }
}

fn found<'a>(content: &'a Content, what: &str) -> Result<&'a [u8], Error> {
    match content {
        Ok(Some(content)) => Ok(content),
        Ok(None) => Err(Error::new(ErrorKind::Io, format!("{what} is missing"))),
        Err(error) => Err(Error::new(ErrorKind::Io, format!("{what}: {error}"))),
    }
}

impl Contents {
    fn hashes(&self, hasher: &RandomState) -> Hashes {
        let hash = |content: &Content| match content {
            Ok(content) => hasher.hash_one(content.as_ref().map(|content| &***content)),
            Err(error) => hasher.hash_one(error.to_string()),
        };
        Hashes {
            files: hasher.hash_one((hash(&self.roots), hash(&self.crls))),
            token: hash(&self.token),
        }
    }
}

fn read(paths: Arc<Paths>) -> JoinHandle<Contents> {
    tokio::task::spawn_blocking(move || {
        let read =
            |path: &Option<Arc<Path>>| path.as_ref().map_or(Ok(None), |path| read_file(path));
        Contents {
            roots: read_file(&paths.roots),
            crls: read(&paths.crls),
            token: read(&paths.token),
        }
    })
}

fn unread(error: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Io, "reading the root file and CRLs").with_source(error)
}
