use std::fmt;
use std::sync::Arc;

/// Compares a path with a template: `{*}` stands for one segment, `{**}` for any number of characters.
///
/// The grammar is Istio's ([AuthorizationPolicy, `paths`][istio]) on Envoy's URI template matcher: an
/// operator begins a segment; `{*}` fills it and is at least one character; `{**}` may be empty, may
/// hold `/`, may be followed by a literal, and no operator comes after it. The whole path has to match.
///
/// Operators match the characters that RFC 3986 allows in a segment except `*` and `=`, as Envoy's do.
///
/// [istio]: https://istio.io/latest/docs/reference/config/security/authorization-policy/#Operation
///
/// # Examples
///
/// ```
/// use mesh_authz::matcher::PathTemplate;
///
/// let template = PathTemplate::parse("/store/{*}/{**}/cart")?;
/// assert!(template.matches("/store/eu/a/b/cart"));
/// assert!(!template.matches("/store//a/cart"));
/// # Ok::<(), mesh_authz::matcher::InvalidPathTemplate>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PathTemplate {
    source: Arc<str>,
    /// Literals between which single segments stand.
    heads: Vec<Arc<str>>,
    /// What follows `{**}`, where there is one.
    tail: Option<Arc<str>>,
}

/// Says why a path template is malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid path template {template:?}: {reason}")]
pub struct InvalidPathTemplate {
    template: Arc<str>,
    reason: &'static str,
}

const ONE: &str = "{*}";
const MANY: &str = "{**}";

impl PathTemplate {
    /// Whether Istio reads `path` as a template.
    pub fn is_template(path: &str) -> bool {
        path.contains(ONE) || path.contains(MANY)
    }

    /// Parses a template.
    ///
    /// # Errors
    ///
    /// [`InvalidPathTemplate`] says what is wrong.
    pub fn parse(template: &str) -> Result<Self, InvalidPathTemplate> {
        parse(template).map_err(|reason| InvalidPathTemplate {
            template: template.into(),
            reason,
        })
    }

    /// The template as written.
    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// Whether a path without query matches.
    pub fn matches(&self, path: &str) -> bool {
        let Some((first, heads)) = self.heads.split_first() else {
            return false;
        };
        let Some(mut rest) = path.strip_prefix(&**first) else {
            return false;
        };
        for head in heads {
            // A segment ends where the next literal, which begins with '/', or the path does.
            let end = rest.find('/').unwrap_or(rest.len());
            let (segment, after) = rest.split_at(end);
            if segment.is_empty() || !segment.bytes().all(is_wild) {
                return false;
            }
            let Some(after) = after.strip_prefix(&**head) else {
                return false;
            };
            rest = after;
        }
        match &self.tail {
            None => rest.is_empty(),
            Some(tail) => rest
                .strip_suffix(&**tail)
                .is_some_and(|wild| wild.bytes().all(|byte| byte == b'/' || is_wild(byte))),
        }
    }
}

impl fmt::Display for PathTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

impl InvalidPathTemplate {
    /// What was expected.
    pub fn reason(&self) -> &'static str {
        self.reason
    }
}

fn parse(template: &str) -> Result<PathTemplate, &'static str> {
    if !template.starts_with('/') {
        return Err("must begin with '/'");
    }
    if template.contains("//") {
        return Err("must not contain '//'");
    }
    let mut heads = Vec::new();
    let mut tail = None;
    let mut literal = String::new();
    for segment in template.split('/').skip(1) {
        literal.push('/');
        if segment == ONE {
            if tail.is_some() {
                return Err("{**} must be the last operator");
            }
            heads.push(Arc::from(std::mem::take(&mut literal)));
        } else if let Some(rest) = segment.strip_prefix(MANY) {
            if tail.is_some() {
                return Err("{**} must be the last operator");
            }
            check_literal(rest)?;
            heads.push(Arc::from(std::mem::take(&mut literal)));
            literal.push_str(rest);
            tail = Some(());
        } else {
            check_literal(segment)?;
            literal.push_str(segment);
        }
    }
    let literal = Arc::from(literal);
    let tail = match tail {
        Some(()) => Some(literal),
        None => {
            heads.push(literal);
            None
        }
    };
    Ok(PathTemplate {
        source: template.into(),
        heads,
        tail,
    })
}

fn check_literal(text: &str) -> Result<(), &'static str> {
    if text.contains(['{', '}']) {
        return Err(
            "{*} must be a whole segment, {**} must begin one, other braces are not allowed",
        );
    }
    if text.contains('*') {
        return Err("'*' is allowed in {*} and {**} only");
    }
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if byte == b'%' {
            let hex = bytes.get(at + 1..at + 3);
            if !hex.is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) {
                return Err("'%' must be followed by two hexadecimal digits");
            }
        } else if !is_wild(byte) {
            return Err(
                "literals may hold only what RFC 3986 allows in a segment, without '*' and '='",
            );
        }
        at += 1;
    }
    Ok(())
}

/// RFC 3986 pchar without `*` and `=`.
fn is_wild(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@".contains(&byte)
}

#[cfg(test)]
mod tests;
