//! What is said when, step by step.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::ads::Health;
use crate::ads::response::{self, Response};
use crate::ads::state::Protocol;
use crate::ads::subscription::Wanted;
use crate::error::ErrorKind;
use crate::proto::envoy::config::core::v3::ControlPlane;
use crate::proto::envoy::service::discovery::v3::{DiscoveryResponse, ResourceError};
use crate::proto::type_url;

fn names(updates: &[Update]) -> Vec<String> {
    let name = |update: &Update| Texts.name(&update.name());
    updates.iter().map(name).collect()
}

#[test]
fn each_type_is_asked_for_once_with_the_node() {
    let (mut session, now) = session(settings(&[(URL, Interest::All), (OTHER, Interest::All)]));
    open(&mut session, now);
    for url in [URL, OTHER] {
        let request = delta(&mut session);
        assert_eq!(request.type_url, url);
        let node = request.node.expect("the node");
        assert_eq!(node.id, "ztunnel~10.0.0.1~a.ns~ns.svc.cluster.local");
        assert!(request.resource_names_subscribe.is_empty(), "all of them");
        assert!(request.resource_names_unsubscribe.is_empty());
    }
    assert_eq!(session.poll_transmit(), None);
}

#[test]
fn good_resources_apply_beside_bad_ones_which_are_named() {
    let (mut session, now) = session(settings(&[(URL, Interest::All)]));
    open(&mut session, now);
    delta(&mut session);
    let mut other = resource("other", "1", "x");
    other.resource = Some(packed(OTHER, "other", "x"));
    let mut empty = resource("empty", "1", "x");
    empty.resource = None;
    let resources = vec![
        resource("a", "1", "x"),
        resource("b", "1", "!"),
        other,
        empty,
        resource("c", "1", "x"),
        resource("a", "2", "y"),
        resource(&"n".repeat(5000), "1", "x"),
    ];
    let delivery = session.received(response("n1", resources, &[]));
    assert_eq!(names(&delivery.updates), ["a", "c"]);
    assert_eq!(session.poll_transmit(), None, "not before it is judged");
    let synced = session.judged([(ResourceName::Workload("c".into()), "no room".to_owned())]);
    assert_eq!(synced, None, "not everything is here");
    let request = delta(&mut session);
    assert_eq!((&*request.response_nonce, request.node), ("n1", None));
    let error = request.error_detail.expect("a refusal");
    assert_eq!(error.code, 3);
    assert!(error.message.len() <= 1024, "{}", error.message.len());
    for part in [
        "b: value: expected a good one",
        "other: is of type",
        "empty: has no value",
        "a: is there twice",
    ] {
        assert!(error.message.contains(part), "{part}: {}", error.message);
    }
    assert_eq!(session.poll_transmit(), None, "once");

    // What was refused is not said to be here.
    session.closed(None, now);
    let retry = now + wait(&session, now);
    open(&mut session, retry);
    let request = delta(&mut session);
    let known: Vec<_> = request.initial_resource_versions.into_iter().collect();
    assert_eq!(known, [("a".to_owned(), "1".to_owned())]);
}

#[test]
fn a_new_stream_says_what_is_here_and_goes_on() {
    let (mut session, now) = session(settings(&[(URL, Interest::All)]));
    open(&mut session, now);
    delta(&mut session);
    let hash = "0123456789abcdef";
    let resources = vec![resource("a", hash, "x"), resource("b", "2026/7", "x")];
    session.received(response("n1", resources, &[]));
    assert_eq!(session.judged([]).as_deref(), Some(URL));
    assert_eq!(delta(&mut session).error_detail, None);
    session.received(response("n2", Vec::new(), &[]));
    assert_eq!(session.judged([]), None, "only the first time");

    session.closed(Some(ErrorKind::Connection), now);
    assert!(session.poll_connect(now).is_none(), "not at once");
    let retry = now + wait(&session, now);
    assert!(open(&mut session, retry).is_empty());
    let versions = delta(&mut session).initial_resource_versions;
    let expected = [("a", hash), ("b", "2026/7")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(versions, BTreeMap::from(expected));
    // What is not in the answer is as it was.
    let delivery = session.received(response("m1", Vec::new(), &["b"]));
    assert_eq!(delivery.removed, [ResourceName::Workload("b".into())]);
    session.judged([]);
    assert_eq!(delta(&mut session).response_nonce, "m1");
}

#[test]
fn beyond_the_limit_nothing_is_said_and_the_answer_is_everything() {
    let limited = settings(&[(URL, Interest::All)]).with_max_initial_versions(200);
    let (mut session, now) = session(limited);
    open(&mut session, now);
    delta(&mut session);
    let many = |from| (from..20).map(|n| resource(&format!("name-{n}"), "1", "x"));
    session.received(response("n1", many(0).collect(), &[]));
    session.judged([]);
    session.closed(None, now);
    let retry = now + wait(&session, now);
    open(&mut session, retry);
    assert!(delta(&mut session).initial_resource_versions.is_empty());
    let mut resources: Vec<_> = many(2).collect();
    // Refused, so its last good version stays.
    resources[0] = resource("name-2", "2", "!");
    let delivery = session.received(response("m1", resources, &[]));
    let mut removed: Vec<_> = delivery
        .removed
        .iter()
        .map(|name| Texts.name(name))
        .collect();
    removed.sort();
    assert_eq!(removed, ["name-0", "name-1"]);
    session.judged([]);
    // Only the first answer is everything.
    let delivery = session.received(response("m2", Vec::new(), &[]));
    assert!(delivery.removed.is_empty());
}

/// The default: a request of exactly 3.5 MiB says the versions, one byte more and it says none.
#[test]
fn the_limit_is_three_and_a_half_mebibytes() {
    const MAX: usize = 3_670_016;
    let version = "0123456789abcdef";
    let pod = |n: usize| format!("Kubernetes//Pod/team-{}/app-{n}-7c9d5f6b8-x2k4p", n % 100);
    // The first request of the type, where these are here.
    let request = |names: &[String]| {
        let (mut session, now) = session(settings(&[(URL, Interest::All)]));
        open(&mut session, now);
        delta(&mut session);
        let resources = names.iter().map(|name| resource(name, version, "x"));
        session.received(response("n1", resources.collect(), &[]));
        session.judged([]);
        assert_eq!(delta(&mut session).error_detail, None);
        session.closed(None, now);
        let retry = now + wait(&session, now);
        open(&mut session, retry);
        delta(&mut session)
    };
    let entry = |name: &str| {
        let one = DeltaDiscoveryRequest {
            initial_resource_versions: [(name.to_owned(), version.to_owned())].into(),
            ..Default::default()
        };
        one.encoded_len()
    };
    let mut names = Vec::new();
    let mut size = request(&[]).encoded_len();
    while size + 1000 < MAX {
        let name = pod(names.len());
        size += entry(&name);
        names.push(name);
    }
    assert!(names.len() > 40_000, "of a mesh: {}", names.len());
    let mut last = (1..).map(|length| "n".repeat(length));
    let last = last.find(|name| size + entry(name) >= MAX).unwrap();
    assert_eq!(size + entry(&last), MAX);
    names.push(last);
    let said = request(&names);
    assert_eq!(said.initial_resource_versions.len(), names.len());
    assert_eq!(said.encoded_len(), MAX);
    names.last_mut().unwrap().push('n');
    assert!(request(&names).initial_resource_versions.is_empty());
}

#[test]
fn a_refused_size_is_tried_without_versions() {
    let (mut session, now) = session(settings(&[(URL, Interest::All)]));
    open(&mut session, now);
    delta(&mut session);
    session.received(response("n1", vec![resource("a", "1", "x")], &[]));
    session.judged([]);
    session.closed(None, now);
    for (said, why) in [
        (true, Some(ErrorKind::ResourceExhausted)),
        (false, Some(ErrorKind::Unavailable)),
        (false, None),
        (true, Some(ErrorKind::TooLarge)),
        (false, Some(ErrorKind::Unavailable)),
    ] {
        let at = session.poll_timeout().expect("a retry");
        open(&mut session, at);
        let request = delta(&mut session);
        assert_eq!(!request.initial_resource_versions.is_empty(), said);
        if why.is_none() {
            let delivery = session.received(response("m1", Vec::new(), &[]));
            assert_eq!(delivery.removed.len(), 1, "the answer was everything");
            session.judged([]);
            session.received(response("m2", vec![resource("a", "2", "x")], &[]));
            session.judged([]);
        }
        session.closed(why, at);
    }
}

#[test]
fn names_are_wanted_and_forgotten() {
    let (mut session, now) = session(settings(&[(URL, Interest::Named), (OTHER, Interest::All)]));
    open(&mut session, now);
    assert_eq!(delta(&mut session).type_url, OTHER);
    assert_eq!(
        session.poll_transmit(),
        None,
        "nothing is wanted of the other"
    );
    assert_eq!(session.want(URL, "a").expect("a name"), Wanted::Asked);
    assert_eq!(session.want(URL, "b").expect("a name"), Wanted::Asked);
    assert_eq!(session.want(URL, "a").expect("a name"), Wanted::Already);
    let request = delta(&mut session);
    assert_eq!(request.resource_names_subscribe, ["a", "b"]);
    assert!(request.node.is_some(), "the first of its type");
    session.want(URL, "/10.0.0.1").expect("a name");
    session.want(URL, "c").expect("a name");
    session.forget(URL, "b", now).expect("a type");
    let request = delta(&mut session);
    assert_eq!(request.resource_names_subscribe, ["/10.0.0.1", "c"]);
    assert_eq!(request.resource_names_unsubscribe, ["b"]);
    assert_eq!(request.node, None);

    let mut along = resource("w", "1", "x");
    along.aliases = vec!["/10.0.0.1".to_owned()];
    let resources = vec![resource("a", "1", "x"), along];
    let delivery = session.received(response("n1", resources, &["c", "never wanted"]));
    assert_eq!(names(&delivery.updates), ["a", "w"]);
    assert_eq!(delivery.absent, ["c"]);
    assert!(delivery.removed.is_empty(), "nothing was here");
    session.judged([]);
    assert_eq!(delta(&mut session).response_nonce, "n1");
    assert_eq!(session.want(URL, "c").expect("a name"), Wanted::Absent);
    let delivery = session.received(response("n2", vec![resource("c", "1", "x")], &[]));
    assert_eq!(names(&delivery.updates), ["c"]);
    session.judged([]);
    delta(&mut session);
    assert_eq!(session.want(URL, "c").expect("a name"), Wanted::Already);
    // What `b` may have brought along goes in ten seconds.
    assert_eq!(wait(&session, now), Duration::from_secs(10));

    // What came along with a forgotten name goes with the next stream, which comes for it.
    session.forget(URL, "/10.0.0.1", now).expect("a type");
    session.forget(URL, "not wanted", now).expect("a type");
    assert_eq!(
        delta(&mut session).resource_names_unsubscribe,
        ["/10.0.0.1"]
    );
    assert_eq!(wait(&session, now), Duration::from_secs(10));
    assert!(session.poll_connect(now).is_none());
    let later = now + Duration::from_secs(10);
    open(&mut session, later);
    let request = delta(&mut session);
    assert_eq!(request.resource_names_subscribe, ["a", "c"]);
    assert!(request.initial_resource_versions.is_empty());
    let resources = vec![resource("a", "1", "x"), resource("c", "1", "x")];
    let delivery = session.received(response("m1", resources, &[]));
    assert_eq!(delivery.removed, [ResourceName::Workload("w".into())]);
    session.judged([]);
    assert_eq!(session.poll_timeout(), None);

    // And with the last name everything.
    session.forget(URL, "a", later).expect("a type");
    session.forget(URL, "c", later).expect("a type");
    let removed = open(&mut session, later + Duration::from_secs(10));
    assert_eq!(removed.len(), 2, "{removed:?}");
    assert_eq!(delta(&mut session).type_url, OTHER);
    assert_eq!(session.poll_transmit(), None);
}

/// istiod does not answer a subscription that it has, and of a name in both lists it takes the subscription away.
#[test]
fn a_name_that_is_wanted_again_before_anything_was_sent_is_given_up_first() {
    let (mut session, now) = session(settings(&[(URL, Interest::Named)]));
    open(&mut session, now);
    session.want(URL, "a").expect("a name");
    delta(&mut session);
    session.received(response("n1", Vec::new(), &["a"]));
    session.judged([]);
    assert_eq!(delta(&mut session).response_nonce, "n1");

    session.forget(URL, "a", now).expect("a type");
    assert_eq!(session.want(URL, "a").expect("a name"), Wanted::Asked);
    session.want(URL, "b").expect("a name");
    let request = delta(&mut session);
    assert_eq!(request.resource_names_unsubscribe, ["a"]);
    assert!(request.resource_names_subscribe.is_empty(), "{request:?}");
    let request = delta(&mut session);
    assert!(request.resource_names_unsubscribe.is_empty(), "{request:?}");
    assert_eq!(request.resource_names_subscribe, ["a", "b"]);
    assert_eq!(session.poll_transmit(), None);

    // What was not asked for yet is not asked for.
    session.want(URL, "c").expect("a name");
    session.forget(URL, "c", now).expect("a type");
    assert_eq!(
        session.poll_transmit(),
        None,
        "there is nothing to take back"
    );

    // Nor is it what stood between a request that was sent and one that will be.
    session.forget(URL, "b", now).expect("a type");
    session.want(URL, "b").expect("a name");
    session.forget(URL, "b", now).expect("a type");
    assert_eq!(delta(&mut session).resource_names_unsubscribe, ["b"]);
    assert_eq!(session.poll_transmit(), None);
}

#[test]
fn what_came_along_with_a_forgotten_name_goes_after_the_time_that_is_set() {
    let wait_for = Duration::from_secs(3);
    let settings = settings(&[(URL, Interest::Named)]).with_drop_forgotten_after(wait_for);
    let (mut session, now) = session(settings);
    open(&mut session, now);
    for name in ["a", "/10.0.0.1"] {
        session.want(URL, name).expect("a name");
    }
    delta(&mut session);
    let mut along = resource("w", "1", "x");
    along.aliases = vec!["/10.0.0.1".to_owned()];
    let resources = vec![resource("a", "1", "x"), along];
    session.received(response("n1", resources, &[]));
    session.judged([]);
    delta(&mut session);
    session.forget(URL, "/10.0.0.1", now).expect("a type");
    assert_eq!(wait(&session, now), wait_for);
    assert!(session.poll_connect(now + wait_for / 2).is_none());
    open(&mut session, now + wait_for);
    assert_eq!(delta(&mut session).resource_names_subscribe, ["a"]);
    let delivery = session.received(response("m1", vec![resource("a", "1", "x")], &[]));
    assert_eq!(delivery.removed, [ResourceName::Workload("w".into())]);
}

/// Nothing came along with it: the next stream says which versions are here.
#[test]
fn a_name_that_was_never_asked_for_is_forgotten_without_a_trace() {
    let (mut session, now) = session(settings(&[(URL, Interest::Named)]));
    open(&mut session, now);
    session.want(URL, "a").expect("a name");
    delta(&mut session);
    session.received(response("n1", vec![resource("a", "1", "x")], &[]));
    session.judged([]);
    delta(&mut session);
    session.want(URL, "b").expect("a name");
    session.forget(URL, "b", now).expect("a type");
    assert_eq!(session.poll_timeout(), None, "the stream goes on");

    session.closed(None, now);
    session.want(URL, "b").expect("a name");
    session.forget(URL, "b", now).expect("a type");
    let later = now + wait(&session, now);
    open(&mut session, later);
    let request = delta(&mut session);
    assert_eq!(request.resource_names_subscribe, ["a"]);
    let here = [("a".to_owned(), "1".to_owned())];
    assert_eq!(request.initial_resource_versions, here.into());
}

#[test]
fn names_have_bounds() {
    let (mut session, _) = session(settings(&[(URL, Interest::Named)]).with_max_names(2));
    for name in ["", "*", &"n".repeat(4097)] {
        let error = session.want(URL, name).expect_err("no name");
        assert_eq!(error.kind(), ErrorKind::InvalidSettings);
    }
    session.want(URL, &"n".repeat(4096)).expect("a name");
    session.want(URL, "b").expect("a name");
    let error = session.want(URL, "c").expect_err("too many");
    assert!(error.to_string().contains("more than 2 names"), "{error}");
    session.want(URL, "b").expect("it is wanted already");
    let error = session.want("unknown", "a").expect_err("no type");
    assert!(error.to_string().starts_with("unknown"), "{error}");
}

#[test]
fn resources_have_bounds() {
    let bounded = settings(&[(URL, Interest::All)])
        .with_max_resources(2)
        .with_max_resource_size(16);
    let (mut session, now) = session(bounded);
    open(&mut session, now);
    delta(&mut session);
    let resources = vec![
        resource("a", "1", "x"),
        resource("large", "1", &"x".repeat(16)),
        resource("b", "1", "x"),
        resource("c", "1", "x"),
    ];
    let delivery = session.received(response("n1", resources, &[]));
    assert_eq!(names(&delivery.updates), ["a", "b"]);
    session.judged([]);
    let error = delta(&mut session).error_detail.expect("a refusal");
    assert!(error.message.contains("large: has 22 bytes, at most 16"));
    assert!(error.message.contains("c: there are 2 resources"));
    // Those that are here may change, and make room.
    let delivery = session.received(response("n2", vec![resource("a", "2", "y")], &["b"]));
    assert_eq!(names(&delivery.updates), ["a"]);
    session.judged([]);
    delta(&mut session);
    let delivery = session.received(response("n3", vec![resource("c", "1", "x")], &[]));
    assert_eq!(names(&delivery.updates), ["c"]);
}

#[test]
fn a_resource_of_nothing_but_aliases_is_refused_by_name() {
    for value in ["x", ""] {
        let (mut session, now) =
            session(settings(&[(URL, Interest::All)]).with_max_resource_size(16));
        open(&mut session, now);
        delta(&mut session);
        let mut large = resource("large", "1", value);
        large.aliases = vec![String::new(); 40_000];
        if value.is_empty() {
            large.resource = None;
        }
        let bytes = large.encode_to_vec();
        let read = response::Resource::read(Protocol::Delta, &bytes, 65_552);
        let read = read.expect("a resource");
        assert_eq!((&*read.name, read.aliases.len()), ("large", 0));
        let resources = vec![large, resource("a", "1", "x")];
        let delivery = session.received(response("n1", resources, &[]));
        assert_eq!(names(&delivery.updates), ["a"]);
        session.judged([]);
        let error = delta(&mut session).error_detail.expect("a refusal");
        let expected = "bytes with its names, at most 65552";
        assert!(error.message.contains("large: has 80"), "{error:?}");
        assert!(error.message.contains(expected), "{error:?}");
    }
}

#[test]
fn what_a_response_says_is_wrong_is_not_kept() {
    let errors = vec![ResourceError::default(); 1000];
    let delta = DeltaDiscoveryResponse {
        nonce: "n1".to_owned(),
        resource_errors: errors.clone(),
        ..DeltaDiscoveryResponse::default()
    };
    let world = DiscoveryResponse {
        nonce: "n1".to_owned(),
        resource_errors: errors,
        ..DiscoveryResponse::default()
    };
    for (protocol, bytes) in [
        (Protocol::Delta, delta.encode_to_vec()),
        (Protocol::StateOfTheWorld, world.encode_to_vec()),
    ] {
        assert!(bytes.len() > 2000);
        let mut response = Response::new(protocol, bytes.len());
        response.push(bytes.into());
        assert!(response.next().expect("a response").is_none());
        assert_eq!(response.end(0).expect("a response").nonce, "n1");
        assert_eq!(response.take().0.len(), 4, "the nonce alone");
    }
}

#[test]
fn the_state_of_the_world_names_its_server_and_removes_nothing() {
    let world = DiscoveryResponse {
        nonce: "n1".to_owned(),
        control_plane: Some(ControlPlane::default()),
        ..DiscoveryResponse::default()
    };
    let bytes = world.encode_to_vec();
    let mut response = Response::new(Protocol::StateOfTheWorld, bytes.len());
    response.push(bytes.into());
    assert!(response.next().expect("a response").is_none());
    assert_eq!(response.end(0).expect("it removes none").nonce, "n1");
}

#[test]
fn a_million_names_are_no_trouble() {
    let (mut session, now) = session(settings(&[(URL, Interest::All)]).with_max_resources(1000));
    open(&mut session, now);
    delta(&mut session);
    let gone: Vec<String> = (0..1_000_000).map(|n| n.to_string()).collect();
    let gone: Vec<&str> = gone.iter().map(String::as_str).collect();
    let delivery = session.received(response("n1", Vec::new(), &gone));
    assert!(delivery.removed.is_empty() && delivery.absent.is_empty());
    session.judged([]);
    assert_eq!(delta(&mut session).error_detail, None);
    let many = (0..100_000).map(|n| resource(&n.to_string(), "1", "x"));
    let delivery = session.received(response("n2", many.collect(), &[]));
    assert_eq!(delivery.updates.len(), 1000);
}

#[test]
fn a_type_that_was_not_asked_for_is_refused() {
    let (mut session, now) = session(settings(&[(URL, Interest::Named)]));
    open(&mut session, now);
    let delivery = session.received(response("n1", vec![resource("a", "1", "x")], &[]));
    assert!(delivery.updates.is_empty());
    assert_eq!(session.judged([]), None);
    let request = delta(&mut session);
    assert_eq!((&*request.type_url, &*request.response_nonce), (URL, "n1"));
    assert!(request.error_detail.is_some());
}

#[test]
fn health_follows_the_first_request_of_every_stream() {
    let (mut session, now) = session(settings(&[(URL, Interest::All)]));
    session.report_health(Health::Unhealthy("starting".to_owned()));
    open(&mut session, now);
    assert_eq!(delta(&mut session).type_url, URL);
    let report = delta(&mut session);
    assert_eq!(report.type_url, type_url::HEALTH);
    let detail = report.error_detail.expect("unhealthy");
    assert_eq!((detail.code, &*detail.message), (13, "starting"));
    session.report_health(Health::Unhealthy("starting".to_owned()));
    assert_eq!(session.poll_transmit(), None, "nothing new");
    session.report_health(Health::Healthy);
    assert_eq!(delta(&mut session).error_detail, None);
    session.closed(None, now);
    let retry = now + wait(&session, now);
    open(&mut session, retry);
    delta(&mut session);
    let report = delta(&mut session);
    assert_eq!(
        (&*report.type_url, report.error_detail),
        (type_url::HEALTH, None)
    );
    assert_eq!(session.poll_transmit(), None);
}

#[test]
fn a_verdict_that_comes_after_its_stream_is_kept_and_not_sent() {
    let (mut session, now) = session(settings(&[(URL, Interest::All)]));
    open(&mut session, now);
    delta(&mut session);
    session.received(response("n1", vec![resource("a", "1", "x")], &[]));
    session.closed(Some(ErrorKind::Connection), now);
    session.judged([]);
    let retry = now + wait(&session, now);
    open(&mut session, retry);
    let request = delta(&mut session);
    assert_eq!(request.initial_resource_versions["a"], "1");
    assert_eq!(
        session.poll_transmit(),
        None,
        "an old nonce means nothing here"
    );
}

fn all(nonce: &str, version: &str, resources: Vec<Any>) -> Incoming {
    Incoming::StateOfTheWorld(DiscoveryResponse {
        version_info: version.to_owned(),
        resources,
        type_url: URL.to_owned(),
        nonce: nonce.to_owned(),
        ..DiscoveryResponse::default()
    })
}

#[test]
fn a_server_without_delta_is_asked_for_the_state_of_the_world() {
    let (mut session, now) = session(settings(&[(URL, Interest::Named)]));
    session.want(URL, "a").expect("a name");
    session.want(URL, "b").expect("a name");
    open(&mut session, now);
    delta(&mut session);
    session.closed(Some(ErrorKind::Unimplemented), now);
    assert_eq!(
        session.poll_connect(now),
        Some(Protocol::StateOfTheWorld),
        "at once"
    );
    session.opened();
    let request = world(&mut session);
    assert_eq!(request.resource_names, ["a", "b"]);
    assert_eq!((&*request.version_info, &*request.response_nonce), ("", ""));
    let delivery = session.received(all("n1", "v1", vec![packed(URL, "a", "x")]));
    assert_eq!(names(&delivery.updates), ["a"]);
    assert_eq!(delivery.absent, ["b"]);
    session.judged([]);
    let request = world(&mut session);
    assert_eq!(
        (&*request.version_info, &*request.response_nonce),
        ("v1", "n1")
    );
    assert_eq!(request.resource_names, ["a", "b"]);

    // A refusal keeps the last version; and what was not understood may be what is missing.
    let delivery = session.received(all("n2", "v2", vec![packed(URL, "a", "!")]));
    assert!(delivery.updates.is_empty() && delivery.removed.is_empty());
    session.judged([]);
    let request = world(&mut session);
    assert_eq!(
        (&*request.version_info, &*request.response_nonce),
        ("v1", "n2")
    );
    assert!(request.error_detail.is_some());

    session.forget(URL, "b", now).expect("a type");
    session.want(URL, "c").expect("a name");
    let request = world(&mut session);
    assert_eq!(request.resource_names, ["a", "c"]);
    assert_eq!(
        (&*request.version_info, &*request.response_nonce),
        ("v1", "n2")
    );
    let delivery = session.received(all("n3", "v3", vec![packed(URL, "c", "x")]));
    assert_eq!(delivery.removed, [ResourceName::Workload("a".into())]);
    session.judged([]);
    world(&mut session);

    // Whoever comes next may speak delta.
    session.closed(None, now);
    let retry = now + wait(&session, now);
    assert_eq!(session.poll_connect(retry), Some(Protocol::Delta));
}

/// Each request has all names: those that came later are asked for too.
#[test]
fn what_came_along_with_a_name_goes_in_the_state_of_the_world_too() {
    let (mut session, now) = session(settings(&[(URL, Interest::Named)]));
    session.want(URL, "a").expect("a name");
    open(&mut session, now);
    session.closed(Some(ErrorKind::Unimplemented), now);
    open(&mut session, now);
    world(&mut session);
    session.want(URL, "b").expect("a name");
    assert_eq!(world(&mut session).resource_names, ["a", "b"]);
    assert_eq!(session.poll_timeout(), None);
    session.forget(URL, "b", now).expect("a type");
    assert!(session.poll_timeout().is_some());
}

#[test]
fn a_server_without_either_is_not_asked_in_a_hurry() {
    let (mut session, mut now) = session(settings(&[(URL, Interest::All)]));
    let start = now;
    for expected in [Protocol::Delta, Protocol::StateOfTheWorld].repeat(10) {
        now = session.poll_timeout().expect("a retry");
        assert_eq!(session.poll_connect(now), Some(expected));
        session.opened();
        session.closed(Some(ErrorKind::Unimplemented), now);
    }
    assert!(now - start > Duration::from_secs(20), "{:?}", now - start);
}

#[test]
fn settings_are_checked() {
    let bad = [
        Settings::new(Node::new("")).with_type(URL, Interest::All),
        Settings::new(Node::new("a")),
        settings(&[(URL, Interest::All), (URL, Interest::Named)]),
        settings(&[("", Interest::All)]),
        settings(&[(URL, Interest::All)]).with_backoff(Duration::ZERO, Duration::from_secs(1)),
        settings(&[(URL, Interest::All)]).with_pause(Duration::from_millis(101)),
    ];
    for settings in bad {
        let session = Session::new(settings, Arc::new(Texts), Instant::now());
        let error = session.err().expect("bad settings");
        assert_eq!(error.kind(), ErrorKind::InvalidSettings);
    }
}

#[test]
fn a_response_that_cannot_be_read_to_its_end_changes_nothing() {
    let (mut session, now) = session(settings(&[(URL, Interest::All)]));
    open(&mut session, now);
    delta(&mut session);
    session.received(response("n1", vec![resource("a", "1", "x")], &[]));
    session.judged([]);
    delta(&mut session);
    let resources = vec![resource("a", "2", "y"), resource("b", "1", "x")];
    let Incoming::Delta(whole) = response("n2", resources, &[]) else {
        panic!("it is delta");
    };
    let mut message = whole.encode_to_vec();
    // Another resource, whose name is not as long as it says.
    message.extend_from_slice(b"\x12\x02\x1a\x7f");
    let mut later = now;
    let mut waits = Vec::new();
    for _ in 0..6 {
        let message = message.clone().into();
        assert!(session.receive(Protocol::Delta, message).is_err());
        session.closed(None, later);
        waits.push(wait(&session, later));
        later += waits[waits.len() - 1];
        open(&mut session, later);
        let versions = delta(&mut session).initial_resource_versions;
        assert_eq!(versions, [("a".to_owned(), "1".to_owned())].into());
    }
    // Whoever sends it again and again is not asked at once each time.
    let least = Duration::from_millis(1500);
    assert!(waits[1..].iter().all(|wait| *wait >= least), "{waits:?}");
    assert!(waits.iter().max() > Some(&(3 * least)), "{waits:?}");
}

#[test]
fn what_nobody_applied_is_as_it_was() {
    let (mut session, now) = session(settings(&[(URL, Interest::All)]));
    open(&mut session, now);
    delta(&mut session);
    session.received(response("n1", vec![resource("a", "1", "x")], &[]));
    session.judged([]);
    delta(&mut session);
    let resources = vec![resource("a", "2", "y"), resource("b", "1", "x")];
    session.received(response("n2", resources, &[]));
    session.abandoned();
    session.closed(None, now);
    let later = now + wait(&session, now);
    open(&mut session, later);
    let versions = delta(&mut session).initial_resource_versions;
    assert_eq!(versions, [("a".to_owned(), "1".to_owned())].into());
}

#[test]
fn of_a_response_with_a_bad_resource_in_its_middle_the_rest_is_applied() {
    let (mut session, now) = session(settings(&[(URL, Interest::All)]));
    open(&mut session, now);
    delta(&mut session);
    let resources = (0..1_000).map(|number| {
        let value = if number == 500 { "!" } else { "x" };
        resource(&format!("r{number}"), "1", value)
    });
    let delivery = session.received(response("n1", resources.collect(), &[]));
    assert_eq!(delivery.updates.len(), 999);
    session.judged([]);
    let refusal = delta(&mut session).error_detail.expect("it is refused");
    assert_eq!(refusal.message, "r500: value: expected a good one");
}
