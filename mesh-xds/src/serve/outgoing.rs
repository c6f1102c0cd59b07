//! Responses as bytes: those of a resource are made once for all clients, those of a response while it is sent.

use std::ops::Range;
use std::sync::Arc;
use std::vec;

use bytes::Bytes;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use crate::proto::envoy::config::core::v3::ControlPlane;
use crate::proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};

/// Of this size, in bytes, the pieces of a response are, or larger by one resource.
const PIECE: usize = 64 * 1024;

/// The field of resources, in the responses of both protocols.
const RESOURCES: u32 = 2;

/// gRPC's flag and length before a message.
const HEADER: usize = 5;

/// A resource as the clients of both protocols are sent it.
pub(super) struct Encoded {
    /// A `Resource`, whose aliases are its end.
    resource: Box<[u8]>,
    /// The `Any` in it.
    any: Range<usize>,
    /// Where its aliases begin.
    aliases: usize,
}

impl Encoded {
    pub(super) fn new(
        url: &str,
        name: &str,
        version: &str,
        value: &[u8],
        aliases: &[String],
    ) -> Self {
        let any = length(1, url.as_bytes()) + length(2, value);
        let own = length(1, version.as_bytes()) + framed(2, any) + length(3, name.as_bytes());
        let others = aliases.iter().map(|alias| framed(4, alias.len()));
        let mut resource = Vec::with_capacity(own + others.sum::<usize>());
        put(&mut resource, 1, version.as_bytes());
        begin(&mut resource, 2, any);
        let start = resource.len();
        put(&mut resource, 1, url.as_bytes());
        put(&mut resource, 2, value);
        let any = start..resource.len();
        put(&mut resource, 3, name.as_bytes());
        let bare = resource.len();
        for alias in aliases {
            begin(&mut resource, 4, alias.len());
            resource.extend_from_slice(alias.as_bytes());
        }
        Self {
            resource: resource.into_boxed_slice(),
            any,
            aliases: bare,
        }
    }

    /// The value of its `Any`.
    #[cfg(test)]
    pub(super) fn value(&self) -> Bytes {
        let any = crate::proto::google::protobuf::Any::decode(&self.resource[self.any.clone()]);
        any.expect("an Any").value
    }

    /// How many bytes it has, with its aliases.
    pub(super) fn len(&self) -> usize {
        self.resource.len()
    }

    fn part(&self, form: Form) -> &[u8] {
        match form {
            Form::World => &self.resource[self.any.clone()],
            Form::Delta => &self.resource[..self.aliases],
            Form::DeltaWithAliases => &self.resource,
        }
    }
}

impl PartialEq for Encoded {
    fn eq(&self, other: &Self) -> bool {
        self.resource == other.resource
    }
}

impl std::fmt::Debug for Encoded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoded")
            .field("length", &self.resource.len())
            .finish_non_exhaustive()
    }
}

/// What of a resource is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    World,
    Delta,
    DeltaWithAliases,
}

/// A response that is sent, piece by piece. Until then its resources are those of the server, or what they were when it
/// was made.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// What is before the resources, with gRPC's header; empty once it was sent.
    head: Vec<u8>,
    resources: vec::IntoIter<Arc<Encoded>>,
    form: Form,
    /// What is behind them.
    tail: Vec<u8>,
    /// How much of it was not sent.
    length: usize,
}

/// A response is larger than gRPC can say, which is 4 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLarge;

impl Outgoing {
    /// A response of delta, of these resources, and of what is in `rest`.
    pub(super) fn delta(
        mut rest: DeltaDiscoveryResponse,
        resources: Vec<Arc<Encoded>>,
        with_aliases: bool,
    ) -> Result<Self, TooLarge> {
        let head = DeltaDiscoveryResponse {
            system_version_info: std::mem::take(&mut rest.system_version_info),
            ..DeltaDiscoveryResponse::default()
        };
        rest.control_plane = Some(control_plane());
        let form = match with_aliases {
            true => Form::DeltaWithAliases,
            false => Form::Delta,
        };
        Self::new(&head, resources, form, &rest)
    }

    /// The same of the state of the world.
    pub(super) fn world(
        mut rest: DiscoveryResponse,
        resources: Vec<Arc<Encoded>>,
    ) -> Result<Self, TooLarge> {
        let head = DiscoveryResponse {
            version_info: std::mem::take(&mut rest.version_info),
            ..DiscoveryResponse::default()
        };
        rest.control_plane = Some(control_plane());
        Self::new(&head, resources, Form::World, &rest)
    }

    fn new(
        first: &impl Message,
        resources: Vec<Arc<Encoded>>,
        form: Form,
        last: &impl Message,
    ) -> Result<Self, TooLarge> {
        let of = |one: &Arc<Encoded>| framed(RESOURCES, one.part(form).len());
        let tail = last.encode_to_vec();
        let length = first.encoded_len() + resources.iter().map(of).sum::<usize>() + tail.len();
        let mut head = Vec::with_capacity(HEADER + first.encoded_len());
        head.push(0);
        head.extend_from_slice(&u32::try_from(length).map_err(|_| TooLarge)?.to_be_bytes());
        head.extend_from_slice(&first.encode_to_vec());
        Ok(Self {
            head,
            resources: resources.into_iter(),
            form,
            tail,
            length: HEADER + length,
        })
    }
}

impl Iterator for Outgoing {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.length == 0 {
            return None;
        }
        let mut piece = Vec::with_capacity(self.length.min(PIECE));
        piece.append(&mut self.head);
        while piece.len() < PIECE
            && let Some(one) = self.resources.next()
        {
            let part = one.part(self.form);
            begin(&mut piece, RESOURCES, part.len());
            piece.extend_from_slice(part);
        }
        if self.resources.as_slice().is_empty() {
            piece.append(&mut self.tail);
        }
        self.length -= piece.len();
        Some(piece.into())
    }
}

fn control_plane() -> ControlPlane {
    ControlPlane {
        identifier: concat!("mesh-xds/", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

/// A field's key and the length of its value.
fn begin(buffer: &mut Vec<u8>, number: u32, length: usize) {
    encode_key(number, WireType::LengthDelimited, buffer);
    encode_varint(length as u64, buffer);
}

/// A field, where it is not empty, which is its default.
fn put(buffer: &mut Vec<u8>, number: u32, value: &[u8]) {
    if !value.is_empty() {
        begin(buffer, number, value.len());
        buffer.extend_from_slice(value);
    }
}

/// How long a field is whose value has this length.
fn framed(number: u32, value: usize) -> usize {
    key_len(number) + encoded_len_varint(value as u64) + value
}

/// How long a field is, where it is not empty.
fn length(number: u32, value: &[u8]) -> usize {
    match value.len() {
        0 => 0,
        length => framed(number, length),
    }
}
