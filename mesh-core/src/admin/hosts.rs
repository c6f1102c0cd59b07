//! Which names a request to a loopback socket may come under.

use std::net::IpAddr;

use http::header::HOST;
use http::{HeaderMap, Uri};

/// Whether the request's host is an address, `localhost`, or not said.
///
/// Any other name was resolved to loopback by somebody: DNS rebinding. Browsers send the name.
pub(super) fn is_local(uri: &Uri, headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(HOST).iter();
    values.all(|value| value.to_str().is_ok_and(is_local_host))
        && uri.host().is_none_or(is_local_name)
}

fn is_local_host(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port))
            if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            name
        }
        _ => host,
    };
    is_local_name(name)
}

fn is_local_name(name: &str) -> bool {
    let bare = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name);
    name.is_empty()
        || bare.parse::<IpAddr>().is_ok()
        // RFC 6761 6.3: never anything but loopback.
        || name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(host: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().unwrap());
        is_local(&Uri::from_static("/"), &headers)
    }

    #[test]
    fn addresses_and_localhost_are_local() {
        for host in [
            "127.0.0.1:15000",
            "127.0.0.1",
            "[::1]:15000",
            "[::1]",
            "localhost",
            "LocalHost:1",
            "a.localhost",
            "",
        ] {
            assert!(local(host), "{host:?}");
        }
        assert!(is_local(&Uri::from_static("/"), &HeaderMap::new()));
    }

    #[test]
    fn other_names_are_not() {
        for host in [
            "evil.example",
            "evil.example:15000",
            "localhost.evil.example",
            "notlocalhost",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil",
            "a:b:c",
        ] {
            assert!(!local(host), "{host:?}");
        }
        assert!(!is_local(
            &Uri::from_static("http://evil.example/"),
            &HeaderMap::new()
        ));
    }
}
