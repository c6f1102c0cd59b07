//! A YAML document as a tree of which every node knows its line.

use std::fmt;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Spanned, Tagged};

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

/// Cuts a file into its documents, each with the number of lines before it.
///
/// A line that begins with `---` begins a document wherever it stands, also in the midst of a scalar
/// ([YAML 1.2.2 §9.1.2](https://yaml.org/spec/1.2.2/#912-document-markers)), so that no parser is needed to find it.
/// One document at a time is a tree in memory.
pub(crate) fn documents(text: &str) -> impl Iterator<Item = (u32, &str)> {
    let mut before = 0;
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        loop {
            let here = rest?;
            let end = next_marker(here);
            let (document, after) = here.split_at(end.unwrap_or(here.len()));
            rest = end.map(|_| after);
            let line = before;
            let lines = document.bytes().filter(|byte| *byte == b'\n').count();
            before += u32::try_from(lines).unwrap_or(u32::MAX);
            // What stands before the first marker may be nothing but directives and comments.
            let bare = |line: &str| line.is_empty() || line.starts_with(['%', '#']);
            if !document.lines().all(bare) {
                return Some((line, document));
            }
        }
    })
}

/// Where the next document begins, the one at the start left out.
fn next_marker(text: &str) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + text[from..].find("\n---")? + 1;
        let after = text[at + 3..].chars().next();
        if after.is_none_or(|c| matches!(c, ' ' | '\t' | '\r' | '\n')) {
            return Some(at);
        }
        from = at;
    }
}

/// Reads a document, of which the lines before it are given; one that is empty is none. JSON is read
/// too, being YAML.
///
/// What it may hold is bounded by `max_nodes`; nesting is bounded to 32 levels (a level takes some 30 KB of stack where nothing is optimised), and what aliases
/// repeat to one million events.
pub(crate) fn parse(before: u32, text: &str, max_nodes: usize) -> Result<Vec<Node>, Invalid> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        // YAML 1.2: only true and false; a name such as `no` or `y` is a name.
        strict_booleans: true,
        budget: serde_saphyr::budget! {
            max_nodes: max_nodes,
            max_events: max_nodes.saturating_mul(3),
            max_depth: 32,
        },
    };
    match serde_saphyr::from_multiple_with_options::<Node>(text, options) {
        Ok(mut nodes) => {
            nodes.iter_mut().for_each(|node| node.shift(before));
            Ok(nodes)
        }
        Err(error) => {
            let line = error.location().map_or(1, |at| narrow(at.line()));
            let message = error.without_snippet().to_string();
            let message = message.lines().next().unwrap_or_default();
            // The parser counts from the document, and says so in its own words.
            let message = match message.rsplit_once(" at line ") {
                Some((message, _)) => message,
                None => message,
            };
            let line = line.saturating_add(before);
            Err(Invalid::new(line, String::new(), message.to_owned()))
        }
    }
}

fn narrow(line: u64) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Tagged<Value>>::deserialize(deserializer)?;
        let line = narrow(spanned.referenced.line());
        let Tagged(value, tag) = spanned.value;
        let value = match tag.as_deref().and_then(variant) {
            Some(variant) => Value::Map(vec![(variant.into(), Self { line, value })]),
            None => value,
        };
        Ok(Self { line, value })
    }
}

/// The name in a tag of an application's own. `!Exact text` is how serde_yaml, which istio/ztunnel reads its file with,
/// has the variant of an enum: it means what `{Exact: text}` does. Other tags (`!!str`) are YAML's.
fn variant(tag: &str) -> Option<&str> {
    let name = tag.strip_prefix('!')?;
    let upper = name.starts_with(|first: char| first.is_ascii_uppercase());
    (upper && name.bytes().all(|byte| byte.is_ascii_alphanumeric())).then_some(name)
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
    /// Moves everything down by some lines.
    fn shift(&mut self, by: u32) {
        self.line = self.line.saturating_add(by);
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|item| item.shift(by)),
            Value::Map(entries) => entries.iter_mut().for_each(|(_, node)| node.shift(by)),
            _ => {}
        }
    }

    /// How many nodes there are, this one included.
    pub(crate) fn count(&self) -> usize {
        1 + match &self.value {
            Value::List(items) => items.iter().map(Self::count).sum(),
            Value::Map(entries) => entries.iter().map(|(_, node)| 1 + node.count()).sum(),
            _ => 0,
        }
    }

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
