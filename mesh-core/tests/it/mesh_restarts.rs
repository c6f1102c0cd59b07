//! Meshes that start again while their control plane is away, or after their token has expired.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_core::hbone::tls::Bundle;
use mesh_core::identity::Istiod;
use mesh_core::{Mesh, OutboundPolicy};
use tokio::time::{Instant, sleep};

use crate::istiod_discovery::{ADDRESS, recorded};
use crate::istiod_place::{HOUR, Place, addresses, dump, greet, pending, uid, until, workload};
use crate::mesh_joins_istiod::{judged, serve};
use crate::require;

/// A mesh with a state directory of its own.
fn start(place: &Place, name: &str, account: &str, address: [u8; 4]) -> Mesh {
    let state = place.path(&format!("state-{name}"));
    start_in(&state, place, name, account, address)
}

fn start_in(state: &Path, place: &Place, name: &str, account: &str, address: [u8; 4]) -> Mesh {
    let now = Arc::clone(&place.now);
    let xds = place.xds(account, address).cluster_id("Kubernetes");
    Mesh::builder()
        .workload("default", name, account)
        .transport(place.network.clone())
        .clock(move || now())
        .outbound_policy(OutboundPolicy::RegistryOnly)
        .config(xds)
        .identity(Istiod::new(place.control_plane(account)).rng(7))
        .state_dir(state)
        .build()
        .unwrap()
}

fn client(place: &Place) -> Mesh {
    start(place, "client", "client", [10, 0, 0, 1])
}

async fn server(place: &Place) -> Mesh {
    let mesh = start(place, "server", "server", [10, 0, 0, 2]);
    crate::mesh_world::echo(mesh.listen(80).await.unwrap());
    mesh
}

fn snapshot(place: &Place, name: &str) -> PathBuf {
    let folder = place.path(&format!("state-{name}"));
    folder.join(format!("discovery/default_{name}.snapshot"))
}

fn has(file: &Path, text: &str) -> bool {
    let content = fs::read(file).unwrap_or_default();
    content
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}

/// Waits until what is said now is kept.
async fn kept(place: &Place, name: &str, text: &str) {
    let file = snapshot(place, name);
    until("it is kept", || has(&file, text)).await;
}

/// A place where a client with a token for so long has been, of which all is kept; says its last certificate.
async fn left(life: Duration) -> (Place, Arc<Bundle>) {
    let place = Place::new();
    place.token("client", life);
    let client = client(&place);
    client.ready().await.unwrap();
    kept(&place, "client", &uid("server")).await;
    let last = client.certificate().unwrap();
    (place, last)
}

async fn stale(mesh: &Mesh) -> String {
    dump(mesh).await["stale"]["reason"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// a restart while the control plane is away.
#[tokio::test(start_paused = true)]
async fn a_start_without_a_control_plane_serves_what_it_said_last() {
    let place = Place::new();
    for account in ["client", "server"] {
        place.token(account, 100 * HOUR);
    }
    let both = (server(&place).await, client(&place));
    greet(&both.1).await;
    for name in ["client", "server"] {
        kept(&place, name, &uid("server")).await;
    }
    // A change is kept too.
    let another = vec![workload("another", [10, 0, 0, 3], "1")];
    place.say(&addresses(another, &[])).await;
    kept(&place, "client", &uid("another")).await;
    drop(both);

    place.kill();
    for account in ["client", "server"] {
        fs::remove_file(place.path(account)).unwrap();
    }
    let (server, client) = (server(&place).await, client(&place));
    greet(&client).await;
    assert!(client.readiness().is_ready() && server.readiness().is_ready());
    let reason = stale(&client).await;
    assert!(reason.contains("kept by the last process"), "{reason}");
    let uids = dump(&client).await["workloads"].to_string();
    assert!(uids.contains(&uid("another")), "{uids}");
    sleep(Duration::from_secs(60)).await;
    let reason = stale(&client).await;
    assert!(
        reason.contains("connecting"),
        "why it is not current: {reason}"
    );

    // What has changed meanwhile, and only that, comes with the first stream.
    let change = vec![workload("fourth", [10, 0, 0, 4], "1")];
    place.istiod.discovery.say(&addresses(change, &["another"]));
    place.token("client", HOUR);
    let before = place.istiod.discovery.streams();
    place.revive();
    until("a stream", || place.istiod.discovery.streams() > before).await;
    loop {
        let uids = dump(&client).await["workloads"].to_string();
        if uids.contains(&uid("fourth")) {
            assert!(!uids.contains(&uid("another")), "{uids}");
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    let asked = place.istiod.discovery.asked();
    let first = asked
        .iter()
        .find(|one| one.stream > before && one.ask.type_url == ADDRESS);
    let versions = &first.unwrap().ask.versions;
    assert!(versions.contains_key(&uid("server")), "{versions:?}");
    until("it is current", || client.readiness().is_ready()).await;
    while !stale(&client).await.is_empty() {
        sleep(Duration::from_millis(10)).await;
    }
    greet(&client).await;
}

#[tokio::test(start_paused = true)]
async fn policies_on_requests_outlive_a_restart() {
    let name = "policies_on_requests_outlive_a_restart";
    let Some(data) = require::data(name) else {
        return;
    };
    let place = Place::empty();
    let messages = recorded(&data.join("istiod/bookinfo/sdk"));
    for message in messages.iter().take_while(|message| message.step == "base") {
        place.istiod.discovery.say(&message.answer);
    }
    for account in ["bookinfo-details", "bookinfo-productpage"] {
        place.token(account, 100 * HOUR);
    }
    let join = |name: &str, account: &str, address| start(&place, name, account, address);
    let details = || join("details-v1-1", "bookinfo-details", [10, 10, 2, 11]);
    let page = || join("productpage-v1-1", "bookinfo-productpage", [10, 10, 1, 10]);
    let before = (details(), page());
    serve(&before.0, 9080).await;
    judged(&before.1, "before").await;
    let listener = "xds.istio.io/grpc/lds/inbound/10.10.2.11:9080";
    kept(&place, "details-v1-1", listener).await;
    kept(&place, "productpage-v1-1", "details.default.svc").await;
    drop(before);

    place.kill();
    let after = (details(), page());
    serve(&after.0, 9080).await;
    judged(&after.1, "after").await;
    place.revive();
    sleep(HOUR).await;
    judged(&after.1, "with istiod again").await;
}

#[tokio::test(start_paused = true)]
async fn what_is_damaged_is_waited_for_instead() {
    let (place, _) = left(100 * HOUR).await;
    let file = snapshot(&place, "client");
    let mut content = fs::read(&file).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(&file, &content).unwrap();

    place.kill();
    let client = client(&place);
    until("it is waited for", || {
        pending(&client).contains("connecting")
    })
    .await;
    sleep(HOUR).await;
    assert!(!client.readiness().is_ready());
    place.revive();
    until("it is ready", || client.readiness().is_ready()).await;
    // And what comes is kept in its place.
    until("it is kept again", || {
        fs::read(&file).is_ok_and(|now| now != content)
    })
    .await;
    drop(client);
    place.kill();
    let client = start(&place, "client", "client", [10, 0, 0, 1]);
    until("it is ready", || client.readiness().is_ready()).await;
}

#[tokio::test(start_paused = true)]
async fn a_start_after_the_token_has_expired_proves_itself_by_the_kept_certificate() {
    let (place, _) = left(HOUR).await;
    sleep(2 * HOUR).await;
    let change = vec![workload("another", [10, 0, 0, 3], "1")];
    place.istiod.discovery.say(&addresses(change, &[]));
    let streams = place.istiod.discovery.streams();
    let client = client(&place);
    client.ready().await.unwrap();
    until("a stream", || place.istiod.discovery.streams() > streams).await;
    kept(&place, "client", &uid("another")).await;
    let last = place.istiod.discovery.asked().pop().unwrap();
    assert!(last.stream > streams && !last.by_token);
    assert_eq!(stale(&client).await, "");
}

/// From some call and some request on, the token proved who asks, and no certificate that istiod does not believe.
fn tokens_alone(place: &Place, (calls, asked): (usize, usize)) {
    let calls = place.istiod.calls().split_off(calls);
    assert!(!calls.is_empty());
    for call in calls {
        assert_eq!(call.peer, None);
        assert!(call.authorization.is_some());
    }
    let asked = place.istiod.discovery.asked().split_off(asked);
    assert!(!asked.is_empty() && asked.iter().all(|one| one.by_token));
    assert_eq!(place.istiod.failed_handshakes(), 0);
}

/// V009: it would end the handshake, however good the token is.
#[tokio::test(start_paused = true)]
async fn a_kept_certificate_that_has_expired_is_not_presented() {
    let (place, _) = left(HOUR).await;
    sleep(48 * HOUR).await;
    let here = (
        place.istiod.calls().len(),
        place.istiod.discovery.asked().len(),
    );
    let client = client(&place);
    until("the token is refused", || {
        pending(&client).contains("authentication failure")
    })
    .await;
    sleep(HOUR).await;
    assert!(client.certificate().is_none());
    place.token("client", HOUR);
    until("it is ready", || client.readiness().is_ready()).await;
    until("a stream", || place.istiod.discovery.asked().len() > here.1).await;
    tokens_alone(&place, here);
}

/// V009: the host has the files of another mesh now, whose members believe nothing of what is kept.
#[tokio::test(start_paused = true)]
async fn a_kept_certificate_of_another_mesh_is_replaced_by_the_token_at_once() {
    let (old, last) = left(HOUR).await;
    let new = Place::new();
    new.token("client", HOUR);
    let state = old.path("state-client");
    let client = start_in(&state, &new, "client", "client", [10, 0, 0, 1]);
    let begin = Instant::now();
    until("another certificate", || {
        let now = client.certificate();
        now.is_some_and(|now| now.chain() != last.chain())
    })
    .await;
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    until("a stream", || new.istiod.discovery.streams() > 0).await;
    until("it asks", || !new.istiod.discovery.asked().is_empty()).await;
    tokens_alone(&new, (0, 0));
    let _server = new.server().await;
    greet(&client).await;
}
