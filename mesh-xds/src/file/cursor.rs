//! Reads trees: every step knows the path of field names that led to it, so that every error can say it.

use std::fmt::{self, Write as _};
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;

use super::problem::Invalid;
use super::tree::{Node, Value};

pub(crate) type Result<T> = std::result::Result<T, Invalid>;

/// A node and the path to it.
#[derive(Clone)]
pub(crate) struct Cursor<'a> {
    node: &'a Node,
    path: Option<Rc<Step<'a>>>,
}

struct Step<'a> {
    parent: Option<Rc<Step<'a>>>,
    to: To<'a>,
}

enum To<'a> {
    Field(&'a str),
    Item(usize),
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = &self.parent {
            parent.fmt(f)?;
        }
        match self.to {
            To::Item(index) => write!(f, "[{index}]"),
            // A key that would read as a path of its own, as the names of labels do.
            To::Field(name) if name.contains(['.', '/', '[']) => write!(f, "[{name}]"),
            To::Field(name) if self.parent.is_none() => f.write_str(name),
            To::Field(name) => write!(f, ".{name}"),
        }
    }
}

impl<'a> Cursor<'a> {
    /// Stands at the root of a document.
    pub(crate) fn root(node: &'a Node) -> Self {
        Self { node, path: None }
    }

    fn step(&self, node: &'a Node, to: To<'a>) -> Self {
        let parent = self.path.clone();
        Self {
            node,
            path: Some(Rc::new(Step { parent, to })),
        }
    }

    pub(crate) fn line(&self) -> u32 {
        self.node.line
    }

    /// The path of names that led here.
    pub(crate) fn field(&self) -> String {
        let mut field = String::new();
        if let Some(path) = &self.path {
            let _ = write!(field, "{path}");
        }
        field
    }

    /// An error at this place.
    pub(crate) fn invalid(&self, message: impl fmt::Display) -> Invalid {
        Invalid::new(self.node.line, self.field(), message.to_string())
    }

    /// An error at a field below this place, of which only the name is known.
    pub(crate) fn invalid_below(&self, below: &str, message: impl fmt::Display) -> Invalid {
        let mut field = self.field();
        if !field.is_empty() && !below.is_empty() && !below.starts_with('[') {
            field.push('.');
        }
        field.push_str(below);
        Invalid::new(self.node.line, field, message.to_string())
    }

    /// What the lowering of a policy says of a field below this place.
    pub(crate) fn invalid_policy(&self, below: &str, error: &mesh_authz::Error) -> Invalid {
        let message = match error.value() {
            Some(value) => format!("expected {}, found {value:?}", error.expected()),
            None => format!("expected {}", error.expected()),
        };
        let mut invalid = self.invalid_below(below, message);
        invalid.line = self.node.line_of(below);
        invalid
    }

    fn expected(&self, what: &str) -> Invalid {
        self.invalid(format_args!(
            "expected {what}, found {}",
            self.node.value.kind()
        ))
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(self.node.value, Value::Null)
    }

    /// The text itself, shared with the tree.
    pub(crate) fn text(&self) -> Result<Arc<str>> {
        match &self.node.value {
            Value::Text(text) => Ok(Arc::clone(text)),
            Value::Bool(_) | Value::Unsigned(_) | Value::Negative(_) | Value::Float => Err(self
                .invalid(format_args!(
                    "expected a string, found {} (put it in quotes)",
                    self.node.value.kind()
                ))),
            _ => Err(self.expected("a string")),
        }
    }

    pub(crate) fn str(&self) -> Result<&'a str> {
        match &self.node.value {
            Value::Text(text) => Ok(text),
            _ => self.text().map(|_| ""),
        }
    }

    /// Text that is not empty.
    pub(crate) fn nonempty(&self) -> Result<Arc<str>> {
        let text = self.text()?;
        if text.is_empty() {
            return Err(self.invalid("expected a string that is not empty"));
        }
        Ok(text)
    }

    pub(crate) fn bool(&self) -> Result<bool> {
        match self.node.value {
            Value::Bool(value) => Ok(value),
            _ => Err(self.expected("true or false")),
        }
    }

    pub(crate) fn u32(&self) -> Result<u32> {
        match self.node.value {
            Value::Unsigned(value) => u32::try_from(value)
                .map_err(|_| self.invalid(format_args!("{value} is more than 4294967295"))),
            Value::Negative(value) => {
                Err(self.invalid(format_args!("expected a number from 0, found {value}")))
            }
            _ => Err(self.expected("a whole number")),
        }
    }

    /// A port, from 1.
    pub(crate) fn port(&self) -> Result<u16> {
        match self.port_or_zero()? {
            0 => Err(self.invalid("expected a port from 1 to 65535, found 0")),
            port => Ok(port),
        }
    }

    pub(crate) fn port_or_zero(&self) -> Result<u16> {
        let value = self.u32()?;
        u16::try_from(value).map_err(|_| {
            self.invalid(format_args!(
                "expected a port from 1 to 65535, found {value}"
            ))
        })
    }

    /// Text that another type reads.
    pub(crate) fn parse<T: FromStr>(&self, what: &str) -> Result<T> {
        let text = self.str()?;
        text.parse()
            .map_err(|_| self.invalid(format_args!("expected {what}, found {text:?}")))
    }

    /// One of the given words.
    pub(crate) fn one_of<T: Copy>(&self, words: &[(&str, T)]) -> Result<T> {
        let text = self.str()?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Ok(*value);
        }
        let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        Err(self.invalid(format_args!(
            "expected one of {}, found {text:?}",
            words.join(", ")
        )))
    }

    /// The items of a list.
    pub(crate) fn items(&self) -> Result<Vec<Cursor<'a>>> {
        match &self.node.value {
            Value::List(items) => Ok(items
                .iter()
                .enumerate()
                .map(|(index, item)| self.step(item, To::Item(index)))
                .collect()),
            _ => Err(self.expected("a list")),
        }
    }

    /// The fields of a mapping.
    pub(crate) fn fields(&self) -> Result<Fields<'a>> {
        match &self.node.value {
            Value::Map(entries) => Ok(Fields {
                at: self.clone(),
                entries,
                asked: Vec::new(),
            }),
            _ => Err(self.expected("a mapping")),
        }
    }

    /// The entries of a mapping whose keys are data.
    pub(crate) fn entries(&self) -> Result<Vec<(&'a Arc<str>, Cursor<'a>)>> {
        let fields = self.fields()?;
        Ok(fields
            .entries
            .iter()
            .map(|(key, node)| (key, self.step(node, To::Field(key))))
            .collect())
    }
}

/// A mapping whose keys are field names; remembers which were asked for.
pub(crate) struct Fields<'a> {
    at: Cursor<'a>,
    entries: &'a [(Arc<str>, Node)],
    asked: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// The place of the mapping itself.
    pub(crate) fn at(&self) -> &Cursor<'a> {
        &self.at
    }

    /// The field, unless it is absent or null, which mean the same.
    pub(crate) fn get(&mut self, name: &'static str) -> Option<Cursor<'a>> {
        self.asked.push(name);
        let (key, node) = self.entries.iter().find(|(key, _)| **key == *name)?;
        let cursor = self.at.step(node, To::Field(key));
        (!cursor.is_null()).then_some(cursor)
    }

    pub(crate) fn need(&mut self, name: &'static str) -> Result<Cursor<'a>> {
        self.get(name)
            .ok_or_else(|| self.at.invalid_below(name, "missing"))
    }

    /// What `read` makes of the field, if it is there.
    pub(crate) fn map<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&Cursor<'a>) -> Result<T>,
    ) -> Result<Option<T>> {
        self.get(name).as_ref().map(read).transpose()
    }

    /// What `read` makes of each item of the list, if it is there.
    pub(crate) fn list<T>(
        &mut self,
        name: &'static str,
        read: impl FnMut(&Cursor<'a>) -> Result<T>,
    ) -> Result<Vec<T>> {
        match self.get(name) {
            Some(list) => list.items()?.iter().map(read).collect(),
            None => Ok(Vec::new()),
        }
    }

    /// The text of the field; empty when it is absent.
    pub(crate) fn text(&mut self, name: &'static str) -> Result<Arc<str>> {
        Ok(self.map(name, Cursor::text)?.unwrap_or_default())
    }

    /// The texts of the list.
    pub(crate) fn texts(&mut self, name: &'static str) -> Result<Vec<Arc<str>>> {
        self.list(name, Cursor::text)
    }

    /// The texts of the list, for structs that own theirs.
    pub(crate) fn strings(&mut self, name: &'static str) -> Result<Vec<String>> {
        self.list(name, |item| Ok(item.str()?.to_owned()))
    }

    /// Says that the field is known and has no meaning here.
    pub(crate) fn ignore(&mut self, names: &[&'static str]) {
        self.asked.extend(names);
    }

    /// Refuses fields that nobody asked for.
    pub(crate) fn finish(self) -> Result<()> {
        let unknown = self
            .entries
            .iter()
            .find(|(key, _)| !self.asked.iter().any(|asked| **key == **asked));
        match unknown {
            None => Ok(()),
            Some((key, node)) => {
                let mut known = self.asked;
                known.sort_unstable();
                known.dedup();
                Err(self.at.step(node, To::Field(key)).invalid(format_args!(
                    "unknown field; known are {}",
                    known.join(", ")
                )))
            }
        }
    }
}
