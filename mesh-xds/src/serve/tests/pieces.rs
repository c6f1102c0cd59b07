//! Responses are sent in pieces, which come to what the whole would be.

use std::sync::Arc;

use prost::Message;

use super::{Told, ask, names, new_session, new_store, read, workload};
use crate::model::{Batch, ResourceName, Workload};
use crate::proto::envoy::config::core::v3::ControlPlane;
use crate::proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use crate::proto::google::protobuf::Any;
use crate::proto::type_url;
use crate::serve::outgoing::Outgoing;
use crate::serve::session::{Bounds, Session};
use crate::serve::store::{Kind, Store};

/// What a piece is no larger than, by the largest resource of these tests.
const PIECE: usize = 64 * 1024 + 4096;

/// More than fits into one piece.
const MANY: u32 = 2_000;

fn pods(node: &str) -> Batch {
    let updates = (0..MANY).map(|n| {
        let name = format!("pod-{n:05}");
        let [_, _, high, low] = n.to_be_bytes();
        Workload::new(format!("c//Pod/ns/{name}"), "ns", name)
            .with_addresses(vec![[10, 1, high, low].into()])
            .with_node(node)
            .into()
    });
    Batch::new(updates.collect(), Vec::new())
}

fn store() -> Store {
    let mut store = new_store();
    store.apply(pods("a"));
    store
}

fn any(store: &Store, name: &str) -> Any {
    let (_, one) = store.table(Kind::Address).get(name).expect("it is there");
    Any {
        type_url: type_url::ADDRESS.to_owned(),
        value: one.encoded.value(),
    }
}

fn control_plane() -> Option<ControlPlane> {
    Some(ControlPlane {
        identifier: concat!("mesh-xds/", env!("CARGO_PKG_VERSION")).to_owned(),
    })
}

/// The bytes of a message, with gRPC's header, in pieces that are small.
fn sent(response: Outgoing) -> Vec<u8> {
    let pieces: Vec<_> = response.collect();
    assert!(pieces.len() > 2, "it is sent in pieces");
    for piece in &pieces {
        assert!((1..=PIECE).contains(&piece.len()), "{}", piece.len());
    }
    pieces.concat()
}

fn framed(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = (message.len() as u32).to_be_bytes();
    [&[0], &length[..], &message[..]].concat()
}

#[test]
fn pieces_of_delta_are_those_of_the_whole_response() {
    for by_name in [false, true] {
        let store = store();
        let mut session = Session::new(Bounds {
            names: MANY as usize,
            size: 1 << 20,
        });
        let of_all: Vec<_> = store.table(Kind::Address).iter().collect();
        let asked = match by_name {
            true => of_all.iter().map(|(name, _)| &***name).collect(),
            false => Vec::new(),
        };
        session
            .request(ask(type_url::ADDRESS, &asked), &store)
            .unwrap();
        let response = session.poll(&store).unwrap().expect("an answer");

        let resources = of_all.iter().map(|(name, one)| Resource {
            name: name.to_string(),
            version: one.version.to_string(),
            resource: Some(any(&store, name)),
            // Who asks for everything finds them in the resource.
            aliases: match by_name {
                true => one.aliases.clone(),
                false => Vec::new(),
            },
            ..Resource::default()
        });
        let whole = DeltaDiscoveryResponse {
            system_version_info: store.revision().to_string(),
            resources: resources.collect(),
            type_url: type_url::ADDRESS.to_owned(),
            nonce: "1".to_owned(),
            control_plane: control_plane(),
            ..DeltaDiscoveryResponse::default()
        };
        assert_eq!(sent(response), framed(&whole), "by name: {by_name}");
    }
}

#[test]
fn pieces_of_the_state_of_the_world_are_those_of_the_whole_response() {
    let store = store();
    let mut session = new_session();
    let request = DiscoveryRequest {
        type_url: type_url::ADDRESS.to_owned(),
        ..DiscoveryRequest::default()
    };
    session.world_request(request).unwrap();
    let response = session.world_poll(&store).unwrap().expect("an answer");
    let table = store.table(Kind::Address);
    let whole = DiscoveryResponse {
        version_info: store.revision().to_string(),
        resources: table.iter().map(|(name, _)| any(&store, name)).collect(),
        type_url: type_url::ADDRESS.to_owned(),
        nonce: "1".to_owned(),
        control_plane: control_plane(),
        ..DiscoveryResponse::default()
    };
    assert_eq!(sent(response), framed(&whole));
}

#[test]
fn a_response_is_of_one_state_whatever_changes_while_it_is_sent() {
    let mut store = store();
    let mut session = new_session();
    session
        .request(ask(type_url::ADDRESS, &[]), &store)
        .unwrap();
    let mut response = session.poll(&store).unwrap().expect("an answer");
    let before: Vec<_> = store
        .table(Kind::Address)
        .iter()
        .map(|(_, one)| one.version.to_string())
        .collect();
    let mut message = response.next().expect("a piece").to_vec();
    store.apply(pods("b"));
    message.extend(response.flatten());
    let response = DeltaDiscoveryResponse::decode(&message[5..]).unwrap();
    let versions: Vec<_> = response
        .resources
        .iter()
        .map(|one| one.version.clone())
        .collect();
    assert_eq!(versions, before);

    // What changed meanwhile is told next, though the first part was sent before and the rest after.
    let answer = DeltaDiscoveryRequest {
        type_url: type_url::ADDRESS.to_owned(),
        response_nonce: response.nonce,
        ..DeltaDiscoveryRequest::default()
    };
    session.request(answer, &store).unwrap();
    let next = session.told(&store).unwrap().expect("a change");
    assert_eq!(next.resources.len(), MANY as usize);
    assert!(
        next.resources
            .iter()
            .all(|one| !before.contains(&one.version))
    );
}

/// Clients that read slowly hold what the server has anyway, and who leaves holds nothing.
#[test]
fn a_response_that_waits_holds_no_copy_of_what_it_sends() {
    let mut store = store();
    let held = |store: &Store| {
        let (_, one) = store
            .table(Kind::Address)
            .get("c//Pod/ns/pod-01999")
            .expect("it is there");
        Arc::strong_count(&one.encoded)
    };
    let waiting: Vec<Outgoing> = (0..10)
        .map(|_| {
            let mut session = new_session();
            session
                .request(ask(type_url::ADDRESS, &[]), &store)
                .unwrap();
            let mut response = session.poll(&store).unwrap().expect("an answer");
            response.next().expect("a piece");
            response
        })
        .collect();
    assert_eq!(held(&store), 11, "one, shared by all");
    drop(waiting);
    assert_eq!(held(&store), 1);

    // What is sent is let go of before the response ends.
    let mut session = new_session();
    session
        .request(ask(type_url::ADDRESS, &[]), &store)
        .unwrap();
    let response = session.poll(&store).unwrap().expect("an answer");
    let first = Arc::downgrade(
        &store
            .table(Kind::Address)
            .get("c//Pod/ns/pod-00000")
            .expect("it is there")
            .1
            .encoded,
    );
    store.apply(pods("b"));
    assert!(first.upgrade().is_some(), "it is still to be sent");
    let mut response = response;
    response.next().expect("a piece");
    assert!(first.upgrade().is_none(), "it was sent, and is another now");
}

#[test]
fn of_many_changes_all_are_told_and_of_few_those() {
    for (some, revisions) in [(1, 0), (200, 0), (1, MANY), (200, MANY)] {
        let mut store = store();
        let mut session = new_session();
        session
            .request(ask(type_url::ADDRESS, &[]), &store)
            .unwrap();
        let first: DeltaDiscoveryResponse = read(session.poll(&store).unwrap().expect("an answer"));
        let changed = (0..some).map(|n| workload(n, 1).into());
        let gone = ResourceName::Workload("c//Pod/ns/pod-00007".into());
        store.apply(Batch::new(changed.collect(), vec![gone]));
        // Revisions alone are no changes of resources.
        (0..revisions).for_each(|_| store.settle());
        let answer = DeltaDiscoveryRequest {
            type_url: type_url::ADDRESS.to_owned(),
            response_nonce: first.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        session.request(answer, &store).unwrap();
        let next = session.told(&store).unwrap().expect("a change");
        assert_eq!(names(&next).len(), usize::from(some));
        assert_eq!(next.removed_resources, ["c//Pod/ns/pod-00007"]);
    }
}
