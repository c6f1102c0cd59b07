//! Drains, expiry and revocation: what ends, how, and what does not.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use mesh_core::authz::policy::istio::Rule;
use mesh_core::authz::policy::{Action, PolicyName};
use mesh_core::hbone::config::Config;
use mesh_core::hbone::{Tunnel, client, tls};
use mesh_core::identity::{CertificateSource, CertificateStream, DevCa};
use mesh_core::xds::model::{Scope, Update};
use mesh_core::{BoxedIo, ErrorKind, Incoming, Transport, authz::Identity};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, oneshot, watch};

use crate::memory_network;
use crate::mesh_world::{PORT, World, connect_to, echo, identity, ping, scoped_policy, until};

const DAY: Duration = Duration::from_secs(86_400);
const HOUR: Duration = Duration::from_secs(3600);

/// Its certificates live for an hour of this clock.
fn of_an_hour(clock: &Clock) -> DevCa {
    let issued = clock.clone();
    DevCa::ephemeral("cluster.local")
        .validity(HOUR)
        .clock(move || issued.now())
}

/// the end of a service that is in use.
#[tokio::test]
async fn a_drain_lets_live_connections_finish_and_cuts_the_rest_at_its_deadline() {
    let world = World::new(70);
    let (client, server) = world.pair().await;
    let serving = echo(server.listen(PORT).await.unwrap());
    let target = format!("server:{PORT}");
    let mut finishes = client.connect(&target).await.unwrap();
    let mut stays = client.connect(&target).await.unwrap();
    ping(&mut finishes).await.unwrap();
    ping(&mut stays).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(10), server.draining()).await;
    assert!(early.is_err(), "no drain has begun");

    let shutdown = tokio::spawn({
        let server = server.clone();
        async move { server.shutdown(Duration::from_millis(200)).await }
    });
    server.draining().await;
    serving.await.unwrap();
    ping(&mut finishes).await.unwrap();
    finishes.shutdown().await.unwrap();
    assert_eq!(finishes.read(&mut [0; 1]).await.unwrap(), 0, "a clean end");
    assert!(
        client.connect(&target).await.is_err(),
        "nothing new is taken"
    );
    ping(&mut stays).await.unwrap();
    let drained = shutdown.await.unwrap();
    assert_eq!((drained.finished(), drained.cut()), (1, 1));
    assert!(ping(&mut stays).await.is_err());
    server.draining().await;
}

#[tokio::test]
async fn a_peer_with_a_pooled_connection_goes_elsewhere_during_a_drain() {
    let world = World::new(71);
    let (client, server) = world.pair().await;
    let second = world
        .workload("second", 3)
        .with_services(world.workload("server", 2).services().to_vec());
    world.control.set(vec![second.into()]).await;
    let (server_loop, second) = (
        echo(server.listen(PORT).await.unwrap()),
        world.mesh("second"),
    );
    echo(second.listen(PORT).await.unwrap());
    let target = format!("server:{PORT}");
    for _ in 0..20 {
        ping(&mut client.connect(&target).await.unwrap())
            .await
            .unwrap();
    }
    let drained = server.shutdown(Duration::from_secs(5)).await;
    assert_eq!(drained.cut(), 0);
    server_loop.await.unwrap();
    for _ in 0..20 {
        let mut stream = client.connect(&target).await.unwrap();
        ping(&mut stream).await.unwrap();
        assert_eq!(stream.context().identity(), Some(&identity("second")));
    }
}

/// The time of day, as the test says.
#[derive(Clone)]
struct Clock(Arc<Mutex<SystemTime>>);

impl Clock {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(SystemTime::now())))
    }

    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }

    fn advance(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }

    fn set_back(&self, by: Duration) {
        *self.0.lock().unwrap() -= by;
    }
}

/// An authority that issues a certificate to each identity, and others only when it is told to.
struct Told {
    ca: DevCa,
    rounds: watch::Receiver<u32>,
}

impl Told {
    fn new(ca: &DevCa) -> (watch::Sender<u32>, Self) {
        let (tell, rounds) = watch::channel(0);
        let ca = ca.clone();
        (tell, Self { ca, rounds })
    }
}

impl CertificateSource for Told {
    fn watch(&self, identity: Identity) -> CertificateStream {
        let ca = self.ca.clone();
        let mut rounds = self.rounds.clone();
        rounds.mark_changed();
        Box::pin(futures_util::stream::unfold(rounds, move |mut rounds| {
            let (ca, identity) = (ca.clone(), identity.clone());
            async move {
                if rounds.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                Some((ca.issue(identity).await, rounds))
            }
        }))
    }
}

/// a certificate that nobody renews.
#[tokio::test]
async fn certificates_that_expire_unrenewed_end_tunnels_and_permit_no_new_ones() {
    let clock = Clock::new();
    let (ca, judged) = (of_an_hour(&clock), clock.clone());
    let (_tell, source) = Told::new(&ca);
    let world = World::with_source(72, ca, source, |node| node.clock(move || judged.now()));
    let (client, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let target = format!("server:{PORT}");
    let mut live = client.connect(&target).await.unwrap();
    ping(&mut live).await.unwrap();
    clock.advance(Duration::from_secs(3605));
    // Somebody looks at the clock at the latest when the next certificate or connection comes.
    let _other = world.mesh("other");
    let error = client.connect(&target).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Identity, "{error:?}");
    assert!(error.detail().unwrap().contains("expired"), "{error:?}");
    let ended = tokio::time::timeout(Duration::from_secs(5), live.read(&mut [0; 1])).await;
    assert!(ended.expect("the live tunnel ends").is_err());
    assert!(!world.node.readiness().is_ready());
}

/// the time of day steps while nothing else happens. Who waits for the end of a certificate by tokio's
/// clock, which does not step, would see it an hour later.
#[tokio::test(start_paused = true)]
async fn a_clock_set_beyond_a_certificates_end_ends_inbound_tunnels_within_a_minute() {
    let clock = Clock::new();
    let (ca, judged) = (of_an_hour(&clock), clock.clone());
    let (_tell, source) = Told::new(&ca);
    let (dial, transport) = narrow(15008);
    let world = World::with_source(68, ca, source, |node| {
        node.clock(move || judged.now()).transport(transport)
    });
    let (_, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let (near, far) = tokio::io::duplex(16 << 10);
    dial.send(far).await.unwrap();
    // A client that looks at no clock.
    let credentials = world.credentials("client").await;
    let tls = tls::connect(near, &credentials, &[identity("server")])
        .await
        .unwrap();
    let (connection, sender) = client::handshake(tls, &Config::default()).await.unwrap();
    tokio::spawn(connection);
    let target = connect_to(SocketAddr::new(world.ip(2), PORT));
    let (mut tunnel, _) = sender.connect(target).await.unwrap();
    let echoes = async |tunnel: &mut Tunnel| {
        tunnel.write_all(b"ping").await.unwrap();
        let mut answer = [0; 4];
        tunnel.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"ping");
    };
    echoes(&mut tunnel).await;

    // Set back, no certificate has begun, and nothing that lives ends.
    clock.set_back(DAY);
    let early = tokio::time::timeout(2 * HOUR, tunnel.read(&mut [0; 1])).await;
    assert!(early.is_err(), "{early:?}");
    echoes(&mut tunnel).await;

    clock.advance(DAY + HOUR + Duration::from_secs(5));
    // The look may be due at the very end of the minute.
    let ended = tokio::time::timeout(Duration::from_secs(61), tunnel.read(&mut [0; 1])).await;
    ended.expect("the tunnel ends").unwrap_err();
}

/// The same of tunnels that we opened: our own upkeep ends them, before the other end does.
#[tokio::test(start_paused = true)]
async fn a_clock_set_beyond_a_certificates_end_ends_outbound_tunnels_within_half_a_minute() {
    let clock = Clock::new();
    let (ca, judged) = (of_an_hour(&clock), clock.clone());
    let (_tell, source) = Told::new(&ca);
    let (client, _server) = memory_network::pair(source, move || judged.now()).await;
    let mut live = client.connect(memory_network::ADDRESS).await.unwrap();
    ping(&mut live).await.unwrap();

    clock.set_back(DAY);
    let early = tokio::time::timeout(2 * HOUR, live.read(&mut [0; 1])).await;
    assert!(early.is_err(), "{early:?}");
    ping(&mut live).await.unwrap();

    clock.advance(DAY + HOUR + Duration::from_secs(5));
    let ended = tokio::time::timeout(Duration::from_secs(31), live.read(&mut [0; 1])).await;
    ended.expect("the tunnel ends").unwrap_err();
}

#[tokio::test]
async fn a_peer_whose_certificate_expired_gets_no_more_tunnels_on_its_old_connection() {
    let clock = Clock::new();
    let (ca, judged) = (of_an_hour(&clock), clock.clone());
    let (tell, source) = Told::new(&ca);
    let world = World::with_source(73, ca, source, |node| node.clock(move || judged.now()));
    let (client, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let target = format!("server:{PORT}");
    let mut live = client.connect(&target).await.unwrap();
    let bare = world.bare_client("bare", 2, "server").await;
    let own = connect_to(SocketAddr::new(world.ip(2), PORT));
    let (mut tunnel, _) = bare.connect(own).await.unwrap();
    let renew = async || {
        let serials = || {
            [&client, &server].map(|mesh| mesh.certificate().unwrap().serial_number().to_owned())
        };
        let before = serials();
        tell.send_modify(|round| *round += 1);
        until("the certificates are renewed", || {
            serials()
                .iter()
                .zip(&before)
                .all(|(now, before)| now != before)
        })
        .await;
    };
    clock.advance(Duration::from_secs(3000));
    renew().await;
    assert!(!bare.is_closed());
    clock.advance(Duration::from_secs(700));
    renew().await;
    // Its certificate is over: GOAWAY, and what it has goes on.
    until("the server says GOAWAY", || bare.is_closed()).await;
    tunnel.write_all(b"ping").await.unwrap();
    tunnel.read_exact(&mut [0; 4]).await.unwrap();
    // A client that was renewed makes a new connection, and its old one lives on.
    ping(&mut client.connect(&target).await.unwrap())
        .await
        .unwrap();
    ping(&mut live).await.unwrap();
}

/// TLS takes a certificate through the whole of its last second, and so it is no reason to dial again.
#[tokio::test]
async fn a_peer_whose_certificate_is_in_its_last_second_is_connected_to() {
    let clock = Clock::new();
    let (issued, judged) = (clock.clone(), clock.clone());
    let ca = DevCa::ephemeral("cluster.local").clock(move || issued.now());
    // The client's lives longer.
    let (_tell, source) = Told::new(&ca.clone().validity(Duration::from_secs(3600)));
    let ca = ca.validity(Duration::from_secs(1800));
    let world = World::with_source(228, ca, source, |node| {
        node.clock(move || judged.now()).close_expired(true)
    });
    let (client, _server) = world.pair().await;
    let mut asks = world.bare_server("server", 2).await;
    client.ready().await.unwrap();
    let ends = world.credentials("server").await.current().not_after();
    let left = ends.duration_since(clock.now()).unwrap();
    clock.advance(left + Duration::from_millis(500));
    let connects = client.connect(format!("server:{PORT}"));
    let connected = tokio::time::timeout(Duration::from_secs(5), connects).await;
    let mut stream = connected.expect("it comes to an end").unwrap();
    asks.recv().await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut echoed = Vec::new();
    stream.read_to_end(&mut echoed).await.unwrap();
    assert_eq!(echoed, b"ping");
    assert!(asks.try_recv().is_err(), "one tunnel");
}

#[tokio::test]
async fn where_it_is_set_connections_end_with_their_peers_certificate() {
    let clock = Clock::new();
    let (ca, judged) = (of_an_hour(&clock), clock.clone());
    let (tell, source) = Told::new(&ca);
    let world = World::with_source(177, ca, source, |node| {
        node.clock(move || judged.now()).close_expired(true)
    });
    let (client, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let bare = world.bare_client("bare", 2, "server").await;
    let own = connect_to(SocketAddr::new(world.ip(2), PORT));
    let (mut tunnel, _) = bare.connect(own).await.unwrap();
    // The workloads themselves are renewed in time.
    for seconds in [3000, 700] {
        clock.advance(Duration::from_secs(seconds));
        tell.send_modify(|round| *round += 1);
        let renewed = |mesh: &mesh_core::Mesh| {
            mesh.certificate().unwrap().not_after() > clock.now() + Duration::from_secs(3500)
        };
        until("the certificates are renewed", || {
            [&client, &server].into_iter().all(renewed)
        })
        .await;
    }
    let ended = tokio::time::timeout(Duration::from_secs(5), tunnel.read(&mut [0; 1])).await;
    assert!(ended.expect("the tunnel ends").is_err());
    let mut fresh = client.connect(format!("server:{PORT}")).await.unwrap();
    ping(&mut fresh).await.unwrap();
}

#[tokio::test]
async fn what_is_over_for_one_workload_goes_on_for_its_neighbours() {
    let world = World::new(74);
    let (client, server) = world.pair().await;
    let second = world.workload("second", 3);
    world
        .control
        .set(vec![second.into(), world.service("second", 3).into()])
        .await;
    let second = world.mesh("second");
    echo(server.listen(PORT).await.unwrap());
    echo(second.listen(PORT).await.unwrap());
    let mut stream = client.connect(format!("second:{PORT}")).await.unwrap();
    server.shutdown(Duration::ZERO).await;
    drop(server);
    ping(&mut stream).await.unwrap();
    ping(&mut client.connect(format!("second:{PORT}")).await.unwrap())
        .await
        .unwrap();
}

/// Connections in memory that hold 16 KiB each way: what is beyond is still at its sender.
struct Narrow(SocketAddr, mpsc::Receiver<DuplexStream>);

impl Incoming for Narrow {
    fn accept(&mut self) -> Pin<Box<dyn Future<Output = (BoxedIo, SocketAddr)> + Send + '_>> {
        Box::pin(async {
            match self.1.recv().await {
                Some(io) => (BoxedIo::new(io), self.0),
                None => std::future::pending().await,
            }
        })
    }

    fn local_addr(&self) -> SocketAddr {
        self.0
    }
}

/// A transport that gets its connections to `port` by hand.
fn narrow(port: u16) -> (mpsc::Sender<DuplexStream>, Transport) {
    let (dial, dialled) = mpsc::channel(1);
    let dialled = Mutex::new(Some(dialled));
    let refuse = |_| async { Err(std::io::ErrorKind::ConnectionRefused.into()) };
    let transport = Transport::new(refuse, move |on: SocketAddr| {
        let (_, nobody) = mpsc::channel(1);
        let queue = match on.port() == port {
            true => dialled.lock().unwrap().take().unwrap(),
            false => nobody,
        };
        async move { Ok(Box::new(Narrow(on, queue)) as Box<dyn Incoming>) }
    });
    (dial, transport)
}

fn by_hand(net: u8, port: u16) -> (mpsc::Sender<DuplexStream>, World) {
    let (dial, transport) = narrow(port);
    (dial, World::with(net, |node| node.transport(transport)))
}

/// More than a transport holds, but no more than a handler may write ahead of it.
const WRITTEN: usize = 100 << 10;

/// A server whose handler wrote, ended and is done, and a client that takes nothing until it is told.
async fn written(net: u8) -> (mesh_core::Mesh, Tunnel, oneshot::Sender<()>, World) {
    let (dial, world) = by_hand(net, 15008);
    let (_, server) = world.pair().await;
    let mut listener = server.listen(PORT).await.unwrap();
    let (near, far) = tokio::io::duplex(16 << 10);
    dial.send(far).await.unwrap();
    let credentials = world.credentials("client").await;
    let tls = tls::connect(near, &credentials, &[identity("server")])
        .await
        .unwrap();
    let (mut connection, sender) = client::handshake(tls, &Config::default()).await.unwrap();
    let (stall, stalled) = oneshot::channel::<()>();
    let (go_on, goes_on) = oneshot::channel::<()>();
    tokio::spawn(async move {
        tokio::select! {
            ended = &mut connection => panic!("{ended:?}"),
            _ = stalled => {}
        }
        let _ = goes_on.await;
        let _ = connection.await;
    });
    let target = connect_to(SocketAddr::new(world.ip(2), PORT));
    let (mut tunnel, _) = sender.connect(target).await.unwrap();
    tunnel.shutdown().await.unwrap();
    let mut stream = listener.accept().await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    stall.send(()).unwrap();
    tokio::task::yield_now().await;
    stream.write_all(&vec![7; WRITTEN]).await.unwrap();
    stream.shutdown().await.unwrap();
    (server, tunnel, go_on, world)
}

#[tokio::test]
async fn a_drain_waits_until_a_slow_peer_has_what_was_written() {
    let (server, mut tunnel, go_on, _world) = written(76).await;
    let mut shutdown = tokio::spawn(async move { server.shutdown(Duration::from_secs(30)).await });
    // Longer than a connection is given for its last words.
    let early = tokio::time::timeout(Duration::from_millis(1500), &mut shutdown).await;
    assert!(early.is_err(), "{early:?}");
    go_on.send(()).unwrap();
    let mut read = Vec::new();
    tunnel.read_to_end(&mut read).await.unwrap();
    assert_eq!(read.len(), WRITTEN);
    let drained = shutdown.await.unwrap();
    assert_eq!((drained.cut(), drained.unsent()), (0, 0));
}

#[tokio::test]
async fn what_a_peer_did_not_take_by_the_deadline_is_told_and_looks_cut() {
    let (server, mut tunnel, go_on, _world) = written(77).await;
    let drained = server.shutdown(Duration::from_millis(50)).await;
    assert_eq!((drained.cut(), drained.unsent()), (0, 1));
    go_on.send(()).unwrap();
    let mut read = Vec::new();
    assert!(tunnel.read_to_end(&mut read).await.is_err());
    assert!(read.len() < WRITTEN);
}

#[tokio::test]
async fn a_tunnel_that_nobody_polls_ends_with_the_deadline_too() {
    let world = World::new(75);
    let (_, server) = world.pair().await;
    let mut listener = server.listen(PORT).await.unwrap();
    let sender = world.bare_client("client", 2, "server").await;
    let target = SocketAddr::new(world.ip(2), PORT);
    let (mut tunnel, _) = sender.connect(connect_to(target)).await.unwrap();
    tunnel.write_all(b"unread").await.unwrap();
    let _held = listener.accept().await.unwrap();
    let drained = server.shutdown(Duration::from_millis(10)).await;
    assert_eq!((drained.finished(), drained.cut()), (0, 1));
    let error = tunnel.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_shutdown_returns_once_what_it_cut_was_told() {
    let world = World::new(78);
    let (_, server) = world.pair().await;
    let mut listener = server.listen(PORT).await.unwrap();
    let sender = world.bare_client("client", 2, "server").await;
    let target = SocketAddr::new(world.ip(2), PORT);
    let (mut tunnel, _) = sender.connect(connect_to(target)).await.unwrap();
    let mut plain = tokio::net::TcpStream::connect(target).await.unwrap();
    let _held = [
        listener.accept().await.unwrap(),
        listener.accept().await.unwrap(),
    ];
    let began = tokio::time::Instant::now();
    let drained = server.shutdown(Duration::from_millis(10)).await;
    assert_eq!((drained.finished(), drained.cut()), (0, 2));
    // The reset tunnels let the connection end by itself: nobody waits for its last words' time.
    assert!(began.elapsed() < Duration::from_millis(900));
    for error in [
        tunnel.read(&mut [0; 1]).await.unwrap_err(),
        plain.read(&mut [0; 1]).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    assert!(sender.is_closed());
}

/// A plaintext connection that says `ping` and is accepted, but not judged before [`everybody`] is here.
async fn unjudged(world: &World, dial: &mpsc::Sender<DuplexStream>) -> DuplexStream {
    let listed = world
        .workload("server", 2)
        .with_authorization_policies(vec![PolicyName::new("default", "late")]);
    world.control.set(vec![listed.into()]).await;
    let (mut near, far) = tokio::io::duplex(16 << 10);
    near.write_all(b"ping").await.unwrap();
    dial.send(far).await.unwrap();
    until("it is accepted", || dial.capacity() == 1).await;
    near
}

fn everybody() -> Update {
    scoped_policy(
        "late",
        Action::Allow,
        vec![Rule::default()],
        Scope::Workload,
    )
}

#[tokio::test]
async fn a_drain_waits_for_plaintext_that_is_still_to_be_judged() {
    let (dial, world) = by_hand(192, PORT);
    let (_, server) = world.pair().await;
    let mut listener = server.listen(PORT).await.unwrap();
    let _near = unjudged(&world, &dial).await;
    let mut shutdown = tokio::spawn({
        let server = server.clone();
        async move { server.shutdown(Duration::from_secs(30)).await }
    });
    server.draining().await;
    let early = tokio::time::timeout(Duration::from_millis(50), &mut shutdown).await;
    assert!(early.is_err(), "{early:?}");
    let (stream, ()) = tokio::join!(listener.accept(), world.control.set(vec![everybody()]));
    let mut stream = stream.expect("it came before the drain");
    let mut said = [0; 4];
    stream.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"ping");
    drop(stream);
    let drained = shutdown.await.unwrap();
    assert_eq!((drained.finished(), drained.cut()), (1, 0));
    let error = listener.accept().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Draining);
}

#[tokio::test]
async fn plaintext_that_is_not_judged_by_the_deadline_is_cut_and_counted() {
    let (dial, world) = by_hand(193, PORT);
    let (_, server) = world.pair().await;
    let mut listener = server.listen(PORT).await.unwrap();
    let mut near = unjudged(&world, &dial).await;
    let drained = server.shutdown(Duration::from_millis(20)).await;
    assert_eq!((drained.finished(), drained.cut()), (0, 1));
    let error = listener.accept().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Draining);
    // What would have admitted it comes too late.
    world.control.set(vec![everybody()]).await;
    let ended = tokio::time::timeout(Duration::from_secs(4), near.read(&mut [0; 1])).await;
    assert_eq!(ended.expect("at once").unwrap(), 0);
}
