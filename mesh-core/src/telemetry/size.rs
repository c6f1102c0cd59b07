//! How large messages are, as Istio counts it: header names and values, body, trailers; not what frames them.

use http::{HeaderMap, Request, Response};

/// The bytes of names and values.
pub(crate) fn of_headers(headers: &HeaderMap) -> u64 {
    let each = headers.iter();
    each.map(|(name, value)| name.as_str().len() + value.len())
        .sum::<usize>() as u64
}

/// The bytes of a request without its body: method, scheme, authority and path as HTTP/2 has them, and the headers.
pub(crate) fn of_request_head<B>(request: &Request<B>) -> u64 {
    const NAMES: usize = ":method:scheme:authority:path".len();
    let uri = request.uri();
    let path = uri.path_and_query().map_or(1, |path| path.as_str().len());
    // Where there is none it is in the Host header.
    let authority = uri
        .authority()
        .map_or(0, |authority| authority.as_str().len());
    let scheme = uri.scheme_str().unwrap_or("http").len();
    let pseudo = NAMES + request.method().as_str().len() + scheme + authority + path;
    pseudo as u64 + of_headers(request.headers())
}

/// The bytes of a response without its body.
pub(crate) fn of_response_head<B>(response: &Response<B>) -> u64 {
    const STATUS: usize = ":status200".len();
    STATUS as u64 + of_headers(response.headers())
}
