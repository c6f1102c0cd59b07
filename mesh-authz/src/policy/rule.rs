use std::fmt;
use std::sync::Arc;

use http::HeaderName;
use http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION};
use ipnet::IpNet;

use crate::matcher::{PathMatch, StringMatch};

/// One rule: an and/or/not expression over matchers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    when: Expr,
}

impl Rule {
    /// Makes a rule that matches when `when` holds.
    pub fn new(when: Expr) -> Self {
        Self { when }
    }

    /// The condition.
    pub fn when(&self) -> &Expr {
        &self.when
    }

    /// Whether the condition asks for what only an HTTP request can tell.
    pub fn needs_request(&self) -> bool {
        self.when.needs_request()
    }
}

/// A condition. `All([])` is true, `Any([])` is false.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Expr {
    /// Every part holds.
    All(Vec<Expr>),
    /// Some part holds.
    Any(Vec<Expr>),
    /// The part does not hold.
    Not(Box<Expr>),
    /// The attribute matches. False when the attribute is absent.
    Is(Matcher),
}

impl Expr {
    /// The condition that always holds.
    pub const TRUE: Self = Self::All(Vec::new());
    /// The condition that never holds.
    pub const FALSE: Self = Self::Any(Vec::new());

    /// Whether any matcher in it asks for what only an HTTP request can tell.
    pub fn needs_request(&self) -> bool {
        match self {
            Self::All(parts) | Self::Any(parts) => parts.iter().any(Self::needs_request),
            Self::Not(part) => part.needs_request(),
            Self::Is(matcher) => matcher.needs_request(),
        }
    }
}

/// Compares one attribute of the connection or of the request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Matcher {
    /// The peer's identity as `td/ns/<namespace>/sa/<account>`.
    Principal(StringMatch),
    /// The namespace of the peer's identity.
    Namespace(StringMatch),
    /// Namespace and service account of the peer's identity, in any trust domain.
    ServiceAccount {
        /// The namespace.
        namespace: Arc<str>,
        /// The service account.
        name: Arc<str>,
    },
    /// The trust domain of the peer's identity.
    TrustDomain(StringMatch),
    /// The address of the connection's peer.
    SourceIp(IpNet),
    /// The address that the connection or the tunnel was opened to.
    DestinationIp(IpNet),
    /// The port that the connection or the tunnel was opened to.
    DestinationPort(u16),
    /// The TLS server name of the connection inside the tunnel.
    Sni(StringMatch),
    /// The address of the original client, from trusted forwarding headers; the peer's without any.
    RemoteIp(IpNet),
    /// The request's authority, port included; compared without regard to case.
    Host(StringMatch),
    /// The request's method, case-sensitive.
    Method(StringMatch),
    /// The request's normalised path without query.
    Path(PathMatch),
    /// A request header. Several values: a denial needs one that matches, a permission needs all to.
    Header {
        /// The header's name.
        name: HeaderName,
        /// What the value must be.
        value: StringMatch,
    },
    /// `iss/sub` of a verified token.
    RequestPrincipal {
        /// What `iss` must be.
        issuer: StringMatch,
        /// What `sub` must be.
        subject: StringMatch,
    },
    /// Some audience (`aud`) of a verified token.
    Audience(StringMatch),
    /// The authorized presenter (`azp`) of a verified token.
    Presenter(StringMatch),
    /// A claim of a verified token, nested by `path`; of a list, some element.
    Claim {
        /// The path of names to the claim, outermost first.
        path: Vec<Arc<str>>,
        /// What the value must be.
        value: StringMatch,
    },
    /// Dynamic metadata of an Envoy filter, which this implementation does not have: always absent.
    EnvoyMetadata {
        /// The filter's name.
        filter: Arc<str>,
        /// The key in its metadata.
        key: Arc<str>,
        /// What the value must be.
        value: StringMatch,
    },
}

impl Matcher {
    /// Reads Istio's form of a request principal, `<issuer>/<subject>`, divided at the last `/`.
    ///
    /// `*` asks for any. `*suffix` and `prefix*` stand for the end of the issuer with the exact
    /// subject and for the exact issuer with the beginning of the subject; without a `/`, for the end
    /// of the subject and the beginning of the issuer, the other part being any.
    pub fn request_principal(value: &str) -> Self {
        let suffix = |text: &str| match text {
            "" => StringMatch::Present,
            text => StringMatch::Suffix(text.into()),
        };
        let prefix = |text: &str| match text {
            "" => StringMatch::Present,
            text => StringMatch::Prefix(text.into()),
        };
        let (issuer, subject) = if value == "*" {
            (StringMatch::Present, StringMatch::Present)
        } else if let Some(value) = value.strip_prefix('*') {
            match value.rsplit_once('/') {
                Some((issuer, subject)) => (suffix(issuer), StringMatch::Exact(subject.into())),
                None => (StringMatch::Present, suffix(value)),
            }
        } else if let Some(value) = value.strip_suffix('*') {
            match value.rsplit_once('/') {
                Some((issuer, subject)) => (StringMatch::Exact(issuer.into()), prefix(subject)),
                None => (prefix(value), StringMatch::Present),
            }
        } else {
            let (issuer, subject) = value.rsplit_once('/').unwrap_or((value, ""));
            (
                StringMatch::Exact(issuer.into()),
                StringMatch::Exact(subject.into()),
            )
        };
        Self::RequestPrincipal { issuer, subject }
    }

    /// Whether only an HTTP request can answer it.
    pub fn needs_request(&self) -> bool {
        match self {
            Self::Principal(_)
            | Self::Namespace(_)
            | Self::ServiceAccount { .. }
            | Self::TrustDomain(_)
            | Self::SourceIp(_)
            | Self::DestinationIp(_)
            | Self::DestinationPort(_)
            | Self::Sni(_) => false,
            Self::RemoteIp(_)
            | Self::Host(_)
            | Self::Method(_)
            | Self::Path(_)
            | Self::Header { .. }
            | Self::RequestPrincipal { .. }
            | Self::Audience(_)
            | Self::Presenter(_)
            | Self::Claim { .. }
            | Self::EnvoyMetadata { .. } => true,
        }
    }
}

/// Headers whose values are credentials.
pub(crate) const SECRETS: [HeaderName; 3] = [AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION];

impl Matcher {
    /// Says it as `Display` does, but for the value of a header that carries credentials
    /// (`authorization`, `cookie`, `proxy-authorization`): for pages and logs.
    pub fn without_secrets(&self) -> impl fmt::Display + '_ {
        WithoutSecrets(self)
    }
}

struct WithoutSecrets<'a>(&'a Matcher);

impl fmt::Display for WithoutSecrets<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Matcher::Header { name, .. } if SECRETS.contains(name) => {
                write!(f, "header {name} is what the policy says")
            }
            matcher => fmt::Display::fmt(matcher, f),
        }
    }
}

impl fmt::Display for Matcher {
    /// Says it for a person: `source namespace is default`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Principal(value) => write!(f, "source principal is {value}"),
            Self::Namespace(value) => write!(f, "source namespace is {value}"),
            Self::ServiceAccount { namespace, name } => {
                write!(f, "source service account is {namespace}/{name}")
            }
            Self::TrustDomain(value) => write!(f, "source trust domain is {value}"),
            Self::SourceIp(net) => write!(f, "source address is in {net}"),
            Self::DestinationIp(net) => write!(f, "destination address is in {net}"),
            Self::DestinationPort(port) => write!(f, "destination port is {port}"),
            Self::Sni(value) => write!(f, "TLS server name is {value}"),
            Self::RemoteIp(net) => write!(f, "client address is in {net}"),
            Self::Host(value) => write!(f, "host is {value}"),
            Self::Method(value) => write!(f, "method is {value}"),
            Self::Path(value) => write!(f, "path is {value}"),
            Self::Header { name, value } => write!(f, "header {name} is {value}"),
            Self::RequestPrincipal { issuer, subject } => {
                write!(f, "request principal is {issuer} / {subject}")
            }
            Self::Audience(value) => write!(f, "token audience is {value}"),
            Self::Presenter(value) => write!(f, "token presenter is {value}"),
            Self::Claim { path, value } => {
                f.write_str("token claim ")?;
                for name in path {
                    write!(f, "[{name}]")?;
                }
                write!(f, " is {value}")
            }
            Self::EnvoyMetadata { filter, key, value } => {
                write!(f, "metadata {filter}[{key}] is {value}")
            }
        }
    }
}
