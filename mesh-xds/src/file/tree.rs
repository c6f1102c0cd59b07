//! A YAML document as a tree of which every node knows its line.

use std::fmt;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::problem::Invalid;

/// A value and the line it stands on; an alias stands where it is used.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) line: u32,
    pub(crate) value: Value,
}

/// What a node holds.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Unsigned(u64),
    Negative(i64),
    Float,
    Text(Arc<str>),
    List(Vec<Node>),
    Map(Vec<(Arc<str>, Node)>),
}

impl Value {
    /// What it is, for a message that says what was found.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Unsigned(_) | Self::Negative(_) | Self::Float => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

/// Reads all documents of a file; empty ones are left out. JSON is read too, being YAML.
///
/// What one file may hold is bounded by `max_nodes`; nesting is bounded to 64 levels, and what
/// aliases repeat to one million events.
pub(crate) fn parse(text: &str, max_nodes: usize) -> Result<Vec<Node>, Invalid> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        // YAML 1.2: only true and false; a name such as `no` or `y` is a name.
        strict_booleans: true,
        budget: serde_saphyr::budget! {
            max_nodes: max_nodes,
            max_events: max_nodes.saturating_mul(3),
            max_documents: max_nodes,
            max_depth: 64,
        },
    };
    serde_saphyr::from_multiple_with_options::<Node>(text, options).map_err(|error| {
        let line = error.location().map_or(1, |at| narrow(at.line()));
        // The parser repeats its own position at the end; ours is in front.
        let message = error.without_snippet().to_string();
        let message = message.lines().next().unwrap_or_default();
        Invalid::new(line, String::new(), message.to_owned())
    })
}

fn narrow(line: u64) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self {
            line: narrow(spanned.referenced.line()),
            value: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Unsigned(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(u64::try_from(value).map_or(Value::Negative(value), Value::Unsigned))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Float)
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = entries.next_key::<String>()? {
            map.push((key.into(), entries.next_value()?));
        }
        Ok(Value::Map(map))
    }
}

impl Node {
    /// The line of the field at a path as [`Cursor::field`](super::cursor::Cursor::field) writes it, or
    /// of the nearest field above it that exists.
    pub(crate) fn line_of(&self, path: &str) -> u32 {
        let mut node = self;
        for step in path.split(['.', '[']) {
            let step = step.trim_end_matches(']');
            let next = match &node.value {
                Value::List(items) => step.parse().ok().and_then(|at: usize| items.get(at)),
                Value::Map(entries) => entries
                    .iter()
                    .find(|(key, _)| **key == *step)
                    .map(|(_, node)| node),
                _ => None,
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node.line
    }
}
