//! Evaluates one matcher.
//!
//! Every evaluation of a condition answers yes or no. What is unknown, and what a header with several values says, is
//! answered by the [`Lean`] of the place where it stands, which `not` turns round: so a condition of
//! three-valued logic that is unknown as a whole comes out on the side that was asked for.

use std::net::IpAddr;

use http::{HeaderName, HeaderValue};

use crate::attributes::{Attribute, Attributes, RequestAttributes};
use crate::matcher::{self, StringMatch};
use crate::policy::Matcher;

/// How much of the request an evaluation looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    /// All that the attributes tell.
    Full,
    /// Nothing: what only a request can tell counts as unknown, told or not.
    L4,
}

/// What a matcher counts as where its attribute does not decide it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lean {
    /// The answer when the attribute is unknown.
    pub(crate) unknown: bool,
    /// Whether one value of a header is enough; all of them have to match otherwise.
    pub(crate) one_value: bool,
}

impl Lean {
    /// For rules that refuse: in doubt they match.
    pub(crate) const REFUSE: Self = Self {
        unknown: true,
        one_value: true,
    };
    /// For rules that permit: in doubt they do not.
    pub(crate) const PERMIT: Self = Self {
        unknown: false,
        one_value: false,
    };

    /// The same, with unknown counted to the other side: "may still turn out so".
    pub(crate) fn hopeful(self) -> Self {
        Self {
            unknown: !self.unknown,
            ..self
        }
    }

    /// As it is under a `not`.
    pub(crate) fn turned(self) -> Self {
        Self {
            unknown: !self.unknown,
            one_value: !self.one_value,
        }
    }
}

/// Whether the matcher's attribute matches; `None` when that is unknown.
pub(crate) fn is(
    matcher: &Matcher,
    attributes: &Attributes<'_>,
    view: View,
    lean: Lean,
) -> Option<bool> {
    match matcher {
        Matcher::Principal(value) => identity(attributes, |id| value.matches(id.principal())),
        Matcher::Namespace(value) => identity(attributes, |id| value.matches(id.namespace())),
        Matcher::ServiceAccount { namespace, name } => identity(attributes, |id| {
            id.namespace() == &**namespace && id.service_account() == &**name
        }),
        Matcher::TrustDomain(value) => identity(attributes, |id| value.matches(id.trust_domain())),
        Matcher::SourceIp(net) => Some(matcher::contains(net, attributes.source.ip())),
        Matcher::DestinationIp(net) => Some(matcher::contains(net, attributes.destination.ip())),
        Matcher::DestinationPort(port) => Some(attributes.destination.port() == *port),
        Matcher::Sni(value) => known(&attributes.sni, |sni| value.matches(sni)),
        Matcher::RemoteIp(net) => remote_ip(attributes, view).map(|ip| matcher::contains(net, ip)),
        Matcher::Host(value) => request(attributes, view, |request| {
            request
                .host
                .is_some_and(|host| value.matches_ignoring_case(host))
        }),
        Matcher::Method(value) => request(attributes, view, |request| {
            value.matches(request.method.as_str())
        }),
        Matcher::Path(value) => request(attributes, view, |request| {
            value.matches_alone(request.path_alone)
        }),
        Matcher::Header { name, value } => match request_of(attributes, view) {
            Attribute::Present(request) => header(request, name, value, lean),
            Attribute::Absent => Some(false),
            Attribute::Unknown => None,
        },
        // Tokens are not verified and Envoy's metadata does not exist: known to be absent. A view
        // without the request has lost the condition all the same.
        Matcher::RequestPrincipal { .. }
        | Matcher::Audience(_)
        | Matcher::Presenter(_)
        | Matcher::Claim { .. }
        | Matcher::EnvoyMetadata { .. } => match view {
            View::Full => Some(false),
            View::L4 => None,
        },
    }
}

/// The original client's address, where it is known.
pub(crate) fn remote_ip(attributes: &Attributes<'_>, view: View) -> Option<IpAddr> {
    match request_of(attributes, view) {
        Attribute::Present(request) => Some(request.remote_ip.unwrap_or(attributes.source.ip())),
        Attribute::Absent => Some(attributes.source.ip()),
        Attribute::Unknown => None,
    }
}

pub(crate) fn request_of<'a, 'b>(
    attributes: &'b Attributes<'a>,
    view: View,
) -> Attribute<&'b RequestAttributes<'a>> {
    match (view, &attributes.request) {
        (View::L4, _) | (_, Attribute::Unknown) => Attribute::Unknown,
        (View::Full, Attribute::Absent) => Attribute::Absent,
        (View::Full, Attribute::Present(request)) => Attribute::Present(request),
    }
}

fn request<'a>(
    attributes: &Attributes<'a>,
    view: View,
    test: impl FnOnce(&RequestAttributes<'a>) -> bool,
) -> Option<bool> {
    match request_of(attributes, view) {
        Attribute::Present(request) => Some(test(request)),
        Attribute::Absent => Some(false),
        Attribute::Unknown => None,
    }
}

fn identity(
    attributes: &Attributes<'_>,
    test: impl FnOnce(&crate::Identity) -> bool,
) -> Option<bool> {
    known(&attributes.identity, test)
}

fn known<T: Copy>(attribute: &Attribute<T>, test: impl FnOnce(T) -> bool) -> Option<bool> {
    match attribute {
        Attribute::Present(value) => Some(test(*value)),
        Attribute::Absent => Some(false),
        Attribute::Unknown => None,
    }
}

fn header(
    request: &RequestAttributes<'_>,
    name: &HeaderName,
    value: &StringMatch,
    lean: Lean,
) -> Option<bool> {
    let mut values = request.headers.get_all(name).iter().peekable();
    if values.peek().is_none() {
        return Some(false);
    }
    // Nobody can say what a value that is not text matches: it counts against access.
    let test = |one: &HeaderValue| {
        value
            .matches_bytes(one.as_bytes())
            .unwrap_or(lean.one_value)
    };
    Some(if lean.one_value {
        values.any(test)
    } else {
        values.all(test)
    })
}
