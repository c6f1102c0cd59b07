//! Who asks and for what, with values of their own. Also a module of the fuzz target `policy`.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, Method};
use mesh_authz::{Attribute, Attributes, Identity, RequestAttributes};

/// What a connection is.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) identity: Attribute<Identity>,
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) sni: Attribute<String>,
}

/// What a request is.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) host: Option<String>,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) remote_ip: Option<IpAddr>,
}

impl Connection {
    /// The connection's attributes, with a request that is to come.
    pub(crate) fn attributes(&self) -> Attributes<'_> {
        Attributes::new(self.source, self.destination)
            .with_identity(borrow(&self.identity))
            .with_sni(match borrow(&self.sni) {
                Attribute::Present(sni) => Attribute::Present(sni.as_str()),
                Attribute::Absent => Attribute::Absent,
                Attribute::Unknown => Attribute::Unknown,
            })
    }

    /// The same, with a request.
    pub(crate) fn with<'a>(&'a self, request: &'a Request) -> Attributes<'a> {
        let mut told = RequestAttributes::new(
            &request.method,
            request.host.as_deref(),
            &request.path,
            &request.headers,
        );
        if let Some(ip) = request.remote_ip {
            told = told.with_remote_ip(ip);
        }
        self.attributes().with_request(told)
    }
}

fn borrow<T>(attribute: &Attribute<T>) -> Attribute<&T> {
    match attribute {
        Attribute::Present(value) => Attribute::Present(value),
        Attribute::Absent => Attribute::Absent,
        Attribute::Unknown => Attribute::Unknown,
    }
}
