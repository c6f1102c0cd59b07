//! Certificates that somebody else writes.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::fs::File;
use std::hash::BuildHasher;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use futures_core::Stream;
use mesh_authz::Identity;
use mesh_hbone::tls::Bundle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep};
use zeroize::Zeroizing;

use super::clock::Clock;
use super::renew::Now;
use super::renewed::judge;
use super::{CertificateSource, CertificateStream, Error, ErrorKind};

/// Certificates in files that somebody else renews: cert-manager, a CSI driver, step, Vault agent.
///
/// The files are read twice a second, and used once two reads in a row found the same, so that
/// nobody's half-written file is. Links are followed anew each time, so a folder that is swapped
/// whole, as Kubernetes mounts secrets, is seen. Files that cannot be used are an error, once per
/// content, and the last good certificate stays in use until it expires.
///
/// One set of files holds one identity: [`watch`](CertificateSource::watch) for another is an error
/// that names both.
///
/// # Examples
///
/// ```
/// use mesh_core::identity::Files;
///
/// let files = Files::new("/run/spiffe/tls.crt", "/run/spiffe/tls.key", "/run/spiffe/ca.crt")
///     .crls("/run/spiffe/ca.crl");
/// # let _ = files;
/// ```
#[derive(Debug, Clone)]
pub struct Files {
    paths: Arc<Paths>,
    poll: Duration,
    clock: Clock,
}

#[derive(Debug, Clone)]
struct Paths {
    chain: PathBuf,
    key: PathBuf,
    roots: PathBuf,
    crls: Option<PathBuf>,
    max_file: u64,
}

impl Files {
    /// Takes three PEM files: the certificate chain (leaf first), its private key (PKCS#8, SEC1 or
    /// PKCS#1) and the trusted roots. Nothing is read here.
    pub fn new(
        chain: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
        roots: impl Into<PathBuf>,
    ) -> Self {
        Self {
            paths: Arc::new(Paths {
                chain: chain.into(),
                key: key.into(),
                roots: roots.into(),
                crls: None,
                max_file: 4 << 20,
            }),
            poll: Duration::from_millis(500),
            clock: Clock::default(),
        }
    }

    /// Sets a PEM file of revocation lists: none unless set. It has to be there; an empty file
    /// revokes nothing. One that is missing or damaged is an error, never "nothing is revoked".
    #[must_use]
    pub fn crls(mut self, path: impl Into<PathBuf>) -> Self {
        Arc::make_mut(&mut self.paths).crls = Some(path.into());
        self
    }

    /// Sets how often the files are read: every 500 ms unless set, so that a change is in use
    /// within about a second.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        // A pause of nothing would be a busy loop.
        self.poll = interval.max(Duration::from_millis(1));
        self
    }

    /// Sets the size above which a file is refused, in bytes: 4 MiB unless set, room for a CRL of
    /// a hundred thousand certificates.
    #[must_use]
    pub fn max_file_size(mut self, bytes: u64) -> Self {
        Arc::make_mut(&mut self.paths).max_file = bytes;
        self
    }

    /// Sets the clock by which certificates are judged: the system's unless set.
    #[must_use]
    pub fn clock(mut self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.clock = Clock::new(now);
        self
    }
}

impl CertificateSource for Files {
    fn watch(&self, identity: Identity) -> CertificateStream {
        Box::pin(Reloads {
            identity,
            paths: Arc::clone(&self.paths),
            poll: self.poll,
            clock: self.clock.clone(),
            hasher: RandomState::new(),
            seen: None,
            told: None,
            expires: None,
            reading: None,
            sleep: None,
        })
    }
}

struct Reloads {
    identity: Identity,
    paths: Arc<Paths>,
    poll: Duration,
    clock: Clock,
    hasher: RandomState,
    /// What the last read found, and how many before it in a row.
    seen: Option<(u64, u32)>,
    /// What the last item was made of.
    told: Option<u64>,
    /// When the bundle that was given last expires, until that has been said.
    expires: Option<SystemTime>,
    reading: Option<JoinHandle<Found>>,
    sleep: Option<Pin<Box<Sleep>>>,
}

/// What was read, with a hash by which it is compared: a key is not kept for that.
type Found = (u64, Result<Contents, Error>);

struct Contents {
    chain: Zeroizing<Vec<u8>>,
    key: Zeroizing<Vec<u8>>,
    roots: Zeroizing<Vec<u8>>,
    crls: Zeroizing<Vec<u8>>,
}

impl Stream for Reloads {
    type Item = Result<Bundle, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(reading) = &mut this.reading {
                let read = ready!(Pin::new(reading).poll(cx));
                this.reading = None;
                this.sleep = Some(Box::pin(tokio::time::sleep(this.poll)));
                let Ok((hash, contents)) = read else {
                    // Only a runtime that shuts down ends a read.
                    return Poll::Ready(None);
                };
                if let Some(item) = this.consider(hash, contents) {
                    return Poll::Ready(Some(item));
                }
            }
            if let Some(at) = this.expires
                && at <= this.clock.now()
            {
                this.expires = None;
                let detail = format!("{}: expired, and not renewed", this.paths.chain.display());
                return Poll::Ready(Some(Err(Error::new(ErrorKind::Expired, detail))));
            }
            if let Some(sleep) = &mut this.sleep {
                ready!(sleep.as_mut().poll(cx));
                this.sleep = None;
            }
            let (paths, hasher) = (Arc::clone(&this.paths), this.hasher.clone());
            this.reading = Some(tokio::task::spawn_blocking(move || paths.read(&hasher)));
        }
    }
}

impl Reloads {
    /// An item, if the files have changed since the last one and are at rest.
    fn consider(
        &mut self,
        hash: u64,
        contents: Result<Contents, Error>,
    ) -> Option<Result<Bundle, Error>> {
        let unchanged = match self.seen {
            Some((last, times)) if last == hash => times.saturating_add(1),
            _ => 0,
        };
        self.seen = Some((hash, unchanged));
        if self.told == Some(hash) {
            return None;
        }
        let now = Now {
            wall: self.clock.now(),
            monotonic: Instant::now(),
        };
        let bundle = contents
            .and_then(|contents| self.paths.parse(&contents))
            .and_then(|bundle| {
                judge(bundle, &self.identity, now).map_err(|error| {
                    let detail = format!("{}: {}", self.paths.chain.display(), error.detail());
                    Error::new(error.kind(), detail)
                })
            });
        // Nobody waits half a second to start; what is not whole yet shows at the next reads. Files that are replaced
        // one by one do not belong together for a while, and whoever waits for them is not to give up.
        let needed = match &bundle {
            Ok(_) => u32::from(self.told.is_some()),
            Err(error) if is_of_files(error) => LASTING_AFTER,
            Err(_) => 1,
        };
        if unchanged < needed {
            return None;
        }
        let bundle = bundle.map_err(|error| match is_of_files(&error) {
            true => error.lasting(),
            false => error,
        });
        self.told = Some(hash);
        if let Ok(bundle) = &bundle {
            self.expires = Some(bundle.not_after());
        }
        Some(bundle)
    }
}

/// How many reads in a row have to find what the one before them found, until what is wrong with it lasts.
const LASTING_AFTER: u32 = 2;

/// Whether it is wrong with what the files hold, so that only a change of them helps.
fn is_of_files(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Invalid | ErrorKind::WrongIdentity)
}

impl Paths {
    fn read(&self, hasher: &RandomState) -> Found {
        let contents = self.read_all();
        let hash = match &contents {
            Ok(all) => hasher.hash_one((&*all.chain, &*all.key, &*all.roots, &*all.crls)),
            Err(error) => hasher.hash_one(error.to_string()),
        };
        (hash, contents)
    }

    fn read_all(&self) -> Result<Contents, Error> {
        Ok(Contents {
            chain: self.read_one(&self.chain)?,
            key: self.read_one(&self.key)?,
            roots: self.read_one(&self.roots)?,
            crls: match &self.crls {
                Some(path) => self.read_one(path)?,
                None => Zeroizing::default(),
            },
        })
    }

    fn read_one(&self, path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
        let failed = |error: io::Error| {
            let detail = format!("reading {}", path.display());
            Error::new(ErrorKind::Io, detail).with_source(error)
        };
        let file = File::open(path).map_err(failed)?;
        // Room for all of it from the start: a vector that grows leaves copies of a key behind.
        let size = file.metadata().map_err(failed)?.len().min(self.max_file);
        let mut content = Zeroizing::new(Vec::with_capacity(size as usize + 1));
        let mut limited = file.take(self.max_file.saturating_add(1));
        limited.read_to_end(&mut content).map_err(failed)?;
        if content.len() as u64 > self.max_file {
            let detail = format!(
                "{}: expected at most {} bytes",
                path.display(),
                self.max_file
            );
            return Err(Error::new(ErrorKind::Invalid, detail));
        }
        Ok(content)
    }

    fn parse(&self, all: &Contents) -> Result<Bundle, Error> {
        Bundle::from_pem(&all.chain, &all.key, &all.roots, &all.crls)
            .map_err(|error| Error::new(ErrorKind::Invalid, self.to_string()).with_source(error))
    }
}

impl fmt::Display for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (chain, key, roots) = (&self.chain, &self.key, &self.roots);
        write!(f, "certificate chain {}", chain.display())?;
        write!(f, ", private key {}", key.display())?;
        write!(f, ", trust roots {}", roots.display())?;
        match &self.crls {
            Some(crls) => write!(f, ", CRLs {}", crls.display()),
            None => Ok(()),
        }
    }
}
