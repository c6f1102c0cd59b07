use std::borrow::Cow;

/// How paths are made comparable before policies see them, and forwarded.
///
/// These are the modes of Istio's `meshConfig.pathNormalization.normalization` ([reference][istio]).
/// Every mode cuts the fragment off; a query is never touched, and neither is anything that no mode
/// names: double encodings, overlong UTF-8, letter case, `;parameters` other than those of dot segments.
///
/// Which one is enough depends on who reads the path after the policies. Routers that compare it as it is, as axum's and
/// tonic's do, need none; [`Base`](Self::Base) is enough for Go's `ServeMux` (from 1.22), which answers an unclean path with a
/// redirection. Who decodes all of it first (nginx, Python's `http.server`, a handler in Go that looks at `URL.Path`, an
/// Envoy set to) wants [`DecodeAndMergeSlashes`](Self::DecodeAndMergeSlashes): to them `/a%2F..%2Fadmin` is `/admin`.
///
/// [istio]: https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#MeshConfig-ProxyPathNormalization-NormalizationType
///
/// # Examples
///
/// ```
/// use mesh_authz::matcher::PathNormalization;
///
/// let base = PathNormalization::default();
/// assert_eq!(base.normalize("/public/%2E%2e/private?q=/../")?, "/private?q=/../");
/// assert!(base.normalize("/admin%00").is_err());
/// # Ok::<(), mesh_authz::matcher::InvalidPath>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum PathNormalization {
    /// Leaves paths as they are.
    None,
    /// Decodes percent-encoded unreserved characters, turns `\` into `/`, resolves `.` and `..`
    /// (RFC 3986 section 6.2.2), with parameters (`..;x`) too, as Envoy does. The default, as in Istio.
    #[default]
    Base,
    /// As [`Base`](Self::Base), then merges repeated slashes.
    MergeSlashes,
    /// Decodes `%2F` and `%5C` first, then as [`MergeSlashes`](Self::MergeSlashes).
    DecodeAndMergeSlashes,
}

/// Says that a path holds an encoded NUL, which no mode but `None` lets pass: answer 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the path holds an encoded NUL")]
#[non_exhaustive]
pub struct InvalidPath;

impl PathNormalization {
    /// Normalises the path of a request target; its query stays as it is, a fragment goes.
    ///
    /// Borrows where nothing changes.
    ///
    /// # Errors
    ///
    /// [`InvalidPath`] when the path holds `%00` before or after decoding. Mode `None` never fails.
    pub fn normalize(self, target: &str) -> Result<Cow<'_, str>, InvalidPath> {
        let target = target.split('#').next().unwrap_or(target);
        if self == Self::None {
            return Ok(Cow::Borrowed(target));
        }
        let (path, query) = match target.find('?') {
            Some(at) => target.split_at(at),
            None => (target, ""),
        };
        if self.is_normal(path) {
            return Ok(Cow::Borrowed(target));
        }
        let decode_slashes = self == Self::DecodeAndMergeSlashes;
        let (mut decoded, literals) = decode(path, decode_slashes);
        // `%%0000` becomes visible as `%00` to whoever decodes next.
        if decoded.contains("%00") {
            return Err(InvalidPath);
        }
        escape_again(&mut decoded, &literals);
        let mut normal = resolve_dots(&decoded);
        if matches!(self, Self::MergeSlashes | Self::DecodeAndMergeSlashes) {
            normal = merge_slashes(&normal);
        }
        if normal == path {
            return Ok(Cow::Borrowed(target));
        }
        normal.push_str(query);
        Ok(Cow::Owned(normal))
    }

    /// Whether it is plain at a glance: most paths are, and cost one pass.
    fn is_normal(self, path: &str) -> bool {
        path.starts_with('/')
            && !path.bytes().any(|byte| matches!(byte, b'%' | b'\\'))
            && !path.contains("/.")
            && (self == Self::Base || !path.contains("//"))
    }
}

/// Decodes; says also where in the result a `%` stands for itself.
fn decode(path: &str, decode_slashes: bool) -> (String, Vec<usize>) {
    let mut decoded = String::with_capacity(path.len() + 1);
    let mut literals = Vec::new();
    let mut rest = path;
    while let Some(at) = rest.find(['%', '\\']) {
        let (before, found) = rest.split_at(at);
        decoded.push_str(before);
        if let Some(after) = found.strip_prefix('\\') {
            decoded.push('/');
            rest = after;
            continue;
        }
        match encoded(found) {
            Some(byte) if is_unreserved(byte) => {
                decoded.push(char::from(byte));
                rest = &found[3..];
            }
            Some(b'/' | b'\\') if decode_slashes => {
                decoded.push('/');
                rest = &found[3..];
            }
            other => {
                if other.is_none() {
                    literals.push(decoded.len());
                }
                decoded.push('%');
                rest = &found[1..];
            }
        }
    }
    decoded.push_str(rest);
    (decoded, literals)
}

/// `%%32e` must not become `%2e`: whoever decodes next would see another path than policies did.
fn escape_again(decoded: &mut String, literals: &[usize]) {
    for at in literals.iter().rev() {
        if encoded(&decoded[*at..]).is_some() {
            decoded.insert_str(at + 1, "25");
        }
    }
}

/// The byte that `%XX` at the beginning of `text` stands for.
fn encoded(text: &str) -> Option<u8> {
    let hex = text.as_bytes().get(1..3)?;
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let value = digit(hex[0])? * 16 + digit(hex[1])?;
    u8::try_from(value).ok()
}

/// RFC 3986 section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986 section 5.2.4; the result begins with a slash.
fn resolve_dots(path: &str) -> String {
    let mut resolved = String::with_capacity(path.len() + 1);
    let path = path.strip_prefix('/').unwrap_or(path);
    let mut segments = path.split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        // With parameters, too (`..;x`): some servers cut them off before they resolve. So does Envoy.
        let bare = segment.split(';').next().unwrap_or(segment);
        match bare {
            "." | ".." => {
                if bare == ".." {
                    resolved.truncate(resolved.rfind('/').unwrap_or(0));
                }
                // A path that ends in a dot segment names a folder.
                if last {
                    resolved.push('/');
                }
            }
            _ => {
                resolved.push('/');
                resolved.push_str(segment);
            }
        }
    }
    resolved
}

fn merge_slashes(path: &str) -> String {
    let mut merged = String::with_capacity(path.len());
    for char in path.chars() {
        if char != '/' || !merged.ends_with('/') {
            merged.push(char);
        }
    }
    merged
}

#[cfg(test)]
mod tests;
