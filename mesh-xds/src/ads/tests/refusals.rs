//! What stands refused, and until when.

use super::*;

/// One that has asked for all of a type.
fn asking() -> (Session, Instant) {
    let (mut session, now) = session(settings(&[(URL, Interest::All)]));
    open(&mut session, now);
    delta(&mut session);
    (session, now)
}

/// What it asks on another stream.
fn ask_again(session: &mut Session, now: Instant) -> DeltaDiscoveryRequest {
    session.closed(None, now);
    let retry = now + wait(session, now);
    open(session, retry);
    delta(session)
}

/// What stood refused and does not any more.
fn mended(session: &mut Session) -> Vec<Box<str>> {
    let mended = session.take_mended().into_iter();
    mended.flat_map(|mended| mended.names).collect()
}

#[test]
fn what_was_refused_is_so_until_it_is_accepted_or_gone() {
    let (mut session, now) = asking();
    let bad = |name: &str| resource(name, "1", "!");
    let first = ["mended", "removed", "gone", "back", "stays"];
    let first = first
        .map(bad)
        .into_iter()
        .chain([resource("back", "0", "x")]);
    session.received(response("n0", first.collect(), &[]));
    session.judged([]);
    assert_eq!(mended(&mut session), [] as [Box<str>; 0]);

    let well = vec![resource("mended", "2", "x"), bad("stays")];
    session.received(response("n1", well, &["removed", "nobody"]));
    session.judged([]);
    assert_eq!(mended(&mut session), ["mended".into(), "removed".into()]);

    // The server was told which versions are here. What it says nothing of then is gone, or as it is here.
    let versions = ask_again(&mut session, now).initial_resource_versions;
    assert_eq!(versions.into_keys().collect::<Vec<_>>(), ["mended"]);
    session.received(response("m1", vec![bad("stays")], &[]));
    assert_eq!(session.judged([]), None);
    assert_eq!(mended(&mut session), ["back".into(), "gone".into()]);
    session.received(response("m2", Vec::new(), &["stays"]));
    assert_eq!(session.judged([]).as_deref(), Some(URL), "all is here");
    assert_eq!(mended(&mut session), ["stays".into()]);
}

#[test]
fn of_many_that_are_refused_those_are_told_of_whose_end_will_be_told_too() {
    let (mut session, _) = asking();
    let bad = |range: std::ops::Range<usize>| {
        let bad = range.map(|n| resource(&format!("bad-{n}"), "1", "!"));
        bad.collect::<Vec<_>>()
    };
    session.received(response("n1", bad(0..2000), &[]));
    session.judged([]);
    assert_eq!(session.take_refused().expect("refused").resources.len(), 64);
    session.received(response("n2", bad(3000..3010), &[]));
    session.judged([]);
    let refused = session.take_refused().expect("refused").resources;
    assert!(refused.is_empty(), "{refused:?}");
    let long = resource(&"n".repeat(5000), "1", "x");
    session.received(response("n3", vec![long], &["bad-0"]));
    session.judged([]);
    assert_eq!(mended(&mut session), ["bad-0".into()]);
    let refused = session.take_refused().expect("refused").resources;
    assert_eq!(refused[0].0, "", "a name that nobody remembers");
}

/// How much stands refused, where it has changed.
fn standing(session: &mut Session) -> Vec<(usize, bool)> {
    let standing = session.take_standing().into_iter();
    standing.map(|one| (one.resources, one.and_more)).collect()
}

#[test]
fn what_stands_refused_without_being_named_is_counted() {
    let (mut session, now) = asking();
    session.received(response("n1", vec![resource("good", "1", "x")], &[]));
    session.judged([]);
    assert_eq!(standing(&mut session), [], "nothing was refused ever");
    let name = |n: usize| format!("bad-{n:04}");
    let bad = |range: std::ops::Range<usize>| range.map(|n| resource(&name(n), "1", "!")).collect();
    let well =
        |range: std::ops::Range<usize>| range.map(|n| resource(&name(n), "2", "x")).collect();
    session.received(response("n2", bad(0..100), &[]));
    session.judged([]);
    assert_eq!(session.take_refused().expect("refused").resources.len(), 64);
    assert_eq!(standing(&mut session), [(100, false)]);
    session.received(response("n3", well(0..64), &[]));
    session.judged([]);
    assert_eq!(standing(&mut session), [(36, false)]);
    session.received(response("n4", bad(100..3000), &[]));
    session.judged([]);
    assert_eq!(standing(&mut session), [(1000, true)]);
    // All that is remembered is well; nobody knows of the rest before a stream begins anew.
    session.received(response("n5", well(64..1100), &[]));
    session.judged([]);
    assert_eq!(standing(&mut session), [(0, true)]);
    ask_again(&mut session, now);
    session.received(response("m1", Vec::new(), &[]));
    session.judged([]);
    assert_eq!(standing(&mut session), [(0, false)]);
}

#[test]
fn a_name_that_a_response_refuses_many_times_counts_once() {
    let (mut session, _) = asking();
    let bad = |name: &str| resource(name, "1", "!");
    let same = (0..2000).map(|_| bad("same"));
    session.received(response("n1", same.chain([bad("other")]).collect(), &[]));
    session.judged([]);
    assert_eq!(standing(&mut session), [(2, false)]);
}

#[test]
fn what_is_refused_again_is_not_told_to_be_mended_for_others_before_it() {
    let (mut session, now) = asking();
    let bad = |name: &str| resource(name, "1", "!");
    session.received(response("n1", vec![bad("told")], &[]));
    session.judged([]);
    ask_again(&mut session, now);
    let others = (0..2000).map(|n| bad(&format!("bad-{n}")));
    session.received(response("m1", others.chain([bad("told")]).collect(), &[]));
    session.judged([]);
    assert_eq!(mended(&mut session), [] as [Box<str>; 0]);
    session.received(response("m2", vec![resource("told", "2", "x")], &[]));
    session.judged([]);
    assert_eq!(mended(&mut session), ["told".into()]);
}

#[test]
fn a_reason_is_told_by_its_beginning() {
    let (mut session, _) = asking();
    let mut one = resource("one", "1", "x");
    one.resource.as_mut().expect("a value").type_url = format!("a{}", "é".repeat(100_000));
    session.received(response("n1", vec![one], &[]));
    let long = "é".repeat(100_000);
    let two = ResourceName::Workload("two".into());
    session.judged([(two, long)]);
    let refused = session.take_refused().expect("refused").resources;
    assert_eq!(refused.len(), 2);
    for (name, reason) in refused {
        assert!(
            (1000..=1024).contains(&reason.len()),
            "{name}: {}",
            reason.len()
        );
    }
}

#[test]
fn a_refusal_has_room_for_few_and_counts_the_rest() {
    let (mut session, _) = asking();
    let bad = (0..100_000).map(|n| resource(&format!("bad-{n}"), "1", "!é"));
    let delivery = session.received(response("n1", bad.collect(), &[]));
    assert!(delivery.updates.is_empty());
    session.judged([]);
    let error = delta(&mut session).error_detail.expect("a refusal");
    assert!(error.message.len() <= 1024);
    assert!(
        error.message.starts_with("bad-0: value"),
        "{}",
        error.message
    );
    assert!(error.message.contains("; and 999"), "{}", error.message);
}
