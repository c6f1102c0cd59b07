//! Connections that HTTP requests share: idle HTTP/1.1 ones by endpoint, one HTTP/2 one per endpoint.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::Instant;

use super::client::RequestBody;
use crate::layers::RetryBudget;
use crate::mesh::MeshInner;
use crate::snapshot::{Hop, Route};
use crate::{Error, ErrorKind};

/// The protocol of a request on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

#[derive(Debug)]
pub(crate) struct HttpPool {
    state: Mutex<State>,
    idle_per_endpoint: usize,
    idle_timeout: Duration,
    budget: Mutex<RetryBudget>,
}

#[derive(Default)]
struct State {
    http1: HashMap<Hop, Vec<Idle>>,
    http2: HashMap<Hop, Shared>,
}

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    since: Instant,
}

/// One HTTP/2 connection, dialled once however many ask for it.
type Shared = Arc<tokio::sync::Mutex<Option<Multiplexed>>>;

#[derive(Clone)]
struct Multiplexed {
    sender: http2::SendRequest<RequestBody>,
    used: Arc<Used>,
}

/// Alone when no request has it; the last one to leave notes the time.
#[derive(Debug)]
struct Used {
    last: Mutex<Instant>,
}

/// A request on a shared connection.
pub(super) struct Using(Arc<Used>);

impl Using {
    fn new(used: &Arc<Used>) -> Self {
        Self(Arc::clone(used))
    }
}

impl Drop for Using {
    fn drop(&mut self) {
        let mut last = self.0.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Instant::now();
    }
}

impl HttpPool {
    pub(crate) fn new(idle_per_endpoint: usize, idle_timeout: Duration) -> Self {
        Self {
            state: Mutex::default(),
            idle_per_endpoint,
            idle_timeout,
            budget: Mutex::new(RetryBudget::new()),
        }
    }

    pub(super) fn budget(&self) -> MutexGuard<'_, RetryBudget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection along the route that can take a request now.
    pub(super) async fn checkout(
        &self,
        mesh: &Arc<MeshInner>,
        route: &Route,
        protocol: Protocol,
    ) -> Result<Checkout, Error> {
        match protocol {
            Protocol::Http1 => self.http1(mesh, route).await,
            Protocol::Http2 => self.http2(mesh, route).await,
        }
    }

    async fn http1(&self, mesh: &Arc<MeshInner>, route: &Route) -> Result<Checkout, Error> {
        let home = Home {
            mesh: Arc::downgrade(mesh),
            route: route.hop().clone(),
        };
        if let Some(sender) = self.take_idle(route.hop()) {
            return Ok(Checkout::Http1(sender, home, Age::Used));
        }
        let stream = mesh.open(route).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(Error::from_hyper)?;
        mesh.tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(target: "mesh::outbound", %error, "HTTP connection failed");
            }
        });
        sender.ready().await.map_err(Error::from_hyper)?;
        Ok(Checkout::Http1(sender, home, Age::New))
    }

    fn take_idle(&self, route: &Hop) -> Option<http1::SendRequest<RequestBody>> {
        let mut state = self.state();
        let idle = state.http1.get_mut(route)?;
        // The newest first: the others may end by age.
        let sender = std::iter::from_fn(|| idle.pop())
            .find(|idle| idle.sender.is_ready() && idle.since.elapsed() < self.idle_timeout)
            .map(|idle| idle.sender);
        if idle.is_empty() {
            state.http1.remove(route);
        }
        sender
    }

    async fn http2(&self, mesh: &Arc<MeshInner>, route: &Route) -> Result<Checkout, Error> {
        let shared = Arc::clone(self.state().http2.entry(route.hop().clone()).or_default());
        let mut slot = shared.lock().await;
        if let Some(live) = slot.as_ref().filter(|live| !live.sender.is_closed()) {
            let using = Using::new(&live.used);
            return Ok(Checkout::Http2(live.sender.clone(), using, Age::Used));
        }
        let stream = mesh.open(route).await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .handshake(TokioIo::new(stream))
            .await
            .map_err(Error::from_hyper)?;
        mesh.tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(target: "mesh::outbound", %error, "HTTP/2 connection failed");
            }
        });
        let used = Arc::new(Used {
            last: Mutex::new(Instant::now()),
        });
        let using = Using::new(&used);
        *slot = Some(Multiplexed {
            sender: sender.clone(),
            used,
        });
        Ok(Checkout::Http2(sender, using, Age::New))
    }

    fn check_in(&self, route: Hop, sender: http1::SendRequest<RequestBody>) {
        let now = Instant::now();
        let mut state = self.state();
        let idle = state.http1.entry(route).or_default();
        if idle.len() < self.idle_per_endpoint {
            idle.push(Idle { sender, since: now });
        }
    }

    /// Forgets what is closed or has been idle for long, endpoints that are no more included.
    pub(crate) fn sweep(&self, now: Instant) {
        let limit = self.idle_timeout;
        let mut state = self.state();
        state.http1.retain(|_, idle| {
            idle.retain(|idle| idle.sender.is_ready() && now.duration_since(idle.since) < limit);
            !idle.is_empty()
        });
        state.http2.retain(|_, shared| {
            // A slot that somebody else holds is being dialled or looked at.
            Arc::strong_count(shared) > 1
                || shared.try_lock().map_or(true, |slot| {
                    slot.as_ref()
                        .is_some_and(|live| !live.sender.is_closed() && !live.is_idle(now, limit))
                })
        });
    }

    /// Lets go of every connection that no request uses.
    pub(crate) fn close_idle(&self) {
        let mut state = self.state();
        state.http1.clear();
        state.http2.clear();
    }
}

impl Multiplexed {
    fn is_idle(&self, now: Instant, limit: Duration) -> bool {
        let last = self
            .used
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Arc::strong_count(&self.used) == 1 && now.duration_since(*last) >= limit
    }
}

/// Where a connection goes back to.
#[derive(Clone)]
pub(super) struct Home {
    mesh: Weak<MeshInner>,
    route: Hop,
}

/// A connection that can take a request now.
pub(super) enum Checkout {
    Http1(http1::SendRequest<RequestBody>, Home, Age),
    Http2(http2::SendRequest<RequestBody>, Using, Age),
}

/// Whether a connection served requests before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    New,
    /// Its server may be closing it just now, which says nothing of the endpoint.
    Used,
}

type Unsent = Option<Request<RequestBody>>;

impl Checkout {
    /// Sends the request; gives it back when not a byte of it was sent.
    pub(super) async fn send(
        self,
        request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Returned), (Error, Unsent)> {
        match self {
            Self::Http1(mut sender, home, _) => match sender.try_send_request(request).await {
                Ok(response) => Ok((response, Returned::Http1(sender, home))),
                Err(mut error) => {
                    let unsent = error.take_message();
                    Err((Error::from_hyper(error.into_error()), unsent))
                }
            },
            Self::Http2(mut sender, using, _) => match sender.try_send_request(request).await {
                Ok(response) => Ok((response, Returned::Http2(using))),
                Err(mut error) => {
                    let unsent = error.take_message();
                    Err((Error::from_hyper(error.into_error()), unsent))
                }
            },
        }
    }

    pub(super) fn age(&self) -> Age {
        match self {
            Self::Http1(_, _, age) | Self::Http2(_, _, age) => *age,
        }
    }
}

/// A connection whose answer is still being read.
pub(super) enum Returned {
    Http1(http1::SendRequest<RequestBody>, Home),
    Http2(#[expect(dead_code, reason = "dropped at the end of the answer")] Using),
}

impl Returned {
    /// Called when the answer was read to its end.
    pub(super) fn check_in(self) {
        let Self::Http1(mut sender, home) = self else {
            return;
        };
        let Some(mesh) = home.mesh.upgrade() else {
            return;
        };
        if sender.is_ready() {
            mesh.http.check_in(home.route, sender);
            return;
        }
        // The connection's task has to notice the end first; it errs when it closes instead.
        let weak = home.mesh;
        let route = home.route;
        mesh.tasks.spawn(async move {
            if sender.ready().await.is_ok()
                && let Some(mesh) = weak.upgrade()
            {
                mesh.http.check_in(route, sender);
            }
        });
    }
}

impl Error {
    pub(crate) fn from_hyper(error: hyper::Error) -> Self {
        if error.is_timeout() {
            return Self::new(ErrorKind::RequestTimeout).with_source(error);
        }
        if error.is_user() {
            // The application's own body failed, or its request cannot be sent like this.
            return Self::new(ErrorKind::BadRequest).with_source(error);
        }
        if error.is_closed() {
            return Self::new(ErrorKind::Closed).with_source(error);
        }
        Self::from(crate::BoxError::from(error))
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("http1_endpoints", &self.http1.len())
            .field("http2_endpoints", &self.http2.len())
            .finish_non_exhaustive()
    }
}
