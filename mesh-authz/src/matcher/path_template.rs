use std::sync::Arc;

/// A path with `{*}` (one segment) and `{**}` (any number of characters, once, last among operators).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PathTemplate {
    source: Arc<str>,
}

/// Says why a path template is malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid path template {template:?}: {reason}")]
pub struct InvalidPathTemplate {
    template: Arc<str>,
    reason: &'static str,
}

impl PathTemplate {
    /// Whether Istio reads `path` as a template.
    pub fn is_template(path: &str) -> bool {
        path.contains("{*}") || path.contains("{**}")
    }

    /// Parses a template.
    ///
    /// # Errors
    ///
    /// [`InvalidPathTemplate`] says what is wrong.
    pub fn parse(template: &str) -> Result<Self, InvalidPathTemplate> {
        if template.starts_with('/') {
            Ok(Self {
                source: template.into(),
            })
        } else {
            Err(InvalidPathTemplate {
                template: template.into(),
                reason: "must begin with '/'",
            })
        }
    }

    /// Whether a path without query matches.
    pub fn matches(&self, path: &str) -> bool {
        // TODO
        path == &*self.source
    }

    /// The template as written.
    pub fn as_str(&self) -> &str {
        &self.source
    }
}

impl InvalidPathTemplate {
    /// What was expected.
    pub fn reason(&self) -> &'static str {
        self.reason
    }
}
