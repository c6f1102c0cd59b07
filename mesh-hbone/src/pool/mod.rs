//! Connections that are shared by those who may share them.
//!
//! A key says who may: everything that distinguishes one connection from another (whose certificate
//! it shows, whom it expects, where it leads) has to be in it, and equal keys get the same connection.

mod entry;
mod table;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};

use tokio::runtime::Handle;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use self::entry::{ConnectionId, Grant, Link, WaiterId};
use self::table::{Checkout, Connected, Limits, Table};
use crate::client::{ConnectRequest, ConnectResponse, Connection, Sender};
use crate::config::Config;
use crate::driver::lock;
use crate::sync::{JoinSet, Mutex, oneshot, timeout};
use crate::tunnel::Slot;
use crate::{Error, ErrorKind, Side, Tunnel};

/// Connections by key.
///
/// - One dial at a time for a key; everybody who asks meanwhile waits for it, gets a stream of the
///   new connection in the order of asking, or hears why it failed. Failures are not remembered.
/// - A connection carries as many tunnels as its peer and [`Config`] permit; when all are taken,
///   another is dialled. A tunnel that ends makes its place free again.
/// - A connection that the peer is leaving (GOAWAY) gets no more tunnels; those it has go on.
/// - A connection of whose tunnels none is held is kept for [`Config::idle_timeout`], or until its place is needed. Tunnels that
///   only wait for their peer's end go on on it.
///
/// Dials and connections run in tasks of the pool, on the runtime of the first to ask, and end when
/// the last clone of the pool is dropped.
pub struct Pool<K> {
    inner: Arc<Inner<K>>,
}

struct Inner<K> {
    state: Mutex<State<K>>,
    dial_timeout: std::time::Duration,
    runtime: OnceLock<Handle>,
}

struct State<K> {
    table: Table<K, Sender>,
    waiters: HashMap<WaiterId, Waiter>,
    tasks: JoinSet<()>,
    janitor: bool,
}

struct Waiter {
    answer: oneshot::Sender<Result<Lease, Error>>,
    dial: Option<Dial>,
}

type Dialled = Result<(Connection, Sender), Error>;
type Dial = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = Dialled> + Send>> + Send>;

impl Link for Sender {
    fn max_streams(&self) -> usize {
        Sender::max_streams(self)
    }

    fn is_closed(&self) -> bool {
        Sender::is_closed(self)
    }

    fn is_settled(&self) -> bool {
        Sender::is_settled(self)
    }
}

/// A place for one tunnel. Dropping it gives the place back.
#[derive(Debug)]
pub struct Lease {
    sender: Sender,
    place: Place,
}

struct Place(Box<dyn Slot>);

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Place")
    }
}

impl Lease {
    /// Opens the tunnel; see [`Sender::connect`]. The place is free again when the tunnel is dropped and its peer has ended it.
    ///
    /// # Errors
    ///
    /// Those of [`Sender::connect`]. A connection that began to go away since the checkout fails with
    /// an error that is safe to retry, with a new checkout.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future resets the stream and frees the place.
    pub async fn connect(
        self,
        request: ConnectRequest,
    ) -> Result<(Tunnel, ConnectResponse), Error> {
        let Self { sender, place } = self;
        sender.connect_holding(request, Some(place.0)).await
    }

    /// The connection.
    pub fn sender(&self) -> &Sender {
        &self.sender
    }
}

impl<K> Pool<K>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
{
    /// An empty pool with the limits of `config`.
    #[expect(clippy::needless_pass_by_value, reason = "a builder's end")]
    pub fn new(config: Config) -> Self {
        let limits = Limits {
            connections: config.max_connections,
            waiters: config.max_waiters,
            idle: config.idle_timeout,
        };
        Self {
            inner: Arc::new(Inner {
                state: Mutex::new(State {
                    table: Table::new(limits),
                    waiters: HashMap::new(),
                    tasks: JoinSet::new(),
                    janitor: false,
                }),
                dial_timeout: config.dial_timeout,
                runtime: OnceLock::new(),
            }),
        }
    }

    /// Runs the pool's connections on this runtime from now on; each on its first caller's unless set.
    /// Only the first call counts.
    #[must_use]
    pub fn on_runtime(self, runtime: Handle) -> Self {
        let _ = self.inner.runtime.set(runtime);
        self
    }

    /// A place on a connection of `key`: of one that is there, or of the one that `dial` makes.
    ///
    /// `dial` runs in a task of the pool, if at all, and serves everybody who waits for the key; what
    /// it does must follow from the key alone.
    ///
    /// # Errors
    ///
    /// That of the dial that this call waited for; [`ErrorKind::PoolFull`] when it takes a connection more than there may be, and
    /// [`ErrorKind::Overloaded`] when another limit is reached.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, when it has to dial.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the place in the queue, or on the connection, is given back. A dial goes on.
    pub async fn checkout<F, Fut>(&self, key: K, dial: F) -> Result<Lease, Error>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Dialled> + Send + 'static,
    {
        let (answer, receiver) = oneshot::channel();
        // Dropped after the lock, which their tunnels' places may want.
        let _dropped;
        let waiter = {
            let mut state = lock(&self.inner.state);
            let checkout = state.table.checkout(&key);
            _dropped = state.table.take_dropped();
            match checkout {
                Checkout::Granted(grant) => return Ok(self.inner.lease(grant)),
                Checkout::TooManyWaiters => return Err(overloaded("too many wait for this peer")),
                Checkout::TooManyConnections => return Err(full()),
                Checkout::Queued(waiter, id) => {
                    let mut dial: Option<Dial> = Some(Box::new(move || Box::pin(dial())));
                    if let Some(id) = id
                        && let Some(dial) = dial.take()
                    {
                        self.inner.start(&mut state, id, dial);
                    }
                    state.waiters.insert(waiter, Waiter { answer, dial });
                    waiter
                }
            }
        };
        let _queued = Queued {
            inner: &self.inner,
            waiter,
        };
        receiver
            .await
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Closed, Side::Us)))
    }

    /// The connections that are there, with their keys: to end those that should not go on.
    pub fn senders(&self) -> Vec<(K, Sender)> {
        lock(&self.inner.state).table.links()
    }

    /// Whether no connection can be dialled before one that is there ends, or a tunnel.
    pub fn is_full(&self) -> bool {
        lock(&self.inner.state).table.is_full()
    }

    /// How many dials were begun so far: who makes room sees by it whether another has taken that.
    pub fn dials(&self) -> u64 {
        lock(&self.inner.state).table.dials()
    }

    /// Connections, those being dialled included.
    pub fn connections(&self) -> usize {
        lock(&self.inner.state).table.len()
    }
}

fn full() -> Error {
    Error::new(ErrorKind::PoolFull, Side::Us).retry_safe()
}

fn overloaded(detail: &'static str) -> Error {
    Error::new(ErrorKind::Overloaded, Side::Us)
        .with_detail(detail)
        .retry_safe()
}

/// What is to be told or dropped once the lock is free: either may come back to the pool.
struct After<K> {
    pool: Weak<Inner<K>>,
    grants: Vec<(Option<Waiter>, Grant<Sender>)>,
    failures: Vec<(Waiter, Error)>,
    _dropped: Vec<Sender>,
}

impl<K> Inner<K>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
{
    fn lease(self: &Arc<Self>, grant: Grant<Sender>) -> Lease {
        let held = Held {
            pool: Arc::downgrade(self),
            id: grant.id,
            lingers: false,
        };
        Lease {
            sender: grant.link,
            place: Place(Box::new(held)),
        }
    }

    fn update(
        self: &Arc<Self>,
        change: impl FnOnce(
            &mut State<K>,
        ) -> (Vec<(WaiterId, Grant<Sender>)>, Vec<WaiterId>, Option<Error>),
    ) {
        let after = {
            let state = &mut *lock(&self.state);
            let (grants, failed, error) = change(state);
            let table = &state.table;
            let error = (!failed.is_empty()).then(|| {
                error.unwrap_or_else(|| match table.is_full() {
                    true => full(),
                    false => overloaded("no stream is free"),
                })
            });
            let take = |state: &mut State<K>, id| state.waiters.remove(&id);
            let grants = grants
                .into_iter()
                .map(|(waiter, grant)| (take(state, waiter), grant))
                .collect();
            let failures = failed
                .into_iter()
                .filter_map(|waiter| Some((take(state, waiter)?, error.clone()?)))
                .collect();
            self.tend(state);
            After {
                pool: Arc::downgrade(self),
                grants,
                failures,
                _dropped: state.table.take_dropped(),
            }
        };
        after.tell();
    }

    fn start(self: &Arc<Self>, state: &mut State<K>, id: ConnectionId, dial: Dial) {
        while state.tasks.try_join_next().is_some() {}
        let limit = self.dial_timeout;
        let mut dialling = Dialling {
            pool: Arc::downgrade(self),
            id,
            done: false,
        };
        let drive = async move {
            let dialled = match timeout(limit, dial()).await {
                Ok(dialled) => dialled,
                Err(_) => Err(Error::new(ErrorKind::Timeout, Side::Upstream)
                    .with_detail("no connection")
                    .retry_safe()),
            };
            match dialled {
                Ok((mut connection, sender)) => {
                    let settled = sender.settled();
                    dialling.connected(sender);
                    let mut ended = None;
                    if !dialling.done {
                        // Whoever has a stream now asks before our SETTINGS leave, and they leave together.
                        yield_now().await;
                        // One that ends says why before it does.
                        let settled = tokio::select! {
                            biased;
                            settled = settled => settled,
                            result = &mut connection => {
                                let error = result.as_ref().err().cloned();
                                ended = Some(result);
                                Err(error.unwrap_or_else(|| Error::new(ErrorKind::Closed, Side::Upstream)))
                            }
                        };
                        match settled {
                            Ok(()) => {
                                dialling.settled();
                                // What answers the peer's SETTINGS leaves with what those say who waited.
                                yield_now().await;
                            }
                            Err(error) => dialling.failed(&error),
                        }
                    }
                    let ended = match ended {
                        Some(ended) => ended,
                        None => connection.await,
                    };
                    if let Err(error) = ended {
                        tracing::debug!(target: "mesh::hbone", %error, "a pooled connection failed");
                    }
                }
                Err(error) => dialling.failed(&error),
            }
        };
        match self.runtime.get() {
            Some(runtime) => state.tasks.spawn_on(drive, runtime),
            None => state.tasks.spawn(drive),
        };
    }

    /// Makes sure that somebody looks after idle connections.
    fn tend(self: &Arc<Self>, state: &mut State<K>) {
        let Some(mut next) = state.table.next_expiry().filter(|_| !state.janitor) else {
            return;
        };
        // A tunnel may be dropped outside of a runtime; then the next checkout tends.
        let own = self.runtime.get().cloned();
        let Some(runtime) = own.or_else(|| Handle::try_current().ok()) else {
            return;
        };
        state.janitor = true;
        let pool = Arc::downgrade(self);
        let tend = async move {
            loop {
                sleep_until(next).await;
                let Some(pool) = pool.upgrade() else { return };
                let (_dropped, later) = {
                    let mut state = lock(&pool.state);
                    state.table.expire(Instant::now());
                    let later = state.table.next_expiry();
                    state.janitor = later.is_some();
                    (state.table.take_dropped(), later)
                };
                match later {
                    Some(later) => next = later,
                    None => return,
                }
            }
        };
        state.tasks.spawn_on(tend, &runtime);
    }
}

impl<K> After<K>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
{
    fn tell(self) {
        for (waiter, grant) in self.grants {
            let Some(pool) = self.pool.upgrade() else {
                return;
            };
            let lease = pool.lease(grant);
            if let Some(waiter) = waiter {
                // If the waiter is gone, the lease comes back and frees its place.
                let _ = waiter.answer.send(Ok(lease));
            }
        }
        for (waiter, error) in self.failures {
            let _ = waiter.answer.send(Err(error));
        }
    }
}

/// A stream's place on a connection of the pool.
struct Held<K: Hash + Eq + Clone + Send + Sync + 'static> {
    pool: Weak<Inner<K>>,
    id: ConnectionId,
    lingers: bool,
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Slot for Held<K> {
    fn lingers(&mut self) {
        self.lingers = true;
        if let Some(pool) = self.pool.upgrade() {
            let now = Instant::now();
            pool.update(|state| {
                state.table.lingers(now, self.id);
                (Vec::new(), Vec::new(), None)
            });
        }
    }
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Drop for Held<K> {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            let (now, id, lingered) = (Instant::now(), self.id, self.lingers);
            pool.update(|state| {
                let grants = state.table.released(now, id, lingered);
                (grants, Vec::new(), None)
            });
        }
    }
}

/// A caller in the queue.
struct Queued<'a, K: Hash + Eq + Clone + Send + Sync + 'static> {
    inner: &'a Arc<Inner<K>>,
    waiter: WaiterId,
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Drop for Queued<'_, K> {
    fn drop(&mut self) {
        let _waiter = {
            let mut state = lock(&self.inner.state);
            state.table.cancelled(self.waiter);
            state.waiters.remove(&self.waiter)
        };
    }
}

/// A dial, then its connection: whatever ends the task, the pool hears of it.
struct Dialling<K: Hash + Eq + Clone + Send + Sync + 'static> {
    pool: Weak<Inner<K>>,
    id: ConnectionId,
    done: bool,
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Dialling<K> {
    /// Done only if the connection is settled.
    fn connected(&mut self, sender: Sender) {
        self.done = sender.is_settled();
        let id = self.id;
        self.update(|table, now| table.connected(now, id, sender));
    }

    fn settled(&mut self) {
        self.done = true;
        let id = self.id;
        self.update(|table, now| table.settled(now, id));
    }

    fn update(&self, change: impl FnOnce(&mut Table<K, Sender>, Instant) -> Connected<Sender>) {
        let Some(pool) = self.pool.upgrade() else {
            return;
        };
        let now = Instant::now();
        pool.update(|state| {
            let outcome = change(&mut state.table, now);
            if let Some((waiter, id)) = outcome.dial {
                let dial = state
                    .waiters
                    .get_mut(&waiter)
                    .and_then(|waiter| waiter.dial.take());
                match dial {
                    Some(dial) => pool.start(state, id, dial),
                    None => return (outcome.grants, state.table.failed(id), None),
                }
            }
            (outcome.grants, outcome.refused, None)
        });
    }

    fn failed(&mut self, error: &Error) {
        self.done = true;
        let Some(pool) = self.pool.upgrade() else {
            return;
        };
        pool.update(|state| (Vec::new(), state.table.failed(self.id), Some(error.clone())));
    }
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Drop for Dialling<K> {
    fn drop(&mut self) {
        if !self.done {
            self.failed(
                &Error::new(ErrorKind::Closed, Side::Us).with_detail("the dial was cut short"),
            );
            return;
        }
        if let Some(pool) = self.pool.upgrade() {
            pool.update(|state| {
                state.table.closed(self.id);
                (Vec::new(), Vec::new(), None)
            });
        }
    }
}

impl<K> Clone for Pool<K> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<K> fmt::Debug for Pool<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}
