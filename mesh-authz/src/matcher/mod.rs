//! Compares single values: strings, paths.

mod path_template;
mod string;

pub use path_template::{InvalidPathTemplate, PathTemplate};
pub use string::{InvalidRegex, StringMatch};

/// Compares a path: by string or by template.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PathMatch {
    /// As any other string.
    String(StringMatch),
    /// By Istio's template grammar with `{*}` and `{**}`.
    Template(PathTemplate),
}
