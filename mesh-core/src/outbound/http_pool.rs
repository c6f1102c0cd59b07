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

/// Longer than most servers keep an idle connection, so that it is seldom we who waste one.
const IDLE: Duration = Duration::from_secs(90);
/// How often all endpoints' idle connections are looked through.
const SWEEP: Duration = Duration::from_secs(30);

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
    budget: Mutex<RetryBudget>,
}

#[derive(Default)]
struct State {
    http1: HashMap<Hop, Vec<Idle>>,
    http2: HashMap<Hop, Shared>,
    swept: Option<Instant>,
}

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    since: Instant,
}

/// One HTTP/2 connection, dialled once however many ask for it.
type Shared = Arc<tokio::sync::Mutex<Option<http2::SendRequest<RequestBody>>>>;

impl HttpPool {
    pub(crate) fn new(idle_per_endpoint: usize) -> Self {
        Self {
            state: Mutex::default(),
            idle_per_endpoint,
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
            Protocol::Http2 => self.http2(mesh, route).await.map(Checkout::Http2),
        }
    }

    async fn http1(&self, mesh: &Arc<MeshInner>, route: &Route) -> Result<Checkout, Error> {
        let home = Home {
            mesh: Arc::downgrade(mesh),
            route: route.hop().clone(),
        };
        if let Some(sender) = self.take_idle(route.hop()) {
            return Ok(Checkout::Http1(sender, home));
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
        Ok(Checkout::Http1(sender, home))
    }

    fn take_idle(&self, route: &Hop) -> Option<http1::SendRequest<RequestBody>> {
        let mut state = self.state();
        let idle = state.http1.get_mut(route)?;
        // The newest first: the others may end by age.
        let sender = std::iter::from_fn(|| idle.pop())
            .find(|idle| idle.sender.is_ready())
            .map(|idle| idle.sender);
        if idle.is_empty() {
            state.http1.remove(route);
        }
        sender
    }

    async fn http2(
        &self,
        mesh: &Arc<MeshInner>,
        route: &Route,
    ) -> Result<http2::SendRequest<RequestBody>, Error> {
        let shared = Arc::clone(self.state().http2.entry(route.hop().clone()).or_default());
        let mut slot = shared.lock().await;
        if let Some(sender) = slot.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
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
        *slot = Some(sender.clone());
        Ok(sender)
    }

    fn check_in(&self, route: Hop, sender: http1::SendRequest<RequestBody>) {
        let now = Instant::now();
        let mut state = self.state();
        state.sweep(now);
        let idle = state.http1.entry(route).or_default();
        if idle.len() < self.idle_per_endpoint {
            idle.push(Idle { sender, since: now });
        }
    }
}

impl State {
    /// Forgets what is closed or has been idle for long, endpoints that are no more included.
    fn sweep(&mut self, now: Instant) {
        if self
            .swept
            .is_some_and(|swept| now.duration_since(swept) < SWEEP)
        {
            return;
        }
        self.swept = Some(now);
        self.http1.retain(|_, idle| {
            idle.retain(|idle| idle.sender.is_ready() && now.duration_since(idle.since) < IDLE);
            !idle.is_empty()
        });
        // A slot that somebody else holds is being dialled.
        self.http2.retain(|_, shared| {
            Arc::strong_count(shared) > 1
                || shared.try_lock().map_or(true, |slot| {
                    slot.as_ref().is_some_and(|sender| !sender.is_closed())
                })
        });
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
    Http1(http1::SendRequest<RequestBody>, Home),
    Http2(http2::SendRequest<RequestBody>),
}

type Unsent = Option<Request<RequestBody>>;

impl Checkout {
    /// Sends the request; gives it back when not a byte of it was sent.
    pub(super) async fn send(
        self,
        request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Returned), (Error, Unsent)> {
        match self {
            Self::Http1(mut sender, home) => match sender.try_send_request(request).await {
                Ok(response) => Ok((response, Returned(Some((sender, home))))),
                Err(mut error) => {
                    let unsent = error.take_message();
                    Err((Error::from_hyper(error.into_error()), unsent))
                }
            },
            Self::Http2(mut sender) => match sender.try_send_request(request).await {
                Ok(response) => Ok((response, Returned(None))),
                Err(mut error) => {
                    let unsent = error.take_message();
                    Err((Error::from_hyper(error.into_error()), unsent))
                }
            },
        }
    }
}

/// A connection whose answer is still being read.
pub(super) struct Returned(Option<(http1::SendRequest<RequestBody>, Home)>);

impl Returned {
    /// Called when the answer was read to its end.
    pub(super) fn check_in(self) {
        let Some((mut sender, home)) = self.0 else {
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
        let kind = if error.is_timeout() {
            ErrorKind::RequestTimeout
        } else if error.is_canceled() || error.is_closed() {
            ErrorKind::Closed
        } else {
            ErrorKind::Reset
        };
        Self::new(kind).with_source(error)
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
