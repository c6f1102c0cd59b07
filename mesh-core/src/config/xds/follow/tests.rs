use std::thread::{self, ThreadId};

use mesh_xds::model::Workload;
use tokio::sync::oneshot;

use super::*;
use crate::Node;
use crate::config::ConfigSource;
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
