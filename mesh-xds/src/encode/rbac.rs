//! Policies as Envoy's RBAC (`envoy.config.rbac.v3`), whole: requests included.
//!
//! A rule is any of some permissions together with any of some principals. A condition that mixes the two
//! is divided into alternatives, each an entry of its own. What no matcher says counts as not met where the
//! policy permits, and as met where it refuses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use mesh_authz::matcher::{PathMatch, StringMatch};
use mesh_authz::policy::{Expr, Matcher, Policy, Rule};
use prost::Message;

use super::normal::Side;
use crate::proto::envoy::config::core::v3::{CidrRange, TypedExtensionConfig};
use crate::proto::envoy::config::rbac::v3 as wire;
use crate::proto::envoy::config::rbac::v3::permission::Rule as PermissionRule;
use crate::proto::envoy::config::rbac::v3::principal::Identifier;
use crate::proto::envoy::config::route::v3::HeaderMatcher;
use crate::proto::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use crate::proto::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use crate::proto::envoy::r#type::matcher::v3 as matchers;
use crate::proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use crate::proto::envoy::r#type::matcher::v3::value_matcher;
use crate::proto::google::protobuf::Any;
use crate::proto::type_url;

/// Alternatives that a rule may have; one that would need more is reduced as if it could not be said.
const MAX_ALTERNATIVES: usize = 64;

/// Levels of a condition. Readers of protobuf stop at 100, and a level is two of theirs.
const MAX_DEPTH: usize = 32;

/// The rules of policies that have one action. Their keys say policy and rule as istiod's for proxies do:
/// those for proxyless servers, `<namespace>-<name>-<rule>`, can be the same for two policies.
pub(super) fn rbac<'a>(
    action: wire::rbac::Action,
    policies: impl IntoIterator<Item = &'a Policy>,
) -> wire::Rbac {
    let side = match action {
        wire::rbac::Action::Allow => Side::Permits,
        _ => Side::Refuses,
    };
    let mut entries = BTreeMap::new();
    for policy in policies {
        let alternatives = policy.rules().iter().flat_map(|one| rule(one, side));
        for (index, alternative) in alternatives.enumerate() {
            let (namespace, name) = (policy.name().namespace(), policy.name().name());
            let key = format!("ns[{namespace}]-policy[{name}]-rule[{index}]");
            entries.insert(key, alternative.into_policy());
        }
    }
    wire::Rbac {
        action: action.into(),
        policies: entries,
        ..wire::Rbac::default()
    }
}

/// Permissions and principals that all have to match.
#[derive(Debug, Clone, Default)]
struct Alternative {
    permissions: Vec<wire::Permission>,
    principals: Vec<wire::Principal>,
}

impl Alternative {
    fn into_policy(self) -> wire::Policy {
        let or_any = |mut rules: Vec<wire::Permission>| {
            if rules.is_empty() {
                rules.push(Form::constant(true));
            }
            rules
        };
        let mut ids = self.principals;
        if ids.is_empty() {
            ids.push(Form::constant(true));
        }
        let rules = or_any(self.permissions);
        let permission = PermissionRule::AndRules(wire::permission::Set { rules });
        let principal = Identifier::AndIds(wire::principal::Set { ids });
        wire::Policy {
            permissions: vec![permission.into()],
            principals: vec![principal.into()],
            ..wire::Policy::default()
        }
    }
}

fn rule(of: &Rule, side: Side) -> Vec<Alternative> {
    let found = (depth(of.when()) <= MAX_DEPTH)
        .then(|| alternatives(of.when(), false, side))
        .flatten();
    match (found, side) {
        (Some(found), _) => found,
        (None, Side::Permits) => Vec::new(),
        (None, Side::Refuses) => vec![Alternative::default()],
    }
}

fn depth(of: &Expr) -> usize {
    match of {
        Expr::All(parts) | Expr::Any(parts) => 1 + parts.iter().map(depth).max().unwrap_or(0),
        Expr::Not(part) => 1 + depth(part),
        _ => 1,
    }
}

/// The alternatives of a condition; `None` where there would be too many.
fn alternatives(of: &Expr, negated: bool, side: Side) -> Option<Vec<Alternative>> {
    match of {
        Expr::Not(part) => return alternatives(part, !negated, side),
        // All parts have to hold: each goes where it can be said.
        Expr::All(parts) if !negated => return product(parts, negated, side),
        Expr::Any(parts) if negated => return product(parts, negated, side),
        _ => {}
    }
    let permission = || {
        let permissions = vec![form(of, negated, side)?];
        Some(Alternative {
            permissions,
            ..Alternative::default()
        })
    };
    let principal = || {
        let principals = vec![form(of, negated, side)?];
        Some(Alternative {
            principals,
            ..Alternative::default()
        })
    };
    let whole = match is_of_caller(of) {
        true => principal().or_else(permission),
        false => permission().or_else(principal),
    };
    if let Some(whole) = whole {
        return Some(vec![whole]);
    }
    let (Expr::All(parts) | Expr::Any(parts)) = of else {
        return None;
    };
    let mut found = Vec::new();
    for part in parts {
        found.extend(alternatives(part, negated, side)?);
        (found.len() <= MAX_ALTERNATIVES).then_some(())?;
    }
    Some(found)
}

fn product(parts: &[Expr], negated: bool, side: Side) -> Option<Vec<Alternative>> {
    let mut product = vec![Alternative::default()];
    for part in parts {
        let any = alternatives(part, negated, side)?;
        (product.len() * any.len() <= MAX_ALTERNATIVES).then_some(())?;
        let both = |left: &Alternative, right: &Alternative| Alternative {
            permissions: [&*left.permissions, &*right.permissions].concat(),
            principals: [&*left.principals, &*right.principals].concat(),
        };
        let left = product.iter();
        product = left
            .flat_map(|left| any.iter().map(move |right| both(left, right)))
            .collect();
    }
    Some(product)
}

/// Whether istiod says it among the principals, of what can be said on both sides.
fn is_of_caller(of: &Expr) -> bool {
    match of {
        Expr::All(parts) | Expr::Any(parts) => parts.first().is_some_and(is_of_caller),
        Expr::Not(part) => is_of_caller(part),
        Expr::Is(matcher) => matches!(
            matcher,
            Matcher::Header { .. }
                | Matcher::RequestPrincipal { .. }
                | Matcher::Audience(_)
                | Matcher::Presenter(_)
                | Matcher::Claim { .. }
        ),
        _ => false,
    }
}

/// What a matcher is in one of the two forms.
enum Said<F> {
    As(F),
    /// The other form says it.
    Elsewhere,
    /// Neither does.
    Not,
}

/// A permission or a principal.
trait Form: Sized {
    fn any_is(value: bool) -> Self;
    fn all(parts: Vec<Self>) -> Self;
    fn any(parts: Vec<Self>) -> Self;
    fn not(part: Self) -> Self;
    fn header(matcher: HeaderMatcher) -> Self;
    fn path(matcher: matchers::PathMatcher) -> Self;
    fn metadata(matcher: matchers::MetadataMatcher) -> Self;
    /// What only one of the two forms says.
    fn own(matcher: &Matcher) -> Said<Self>;

    fn constant(value: bool) -> Self {
        match value {
            true => Self::any_is(true),
            // Envoy takes `any` for a mistake unless it is true.
            false => Self::not(Self::any_is(true)),
        }
    }
}

/// A condition in one form; `None` if the other has to say some of it.
fn form<F: Form>(of: &Expr, negated: bool, side: Side) -> Option<F> {
    let join = |parts: &[Expr], and: bool| {
        let parts: Option<Vec<F>> = parts.iter().map(|one| form(one, negated, side)).collect();
        let mut parts = parts?;
        Some(match (parts.len(), and) {
            (0, and) => F::constant(and),
            (1, _) => parts.swap_remove(0),
            (_, true) => F::all(parts),
            (_, false) => F::any(parts),
        })
    };
    match of {
        Expr::All(parts) => join(parts, !negated),
        Expr::Any(parts) => join(parts, negated),
        Expr::Not(part) => form(part, !negated, side),
        Expr::Is(matcher) => match leaf(matcher) {
            Said::As(form) if negated => Some(F::not(form)),
            Said::As(form) => Some(form),
            Said::Elsewhere => None,
            Said::Not => Some(F::constant(side == Side::Refuses)),
        },
        _ => Some(F::constant(side == Side::Refuses)),
    }
}

fn leaf<F: Form>(matcher: &Matcher) -> Said<F> {
    let header = |name: &str, value: &StringMatch, ignore_case| {
        let specifier = match value {
            // It is there, whatever it is.
            StringMatch::Prefix(text) if text.is_empty() => {
                HeaderMatchSpecifier::PresentMatch(true)
            }
            value => HeaderMatchSpecifier::StringMatch(string(value, ignore_case)?),
        };
        Some(F::header(HeaderMatcher {
            name: name.to_owned(),
            header_match_specifier: Some(specifier),
            ..HeaderMatcher::default()
        }))
    };
    let found = match matcher {
        Matcher::Host(value) => header(":authority", value, true),
        Matcher::Method(value) => header(":method", value, false),
        Matcher::Header { name, value } => header(name.as_str(), value, false),
        Matcher::Path(PathMatch::String(value)) => string(value, false).map(|matcher| {
            F::path(matchers::PathMatcher {
                rule: Some(matchers::path_matcher::Rule::Path(matcher)),
            })
        }),
        Matcher::RequestPrincipal { issuer, subject } => {
            let parts = [("iss", issuer), ("sub", subject)];
            let parts = parts.map(|(key, value)| Some(token(&[key], text_value(value)?)));
            let parts: Option<Vec<F>> = parts.into_iter().collect();
            parts.map(F::all)
        }
        Matcher::Presenter(value) => text_value(value).map(|value| token(&["azp"], value)),
        Matcher::Audience(value) => text_or_list(value).map(|value| token(&["aud"], value)),
        Matcher::Claim { path, value } => {
            let path: Vec<&str> = path.iter().map(|key| &**key).collect();
            text_or_list(value).map(|value| token(&path, value))
        }
        // Nobody here has it.
        Matcher::EnvoyMetadata { .. } => Some(F::constant(false)),
        other => return F::own(other),
    };
    found.map_or(Said::Not, Said::As)
}

/// A part of a verified token.
fn token<F: Form>(path: &[&str], value: value_matcher::MatchPattern) -> F {
    use matchers::metadata_matcher::PathSegment;
    use matchers::metadata_matcher::path_segment::Segment;
    let path = ["payload"].iter().chain(path);
    let path = path.map(|key| PathSegment {
        segment: Some(Segment::Key((*key).to_owned())),
    });
    F::metadata(matchers::MetadataMatcher {
        filter: "envoy.filters.http.jwt_authn".to_owned(),
        path: path.collect(),
        value: Some(value_of(value)),
        ..matchers::MetadataMatcher::default()
    })
}

fn value_of(pattern: value_matcher::MatchPattern) -> matchers::ValueMatcher {
    matchers::ValueMatcher {
        match_pattern: Some(pattern),
    }
}

fn text_value(of: &StringMatch) -> Option<value_matcher::MatchPattern> {
    Some(value_matcher::MatchPattern::StringMatch(string(of, false)?))
}

/// A text, or some element of a list.
fn text_or_list(of: &StringMatch) -> Option<value_matcher::MatchPattern> {
    use matchers::list_matcher::MatchPattern as ListPattern;
    let one_of = Box::new(value_of(text_value(of)?));
    let list = Box::new(matchers::ListMatcher {
        match_pattern: Some(ListPattern::OneOf(one_of)),
    });
    Some(value_matcher::MatchPattern::OrMatch(matchers::OrMatcher {
        value_matchers: vec![
            value_of(text_value(of)?),
            value_of(value_matcher::MatchPattern::ListMatch(list)),
        ],
    }))
}

fn string(of: &StringMatch, ignore_case: bool) -> Option<matchers::StringMatcher> {
    let (pattern, ignore_case) = match of {
        StringMatch::Exact(text) => (MatchPattern::Exact(text.to_string()), ignore_case),
        StringMatch::Prefix(text) => (MatchPattern::Prefix(text.to_string()), ignore_case),
        StringMatch::Suffix(text) => (MatchPattern::Suffix(text.to_string()), ignore_case),
        StringMatch::Present => (regex(".+"), false),
        StringMatch::Regex(pattern) => (regex(pattern.as_str()), false),
        _ => return None,
    };
    Some(matchers::StringMatcher {
        ignore_case,
        match_pattern: Some(pattern),
    })
}

fn regex(text: &str) -> MatchPattern {
    MatchPattern::SafeRegex(matchers::RegexMatcher {
        regex: text.to_owned(),
        ..matchers::RegexMatcher::default()
    })
}

impl From<PermissionRule> for wire::Permission {
    fn from(rule: PermissionRule) -> Self {
        Self { rule: Some(rule) }
    }
}

impl Form for wire::Permission {
    fn any_is(value: bool) -> Self {
        PermissionRule::Any(value).into()
    }

    fn all(rules: Vec<Self>) -> Self {
        PermissionRule::AndRules(wire::permission::Set { rules }).into()
    }

    fn any(rules: Vec<Self>) -> Self {
        PermissionRule::OrRules(wire::permission::Set { rules }).into()
    }

    fn not(part: Self) -> Self {
        PermissionRule::NotRule(Box::new(part)).into()
    }

    fn header(matcher: HeaderMatcher) -> Self {
        PermissionRule::Header(matcher).into()
    }

    fn path(matcher: matchers::PathMatcher) -> Self {
        PermissionRule::UrlPath(matcher).into()
    }

    fn metadata(matcher: matchers::MetadataMatcher) -> Self {
        PermissionRule::Metadata(matcher).into()
    }

    fn own(matcher: &Matcher) -> Said<Self> {
        let rule = match matcher {
            Matcher::DestinationIp(net) => PermissionRule::DestinationIp(range(*net)),
            Matcher::DestinationPort(port) => PermissionRule::DestinationPort((*port).into()),
            // To Envoy a connection without a name has an empty one.
            Matcher::Sni(value) if value.matches("") => return Said::Not,
            Matcher::Sni(value) => match string(value, false) {
                Some(matcher) => PermissionRule::RequestedServerName(matcher),
                None => return Said::Not,
            },
            Matcher::Path(PathMatch::Template(template)) => {
                let path_template = template.to_string().replace(['{', '}'], "");
                let config = UriTemplateMatchConfig { path_template };
                PermissionRule::UriTemplate(TypedExtensionConfig {
                    name: "uri-template".to_owned(),
                    typed_config: Some(Any {
                        type_url: type_url::URI_TEMPLATE.to_owned(),
                        value: config.encode_to_vec().into(),
                    }),
                })
            }
            other if of_peer(other) => return Said::Elsewhere,
            _ => return Said::Not,
        };
        Said::As(rule.into())
    }
}

impl From<Identifier> for wire::Principal {
    fn from(identifier: Identifier) -> Self {
        Self {
            identifier: Some(identifier),
        }
    }
}

impl Form for wire::Principal {
    fn any_is(value: bool) -> Self {
        Identifier::Any(value).into()
    }

    fn all(ids: Vec<Self>) -> Self {
        Identifier::AndIds(wire::principal::Set { ids }).into()
    }

    fn any(ids: Vec<Self>) -> Self {
        Identifier::OrIds(wire::principal::Set { ids }).into()
    }

    fn not(part: Self) -> Self {
        Identifier::NotId(Box::new(part)).into()
    }

    fn header(matcher: HeaderMatcher) -> Self {
        Identifier::Header(matcher).into()
    }

    fn path(matcher: matchers::PathMatcher) -> Self {
        Identifier::UrlPath(matcher).into()
    }

    fn metadata(matcher: matchers::MetadataMatcher) -> Self {
        Identifier::Metadata(matcher).into()
    }

    fn own(matcher: &Matcher) -> Said<Self> {
        let named = |pattern: MatchPattern| {
            Some(Identifier::Authenticated(wire::principal::Authenticated {
                principal_name: Some(matchers::StringMatcher {
                    ignore_case: false,
                    match_pattern: Some(pattern),
                }),
            }))
        };
        let identifier = match matcher {
            Matcher::SourceIp(net) => Some(Identifier::DirectRemoteIp(range(*net))),
            Matcher::RemoteIp(net) => Some(Identifier::RemoteIp(range(*net))),
            Matcher::Principal(value) => principal(value).and_then(named),
            Matcher::Namespace(value) => namespace(value)
                .map(|pattern| regex(&pattern))
                .and_then(named),
            Matcher::ServiceAccount { namespace, name } => {
                let (namespace, name) = (quoted(namespace), quoted(name));
                named(regex(&format!(
                    "spiffe://.+/ns/{namespace}/(.+/|)sa/{name}(/.+)?"
                )))
            }
            Matcher::TrustDomain(StringMatch::Exact(domain)) => {
                named(MatchPattern::Prefix(format!("spiffe://{domain}/")))
            }
            Matcher::TrustDomain(StringMatch::Present) => named(regex(".+")),
            other if of_peer(other) => None,
            _ => return Said::Elsewhere,
        };
        identifier.map_or(Said::Not, |identifier| Said::As(identifier.into()))
    }
}

/// Whether only principals say it.
fn of_peer(matcher: &Matcher) -> bool {
    matches!(
        matcher,
        Matcher::SourceIp(_)
            | Matcher::RemoteIp(_)
            | Matcher::Principal(_)
            | Matcher::Namespace(_)
            | Matcher::ServiceAccount { .. }
            | Matcher::TrustDomain(_)
    )
}

/// A principal, which certificates name with the scheme of SPIFFE.
fn principal(of: &StringMatch) -> Option<MatchPattern> {
    Some(match of {
        StringMatch::Exact(text) => MatchPattern::Exact(format!("spiffe://{text}")),
        StringMatch::Prefix(text) => MatchPattern::Prefix(format!("spiffe://{text}")),
        // With the scheme, of which no suffix may be a part.
        StringMatch::Suffix(text) => regex(&format!("spiffe://.*{}", quoted(text))),
        StringMatch::Present => regex(".+"),
        StringMatch::Regex(pattern) => regex(&format!("spiffe://({})", pattern.as_str())),
        _ => return None,
    })
}

/// Between slashes, as istiod writes it. Beyond them it would reach others.
fn namespace(of: &StringMatch) -> Option<String> {
    let name = match of {
        StringMatch::Exact(text) => quoted(text),
        StringMatch::Prefix(text) => format!("{}.*", quoted(text)),
        StringMatch::Suffix(text) => format!(".*{}", quoted(text)),
        StringMatch::Present => ".*".to_owned(),
        _ => return None,
    };
    (!name.contains('/')).then(|| format!(".*/ns/{name}/.*"))
}

/// As RE2's `QuoteMeta`.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for next in text.chars() {
        if r"\.+*?()|[]{}^$".contains(next) {
            quoted.push('\\');
        }
        quoted.push(next);
    }
    quoted
}

fn range(net: IpNet) -> CidrRange {
    let address: IpAddr = net.addr();
    CidrRange {
        address_prefix: address.to_string(),
        prefix_len: Some(net.prefix_len().into()),
    }
}
