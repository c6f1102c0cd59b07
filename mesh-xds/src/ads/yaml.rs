//! Values of metadata from YAML, such as the settings of a proxy in a host's `mesh.yaml`.

use std::path::Path;

use super::NodeValue;
use crate::file::Problem;
use crate::file::tree::{Node, Value, parse};

/// No settings of a proxy have more values; what has is something else.
const MAX_NODES: usize = 10_000;

impl NodeValue {
    /// Reads a document of YAML, or of JSON, which is YAML too. An empty one is an empty map; keys that hold
    /// nothing, or a number with a fraction, are left out.
    ///
    /// # Errors
    ///
    /// It is not one document of YAML; the problem names the file and the line.
    pub fn read_yaml(file: &Path, text: &str) -> Result<Self, Problem> {
        let documents = parse(0, text, MAX_NODES).map_err(|invalid| Problem::new(file, invalid))?;
        let mut documents = documents.iter().filter_map(Self::of);
        Ok(documents.next().unwrap_or_else(|| Self::Map([].into())))
    }

    fn of(node: &Node) -> Option<Self> {
        Some(match &node.value {
            Value::Null | Value::Float => return None,
            Value::Bool(value) => Self::Bool(*value),
            #[expect(clippy::cast_precision_loss, reason = "protobuf has no other numbers")]
            Value::Unsigned(number) => Self::Number(*number as f64),
            #[expect(clippy::cast_precision_loss, reason = "protobuf has no other numbers")]
            Value::Negative(number) => Self::Number(*number as f64),
            Value::Text(text) => Self::Text(text.to_string()),
            Value::List(items) => Self::List(items.iter().filter_map(Self::of).collect()),
            Value::Map(entries) => {
                let entries = entries.iter();
                let entries =
                    entries.filter_map(|(key, node)| Some((key.to_string(), Self::of(node)?)));
                Self::Map(entries.collect())
            }
        })
    }

    /// The value under a key, if this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(entries) => entries.get(key),
            _ => None,
        }
    }

    /// The text, if this is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}
