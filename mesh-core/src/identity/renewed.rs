//! A certificate source made of a function that fetches one certificate.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::future::Future;
use std::hash::BuildHasher;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use futures_core::Stream;
use mesh_authz::Identity;
use mesh_hbone::tls::Bundle;
use tokio::time::{Instant, Sleep, Timeout};

use super::clock::Clock;
use super::renew::{Backoff, Now, Renewal, Step};
use super::{CertificateSource, CertificateStream, Error, ErrorKind, TrustDomain};

/// Makes a [`CertificateSource`] of a function that fetches one certificate: it renews at half of
/// the lifetime, and after failures with a growing pause, while the last certificate stays in use.
///
/// One fetch per watched identity is in flight at a time. A certificate of another identity, or
/// one that has expired by the time it is here, counts as a failure. Times of day that jump, and
/// machines that sleep, neither make it spin nor let it miss a renewal.
///
/// # Examples
///
/// ```
/// use mesh_core::authz::Identity;
/// use mesh_core::hbone::tls::Bundle;
/// use mesh_core::identity::{Error, ErrorKind, Renewed};
///
/// # async fn ask(id: &Identity) -> std::io::Result<[Vec<u8>; 3]> { Err(std::io::ErrorKind::Other.into()) }
/// let source = Renewed::new(async |id: Identity| {
///     let unavailable = |error| Error::new(ErrorKind::Unavailable, "pki.example.com").with_source(error);
///     let [chain, key, roots] = ask(&id).await.map_err(unavailable)?;
///     Bundle::from_pem(&chain, &key, &roots, b"")
///         .map_err(|error| Error::new(ErrorKind::Invalid, "pki.example.com").with_source(error))
/// });
/// # let _ = source;
/// ```
pub struct Renewed<F> {
    fetch: Arc<F>,
    settings: Settings,
}

#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) backoff: Backoff,
    pub(super) fetch_timeout: Duration,
    pub(super) clock: Clock,
    pub(super) seed: Option<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            backoff: Backoff {
                base: Duration::from_secs(1),
                cap: Duration::from_secs(60),
            },
            fetch_timeout: Duration::from_secs(10),
            clock: Clock::default(),
            seed: None,
        }
    }
}

impl<F, Fut> Renewed<F>
where
    F: Fn(Identity) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Bundle, Error>> + Send + 'static,
{
    /// Takes the function that fetches one certificate for an identity.
    pub fn new(fetch: F) -> Self {
        Self::with_settings(fetch, Settings::default())
    }

    pub(super) fn with_settings(fetch: F, settings: Settings) -> Self {
        Self {
            fetch: Arc::new(fetch),
            settings,
        }
    }

    /// Sets the bounds of the pause after a failed fetch: 1 s after the first and 60 s at most
    /// unless set, and half of that before the first certificate, for which a start waits. The bound
    /// doubles with each failure, the pause is drawn at random below it, and in the last tenth of a
    /// certificate's life it is at most a sixtieth of that life.
    #[must_use]
    pub fn backoff(mut self, base: Duration, cap: Duration) -> Self {
        // A pause of nothing would be a busy loop.
        let base = base.max(Duration::from_millis(1));
        self.settings.backoff = Backoff {
            base,
            cap: cap.max(base),
        };
        self
    }

    /// Sets how long one fetch may take: 10 s unless set. It is then dropped, and has failed.
    #[must_use]
    pub fn fetch_timeout(mut self, timeout: Duration) -> Self {
        self.settings.fetch_timeout = timeout;
        self
    }

    /// Sets the clock by which certificates are judged: the system's unless set. Waits always go by
    /// tokio's clock.
    #[must_use]
    pub fn clock(mut self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.settings.clock = Clock::new(now);
        self
    }

    /// Seeds the random part of every wait, so that it can be repeated.
    #[must_use]
    pub fn rng(mut self, seed: u64) -> Self {
        self.settings.seed = Some(seed);
        self
    }
}

impl<F, Fut> CertificateSource for Renewed<F>
where
    F: Fn(Identity) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Bundle, Error>> + Send + 'static,
{
    fn watch(&self, identity: Identity) -> CertificateStream {
        Box::pin(Renewals {
            fetch: Arc::clone(&self.fetch),
            identity,
            settings: self.settings.clone(),
            state: None,
            fetching: None,
            done: false,
        })
    }
}

impl<F> fmt::Debug for Renewed<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewed")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// The thin shell around [`Renewal`].
struct Renewals<F, Fut> {
    fetch: Arc<F>,
    identity: Identity,
    settings: Settings,
    /// Made by the first poll: only then a runtime's timer is sure to be there.
    state: Option<(Renewal, Pin<Box<Sleep>>)>,
    fetching: Option<Pin<Box<Timeout<Fut>>>>,
    done: bool,
}

impl<F, Fut> Renewals<F, Fut> {
    fn now(&self) -> Now {
        Now {
            wall: self.settings.clock.now(),
            monotonic: Instant::now(),
        }
    }
}

impl<F, Fut> Stream for Renewals<F, Fut>
where
    F: Fn(Identity) -> Fut,
    Fut: Future<Output = Result<Bundle, Error>>,
{
    type Item = Result<Bundle, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.done {
            return Poll::Ready(None);
        }
        loop {
            let now = this.now();
            let (renewal, sleep) = this.state.get_or_insert_with(|| {
                // The standard library's hash keys are the random numbers to be had for nothing.
                let seed = this.settings.seed;
                let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(&this.identity));
                let renewal = Renewal::new(this.settings.backoff, seed, now);
                (renewal, Box::pin(tokio::time::sleep_until(now.monotonic)))
            });
            if let Some(fetching) = &mut this.fetching
                && let Poll::Ready(outcome) = fetching.as_mut().poll(cx)
            {
                this.fetching = None;
                let outcome = match outcome {
                    Ok(fetched) => fetched.and_then(|bundle| judge(bundle, &this.identity, now)),
                    Err(_) => Err(Error::new(
                        ErrorKind::Unavailable,
                        format!("no answer within {:?}", this.settings.fetch_timeout),
                    )),
                };
                match &outcome {
                    Ok(bundle) => renewal.fetched(now, bundle.not_before(), bundle.not_after()),
                    Err(error) => {
                        renewal.failed(now);
                        this.done = error.is_final();
                    }
                }
                return Poll::Ready(Some(outcome));
            }
            match renewal.step(now) {
                Step::Fetch => {
                    let fetch = (this.fetch)(this.identity.clone());
                    let timeout = tokio::time::timeout(this.settings.fetch_timeout, fetch);
                    this.fetching = Some(Box::pin(timeout));
                }
                Step::Expired(_) => {
                    let detail = format!(
                        "{}: the last one has expired, renewals failed: {}",
                        this.identity,
                        renewal.failures()
                    );
                    return Poll::Ready(Some(Err(Error::new(ErrorKind::Expired, detail))));
                }
                Step::Sleep(until) => {
                    sleep.as_mut().reset(until);
                    ready!(sleep.as_mut().poll(cx));
                }
            }
        }
    }
}

/// A bundle is used only if it is of the identity that was asked for, and has not expired.
pub(super) fn judge(bundle: Bundle, identity: &Identity, now: Now) -> Result<Bundle, Error> {
    judge_in(TrustDomain::Asked, bundle, identity, now)
}

/// As [`judge`], of a trust domain that may be another.
pub(super) fn judge_in(
    trust_domain: TrustDomain,
    bundle: Bundle,
    identity: &Identity,
    now: Now,
) -> Result<Bundle, Error> {
    if !trust_domain.permits(identity, bundle.identity()) {
        let found = bundle.identity();
        return Err(Error::new(
            ErrorKind::WrongIdentity,
            format!("expected a certificate of {identity}, got one of {found}"),
        ));
    }
    if bundle.not_after() <= now.wall {
        let ago = now
            .wall
            .duration_since(bundle.not_after())
            .unwrap_or_default();
        return Err(Error::new(
            ErrorKind::Expired,
            format!("{identity}: expired {} s ago by this clock", ago.as_secs()),
        ));
    }
    Ok(bundle)
}

impl<F, Fut> fmt::Debug for Renewals<F, Fut> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewals")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}
