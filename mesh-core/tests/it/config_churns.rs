//! the configuration changes a thousand times a second. Traffic goes on, and what concerns it is never late.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh_core::authz::policy::Action;
use mesh_core::xds::model::{Batch, Membership, Update, Workload};
use mesh_core::{Mesh, MeshStream};
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};

use crate::admin::get;
use crate::memory_network::{network, ping};
use crate::mesh_world::{PORT, World, caller, echo, policy, service_name};

/// How many others there are, whom the changes concern.
const OTHERS: usize = 1_000;

/// Each of ten changes, a hundred times a second.
const EACH: usize = 10;
const NOBODIES: usize = 50;
const TIME: Duration = Duration::from_secs(60);

/// One of the others in its `version`; all are endpoints of one service.
fn other(world: &World, number: usize, version: usize) -> Workload {
    let name = format!("other-{}", number % OTHERS);
    world
        .workload(&name, 0)
        .with_addresses(vec![
            [10, 9, (number / 250) as u8, (number % 250) as u8].into(),
        ])
        .with_node(format!("node-{}", version % 7))
        .with_capacity(version as u32 % 5 + 1)
        .with_services(vec![Membership::new(service_name("others"))])
}

/// Workloads and a service are other ones, and a workload and a policy of nobody's go or come.
fn changes(world: &World, round: usize) -> Batch {
    let first = round * EACH % OTHERS;
    let changed = first..first + EACH - 3;
    let mut updates: Vec<Update> = changed
        .map(|number| other(world, number, round).into())
        .collect();
    updates.push(world.service("others", (round % 200) as u8 + 10).into());
    let pair = round / 2;
    let nobody = format!("nobody-{}", pair % NOBODIES);
    let rule = policy(&nobody, Action::Deny, vec![caller(&nobody)]);
    let one = Update::from(other(world, pair * 2 * EACH % OTHERS + EACH - 1, round));
    let mut removed = Vec::new();
    match round % 2 {
        0 => {
            updates.push(rule);
            removed.push(one.name());
        }
        _ => {
            updates.push(one);
            removed.push(rule.name());
        }
    }
    assert_eq!(updates.len() + removed.len(), EACH);
    Batch::new(updates, removed)
}

/// The configuration, as `/config_dump` has it, in an order of its own.
async fn config(mesh: &Mesh) -> Vec<String> {
    let dump = get(&mesh.admin(), "/config_dump").await.json();
    let parts = ["workloads", "services", "policies"].into_iter();
    let mut all: Vec<_> = parts
        .flat_map(|part| dump[part].as_array().unwrap())
        .map(ToString::to_string)
        .collect();
    all.sort();
    all
}

async fn connect(client: &Mesh, world: &World) -> Result<MeshStream, mesh_core::Error> {
    let server = std::net::SocketAddr::new(world.ip(2), PORT);
    client.connect(server.to_string()).await
}

#[tokio::test(start_paused = true)]
async fn a_thousand_changes_a_second_fail_no_request_and_no_denial_is_late() {
    let world = World::with(41, |settings| settings.transport(network()));
    let (mesh, server) = world.pair().await;
    world
        .control
        .set(vec![world.workload("guest", 3).into()])
        .await;
    let guest = world.mesh("guest");
    echo(server.listen(PORT).await.unwrap());
    let others = (0..OTHERS).map(|number| other(&world, number, 0).into());
    let mut base: Vec<Update> = others.collect();
    base.push(world.service("others", 0).into());
    world.control.set(base.clone()).await;
    let before = config(&mesh).await;

    let world = Arc::new(world);
    let over = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    let (at, ended) = (Arc::clone(&world), Arc::clone(&over));
    tasks.spawn(async move {
        let mut tick = interval(Duration::from_millis(10));
        let mut rounds = 0;
        while !ended.load(Ordering::Relaxed) {
            tick.tick().await;
            let (updates, removed, _) = changes(&at, rounds).into_parts();
            for verdict in at.control.apply(updates, removed).await {
                verdict.result().unwrap();
            }
            rounds += 1;
        }
        ("batches", rounds)
    });
    let (at, ended, client) = (Arc::clone(&world), Arc::clone(&over), mesh.clone());
    tasks.spawn(async move {
        let mut long = connect(&client, &at).await.unwrap();
        let mut requests = 0;
        while !ended.load(Ordering::Relaxed) {
            let mut stream = connect(&client, &at).await.unwrap();
            ping(&mut stream).await.unwrap();
            ping(&mut long).await.unwrap();
            requests += 1;
            sleep(Duration::from_millis(7)).await;
        }
        ("requests", requests)
    });
    let at = Arc::clone(&world);
    tasks.spawn(async move {
        let mut denials = 0;
        let end = tokio::time::Instant::now() + TIME;
        while tokio::time::Instant::now() < end {
            let mut live = connect(&guest, &at).await.unwrap();
            ping(&mut live).await.unwrap();
            sleep(Duration::from_millis(203)).await;
            ping(&mut live).await.unwrap();
            let deny = policy("no-guests", Action::Deny, vec![caller("guest")]);
            let name = deny.name();
            at.control.set(vec![deny]).await;
            // The next connection is judged by it, and the one that lives ends.
            let refused = connect(&guest, &at).await.unwrap_err();
            assert!(refused.is_denied(), "{refused:?}");
            let ended = live.read(&mut [0; 1]).await;
            assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
            sleep(Duration::from_millis(101)).await;
            at.control.apply(Vec::new(), vec![name]).await;
            denials += 1;
        }
        over.store(true, Ordering::Relaxed);
        ("denials", denials)
    });
    let mut counts = std::collections::BTreeMap::new();
    while let Some(ended) = tasks.join_next().await {
        counts.extend([ended.unwrap()]);
    }
    let seconds = TIME.as_secs() as usize;
    assert!(counts["batches"] * EACH >= 1_000 * seconds, "{counts:?}");
    assert!(counts["requests"] >= 100 * seconds, "{counts:?}");
    assert!(counts["denials"] >= seconds, "{counts:?}");

    // With everything as it was there is nothing else.
    let nobodies = (0..NOBODIES).map(|number| format!("nobody-{number}"));
    let nobodies = nobodies.map(|name| policy(&name, Action::Deny, vec![caller(&name)]).name());
    for verdict in world.control.apply(base, nobodies.collect()).await {
        verdict.result().unwrap();
    }
    assert_eq!(config(&mesh).await, before);
}
