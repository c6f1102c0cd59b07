//! A source that is made of a function renews in time, and survives an authority that does not.

use std::future::{Ready, pending, ready};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use mesh_core::authz::Identity;
use mesh_core::hbone::tls::Bundle;
use mesh_core::identity::{CertificateSource, DevCa, Error, ErrorKind, Renewed};
use tokio::time::{Instant, timeout};

const HOUR: Duration = Duration::from_secs(3600);

/// A time of day that goes with tokio's paused clock.
pub(crate) fn wall_clock() -> impl Fn() -> SystemTime + Clone + Send + Sync {
    let begin = Instant::now();
    move || SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + begin.elapsed()
}

pub(crate) fn reviews() -> Identity {
    Identity::new("cluster.local", "default", "reviews").unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_development_certificate_is_renewed_at_half_life() {
    let wall = wall_clock();
    let ca = DevCa::ephemeral("cluster.local").clock(wall.clone());
    let mut certificates = ca.watch(reviews());
    let mut last = certificates.next().await.unwrap().unwrap();
    for _ in 0..20 {
        let issued = Instant::now();
        assert!(last.not_before() <= wall() && last.not_after() > wall());
        let lifetime = last.not_after().duration_since(last.not_before()).unwrap();
        assert!(lifetime >= 24 * HOUR && lifetime <= 24 * HOUR + Duration::from_secs(1));
        let next = certificates.next().await.unwrap().unwrap();
        let part = issued.elapsed().as_secs_f64() / (24 * HOUR).as_secs_f64();
        assert!(
            (0.44..0.56).contains(&part),
            "renewed at {part} of its life"
        );
        assert_ne!(last.serial_number(), next.serial_number());
        assert_ne!(last.chain(), next.chain());
        assert_eq!(last.root_fingerprints(), next.root_fingerprints());
        assert_eq!(*next.identity(), reviews());
        last = next;
    }
}

#[tokio::test(start_paused = true)]
async fn short_lives_are_renewed_before_they_end() {
    let wall = wall_clock();
    let ca = DevCa::ephemeral("cluster.local")
        .clock(wall.clone())
        .validity(Duration::from_secs(1));
    let mut certificates = ca.watch(reviews());
    let mut not_after = certificates.next().await.unwrap().unwrap().not_after();
    for _ in 0..1000 {
        let next = certificates.next().await.unwrap().unwrap();
        assert!(
            wall() < not_after,
            "the last one was good until the next came"
        );
        not_after = next.not_after();
    }
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_is_down_costs_nothing_until_the_certificate_expires() {
    let wall = wall_clock();
    let ca = DevCa::ephemeral("cluster.local").clock(wall.clone());
    let up = Arc::new(AtomicBool::new(true));
    let fetches = Arc::new(AtomicUsize::new(0));
    let source = {
        let (up, fetches) = (up.clone(), fetches.clone());
        Renewed::new(move |identity| {
            fetches.fetch_add(1, Ordering::Relaxed);
            let (ca, up) = (ca.clone(), up.load(Ordering::Relaxed));
            async move {
                match up {
                    true => ca.issue(identity).await,
                    false => Err(Error::new(ErrorKind::Unavailable, "down")),
                }
            }
        })
        .clock(wall.clone())
    };
    let mut certificates = source.watch(reviews());
    let first = certificates.next().await.unwrap().unwrap();

    up.store(false, Ordering::Relaxed);
    let mut failures = 0;
    let expired = loop {
        let error = certificates.next().await.unwrap().unwrap_err();
        if error.kind() != ErrorKind::Unavailable {
            break error;
        }
        failures += 1;
        assert!(wall() < first.not_after());
    };
    assert_eq!(expired.kind(), ErrorKind::Expired);
    assert!(
        expired.detail().contains(&failures.to_string()),
        "{expired}"
    );
    assert!(wall() >= first.not_after());
    assert!(wall() <= first.not_after() + Duration::from_secs(1));
    // Half a day of pauses of 30 s on average.
    assert!((700..3000).contains(&failures), "{failures}");

    up.store(true, Ordering::Relaxed);
    let back = Instant::now();
    let next = certificates.next().await.unwrap().unwrap();
    assert!(back.elapsed() <= Duration::from_secs(60));
    assert!(next.not_after() > wall());
    assert_eq!(fetches.load(Ordering::Relaxed), failures + 2);
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_hangs_is_given_up_and_tried_again() {
    let source = Renewed::new(|_| pending()).fetch_timeout(Duration::from_secs(3));
    let mut certificates = source.watch(reviews());
    let begin = Instant::now();
    let error = certificates.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.detail(), "no answer within 3s");
    assert_eq!(begin.elapsed(), Duration::from_secs(3));
    let again = certificates.next().await.unwrap().unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Unavailable);
}

/// How long it takes to fail so often.
async fn twenty_failures(set: impl FnOnce(Failing) -> Failing) -> Duration {
    let mut certificates = set(Renewed::new(fail as fn(_) -> _)).watch(reviews());
    let begin = Instant::now();
    for _ in 0..20 {
        certificates.next().await.unwrap().unwrap_err();
    }
    begin.elapsed()
}

type Failing = Renewed<fn(Identity) -> Ready<Result<Bundle, Error>>>;

fn fail(_: Identity) -> Ready<Result<Bundle, Error>> {
    ready(Err(Error::new(ErrorKind::Unavailable, "down")))
}

#[tokio::test(start_paused = true)]
async fn pauses_after_failures_are_bounded_as_set_and_repeated_by_their_seed() {
    const MOMENT: Duration = Duration::from_millis(2);
    let short = twenty_failures(|source| source.backoff(MOMENT, MOMENT)).await;
    // Tokio's clock counts whole milliseconds.
    assert!(short < 20 * 2 * MOMENT, "{short:?}");
    let long = |seed| twenty_failures(move |source| source.backoff(HOUR, HOUR).rng(seed));
    let first = long(7).await;
    assert!(first > HOUR, "longer than the default permits: {first:?}");
    assert_eq!(first, long(7).await);
    assert_ne!(first, long(8).await);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_of_somebody_else_is_not_used() {
    let ca = DevCa::ephemeral("cluster.local");
    let source = Renewed::new(move |_| {
        let ca = ca.clone();
        async move {
            ca.issue("spiffe://cluster.local/ns/default/sa/eve".parse().unwrap())
                .await
        }
    });
    let error = source.watch(reviews()).next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongIdentity);
    assert_eq!(
        error.to_string(),
        "wrong identity: expected a certificate of spiffe://cluster.local/ns/default/sa/reviews, \
         got one of spiffe://cluster.local/ns/default/sa/eve"
    );
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_comes_expired_is_not_used() {
    let wall = wall_clock();
    let ca = DevCa::ephemeral("cluster.local").clock(wall.clone());
    let source = Renewed::new(move |identity| {
        let ca = ca.clone();
        async move { ca.issue(identity).await }
    })
    .clock(move || wall() + 25 * HOUR);
    let error = source.watch(reviews()).next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Expired);
}

#[tokio::test(start_paused = true)]
async fn a_time_of_day_that_jumps_back_and_forth_fetches_no_more_than_it_jumps() {
    let offset = Arc::new(Mutex::new(Duration::ZERO));
    let wall = wall_clock();
    let jumping = {
        let offset = offset.clone();
        move || wall() + *offset.lock().unwrap()
    };
    let ca = DevCa::ephemeral("cluster.local").clock(jumping);
    let mut certificates = ca.watch(reviews());
    let mut items = 0;
    for jump in 0..30 {
        // Ahead, back, further ahead, back, and so on.
        *offset.lock().unwrap() = 48 * HOUR * (jump % 2) * jump;
        while timeout(Duration::from_secs(120), certificates.next())
            .await
            .is_ok()
        {
            items += 1;
        }
    }
    // The first, and for each of the 15 jumps ahead an expiry and a new one.
    assert_eq!(items, 31);
}

#[tokio::test(start_paused = true)]
async fn an_error_that_no_retry_heals_ends_the_stream() {
    let ca = DevCa::ephemeral("cluster local");
    let error = ca.fingerprint().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Settings);
    assert!(error.to_string().contains("cluster local"), "{error}");

    let ca = DevCa::ephemeral("cluster.local").validity(Duration::from_millis(999));
    let mut certificates = ca.watch(reviews());
    let error = certificates.next().await.unwrap().unwrap_err();
    assert!(
        error.is_final() && error.detail().starts_with("validity: "),
        "{error}"
    );
    assert!(certificates.next().await.is_none());
}
