//! What policies ask of a request, read so that it cannot mean two things.

use std::borrow::Cow;
use std::net::IpAddr;

use http::header::{HOST, HeaderMap, HeaderName};
use http::{Uri, Version};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Says that a request names no host, or more than one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AmbiguousHost;

/// The request's one host, port included, without the dot of a fully qualified name.
///
/// Several `Host` headers, one that is at odds with the target's authority, one with a user name, and
/// none in HTTP/1.1 are refused
/// ([RFC 9112 §3.2](https://www.rfc-editor.org/rfc/rfc9112#section-3.2),
/// [RFC 9113 §8.3.1](https://www.rfc-editor.org/rfc/rfc9113#section-8.3.1)).
pub(super) fn host<'a>(
    uri: &'a Uri,
    headers: &'a HeaderMap,
    version: Version,
) -> Result<Option<Cow<'a, str>>, AmbiguousHost> {
    let mut values = headers.get_all(HOST).iter();
    let header = match (values.next(), values.next()) {
        (Some(value), None) => Some(value.to_str().map_err(|_| AmbiguousHost)?),
        (None, _) => None,
        (Some(_), Some(_)) => return Err(AmbiguousHost),
    };
    let authority = uri.authority().map(http::uri::Authority::as_str);
    let host = match (authority, header) {
        (Some(authority), Some(header)) if !authority.eq_ignore_ascii_case(header) => {
            return Err(AmbiguousHost);
        }
        (Some(host), _) | (None, Some(host)) => host,
        (None, None) if version == Version::HTTP_11 => return Err(AmbiguousHost),
        (None, None) => return Ok(None),
    };
    if host.is_empty() || !host.bytes().all(is_host_byte) {
        return Err(AmbiguousHost);
    }
    Ok(Some(without_trailing_dot(host)))
}

/// What a host and port consist of (RFC 3986 §3.2.2): no user name, no path, no list.
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(&byte)
}

/// The name in its one form.
pub(crate) fn without_trailing_dot(host: &str) -> Cow<'_, str> {
    if let Some(name) = host.strip_suffix('.') {
        return Cow::Borrowed(name);
    }
    match host.split_once(".:") {
        Some((name, port)) => Cow::Owned(format!("{name}:{port}")),
        None => Cow::Borrowed(host),
    }
}

/// The address that the outermost of `hops` trusted proxies saw its client at.
pub(super) fn remote_ip(headers: &HeaderMap, hops: usize) -> Option<IpAddr> {
    if hops == 0 {
        return None;
    }
    // Several headers are one list, in order (RFC 9110 §5.3).
    let address = headers
        .get_all(X_FORWARDED_FOR)
        .iter()
        .rev()
        .flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','))
        .nth(hops - 1)?;
    let address = std::str::from_utf8(address).ok()?.trim();
    address
        .parse::<IpAddr>()
        .ok()
        .map(|address| address.to_canonical())
}
