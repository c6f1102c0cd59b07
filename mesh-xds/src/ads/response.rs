//! A response, read as its bytes come and never held as a whole.

use std::borrow::Cow;
use std::ops::Range;

use prost::Message;
use prost::bytes::{Buf, Bytes, BytesMut};

use super::settings::MAX_NAME;
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
    /// The fields that say what the response is: its type and nonce, and the version of the world.
    fn said(self) -> &'static [u64] {
        match self {
            Self::Delta => &[4, 5],
            Self::StateOfTheWorld => &[1, 4, 5],
        }
    }

    fn removes(self, number: u64) -> bool {
        self == Self::Delta && REMOVED.contains(&number)
    }

    /// Whether nobody reads a field of this number and length, whatever is in it: it is not held.
    ///
    /// # Errors
    ///
    /// `TooLarge`, if it says what the response is and is too long for that.
    pub(super) fn passes_over(self, number: u64, length: usize) -> Result<bool, Error> {
        if number == RESOURCES {
            return Ok(false);
        }
        if self.said().contains(&number) {
            if length > MAX_SAID {
                let detail = format!(
                    "a response: field {number} has {length} bytes, expected at most {MAX_SAID}"
                );
                return Err(Error::new(ErrorKind::TooLarge, detail));
            }
            return Ok(false);
        }
        // Nothing that is here has a longer name.
        Ok(!self.removes(number) || length > MAX_SAID)
    }
}

/// A field of a type, nonce, version or removed name that is longer says none: twice the longest name.
pub(super) const MAX_SAID: usize = 2 * MAX_NAME;

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
    /// How much is still to come of a field that nobody reads.
    skipping: usize,
    /// The fields that are no resources and are read.
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
            skipping: 0,
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
    /// `Status`, if there is none where one should be; `TooLarge`, if its type, nonce or version is none by its length.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let skipped = self.skipping.min(self.piece.len());
            self.piece.advance(skipped);
            self.skipping -= skipped;
            let (field, bytes) = match self.partial.is_empty() {
                true if self.piece.is_empty() => return Ok(None),
                true => match Extent::of(&self.piece, self.missing)? {
                    Extent::Whole(field) => {
                        let bytes = self.piece.split_to(field.value.end);
                        (field, bytes)
                    }
                    Extent::AtLeast(length, number) => {
                        if self.is_needless(number, length)? {
                            self.skipping = length - self.piece.len();
                        } else {
                            self.partial.extend_from_slice(&self.piece);
                        }
                        self.piece = Bytes::new();
                        return Ok(None);
                    }
                },
                false => match Extent::of(&self.partial, self.piece.len() + self.missing)? {
                    Extent::Whole(field) => (field, std::mem::take(&mut self.partial).freeze()),
                    Extent::AtLeast(length, number) if self.is_needless(number, length)? => {
                        self.skipping = length - self.partial.len();
                        self.partial = BytesMut::new();
                        continue;
                    }
                    Extent::AtLeast(..) if self.piece.is_empty() => return Ok(None),
                    Extent::AtLeast(length, _) => {
                        let more = length - self.partial.len();
                        let more = self.piece.split_to(more.min(self.piece.len()));
                        self.partial.extend_from_slice(&more);
                        continue;
                    }
                },
            };
            if field.number != RESOURCES {
                if !self.is_needless(Some(field.number), bytes.len())? {
                    self.removed += usize::from(self.protocol.removes(field.number));
                    self.head.extend_from_slice(&bytes);
                }
            } else if field.has_length {
                return Ok(Some(bytes.slice(field.value)));
            } else {
                return Err(broken("resources: expected messages"));
            }
        }
    }

    /// As [`Protocol::passes_over`], as far as the number is known.
    fn is_needless(&self, number: Option<u64>, length: usize) -> Result<bool, Error> {
        number.map_or(Ok(false), |number| {
            self.protocol.passes_over(number, length)
        })
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
    /// So many bytes, and there are fewer; with the field's number, if that and its length are known.
    AtLeast(usize, Option<u64>),
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
        let within = |length: usize, number| match length <= bytes.len().saturating_add(beyond) {
            true => Ok(Self::AtLeast(length, number)),
            false => Err(broken("expected a field that ends before it does")),
        };
        let Some((key, start)) = varint(bytes)? else {
            return within(bytes.len() + 1, None);
        };
        let (start, length) = match key & 7 {
            0 => match varint(&bytes[start..])? {
                Some((_, length)) => (start, Some(length)),
                None => return within(bytes.len() + 1, None),
            },
            1 => (start, Some(8)),
            2 => match varint(&bytes[start..])? {
                Some((length, own)) => (start + own, usize::try_from(length).ok()),
                None => return within(bytes.len() + 1, None),
            },
            5 => (start, Some(4)),
            _ => (start, None),
        };
        let end = length.and_then(|length| start.checked_add(length));
        let end = end.unwrap_or(usize::MAX);
        if end > bytes.len() {
            return within(end, Some(key >> 3));
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
