use std::sync::Arc;

use http::HeaderName;

use super::Condition;
use super::lower::{self, Scope};
use crate::error::{Error, ErrorKind};
use crate::matcher::StringMatch;
use crate::policy::{Expr, Matcher};

/// Lowers one of `when` into parts of its rule's conjunction.
pub(super) fn lower(
    scope: &Scope<'_>,
    when: &Condition,
    field: &str,
    all: &mut Vec<Expr>,
) -> Result<(), Error> {
    let key = Key::parse(&when.key, &format!("{field}.key"))?;
    if when.values.is_empty() && when.not_values.is_empty() {
        return Err(Error::empty(field, "values or notValues"));
    }
    scope.pair(
        field,
        ("values", &when.values),
        ("notValues", &when.not_values),
        |value, field| key.lower(scope, value, field),
        all,
    )
}

/// A key of `when`, as documented by Istio.
enum Key {
    Header(HeaderName),
    Host,
    Method,
    SourceIp,
    RemoteIp,
    SourceNamespace,
    SourcePrincipal,
    SourceServiceAccount,
    SourceTrustDomain,
    RequestPrincipal,
    Audience,
    Presenter,
    Claim(Vec<Arc<str>>),
    DestinationIp,
    DestinationPort,
    Sni,
    EnvoyMetadata { filter: Arc<str>, key: Arc<str> },
}

const KEYS: &str = "request.headers[name], source.ip, remote.ip, source.namespace, source.principal, \
source.serviceAccount, source.trustDomain, request.auth.principal, request.auth.audiences, \
request.auth.presenter, request.auth.claims[name], destination.ip, destination.port, connection.sni \
or experimental.envoy.filters.<filter>[key]";

impl Key {
    fn parse(key: &str, field: &str) -> Result<Self, Error> {
        let invalid = |expected: &'static str| Error::new(ErrorKind::Key, field, key, expected);
        if let Some(rest) = key.strip_prefix("request.headers") {
            let names = brackets(rest).ok_or_else(|| invalid("request.headers[name]"))?;
            let [name] = names.as_slice() else {
                return Err(invalid("request.headers[name]"));
            };
            return Self::header(name)
                .ok_or_else(|| invalid("the name of a header, :method or :authority"));
        }
        if let Some(rest) = key.strip_prefix("request.auth.claims") {
            let names = brackets(rest).ok_or_else(|| invalid("request.auth.claims[name]"))?;
            return Ok(Self::Claim(names.into_iter().map(Arc::from).collect()));
        }
        if let Some(rest) = key.strip_prefix("experimental.")
            && rest.starts_with("envoy.filters.")
        {
            let shape = || invalid("experimental.envoy.filters.<filter>[key]");
            let at = rest.find('[').ok_or_else(shape)?;
            let names = brackets(&rest[at..]).ok_or_else(shape)?;
            let [name] = names.as_slice() else {
                return Err(shape());
            };
            return Ok(Self::EnvoyMetadata {
                filter: rest[..at].into(),
                key: (*name).into(),
            });
        }
        Ok(match key {
            "source.ip" => Self::SourceIp,
            "remote.ip" => Self::RemoteIp,
            "source.namespace" => Self::SourceNamespace,
            "source.principal" => Self::SourcePrincipal,
            "source.serviceAccount" => Self::SourceServiceAccount,
            "source.trustDomain" => Self::SourceTrustDomain,
            "request.auth.principal" => Self::RequestPrincipal,
            "request.auth.audiences" => Self::Audience,
            "request.auth.presenter" => Self::Presenter,
            "destination.ip" => Self::DestinationIp,
            "destination.port" => Self::DestinationPort,
            "connection.sni" => Self::Sni,
            _ => return Err(invalid(KEYS)),
        })
    }

    /// Envoy keeps pseudo-headers and `host` among the headers; here they are attributes of their own.
    fn header(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            ":method" => Some(Self::Method),
            ":authority" | "host" => Some(Self::Host),
            name => HeaderName::try_from(name).ok().map(Self::Header),
        }
    }

    fn lower(&self, scope: &Scope<'_>, value: &str, field: &str) -> Result<Expr, Error> {
        let text = || StringMatch::from_istio(value);
        match self {
            Self::Header(name) => Ok(lower::header(name, value)),
            Self::Host => lower::host(value, field),
            Self::Method => lower::method(value, field),
            Self::SourceIp => lower::source_ip(value, field),
            Self::RemoteIp => lower::remote_ip(value, field),
            Self::SourceNamespace => lower::namespace(value, field),
            Self::SourcePrincipal => scope.principal(value, field),
            Self::SourceServiceAccount => scope.service_account(value, field),
            Self::SourceTrustDomain => lower::trust_domain(value, field),
            Self::RequestPrincipal => lower::request_principal(value, field),
            Self::Audience => Ok(lower::is(Matcher::Audience(text()))),
            Self::Presenter => Ok(lower::is(Matcher::Presenter(text()))),
            Self::Claim(path) => Ok(lower::is(Matcher::Claim {
                path: path.clone(),
                value: text(),
            })),
            Self::DestinationIp => lower::destination_ip(value, field),
            Self::DestinationPort => lower::port(value, field),
            Self::Sni => Ok(lower::is(Matcher::Sni(text()))),
            Self::EnvoyMetadata { filter, key } => {
                // `[value]` asks for an element of a list.
                let value = value
                    .strip_prefix('[')
                    .and_then(|value| value.strip_suffix(']'))
                    .unwrap_or(value);
                Ok(lower::is(Matcher::EnvoyMetadata {
                    filter: filter.clone(),
                    key: key.clone(),
                    value: StringMatch::from_istio(value),
                }))
            }
        }
    }
}

/// Reads `[a][b]…`: at least one name, none empty.
fn brackets(mut text: &str) -> Option<Vec<&str>> {
    let mut names = Vec::new();
    while !text.is_empty() {
        let (name, rest) = text.strip_prefix('[')?.split_once(']')?;
        if name.is_empty() || name.contains('[') {
            return None;
        }
        names.push(name);
        text = rest;
    }
    (!names.is_empty()).then_some(names)
}
