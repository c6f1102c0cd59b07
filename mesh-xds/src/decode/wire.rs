//! The usual fields of protobuf, read where they are. What is not usual is `None`, and left to prost.

use std::net::IpAddr;

use super::field::Field;

/// What is left of a message.
pub(crate) struct Fields<'a>(&'a [u8]);

/// A field as it is on the wire.
pub(crate) struct FieldBytes<'a> {
    pub(crate) number: u64,
    wire_type: u8,
    value: &'a [u8],
    /// With its key.
    pub(crate) whole: &'a [u8],
}

pub(crate) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Fields<'a> {
    pub(crate) fn new(message: &'a [u8]) -> Self {
        Self(message)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next field; `None` where it is of a kind that is not usual.
    pub(crate) fn next(&mut self) -> Option<FieldBytes<'a>> {
        let start = self.0;
        let key = self.varint()?;
        let wire_type = (key & 7) as u8;
        let rest = self.0;
        let value = match wire_type {
            0 => {
                self.varint()?;
                &rest[..rest.len() - self.0.len()]
            }
            1 => self.take(8)?,
            2 => {
                let length = self.varint()?;
                self.take(usize::try_from(length).ok()?)?
            }
            5 => self.take(4)?,
            _ => return None,
        };
        Some(FieldBytes {
            number: key >> 3,
            wire_type,
            value,
            whole: &start[..start.len() - self.0.len()],
        })
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in 0..9 {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << (7 * shift);
            if *byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

impl<'a> FieldBytes<'a> {
    pub(crate) fn read(&self) -> Option<(u64, Value<'a>)> {
        let value = match self.wire_type {
            0 => Value::Number(Fields(self.value).varint()?),
            2 => Value::Bytes(self.value),
            _ => return None,
        };
        Some((self.number, value))
    }

    pub(crate) fn text(&self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    pub(crate) fn bytes(&self) -> Option<&'a [u8]> {
        match self.read()?.1 {
            Value::Bytes(bytes) => Some(bytes),
            Value::Number(_) => None,
        }
    }

    pub(crate) fn ip(&self) -> Option<IpAddr> {
        Field::root("addresses").ip(self.bytes()?).ok()
    }
}
