//! Compares single values: strings, paths, addresses; and makes paths comparable.

use std::fmt;

mod ip;
mod path_normalize;
mod path_template;
mod string;

pub use ip::{InvalidCidr, parse_cidr};
pub(crate) use ip::{canonical_net, contains};
pub use path_normalize::{InvalidPath, PathNormalization};
pub use path_template::{InvalidPathTemplate, PathTemplate};
pub use string::{FullRegex, InvalidRegex, StringMatch};

/// Compares a path: by string or by template.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PathMatch {
    /// As any other string.
    String(StringMatch),
    /// By Istio's template grammar with `{*}` and `{**}`.
    Template(PathTemplate),
}

impl PathMatch {
    /// Whether a path matches; what follows its first `?` or `#` is not looked at.
    pub fn matches(&self, path: &str) -> bool {
        self.matches_alone(without_query(path))
    }

    /// Whether a path without its query matches.
    pub(crate) fn matches_alone(&self, path: &str) -> bool {
        match self {
            Self::String(value) => value.matches(path),
            Self::Template(template) => template.matches(path),
        }
    }
}

impl fmt::Display for PathMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String(value) => fmt::Display::fmt(value, f),
            Self::Template(template) => f.write_str(template.as_str()),
        }
    }
}

/// The path before its query or fragment.
pub(crate) fn without_query(path: &str) -> &str {
    let end = path.bytes().position(|byte| matches!(byte, b'?' | b'#'));
    end.map_or(path, |end| &path[..end])
}
