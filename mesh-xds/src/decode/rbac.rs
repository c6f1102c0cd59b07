//! Envoy's RBAC to the one vocabulary of policies (`envoy.config.rbac.v3`).
//!
//! What a matcher asks for that this implementation cannot tell is an error: whoever holds the filter
//! closes its chain.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderName;
use ipnet::IpNet;
use mesh_authz::matcher::{PathMatch, PathTemplate, StringMatch};
use mesh_authz::policy::{Action, Expr, Matcher, Policy, PolicyName, Rule};
use prost::Message;

use super::field::{Field, Problem};
use super::text::{Case, principal, text};
use crate::proto::envoy::config::core::v3::{CidrRange, TypedExtensionConfig};
use crate::proto::envoy::config::rbac::v3 as wire;
use crate::proto::envoy::config::route::v3::{HeaderMatcher, header_matcher};
use crate::proto::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use crate::proto::envoy::r#type::matcher::v3 as matchers;
use crate::proto::type_url;

/// Where a filter stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    /// Among network filters, where there are no requests: what asks for one does not match.
    Network,
    /// Among HTTP filters.
    Http,
}

/// The filters of one chain so far, as policies.
#[derive(Default)]
pub(super) struct Chain {
    pub(super) policies: Vec<Arc<Policy>>,
    /// Whether some filter of the chain permits; a second one has to permit as well.
    permits: bool,
}

impl Chain {
    /// Adds a filter's rules.
    pub(super) fn add(
        &mut self,
        rbac: &wire::Rbac,
        layer: Layer,
        dry_run: bool,
        field: &Field<'_>,
    ) -> Result<(), Problem> {
        let expected = "ALLOW (0), DENY (1) or LOG (2)";
        let action = match field.at("action").one_of(rbac.action, expected)? {
            wire::rbac::Action::Allow => Action::Allow,
            wire::rbac::Action::Deny => Action::Deny,
            wire::rbac::Action::Log => Action::Audit,
        };
        let mut policies: BTreeMap<PolicyName, Vec<(u32, Rule)>> = BTreeMap::new();
        let at = field.at("policies");
        for (key, policy) in &rbac.policies {
            let (name, index) = name(key);
            let rule = Rule::new(rule(policy, layer, &at.key(key))?);
            policies.entry(name).or_default().push((index, rule));
        }
        for rules in policies.values_mut() {
            rules.sort_by_key(|(index, _)| *index);
        }
        let rules_of = |rules: Vec<(u32, Rule)>| rules.into_iter().map(|(_, rule)| rule).collect();
        if action == Action::Allow && !dry_run && self.permits {
            // ALLOW policies are alternatives to each other, filters are not: what a second one does not
            // permit is denied.
            let rules = policies.into_values().flatten();
            let permitted = rules.map(|(_, rule)| rule.when().clone()).collect();
            let refused = Rule::new(Expr::Not(Box::new(Expr::Any(permitted))));
            let name = PolicyName::new("", format!("not permitted by {field}"));
            self.push(Policy::new(name, Action::Deny, vec![refused]));
            return Ok(());
        }
        self.permits |= action == Action::Allow && !dry_run;
        if policies.is_empty() && action == Action::Allow {
            // Permits nothing, which only an ALLOW without rules says.
            let name = PolicyName::new("", field.to_string());
            self.push(Policy::new(name, Action::Allow, Vec::new()).with_dry_run(dry_run));
        }
        for (name, rules) in policies {
            let policy = Policy::new(name, action.clone(), rules_of(rules));
            self.push(policy.with_dry_run(dry_run));
        }
        Ok(())
    }

    fn push(&mut self, policy: Policy) {
        self.policies.push(Arc::new(policy));
    }
}

/// The policy and the index of its rule that istiod made an entry of: `ns[<namespace>]-policy[<name>]-rule[<n>]`
/// for proxies, `<namespace>-<name>-<n>` for proxyless servers, of which nobody can tell the two parts.
fn name(key: &str) -> (PolicyName, u32) {
    let proxys = || {
        let (namespace, rest) = key.strip_prefix("ns[")?.split_once("]-policy[")?;
        let (name, rest) = rest.rsplit_once("]-rule[")?;
        let index = rest.strip_suffix(']')?.parse().ok()?;
        Some((PolicyName::new(namespace, name), index))
    };
    let proxyless = || {
        let (name, index) = key.rsplit_once('-')?;
        Some((PolicyName::new("", name), index.parse().ok()?))
    };
    proxys()
        .or_else(proxyless)
        .unwrap_or_else(|| (PolicyName::new("", key), 0))
}

fn rule(policy: &wire::Policy, layer: Layer, field: &Field<'_>) -> Result<Expr, Problem> {
    if policy.condition.is_some() || policy.checked_condition.is_some() {
        return Err(field.at("condition").unsupported("an expression"));
    }
    let lower = Lower { layer };
    let at = field.at("permissions");
    let permissions = each(&policy.permissions, &at, |one, at| {
        lower.permission(one, at)
    })?;
    let at = field.at("principals");
    let principals = each(&policy.principals, &at, |one, at| lower.principal(one, at))?;
    Ok(all(vec![any(permissions), any(principals)]))
}

fn each<T>(
    values: &[T],
    field: &Field<'_>,
    lower: impl Fn(&T, &Field<'_>) -> Result<Expr, Problem>,
) -> Result<Vec<Expr>, Problem> {
    // Envoy refuses it too, and a conjunction of nothing would hold for everybody.
    if values.is_empty() {
        return Err(field.wrong("none", "at least one"));
    }
    let values = values.iter().enumerate();
    values
        .map(|(index, value)| lower(value, &field.index(index)))
        .collect()
}

/// A conjunction, without parts that say nothing.
fn all(mut parts: Vec<Expr>) -> Expr {
    parts.retain(|part| *part != Expr::TRUE);
    match parts.len() {
        1 => parts.swap_remove(0),
        _ => Expr::All(parts),
    }
}

fn any(mut parts: Vec<Expr>) -> Expr {
    match parts.len() {
        1 => parts.swap_remove(0),
        _ => Expr::Any(parts),
    }
}

fn not(part: Expr) -> Expr {
    Expr::Not(Box::new(part))
}

fn constant(value: bool) -> Expr {
    if value { Expr::TRUE } else { Expr::FALSE }
}

/// More ports than this in one range are not written out: istiod sends ports one by one, and a range costs
/// its sender a few bytes.
const MAX_PORTS: usize = 16;

#[derive(Clone, Copy)]
struct Lower {
    layer: Layer,
}

impl Lower {
    fn permission(self, message: &wire::Permission, field: &Field<'_>) -> Result<Expr, Problem> {
        use wire::permission::Rule;
        let Some(rule) = &message.rule else {
            return Err(field.unsupported("a permission of an unknown kind"));
        };
        Ok(match rule {
            Rule::AndRules(set) => {
                let field = field.at("and_rules");
                all(each(&set.rules, &field.at("rules"), |one, at| {
                    self.permission(one, at)
                })?)
            }
            Rule::OrRules(set) => {
                let field = field.at("or_rules");
                any(each(&set.rules, &field.at("rules"), |one, at| {
                    self.permission(one, at)
                })?)
            }
            Rule::NotRule(part) => not(self.permission(part, &field.at("not_rule"))?),
            Rule::Any(value) => constant(*value),
            Rule::Header(matcher) => self.header(matcher, &field.at("header"))?,
            Rule::UrlPath(matcher) => self.path(matcher, &field.at("url_path"))?,
            Rule::UriTemplate(config) => self.template(config, &field.at("uri_template"))?,
            Rule::DestinationIp(range) => Expr::Is(Matcher::DestinationIp(cidr(
                range,
                &field.at("destination_ip"),
            )?)),
            Rule::DestinationPort(port) => {
                let port = field.at("destination_port").port(*port)?;
                Expr::Is(Matcher::DestinationPort(port))
            }
            Rule::DestinationPortRange(range) => {
                let ports = range.start.max(0)..range.end.min(1 << 16);
                if ports.is_empty() {
                    let field = field.at("destination_port_range");
                    return Err(field.wrong("no port", "a start below the end"));
                }
                if ports.len() > MAX_PORTS {
                    let field = field.at("destination_port_range");
                    return Err(field.unsupported(format_args!("more than {MAX_PORTS} ports")));
                }
                any(ports
                    .map(|port| Expr::Is(Matcher::DestinationPort(port as u16)))
                    .collect())
            }
            Rule::RequestedServerName(matcher) => {
                let value = text(matcher, Case::Minds, &field.at("requested_server_name"))?;
                or_absent(value, Matcher::Sni)
            }
            Rule::Metadata(matcher) => self.metadata(matcher, &field.at("metadata"))?,
            Rule::SourcedMetadata(sourced) => {
                self.sourced(sourced, &field.at("sourced_metadata"))?
            }
            Rule::Matcher(config) => {
                return Err(field
                    .at("matcher")
                    .unsupported(format_args!("{:?}", config.name)));
            }
        })
    }

    fn principal(self, message: &wire::Principal, field: &Field<'_>) -> Result<Expr, Problem> {
        use wire::principal::Identifier;
        let Some(identifier) = &message.identifier else {
            return Err(field.unsupported("a principal of an unknown kind"));
        };
        Ok(match identifier {
            Identifier::AndIds(set) => {
                let field = field.at("and_ids");
                all(each(&set.ids, &field.at("ids"), |one, at| {
                    self.principal(one, at)
                })?)
            }
            Identifier::OrIds(set) => {
                let field = field.at("or_ids");
                any(each(&set.ids, &field.at("ids"), |one, at| {
                    self.principal(one, at)
                })?)
            }
            Identifier::NotId(part) => not(self.principal(part, &field.at("not_id"))?),
            Identifier::Any(value) => constant(*value),
            Identifier::Authenticated(authenticated) => match &authenticated.principal_name {
                Some(matcher) => principal(matcher, &field.at("authenticated.principal_name"))?,
                None => Expr::Is(Matcher::Principal(StringMatch::Present)),
            },
            Identifier::FilterState(state) => filter_state(state, &field.at("filter_state"))?,
            // The connection's peer either way: no listener filter here changes it.
            Identifier::SourceIp(range) => {
                Expr::Is(Matcher::SourceIp(cidr(range, &field.at("source_ip"))?))
            }
            Identifier::DirectRemoteIp(range) => Expr::Is(Matcher::SourceIp(cidr(
                range,
                &field.at("direct_remote_ip"),
            )?)),
            Identifier::RemoteIp(range) => {
                let range = cidr(range, &field.at("remote_ip"))?;
                Expr::Is(match self.layer {
                    Layer::Network => Matcher::SourceIp(range),
                    Layer::Http => Matcher::RemoteIp(range),
                })
            }
            Identifier::Header(matcher) => self.header(matcher, &field.at("header"))?,
            Identifier::UrlPath(matcher) => self.path(matcher, &field.at("url_path"))?,
            Identifier::Metadata(matcher) => self.metadata(matcher, &field.at("metadata"))?,
            Identifier::SourcedMetadata(sourced) => {
                self.sourced(sourced, &field.at("sourced_metadata"))?
            }
            Identifier::Custom(config) => {
                return Err(field
                    .at("custom")
                    .unsupported(format_args!("{:?}", config.name)));
            }
        })
    }

    /// A condition on a request.
    fn request(self, condition: Expr) -> Expr {
        match self.layer {
            Layer::Http => condition,
            Layer::Network => Expr::FALSE,
        }
    }

    fn header(self, message: &HeaderMatcher, field: &Field<'_>) -> Result<Expr, Problem> {
        use header_matcher::HeaderMatchSpecifier as Specifier;
        let header = Header::of(&message.name, &field.at("name"))?;
        let present = header.is(StringMatch::Prefix("".into()));
        let pattern = |pattern| matchers::StringMatcher {
            ignore_case: false,
            match_pattern: Some(pattern),
        };
        use matchers::string_matcher::MatchPattern;
        let matcher = match &message.header_match_specifier {
            None => {
                return Ok(self.request(if message.invert_match {
                    not(present)
                } else {
                    present
                }));
            }
            Some(Specifier::PresentMatch(there)) => {
                let there = *there != message.invert_match;
                return Ok(self.request(if there { present } else { not(present) }));
            }
            Some(Specifier::StringMatch(matcher)) => matcher.clone(),
            Some(Specifier::ExactMatch(text)) => pattern(MatchPattern::Exact(text.clone())),
            Some(Specifier::PrefixMatch(text)) => pattern(MatchPattern::Prefix(text.clone())),
            Some(Specifier::SuffixMatch(text)) => pattern(MatchPattern::Suffix(text.clone())),
            Some(Specifier::ContainsMatch(text)) => pattern(MatchPattern::Contains(text.clone())),
            Some(Specifier::SafeRegexMatch(regex)) => {
                pattern(MatchPattern::SafeRegex(regex.clone()))
            }
            Some(Specifier::RangeMatch(_)) => {
                return Err(field.at("range_match").unsupported("a range of numbers"));
            }
        };
        let value = text(&matcher, header.case(), field)?;
        let missing =
            message.treat_missing_header_as_empty && value.matches("") != message.invert_match;
        let mut condition = header.is(value);
        if message.invert_match {
            // A header that is not there matches neither way.
            condition = all(vec![present.clone(), not(condition)]);
        }
        if missing {
            condition = any(vec![condition, not(present)]);
        }
        Ok(self.request(condition))
    }

    fn path(self, message: &matchers::PathMatcher, field: &Field<'_>) -> Result<Expr, Problem> {
        let Some(matchers::path_matcher::Rule::Path(matcher)) = &message.rule else {
            return Err(field.unsupported("a path matcher of an unknown kind"));
        };
        let value = text(matcher, Case::Minds, &field.at("path"))?;
        Ok(self.request(Expr::Is(Matcher::Path(PathMatch::String(value)))))
    }

    fn template(self, config: &TypedExtensionConfig, field: &Field<'_>) -> Result<Expr, Problem> {
        let field = field.at("typed_config");
        let Some(config) = config.typed_config.as_ref() else {
            return Err(field.missing("a path template"));
        };
        if config.type_url != type_url::URI_TEMPLATE {
            return Err(field.unsupported(&config.type_url));
        }
        let config = UriTemplateMatchConfig::decode(&*config.value)
            .map_err(|error| field.wrong(error, "a path template"))?;
        let field = field.at("path_template");
        if config.path_template.contains(['{', '}']) {
            return Err(field.unsupported("a named part of a path template"));
        }
        let template = PathTemplate::parse(&braced(&config.path_template));
        let template = template.map_err(|error| field.wrong(error, "a path template"))?;
        Ok(self.request(Expr::Is(Matcher::Path(PathMatch::Template(template)))))
    }

    fn sourced(self, message: &wire::SourcedMetadata, field: &Field<'_>) -> Result<Expr, Problem> {
        let source = field.at("metadata_source");
        match source.one_of(message.metadata_source, "DYNAMIC (0) or ROUTE (1)")? {
            wire::MetadataSource::Dynamic => {}
            wire::MetadataSource::Route => return Err(source.unsupported("metadata of routes")),
        }
        let field = field.at("metadata_matcher");
        match &message.metadata_matcher {
            Some(matcher) => self.metadata(matcher, &field),
            None => Err(field.missing("a matcher")),
        }
    }

    /// What filters found out. Of those there is one here, that of verified tokens.
    fn metadata(
        self,
        message: &matchers::MetadataMatcher,
        field: &Field<'_>,
    ) -> Result<Expr, Problem> {
        let mut path = Vec::with_capacity(message.path.len());
        for (index, segment) in message.path.iter().enumerate() {
            let Some(matchers::metadata_matcher::path_segment::Segment::Key(key)) =
                &segment.segment
            else {
                let at = field.at("path");
                return Err(at.index(index).unsupported("a segment of an unknown kind"));
            };
            path.push(Arc::<str>::from(key.as_str()));
        }
        let at = field.at("value");
        let value = message
            .value
            .as_ref()
            .ok_or_else(|| at.missing("a value matcher"))?;
        let token =
            message.filter == JWT_AUTHN && path.first().is_some_and(|key| &**key == "payload");
        let condition = if token {
            path.remove(0);
            let matcher = |value| match path.as_slice() {
                [one] if &**one == "aud" => Matcher::Audience(value),
                [one] if &**one == "azp" => Matcher::Presenter(value),
                path => Matcher::Claim {
                    path: path.to_vec(),
                    value,
                },
            };
            token_value(value, &matcher, &at)?
        } else {
            Expr::Is(Matcher::EnvoyMetadata {
                filter: message.filter.as_str().into(),
                key: path.join(".").into(),
                // There is none, whatever is asked of it.
                value: StringMatch::Present,
            })
        };
        let condition = self.request(condition);
        Ok(if message.invert {
            not(condition)
        } else {
            condition
        })
    }
}

/// The filter whose metadata is the payload of a verified token.
const JWT_AUTHN: &str = "envoy.filters.http.jwt_authn";

/// The claims of a token are texts or lists of them: either way some text has to match.
fn token_value(
    message: &matchers::ValueMatcher,
    matcher: &impl Fn(StringMatch) -> Matcher,
    field: &Field<'_>,
) -> Result<Expr, Problem> {
    use matchers::value_matcher::MatchPattern;
    match &message.match_pattern {
        Some(MatchPattern::StringMatch(value)) => {
            Ok(Expr::Is(matcher(text(value, Case::Minds, field)?)))
        }
        Some(MatchPattern::OrMatch(or)) => {
            let field = field.at("or_match");
            let field = field.at("value_matchers");
            let any_of = each(&or.value_matchers, &field, |one, at| {
                token_value(one, matcher, at)
            })?;
            Ok(any(any_of))
        }
        Some(MatchPattern::ListMatch(list)) => match &list.match_pattern {
            Some(matchers::list_matcher::MatchPattern::OneOf(one)) => {
                token_value(one, matcher, &field.at("list_match.one_of"))
            }
            None => Err(field.unsupported("a list matcher of an unknown kind")),
        },
        Some(MatchPattern::PresentMatch(true)) => Ok(Expr::Is(matcher(StringMatch::Present))),
        _ => Err(field.unsupported("a value that is not a text")),
    }
}

/// What waypoints have in place of a certificate.
const PEER_PRINCIPAL: &str = "io.istio.peer_principal";

fn filter_state(
    message: &matchers::FilterStateMatcher,
    field: &Field<'_>,
) -> Result<Expr, Problem> {
    match &message.matcher {
        Some(matchers::filter_state_matcher::Matcher::StringMatch(matcher))
            if message.key == PEER_PRINCIPAL =>
        {
            principal(matcher, &field.at("string_match"))
        }
        _ => Err(field.unsupported(format_args!("{:?}", message.key))),
    }
}

/// A value that Envoy takes for empty where there is none.
fn or_absent(value: StringMatch, matcher: fn(StringMatch) -> Matcher) -> Expr {
    let matches_empty = value.matches("");
    let condition = Expr::Is(matcher(value));
    if matches_empty {
        any(vec![
            condition,
            not(Expr::Is(matcher(StringMatch::Prefix("".into())))),
        ])
    } else {
        condition
    }
}

fn cidr(range: &CidrRange, field: &Field<'_>) -> Result<IpNet, Problem> {
    let length = range.prefix_len.unwrap_or(0);
    let address = range.address_prefix.parse::<IpAddr>().ok();
    address
        .zip(u8::try_from(length).ok())
        .and_then(|(address, length)| IpNet::new(address, length).ok())
        .map(|net| net.trunc())
        .ok_or_else(|| {
            let found = format_args!("{:?}/{length}", range.address_prefix);
            field.wrong(found, "an address with a prefix length that fits")
        })
}

/// Envoy's template as Istio writes it: `/a/*/**` is `/a/{*}/{**}`.
fn braced(template: &str) -> String {
    let mut braced = String::with_capacity(template.len() + 4);
    let mut rest = template;
    while let Some(at) = rest.find('*') {
        let (before, stars) = rest.split_at(at);
        let length = stars.len() - stars.trim_start_matches('*').len();
        let (stars, after) = stars.split_at(length);
        braced.extend([before, "{", stars, "}"]);
        rest = after;
    }
    braced.push_str(rest);
    braced
}

/// A header, or what Envoy keeps among the headers.
enum Header {
    Authority,
    Method,
    Other(HeaderName),
}

impl Header {
    fn of(name: &str, field: &Field<'_>) -> Result<Self, Problem> {
        match name.to_ascii_lowercase().as_str() {
            ":authority" | "host" => Ok(Self::Authority),
            ":method" => Ok(Self::Method),
            name if name.starts_with(':') => Err(field.unsupported(format_args!("{name:?}"))),
            name => HeaderName::try_from(name)
                .map(Self::Other)
                .map_err(|_| field.wrong(format_args!("{name:?}"), "the name of a header")),
        }
    }

    /// How the attribute is compared.
    fn case(&self) -> Case {
        match self {
            Self::Authority => Case::Ignores,
            Self::Method | Self::Other(_) => Case::Minds,
        }
    }

    fn is(&self, value: StringMatch) -> Expr {
        Expr::Is(match self {
            Self::Authority => Matcher::Host(value),
            Self::Method => Matcher::Method(value),
            Self::Other(name) => Matcher::Header {
                name: name.clone(),
                value,
            },
        })
    }
}
