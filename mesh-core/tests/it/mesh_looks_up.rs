//! Hosts whose addresses the configuration does not say: how often, how many at once, which first.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_core::xds::model::{TunnelProtocol, Workload};
use mesh_core::{BoxedIo, ErrorKind, Transport};
use tokio::sync::Semaphore;

use crate::mesh_world::World;

/// A network with a resolver of its own; both say what they were asked.
#[derive(Clone)]
struct Net {
    hosts: Arc<HashMap<&'static str, Vec<IpAddr>>>,
    /// Look-ups wait for a permit.
    gate: Arc<Semaphore>,
    asked: Arc<Mutex<Vec<String>>>,
    dialled: Arc<Mutex<Vec<SocketAddr>>>,
}

const DEAD: &str = "192.0.2.1";
const DEAD_6: &str = "2001:db8::1";
const ALIVE: &str = "192.0.2.9";

impl Net {
    fn new(permits: usize) -> Self {
        let hosts = [
            ("a.example", vec![ALIVE]),
            ("b.example", vec![ALIVE]),
            ("c.example", vec![ALIVE]),
            ("both.example", vec![DEAD_6, "2001:db8::2", DEAD, ALIVE]),
            ("none.example", vec![]),
        ];
        let hosts = hosts.map(|(name, all)| {
            let all = all.iter().map(|ip| ip.parse().unwrap()).collect();
            (name, all)
        });
        Self {
            hosts: Arc::new(hosts.into()),
            gate: Arc::new(Semaphore::new(permits)),
            asked: Arc::default(),
            dialled: Arc::default(),
        }
    }

    fn transport(&self) -> Transport {
        let (net, resolver) = (self.clone(), self.clone());
        Transport::new(
            move |to: SocketAddr| {
                net.dialled.lock().unwrap().push(to);
                let alive = to.ip() == ALIVE.parse::<IpAddr>().unwrap();
                async move {
                    if alive {
                        Ok(BoxedIo::new(tokio::io::empty()))
                    } else {
                        Err(io::ErrorKind::ConnectionRefused.into())
                    }
                }
            },
            |_| std::future::ready(Err(io::ErrorKind::Unsupported.into())),
        )
        .with_look_up(move |host| {
            let net = resolver.clone();
            net.asked.lock().unwrap().push(host.clone());
            async move {
                net.gate.acquire().await.unwrap().forget();
                let found = net.hosts.get(host.as_str());
                found
                    .cloned()
                    .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "NXDOMAIN"))
            }
        })
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn dialled(&self) -> Vec<SocketAddr> {
        self.dialled.lock().unwrap().clone()
    }
}

const MANY: usize = 1_000;

#[tokio::test(start_paused = true)]
async fn a_host_is_looked_up_once_for_all_who_ask_and_again_when_that_is_old() {
    let net = Net::new(0);
    let world = World::with(140, |node| {
        node.transport(net.transport())
            .lookup_ttl(Duration::from_secs(20))
    });
    let (client, _) = world.pair().await;
    let connects = (0..50).map(|_| client.connect("a.example:80"));
    let all = futures_util::future::join_all(connects);
    let release = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        net.gate.add_permits(MANY);
    };
    let (all, ()) = tokio::join!(all, release);
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_eq!(net.asked(), ["a.example"]);
    tokio::time::sleep(Duration::from_secs(19)).await;
    client.connect("a.example:80").await.unwrap();
    assert_eq!(net.asked().len(), 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    client.connect("a.example:80").await.unwrap();
    assert_eq!(net.asked().len(), 2);
}

/// The way to a host may be longer than what is left of the mesh.
#[tokio::test(start_paused = true)]
async fn a_host_that_is_found_after_the_shutdown_is_not_dialled() {
    let net = Net::new(0);
    let world = World::with(186, |node| node.transport(net.transport()));
    let (client, _) = world.pair().await;
    let connects = client.connect("a.example:80");
    let ends = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        client.shutdown(Duration::ZERO).await;
        net.gate.add_permits(MANY);
    };
    let (outcome, ()) = tokio::join!(connects, ends);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Draining);
    assert_eq!(net.asked(), ["a.example"]);
    assert_eq!(net.dialled(), []);
}

#[tokio::test(start_paused = true)]
async fn a_failed_look_up_is_told_to_all_who_wait_and_not_remembered() {
    let net = Net::new(MANY);
    let world = World::with(141, |node| node.transport(net.transport()));
    let (client, _) = world.pair().await;
    for (host, count) in [("gone.example:80", 2), ("none.example:80", 4)] {
        for _ in 0..2 {
            let error = client.connect(host).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::HostLookup, "{error:?}");
            assert!(std::error::Error::source(&error).is_some());
        }
        assert_eq!(net.asked().len(), count);
    }
    assert_eq!(net.dialled(), []);
}

#[tokio::test(start_paused = true)]
async fn no_more_look_ups_run_at_once_than_set_however_long_the_resolver_takes() {
    let net = Net::new(0);
    let world = World::with(142, |node| {
        node.transport(net.transport())
            .max_lookups(2)
            .connect_timeout(Duration::from_secs(5))
    });
    let (client, _) = world.pair().await;
    let began = tokio::time::Instant::now();
    let hosts = ["a.example:80", "b.example:80", "c.example:80"];
    let all = futures_util::future::join_all(hosts.map(|host| client.connect(host))).await;
    for result in all {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::HostLookup);
    }
    assert_eq!(began.elapsed().as_secs(), 5);
    assert_eq!(net.asked(), ["a.example", "b.example"]);

    // Nobody waits for the third any more; it is not asked for when there is room.
    net.gate.add_permits(MANY);
    client.connect("a.example:80").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(net.asked().len(), 2);
    client.connect("c.example:80").await.unwrap();
    assert_eq!(net.asked().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_resolver_that_never_answers_gives_its_place_back() {
    let net = Net::new(0);
    let world = World::with(149, |node| node.transport(net.transport()).max_lookups(1));
    let (client, _) = world.pair().await;
    for host in ["a.example:80", "b.example:80"] {
        let error = client.connect(host).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HostLookup);
    }
    assert_eq!(net.asked(), ["a.example"]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    client.connect("b.example:80").await.unwrap_err();
    assert_eq!(net.asked(), ["a.example", "b.example"]);
}

#[tokio::test(start_paused = true)]
async fn when_all_that_is_remembered_is_being_looked_up_another_host_is_refused() {
    let net = Net::new(0);
    let world = World::with(143, |node| {
        node.transport(net.transport())
            .max_lookups(1)
            .lookup_cache(2)
    });
    let (client, _) = world.pair().await;
    let two = ["a.example:80", "b.example:80"].map(|host| client.connect(host));
    let two = futures_util::future::join_all(two);
    let third = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let error = client.connect("c.example:80").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Overloaded);
        net.gate.add_permits(MANY);
    };
    let (two, ()) = tokio::join!(two, third);
    assert!(two.iter().all(Result::is_ok), "{two:?}");
    client.connect("c.example:80").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_address_that_refuses_is_passed_over_for_the_other_family_then_the_next() {
    let net = Net::new(MANY);
    let world = World::with(144, |node| {
        node.transport(net.transport()).connect_attempts(4)
    });
    let (client, _) = world.pair().await;
    client.connect("both.example:80").await.unwrap();
    let expected = [DEAD_6, DEAD, "2001:db8::2", ALIVE];
    let dialled: Vec<String> = net.dialled().iter().map(|to| to.ip().to_string()).collect();
    assert_eq!(dialled, expected);

    // The same of a workload that has a hostname and no address.
    let record = Workload::new("uid/external", "default", "external")
        .with_hostname("both.example")
        .with_protocol(TunnelProtocol::None)
        .with_services(world.workload("server", 2).services().to_vec());
    let server = world.workload("server", 2).with_services(vec![]);
    world.control.set(vec![record.into(), server.into()]).await;
    net.dialled.lock().unwrap().clear();
    client.connect("server:9080").await.unwrap();
    let dialled: Vec<String> = net.dialled().iter().map(|to| to.ip().to_string()).collect();
    assert_eq!(dialled, expected);
}
