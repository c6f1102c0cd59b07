//! A response, read as its bytes come and never held as a whole.

use std::borrow::Cow;
use std::ops::Range;

use prost::Message;
use prost::bytes::{Bytes, BytesMut};

use super::state::Protocol;
use crate::decode::wire::Fields;
use crate::error::{Error, ErrorKind};
use crate::proto::envoy::service::discovery::v3;
use crate::proto::google::protobuf::Any;

/// The field of resources, in the responses of both protocols.
const RESOURCES: u64 = 2;

/// The fields of what is removed, in a response of delta.
const REMOVED: [u64; 2] = [6, 8];

impl Protocol {
    /// The field of what is wrong with resources, which nothing here asks: in memory each costs many times what it
    /// does on the wire.
    pub(super) fn errors(self) -> u64 {
        match self {
            Self::Delta => 9,
            Self::StateOfTheWorld => 7,
        }
    }
}

/// What is before the length of one.
pub(super) const RESOURCE: u64 = RESOURCES << 3 | 2;

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
pub(crate) struct Resource<'a> {
    /// Empty in the state of the world.
    pub(crate) name: Cow<'a, str>,
    pub(crate) version: Cow<'a, str>,
    pub(crate) aliases: Vec<Cow<'a, str>>,
    pub(crate) value: Option<Value<'a>>,
    /// How many bytes all of it has.
    pub(crate) length: usize,
}

/// A resource's `Any`.
pub(crate) struct Value<'a> {
    pub(crate) url: Cow<'a, str>,
    pub(crate) bytes: Cow<'a, [u8]>,
}

/// A response on its way: [`push`](Self::push), then all that is [`next`](Self::next), and in the end its
/// [`end`](Self::end).
pub(crate) struct Response {
    protocol: Protocol,
    /// How much of it is still to come.
    missing: usize,
    /// What came last, as far as it was not read.
    piece: Bytes,
    /// The beginning of a field whose end is still to come.
    partial: BytesMut,
    /// The fields that are no resources.
    head: Vec<u8>,
    /// How many of them remove one: in memory each costs many times what it does here.
    removed: usize,
}

impl Response {
    /// A response of this length.
    pub(crate) fn new(protocol: Protocol, length: usize) -> Self {
        Self {
            protocol,
            missing: length,
            piece: Bytes::new(),
            partial: BytesMut::new(),
            head: Vec::new(),
            removed: 0,
        }
    }

    /// More of it came. What came before was read.
    pub(crate) fn push(&mut self, piece: Bytes) {
        debug_assert!(self.piece.is_empty(), "one piece after the other");
        self.missing = self.missing.saturating_sub(piece.len());
        self.piece = piece;
    }

    /// The next resource of what came, to be [read](Resource::read).
    ///
    /// # Errors
    ///
    /// `Status`, if there is none where one should be.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let (field, bytes) = match self.partial.is_empty() {
                true if self.piece.is_empty() => return Ok(None),
                true => match Extent::of(&self.piece, self.missing)? {
                    Extent::Whole(field) => {
                        let bytes = self.piece.split_to(field.value.end);
                        (field, bytes)
                    }
                    Extent::AtLeast(_) => {
                        self.partial.extend_from_slice(&self.piece);
                        self.piece = Bytes::new();
                        return Ok(None);
                    }
                },
                false => match Extent::of(&self.partial, self.piece.len() + self.missing)? {
                    Extent::Whole(field) => (field, std::mem::take(&mut self.partial).freeze()),
                    Extent::AtLeast(_) if self.piece.is_empty() => return Ok(None),
                    Extent::AtLeast(length) => {
                        let more = length - self.partial.len();
                        let more = self.piece.split_to(more.min(self.piece.len()));
                        self.partial.extend_from_slice(&more);
                        continue;
                    }
                },
            };
            if field.number != RESOURCES {
                let is_delta = self.protocol == Protocol::Delta;
                self.removed += usize::from(is_delta && REMOVED.contains(&field.number));
                if field.number != self.protocol.errors() {
                    self.head.extend_from_slice(&bytes);
                }
            } else if field.has_length {
                return Ok(Some(bytes.slice(field.value)));
            } else {
                return Err(broken("resources: expected messages"));
            }
        }
    }

    /// Takes what was read beside resources, and what was not read of what came.
    pub(super) fn take(&mut self) -> (Vec<u8>, Bytes) {
        (
            std::mem::take(&mut self.head),
            std::mem::take(&mut self.piece),
        )
    }

    /// All but the resources, when all of it was read.
    ///
    /// # Errors
    ///
    /// `Status`, if it is no response; `TooLarge`, if it removes more than that.
    pub(crate) fn end(&self, max_removed: usize) -> Result<Head, Error> {
        if self.removed > max_removed {
            let removed = self.removed;
            let detail = format!(
                "a response: it removes {removed} resources, expected at most {max_removed}"
            );
            return Err(Error::new(ErrorKind::TooLarge, detail));
        }
        let head = match self.protocol {
            Protocol::Delta => v3::DeltaDiscoveryResponse::decode(&*self.head).map(Head::of_delta),
            Protocol::StateOfTheWorld => {
                v3::DiscoveryResponse::decode(&*self.head).map(Head::of_world)
            }
        };
        head.map_err(malformed)
    }
}

/// How far a field reaches that begins where bytes do.
enum Extent {
    Whole(Field),
    /// So many bytes, and there are fewer.
    AtLeast(usize),
}

struct Field {
    number: u64,
    has_length: bool,
    /// Where its value is.
    value: Range<usize>,
}

impl Extent {
    /// `beyond` says how many bytes there are behind these.
    fn of(bytes: &[u8], beyond: usize) -> Result<Self, Error> {
        let within = |length: usize| match length <= bytes.len().saturating_add(beyond) {
            true => Ok(Self::AtLeast(length)),
            false => Err(broken("expected a field that ends before it does")),
        };
        let Some((key, start)) = varint(bytes)? else {
            return within(bytes.len() + 1);
        };
        let (start, length) = match key & 7 {
            0 => match varint(&bytes[start..])? {
                Some((_, length)) => (start, Some(length)),
                None => return within(bytes.len() + 1),
            },
            1 => (start, Some(8)),
            2 => match varint(&bytes[start..])? {
                Some((length, own)) => (start + own, usize::try_from(length).ok()),
                None => return within(bytes.len() + 1),
            },
            5 => (start, Some(4)),
            _ => (start, None),
        };
        let end = length.and_then(|length| start.checked_add(length));
        let end = end.unwrap_or(usize::MAX);
        if end > bytes.len() {
            return within(end);
        }
        Ok(Self::Whole(Field {
            number: key >> 3,
            has_length: key & 7 == 2,
            value: start..end,
        }))
    }
}

/// A number and its length; `None` where its end is still to come.
fn varint(bytes: &[u8]) -> Result<Option<(u64, usize)>, Error> {
    match bytes.iter().take(10).position(|byte| *byte < 0x80) {
        None if bytes.len() < 10 => Ok(None),
        last => {
            let length = last.map_or(10, |last| last + 1);
            let number = prost::encoding::decode_varint(&mut &bytes[..length]);
            Ok(Some((number.map_err(malformed)?, length)))
        }
    }
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

impl<'a> Resource<'a> {
    /// Of one of more than `max` bytes nothing but its name and value is read.
    ///
    /// # Errors
    ///
    /// `Status`, if it is none.
    pub(crate) fn read(protocol: Protocol, bytes: &'a [u8], max: usize) -> Result<Self, Error> {
        if protocol == Protocol::Delta && bytes.len() > max {
            return Ok(Self::too_large(bytes));
        }
        let length = bytes.len();
        let usual = match protocol {
            Protocol::Delta => Self::usual(bytes),
            Protocol::StateOfTheWorld => Value::usual(bytes).map(Self::of_world),
        };
        if let Some(resource) = usual {
            return Ok(Self { length, ..resource });
        }
        let unusual = match protocol {
            Protocol::Delta => v3::Resource::decode(bytes).map(Self::of_delta),
            Protocol::StateOfTheWorld => {
                Any::decode(bytes).map(|value| Self::of_world(Value::of(value)))
            }
        };
        let unusual = unusual.map_err(malformed)?;
        Ok(Self { length, ..unusual })
    }

    /// What one that is refused is refused as, as far as it says: the rest takes more memory than it has bytes.
    fn too_large(bytes: &'a [u8]) -> Self {
        let mut fields = Fields::new(bytes);
        let mut resource = Self {
            name: Cow::default(),
            version: Cow::default(),
            aliases: Vec::new(),
            value: None,
            length: bytes.len(),
        };
        while let Some(field) = fields.next() {
            match field.number {
                2 => resource.value = field.bytes().and_then(Value::usual),
                3 => resource.name = field.text().unwrap_or_default().into(),
                _ => {}
            }
        }
        resource
    }

    /// One of the fields that most have, each at most once, without a copy.
    fn usual(bytes: &'a [u8]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        let (mut name, mut version, mut value) = (None, None, None);
        let mut aliases = Vec::new();
        while !fields.is_empty() {
            let field = fields.next()?;
            match field.number {
                1 if version.is_none() => version = Some(field.text()?.into()),
                2 if value.is_none() => value = Some(Value::usual(field.bytes()?)?),
                3 if name.is_none() => name = Some(field.text()?.into()),
                4 => aliases.push(field.text()?.into()),
                _ => return None,
            }
        }
        Some(Self {
            name: name.unwrap_or_default(),
            version: version.unwrap_or_default(),
            aliases,
            value,
            length: bytes.len(),
        })
    }

    fn of_delta(resource: v3::Resource) -> Self {
        Self {
            name: resource.name.into(),
            version: resource.version.into(),
            aliases: resource.aliases.into_iter().map(Cow::from).collect(),
            value: resource.resource.map(Value::of),
            length: 0,
        }
    }

    fn of_world(value: Value<'a>) -> Self {
        Self {
            name: Cow::default(),
            version: Cow::default(),
            aliases: Vec::new(),
            value: Some(value),
            length: 0,
        }
    }
}

impl<'a> Value<'a> {
    fn usual(bytes: &'a [u8]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        let (mut url, mut value) = (None, None);
        while !fields.is_empty() {
            let field = fields.next()?;
            match field.number {
                1 if url.is_none() => url = Some(field.text()?.into()),
                2 if value.is_none() => value = Some(field.bytes()?.into()),
                _ => return None,
            }
        }
        Some(Self {
            url: url.unwrap_or_default(),
            bytes: value.unwrap_or_default(),
        })
    }

    fn of(value: Any) -> Self {
        Self {
            url: value.type_url.into(),
            bytes: value.value.to_vec().into(),
        }
    }
}
