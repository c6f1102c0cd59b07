//! Reduces a rule's condition to what a view of the connection can tell, and long lists to sets.

use std::collections::HashSet;
use std::sync::Arc;

use ipnet::IpNet;

use super::blocks::Blocks;
use super::evaluate::{self, Lean, View};
use super::keyed;
use crate::attributes::{Attribute, Attributes};
use crate::matcher::{self, PathMatch, StringMatch};
use crate::policy::{Expr, Matcher};

/// A condition as it is evaluated.
pub(super) enum Node {
    All(Box<[Node]>),
    Any(Box<[Node]>),
    Not(Box<Node>),
    Is(Matcher),
    In(Set),
}

/// Many values of one attribute, of which any will do.
pub(super) enum Set {
    Principal(keyed::Set<Arc<str>>),
    Namespace(keyed::Set<Arc<str>>),
    /// As [`account_key`] writes them.
    ServiceAccount(keyed::Set<Arc<str>>),
    SourceIp(Blocks<IpNet>),
    DestinationIp(Blocks<IpNet>),
    RemoteIp(Blocks<IpNet>),
    DestinationPort(keyed::Set<u16>),
    Path(keyed::Set<Arc<str>>),
}

/// From how many values on a list is looked up rather than walked.
const SET: usize = 8;

/// What counts for a condition that the view cannot see, at its place: see [`Lean`].
#[derive(Clone, Copy)]
pub(super) enum Hidden {
    /// Nothing is hidden.
    Nothing,
    /// Conditions on the request are, whatever they are on.
    Request { counts: bool },
    /// Conditions on the request are that a later request may tell.
    LaterRequest { counts: bool },
}

impl Hidden {
    fn turned(self) -> Self {
        match self {
            Self::Nothing => Self::Nothing,
            Self::Request { counts } => Self::Request { counts: !counts },
            Self::LaterRequest { counts } => Self::LaterRequest { counts: !counts },
        }
    }

    /// What the matcher counts as, if it is not evaluated.
    fn value(self, matcher: &Matcher) -> Option<bool> {
        match self {
            Self::Request { counts } if matcher.needs_request() => Some(counts),
            _ if is_never_there(matcher) => Some(false),
            Self::LaterRequest { counts } if matcher.needs_request() => Some(counts),
            _ => None,
        }
    }
}

/// Tokens are not verified, and Envoy's metadata does not exist.
fn is_never_there(matcher: &Matcher) -> bool {
    matches!(
        matcher,
        Matcher::RequestPrincipal { .. }
            | Matcher::Audience(_)
            | Matcher::Presenter(_)
            | Matcher::Claim { .. }
            | Matcher::EnvoyMetadata { .. }
    )
}

impl Node {
    pub(super) fn new(expr: &Expr, hidden: Hidden) -> Self {
        match expr {
            Expr::All(parts) => {
                let mut all = Vec::with_capacity(parts.len());
                for part in parts {
                    match Self::new(part, hidden) {
                        Self::All(inner) => all.extend(inner),
                        part if part.is_false() => return Self::no(),
                        part => all.push(part),
                    }
                }
                Self::join(all, Self::All)
            }
            Expr::Any(parts) => {
                let mut any = Vec::with_capacity(parts.len());
                for part in parts {
                    match Self::new(part, hidden) {
                        Self::Any(inner) => any.extend(inner),
                        part if part.is_true() => return Self::yes(),
                        part => any.push(part),
                    }
                }
                Self::join(gather(any), Self::Any)
            }
            Expr::Not(part) => match Self::new(part, hidden.turned()) {
                part if part.is_true() => Self::no(),
                part if part.is_false() => Self::yes(),
                Self::Not(part) => *part,
                part => Self::Not(Box::new(part)),
            },
            Expr::Is(matcher) => match hidden.value(matcher) {
                Some(true) => Self::yes(),
                Some(false) => Self::no(),
                None => Self::Is(canonical(matcher)),
            },
        }
    }

    fn yes() -> Self {
        Self::All(Box::default())
    }

    fn no() -> Self {
        Self::Any(Box::default())
    }

    fn join(mut parts: Vec<Self>, join: fn(Box<[Self]>) -> Self) -> Self {
        match parts.len() {
            1 => parts.swap_remove(0),
            _ => join(parts.into_boxed_slice()),
        }
    }

    pub(super) fn is_true(&self) -> bool {
        matches!(self, Self::All(parts) if parts.is_empty())
    }

    pub(super) fn is_false(&self) -> bool {
        matches!(self, Self::Any(parts) if parts.is_empty())
    }

    /// Nodes, itself included.
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        match self {
            Self::All(parts) | Self::Any(parts) => 1 + parts.iter().map(Self::size).sum::<usize>(),
            Self::Not(part) => 1 + part.size(),
            Self::Is(_) | Self::In(_) => 1,
        }
    }

    /// Whether the condition holds.
    pub(super) fn holds(&self, attributes: &Attributes<'_>, lean: Lean) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|part| part.holds(attributes, lean)),
            Self::Any(parts) => parts.iter().any(|part| part.holds(attributes, lean)),
            Self::Not(part) => !part.holds(attributes, lean.turned()),
            Self::Is(matcher) => {
                evaluate::is(matcher, attributes, View::Full, lean).unwrap_or(lean.unknown)
            }
            Self::In(set) => set.holds(attributes).unwrap_or(lean.unknown),
        }
    }
}

impl Set {
    fn holds(&self, attributes: &Attributes<'_>) -> Option<bool> {
        let identity = |test: &dyn Fn(&crate::Identity) -> bool| match attributes.identity {
            Attribute::Present(identity) => Some(test(identity)),
            Attribute::Absent => Some(false),
            Attribute::Unknown => None,
        };
        match self {
            Self::Principal(set) => identity(&|id| set.contains(id.principal())),
            Self::Namespace(set) => identity(&|id| set.contains(id.namespace())),
            Self::ServiceAccount(set) => identity(&|id| set.contains(account_of(id))),
            Self::SourceIp(blocks) => Some(blocks.covers(attributes.source.ip())),
            Self::DestinationIp(blocks) => Some(blocks.covers(attributes.destination.ip())),
            Self::RemoteIp(blocks) => {
                evaluate::remote_ip(attributes, View::Full).map(|ip| blocks.covers(ip))
            }
            Self::DestinationPort(set) => Some(set.contains(&attributes.destination.port())),
            Self::Path(set) => match &attributes.request {
                Attribute::Present(request) => Some(set.contains(request.path_alone)),
                Attribute::Absent => Some(false),
                Attribute::Unknown => None,
            },
        }
    }
}

/// Namespace and account as they stand next to each other in a principal.
pub(super) fn account_key(namespace: &str, name: &str) -> Arc<str> {
    format!("/ns/{namespace}/sa/{name}").into()
}

/// What [`account_key`] is compared with.
pub(super) fn account_of(identity: &crate::Identity) -> &str {
    &identity.principal()[identity.trust_domain().len()..]
}

fn canonical(matcher: &Matcher) -> Matcher {
    match matcher {
        Matcher::SourceIp(net) => Matcher::SourceIp(matcher::canonical_net(*net)),
        Matcher::DestinationIp(net) => Matcher::DestinationIp(matcher::canonical_net(*net)),
        Matcher::RemoteIp(net) => Matcher::RemoteIp(matcher::canonical_net(*net)),
        other => other.clone(),
    }
}

/// Gathers exact values of one attribute, where they are many, into sets.
fn gather(parts: Vec<Node>) -> Vec<Node> {
    if parts.len() < SET {
        return parts;
    }
    let mut lists: [Vec<Matcher>; Kind::COUNT] = Default::default();
    let mut rest = Vec::new();
    for part in parts {
        match part {
            Node::Is(matcher) => match Kind::of(&matcher) {
                Some(kind) => lists[kind as usize].push(matcher),
                None => rest.push(Node::Is(matcher)),
            },
            part => rest.push(part),
        }
    }
    for list in lists {
        match list.first().and_then(Kind::of) {
            Some(kind) if list.len() >= SET => rest.push(Node::In(kind.set(&list))),
            _ => rest.extend(list.into_iter().map(Node::Is)),
        }
    }
    rest
}

#[derive(Clone, Copy)]
enum Kind {
    Principal,
    Namespace,
    ServiceAccount,
    SourceIp,
    DestinationIp,
    RemoteIp,
    DestinationPort,
    Path,
}

impl Kind {
    const COUNT: usize = Self::Path as usize + 1;

    fn of(matcher: &Matcher) -> Option<Self> {
        Some(match matcher {
            Matcher::Principal(StringMatch::Exact(_)) => Self::Principal,
            Matcher::Namespace(StringMatch::Exact(_)) => Self::Namespace,
            Matcher::ServiceAccount { .. } => Self::ServiceAccount,
            Matcher::SourceIp(_) => Self::SourceIp,
            Matcher::DestinationIp(_) => Self::DestinationIp,
            Matcher::RemoteIp(_) => Self::RemoteIp,
            Matcher::DestinationPort(_) => Self::DestinationPort,
            Matcher::Path(PathMatch::String(StringMatch::Exact(_))) => Self::Path,
            _ => return None,
        })
    }

    /// The set of the values of matchers that are all of this kind.
    fn set(self, list: &[Matcher]) -> Set {
        let texts = || {
            list.iter()
                .filter_map(|matcher| match matcher {
                    Matcher::Principal(StringMatch::Exact(text))
                    | Matcher::Namespace(StringMatch::Exact(text))
                    | Matcher::Path(PathMatch::String(StringMatch::Exact(text))) => {
                        Some(text.clone())
                    }
                    Matcher::ServiceAccount { namespace, name } => {
                        Some(account_key(namespace, name))
                    }
                    _ => None,
                })
                .collect()
        };
        let ports = || {
            list.iter()
                .filter_map(|matcher| match matcher {
                    Matcher::DestinationPort(port) => Some(*port),
                    _ => None,
                })
                .collect()
        };
        let blocks = || {
            let blocks: HashSet<_> = list
                .iter()
                .filter_map(|matcher| match matcher {
                    Matcher::SourceIp(net)
                    | Matcher::DestinationIp(net)
                    | Matcher::RemoteIp(net) => Some((*net, *net)),
                    _ => None,
                })
                .collect();
            Blocks::new(blocks)
        };
        match self {
            Self::Principal => Set::Principal(texts()),
            Self::Namespace => Set::Namespace(texts()),
            Self::ServiceAccount => Set::ServiceAccount(texts()),
            Self::SourceIp => Set::SourceIp(blocks()),
            Self::DestinationIp => Set::DestinationIp(blocks()),
            Self::RemoteIp => Set::RemoteIp(blocks()),
            Self::DestinationPort => Set::DestinationPort(ports()),
            Self::Path => Set::Path(texts()),
        }
    }
}
