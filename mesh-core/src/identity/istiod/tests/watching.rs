//! Who watches gets what is there, and what comes.

use super::*;

#[tokio::test(start_paused = true)]
async fn who_watches_one_identity_in_several_places_costs_one_fetch() {
    let service = Service {
        takes: Duration::from_secs(1),
        ..Service::new()
    };
    let source = service.source(|istiod| istiod);
    let clone = source.clone();
    let (mut one, mut two) = (source.watch(identity("a")), clone.watch(identity("a")));
    let (first, second) = tokio::join!(next(&mut one), next(&mut two));
    assert_eq!(first.unwrap().chain(), second.unwrap().chain());
    let mut late = source.watch(identity("a"));
    next(&mut late).await.unwrap();
    assert_eq!(service.asked(), 1);

    // All of them are told of the renewal, at half of its life.
    let begin = Instant::now();
    for watch in [&mut one, &mut two, &mut late] {
        let renewed = next(watch).await.unwrap();
        assert_eq!(renewed.serial_number(), "2");
    }
    let part = begin.elapsed().as_secs_f64() / (24 * HOUR).as_secs_f64();
    assert!((0.44..0.56).contains(&part), "{part}");
    assert_eq!(service.asked(), 2);
    let current = service.asks.lock().unwrap()[1].current.clone();
    assert_eq!(
        current.unwrap().serial_number(),
        "1",
        "it may prove who asks"
    );
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_fetched_a_few_at_a_time() {
    let service = Service {
        takes: Duration::from_secs(1),
        ..Service::new()
    };
    let source = service.source(|istiod| istiod.concurrency(3));
    let accounts: Vec<String> = (0..20).map(|number| format!("sa-{number}")).collect();
    let mut watches: Vec<_> = accounts
        .iter()
        .map(|account| source.watch(identity(account)))
        .collect();
    let begin = Instant::now();
    futures_util::future::join_all(watches.iter_mut().map(next)).await;
    assert_eq!(begin.elapsed().as_secs(), 7);
    assert_eq!(service.most_inside.load(Ordering::Relaxed), 3);
    assert_eq!(service.asked(), 20);
}

#[tokio::test(start_paused = true)]
async fn who_is_waited_for_overtakes_who_is_prefetched() {
    let service = Service {
        takes: Duration::from_secs(1),
        ..Service::new()
    };
    let source = service.source(|istiod| istiod.concurrency(1));
    for account in ["a", "b", "c"] {
        source.prefetch(&identity(account));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut watch = source.watch(identity("d"));
    next(&mut watch).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let order = service.asked_for();
    assert_eq!(order.len(), 4);
    assert_eq!(order[1], identity("d"), "{order:?}");
    // What was prefetched is there.
    let begin = Instant::now();
    next(&mut source.watch(identity("c"))).await.unwrap();
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_wants_is_forgotten_and_its_fetch_dropped() {
    let service = Service {
        takes: Duration::from_secs(5),
        ..Service::new()
    };
    let source = service.source(|istiod| istiod);
    let mut watch = source.watch(identity("a"));
    assert!(quiet(&mut watch, Duration::from_secs(1)).await);
    assert_eq!(service.inside.load(Ordering::Relaxed), 1);
    drop(watch);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(service.inside.load(Ordering::Relaxed), 0);

    // What is prefetched stays until it is forgotten, and is renewed.
    source.prefetch(&identity("b"));
    tokio::time::sleep(36 * HOUR).await;
    let renewed = service.asked();
    assert!((3..=5).contains(&renewed), "{renewed}");
    source.forget(&identity("b"));
    tokio::time::sleep(72 * HOUR).await;
    assert_eq!(service.asked(), renewed);

    // Whoever comes again gets a fresh one.
    let mut watch = source.watch(identity("b"));
    next(&mut watch).await.unwrap();
    assert_eq!(service.asked(), renewed + 1);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_kept_until_it_expires_and_not_a_moment_longer() {
    let service = Service {
        life: HOUR,
        ..Service::new()
    };
    let source = service.source(|istiod| istiod);
    let mut watch = source.watch(identity("a"));
    let first = next(&mut watch).await.unwrap();
    let now = || source.settings.control_plane.now();
    service.fail(ErrorKind::Unavailable);
    let mut failures = 0;
    let expired = loop {
        match next(&mut watch).await {
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                failures += 1;
                // Whoever comes meanwhile gets the one there is.
                let mut late = source.watch(identity("a"));
                assert_eq!(next(&mut late).await.unwrap().chain(), first.chain());
            }
            Err(error) => break error,
            Ok(_) => panic!("nothing was issued"),
        }
    };
    assert_eq!(expired.kind(), ErrorKind::Expired);
    assert!(now() >= first.not_after());
    assert!(now() <= first.not_after() + Duration::from_secs(1));
    assert!(
        expired.detail().ends_with(&format!("failed: {failures}")),
        "{expired}"
    );
    let mut late = source.watch(identity("a"));
    assert!(next(&mut late).await.is_err(), "an expired one is not told");

    service.fail(None);
    let next = loop {
        if let Ok(bundle) = next(&mut watch).await {
            break bundle;
        }
    };
    assert!(next.not_after() > now());
}

#[tokio::test(start_paused = true)]
async fn a_certificate_of_somebody_else_or_none_in_time_is_a_failure() {
    let other = Service::new();
    let source = {
        let service = other.clone();
        let istiod = Istiod::new(ControlPlane::default().clock(wall_clock()));
        let handle = Handle::new(istiod.settings.clone(), move |ask| {
            let eve = service
                .issuer
                .issue(&identity("eve"), SystemTime::now(), 900_000 * HOUR);
            Box::pin(async move {
                match ask.identity.service_account() {
                    "slow" => std::future::pending().await,
                    _ => Ok(Fetched {
                        bundle: eve,
                        content: None,
                    }),
                }
            })
        });
        istiod.handle.set(handle).unwrap();
        istiod
    };
    let error = next(&mut source.watch(identity("a"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongIdentity);
    let error = next(&mut source.watch(identity("slow"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.detail(), "no answer within 10s");
}

#[tokio::test(start_paused = true)]
async fn there_is_room_for_so_many_and_then_again() {
    let service = Service::new();
    let source = service.source(|istiod| istiod.max_identities(2));
    let mut watches = [source.watch(identity("a")), source.watch(identity("b"))];
    for watch in &mut watches {
        next(watch).await.unwrap();
    }
    let mut third = source.watch(identity("c"));
    let error = next(&mut third).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full);
    assert!(quiet(&mut third, HOUR).await, "it is said once");
    drop(watches);
    next(&mut third).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_error_that_no_retry_heals_ends_the_stream() {
    let service = Service::new();
    service.fail(ErrorKind::Settings);
    let source = service.source(|istiod| istiod);
    let mut watch = source.watch(identity("a"));
    assert!(next(&mut watch).await.unwrap_err().is_final());
    assert!(watch.next().await.is_none());
    tokio::time::sleep(HOUR).await;
    assert_eq!(service.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_the_last_who_may_watch() {
    let service = Service::new();
    let source = service.source(|istiod| istiod);
    let mut watch = source.watch(identity("a"));
    drop(source);
    next(&mut watch).await.unwrap();
    next(&mut watch).await.unwrap();
    assert_eq!(
        Arc::strong_count(&service.asks),
        2,
        "the task holds the service"
    );
    drop(watch);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(Arc::strong_count(&service.asks), 1);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_panics_ends_the_streams() {
    let istiod = Istiod::new(ControlPlane::default());
    let handle = Handle::new(istiod.settings.clone(), |_| panic!("as a test"));
    istiod.handle.set(handle).unwrap();
    let mut watch = istiod.watch(identity("a"));
    assert!(watch.next().await.is_none());
    assert!(istiod.watch(identity("b")).next().await.is_none());
}

#[test]
fn a_runtime_that_ends_takes_nothing_with_it() {
    let service = Service::new();
    let istiod = Istiod::new(ControlPlane::default());
    let source = service.behind(istiod);
    let mut watch = source.watch(identity("a"));
    for serial in ["1", "2"] {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let bundle = runtime.block_on(next(&mut watch)).unwrap();
        assert_eq!(bundle.serial_number(), serial);
    }
}

#[test]
fn what_is_prefetched_outlives_the_runtime_that_it_was_fetched_on() {
    let service = Service::new();
    let source = service.behind(Istiod::new(ControlPlane::default()));
    source.prefetch(&identity("pinned"));
    for serials in [["1", "2"], ["3", "4"]] {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let bundles = runtime.block_on(async {
            let other = next(&mut source.watch(identity("other"))).await.unwrap();
            while service.issued() % 2 == 1 {
                tokio::task::yield_now().await;
            }
            let pinned = next(&mut source.watch(identity("pinned"))).await.unwrap();
            [other, pinned]
        });
        let mut found: Vec<_> = bundles.iter().map(Bundle::serial_number).collect();
        found.sort_unstable();
        assert_eq!(found, serials);
    }
}
