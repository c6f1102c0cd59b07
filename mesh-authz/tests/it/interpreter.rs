//! The documented semantics of the vocabulary, as plainly as they can be written: each decision walks
//! all policies, each condition is evaluated in three-valued logic. Knows nothing of the engine.
//! Also a module of the fuzz target `policy`.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use mesh_authz::matcher::{PathMatch, StringMatch};
use mesh_authz::policy::{Action, Expr, Matcher, Policy};
use mesh_authz::{Attribute, Reason};

use crate::subjects::{Connection, Request};

/// How a decision is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    Full,
    L4,
    CouldAllow,
}

/// Reason and the place of the policy and rule that decided.
pub(crate) type Answer = (Reason, Option<(usize, usize)>);

/// Decides among the policies that are enforced; `dry_run` ones join in on request.
pub(crate) fn decide(
    policies: &[Arc<Policy>],
    connection: &Connection,
    request: Option<&Request>,
    question: Question,
    with_dry_run: bool,
) -> Answer {
    let applies = |policy: &Policy| with_dry_run || !policy.dry_run();
    let first = |wanted: &dyn Fn(&Action) -> bool, refuses: bool| {
        policies.iter().enumerate().find_map(|(p, policy)| {
            if !applies(policy) || !wanted(policy.action()) {
                return None;
            }
            policy.rules().iter().enumerate().find_map(|(r, rule)| {
                if question == Question::L4 && !refuses && rule.needs_request() {
                    return None;
                }
                let seen = Seen {
                    connection,
                    request: if question == Question::L4 {
                        None
                    } else {
                        request
                    },
                    l4: question == Question::L4,
                };
                let matched = match seen.kleene(rule.when(), refuses) {
                    Some(outcome) => outcome,
                    // In doubt a refusal holds and a permission does not; turned round for hope.
                    None => refuses != (question == Question::CouldAllow),
                };
                matched.then_some((p, r))
            })
        })
    };
    if let Some(at) = first(&|action| matches!(action, Action::Custom { .. }), true) {
        return (Reason::CustomUnavailable, Some(at));
    }
    if let Some(at) = first(&|action| *action == Action::Deny, true) {
        return (Reason::Denied, Some(at));
    }
    if !policies
        .iter()
        .any(|policy| applies(policy) && *policy.action() == Action::Allow)
    {
        return (Reason::NoAllowPolicies, None);
    }
    match first(&|action| *action == Action::Allow, false) {
        Some(at) => (Reason::Allowed, Some(at)),
        None => (Reason::NoneAllowed, None),
    }
}

struct Seen<'a> {
    connection: &'a Connection,
    request: Option<&'a Request>,
    l4: bool,
}

impl Seen<'_> {
    /// `any`: whether of a header's values one is enough.
    fn kleene(&self, expr: &Expr, any: bool) -> Option<bool> {
        match expr {
            Expr::All(parts) => {
                let parts: Vec<_> = parts.iter().map(|part| self.kleene(part, any)).collect();
                if parts.contains(&Some(false)) {
                    Some(false)
                } else if parts.contains(&None) {
                    None
                } else {
                    Some(true)
                }
            }
            Expr::Any(parts) => {
                let parts: Vec<_> = parts.iter().map(|part| self.kleene(part, any)).collect();
                if parts.contains(&Some(true)) {
                    Some(true)
                } else if parts.contains(&None) {
                    None
                } else {
                    Some(false)
                }
            }
            Expr::Not(part) => Some(!self.kleene(part, !any)?),
            Expr::Is(matcher) => self.matcher(matcher, any),
            _ => panic!("an expression that the interpreter does not know"),
        }
    }

    fn matcher(&self, matcher: &Matcher, any: bool) -> Option<bool> {
        let identity = match &self.connection.identity {
            Attribute::Present(identity) => Some(Some(identity)),
            Attribute::Absent => Some(None),
            Attribute::Unknown => None,
        };
        match matcher {
            Matcher::Principal(value) => {
                Some(identity?.is_some_and(|id| text(value, id.principal())))
            }
            Matcher::Namespace(value) => {
                Some(identity?.is_some_and(|id| text(value, id.namespace())))
            }
            Matcher::TrustDomain(value) => {
                Some(identity?.is_some_and(|id| text(value, id.trust_domain())))
            }
            Matcher::ServiceAccount { namespace, name } => Some(identity?.is_some_and(|id| {
                id.namespace() == &**namespace && id.service_account() == &**name
            })),
            Matcher::SourceIp(net) => Some(in_block(net, self.connection.source.ip())),
            Matcher::DestinationIp(net) => Some(in_block(net, self.connection.destination.ip())),
            Matcher::DestinationPort(port) => Some(self.connection.destination.port() == *port),
            Matcher::Sni(value) => match &self.connection.sni {
                Attribute::Present(sni) => Some(text(value, sni)),
                Attribute::Absent => Some(false),
                Attribute::Unknown => None,
            },
            Matcher::RequestPrincipal { .. }
            | Matcher::Audience(_)
            | Matcher::Presenter(_)
            | Matcher::Claim { .. }
            | Matcher::EnvoyMetadata { .. } => (!self.l4).then_some(false),
            Matcher::RemoteIp(net) => {
                let ip = self.request?.remote_ip;
                Some(in_block(net, ip.unwrap_or(self.connection.source.ip())))
            }
            Matcher::Host(value) => Some(match (&self.request?.host, value) {
                (None, _) => false,
                // An expression has its own idea of case.
                (Some(host), StringMatch::Regex(_)) => text(value, host),
                (Some(host), _) => text(&lower(value), &host.to_lowercase()),
            }),
            Matcher::Method(value) => Some(text(value, self.request?.method.as_str())),
            Matcher::Path(value) => {
                let path = self.request?.path.split('?').next().unwrap();
                Some(match value {
                    PathMatch::String(value) => text(value, path),
                    PathMatch::Template(template) => template_matches(template.as_str(), path),
                    _ => panic!("a path that the interpreter does not know"),
                })
            }
            Matcher::Header { name, value } => {
                let values: Vec<bool> = self
                    .request?
                    .headers
                    .get_all(name)
                    .iter()
                    .map(|one| text(value, one.to_str().unwrap()))
                    .collect();
                Some(match any {
                    true => values.contains(&true),
                    false => !values.is_empty() && !values.contains(&false),
                })
            }
            _ => panic!("a matcher that the interpreter does not know"),
        }
    }
}

/// Every form as an expression, escaped.
fn text(pattern: &StringMatch, value: &str) -> bool {
    let expression = match pattern {
        StringMatch::Exact(exact) => regex::escape(exact),
        StringMatch::Prefix(prefix) => format!("{}(?s:.*)", regex::escape(prefix)),
        StringMatch::Suffix(suffix) => format!("(?s:.*){}", regex::escape(suffix)),
        StringMatch::Present => "(?s:.+)".to_owned(),
        StringMatch::Regex(regex) => regex.as_str().to_owned(),
        _ => panic!("a string form that the interpreter does not know"),
    };
    regex::Regex::new(&format!(r"\A(?:{expression})\z"))
        .unwrap()
        .is_match(value)
}

fn lower(value: &StringMatch) -> StringMatch {
    match value {
        StringMatch::Exact(text) => StringMatch::Exact(text.to_lowercase().into()),
        StringMatch::Prefix(text) => StringMatch::Prefix(text.to_lowercase().into()),
        StringMatch::Suffix(text) => StringMatch::Suffix(text.to_lowercase().into()),
        other => other.clone(),
    }
}

/// By the expressions that Envoy uses for the operators.
pub(crate) fn template_matches(template: &str, path: &str) -> bool {
    let class = r"[A-Za-z0-9\-._~%!$&'()+,;:@]";
    let many = r"[A-Za-z0-9\-._~%!$&'()+,;:@/]*";
    let expression = regex::escape(template)
        .replace(r"\{\*\*\}", many)
        .replace(r"\{\*\}", &format!("{class}+"));
    regex::Regex::new(&format!(r"\A(?:{expression})\z"))
        .unwrap()
        .is_match(path)
}

/// Bit by bit, IPv4-mapped as IPv4.
pub(crate) fn in_block(net: &IpNet, ip: IpAddr) -> bool {
    let net = match net {
        IpNet::V6(six) if six.prefix_len() >= 96 => match six.addr().to_ipv4_mapped() {
            Some(four) => IpNet::V4(Ipv4Net::new(four, six.prefix_len() - 96).unwrap()),
            None => *net,
        },
        net => *net,
    };
    let (address, block, width) = match (ip.to_canonical(), net.addr()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u32::from(a).into(), u32::from(b).into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a), u128::from(b), 128),
        _ => return false,
    };
    let length = u32::from(net.prefix_len());
    (0..length).all(|bit| (address ^ block) & (1 << (width - 1 - bit)) == 0)
}
