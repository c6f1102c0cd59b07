//! Where in a resource something is wrong.

use std::fmt;
use std::net::IpAddr;

/// The path of a field, as errors show it: `workload.addresses[1]`. Costs nothing until it is shown.
#[derive(Clone, Copy)]
pub(super) struct Field<'a> {
    parent: Option<&'a Field<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Name(&'a str),
    Index(usize),
    Key(&'a str),
}

/// Says which field is wrong, what it holds and what was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem(String);

impl Problem {
    pub(super) fn malformed(error: &prost::DecodeError) -> Self {
        Self(error.to_string())
    }

    /// Of something that has its own way to say it.
    pub(super) fn new(text: impl fmt::Display) -> Self {
        Self(text.to_string())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'a> Field<'a> {
    pub(super) fn root(name: &'a str) -> Self {
        Self {
            parent: None,
            step: Step::Name(name),
        }
    }

    fn below(&'a self, step: Step<'a>) -> Self {
        Self {
            parent: Some(self),
            step,
        }
    }

    pub(super) fn at(&'a self, name: &'a str) -> Self {
        self.below(Step::Name(name))
    }

    pub(super) fn index(&'a self, index: usize) -> Self {
        self.below(Step::Index(index))
    }

    pub(super) fn key(&'a self, key: &'a str) -> Self {
        self.below(Step::Key(key))
    }

    pub(super) fn wrong(&self, found: impl fmt::Display, expected: impl fmt::Display) -> Problem {
        Problem(format!("{self}: {found}, expected {expected}"))
    }

    pub(super) fn missing(&self, expected: impl fmt::Display) -> Problem {
        Problem(format!("{self}: missing, expected {expected}"))
    }

    /// For what may be meant and is not understood.
    pub(super) fn unsupported(&self, what: impl fmt::Display) -> Problem {
        Problem(format!("{self}: {what} is not supported"))
    }

    /// Checks that the resource is the one that its name says; a name that is empty says nothing.
    pub(super) fn is_named(&self, own: &str, name: &str) -> Result<(), Problem> {
        if name.is_empty() || own == name {
            return Ok(());
        }
        let expected = format_args!("the name of the resource, {name:?}");
        Err(self.wrong(format_args!("{own:?}"), expected))
    }

    pub(super) fn ip(&self, bytes: &[u8]) -> Result<IpAddr, Problem> {
        if let Ok(four) = <[u8; 4]>::try_from(bytes) {
            return Ok(four.into());
        }
        <[u8; 16]>::try_from(bytes).map(IpAddr::from).map_err(|_| {
            let count = bytes.len();
            let found = if count == 1 {
                "1 byte".to_owned()
            } else {
                format!("{count} bytes")
            };
            self.wrong(found, "4 or 16")
        })
    }

    pub(super) fn port(&self, port: u32) -> Result<u16, Problem> {
        u16::try_from(port).map_err(|_| self.wrong(port, "a port, at most 65535"))
    }

    /// One of an enum's values, else what was expected.
    pub(super) fn one_of<E: TryFrom<i32>>(&self, value: i32, expected: &str) -> Result<E, Problem> {
        E::try_from(value).map_err(|_| self.wrong(value, expected))
    }

    /// A part of a name, which `/` divides.
    pub(super) fn is_part(&self, text: &str) -> Result<(), Problem> {
        if text.contains('/') {
            return Err(self.wrong(format_args!("{text:?}"), "no '/'"));
        }
        Ok(())
    }

    /// `<namespace>/<name>`.
    pub(super) fn pair<'t>(&self, text: &'t str) -> Result<(&'t str, &'t str), Problem> {
        text.split_once('/')
            .ok_or_else(|| self.wrong(format_args!("{text:?}"), "<namespace>/<name>"))
    }
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Name(name) if self.parent.is_some() => write!(f, ".{name}"),
            Step::Name(name) => f.write_str(name),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key(key) => write!(f, "[{key:?}]"),
        }
    }
}
