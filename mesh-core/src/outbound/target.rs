use std::fmt;
#[cfg(feature = "http")]
use std::net::IpAddr;
use std::net::SocketAddr;

#[cfg(feature = "http")]
use http::Uri;

use crate::snapshot::Target;
use crate::{Error, ErrorKind};

/// What somebody wants to connect to, validated.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Destination {
    Addr(SocketAddr),
    Host { name: Box<str>, port: u16 },
}

impl Destination {
    pub(crate) fn as_target(&self) -> Target<'_> {
        match self {
            Self::Addr(addr) => Target::Addr(*addr),
            Self::Host { name, port } => Target::Host { name, port: *port },
        }
    }

    /// Reads `host:port`, `ip:port` or `[v6]:port`.
    pub(crate) fn parse(target: &str) -> Result<Self, Error> {
        let invalid = || {
            Error::new(ErrorKind::BadRequest).with_detail(format!(
                "target {target:?}: expected host:port, with a port of 1 to 65535"
            ))
        };
        if let Ok(address) = target.parse::<SocketAddr>() {
            return if address.port() == 0 {
                Err(invalid())
            } else {
                Ok(Self::Addr(address))
            };
        }
        let (host, port) = target.rsplit_once(':').ok_or_else(invalid)?;
        let port: u16 = port
            .parse()
            .ok()
            .filter(|&port| port != 0)
            .ok_or_else(invalid)?;
        Self::host(host, port).ok_or_else(invalid)
    }

    /// Reads the authority of an `http` URI; port 80 without one.
    #[cfg(feature = "http")]
    pub(super) fn of_uri(uri: &Uri) -> Result<Self, Error> {
        let invalid = |what: &str| {
            Error::new(ErrorKind::BadRequest).with_detail(format!("URI {uri}: {what}"))
        };
        if uri.scheme_str().is_some_and(|scheme| scheme != "http") {
            return Err(invalid(
                "expected the scheme http: the tunnel encrypts, an https origin needs TLS of its own over `connect`",
            ));
        }
        let host = uri.host().ok_or_else(|| invalid("expected a host"))?;
        let port = uri.port_u16().unwrap_or(80);
        if port == 0 {
            return Err(invalid("expected a port of 1 to 65535"));
        }
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok(Self::Addr(SocketAddr::new(ip, port)));
        }
        Self::host(host, port)
            .ok_or_else(|| invalid("expected a host name of letters, digits, '-', '_' and '.'"))
    }

    /// A DNS name of at most 253 bytes, without its final dot (RFC 1035 2.3.4).
    fn host(host: &str, port: u16) -> Option<Self> {
        let host = host.strip_suffix('.').unwrap_or(host);
        let fine = !host.is_empty()
            && host.len() <= 253
            && host
                .split('.')
                .all(|label| !label.is_empty() && label.len() <= 63)
            && host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
        fine.then(|| Self::Host {
            name: host.to_ascii_lowercase().into(),
            port,
        })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => addr.fmt(f),
            Self::Host { name, port } => write!(f, "{name}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, port: u16) -> Destination {
        Destination::Host {
            name: name.into(),
            port,
        }
    }

    fn addr(text: &str) -> Destination {
        Destination::Addr(text.parse().unwrap())
    }

    #[test]
    fn reads_hosts_and_addresses() {
        assert_eq!(
            Destination::parse("ratings:9080").unwrap(),
            host("ratings", 9080)
        );
        assert_eq!(
            Destination::parse("R.Default.svc.:80").unwrap(),
            host("r.default.svc", 80)
        );
        assert_eq!(Destination::parse("[::1]:80").unwrap(), addr("[::1]:80"));
    }

    #[cfg(feature = "http")]
    #[test]
    fn reads_the_authority_of_uris() {
        let of_uri = |uri: &str| Destination::of_uri(&uri.parse().unwrap()).unwrap();
        assert_eq!(of_uri("http://[::1]/x"), addr("[::1]:80"));
        assert_eq!(of_uri("http://10.0.0.1:8080/x"), addr("10.0.0.1:8080"));
        assert_eq!(of_uri("http://ratings/x"), host("ratings", 80));
    }

    #[test]
    fn refuses_what_is_no_destination() {
        let bad = [
            "",
            "ratings",
            "ratings:",
            "ratings:0",
            "ratings:70000",
            ":80",
            "a b:80",
            "a..b:80",
            "10.0.0.1:0",
            "user@host:80",
            "a/b:80",
        ];
        for text in bad {
            let error = Destination::parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadRequest, "{text:?}");
        }
    }

    #[cfg(feature = "http")]
    #[test]
    fn refuses_uris_that_are_no_destination() {
        for uri in ["https://ratings/", "/path", "http://ratings:0/"] {
            assert!(Destination::of_uri(&uri.parse().unwrap()).is_err(), "{uri}");
        }
    }
}
