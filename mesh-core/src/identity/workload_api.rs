//! Certificates from SPIRE, or another agent that serves SPIFFE's Workload API.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::stream;
use http::Uri;
use mesh_authz::Identity;
use mesh_hbone::tls::Bundle;
use mesh_xds::transport::Channel;
use mesh_xds::workload_api::{Client, Update, Updates};
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tower_service::Service;

use super::clock::Clock;
use super::renew::{Backoff, Now};
use super::renewed::judge;
use super::{CertificateSource, CertificateStream, Error, ErrorKind};
use crate::net::BoxedIo;
use crate::random::Random;

/// Certificates from SPIRE's agent, or another that serves SPIFFE's Workload API on a unix socket.
///
/// The agent knows by the socket who asks, renews certificates by itself, and pushes them with roots and
/// revocation lists. While it cannot be reached, the last certificate stays in use until it expires.
/// The identity that is watched has to be one of those that the agent gives this process. Roots of other
/// trust domains (federation) are not used: there is one set of roots for all peers.
///
/// # Examples
///
/// ```
/// use mesh_core::identity::WorkloadApi;
///
/// let spire = WorkloadApi::new("/run/spire/agent-sockets/spire-agent.sock");
/// # let _ = spire;
/// ```
#[derive(Clone)]
pub struct WorkloadApi {
    socket: PathBuf,
    dial: Dial,
    backoff: Backoff,
    timeout: Duration,
    clock: Clock,
    seed: Option<u64>,
}

type Dial = Arc<dyn Fn() -> Dialling + Send + Sync>;
type Dialling = Pin<Box<dyn Future<Output = io::Result<BoxedIo>> + Send>>;

impl WorkloadApi {
    /// Takes the path of the agent's socket, as a path or as `unix:///path`, the form of
    /// `SPIFFE_ENDPOINT_SOCKET`. Nothing is dialled here.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        let socket = socket.into();
        let path = socket.to_str().and_then(|text| text.strip_prefix("unix:"));
        let path = path.map(|path| PathBuf::from(path.strip_prefix("//").unwrap_or(path)));
        let socket = path.unwrap_or(socket);
        let to = socket.clone();
        Self {
            socket,
            dial: Arc::new(move || Box::pin(dial_unix(to.clone()))),
            backoff: Backoff {
                base: Duration::from_secs(1),
                cap: Duration::from_secs(60),
            },
            timeout: Duration::from_secs(10),
            clock: Clock::default(),
            seed: None,
        }
    }

    /// Sets the bounds of the pause after a failure: 1 s after the first and 60 s at most unless set. The
    /// bound doubles with each failure, and the pause is drawn from its upper half.
    #[must_use]
    pub fn backoff(mut self, base: Duration, cap: Duration) -> Self {
        // A pause of nothing would be a busy loop.
        let base = base.max(Duration::from_millis(1));
        self.backoff = Backoff {
            base,
            cap: cap.max(base),
        };
        self
    }

    /// Sets how long the agent may take to answer: 10 s unless set.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how the agent is connected to: by its unix socket unless set.
    #[must_use]
    pub fn dialer<F, Fut>(mut self, dial: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = io::Result<BoxedIo>> + Send + 'static,
    {
        self.dial = Arc::new(move || Box::pin(dial()));
        self
    }

    /// Sets the clock by which certificates are judged: the system's unless set.
    #[must_use]
    pub fn clock(mut self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.clock = Clock::new(now);
        self
    }

    /// Seeds the random part of every wait, so that it can be repeated.
    #[must_use]
    pub fn rng(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }
}

impl CertificateSource for WorkloadApi {
    fn watch(&self, identity: Identity) -> CertificateStream {
        let watching = Watching {
            random: Random::new(self.seed),
            api: self.clone(),
            identity,
            updates: None,
            expires: None,
            failures: 0,
            retry: None,
        };
        Box::pin(stream::unfold(watching, async |mut watching| {
            let item = watching.next().await;
            Some((item, watching))
        }))
    }
}

impl fmt::Debug for WorkloadApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadApi")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

/// A machine that has slept finds out this late.
const LOOK: Duration = Duration::from_secs(10);

struct Watching {
    api: WorkloadApi,
    identity: Identity,
    random: Random,
    updates: Option<Updates>,
    /// When what was given last ends.
    expires: Option<SystemTime>,
    failures: u32,
    retry: Option<Instant>,
}

impl Watching {
    async fn next(&mut self) -> Result<Bundle, Error> {
        loop {
            let wall = self.api.clock.now();
            let left = self.expires.map(|expires| expires.duration_since(wall));
            let look = match left {
                None => LOOK,
                Some(Ok(left)) if left > Duration::ZERO => left.min(LOOK),
                Some(_) => {
                    self.expires = None;
                    let detail = format!("{}: the last one has expired", self.identity);
                    return Err(Error::new(ErrorKind::Expired, detail));
                }
            };
            let Some(updates) = &mut self.updates else {
                if let Some(retry) = self.retry {
                    let wake = retry.min(Instant::now() + look);
                    sleep_until(wake).await;
                    if wake < retry {
                        continue;
                    }
                    self.retry = None;
                }
                match self.connect().await {
                    Ok(updates) => self.updates = Some(updates),
                    Err(error) => return Err(self.failed(error)),
                }
                continue;
            };
            let update = tokio::select! {
                update = updates.next() => update,
                () = sleep(look) => continue,
            };
            match update {
                Ok(Some(update)) => {
                    self.failures = 0;
                    let bundle = self.take(&update)?;
                    self.expires = Some(bundle.not_after());
                    return Ok(bundle);
                }
                Ok(None) => {
                    let error = self.unavailable("the agent has ended the watch");
                    return Err(self.failed(error));
                }
                Err(error) => {
                    let error = self.of_call(error);
                    return Err(self.failed(error));
                }
            }
        }
    }

    async fn connect(&self) -> Result<Updates, Error> {
        let connector = Connector(Arc::clone(&self.api.dial));
        let channel = Channel::builder(Uri::from_static("http://localhost"))
            .connect_timeout(self.api.timeout.max(Duration::from_millis(1)))
            .build(connector)
            .map_err(|error| Error::new(ErrorKind::Settings, "timeout").with_source(error))?;
        let client = Client::new(channel);
        match timeout(self.api.timeout, client.watch()).await {
            Ok(watch) => watch.map_err(|error| self.of_call(error)),
            Err(_) => Err(self.unavailable(&format!("no answer within {:?}", self.api.timeout))),
        }
    }

    /// Ends the watch; the next begins after a pause.
    fn failed(&mut self, error: Error) -> Error {
        self.updates = None;
        let Backoff { base, cap } = self.api.backoff;
        let bound = base.saturating_mul(1 << self.failures.min(20)).min(cap);
        self.failures = self.failures.saturating_add(1);
        let part = (self.random.next() >> 11) as f64 / (1_u64 << 53) as f64;
        self.retry = Some(Instant::now() + bound.mul_f64(0.5 + part / 2.0));
        error
    }

    /// Our certificate among those of an update.
    fn take(&self, update: &Update) -> Result<Bundle, Error> {
        let wanted = self.identity.to_string();
        let svid = update.svids().iter().find(|svid| svid.id() == wanted);
        let svid = svid.ok_or_else(|| {
            let found: Vec<_> = update.svids().iter().map(|svid| svid.id()).collect();
            let detail = format!("expected {wanted} among those that the agent gives: {found:?}");
            Error::new(ErrorKind::WrongIdentity, detail)
        })?;
        let der = |parts: &[Vec<u8>]| parts.iter().map(|part| part.clone().into()).collect();
        let crls: Vec<_> = update.crls().iter().map(|crl| crl.clone().into()).collect();
        let key = PrivatePkcs8KeyDer::from(svid.private_key().to_vec());
        let bundle = Bundle::new(der(svid.chain()), key.into(), roots(svid.roots()), &crls);
        let bundle = bundle.map_err(|error| {
            let detail = format!("{wanted}, from {}", self.api.socket.display());
            Error::new(ErrorKind::Invalid, detail).with_source(error)
        })?;
        let now = Now {
            wall: self.api.clock.now(),
            monotonic: Instant::now(),
        };
        judge(bundle, &self.identity, now)
    }

    fn of_call(&self, error: mesh_xds::Error) -> Error {
        let kind = match error.kind() {
            mesh_xds::ErrorKind::PermissionDenied | mesh_xds::ErrorKind::Unauthenticated => {
                ErrorKind::Refused
            }
            mesh_xds::ErrorKind::InvalidResponse | mesh_xds::ErrorKind::TooLarge => {
                ErrorKind::Invalid
            }
            _ => ErrorKind::Unavailable,
        };
        let detail = format!("{}: {error}", self.api.socket.display());
        Error::new(kind, detail).with_source(error)
    }

    fn unavailable(&self, what: &str) -> Error {
        let detail = format!("{}: {what}", self.api.socket.display());
        Error::new(ErrorKind::Unavailable, detail)
    }
}

/// Each root once: an agent may give one for each of its keys.
fn roots(parts: &[Vec<u8>]) -> Vec<rustls_pki_types::CertificateDer<'static>> {
    let mut roots = Vec::new();
    for part in parts {
        let root = part.clone().into();
        if !roots.contains(&root) {
            roots.push(root);
        }
    }
    roots
}

#[cfg(unix)]
async fn dial_unix(socket: PathBuf) -> io::Result<BoxedIo> {
    let stream = tokio::net::UnixStream::connect(&socket).await?;
    Ok(BoxedIo::new(stream))
}

#[cfg(not(unix))]
async fn dial_unix(_: PathBuf) -> io::Result<BoxedIo> {
    Err(io::ErrorKind::Unsupported.into())
}

#[derive(Clone)]
struct Connector(Dial);

impl Service<Uri> for Connector {
    type Response = BoxedIo;
    type Error = io::Error;
    type Future = Dialling;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Dialling {
        (self.0)()
    }
}
