//! Connections that callers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use futures_util::future::join_all;
use mesh_hbone::client::{self, Connection, Sender};
use mesh_hbone::config::Config;
use mesh_hbone::pool::Pool;
use mesh_hbone::{Error, ErrorKind, Tunnel, server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, timeout};

use crate::peers::{Lazy, request};

/// Servers that echo, counted.
#[derive(Clone, Default)]
struct Echo {
    dialled: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    drain: Arc<Notify>,
}

impl Echo {
    async fn dial(self, config: Config) -> Result<(Connection, Sender), Error> {
        self.dialled.fetch_add(1, SeqCst);
        sleep(Duration::from_millis(5)).await;
        let (near, far) = duplex(1 << 16);
        let served = config.clone();
        tokio::spawn(async move {
            self.open.fetch_add(1, SeqCst);
            let mut connection = server::handshake(Lazy::new(far), &served);
            let mut draining = false;
            loop {
                tokio::select! {
                    incoming = connection.accept() => match incoming {
                        Some(Ok(incoming)) => { tokio::spawn(echo(incoming.accept(None).unwrap())); }
                        _ => break,
                    },
                    () = self.drain.notified(), if !draining => {
                        draining = true;
                        connection.graceful_shutdown();
                    }
                }
            }
            self.open.fetch_sub(1, SeqCst);
        });
        client::start(Lazy::new(near), &config).await
    }
}

async fn echo(mut tunnel: Tunnel) {
    let mut read = Vec::new();
    if tunnel.read_to_end(&mut read).await.is_ok() {
        let _ = tunnel.write_all(&read).await;
        let _ = tunnel.shutdown().await;
    }
}

async fn ask(mut tunnel: Tunnel) {
    tunnel.write_all(b"hello").await.unwrap();
    tunnel.shutdown().await.unwrap();
    let mut read = String::new();
    tunnel.read_to_string(&mut read).await.unwrap();
    assert_eq!(read, "hello");
}

async fn open(pool: &Pool<u8>, key: u8, echo: &Echo, config: &Config) -> Result<Tunnel, Error> {
    let (echo, config) = (echo.clone(), config.clone());
    let lease = pool.checkout(key, move || echo.dial(config)).await?;
    Ok(lease.connect(request("10.0.0.7:80")).await?.0)
}

/// many callers of one peer, few dials.
#[tokio::test(start_paused = true)]
async fn a_crowd_shares_as_few_connections_as_hold_it() {
    let config = Config::default().max_outgoing_streams(10);
    let (pool, servers) = (Pool::new(config.clone()), Echo::default());
    let crowd = (0..35).map(|_| open(&pool, 1, &servers, &config));
    let tunnels: Vec<_> = join_all(crowd)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!((servers.dialled.load(SeqCst), pool.connections()), (4, 4));
    join_all(tunnels.into_iter().map(ask)).await;
    // Those that were full are used again.
    let tunnels = join_all((0..40).map(|_| open(&pool, 1, &servers, &config))).await;
    assert_eq!(servers.dialled.load(SeqCst), 4);
    drop(tunnels);
}

#[tokio::test(start_paused = true)]
async fn different_keys_never_share() {
    let config = Config::default();
    let (pool, servers) = (Pool::new(config.clone()), Echo::default());
    let tunnels = join_all((0..20).map(|index| open(&pool, index % 4, &servers, &config))).await;
    assert_eq!((servers.dialled.load(SeqCst), pool.connections()), (4, 4));
    drop(tunnels);
}

/// A tunnel that was given up goes on until its peer has ended, and is in nobody's way meanwhile.
#[tokio::test(start_paused = true)]
async fn a_connection_whose_tunnels_only_wait_for_their_peers_end_makes_room() {
    let config = Config::default().max_connections(1);
    let (pool, servers) = (Pool::new(config.clone()), Echo::default());
    let give_up = async |key| {
        let (hand, mut tunnels) = mpsc::unbounded_channel();
        let served = config.clone();
        let dial = move || async move {
            let (near, far) = duplex(1 << 16);
            let client = client::start(Lazy::new(near), &served).await;
            tokio::spawn(async move {
                let mut connection = server::handshake(Lazy::new(far), &served);
                while let Some(Ok(incoming)) = connection.accept().await {
                    let _ = hand.send(incoming.accept(None).unwrap());
                }
            });
            client
        };
        let lease = pool.checkout(key, dial).await.unwrap();
        let (mut tunnel, _) = lease.connect(request("10.0.0.7:80")).await.unwrap();
        let error = open(&pool, 9, &servers, &config).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PoolFull, "somebody has it");
        tunnel.write_all(b"hello").await.unwrap();
        tunnel.shutdown().await.unwrap();
        tunnels.recv().await.unwrap()
    };
    let mut first = give_up(1).await;
    let _second = give_up(2).await;
    // Who does not end is no reason to have ever more.
    let error = open(&pool, 3, &servers, &config).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PoolFull);
    let mut read = String::new();
    first.read_to_string(&mut read).await.unwrap();
    assert_eq!(read, "hello");
    first.shutdown().await.unwrap();
    drop(first);
    sleep(Duration::from_secs(1)).await;
    ask(open(&pool, 3, &servers, &config).await.unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_hear_why_a_dial_failed() {
    let pool: Pool<u8> = Pool::new(Config::default());
    let dials = Arc::new(AtomicUsize::new(0));
    let fail = || {
        let dials = Arc::clone(&dials);
        pool.checkout(1, move || async move {
            dials.fetch_add(1, SeqCst);
            let (near, far) = duplex(64);
            drop(far);
            client::handshake(near, &Config::default()).await
        })
    };
    for error in join_all((0..50).map(|_| fail())).await {
        let error = error.unwrap_err();
        assert!(error.is_retry_safe());
        assert!(
            !matches!(error.kind(), ErrorKind::Overloaded | ErrorKind::Timeout),
            "{error:?}"
        );
    }
    assert_eq!((dials.load(SeqCst), pool.connections()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_panics_or_hangs_is_an_error_too() {
    let pool: Pool<u8> = Pool::new(Config::default().dial_timeout(Duration::from_secs(3)));
    let hang = || pool.checkout(1, std::future::pending);
    let began = Instant::now();
    for result in join_all((0..3).map(|_| hang())).await {
        assert!(result.unwrap_err().is_timeout());
    }
    assert_eq!(began.elapsed(), Duration::from_secs(3));
    let error = pool
        .checkout(1, || async { panic!("in the dial") })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert_eq!(pool.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_takes_the_dial_from_nobody() {
    let config = Config::default();
    let (pool, servers) = (Pool::new(config.clone()), Echo::default());
    let first = timeout(Duration::from_millis(1), open(&pool, 1, &servers, &config));
    let (first, second) = tokio::join!(first, open(&pool, 1, &servers, &config));
    assert!(first.is_err());
    ask(second.unwrap()).await;
    assert_eq!(servers.dialled.load(SeqCst), 1);
    // Even if nobody waits any more, the connection is there for the next.
    let gone = timeout(Duration::from_millis(1), open(&pool, 2, &servers, &config)).await;
    assert!(gone.is_err());
    sleep(Duration::from_millis(50)).await;
    ask(open(&pool, 2, &servers, &config).await.unwrap()).await;
    assert_eq!(servers.dialled.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn an_unused_lease_gives_its_place_back() {
    let config = Config::default().max_outgoing_streams(1).max_connections(1);
    let (pool, servers) = (Pool::new(config.clone()), Echo::default());
    let dial = |servers: &Echo| {
        let (servers, config) = (servers.clone(), config.clone());
        pool.checkout(1, move || servers.dial(config))
    };
    let lease = dial(&servers).await.unwrap();
    let error = dial(&servers).await.unwrap_err();
    assert!(error.is_overloaded() && error.is_retry_safe());
    drop(lease);
    drop(dial(&servers).await.unwrap());
    assert_eq!(servers.dialled.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_goes_away_finishes_and_is_replaced() {
    let config = Config::default();
    let (pool, servers) = (Pool::new(config.clone()), Echo::default());
    let old = open(&pool, 1, &servers, &config).await.unwrap();
    servers.drain.notify_waiters();
    sleep(Duration::from_millis(1)).await;
    let new = open(&pool, 1, &servers, &config).await.unwrap();
    assert_eq!(
        (servers.dialled.load(SeqCst), servers.open.load(SeqCst)),
        (2, 2)
    );
    ask(old).await;
    ask(new).await;
    sleep(Duration::from_millis(1)).await;
    assert_eq!((pool.connections(), servers.open.load(SeqCst)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_idle_for_long_is_closed() {
    let config = Config::default().idle_timeout(Duration::from_secs(60));
    let (pool, servers) = (Pool::new(config.clone()), Echo::default());
    for _ in 0..3 {
        sleep(Duration::from_secs(59)).await;
        ask(open(&pool, 1, &servers, &config).await.unwrap()).await;
    }
    assert_eq!(servers.dialled.load(SeqCst), 1);
    sleep(Duration::from_secs(61)).await;
    assert_eq!((pool.connections(), servers.open.load(SeqCst)), (0, 0));
    let held = open(&pool, 1, &servers, &config).await.unwrap();
    sleep(Duration::from_secs(3_600)).await;
    assert_eq!(servers.open.load(SeqCst), 1);
    ask(held).await;
}

#[tokio::test(start_paused = true)]
async fn tasks_end_with_the_pool() {
    let config = Config::default();
    let (pool, servers) = (Pool::new(config.clone()), Echo::default());
    let mut tunnel = open(&pool, 1, &servers, &config).await.unwrap();
    let clone = pool.clone();
    drop(pool);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(servers.open.load(SeqCst), 1);
    drop(clone);
    assert!(tunnel.read_u8().await.is_err());
    sleep(Duration::from_millis(1)).await;
    assert_eq!(servers.open.load(SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_threads_lose_no_waiter() {
    let config = Config::default().max_outgoing_streams(3).max_connections(8);
    let (pool, servers) = (Pool::new(config.clone()), Echo::default());
    let tasks = (0..200u32).map(|index| {
        let (pool, servers, config) = (pool.clone(), servers.clone(), config.clone());
        tokio::spawn(async move {
            let key = u8::try_from(index % 2).unwrap();
            for _ in 0..5 {
                match timeout(Duration::from_secs(30), open(&pool, key, &servers, &config))
                    .await
                    .expect("a lost waiter")
                {
                    Ok(tunnel) => ask(tunnel).await,
                    Err(error) => assert!(error.is_overloaded(), "{error:?}"),
                }
            }
        })
    });
    for task in join_all(tasks).await {
        task.unwrap();
    }
    assert!(pool.connections() <= 8);
}

#[tokio::test(start_paused = true)]
async fn more_than_may_wait_for_one_key_are_refused_at_once() {
    let config = Config::default().max_waiters(2);
    let (pool, servers) = (Pool::new(config.clone()), Echo::default());
    let crowd = (0..5).map(|_| open(&pool, 1, &servers, &config));
    let (opened, refused): (Vec<_>, Vec<_>) =
        join_all(crowd).await.into_iter().partition(Result::is_ok);
    assert_eq!((opened.len(), refused.len()), (2, 3));
    for refusal in refused {
        let error = refusal.unwrap_err();
        assert!(error.is_overloaded(), "{error:?}");
    }
    // Those of another key are not in their way, nor is anybody afterwards.
    open(&pool, 2, &servers, &config).await.unwrap();
    open(&pool, 1, &servers, &config).await.unwrap();
}
