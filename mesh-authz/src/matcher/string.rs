use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Compares a string. Literals are never read as patterns.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum StringMatch {
    /// The whole value.
    Exact(Arc<str>),
    /// The beginning of the value.
    Prefix(Arc<str>),
    /// The end of the value.
    Suffix(Arc<str>),
    /// Any value that is not empty.
    Present,
    /// The whole value matches an RE2-style expression (Envoy's `safe_regex`: full match).
    Regex(FullRegex),
}

/// A regular expression that matches the whole of a text, or nothing of it.
///
/// Time is linear in the text. At most 1 MiB compiled.
#[derive(Debug, Clone)]
pub struct FullRegex {
    pattern: Arc<str>,
    whole: regex::Regex,
}

/// Says that a regular expression is malformed or would compile to more than 1 MiB.
#[derive(Debug, Clone, thiserror::Error)]
#[error("invalid regular expression")]
pub struct InvalidRegex(#[source] regex::Error);

impl FullRegex {
    /// Compiles an expression.
    ///
    /// # Errors
    ///
    /// [`InvalidRegex`] when it is malformed or too large.
    pub fn new(pattern: &str) -> Result<Self, InvalidRegex> {
        let compile = |pattern: &str| {
            regex::RegexBuilder::new(pattern)
                .size_limit(1 << 20)
                .build()
                .map_err(InvalidRegex)
        };
        // Alone first: `a)|(b` would otherwise break out of the group that makes the match full.
        compile(pattern)?;
        Ok(Self {
            pattern: pattern.into(),
            whole: compile(&format!(r"\A(?:{pattern})\z"))?,
        })
    }

    /// The expression as written.
    pub fn as_str(&self) -> &str {
        &self.pattern
    }

    /// Whether all of `value` matches.
    pub fn is_match(&self, value: &str) -> bool {
        self.whole.is_match(value)
    }
}

impl StringMatch {
    /// Compiles a full-match expression.
    ///
    /// # Errors
    ///
    /// [`InvalidRegex`] when it is malformed or too large.
    pub fn regex(pattern: &str) -> Result<Self, InvalidRegex> {
        FullRegex::new(pattern).map(Self::Regex)
    }

    /// Reads Istio's form: `*` is presence, a leading or trailing `*` a suffix or prefix, else exact.
    pub fn from_istio(value: &str) -> Self {
        if value == "*" {
            Self::Present
        } else if let Some(suffix) = value.strip_prefix('*') {
            Self::Suffix(suffix.into())
        } else if let Some(prefix) = value.strip_suffix('*') {
            Self::Prefix(prefix.into())
        } else {
            Self::Exact(value.into())
        }
    }

    /// Whether `value` matches.
    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(exact) => value == &**exact,
            Self::Prefix(prefix) => value.starts_with(&**prefix),
            Self::Suffix(suffix) => value.ends_with(&**suffix),
            Self::Present => !value.is_empty(),
            Self::Regex(regex) => regex.is_match(value),
        }
    }

    /// Whether `value` matches without regard to the case of ASCII letters. A regular expression keeps
    /// its own idea of case.
    pub fn matches_ignoring_case(&self, value: &str) -> bool {
        let value_bytes = value.as_bytes();
        match self {
            Self::Exact(exact) => value.eq_ignore_ascii_case(exact),
            Self::Prefix(prefix) => value_bytes
                .get(..prefix.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes())),
            Self::Suffix(suffix) => value_bytes
                .len()
                .checked_sub(suffix.len())
                .is_some_and(|at| value_bytes[at..].eq_ignore_ascii_case(suffix.as_bytes())),
            Self::Present => !value.is_empty(),
            Self::Regex(regex) => regex.is_match(value),
        }
    }

    /// Whether bytes that need not be text match; `None` where a regular expression cannot tell.
    pub fn matches_bytes(&self, value: &[u8]) -> Option<bool> {
        match self {
            Self::Exact(exact) => Some(value == exact.as_bytes()),
            Self::Prefix(prefix) => Some(value.starts_with(prefix.as_bytes())),
            Self::Suffix(suffix) => Some(value.ends_with(suffix.as_bytes())),
            Self::Present => Some(!value.is_empty()),
            Self::Regex(regex) => str::from_utf8(value)
                .ok()
                .map(|value| regex.is_match(value)),
        }
    }
}

impl fmt::Display for StringMatch {
    /// As a policy would write it: `exact`, `prefix*`, `*suffix`, `*`, `~expression`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(exact) => f.write_str(exact),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
            Self::Present => f.write_str("*"),
            Self::Regex(regex) => write!(f, "~{}", regex.as_str()),
        }
    }
}

impl PartialEq for StringMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b))
            | (Self::Prefix(a), Self::Prefix(b))
            | (Self::Suffix(a), Self::Suffix(b)) => a == b,
            (Self::Present, Self::Present) => true,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

impl Eq for StringMatch {}

impl Hash for StringMatch {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::mem::discriminant(self).hash(state);
        match self {
            Self::Exact(value) | Self::Prefix(value) | Self::Suffix(value) => value.hash(state),
            Self::Present => {}
            Self::Regex(regex) => regex.as_str().hash(state),
        }
    }
}
