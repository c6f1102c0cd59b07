//! A control plane that is not there yet, that is gone for long, or that is there and says nothing.

use std::sync::atomic::Ordering;
use std::time::Duration;

use mesh_core::ErrorKind;
use tokio::time::{Instant, sleep};

use crate::cast::{self, CALLER, Cast, ECHO, LATE, call, echo, is_refused, join_afresh, manifests};
use crate::load::Load;
use crate::plane::{Plane, join, stale, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_starts_before_the_control_plane_waits_for_it_and_says_why() {
    let mut plane = Plane::absent(17, &manifests(0, &["caller", "late"]), &[]);
    // It has run once: hosts are configured with its root.
    plane.run();
    plane.up().await;
    plane.kill();
    let server = join(&plane.configure("echo", plane.ip(ECHO)));
    let caller = join(&plane.configure("caller", plane.ip(CALLER)));
    tokio::spawn(echo(server.clone()));
    for mesh in [&server, &caller] {
        until("it says that nobody is there", async || {
            let told = mesh.readiness().to_string();
            assert!(told.starts_with("not ready"), "{told}");
            let pending = ["control plane (", "certificate"];
            pending.iter().all(|one| told.contains(one)) && told.contains("onnection refused")
        })
        .await;
    }
    let waiting = tokio::spawn({
        let caller = caller.clone();
        async move { caller.resolve("echo.default").await }
    });
    sleep(Duration::from_millis(500)).await;
    assert!(!waiting.is_finished(), "it waits for the control plane");
    plane.run();
    // Who asked too early was not told that there is no such name.
    waiting.await.unwrap().unwrap();
    until("it is answered", async || call(&caller).await.is_ok()).await;
    assert!(caller.readiness().is_ready() && server.readiness().is_ready());

    // Its kernel accepts connections, and nobody is behind it.
    plane.pause();
    let files = plane.configure("late", plane.ip(LATE));
    let late = mesh_core::Mesh::builder()
        .bootstrap_dir(files)
        .unwrap()
        .start_timeout(Duration::from_secs(1))
        .build()
        .unwrap();
    let error = call(&late).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotReady, "{error:?}");
    until("it says that nobody answers", async || {
        call(&caller).await.unwrap();
        let told = late.readiness().to_string();
        assert!(told.starts_with("not ready"), "{told}");
        told.contains("control plane (") && told.contains("timed out")
    })
    .await;
    plane.resume();
    until("it is ready", async || late.readiness().is_ready()).await;
    call(&late).await.unwrap();
}

/// For how long it is gone: 15 s, or `MESH_TEST_OUTAGE` of a long run.
#[expect(
    clippy::disallowed_methods,
    reason = "tests are configured by the environment"
)]
fn outage() -> Duration {
    let seconds = std::env::var("MESH_TEST_OUTAGE").ok();
    let seconds = seconds.filter(|text| !text.is_empty());
    Duration::from_secs(seconds.map_or(15, |text| text.parse().expect("MESH_TEST_OUTAGE")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_fails_and_nothing_opens_while_the_control_plane_is_gone_for_long() {
    let mut plane = Plane::start(10, &manifests(0, &["caller"]), &[]).await;
    let cast = Cast::join(&plane).await;
    let (afresh, dials) = join_afresh(&plane, "caller", CALLER);
    until("it is answered on connections of its own", async || {
        call(&afresh).await.is_ok()
    })
    .await;
    plane.kill();
    // Nobody hears of it before it is back.
    plane.save(&manifests(1, &["stranger"]));
    let before = dials.load(Ordering::Relaxed);
    let load = Load::begin(&cast.caller, &afresh);
    let begun = Instant::now();
    let mut refused = 0;
    while begun.elapsed() < outage() {
        let answer = call(&cast.stranger).await;
        let denied = matches!(&answer, Err(error) if error.is_denied());
        assert!(denied, "after {:?}: {answer:?}", begun.elapsed());
        refused += 1;
        sleep(Duration::from_millis(50)).await;
    }
    let outcome = load.end().await;
    let dialled = dials.load(Ordering::Relaxed) - before;
    // One that is let go of may be taken by the next at that moment, and is the more often the busier the machine is.
    // One a second at least, of fifty.
    let enough = dialled as u64 >= outage().as_secs();
    assert!(enough, "{dialled} TLS connections for {outcome:?}");
    assert!(!cast::knows(&cast.caller, 1).await);
    for mesh in [&cast.echo, &cast.caller, &cast.stranger] {
        assert!(mesh.readiness().is_ready());
        let told = stale(mesh).await.unwrap_or_default();
        assert!(told.contains("onnection refused"), "{told}");
    }
    say(&format!(
        "{outcome}, {dialled} handshakes, {refused} refused"
    ));

    plane.run();
    cast.turns(1).await;
    assert!(is_refused(&afresh).await);
    for mesh in [&cast.echo, &cast.caller, &cast.stranger] {
        assert_eq!(stale(mesh).await, None);
    }
}

/// Discovery asks for a sign of life each 30 s, and waits 10 s for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_falls_silent_is_noticed_and_missed_by_nobody() {
    let plane = Plane::start(11, &manifests(0, &["caller"]), &[]).await;
    let cast = Cast::join(&plane).await;
    let (afresh, _) = join_afresh(&plane, "caller", CALLER);
    until("it is answered on connections of its own", async || {
        call(&afresh).await.is_ok()
    })
    .await;
    for mesh in [&cast.echo, &cast.caller, &cast.stranger] {
        assert_eq!(stale(mesh).await, None);
    }
    plane.pause();
    plane.save(&manifests(1, &["stranger"]));
    for mesh in [&cast.echo, &cast.caller, &cast.stranger] {
        until("it is noticed", async || {
            cast.plays_on("nobody answers").await;
            call(&afresh).await.unwrap();
            sleep(Duration::from_millis(100)).await;
            stale(mesh).await.is_some()
        })
        .await;
        assert!(mesh.readiness().is_ready());
    }
    cast.plays_on("it is known to be away").await;
    plane.resume();
    cast.turns(1).await;
    assert!(is_refused(&afresh).await);
    for mesh in [&cast.echo, &cast.caller, &cast.stranger] {
        until("all is new", async || stale(mesh).await.is_none()).await;
    }
}

#[expect(clippy::print_stdout, reason = "a figure for who runs the tests")]
fn say(text: &str) {
    println!("{text}");
}
