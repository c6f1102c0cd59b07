use std::thread::{self, ThreadId};

use mesh_xds::model::Workload;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::*;
use crate::Node;
use crate::config::{Asked, ConfigSource};
use crate::identity::DevCa;

/// Hands its link out.
struct Linked(oneshot::Sender<ConfigLink>);

impl ConfigSource for Linked {
    async fn run(self, link: ConfigLink) -> Result<(), Error> {
        assert!(self.0.send(link).is_ok(), "nobody follows");
        pending().await
    }
}

async fn follow() -> (Node, Follow) {
    let (linked, link) = oneshot::channel();
    let node = Node::builder()
        .config(Linked(linked))
        .identity(DevCa::ephemeral("cluster.local"))
        .build_node()
        .unwrap();
    let link = link.await.unwrap();
    let control_plane = Xds::istiod("istiod:15012").control_plane;
    let follow = Follow {
        address: control_plane.address().to_owned(),
        prover: Prover::new(control_plane, None, link.clone()),
        link,
        missing: needed().collect(),
        problems: Problems::default(),
        rejected: Vec::new(),
        pause: Duration::from_millis(1),
        connected: true,
        keeper: None,
        found: None,
        restored: None,
        registration: None,
    };
    (node, follow)
}

fn workloads(numbers: std::ops::Range<usize>) -> Vec<Update> {
    let name = |number| format!("ratings-{number}");
    numbers
        .map(|number| Workload::new(name(number), "default", name(number)).into())
        .collect()
}

/// On which thread the batch is applied.
async fn applied_on(follow: &mut Follow, updates: Vec<Update>) -> ThreadId {
    let (on, thread) = oneshot::channel();
    let batch = Batch::new(updates, Vec::new()).with_reply(|_| {
        on.send(thread::current().id()).unwrap();
    });
    follow.apply(batch).await.unwrap();
    thread.await.unwrap()
}

#[tokio::test]
async fn the_end_of_a_large_response_is_not_applied_on_a_worker() {
    let (node, mut follow) = follow().await;
    let worker = thread::current().id();

    follow.add(workloads(0..LARGE - 1)).unwrap();
    let rest = workloads(LARGE - 1..LARGE);
    assert_ne!(applied_on(&mut follow, rest).await, worker);
    let last = format!("ratings-{}", LARGE - 1);
    let snapshot = node.inner.snapshot.load();
    assert!(snapshot.workload_named("default", &last).is_some());
    assert!(snapshot.workload_named("default", "ratings-0").is_some());

    // What was applied does not count again, nor what was dropped.
    let few = workloads(0..1);
    assert_eq!(applied_on(&mut follow, few).await, worker);
    follow.add(workloads(0..LARGE)).unwrap();
    follow.link.discard().unwrap();
    let few = workloads(1..2);
    assert_eq!(applied_on(&mut follow, few).await, worker);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_before_the_first_answer_is_told_at_once_and_taken_back() {
    let (node, mut follow) = follow().await;
    let url: Arc<str> = ResourceType::Authorization.url().into();
    // What is told to be on its way is told once more when it is late.
    let is_on_its_way = || node.inner.gate.late(NAME, Instant::now()).is_some();

    follow.say_what_is_missing().unwrap();
    follow.stands(Arc::clone(&url), 1, false).unwrap();
    assert!(!is_on_its_way());
    let refused = "istiod:15012: 1 more of istio.security.Authorization stand refused";
    assert_eq!(node.problems(), [refused]);
    let waits = node.readiness().to_string();
    assert!(waits.contains("not accepted whole yet"), "{waits}");

    follow.stands(url, 0, false).unwrap();
    assert!(node.problems().is_empty(), "{:?}", node.problems());
    follow.here(ResourceType::Address.url()).unwrap();
    assert!(is_on_its_way(), "the rest");
}

#[tokio::test]
async fn a_listener_beyond_the_names_that_may_be_wanted_is_refused_and_discovery_goes_on() {
    let (node, follow) = follow().await;
    let settings = Settings::new(mesh_xds::ads::Node::new("sidecar~10.0.0.1~a.b~b.svc"))
        .with_type(ResourceType::Listener.url(), Interest::Named)
        .with_max_names(1);
    let nobody = Xds::istiod("127.0.0.1:1").control_plane;
    let channel = Prover::new(nobody, None, follow.link.clone()).channel();
    let (client, _events, worker) =
        Client::new(channel.unwrap(), settings, Decoder::new()).unwrap();
    tokio::spawn(worker.run());
    let ask = Ask {
        client,
        link: follow.link.clone(),
        listens: true,
    };
    let _demands = follow.link.demands().unwrap();
    let ports = [80, 81].map(|port| SocketAddr::from(([10, 0, 0, 1], port)));
    for address in ports {
        node.inner.board.listen(address);
        ask.listen(address).await.unwrap();
    }
    let asked = ports.map(|address| node.inner.board.listener(address));
    let [Some(Asked::Waiting), Some(Asked::Refused(_))] = asked else {
        panic!("{asked:?}");
    };
}
