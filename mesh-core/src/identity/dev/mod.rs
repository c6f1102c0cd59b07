//! A certificate authority for laptops and tests.

#[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
mod folder;
#[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
mod root;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use mesh_authz::Identity;
use mesh_hbone::tls::{Bundle, Fingerprint};

use super::clock::Clock;
use super::renewed::{Renewed, Settings};
use super::{CertificateSource, CertificateStream, Error, ErrorKind};

#[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
use root::Root;

#[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
use crate::sync::lock;

/// A certificate authority that this process runs itself: for laptops, tests and demonstrations.
///
/// It vouches for whoever asks: anybody who can read its folder is every workload of the mesh. In
/// production use an authority that asks for proof.
///
/// [`in_dir`](Self::in_dir) keeps its root in a folder, so that all processes that name the folder
/// trust each other. [`ephemeral`](Self::ephemeral) keeps it in memory: only its clones trust each
/// other. Keys are ECDSA P-256; a workload's certificate has its SPIFFE id as its only name, is
/// for both sides of TLS, lives a day and is renewed at half of that with a fresh key.
///
/// # The folder
///
/// | file | |
/// |---|---|
/// | `root-cert.pem` | the trusted roots; workloads' certificates are issued by the one that `root-key.pem` belongs to |
/// | `root-key.pem` | its private key in PKCS#8, readable by its owner alone |
/// | `.lock` | held while a root is created |
/// | `.gitignore` | keeps all of it out of repositories |
///
/// The first process to need the folder creates it; processes that start together agree on one
/// root. Whatever is there is used and never replaced: a damaged or incomplete root is an error
/// that names the file, and removing the folder is how to begin anew. The files are read again for
/// each renewal, so a second root that is added to `root-cert.pem` gets trusted.
///
/// Other tools can look on: `openssl x509 -text -in .mesh-dev/root-cert.pem` shows the root, and
/// `openssl s_client -CAfile .mesh-dev/root-cert.pem -connect localhost:15008` verifies a workload's
/// chain (it goes no further: HBONE asks for a client certificate too).
///
/// # Examples
///
/// ```
/// use mesh_core::identity::DevCa;
///
/// # async fn example() -> Result<(), mesh_core::identity::Error> {
/// let ca = DevCa::ephemeral("cluster.local");
/// let reviews = ca.issue("spiffe://cluster.local/ns/default/sa/reviews".parse().unwrap()).await?;
/// assert_eq!(reviews.root_fingerprints(), [ca.fingerprint().await?]);
/// # Ok(())
/// # }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example()).unwrap();
/// ```
#[derive(Clone)]
pub struct DevCa {
    place: Place,
    trust_domain: Arc<str>,
    validity: Duration,
    settings: Settings,
}

#[derive(Clone)]
enum Place {
    Folder(Arc<Path>),
    #[cfg_attr(
        not(any(feature = "aws-lc-rs", feature = "ring")),
        expect(dead_code, reason = "without crypto there is no root to keep")
    )]
    Memory(Memory),
}

#[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
type Memory = Arc<Mutex<Option<Arc<Root>>>>;
#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
type Memory = Arc<Mutex<()>>;

impl DevCa {
    /// Keeps the root in a folder, which is created with its parents if need be.
    ///
    /// Nothing is read or written here: the first certificate needs it, and then fails if `path` or
    /// `trust_domain` cannot be.
    pub fn in_dir(path: impl Into<PathBuf>, trust_domain: impl Into<String>) -> Self {
        Self::new(Place::Folder(path.into().into()), trust_domain.into())
    }

    /// Keeps the root in memory. Only what is issued by this value and its clones is trusted.
    pub fn ephemeral(trust_domain: impl Into<String>) -> Self {
        Self::new(Place::Memory(Arc::default()), trust_domain.into())
    }

    fn new(place: Place, trust_domain: String) -> Self {
        Self {
            place,
            trust_domain: trust_domain.into(),
            validity: Duration::from_secs(24 * 60 * 60),
            settings: Settings::default(),
        }
    }

    /// Sets how long a workload's certificate is valid: 24 hours unless set, as in Istio; at
    /// least 1 s. It ends on a whole second, up to one later than that, and not later than the root.
    #[must_use]
    pub fn validity(mut self, validity: Duration) -> Self {
        self.validity = validity;
        self
    }

    /// Sets how long to wait for the folder, while another process creates its root: 10 s unless
    /// set.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.fetch_timeout = timeout;
        self
    }

    /// Sets the clock by which certificates are issued and judged: the system's unless set.
    #[must_use]
    pub fn clock(mut self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.settings.clock = Clock::new(now);
        self
    }

    /// Seeds the random part of every wait, so that it can be repeated. Keys stay unpredictable.
    #[must_use]
    pub fn rng(mut self, seed: u64) -> Self {
        self.settings.seed = Some(seed);
        self
    }

    /// The trust domain for whose identities certificates are issued.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Issues one certificate, with a fresh key, and does not renew it.
    ///
    /// # Errors
    ///
    /// As the stream of [`watch`](CertificateSource::watch) has them: a setting is wrong, the
    /// identity is of another trust domain, or the folder cannot be used.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the folder whole: its root is there, or it is not.
    pub async fn issue(&self, identity: Identity) -> Result<Bundle, Error> {
        self.clone().issue_owned(identity).await
    }

    /// The trusted roots in PEM, for other tools. Creates the root if there is none yet.
    ///
    /// # Errors
    ///
    /// As [`issue`](Self::issue).
    pub async fn roots(&self) -> Result<String, Error> {
        self.roots_pem().await
    }

    /// The fingerprint of the root that issues. Creates the root if there is none yet.
    ///
    /// # Errors
    ///
    /// As [`issue`](Self::issue).
    pub async fn fingerprint(&self) -> Result<Fingerprint, Error> {
        self.root_fingerprint().await
    }
}

#[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
impl DevCa {
    async fn issue_owned(self, identity: Identity) -> Result<Bundle, Error> {
        if identity.trust_domain() != &*self.trust_domain {
            let detail = format!(
                "{identity}: this authority vouches for the trust domain {}; expected the same one in `DevCa::in_dir` and `Builder::trust_domain`",
                self.trust_domain
            );
            return Err(Error::new(ErrorKind::WrongTrustDomain, detail).lasting());
        }
        let root = self.root().await?;
        root.issue(&identity, self.settings.clock.now(), self.validity)
    }

    async fn roots_pem(&self) -> Result<String, Error> {
        Ok(self.root().await?.pem().to_owned())
    }

    async fn root_fingerprint(&self) -> Result<Fingerprint, Error> {
        Ok(self.root().await?.fingerprint())
    }

    async fn root(&self) -> Result<Arc<Root>, Error> {
        self.check()?;
        let now = self.settings.clock.now();
        match &self.place {
            Place::Folder(folder) => {
                let limit = self.settings.fetch_timeout;
                let open = folder::open(folder, &self.trust_domain, now);
                tokio::time::timeout(limit, open).await.map_err(|_| {
                    let detail = format!(
                        "{}: another process has held the lock for {limit:?}",
                        folder::lock_path(folder).display()
                    );
                    Error::new(ErrorKind::Io, detail)
                })?
            }
            Place::Memory(root) => {
                let mut root = lock(root);
                if let Some(root) = &*root {
                    return Ok(Arc::clone(root));
                }
                let made = Root::create(&self.trust_domain, now)?;
                Ok(Arc::clone(root.insert(Arc::new(made))))
            }
        }
    }

    fn check(&self) -> Result<(), Error> {
        // The rules of a trust domain are those of an identity in it.
        Identity::new(&self.trust_domain, "namespace", "account").map_err(|error| {
            let detail = format!("trust domain {:?}", &*self.trust_domain);
            Error::new(ErrorKind::Settings, detail).with_source(error)
        })?;
        if self.validity < Duration::from_secs(1) {
            let detail = format!("validity: expected at least 1 s, got {:?}", self.validity);
            return Err(Error::new(ErrorKind::Settings, detail));
        }
        if let Place::Folder(folder) = &self.place {
            let bytes = folder.as_os_str().as_encoded_bytes();
            if bytes.is_empty() || bytes.contains(&0) {
                let detail = format!("folder {folder:?}: expected a path, not empty, without NUL");
                return Err(Error::new(ErrorKind::Settings, detail));
            }
        }
        Ok(())
    }
}

#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
impl DevCa {
    async fn issue_owned(self, _identity: Identity) -> Result<Bundle, Error> {
        Err(no_crypto())
    }

    async fn roots_pem(&self) -> Result<String, Error> {
        Err(no_crypto())
    }

    async fn root_fingerprint(&self) -> Result<Fingerprint, Error> {
        Err(no_crypto())
    }
}

#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
fn no_crypto() -> Error {
    Error::new(
        ErrorKind::NoCrypto,
        "DevCa: turn on the feature `aws-lc-rs` or `ring` of mesh-core",
    )
}

impl CertificateSource for DevCa {
    fn watch(&self, identity: Identity) -> CertificateStream {
        let ca = self.clone();
        let fetch = move |identity| ca.clone().issue_owned(identity);
        let mut settings = self.settings.clone();
        // The folder's own time-out comes first: it knows what it waited for.
        settings.fetch_timeout += Duration::from_secs(1);
        Renewed::with_settings(fetch, settings).watch(identity)
    }
}

impl fmt::Debug for DevCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let folder = match &self.place {
            Place::Folder(folder) => Some(folder),
            Place::Memory(_) => None,
        };
        f.debug_struct("DevCa")
            .field("folder", &folder)
            .field("trust_domain", &self.trust_domain)
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}
