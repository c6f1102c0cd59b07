//! A response, taken apart without decoding it as a whole.

use std::ops::Range;

use prost::Message;
use prost::bytes::Bytes;

use super::state::Protocol;
use crate::error::{Error, ErrorKind};
use crate::proto::envoy::service::discovery::v3;
use crate::proto::google::protobuf::Any;

/// The field of resources, in the responses of both protocols.
const RESOURCES: u64 = 2;

/// All of a response but its resources.
#[derive(Debug, Default)]
pub(crate) struct Head {
    pub(crate) url: String,
    pub(crate) nonce: String,
    /// State of the world: that of the response.
    pub(crate) version: String,
    pub(crate) removed: Vec<String>,
}

/// A resource of either protocol.
pub(crate) struct Resource {
    /// Empty in the state of the world.
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) aliases: Vec<String>,
    pub(crate) value: Option<Any>,
}

/// The bytes of a response, whose resources are decoded one by one.
pub(crate) struct Response {
    protocol: Protocol,
    message: Bytes,
    /// How much of it has been looked at.
    at: usize,
}

impl Response {
    /// # Errors
    ///
    /// `Status`, if it is no response.
    pub(crate) fn read(protocol: Protocol, message: Bytes) -> Result<(Head, Self), Error> {
        let (mut head, mut at) = (Vec::new(), 0);
        while at < message.len() {
            let field = field(&message, at)?;
            if field.number != RESOURCES {
                head.extend_from_slice(&message[at..field.value.end]);
            }
            at = field.value.end;
        }
        let head = match protocol {
            Protocol::Delta => v3::DeltaDiscoveryResponse::decode(&*head).map(Head::of_delta),
            Protocol::StateOfTheWorld => v3::DiscoveryResponse::decode(&*head).map(Head::of_world),
        };
        let response = Self {
            protocol,
            message,
            at: 0,
        };
        Ok((head.map_err(malformed)?, response))
    }

    /// The next resource.
    ///
    /// # Errors
    ///
    /// `Status`, if it is none.
    pub(crate) fn next(&mut self) -> Result<Option<Resource>, Error> {
        while self.at < self.message.len() {
            let field = field(&self.message, self.at)?;
            self.at = field.value.end;
            if field.number != RESOURCES {
                continue;
            }
            if !field.has_length {
                return Err(broken("resources: expected messages"));
            }
            let value = self.message.slice(field.value);
            let resource = match self.protocol {
                Protocol::Delta => v3::Resource::decode(value).map(Resource::of_delta),
                Protocol::StateOfTheWorld => Any::decode(value).map(Resource::of_world),
            };
            return resource.map(Some).map_err(malformed);
        }
        Ok(None)
    }
}

struct Field {
    number: u64,
    has_length: bool,
    /// Where its value is.
    value: Range<usize>,
}

fn field(message: &[u8], at: usize) -> Result<Field, Error> {
    let mut rest = &message[at..];
    let key = varint(&mut rest)?;
    let kind = key & 7;
    let length = match kind {
        0 => {
            let start = rest.len();
            let mut after = rest;
            varint(&mut after)?;
            Some(start - after.len())
        }
        1 => Some(8),
        2 => usize::try_from(varint(&mut rest)?).ok(),
        5 => Some(4),
        _ => None,
    };
    let length = length.filter(|length| *length <= rest.len());
    let length = length.ok_or_else(|| broken("expected a field that ends before it does"))?;
    let start = message.len() - rest.len();
    Ok(Field {
        number: key >> 3,
        has_length: kind == 2,
        value: start..start + length,
    })
}

fn varint(slice: &mut &[u8]) -> Result<u64, Error> {
    prost::encoding::decode_varint(slice).map_err(malformed)
}

fn malformed(error: prost::DecodeError) -> Error {
    broken("it is none").with_source(error)
}

fn broken(what: &str) -> Error {
    Error::new(ErrorKind::Status, format!("a response: {what}"))
}

impl Head {
    fn of_delta(response: v3::DeltaDiscoveryResponse) -> Self {
        let mut removed = response.removed_resources;
        let names = response.removed_resource_names.into_iter();
        removed.extend(names.map(|name| name.name));
        Self {
            url: response.type_url,
            nonce: response.nonce,
            version: String::new(),
            removed,
        }
    }

    fn of_world(response: v3::DiscoveryResponse) -> Self {
        Self {
            url: response.type_url,
            nonce: response.nonce,
            version: response.version_info,
            removed: Vec::new(),
        }
    }
}

impl Resource {
    fn of_delta(resource: v3::Resource) -> Self {
        Self {
            name: resource.name,
            version: resource.version,
            aliases: resource.aliases,
            value: resource.resource,
        }
    }

    fn of_world(value: Any) -> Self {
        Self {
            name: String::new(),
            version: String::new(),
            aliases: Vec::new(),
            value: Some(value),
        }
    }
}
