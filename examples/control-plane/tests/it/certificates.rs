//! Certificates near their end, with a real authority: one that is away, one that knows another time, a token
//! that has expired.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use mesh_core::config::Xds;
use mesh_core::identity::Istiod;
use mesh_core::{ErrorKind, Mesh};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

use crate::cast::{
    self, CALLER, Cast, ECHO, LATE, STRANGER, TARGET, afresh, call, echo, is_refused, manifests,
};
use crate::plane::{Plane, control_plane, join, joining, until};
use crate::way::{Mode, Way};

/// A member whose certificates are short, and come by a way of their own.
fn short(plane: &Plane, name: &str, last: u8, authority: SocketAddr, ttl: Duration) -> Mesh {
    let files = plane.configure(name, plane.ip(last));
    let identity = Istiod::new(control_plane(&files, authority))
        .ttl(ttl)
        .backoff(Duration::from_millis(200), Duration::from_secs(1));
    let discovery = Xds::istiod(control_plane(&files, plane.address()));
    let builder = joining(name, plane.ip(last), discovery, identity);
    builder.hbone(afresh()).build().unwrap()
}

fn left(mesh: &Mesh) -> Duration {
    let certificate = mesh.certificate().expect("it is ready");
    let left = certificate.not_after().duration_since(SystemTime::now());
    left.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_serve_to_their_end_while_the_authority_is_away_and_no_longer() {
    const TTL: Duration = Duration::from_secs(12);
    let plane = Plane::start(12, &manifests(0, &["caller", "late"]), &[]).await;
    let way = Way::open(plane.address()).await;
    // Its certificate lasts for a day.
    let late = join(&plane.configure("late", plane.ip(LATE)));
    late.ready().await.unwrap();
    let server = short(&plane, "echo", ECHO, way.address(), TTL);
    let caller = short(&plane, "caller", CALLER, way.address(), TTL);
    let stranger = short(&plane, "stranger", STRANGER, way.address(), TTL);
    tokio::spawn(echo(server.clone()));
    until("the caller is answered", async || {
        call(&caller).await.is_ok()
    })
    .await;
    until("the other one too", async || call(&late).await.is_ok()).await;
    until("the stranger is refused", async || {
        is_refused(&stranger).await
    })
    .await;
    let mut live = late.connect(TARGET).await.unwrap();
    way.turn(Mode::Closed);
    let (asked, now) = (way.connections(), Instant::now());
    let end = left(&caller).min(left(&server)).min(left(&stranger));
    assert!(end > Duration::ZERO && end <= TTL);
    // Discovery is as before.
    plane.save(&manifests(1, &["caller", "late"]));
    until("the edit is heard", async || cast::knows(&server, 1).await).await;
    let mut calls = 0;
    while now.elapsed() + Duration::from_secs(1) < end {
        for mesh in [&caller, &late] {
            call(mesh).await.unwrap();
        }
        assert!(is_refused(&stranger).await);
        live.write_all(b"ping").await.unwrap();
        live.read_exact(&mut [0; 4]).await.unwrap();
        calls += 1;
        sleep(Duration::from_millis(100)).await;
    }
    assert!(calls > 0 && way.connections() > asked, "it was asked again");
    until("their certificates have expired", async || {
        [&caller, &server, &stranger].map(left) == [Duration::ZERO; 3]
    })
    .await;
    // All of the last second counts, as TLS compares whole ones.
    sleep(Duration::from_secs(1)).await;
    until("the live connection ends", async || {
        live.write_all(b"ping").await.is_err() || live.read_exact(&mut [0; 4]).await.is_err()
    })
    .await;
    for _ in 0..5 {
        for mesh in [&caller, &stranger] {
            let error = call(mesh).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Identity, "{error:?}");
        }
        // It has one itself; who is called has none.
        let error = call(&late).await.unwrap_err();
        assert!(!error.is_denied(), "{error:?}");
        sleep(Duration::from_millis(100)).await;
    }
    for mesh in [&caller, &server, &stranger] {
        let told = mesh.readiness().to_string();
        assert!(told.contains("expired"), "{told}");
    }
    way.turn(Mode::Open);
    for mesh in [&caller, &late] {
        until("it is answered again", async || call(mesh).await.is_ok()).await;
    }
    until("the stranger is refused again", async || {
        is_refused(&stranger).await
    })
    .await;
    assert!(caller.readiness().is_ready() && server.readiness().is_ready());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_wrong_closes_and_one_that_is_right_again_opens() {
    const DAY: i64 = 24 * 60 * 60;
    let plane = Plane::start(13, &manifests(0, &["caller"]), &[]).await;
    let cast = Cast::join(&plane).await;
    let ahead = Arc::new(AtomicI64::new(0));
    let by = Arc::clone(&ahead);
    let clock = move || {
        let (now, by) = (SystemTime::now(), by.load(Ordering::Relaxed));
        let distance = Duration::from_secs(by.unsigned_abs());
        if by < 0 {
            now - distance
        } else {
            now + distance
        }
    };
    let files = plane.configure("caller", plane.ip(CALLER));
    let authority = control_plane(&files, plane.address()).clock(clock.clone());
    let identity =
        Istiod::new(authority.clone()).backoff(Duration::from_millis(200), Duration::from_secs(1));
    let moved = joining("caller", plane.ip(CALLER), Xds::istiod(authority), identity)
        .hbone(afresh())
        .clock(clock)
        .build()
        .unwrap();
    until("it is answered", async || call(&moved).await.is_ok()).await;
    // Certificates are of a day, from two minutes ago.
    for by in [-300, -DAY, 30 * DAY, 2 * DAY] {
        ahead.store(by, Ordering::Relaxed);
        until("nobody is believed any more", async || {
            call(&moved).await.is_err()
        })
        .await;
        for _ in 0..10 {
            let error = call(&moved).await.unwrap_err();
            assert!(!error.is_denied(), "{by} s: {error:?}");
            sleep(Duration::from_millis(50)).await;
        }
        if by == 2 * DAY {
            until("it says so", async || {
                assert!(call(&moved).await.is_err());
                moved.readiness().to_string().contains("expired")
            })
            .await;
        }
        // It is alone with it.
        cast.plays_on("the clock of another is wrong").await;
        ahead.store(0, Ordering::Relaxed);
        until("it is answered again", async || call(&moved).await.is_ok()).await;
    }
    until("nothing is wrong", async || moved.readiness().is_ready()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_has_expired_is_not_missed_by_who_has_a_certificate() {
    let mut plane = Plane::start(14, &manifests(0, &["late"]), &[]).await;
    let server = join(&plane.configure("echo", plane.ip(ECHO)));
    tokio::spawn(echo(server.clone()));
    let arguments = ["--token-duration", "5"];
    let files = plane.configure_as("late", "late", plane.ip(LATE), &arguments);
    let issued = SystemTime::now();
    let build = || {
        let control_plane = control_plane(&files, plane.address());
        // At half of its life there is another.
        let identity = Istiod::new(control_plane.clone())
            .ttl(Duration::from_secs(6))
            .backoff(Duration::from_millis(200), Duration::from_secs(1));
        joining("late", plane.ip(LATE), Xds::istiod(control_plane), identity)
            .hbone(afresh())
            .build()
            .unwrap()
    };
    let member = build();
    member.ready().await.unwrap();
    until("it is answered", async || call(&member).await.is_ok()).await;
    let expires = issued + Duration::from_secs(6);
    // What is valid for longer than this was issued to who had no token any more.
    let renewed = expires + Duration::from_secs(6);
    until("it was renewed without a token", async || {
        call(&member).await.unwrap();
        member.certificate().unwrap().not_after() > renewed
    })
    .await;

    let other = build();
    until("whoever has nothing else is told", async || {
        call(&member).await.unwrap();
        let told = other.readiness().to_string();
        assert!(told.starts_with("not ready"), "{told}");
        told.contains("certificate") && told.contains("the token has expired")
    })
    .await;
    assert!(other.certificate().is_none());

    // Another stream, by the certificate too.
    plane.kill();
    plane.save(&manifests(1, &["late"]));
    plane.run();
    until("it hears the new one", async || {
        call(&member).await.unwrap();
        cast::knows(&member, 1).await
    })
    .await;
    assert!(member.readiness().is_ready() && !other.readiness().is_ready());
    assert!(other.certificate().is_none());

    // And a new token is all that it takes.
    plane.configure("late", plane.ip(LATE));
    until("the other is ready", async || other.readiness().is_ready()).await;
    call(&other).await.unwrap();
}
