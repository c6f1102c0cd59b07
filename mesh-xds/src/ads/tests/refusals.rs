//! What stands refused, and until when.

use proptest::prelude::*;

use super::*;
use crate::decode::{Decoder, ResourceType};
use crate::proto::istio::workload::{self, Address, address};
use crate::proto::type_url::ADDRESS;

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

/// What becomes of the bytes of a resource on their way.
#[derive(Debug, Clone)]
enum Mutation {
    /// Some bits of a byte are others.
    Flip(prop::sample::Index, u8),
    /// The end is missing.
    Cut(prop::sample::Index),
    /// There is more, in the middle of it.
    Insert(prop::sample::Index, Vec<u8>),
    /// Its bytes are said to be of another type.
    Type,
    /// A part of it is what it cannot be.
    Part(fn(&mut workload::Workload)),
}

fn mutations() -> impl Strategy<Value = Mutation> {
    let at = any::<prop::sample::Index>;
    let parts: [fn(&mut workload::Workload); 5] = [
        |of| of.addresses = vec![vec![10, 0, 0, 1, 1].into()],
        |of| of.tunnel_protocol = 77,
        |of| of.uid.clear(),
        |of| of.uid.push('x'),
        |of| of.trust_domain = "a b".to_owned(),
    ];
    prop_oneof![
        (at(), 1_u8..).prop_map(|(at, bits)| Mutation::Flip(at, bits)),
        at().prop_map(Mutation::Cut),
        (at(), prop::collection::vec(any::<u8>(), 1..40))
            .prop_map(|(at, more)| Mutation::Insert(at, more)),
        Just(Mutation::Type),
        prop::sample::select(parts.to_vec()).prop_map(Mutation::Part),
    ]
}

fn sent(index: usize) -> (String, workload::Workload) {
    let uid = format!("Kubernetes//Pod/default/pod-{index}");
    let workload = workload::Workload {
        uid: uid.clone(),
        name: format!("pod-{index}"),
        namespace: "default".to_owned(),
        addresses: vec![vec![10, 0, 0, index as u8].into()],
        service_account: "reviews".to_owned(),
        node: "node-1".to_owned(),
        ..workload::Workload::default()
    };
    (uid, workload)
}

fn as_address(name: &str, workload: workload::Workload) -> Resource {
    let address = Address {
        r#type: Some(address::Type::Workload(workload)),
    };
    Resource {
        name: name.to_owned(),
        version: "1".to_owned(),
        resource: Some(Any {
            type_url: ADDRESS.to_owned(),
            value: address.encode_to_vec().into(),
        }),
        ..Resource::default()
    }
}

impl Mutation {
    fn of(&self, index: usize) -> Resource {
        let (name, mut workload) = sent(index);
        if let Self::Part(change) = self {
            change(&mut workload);
        }
        let mut resource = as_address(&name, workload);
        let any = resource.resource.as_mut().expect("a value");
        let mut bytes = any.value.to_vec();
        match self {
            Self::Flip(at, bits) => *at.get_mut(&mut bytes) ^= bits,
            Self::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Self::Insert(at, more) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, more.iter().copied());
            }
            Self::Type => OTHER.clone_into(&mut any.type_url),
            Self::Part(_) => {}
        }
        any.value = bytes.into();
        resource
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(1000), ..ProptestConfig::default() })]

    /// one refusal of what cannot be read, and the others apply.
    #[test]
    fn of_twenty_one_is_spoilt_and_nineteen_apply(which in 0_usize..20, mutation in mutations()) {
        let now = Instant::now();
        let settings = settings(&[(ADDRESS, Interest::All)]);
        let mut session = Session::new(settings, Arc::new(Decoder::new()), now).expect("settings");
        open(&mut session, now);
        delta(&mut session);
        let spoilt = mutation.of(which);
        let any = spoilt.resource.as_ref().expect("a value");
        // A change may leave something that can be read.
        let read = Decoder::new().decode(ResourceType::Address, &spoilt.name, &any.value);
        let is_good = any.type_url == ADDRESS && read.is_ok();
        let is_there = is_good && read.is_ok_and(|update| update.is_some());
        let say = |session: &mut Session, nonce: &str, one: Resource| {
            let resources = (0..20).map(|index| match index == which {
                true => one.clone(),
                false => {
                    let (name, workload) = sent(index);
                    as_address(&name, workload)
                }
            });
            let delivery = session.received(Incoming::Delta(DeltaDiscoveryResponse {
                type_url: ADDRESS.to_owned(),
                nonce: nonce.to_owned(),
                resources: resources.collect(),
                ..DeltaDiscoveryResponse::default()
            }));
            session.judged([]);
            let names = delivery.updates.iter().map(|update| Decoder::new().name(&update.name()));
            let names: std::collections::BTreeSet<_> = names.collect();
            prop_assert_eq!(names.len(), delivery.updates.len());
            prop_assert_eq!(&delivery.removed, &[]);
            Ok((names, delta(session)))
        };

        let (names, answer) = say(&mut session, "n1", spoilt.clone())?;
        prop_assert_eq!(names.contains(&spoilt.name), is_there);
        prop_assert_eq!(names.len(), 19 + usize::from(is_there));
        prop_assert_eq!(&answer.response_nonce, "n1");
        prop_assert_eq!(answer.error_detail.is_none(), is_good);
        if let Some(error) = answer.error_detail {
            prop_assert!(error.message.len() <= 1024, "{}", error.message);
            prop_assert!(error.message.starts_with(&*spoilt.name), "{}", error.message);
        }
        // And that is all that is said, now and later: whoever waits for nothing says nothing.
        prop_assert!(session.poll_transmit().is_none());
        prop_assert_eq!(session.poll_timeout(), None);
        prop_assert!(session.poll_connect(now + Duration::from_secs(3600)).is_none());

        let (name, workload) = sent(which);
        let (names, answer) = say(&mut session, "n2", as_address(&name, workload))?;
        prop_assert_eq!(names.len(), 20);
        prop_assert_eq!(answer.error_detail, None);
        let was_bad: &[Box<str>] = if is_good { &[] } else { &[name.into()] };
        prop_assert_eq!(mended(&mut session), was_bad);
    }
}
