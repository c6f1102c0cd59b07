//! each future of a tunnel's life, dropped after each of its polls: nothing of it stays, nobody else
//! loses anything, and what was cut short never looks complete.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use mesh_hbone::client::{self, Connection, Sender};
use mesh_hbone::config::Config;
use mesh_hbone::copy::{Counters, Reset, bidirectional_or_reset};
use mesh_hbone::pool::Pool;
use mesh_hbone::server::{self, Incoming};
use mesh_hbone::tls::{self, Admission, AdmissionLimits, Credentials, TlsStream};
use mesh_hbone::{Error, Tunnel};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex,
};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

use crate::authority::{Authority, CLIENT, SERVER, id};
use crate::peers::{open, ours_over, request};
use crate::polls::{at_every_poll, cut, once};

/// What a transport holds: less than a message, so that everything is done in several polls.
const PIPE: usize = 1000;

/// Some windows of a stream, so that writers wait for readers.
const SAID: usize = 50_000;

/// Longer than any wait of the settings, in a time that nobody waits for.
const PATIENCE: Duration = Duration::from_secs(600);

fn small() -> Config {
    Config::default().stream_window(4000).bulk_window(4000)
}

fn said() -> Vec<u8> {
    (0..SAID).map(|at| (at % 251) as u8).collect()
}

/// Counts what is alive.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// Callers' pool, and servers that repeat what they heard to its end.
#[derive(Clone)]
struct World {
    pool: Pool<()>,
    servers: Servers,
}

#[derive(Clone)]
struct Servers {
    config: Config,
    client: Credentials,
    server: Credentials,
    admission: Admission,
    connections: Arc<AtomicUsize>,
    tunnels: Arc<AtomicUsize>,
    /// What was heard of tunnels that ended cleanly, in bytes.
    heard: Arc<Mutex<Vec<usize>>>,
    /// Tasks that were there before.
    tasks: usize,
}

impl World {
    /// One tunnel on a connection, and two connections: a place that is not given back is missed.
    fn new() -> Self {
        let config = small().max_outgoing_streams(1).max_connections(2);
        let root = Authority::root("root");
        Self {
            pool: Pool::new(config.clone()),
            servers: Servers {
                config,
                client: root.credentials(CLIENT),
                server: root.credentials(SERVER),
                admission: Admission::new(AdmissionLimits::default()),
                connections: Arc::default(),
                tunnels: Arc::default(),
                heard: Arc::default(),
                tasks: alive_tasks(),
            },
        }
    }

    async fn open<F>(
        &self,
        serve: impl FnOnce(Servers, DuplexStream) -> F + Send + 'static,
    ) -> Result<Tunnel, Error>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let servers = self.servers.clone();
        let dial = move || servers.dial(serve);
        let lease = self.pool.checkout((), dial).await?;
        Ok(lease.connect(request("10.0.0.7:80")).await?.0)
    }

    /// All that a caller does.
    async fn call(&self) -> io::Result<()> {
        let tunnel = self.open(Servers::serve).await;
        exchange(tunnel.map_err(io::Error::other)?).await
    }

    /// The pool serves others with what it has, and then everything of it is given back.
    async fn recovers(self) {
        let calls = async {
            // A tunnel that was shut down has its place until the peer has ended too.
            while !self.idle() {
                sleep(Duration::from_millis(10)).await;
            }
            self.call().await.expect("a place");
        };
        let recovered = timeout(PATIENCE, calls).await;
        assert!(recovered.is_ok(), "{:?}", self.servers);
        let Self { pool, servers } = self;
        drop(pool);
        servers.end().await;
    }

    fn idle(&self) -> bool {
        let senders = self.pool.senders();
        senders.iter().all(|(_, sender)| sender.live_streams() == 0)
    }
}

fn alive_tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// Says everything, and hears it again.
async fn exchange(mut tunnel: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    tunnel.write_all(&said()).await?;
    tunnel.shutdown().await?;
    let mut heard = Vec::new();
    tunnel.read_to_end(&mut heard).await?;
    assert!(heard == said(), "a clean end after {} bytes", heard.len());
    Ok(())
}

impl Servers {
    async fn dial<F>(
        self,
        serve: impl FnOnce(Self, DuplexStream) -> F,
    ) -> Result<(Connection, Sender), Error>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (near, far) = duplex(PIPE);
        tokio::spawn(serve(self.clone(), far));
        let near = tls::connect(near, &self.client, &[id(SERVER)]).await?;
        client::handshake(near, &self.config).await
    }

    async fn serve(self, far: DuplexStream) {
        self.serve_until(far, |_| false).await;
    }

    /// One connection from its handshake to its end; before a poll it may be told to leave.
    async fn serve_until(self, far: DuplexStream, mut leaves: impl FnMut(usize) -> bool + Send) {
        let _alive = Alive::new(&self.connections);
        let Ok(mut connection) = self.accept(far).await else {
            return;
        };
        let mut polls = 0;
        loop {
            let accepted = poll_fn(|cx| {
                if leaves(polls) {
                    connection.graceful_shutdown();
                }
                polls += 1;
                connection.poll_accept(cx)
            });
            let Some(Ok(incoming)) = accepted.await else {
                return;
            };
            self.take(incoming);
        }
    }

    async fn accept(
        &self,
        far: DuplexStream,
    ) -> Result<server::Connection<TlsStream<DuplexStream>>, Error> {
        let source = [10, 0, 0, 1].into();
        let tls = tls::accept_with(far, source, &self.server, &self.admission).await?;
        Ok(server::handshake(tls, &self.config))
    }

    fn take(&self, incoming: Incoming) {
        let (alive, heard) = (Alive::new(&self.tunnels), Arc::clone(&self.heard));
        let Ok(tunnel) = incoming.accept(None) else {
            return;
        };
        tokio::spawn(async move {
            let _alive = alive;
            if let Ok(bytes) = repeat(tunnel).await {
                heard.lock().unwrap().push(bytes);
            }
        });
    }

    /// Nothing is left once the pool is gone.
    async fn end(self) {
        let gone = async {
            while alive_tasks() > self.tasks {
                sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(timeout(PATIENCE, gone).await.is_ok(), "{self:?}");
        let connections = self.connections.load(SeqCst);
        let tunnels = self.tunnels.load(SeqCst);
        assert_eq!((connections, tunnels), (0, 0));
        let admission = &self.admission;
        assert_eq!((admission.waiting(), admission.handshakes()), (0, 0));
        let heard = self.heard.lock().unwrap();
        assert!(heard.iter().all(|bytes| *bytes == SAID), "{heard:?}");
    }
}

/// Hears everything and says it again; gives the number of bytes once it was all.
async fn repeat(mut tunnel: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<usize> {
    let mut heard = Vec::new();
    tunnel.read_to_end(&mut heard).await?;
    let bytes = heard.len();
    // The caller may have left meanwhile.
    if tunnel.write_all(&heard).await.is_ok() {
        let _ = tunnel.shutdown().await;
    }
    Ok(bytes)
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Servers")
            .field("connections", &self.connections)
            .field("tunnels", &self.tunnels)
            .field("admission", &self.admission)
            .finish_non_exhaustive()
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_leaves_takes_nothing_from_others() {
    for first in [true, false] {
        at_every_poll(20, async |polls| {
            let world = World::new();
            let (left, other) = if first {
                tokio::join!(cut(polls, world.call()), world.call())
            } else {
                let (other, left) = tokio::join!(world.call(), cut(polls, world.call()));
                (left, other)
            };
            other.expect("everything, whatever the first does");
            let left = left.transpose().expect("nothing fails");
            world.recovers().await;
            left.is_none()
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_dropped_leaves_nothing() {
    at_every_poll(20, async |polls| {
        let world = World::new();
        let servers = world.servers.clone();
        let left = cut(polls, async move { world.call().await }).await;
        servers.end().await;
        left.transpose().expect("nothing fails").is_none()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_is_cut_fails_for_all_who_wait_and_for_nobody_else() {
    at_every_poll(5, async |polls| {
        let world = World::new();
        let open = || {
            let servers = world.servers.clone();
            world.pool.checkout((), move || async move {
                match cut(polls, servers.dial(Servers::serve)).await {
                    Some(dialled) => dialled,
                    // The other end is gone.
                    None => client::handshake(duplex(64).0, &Config::default()).await,
                }
            })
        };
        let (one, other) = tokio::join!(open(), open());
        let failed = [&one, &other].map(|lease| lease.is_err());
        assert_eq!(failed[0], failed[1]);
        drop((one, other));
        world.recovers().await;
        failed[0]
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_dropped_cuts_its_callers_and_leaves_nothing() {
    at_every_poll(20, async |polls| {
        let world = World::new();
        let left = Arc::new(AtomicUsize::new(polls + 1));
        let count = Arc::clone(&left);
        let serve = |servers: Servers, far| async move {
            once(&count, servers.serve(far)).await;
        };
        let called = match world.open(serve).await {
            Ok(tunnel) => exchange(tunnel).await,
            Err(error) => Err(io::Error::other(error)),
        };
        // It lives on, if it still does.
        let was_cut = left.swap(0, SeqCst) == 0;
        assert!(was_cut || called.is_ok(), "{called:?}");
        world.recovers().await;
        was_cut
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_drains_finishes_what_it_began() {
    at_every_poll(10, async |polls| {
        let world = World::new();
        let drains = Arc::new(AtomicUsize::new(0));
        loop {
            let drained = Arc::clone(&drains);
            let leaves = move |at| {
                let leaves = at == polls && drained.load(SeqCst) == 0;
                drained.fetch_add(usize::from(leaves), SeqCst);
                leaves
            };
            match world
                .open(|servers, far| servers.serve_until(far, leaves))
                .await
            {
                Ok(tunnel) => break exchange(tunnel).await.expect("all of it"),
                Err(error) => assert!(error.is_retry_safe(), "{error:?}"),
            }
        }
        let drained = drains.load(SeqCst) > 0;
        world.recovers().await;
        drained
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_accept_that_is_begun_anew_loses_no_tunnel() {
    at_every_poll(10, async |polls| {
        let world = World::new();
        let left = Arc::new(AtomicUsize::new(polls));
        let count = Arc::clone(&left);
        let serve = move |servers: Servers, far| async move {
            let Ok(mut connection) = servers.accept(far).await else {
                return;
            };
            loop {
                let accepted = loop {
                    if let Some(accepted) = once(&count, connection.accept()).await {
                        break accepted;
                    }
                };
                let Some(Ok(incoming)) = accepted else { return };
                servers.take(incoming);
            }
        };
        let tunnel = world.open(serve).await.expect("it is accepted");
        exchange(tunnel).await.expect("all of it");
        world.recovers().await;
        left.load(SeqCst) == 0
    })
    .await;
}

/// Either end of a tunnel, whose reads, writes and end are begun anew in one of their polls.
#[tokio::test(start_paused = true)]
async fn io_that_is_begun_anew_loses_nothing_and_repeats_nothing() {
    for swap in [false, true] {
        at_every_poll(20, async |polls| {
            let (sender, mut incoming) = ours_over(small(), small(), PIPE).await;
            let (near, far) = open(&sender, &mut incoming).await;
            let (mut one, other) = if swap { (far, near) } else { (near, far) };
            let left = AtomicUsize::new(polls);
            let (said, mut heard) = (said(), Vec::new());
            let exchange = async {
                let mut written = 0;
                while written < SAID {
                    if let Some(count) = once(&left, one.write(&said[written..])).await {
                        written += count.unwrap();
                    }
                }
                while once(&left, one.shutdown()).await.is_none() {}
                loop {
                    let read = once(&left, one.read_buf(&mut heard)).await;
                    if read.transpose().unwrap() == Some(0) {
                        break;
                    }
                }
            };
            let ((), repeated) = tokio::join!(exchange, repeat(other));
            assert_eq!(repeated.unwrap(), SAID);
            assert!(heard == said, "{} bytes", heard.len());
            left.load(SeqCst) == 0
        })
        .await;
    }
}

/// An application's socket: its peer is told of a reset as TCP tells.
struct Socket {
    io: DuplexStream,
    reset: Arc<AtomicBool>,
}

impl Socket {
    fn pair() -> (Self, Self) {
        let (near, far) = duplex(PIPE);
        let reset = Arc::default();
        let socket = |io| Self {
            io,
            reset: Arc::clone(&reset),
        };
        (socket(near), socket(far))
    }

    fn check(&self) -> io::Result<()> {
        match self.reset.load(SeqCst) {
            true => Err(io::ErrorKind::ConnectionReset.into()),
            false => Ok(()),
        }
    }
}

impl Reset for Socket {
    fn reset(&mut self) {
        self.reset.store(true, SeqCst);
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_is_dropped_resets_both_ends_and_gives_back_its_place() {
    at_every_poll(20, async |polls| {
        let world = World::new();
        let (app, local) = Socket::pair();
        let reset = Arc::clone(&local.reset);
        let tunnel = world.open(Servers::serve).await.expect("a tunnel");
        let counters = Counters::default();
        let copy = bidirectional_or_reset(local, tunnel, &counters);
        let (copied, exchanged) = tokio::join!(cut(polls, copy), exchange(app));
        if let Some(copied) = &copied {
            copied.as_ref().expect("nothing fails");
            exchanged.expect("all of it");
        }
        assert_eq!(reset.load(SeqCst), copied.is_none());
        world.recovers().await;
        copied.is_none()
    })
    .await;
}
