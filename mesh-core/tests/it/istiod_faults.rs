//! A control plane that is slow, half open, or says what no control plane says: nothing is lost, nothing opens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh_core::identity::Istiod;
use mesh_core::{BoxedIo, ControlPlane, Mesh};
use prost::Message;
use prost::encoding::encode_varint;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::{Instant, sleep};

use crate::istiod::NAME;
use crate::istiod_discovery::{ADDRESS, AUTHORIZATION, Answer, Any, LISTENER, Resource};
use crate::istiod_place::{
    HOUR, Place, SERVER, addresses, dump, greet, pending, uid, until, workload,
};
use crate::memory_network::ping;

/// A field of protobuf with bytes in it.
fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_varint(u64::from(number << 3 | 2), &mut out);
    encode_varint(bytes.len() as u64, &mut out);
    out.extend_from_slice(bytes);
    out
}

/// A message in a message in a message, by a field of each.
fn nested(numbers: &[u32], depth: usize) -> Vec<u8> {
    (0..depth).fold(Vec::new(), |inner, level| {
        field(numbers[level % numbers.len()], &inner)
    })
}

fn resource(url: &str, name: &str, value: Vec<u8>) -> Resource {
    Resource {
        name: name.to_owned(),
        version: "9".to_owned(),
        value: Some(Any {
            type_url: url.to_owned(),
            value,
        }),
        aliases: Vec::new(),
    }
}

fn answer(url: &str, resources: Vec<Resource>) -> Vec<u8> {
    let answer = Answer {
        resources,
        type_url: url.to_owned(),
        nonce: "hostile".to_owned(),
        removed: Vec::new(),
    };
    answer.encode_to_vec()
}

/// What each is called, and the bytes of it.
fn hostile() -> Vec<(&'static str, Vec<u8>)> {
    let own = uid("server");
    let mut length = vec![0x12];
    // A resource of 1 GiB, of which nothing comes.
    encode_varint(1 << 30, &mut length);
    let names = Answer {
        removed: (0..1_000_000).map(|name| format!("x{name}")).collect(),
        type_url: ADDRESS.to_owned(),
        nonce: "names".to_owned(),
        resources: Vec::new(),
    };
    let aliases = Resource {
        aliases: vec!["a".repeat(1000); 10_000],
        ..resource(ADDRESS, &own, nested(&[1], 4))
    };
    // RBAC's permissions nest in `and_rules` (1), `rules` (1), in a listener's chains (3) and filters (3).
    let listener = "xds.istio.io/grpc/lds/inbound/10.0.0.2:80";
    vec![
        ("noise", (0..4096_u32).map(|n| (n * 7919) as u8).collect()),
        ("a length of 1 GiB", length),
        ("a million names", names.encode_to_vec()),
        ("ten thousand aliases", answer(ADDRESS, vec![aliases])),
        (
            "a deep workload",
            answer(
                ADDRESS,
                vec![resource(ADDRESS, &own, nested(&[1], 100_000))],
            ),
        ),
        (
            "a deep policy",
            answer(
                AUTHORIZATION,
                vec![resource(
                    AUTHORIZATION,
                    "default/deep",
                    nested(&[5, 1], 100_000),
                )],
            ),
        ),
        (
            "a deep listener",
            answer(
                LISTENER,
                vec![resource(LISTENER, listener, nested(&[3], 100_000))],
            ),
        ),
        (
            "a name of 1 MiB",
            answer(
                ADDRESS,
                vec![resource(ADDRESS, &"n".repeat(1 << 20), Vec::new())],
            ),
        ),
        (
            "a resource of 2 MiB",
            answer(ADDRESS, vec![resource(ADDRESS, &own, vec![0; 2 << 20])]),
        ),
    ]
}

async fn workloads(mesh: &Mesh) -> Vec<String> {
    let dump = dump(mesh).await;
    let all = dump["workloads"].as_array().unwrap().iter();
    let mut uids: Vec<_> = all
        .map(|one| one["uid"].as_str().unwrap().to_owned())
        .collect();
    uids.sort();
    uids
}

/// what nobody should send.
#[tokio::test(start_paused = true)]
async fn what_no_control_plane_says_changes_nothing() {
    let place = Place::new();
    let _server = place.server().await;
    let client = place.client();
    greet(&client).await;
    let before = workloads(&client).await;
    for (what, bytes) in hostile() {
        place.istiod.discovery.say_raw(&bytes);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(workloads(&client).await, before, "{what}");
        assert!(client.readiness().is_ready(), "{what}");
        greet(&client).await;
        // And what is well is heard again.
        let well = vec![workload("third", [10, 0, 0, 3], what)];
        place.istiod.discovery.say(&addresses(well, &[]));
        let third = uid("third");
        let begin = Instant::now();
        while !workloads(&client).await.contains(&third) {
            assert!(begin.elapsed() < HOUR, "{what}: it hears nothing any more");
            sleep(Duration::from_secs(1)).await;
        }
        place
            .istiod
            .discovery
            .say(&addresses(Vec::new(), &["third"]));
        let begin = Instant::now();
        while workloads(&client).await != before {
            assert!(begin.elapsed() < HOUR, "{what}: it hears nothing any more");
            sleep(Duration::from_secs(1)).await;
        }
    }
}

/// At the start it is no configuration, however much it says.
#[tokio::test(start_paused = true)]
async fn what_no_control_plane_says_makes_nothing_ready() {
    let place = Place::new();
    place.istiod.discovery.be_silent_of(AUTHORIZATION, true);
    let client = place.client();
    until("a stream", || place.istiod.discovery.streams() > 0).await;
    for (what, bytes) in hostile() {
        place.istiod.discovery.say_raw(&bytes);
        sleep(Duration::from_secs(60)).await;
        assert!(!client.readiness().is_ready(), "{what}");
    }
    place.istiod.discovery.be_silent_of(AUTHORIZATION, false);
    place.istiod.discovery.end_streams();
    until("it is ready", || client.readiness().is_ready()).await;
}

/// A way to the istiod on which everything can stop, as where a host has lost its network without a word.
struct Stalling {
    stalls: Arc<AtomicBool>,
    /// How long each piece takes.
    slow: Duration,
}

impl Stalling {
    fn new(slow: Duration) -> Self {
        Self {
            stalls: Arc::default(),
            slow,
        }
    }

    fn control_plane(&self, place: &Place) -> ControlPlane {
        let (stalls, slow) = (Arc::clone(&self.stalls), self.slow);
        let istiod = Arc::clone(&place.istiod);
        place.control_plane("client").dialer(move |address| {
            assert!(address.starts_with(NAME));
            let (near, mut far) = duplex(64 * 1024);
            let mut behind = istiod.connect();
            let stalls = Arc::clone(&stalls);
            tokio::spawn(async move {
                let (mut from, mut to) = ([0; 1024], [0; 1024]);
                loop {
                    let (sent, received) = tokio::select! {
                        sent = far.read(&mut from) => (sent.unwrap_or(0), 0),
                        received = behind.read(&mut to) => (0, received.unwrap_or(0)),
                    };
                    if stalls.load(Ordering::Relaxed) {
                        // Neither end hears of it.
                        std::future::pending::<()>().await;
                    }
                    sleep(slow).await;
                    let went = match (sent, received) {
                        (0, 0) => return,
                        (0, received) => far.write_all(&to[..received]).await,
                        (sent, _) => behind.write_all(&from[..sent]).await,
                    };
                    if went.is_err() {
                        return;
                    }
                }
            });
            async move { Ok(BoxedIo::new(near)) }
        })
    }

    fn client(&self, place: &Place) -> Mesh {
        place.token("client", 100 * HOUR);
        let xds = mesh_core::config::Xds::istiod(self.control_plane(place))
            .addresses([[10, 0, 0, 1].into()])
            .rng(7);
        place.mesh("client", "client", xds)
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_has_died_without_a_word_is_left_for_another() {
    let place = Place::new();
    let _server = place.server().await;
    let way = Stalling::new(Duration::ZERO);
    let client = way.client(&place);
    greet(&client).await;
    let streams = place.istiod.discovery.streams();
    way.stalls.store(true, Ordering::Relaxed);
    // Pings find it out: one each 30 s, and 10 s for its answer.
    sleep(Duration::from_secs(60)).await;
    let reason = dump(&client).await["stale"]["reason"].to_string();
    assert!(reason.len() > 4, "it is not noticed");
    assert!(client.readiness().is_ready());
    greet(&client).await;
    let change = vec![workload("third", [10, 0, 0, 3], "1")];
    place.istiod.discovery.say(&addresses(change, &[]));
    way.stalls.store(false, Ordering::Relaxed);
    until("another stream", || {
        place.istiod.discovery.streams() > streams
    })
    .await;
    let begin = Instant::now();
    while !workloads(&client).await.contains(&uid("third")) {
        assert!(begin.elapsed() < HOUR);
        sleep(Duration::from_secs(1)).await;
    }
}

/// A kilobyte at a time, each with a second of delay.
#[tokio::test(start_paused = true)]
async fn a_slow_control_plane_is_waited_for() {
    let place = Place::new();
    let more = (0..200).map(|host| workload(&format!("pod-{host}"), [10, 1, 0, host], "1"));
    place.istiod.discovery.say(&addresses(more.collect(), &[]));
    let way = Stalling::new(Duration::from_millis(300));
    let client = way.client(&place);
    until("it is ready", || client.readiness().is_ready()).await;
    assert_eq!(workloads(&client).await.len(), 202);
    assert_eq!(
        place.istiod.discovery.streams(),
        1,
        "it was not given up: {}",
        pending(&client)
    );
}

/// discovery is gone for a day, and the authority is not. What it said is in effect all the time, certificates
/// are renewed, and no request fails.
#[tokio::test(start_paused = true)]
async fn discovery_that_is_away_for_a_day_changes_nothing() {
    let place = Place::new();
    for account in ["client", "server"] {
        place.token(account, 100 * HOUR);
    }
    let join = |name: &str, address| {
        let istiod = Arc::clone(&place.istiod);
        let authority = place.control_plane(name).dialer(move |_| {
            let near = istiod.connect();
            async move { Ok(BoxedIo::new(near)) }
        });
        // Looking at files each second of a day takes long.
        let identity = Istiod::new(authority).poll_interval(Duration::from_secs(600));
        let now = Arc::clone(&place.now);
        Mesh::builder()
            .workload("default", name, name)
            .transport(place.network.clone())
            .clock(move || now())
            .config(place.xds(name, address))
            .identity(identity.rng(7))
            .build()
            .unwrap()
    };
    let (server, client) = (join("server", [10, 0, 0, 2]), join("client", [10, 0, 0, 1]));
    crate::mesh_world::echo(server.listen(80).await.unwrap());
    let mut long = client.connect(SERVER).await.unwrap();
    let config = async || {
        let mut dump = dump(&client).await;
        ["workloads", "services", "policies"].map(|part| dump[part].take())
    };
    let (before, streams) = (config().await, place.istiod.discovery.streams());
    place.kill();
    // What is said meanwhile nobody hears.
    let change = vec![workload("third", [10, 0, 0, 3], "1")];
    place.istiod.discovery.say(&addresses(change, &[]));
    let certificates = place.istiod.calls().len();
    let begin = Instant::now();
    while begin.elapsed() < 24 * HOUR {
        sleep(Duration::from_secs(60)).await;
        ping(&mut long).await.unwrap();
        greet(&client).await;
    }
    assert_eq!(config().await, before);
    assert!(client.readiness().is_ready() && server.readiness().is_ready());
    assert_eq!(place.istiod.discovery.streams(), streams);
    // Each lives a day, and was renewed at half of it and again.
    let renewed = place.istiod.calls().len() - certificates;
    assert!((2..=6).contains(&renewed), "{renewed}");
    place.revive();
    let begin = Instant::now();
    while config().await == before {
        assert!(
            begin.elapsed() <= Duration::from_secs(60),
            "the longest wait"
        );
        sleep(Duration::from_secs(1)).await;
    }
}
