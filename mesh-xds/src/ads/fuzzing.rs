//! What bytes of a control plane do to a session, for the fuzz targets. No part of the interface.

use std::sync::Arc;

use prost::Message;
use prost::bytes::Bytes;
use tokio::time::Instant;

use super::reading::Reading;
use super::response::{MAX_SAID, Resource, Response};
use super::state::{Outgoing, Protocol, Session};
use super::{Interest, Node, Settings};
use crate::decode::wire::Fields;
use crate::decode::{Decoder, ResourceType};
use crate::model::Update;
use crate::proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use crate::{Error, ErrorKind};

/// A session that asks for everything, on a stream of this protocol.
fn session(protocol: Protocol) -> Option<Session> {
    let types = ResourceType::ALL.into_iter();
    let settings = types.fold(Settings::new(Node::new("a")), |settings, kind| {
        settings.with_type(kind.url(), Interest::All)
    });
    let now = Instant::now();
    let mut session = Session::new(settings, Arc::new(Decoder::new()), now).ok()?;
    if protocol == Protocol::StateOfTheWorld {
        assert!(session.poll_connect(now).is_some());
        session.closed(Some(ErrorKind::Unimplemented), now);
    }
    assert_eq!(session.poll_connect(now), Some(protocol));
    session.opened();
    while session.poll_transmit().is_some() {}
    Some(session)
}

/// A response of any kind is answered once, in few words, and what it brought is here.
pub fn response(data: &[u8]) {
    let Ok(response) = DeltaDiscoveryResponse::decode(Bytes::copy_from_slice(data)) else {
        return;
    };
    let Some(mut session) = session(Protocol::Delta) else {
        return;
    };
    for _ in 0..2 {
        let message = Bytes::copy_from_slice(data);
        if session.receive(Protocol::Delta, message).is_err() {
            let is_long = data.len() > MAX_SAID;
            assert!(has_group(data) || is_long, "prost reads it");
            return;
        }
        session.judged([]);
        let Some(Outgoing::Delta(reply)) = session.poll_transmit() else {
            panic!("every response is answered");
        };
        assert_eq!(reply.type_url, response.type_url);
        assert_eq!(reply.response_nonce, response.nonce);
        let refusal = reply.error_detail.map(|status| status.message);
        assert!(refusal.is_none_or(|text| text.len() <= 1024));
        assert!(session.poll_transmit().is_none(), "once");
    }
}

/// Whether one of its fields is a group, which prost skips and nobody sends: here they are an error.
fn has_group(message: &[u8]) -> bool {
    let mut fields = Fields::new(message);
    let mut rest = message;
    while let Some(field) = fields.next() {
        rest = &rest[field.whole.len()..];
    }
    rest.first().is_some_and(|key| matches!(key & 7, 3 | 4))
}

/// Two responses that come in pieces are what they are as a whole, to prost and to a session.
///
/// The first byte says of which protocol they are, whether they are read as they come or gathered, and how much is
/// read at once; the second where they are cut, and the third where the second begins.
pub fn pieces(data: &[u8]) {
    let Some((&[shape, seed, split], messages)) = data.split_first_chunk() else {
        return;
    };
    let protocol = match shape & 1 {
        0 => Protocol::Delta,
        _ => Protocol::StateOfTheWorld,
    };
    let cuts = Cuts {
        seed: u64::from(seed) + 1,
        // Up to one byte at a time, up to all that there is.
        longest: 1 << (seed % 12),
        is_gathered: shape & 2 == 0,
        room: usize::from(shape >> 4) + 1,
        is_handed_over: shape & 4 == 0,
    };
    let (Some(mut whole), Some(mut torn)) = (session(protocol), session(protocol)) else {
        return;
    };
    let (first, second) = messages.split_at(messages.len() * usize::from(split) / 256);
    for message in [first, second] {
        read_as_by_prost(protocol, message, &cuts);
        if !received_as_whole(protocol, message, &cuts, &mut whole, &mut torn) {
            return;
        }
    }
    // What the next stream says is here.
    for session in [&mut whole, &mut torn] {
        let later = Instant::now() + std::time::Duration::from_secs(3600);
        session.closed(None, later);
        let again = session
            .poll_timeout()
            .and_then(|at| session.poll_connect(at));
        assert!(again.is_some());
        session.opened();
    }
    assert_eq!(all(&mut whole), all(&mut torn));
}

fn all(session: &mut Session) -> Vec<Outgoing> {
    std::iter::from_fn(|| session.poll_transmit()).collect()
}

struct Cuts {
    seed: u64,
    longest: usize,
    is_gathered: bool,
    room: usize,
    is_handed_over: bool,
}

impl Cuts {
    /// The pieces of a message.
    fn of(&self, message: &[u8]) -> impl Iterator<Item = Bytes> + use<> {
        let (mut rest, mut state, longest) =
            (Bytes::copy_from_slice(message), self.seed, self.longest);
        std::iter::from_fn(move || {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let length = (state as usize % longest + 1).min(rest.len());
            (length > 0).then(|| rest.split_to(length))
        })
    }

    fn read(
        &self,
        protocol: Protocol,
        message: &[u8],
        session: &mut Session,
    ) -> Result<Brought, Error> {
        let small = if self.is_gathered { usize::MAX } else { 0 };
        let mut reading = Reading::gathering(protocol, message.len(), small);
        let mut updates = Vec::new();
        let mut read = || {
            for piece in self.of(message) {
                reading.push(piece);
                while !reading.read(session, &mut { self.room })? {
                    if self.is_handed_over {
                        updates.extend(reading.take());
                    }
                }
            }
            reading.end(session)
        };
        match read() {
            Ok((_, mut delivery)) => {
                updates.append(&mut delivery.updates);
                Ok(Brought::new(updates, &delivery.removed))
            }
            Err(error) => {
                reading.cancel(session);
                Err(error)
            }
        }
    }
}

/// What a response brought.
#[derive(Debug, PartialEq)]
struct Brought {
    updates: Vec<Update>,
    /// In no order.
    removed: Vec<String>,
}

impl Brought {
    fn new(updates: Vec<Update>, removed: &[crate::model::ResourceName]) -> Self {
        let mut removed: Vec<_> = removed.iter().map(ToString::to_string).collect();
        removed.sort();
        Self { updates, removed }
    }
}

/// Whether the sessions can be compared after it.
fn received_as_whole(
    protocol: Protocol,
    message: &[u8],
    cuts: &Cuts,
    whole: &mut Session,
    torn: &mut Session,
) -> bool {
    let received = whole.receive(protocol, Bytes::copy_from_slice(message));
    let received = received.map(|delivery| Brought::new(delivery.updates, &delivery.removed));
    let read = cuts.read(protocol, message, torn);
    if !cuts.is_gathered && is_of_two_types(protocol, message) {
        // What the first is would be decoded before the response says what it is of.
        assert!(read.is_err());
        return false;
    }
    match (received, read) {
        (Ok(received), Ok(read)) => assert_eq!(received, read),
        (Err(whole), Err(torn)) if cuts.is_gathered => {
            assert_eq!(whole.to_string(), torn.to_string());
        }
        (Err(_), Err(_)) => {}
        (received, read) => panic!("as a whole {received:?}, in pieces {read:?}"),
    }
    whole.judged([]);
    torn.judged([]);
    assert_eq!(whole.take_refused(), torn.take_refused());
    assert_eq!(all(whole), all(torn));
    true
}

/// Whether its first resource is of another type than it says, which is one that is asked for.
fn is_of_two_types(protocol: Protocol, message: &[u8]) -> bool {
    let message = without_needless(protocol, message);
    let (url, first) = match protocol {
        Protocol::Delta => {
            let Ok(response) = DeltaDiscoveryResponse::decode(&*message) else {
                return false;
            };
            let first = response.resources.into_iter().next();
            (response.type_url, first.and_then(|first| first.resource))
        }
        Protocol::StateOfTheWorld => {
            let Ok(response) = DiscoveryResponse::decode(&*message) else {
                return false;
            };
            (response.type_url, response.resources.into_iter().next())
        }
    };
    first.is_some_and(|first| {
        first.type_url != url && ResourceType::from_url(&first.type_url).is_some()
    })
}

/// A resource: its name, its version, its other names, its type and its value.
type Read = (String, String, Vec<String>, Option<(String, Vec<u8>)>);

/// A response: its type, its nonce, its version, what it removes, and its resources.
type Whole = (String, String, String, Vec<String>, Vec<Read>);

/// Without what nobody reads, as far as its fields are usual.
fn without_needless(protocol: Protocol, message: &[u8]) -> Vec<u8> {
    let mut without = Vec::with_capacity(message.len());
    let mut rest = message;
    let mut fields = Fields::new(message);
    while let Some(field) = fields.next() {
        let passed = protocol.passes_over(field.number, field.whole.len());
        if !matches!(passed, Ok(true)) {
            without.extend_from_slice(field.whole);
        }
        rest = &rest[field.whole.len()..];
    }
    without.extend_from_slice(rest);
    without
}

fn read_as_by_prost(protocol: Protocol, message: &[u8], cuts: &Cuts) {
    let expected = without_needless(protocol, message);
    let expected = match protocol {
        Protocol::Delta => DeltaDiscoveryResponse::decode(&*expected).map(of_delta),
        Protocol::StateOfTheWorld => DiscoveryResponse::decode(&*expected).map(of_world),
    };
    match (expected, in_pieces(protocol, message, cuts)) {
        (Ok(expected), Ok(read)) => assert_eq!(expected, read),
        (Err(_), Err(_)) => {}
        (Ok(_), Err(_)) if has_group(message) => {}
        (Ok(_), Err(error)) if error.kind() == ErrorKind::TooLarge => {}
        (Err(_), Ok(_)) if !is_usual(message) => {}
        (expected, read) => panic!("prost {expected:?}, in pieces {read:?}"),
    }
}

/// Whether its fields are such as are written: else what prost does not like may be in what nobody reads.
fn is_usual(message: &[u8]) -> bool {
    let mut fields = Fields::new(message);
    while fields.next().is_some() {}
    fields.is_empty()
}

fn in_pieces(protocol: Protocol, message: &[u8], cuts: &Cuts) -> Result<Whole, Error> {
    let mut response = Response::new(protocol, message.len());
    let mut resources = Vec::new();
    for piece in cuts.of(message) {
        response.push(piece);
        while let Some(bytes) = response.next()? {
            let Resource {
                name,
                version,
                aliases,
                value,
                length,
            } = Resource::read(protocol, &bytes, usize::MAX)?;
            assert_eq!(length, bytes.len());
            let value = value.map(|value| (value.url.into_owned(), value.bytes.into_owned()));
            let aliases = aliases.into_iter().map(|alias| alias.into_owned());
            resources.push((
                name.into_owned(),
                version.into_owned(),
                aliases.collect(),
                value,
            ));
        }
    }
    let head = response.end(usize::MAX)?;
    Ok((head.url, head.nonce, head.version, head.removed, resources))
}

fn of_delta(response: DeltaDiscoveryResponse) -> Whole {
    let mut removed = response.removed_resources;
    let names = response.removed_resource_names.into_iter();
    removed.extend(names.map(|name| name.name));
    let resources = response.resources.into_iter().map(|resource| {
        let value = resource.resource;
        let value = value.map(|value| (value.type_url, value.value.to_vec()));
        (resource.name, resource.version, resource.aliases, value)
    });
    let resources = resources.collect();
    (
        response.type_url,
        response.nonce,
        String::new(),
        removed,
        resources,
    )
}

fn of_world(response: DiscoveryResponse) -> Whole {
    let resources = response.resources.into_iter().map(|value| {
        let value = Some((value.type_url, value.value.to_vec()));
        (String::new(), String::new(), Vec::new(), value)
    });
    let resources = resources.collect();
    (
        response.type_url,
        response.nonce,
        response.version_info,
        Vec::new(),
        resources,
    )
}
