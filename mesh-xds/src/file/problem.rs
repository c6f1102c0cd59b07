//! What is wrong with a file, and where.

use std::fmt;
use std::path::{Path, PathBuf};

/// Says what is wrong, where: `file:line: field: message`.
///
/// Without a field, the file as such could not be read or parsed, and all of it keeps its last good
/// version; with one, only the object that holds the field does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    file: PathBuf,
    invalid: Invalid,
    closed: bool,
    hides_workload: bool,
}

impl Problem {
    pub(crate) fn new(file: &Path, invalid: Invalid) -> Self {
        Self {
            file: file.to_owned(),
            invalid,
            closed: false,
            hides_workload: false,
        }
    }

    pub(crate) fn closed(mut self, closed: bool) -> Self {
        self.closed = closed;
        self
    }

    /// Whether the object has no last good version, and something narrower stands for it, as the
    /// [message](Self::message) says.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    pub(crate) fn hiding_workload(mut self, hides: bool) -> Self {
        self.hides_workload = hides;
        self
    }

    /// Of what was [skipped](super::Loaded::skipped), whether it may be why a workload is missing: a Pod without an
    /// address, Pods that are there only as a Deployment's template, a `pod`. Most kinds that are skipped have no
    /// workload to make.
    pub fn hides_workload(&self) -> bool {
        self.hides_workload
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The line, from 1.
    pub fn line(&self) -> u32 {
        self.invalid.line
    }

    /// The path of the field, for example `spec.rules[0].to[1].operation.ports[0]`; empty for the whole file.
    pub fn field(&self) -> &str {
        &self.invalid.field
    }

    /// What was found and what was expected.
    pub fn message(&self) -> &str {
        &self.invalid.message
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file.display(), self.invalid.line)?;
        if !self.invalid.field.is_empty() {
            write!(f, "{}: ", self.invalid.field)?;
        }
        f.write_str(&self.invalid.message)
    }
}

impl std::error::Error for Problem {}

/// A problem in a file that the one who found it does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Invalid {
    pub(crate) line: u32,
    pub(crate) field: String,
    pub(crate) message: String,
}

impl Invalid {
    pub(crate) fn new(line: u32, field: String, message: String) -> Self {
        Self {
            line,
            field,
            message,
        }
    }
}
