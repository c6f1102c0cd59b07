//! Responses that come piece by piece, and are handed over so.

use prost::bytes::Bytes;

use super::client::{apply, batch, builder, delta_server, next};
use super::*;
use crate::ads::reading::Reading;
use crate::ads::{Client, Event, Events};
use crate::model::{Update, Verdict};

/// More than is gathered before it is read.
const MANY: usize = 5_000;

fn encoded(incoming: Incoming) -> Bytes {
    match incoming {
        Incoming::Delta(response) => response.encode_to_vec().into(),
        Incoming::StateOfTheWorld(response) => response.encode_to_vec().into(),
    }
}

fn many(url: &str) -> Vec<Resource> {
    let resources = (0..MANY).map(|number| {
        let name = format!("a-resource-with-the-number-{number:05}");
        let mut resource = resource(&name, "1", if number == 4_000 { "!" } else { "x" });
        resource.resource = Some(packed(url, &name, "x")).filter(|_| number != 4_000);
        resource
    });
    resources.collect()
}

/// Has the session read a message in pieces of this size.
fn read(
    session: &mut Session,
    protocol: Protocol,
    message: &Bytes,
    size: usize,
) -> Result<Delivery, crate::Error> {
    let mut reading = Reading::new(protocol, message.len());
    let mut rest = message.clone();
    while !rest.is_empty() {
        reading.push(rest.split_to(size.min(rest.len())));
        match reading.read(session, &mut { usize::MAX }) {
            Ok(all) => assert!(all),
            Err(error) => {
                reading.cancel(session);
                return Err(error);
            }
        }
    }
    match reading.end(session) {
        Ok((_, delivery)) => Ok(delivery),
        Err(error) => {
            reading.cancel(session);
            Err(error)
        }
    }
}

fn asking() -> (Session, Instant) {
    let (mut session, now) = session(settings(&[(URL, Interest::All)]));
    open(&mut session, now);
    delta(&mut session);
    (session, now)
}

#[test]
fn pieces_of_any_size_are_read_as_the_whole() {
    let few = vec![resource("a", "1", "x"), resource("b", "1", "!")];
    for resources in [few, many(URL)] {
        let message = encoded(response("n1", resources, &["gone"]));
        let whole = {
            let (mut session, _) = asking();
            let delivery = session.receive(Protocol::Delta, message.clone());
            session.judged([]);
            (delivery.expect("a response"), delta(&mut session))
        };
        assert!(whole.1.error_detail.is_some());
        for size in [1, 7, 100, 16_384, 300_000] {
            let (mut session, _) = asking();
            let delivery = read(&mut session, Protocol::Delta, &message, size);
            let delivery = delivery.expect("a response");
            assert_eq!(delivery.updates, whole.0.updates, "{size}");
            assert_eq!(delivery.removed, whole.0.removed, "{size}");
            session.judged([]);
            assert_eq!(delta(&mut session), whole.1, "{size}");
        }
    }
}

#[test]
fn the_state_of_the_world_is_read_in_pieces_too() {
    let resources = many(URL).into_iter().filter_map(|one| one.resource);
    let message = encoded(Incoming::StateOfTheWorld(DiscoveryResponse {
        version_info: "7".to_owned(),
        type_url: URL.to_owned(),
        nonce: "n1".to_owned(),
        resources: resources.collect(),
        ..DiscoveryResponse::default()
    }));
    for size in [33, 16_384] {
        let (mut session, now) = session(settings(&[(URL, Interest::All)]));
        open(&mut session, now);
        session.closed(Some(crate::ErrorKind::Unimplemented), now);
        open(&mut session, now);
        world(&mut session);
        let delivery = read(&mut session, Protocol::StateOfTheWorld, &message, size);
        assert_eq!(delivery.expect("a response").updates.len(), MANY - 1);
        session.judged([]);
        let answer = world(&mut session);
        let answer = (answer.version_info, answer.response_nonce);
        assert_eq!(answer, ("7".to_owned(), "n1".to_owned()));
    }
}

#[test]
fn a_large_response_of_another_type_is_refused_by_name() {
    let (mut session, _) = asking();
    let message = encoded(response("n1", many(OTHER), &[]));
    let delivery = read(&mut session, Protocol::Delta, &message, 16_384);
    assert!(delivery.expect("a response").updates.is_empty());
    session.judged([]);
    let refusal = delta(&mut session).error_detail.expect("it is refused");
    let begins = format!("a-resource-with-the-number-00000: is of type {OTHER:?}");
    assert!(refusal.message.starts_with(&begins), "{}", refusal.message);
}

#[test]
fn what_says_in_the_end_that_it_is_another_type_changes_nothing() {
    let (mut session, now) = session(settings(&[(URL, Interest::All), (OTHER, Interest::All)]));
    open(&mut session, now);
    delta(&mut session);
    delta(&mut session);
    let message = encoded(response("n1", many(OTHER), &[]));
    let error = read(&mut session, Protocol::Delta, &message, 16_384).expect_err("it is neither");
    assert!(
        error
            .to_string()
            .contains("whose first resource is of type"),
        "{error}"
    );
    session.closed(None, now);
    let later = now + wait(&session, now);
    open(&mut session, later);
    for _ in [URL, OTHER] {
        assert!(delta(&mut session).initial_resource_versions.is_empty());
    }
}

#[test]
fn a_response_without_an_end_changes_nothing() {
    let (mut session, now) = asking();
    session.received(response("n0", vec![resource("a", "1", "x")], &[]));
    session.judged([]);
    delta(&mut session);
    let mut resources = many(URL);
    resources[0] = resource("a", "2", "y");
    let message = encoded(response("n1", resources, &[]));
    let mut reading = Reading::new(Protocol::Delta, message.len());
    reading.push(message.slice(..message.len() / 2));
    assert!(!reading.read(&mut session, &mut 100).expect("a response"));
    assert_eq!(reading.take().len(), 100);
    assert!(reading.is_taken());
    reading.cancel(&mut session);
    session.closed(None, now);
    let later = now + wait(&session, now);
    open(&mut session, later);
    let versions = delta(&mut session).initial_resource_versions;
    assert_eq!(versions, [("a".to_owned(), "1".to_owned())].into());
}

fn start() -> (Client, Events, client::Peers) {
    let (pipe, peers) = delta_server();
    let channel = builder().build(pipe).expect("settings");
    let settings = settings(&[(URL, Interest::All)]).with_parts();
    let client = Client::with_decoder(channel, settings, Arc::new(Texts));
    let (client, events, worker) = client.expect("settings");
    tokio::spawn(worker.run());
    (client, events, peers)
}

#[tokio::test(start_paused = true)]
async fn parts_come_before_their_batch_which_is_judged_for_them() {
    let (_client, mut events, mut peers) = start();
    let mut peer = peers.recv().await.expect("a stream");
    peer.request().await;
    peer.answer("n1", many(URL), &[]);
    let (mut updates, mut parts) = (Vec::new(), 0);
    let rest = loop {
        match next(&mut events).await {
            Event::Part(part) => {
                assert!(part.len() <= 256, "{}", part.len());
                updates.extend(part);
                parts += 1;
            }
            Event::Connected => {}
            Event::Batch(batch) => break batch,
            other => panic!("expected a part: {other:?}"),
        }
    };
    assert!(parts > 10, "{parts}");
    let (last, _, reply) = rest.into_parts();
    assert_eq!(updates.len() + last.len(), MANY - 1);
    let refused = updates[10].name();
    let name = Texts.name(&refused);
    reply.send(vec![Verdict::rejected(
        refused,
        Rejection::new("cannot be applied"),
    )]);
    let message = peer.request().await.error_detail.expect("two refusals");
    let wanted =
        format!("a-resource-with-the-number-04000: has no value; {name}: cannot be applied");
    assert_eq!(message.message, wanted);
}

/// How long a client that pauses takes for a first response and for one more, beside no pause.
async fn times(pause: Duration) -> (Duration, Duration) {
    let (pipe, mut peers) = delta_server();
    let channel = builder().build(pipe).expect("settings");
    let settings = settings(&[(URL, Interest::All)]);
    let settings = settings.with_parts().with_pause(pause);
    let client = Client::with_decoder(channel, settings, Arc::new(Texts));
    let (_client, mut events, worker) = client.expect("settings");
    tokio::spawn(worker.run());
    let mut peer = peers.recv().await.expect("a stream");
    peer.request().await;
    let mut times = Vec::new();
    for nonce in ["n1", "n2"] {
        let start = Instant::now();
        peer.answer(nonce, many(URL), &[]);
        loop {
            if let Event::Batch(batch) = next(&mut events).await {
                apply(batch);
                break;
            }
        }
        times.push(start.elapsed());
        peer.request().await;
    }
    (times[0], times[1])
}

#[tokio::test(start_paused = true)]
async fn a_push_is_read_with_pauses_what_comes_first_without() {
    let pause = Duration::from_millis(100);
    let (first, push) = times(pause).await;
    assert!(first < pause, "{first:?}");
    let pauses = (MANY / 64 - 1) as u32;
    assert!(push >= pause * pauses, "{push:?}");
    assert!(push < pause * (pauses + 3), "{push:?}");

    let (first, push) = times(Duration::ZERO).await;
    assert!(first < pause && push < pause, "{first:?}, {push:?}");
}

fn uids(updates: &[Update]) -> Vec<Arc<str>> {
    let uid = |update: &Update| match update {
        Update::Workload(workload) => Arc::clone(workload.shared_uid()),
        other => panic!("expected a workload: {other:?}"),
    };
    updates.iter().map(uid).collect()
}

/// How often these are held but here.
fn held(uids: &[Arc<str>]) -> usize {
    uids.iter().map(|uid| Arc::strong_count(uid) - 1).sum()
}

#[test]
fn what_a_push_replaces_is_let_go_of_little_by_little_and_names_are_kept_once() {
    let (mut session, _) = asking();
    let first = session.received(response("n1", many(URL), &[]));
    let uids = uids(&first.updates);
    drop(first);
    session.judged([]);
    assert_eq!(held(&uids), MANY - 1);
    assert!(!session.has_left(), "nothing was replaced");

    let push = session.received(response("n2", many(URL), &[]));
    assert!(
        self::uids(&push.updates)
            .iter()
            .zip(&uids)
            .all(|(new, old)| Arc::ptr_eq(new, old))
    );
    drop(push);
    session.judged([]);
    let mut left = held(&uids);
    assert_eq!(left, 2 * (MANY - 1));
    while session.has_left() {
        session.shed();
        let now = held(&uids);
        assert!(left - now <= 1_024, "{left} to {now}");
        left = now;
    }
    assert_eq!(left, MANY - 1);
}

/// A session with a mesh, and the names of what is in it.
fn whole() -> (Session, Instant, Vec<Arc<str>>) {
    let (mut session, now) = asking();
    let first = session.received(response("n1", many(URL), &[]));
    let uids = uids(&first.updates);
    session.judged([]);
    delta(&mut session);
    (session, now, uids)
}

#[test]
fn what_is_rejected_of_a_push_is_as_it_was_and_the_rest_of_what_it_replaced_is_left() {
    let (mut session, now, uids) = whole();
    let mut resources = many(URL);
    for resource in &mut resources {
        resource.version = "2".to_owned();
    }
    resources.push(resource("new", "2", "x"));
    drop(session.received(response("n2", resources, &[])));
    let rejected = |name: &str| (ResourceName::Workload(name.into()), "is not".to_owned());
    session.judged([rejected(&uids[10]), rejected("new")]);
    assert_eq!(held(&uids), 2 * (MANY - 1));
    let mut sheds = 0;
    while session.has_left() {
        session.shed();
        sheds += 1;
    }
    assert_eq!((held(&uids), sheds), (MANY - 1, MANY.div_ceil(1_024)));

    session.closed(None, now);
    let later = now + wait(&session, now);
    open(&mut session, later);
    let versions = delta(&mut session).initial_resource_versions;
    assert_eq!(versions.len(), MANY - 1);
    let olds = versions.iter().filter(|(_, version)| **version == "1");
    let olds: Vec<_> = olds.map(|(name, _)| &**name).collect();
    assert_eq!(olds, [&*uids[10]]);
}

#[test]
fn what_two_pushes_replaced_is_let_go_of_little_by_little() {
    let (mut session, _, uids) = whole();
    for nonce in ["n2", "n3"] {
        drop(session.received(response(nonce, many(URL), &[])));
        session.judged([]);
    }
    let mut left = held(&uids);
    assert_eq!(left, 3 * (MANY - 1));
    while session.has_left() {
        session.shed();
        let now = held(&uids);
        assert!(left - now <= 1_024, "{left} to {now}");
        left = now;
    }
    assert_eq!(left, MANY - 1);
}

/// Has a mesh come, and a push of all of it; says the names.
async fn pushed(peer: &mut client::DeltaPeer, events: &mut Events) -> Vec<Arc<str>> {
    peer.request().await;
    let mut uids = Vec::new();
    for nonce in ["n1", "n2"] {
        uids.clear();
        peer.answer(nonce, many(URL), &[]);
        loop {
            match next(events).await {
                Event::Part(part) => uids.extend(self::uids(&part)),
                Event::Batch(batch) => {
                    uids.extend(self::uids(batch.updates()));
                    apply(batch);
                    break;
                }
                _ => {}
            }
        }
        peer.request().await;
    }
    uids
}

#[tokio::test(start_paused = true)]
async fn what_a_push_replaced_goes_while_nothing_else_happens() {
    let (_client, mut events, mut peers) = start();
    let mut peer = peers.recv().await.expect("a stream");
    let uids = pushed(&mut peer, &mut events).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(held(&uids), MANY - 1);
}

/// Each thing that happens has the worker wait anew.
#[tokio::test(start_paused = true)]
async fn what_a_push_replaced_goes_while_much_else_happens() {
    let (client, mut events, mut peers) = start();
    let mut peer = peers.recv().await.expect("a stream");
    let uids = pushed(&mut peer, &mut events).await;
    for _ in 0..100 {
        tokio::time::advance(Duration::from_micros(500)).await;
        client.want(URL, "a").await.expect("a worker");
    }
    assert_eq!(held(&uids), MANY - 1);
}

#[tokio::test(start_paused = true)]
async fn of_a_stream_that_ends_within_a_response_the_parts_are_taken_back() {
    let (client, mut events, mut peers) = start();
    let mut peer = peers.recv().await.expect("a stream");
    peer.request().await;
    peer.answer("n1", many(URL), &[]);
    // It is not read to its end while nobody takes what it brings.
    assert!(matches!(next(&mut events).await, Event::Part(_)));
    client.reconnect().await.expect("a session");
    loop {
        match next(&mut events).await {
            Event::Part(_) => {}
            Event::Cancelled => break,
            other => panic!("expected a part, or their end: {other:?}"),
        }
    }
    assert!(matches!(next(&mut events).await, Event::Disconnected(None)));
    let mut peer = peers.recv().await.expect("another stream");
    assert!(peer.request().await.initial_resource_versions.is_empty());
    peer.answer("m1", vec![resource("a", "1", "x")], &[]);
    assert!(matches!(next(&mut events).await, Event::Connected));
    assert_eq!(apply(batch(&mut events).await).0, ["a"]);
    assert_eq!(peer.request().await.response_nonce, "m1");
}

/// A field as of a control plane that says more than anybody here reads.
fn unknown(length: usize) -> Vec<u8> {
    let mut field = Vec::new();
    prost::encoding::encode_key(99, prost::encoding::WireType::LengthDelimited, &mut field);
    prost::encoding::encode_varint(length as u64, &mut field);
    field.resize(field.len() + length, 0);
    field
}

#[test]
fn what_nobody_reads_is_passed_over() {
    for length in [0, 10, 1_000_000] {
        let well = encoded(response("n1", vec![resource("a", "1", "x")], &["gone"]));
        let message: Bytes = [&unknown(length), &*well, &unknown(length)].concat().into();
        for size in [7, 16_384, 300_000, usize::MAX] {
            let (mut session, _) = asking();
            let delivery = read(&mut session, Protocol::Delta, &message, size);
            assert_eq!(delivery.expect("a response").updates.len(), 1, "{size}");
            session.judged([]);
            assert_eq!(delta(&mut session).response_nonce, "n1");
        }
    }
}

#[test]
fn a_type_or_nonce_that_is_too_long_ends_the_stream_and_is_not_held() {
    let long = "n".repeat(1_000_000);
    let mut of_type = response("n1", Vec::new(), &[]);
    if let Incoming::Delta(response) = &mut of_type {
        response.type_url.clone_from(&long);
    }
    for message in [of_type, response(&long, Vec::new(), &[])] {
        let message = encoded(message);
        for size in [7, 16_384, usize::MAX] {
            let (mut session, _) = asking();
            let error = read(&mut session, Protocol::Delta, &message, size).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::TooLarge);
            let expected = "bytes, expected at most 8192";
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}

/// A name that was refused is one that is known of, though nothing of it is here.
#[test]
fn of_names_that_are_removed_those_alone_count_that_are_known() {
    let (mut session, _) = asking();
    session.received(response("n1", vec![resource("bad", "1", "!")], &[]));
    assert_eq!(session.judged([]), None);
    delta(&mut session);
    let removed = ["bad", "unknown", "unknown"];
    let delivery = session.received(response("n2", Vec::new(), &removed));
    assert!(delivery.removed.is_empty() && delivery.absent.is_empty());
    assert!(session.judged([]).is_some(), "all is here now");
    assert_eq!(delta(&mut session).error_detail, None);
}
