//! Outbound connections: where they go, and that they never go elsewhere.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mesh_core::xds::model::{GatewayAddress, GatewayDestination, Health, Port, TunnelProtocol};
use mesh_core::{BoxedIo, ErrorKind, OutboundPolicy, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::mesh_world::{PORT, World, echo, identity, ping};

#[tokio::test]
async fn a_server_is_reached_by_every_name_it_has() {
    let world = World::new(30);
    let (client, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let names = [
        format!("server:{PORT}"),
        format!("server.default:{PORT}"),
        format!("SERVER.default.svc.cluster.local.:{PORT}"),
        SocketAddr::new(world.vip(2), PORT).to_string(),
        SocketAddr::new(world.ip(2), PORT).to_string(),
    ];
    for name in names {
        let mut stream = client.connect(&name).await.unwrap();
        ping(&mut stream).await.unwrap();
        assert_eq!(
            stream.context().identity(),
            Some(&identity("server")),
            "{name}"
        );
    }
}

/// A service may be served by others: which of them it is, its certificate says.
#[tokio::test]
async fn the_identity_that_was_proven_is_known_whatever_was_expected() {
    let world = World::new(31);
    let (client, server) = world.pair().await;
    let names = vec![identity("other"), identity("another")];
    let service = world.service("server", 2).with_subject_alt_names(names);
    world.control.set(vec![service.into()]).await;
    echo(server.listen(PORT).await.unwrap());
    let stream = client.connect(format!("server:{PORT}")).await.unwrap();
    assert_eq!(stream.context().identity(), Some(&identity("server")));
}

#[tokio::test]
async fn a_failed_tunnel_never_falls_back_to_plaintext() {
    let world = World::new(32);
    let (client, server) = world.pair().await;
    // Whoever sits at the address proves to be `server`, which is not who was expected.
    let record = world
        .workload("server", 2)
        .with_service_account("someone-else");
    let mut listener = server.listen(PORT).await.unwrap();
    world.control.set(vec![record.into()]).await;
    let error = client.connect(format!("server:{PORT}")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TlsHandshake);
    let nothing = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
    assert!(nothing.is_err(), "a connection arrived: {nothing:?}");
}

/// an address that is another's now.
#[tokio::test]
async fn an_impostor_is_passed_over_for_another_endpoint() {
    let world = World::new(33);
    let (client, server) = world.pair().await;
    let _impostor = world.bare_server("impostor", 3).await;
    let second = world.workload("server", 3);
    let second = mesh_core::xds::model::Workload::new("uid/second", "default", "second")
        .with_addresses(second.addresses().to_vec())
        .with_service_account("server")
        .with_protocol(TunnelProtocol::Hbone)
        .with_services(second.services().to_vec());
    world.control.set(vec![second.into()]).await;
    echo(server.listen(PORT).await.unwrap());
    for _ in 0..20 {
        let mut stream = client.connect(format!("server:{PORT}")).await.unwrap();
        ping(&mut stream).await.unwrap();
    }
}

/// Its certificate is the same the next time, so more attempts are for others.
#[tokio::test]
async fn a_certificate_that_will_not_do_is_not_asked_for_again() {
    let (transport, dials) = counting(|to| async move {
        let stream = tokio::net::TcpStream::connect(to).await?;
        Ok(BoxedIo::new(stream))
    });
    let world = World::with(242, |node| node.transport(transport).connect_attempts(5));
    let (client, _) = world.pair().await;
    let (of_mesh, of_others) = (world.credentials("impostor").await, other_ca().await);
    let members = |accounts: &[(&str, u8)]| {
        let service = world.workload("server", 2).services().to_vec();
        let named = |&(name, host): &(&str, u8)| {
            let workload = world.workload(name, host).with_services(service.clone());
            workload.with_service_account("server").into()
        };
        accounts.iter().map(named).collect()
    };
    let judged = Arc::new(AtomicUsize::new(0));
    for (credentials, host) in [(of_mesh, 2), (of_others, 3)] {
        let judged = Arc::clone(&judged);
        let listener = TcpListener::bind(SocketAddr::new(world.ip(host), 15008));
        let listener = listener.await.unwrap();
        tokio::spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                judged.fetch_add(1, Ordering::Relaxed);
                // The client refuses.
                let _ = mesh_core::hbone::tls::accept(io, &credentials).await;
            }
        });
    }
    // Nobody is at the fourth, which may be otherwise the next time.
    for (accounts, expected, with_certificate) in [
        (&[("server", 2)][..], 1, 1),
        (&[("server", 3)], 1, 1),
        (&[("server", 2), ("second", 3)], 2, 2),
        (&[("server", 2), ("second", 4)], 5, 1),
        (&[("server", 4), ("second", 4)], 5, 0),
    ] {
        world.control.set(members(accounts)).await;
        for version in [
            None,
            Some(http::Version::HTTP_11),
            Some(http::Version::HTTP_2),
        ] {
            let before = dials.load(Ordering::Relaxed);
            judged.store(0, Ordering::Relaxed);
            let error = match version {
                None => client.connect(format!("server:{PORT}")).await.unwrap_err(),
                Some(version) => {
                    let request = http::Request::get(format!("http://server:{PORT}/"));
                    let request = request.version(version);
                    let body = http_body_util::Empty::<bytes::Bytes>::new();
                    let request = request.body(body).unwrap();
                    client.http_client().request(request).await.unwrap_err()
                }
            };
            assert_eq!(judged.load(Ordering::Relaxed), with_certificate);
            let dialled = dials.load(Ordering::Relaxed) - before;
            assert_eq!(dialled, expected, "{accounts:?} {version:?} {error:?}");
        }
    }
}

async fn other_ca() -> mesh_core::hbone::tls::Credentials {
    let other = World::new(243);
    other.credentials("server").await
}

#[tokio::test]
async fn unhealthy_endpoints_are_not_chosen_and_none_is_an_error() {
    let world = World::new(34);
    let (client, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let ill = world.workload("server", 2).with_health(Health::Unhealthy);
    world.control.set(vec![ill.into()]).await;
    let error = client.connect(format!("server:{PORT}")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoHealthyUpstream);
    world
        .control
        .set(vec![world.workload("server", 2).into()])
        .await;
    client.connect(format!("server:{PORT}")).await.unwrap();
}

#[tokio::test]
async fn a_service_behind_a_waypoint_is_asked_of_the_waypoint_by_its_virtual_address() {
    let world = World::with(35, |node| node.policy_wait(Duration::from_millis(40)));
    let (client, server) = world.pair().await;
    let mut direct = server.listen(PORT).await.unwrap();
    let waypoint = GatewayDestination::Address {
        network: "".into(),
        ip: world.ip(9),
    };
    let service = world
        .service("server", 2)
        .with_waypoint(GatewayAddress::new(waypoint, 15008));
    world.control.set(vec![service.into()]).await;
    let target = format!("server:{PORT}");

    // Unknown: never around it.
    let error = client.connect(&target).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownWaypoint);
    let nothing = tokio::time::timeout(Duration::from_millis(20), direct.accept()).await;
    assert!(nothing.is_err(), "a connection went around: {nothing:?}");

    let mut asked = world.bare_server("waypoint", 9).await;
    let record = world.workload("waypoint", 9).with_services(Vec::new());
    world.control.set(vec![record.into()]).await;
    let mut stream = client.connect(&target).await.unwrap();
    assert_eq!(stream.context().identity(), Some(&identity("waypoint")));
    stream.write_all(b"through").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "through");
    let vip = SocketAddr::new(world.vip(2), PORT);
    assert_eq!(asked.recv().await.unwrap(), vip.to_string());
}

#[tokio::test]
async fn a_workload_without_a_tunnel_is_reached_in_plaintext() {
    let world = World::new(36);
    let (client, server) = world.pair().await;
    let plain = world
        .workload("server", 2)
        .with_protocol(TunnelProtocol::None);
    world.control.set(vec![plain.into()]).await;
    echo(server.listen(PORT).await.unwrap());
    let mut stream = client.connect(format!("server:{PORT}")).await.unwrap();
    ping(&mut stream).await.unwrap();
    assert_eq!(stream.context().identity(), None);
}

#[tokio::test]
async fn hosts_outside_the_mesh_are_the_outbound_policy_s_matter() {
    let outside = TcpListener::bind("127.37.9.9:0").await.unwrap();
    let target = outside.local_addr().unwrap();
    let world = World::new(37);
    let (client, _) = world.pair().await;
    let stream = client.connect(target.to_string()).await.unwrap();
    assert_eq!(stream.context().identity(), None);
    outside.accept().await.unwrap();
    drop(stream);
    let metrics = world.node.metrics().encode();
    assert!(
        metrics.contains("destination_service_name=\"PassthroughCluster\""),
        "{metrics}"
    );

    let world = World::with(37, |node| {
        node.outbound_policy(OutboundPolicy::RegistryOnly)
    });
    let (client, _) = world.pair().await;
    for target in [target.to_string(), "example.com:80".to_owned()] {
        let error = client.connect(target).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnknownHost);
    }
    let nothing = tokio::time::timeout(Duration::from_millis(20), outside.accept()).await;
    assert!(nothing.is_err(), "a connection went out");
}

/// A transport that counts dials, and how each ends.
fn counting<F>(
    dial: impl Fn(SocketAddr) -> F + Send + Sync + 'static,
) -> (Transport, Arc<AtomicUsize>)
where
    F: Future<Output = io::Result<BoxedIo>> + Send + 'static,
{
    let dials = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&dials);
    let transport = Transport::new(
        move |to| {
            counted.fetch_add(1, Ordering::Relaxed);
            dial(to)
        },
        |_| std::future::ready(Err(io::ErrorKind::Unsupported.into())),
    );
    (transport, dials)
}

#[tokio::test(start_paused = true)]
async fn nothing_goes_out_before_the_first_snapshot() {
    let (transport, dials) =
        counting(|_| std::future::ready(Err(io::ErrorKind::ConnectionRefused.into())));
    let world = World::with(38, |node| node.transport(transport));
    let client = world.mesh("client");
    let began = tokio::time::Instant::now();
    let error = client.connect("192.0.2.1:80").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotReady);
    assert!(
        error.detail().unwrap().contains("no configuration yet"),
        "{error:?}"
    );
    assert_eq!(began.elapsed().as_secs(), 30);
    assert_eq!(dials.load(Ordering::Relaxed), 0);

    world.pair().await;
    let error = client.connect("192.0.2.1:80").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectFailed);
    assert!(dials.load(Ordering::Relaxed) > 0);
}

#[tokio::test(start_paused = true)]
async fn a_black_hole_costs_the_connect_time_out_and_no_more_attempts_than_set() {
    let (transport, dials) = counting(|_| std::future::pending());
    let world = World::with(39, |node| {
        node.transport(transport)
            .connect_timeout(Duration::from_secs(2))
            .connect_attempts(3)
    });
    let (client, _) = world.pair().await;
    let began = tokio::time::Instant::now();
    let error = client.connect(format!("server:{PORT}")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectTimeout);
    assert_eq!(began.elapsed().as_secs(), 6);
    assert_eq!(dials.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_passed_over_for_one_that_answers() {
    let world = World::new(40);
    let (client, server) = world.pair().await;
    let dead = world
        .workload("dead", 4)
        .with_services(world.workload("server", 2).services().to_vec());
    let port = Port::new(PORT).with_target_port(PORT);
    world
        .control
        .set(vec![
            dead.into(),
            world.service("server", 2).with_ports(vec![port]).into(),
        ])
        .await;
    echo(server.listen(PORT).await.unwrap());
    for _ in 0..20 {
        let mut stream = client.connect(format!("server:{PORT}")).await.unwrap();
        ping(&mut stream).await.unwrap();
    }
}
