//! The destination that a CONNECT names.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use crate::{Error, ErrorKind, Side};

/// Bytes of an authority; longer ones are refused (CVE-2024-32475 was one such).
const MAX_LEN: usize = 255;

/// `ip:port`, `[ipv6]:port` or `host:port`, checked.
///
/// Host names are of letters, digits, `-`, `_` and `.`, compared without regard to case and kept in
/// lower case without a trailing dot. There is always a port, and it is never 0. Cloning is at most
/// one reference count.
///
/// # Examples
///
/// ```
/// use mesh_hbone::authority::Authority;
///
/// let authority: Authority = "[2001:db8::7]:9080".parse()?;
/// assert_eq!(authority.port(), 9080);
/// assert!(authority.ip().is_some());
/// assert!("user@10.0.0.7:9080".parse::<Authority>().is_err());
/// # Ok::<(), mesh_hbone::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Authority {
    host: Host,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Host {
    Ip(IpAddr),
    Name(Arc<str>),
}

impl Authority {
    /// A host name and port.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidAuthority`] if the name is none, or the port is 0. A literal IP address is
    /// accepted and becomes one.
    pub fn from_host(host: &str, port: u16) -> Result<Self, Error> {
        let text = if host.contains(':') && !host.starts_with('[') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        };
        text.parse()
    }

    /// The address, when the host is one.
    pub fn ip(&self) -> Option<IpAddr> {
        match self.host {
            Host::Ip(ip) => Some(ip),
            Host::Name(_) => None,
        }
    }

    /// Address and port, when the host is an address.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        self.ip().map(|ip| SocketAddr::new(ip, self.port))
    }

    /// The name, when the host is one: lower case, no trailing dot.
    pub fn hostname(&self) -> Option<&str> {
        match &self.host {
            Host::Name(name) => Some(name),
            Host::Ip(_) => None,
        }
    }

    /// The port; never 0.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// The port is taken as it is; an authority with port 0 is refused by every peer.
impl From<SocketAddr> for Authority {
    fn from(address: SocketAddr) -> Self {
        Self {
            host: Host::Ip(address.ip()),
            port: address.port(),
        }
    }
}

impl FromStr for Authority {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text.len() > MAX_LEN {
            return Err(invalid(text, "more than 255 bytes"));
        }
        let (host, port) = text
            .rsplit_once(':')
            .ok_or_else(|| invalid(text, "expected a port"))?;
        let port =
            parse_port(port).ok_or_else(|| invalid(text, "expected a port of 1 to 65535"))?;
        let host = match host.strip_prefix('[') {
            Some(rest) => {
                let ip = rest
                    .strip_suffix(']')
                    .and_then(|ip| ip.parse::<Ipv6Addr>().ok())
                    .ok_or_else(|| invalid(text, "expected an IPv6 address in brackets"))?;
                Host::Ip(IpAddr::V6(ip))
            }
            None => match host.parse::<Ipv4Addr>() {
                Ok(ip) => Host::Ip(IpAddr::V4(ip)),
                Err(_) => Host::Name(
                    parse_name(host)
                        .ok_or_else(|| invalid(text, "expected an address or host name"))?,
                ),
            },
        };
        Ok(Self { host, port })
    }
}

fn parse_port(text: &str) -> Option<u16> {
    // u16's own parser takes a plus sign.
    if text.is_empty() || text.len() > 5 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|&port| port != 0)
}

fn parse_name(name: &str) -> Option<Arc<str>> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let label = |label: &str| {
        let fits = (1..=63).contains(&label.len());
        fits && label
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return None;
    }
    // "10.0.1" and "0x7f.1" are addresses to some resolvers and names to others: refuse both readings.
    let last = name.rsplit('.').next()?;
    if last.as_bytes()[0].is_ascii_digit()
        && (last.bytes().all(|byte| byte.is_ascii_digit())
            || last.starts_with("0x")
            || last.starts_with("0X"))
    {
        return None;
    }
    Some(Arc::from(name.to_ascii_lowercase()))
}

fn invalid(text: &str, expected: &str) -> Error {
    let shown: String = text.chars().take(64).collect();
    Error::new(ErrorKind::InvalidAuthority, Side::Us).with_detail(format!("{shown:?}: {expected}"))
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests;
