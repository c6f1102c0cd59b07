use std::fmt;
use std::net::SocketAddr;

use http::HeaderValue;

/// Where a tunnelled connection comes from and which service it asked for
/// ([RFC 7239](https://www.rfc-editor.org/rfc/rfc7239), in the form that istio/ztunnel sends).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarded {
    source: Option<SocketAddr>,
    host: Option<Box<str>>,
}

impl Forwarded {
    /// The client's own address; it is sent as `for="ip:port"`, always quoted.
    pub fn new(source: SocketAddr) -> Self {
        Self {
            source: Some(source),
            host: None,
        }
    }

    /// Adds the host name of the service; it is sent unquoted. A name that this form cannot carry is
    /// left out.
    #[must_use]
    pub fn with_host(mut self, host: &str) -> Self {
        let fits = |byte: u8| {
            byte.is_ascii_graphic() && !matches!(byte, b';' | b',' | b'"' | b'=' | b'\\')
        };
        self.host = (!host.is_empty() && host.bytes().all(fits)).then(|| host.into());
        self
    }

    /// The address that the connection comes from, as the peer says.
    pub fn source(&self) -> Option<SocketAddr> {
        self.source
    }

    /// The service that the connection asked for, as the peer says.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// Reads the first `for=` and the first `host=` of the first line. Values of several hops, which
    /// nobody in a mesh sends, are not taken apart.
    pub(super) fn parse(line: &HeaderValue) -> Option<Self> {
        let line = line.to_str().ok()?;
        let find = |name: &str| {
            let value = line
                .split(';')
                .find_map(|part| part.trim().strip_prefix(name))?;
            let value = value.strip_prefix('"').unwrap_or(value);
            let value = value.strip_suffix('"').unwrap_or(value);
            (!value.is_empty()).then_some(value)
        };
        Some(Self {
            source: find("for=").and_then(|source| source.parse().ok()),
            host: find("host=").map(Into::into),
        })
    }

    pub(super) fn value(&self) -> HeaderValue {
        super::ascii(self.to_string())
    }
}

/// The header's value.
impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(source) = self.source {
            // A scope id would be meaningless to the peer.
            let source = SocketAddr::new(source.ip(), source.port());
            write!(f, "for=\"{source}\"")?;
        }
        if let Some(host) = &self.host {
            let separator = if self.source.is_some() { ";" } else { "" };
            write!(f, "{separator}host={host}")?;
        }
        Ok(())
    }
}
