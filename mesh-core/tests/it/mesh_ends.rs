//! Drains, expiry and revocation: what ends, how, and what does not.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use mesh_core::identity::{CertificateSource, CertificateStream, DevCa};
use mesh_core::{ErrorKind, authz::Identity};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use crate::mesh_world::{PORT, World, connect_to, echo, identity, ping, until};

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

#[tokio::test]
async fn certificates_that_expire_unrenewed_end_tunnels_and_permit_no_new_ones() {
    let clock = Clock::new();
    let (issued, judged) = (clock.clone(), clock.clone());
    let ca = DevCa::ephemeral("cluster.local")
        .validity(Duration::from_secs(3600))
        .clock(move || issued.now());
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

#[tokio::test]
async fn a_peer_whose_certificate_expired_gets_no_more_tunnels_on_its_old_connection() {
    let clock = Clock::new();
    let (issued, judged) = (clock.clone(), clock.clone());
    let ca = DevCa::ephemeral("cluster.local")
        .validity(Duration::from_secs(3600))
        .clock(move || issued.now());
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
    let ended = tokio::time::timeout(Duration::from_secs(5), tunnel.read(&mut [0; 1])).await;
    assert!(ended.expect("the peer learns of it").is_err());
}
