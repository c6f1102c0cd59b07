//! Inbound listeners become the policies of their port; what is not understood closes them.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use mesh_authz::matcher::PathNormalization;
use mesh_authz::policy::{Action, Policy};
use mesh_authz::{Attribute, Attributes, Identity, PolicySet, RequestAttributes};
use mesh_xds::decode::{Decoder, ResourceType};
use mesh_xds::model::{InboundListener, Update};
use prost::Message;

use crate::proto::envoy::config::core::v3 as core;
use crate::proto::envoy::config::listener::v3 as wire;
use crate::proto::envoy::config::rbac::v3 as rbac;
use crate::proto::envoy::config::route::v3 as route;
use crate::proto::envoy::extensions::filters::http::rbac::v3 as http_rbac;
use crate::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use crate::proto::envoy::extensions::filters::network::rbac::v3 as network_rbac;
use crate::proto::envoy::r#type::matcher::v3 as matcher;
use crate::proto::google::protobuf::Any;
use crate::proto::type_url;

const NAME: &str = "xds.istio.io/grpc/lds/inbound/10.0.0.1:9080";

pub(crate) fn any(type_url: &str, message: &impl Message) -> Any {
    Any {
        type_url: type_url.into(),
        value: message.encode_to_vec().into(),
    }
}

fn unknown(kind: &str) -> Any {
    any(&format!("type.googleapis.com/{kind}"), &())
}

pub(crate) fn http_filter(name: &str, config: Any) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: name.into(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

fn http_rbac(rules: Option<rbac::Rbac>, shadow_rules: Option<rbac::Rbac>) -> hcm::HttpFilter {
    let config = http_rbac::Rbac {
        rules,
        shadow_rules,
        ..Default::default()
    };
    http_filter("rbac", any(type_url::HTTP_RBAC, &config))
}

fn filter(name: &str, config: Any) -> wire::Filter {
    wire::Filter {
        name: name.into(),
        config_type: Some(wire::filter::ConfigType::TypedConfig(config)),
    }
}

fn manager(filters: Vec<hcm::HttpFilter>) -> hcm::HttpConnectionManager {
    hcm::HttpConnectionManager {
        http_filters: filters,
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::RouteConfig(
            route::RouteConfiguration::default(),
        )),
        ..Default::default()
    }
}

fn chain(filters: Vec<wire::Filter>) -> wire::Listener {
    let address = core::SocketAddress {
        address: "10.0.0.1".into(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(9080)),
        ..Default::default()
    };
    wire::Listener {
        name: NAME.into(),
        address: Some(core::Address {
            address: Some(core::address::Address::SocketAddress(address)),
        }),
        filter_chains: vec![wire::FilterChain {
            filters,
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn managed(manager: &hcm::HttpConnectionManager) -> wire::Listener {
    chain(vec![filter(
        "hcm",
        any(type_url::HTTP_CONNECTION_MANAGER, manager),
    )])
}

pub(crate) fn http(filters: Vec<hcm::HttpFilter>) -> wire::Listener {
    managed(&manager(filters))
}

pub(crate) fn decode(listener: &wire::Listener) -> Arc<InboundListener> {
    let bytes = listener.encode_to_vec();
    match Decoder::new().decode(ResourceType::Listener, NAME, &bytes) {
        Ok(Some(Update::InboundListener(listener))) => listener,
        other => panic!("{other:?}"),
    }
}

fn open(listener: &wire::Listener) -> Vec<Arc<Policy>> {
    let listener = decode(listener);
    assert_eq!(listener.closed(), None);
    listener.policies().to_vec()
}

fn closed(listener: &wire::Listener) -> String {
    let listener = decode(listener);
    let reason = listener.closed().expect("it is closed").to_owned();
    let set = PolicySet::new(listener.policies().iter().cloned());
    assert!(!Request::get("/").allowed(&set));
    assert!(!set.evaluate_l4(&attributes(None)).is_allowed());
    reason
}

fn attributes(caller: Option<&Identity>) -> Attributes<'_> {
    let addr = |text: &str| text.parse().unwrap();
    Attributes::new(addr("10.9.0.7:1"), addr("10.0.0.1:9080"))
        .with_identity(Attribute::from(caller))
}

struct Request {
    method: Method,
    path: String,
    headers: HeaderMap,
    caller: Option<Identity>,
}

impl Request {
    fn get(path: &str) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            headers: HeaderMap::new(),
            caller: Some(Identity::new("td", "ns", "sa").unwrap()),
        }
    }

    fn header(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::try_from(name).unwrap();
        self.headers
            .insert(name, HeaderValue::try_from(value).unwrap());
        self
    }

    fn allowed(&self, set: &PolicySet) -> bool {
        let request = RequestAttributes::new(
            &self.method,
            Some("Host.example"),
            &self.path,
            &self.headers,
        );
        let attributes = attributes(self.caller.as_ref())
            .with_sni(Attribute::Absent)
            .with_request(request);
        set.evaluate(&attributes).is_allowed()
    }
}

fn allows(policies: &[Arc<Policy>], request: &Request) -> bool {
    request.allowed(&PolicySet::new(policies.iter().cloned()))
}

fn text(pattern: matcher::string_matcher::MatchPattern) -> matcher::StringMatcher {
    matcher::StringMatcher {
        match_pattern: Some(pattern),
        ..Default::default()
    }
}

fn below(path: &str) -> rbac::permission::Rule {
    let path = text(matcher::string_matcher::MatchPattern::Prefix(path.into()));
    rbac::permission::Rule::UrlPath(matcher::PathMatcher {
        rule: Some(matcher::path_matcher::Rule::Path(path)),
    })
}

fn permission(rule: rbac::permission::Rule) -> rbac::Permission {
    rbac::Permission { rule: Some(rule) }
}

fn anybody() -> rbac::Principal {
    rbac::Principal {
        identifier: Some(rbac::principal::Identifier::Any(true)),
    }
}

fn policy(rules: Vec<rbac::permission::Rule>) -> rbac::Policy {
    rbac::Policy {
        permissions: rules.into_iter().map(permission).collect(),
        principals: vec![anybody()],
        ..Default::default()
    }
}

fn rules(action: rbac::rbac::Action, entries: Vec<(&str, rbac::Policy)>) -> rbac::Rbac {
    let policies = entries
        .into_iter()
        .map(|(name, policy)| (name.into(), policy));
    rbac::Rbac {
        action: action.into(),
        policies: policies.collect(),
        ..Default::default()
    }
}

use rbac::rbac::Action::{Allow, Deny, Log};

fn only_below(action: rbac::rbac::Action, path: &str) -> rbac::Rbac {
    rules(action, vec![("ns-one-0", policy(vec![below(path)]))])
}

#[test]
fn denials_come_before_permissions() {
    let listener = http(vec![
        http_rbac(Some(only_below(Deny, "/a/secret")), None),
        http_rbac(Some(only_below(Allow, "/a")), None),
    ]);
    let policies = open(&listener);
    let decided = ["/a/x", "/a/secret/x", "/b"].map(|path| allows(&policies, &Request::get(path)));
    assert_eq!(decided, [true, false, false]);
    assert_eq!(decode(&listener).address().to_string(), "10.0.0.1:9080");
    assert_eq!(decode(&listener).path_normalization(), None);
}

/// Filters are not alternatives to each other, as ALLOW policies are.
#[test]
fn every_filter_that_permits_has_to() {
    let network = network_rbac::Rbac {
        rules: Some(rules(
            Allow,
            vec![(
                "net-0",
                policy(vec![rbac::permission::Rule::DestinationPort(9080)]),
            )],
        )),
        ..Default::default()
    };
    let manager = manager(vec![
        http_rbac(Some(only_below(Allow, "/a")), None),
        http_rbac(Some(only_below(Allow, "/a/b")), None),
    ]);
    let listener = chain(vec![
        filter("rbac", any(type_url::NETWORK_RBAC, &network)),
        filter("hcm", any(type_url::HTTP_CONNECTION_MANAGER, &manager)),
    ]);
    let policies = open(&listener);
    let decided = ["/a", "/a/b", "/"].map(|path| allows(&policies, &Request::get(path)));
    assert_eq!(decided, [false, true, false]);
}

#[test]
fn a_filter_without_rules_permits_and_one_without_policies_does_not() {
    let nothing = open(&http(vec![http_rbac(None, None)]));
    assert!(nothing.is_empty() && allows(&nothing, &Request::get("/")));
    let none = open(&http(vec![http_rbac(Some(rules(Allow, Vec::new())), None)]));
    assert!(!allows(&none, &Request::get("/")));
    let none = open(&http(vec![http_rbac(Some(rules(Deny, Vec::new())), None)]));
    assert!(allows(&none, &Request::get("/")));
}

#[test]
fn shadow_rules_are_a_dry_run_and_logs_are_audits() {
    let shadow = only_below(Allow, "/a");
    let policies = open(&http(vec![
        http_rbac(None, Some(shadow)),
        http_rbac(Some(only_below(Log, "/a")), None),
    ]));
    assert!(policies[0].dry_run());
    assert_eq!(policies[1].action(), &Action::Audit);
    assert!(allows(&policies, &Request::get("/b")));
}

/// istiod names proxies' policies and proxyless servers' differently.
#[test]
fn rules_are_gathered_under_the_policies_that_they_are_of() {
    let one = |path| policy(vec![below(path)]);
    let entries = vec![
        ("ns[foo]-policy[bar]-rule[10]", one("/10")),
        ("ns[foo]-policy[bar]-rule[2]", one("/2")),
        ("default-details-l7-selector-0", one("/0")),
        ("bare", one("/bare")),
    ];
    let policies = open(&http(vec![http_rbac(Some(rules(Allow, entries)), None)]));
    let names: Vec<_> = policies
        .iter()
        .map(|policy| (policy.name().to_string(), policy.rules().len()))
        .collect();
    let expected = [
        ("/bare", 1),
        ("/default-details-l7-selector", 1),
        ("foo/bar", 2),
    ];
    assert_eq!(
        names,
        expected.map(|(name, rules)| (name.to_owned(), rules))
    );
    assert!(
        format!("{:?}", policies[2].rules()[0]).contains("\"/2\""),
        "in the order of their numbers"
    );
}

fn header(
    name: &str,
    specifier: Option<route::header_matcher::HeaderMatchSpecifier>,
) -> route::HeaderMatcher {
    route::HeaderMatcher {
        name: name.into(),
        header_match_specifier: specifier,
        ..Default::default()
    }
}

/// `[x-a absent, x-a empty, x-a: 1, x-a: 2]`
fn by_header(matcher: route::HeaderMatcher) -> [bool; 4] {
    let allow = rules(
        Allow,
        vec![("h-0", policy(vec![rbac::permission::Rule::Header(matcher)]))],
    );
    let policies = open(&http(vec![http_rbac(Some(allow), None)]));
    [None, Some(""), Some("1"), Some("2")].map(|value| {
        let request = Request::get("/");
        let request = match value {
            Some(value) => request.header("x-a", value),
            None => request,
        };
        allows(&policies, &request)
    })
}

#[test]
fn headers_as_envoy_compares_them() {
    use matcher::string_matcher::MatchPattern;
    use route::header_matcher::HeaderMatchSpecifier as Specifier;
    let is = |specifier| header("X-A", Some(specifier));
    let inverted = |matcher| route::HeaderMatcher {
        invert_match: true,
        ..matcher
    };
    let missing_is_empty = |matcher| route::HeaderMatcher {
        treat_missing_header_as_empty: true,
        ..matcher
    };
    let one = || is(Specifier::ExactMatch("1".into()));
    assert_eq!(by_header(header("x-a", None)), [false, true, true, true]);
    assert_eq!(
        by_header(is(Specifier::PresentMatch(true))),
        [false, true, true, true]
    );
    assert_eq!(
        by_header(is(Specifier::PresentMatch(false))),
        [true, false, false, false]
    );
    assert_eq!(
        by_header(inverted(is(Specifier::PresentMatch(true)))),
        [true, false, false, false]
    );
    assert_eq!(by_header(one()), [false, false, true, false]);
    assert_eq!(
        by_header(inverted(one())),
        [false, true, false, true],
        "what is not there matches neither way"
    );
    let empty = || {
        is(Specifier::StringMatch(text(MatchPattern::Exact(
            String::new(),
        ))))
    };
    assert_eq!(by_header(empty()), [false, true, false, false]);
    assert_eq!(
        by_header(missing_is_empty(empty())),
        [true, true, false, false]
    );
    assert_eq!(
        by_header(inverted(missing_is_empty(one()))),
        [true, true, false, true]
    );
    assert_eq!(
        by_header(is(Specifier::PrefixMatch("1".into()))),
        [false, false, true, false]
    );
    assert_eq!(
        by_header(is(Specifier::SuffixMatch("2".into()))),
        [false, false, false, true]
    );
    assert_eq!(
        by_header(is(Specifier::ContainsMatch("1".into()))),
        [false, false, true, false]
    );
    let regex = matcher::RegexMatcher {
        regex: "[12]".into(),
        engine_type: None,
    };
    assert_eq!(
        by_header(is(Specifier::SafeRegexMatch(regex))),
        [false, false, true, true]
    );
}

#[test]
fn requests_mean_nothing_to_network_filters() {
    let by_path = |action| {
        let rules = Some(only_below(action, "/a"));
        let network = network_rbac::Rbac {
            rules,
            ..Default::default()
        };
        let manager = manager(Vec::new());
        open(&chain(vec![
            filter("rbac", any(type_url::NETWORK_RBAC, &network)),
            filter("hcm", any(type_url::HTTP_CONNECTION_MANAGER, &manager)),
        ]))
    };
    assert!(allows(&by_path(Deny), &Request::get("/a")));
    assert!(!allows(&by_path(Allow), &Request::get("/a")));
}

/// Tokens are not verified yet: whatever is asked of one, there is none.
#[test]
fn unverified_tokens_are_absent() {
    let segment = |key: &str| matcher::metadata_matcher::PathSegment {
        segment: Some(matcher::metadata_matcher::path_segment::Segment::Key(
            key.into(),
        )),
    };
    let claim = |invert| {
        let value = matcher::ValueMatcher {
            match_pattern: Some(matcher::value_matcher::MatchPattern::PresentMatch(true)),
        };
        rbac::permission::Rule::Metadata(matcher::MetadataMatcher {
            filter: "envoy.filters.http.jwt_authn".into(),
            path: vec![segment("payload"), segment("iss")],
            value: Some(value),
            invert,
        })
    };
    for (action, invert, expected) in [
        (Allow, false, false),
        (Deny, false, true),
        (Allow, true, true),
        (Deny, true, false),
    ] {
        let entries = vec![("jwt-0", policy(vec![claim(invert)]))];
        let policies = open(&http(vec![http_rbac(Some(rules(action, entries)), None)]));
        assert_eq!(
            allows(&policies, &Request::get("/")),
            expected,
            "{action:?} {invert}"
        );
        assert!(
            format!("{policies:?}").contains("Claim"),
            "to be told once tokens are verified"
        );
    }
}

#[test]
fn paths_are_normalised_as_the_listener_says() {
    use hcm::http_connection_manager::PathWithEscapedSlashesAction as Escaped;
    let with = |normalize: Option<bool>, merge, escaped: Escaped| {
        decode(&managed(&hcm::HttpConnectionManager {
            normalize_path: normalize,
            merge_slashes: merge,
            path_with_escaped_slashes_action: escaped.into(),
            ..manager(Vec::new())
        }))
    };
    let keep = Escaped::KeepUnchanged;
    for (listener, expected) in [
        (
            with(None, false, Escaped::ImplementationSpecificDefault),
            None,
        ),
        (
            with(Some(false), false, keep),
            Some(PathNormalization::None),
        ),
        (with(Some(true), false, keep), Some(PathNormalization::Base)),
        (
            with(Some(true), true, keep),
            Some(PathNormalization::MergeSlashes),
        ),
        (
            with(Some(true), true, Escaped::UnescapeAndForward),
            Some(PathNormalization::DecodeAndMergeSlashes),
        ),
    ] {
        assert_eq!(
            (listener.closed(), listener.path_normalization()),
            (None, expected)
        );
    }
    for escaped in [Escaped::RejectRequest, Escaped::UnescapeAndRedirect] {
        assert!(with(Some(true), true, escaped).closed().is_some());
    }
}

#[test]
fn harmless_filters_change_nothing() {
    let optional = hcm::HttpFilter {
        is_optional: true,
        ..http_filter("new", unknown("x.y.Future"))
    };
    let disabled = hcm::HttpFilter {
        disabled: true,
        ..http_filter("ext", unknown("x.y.ExtAuthz"))
    };
    let listener = http(vec![
        http_filter(
            "fault",
            unknown("envoy.extensions.filters.http.fault.v3.HTTPFault"),
        ),
        http_rbac(Some(only_below(Allow, "/a")), None),
        optional,
        disabled,
        http_filter(
            "router",
            unknown("envoy.extensions.filters.http.router.v3.Router"),
        ),
    ]);
    assert_eq!(open(&listener).len(), 1);
    let tcp = chain(vec![filter(
        "tcp",
        unknown("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"),
    )]);
    assert!(open(&tcp).is_empty());
}

#[test]
fn what_is_not_understood_closes_the_listener() {
    let ext_authz = unknown("envoy.extensions.filters.http.ext_authz.v3.ExtAuthz");
    assert_eq!(
        closed(&http(vec![
            http_rbac(None, None),
            http_filter("ext", ext_authz.clone())
        ])),
        "filter_chains[0].filters[0].http_filters[1]: filter \"ext\" (envoy.extensions.filters.http.ext_authz.v3.ExtAuthz) is not supported"
    );
    assert!(closed(&chain(vec![filter("ext", ext_authz)])).contains("filters[0]: filter \"ext\""));
    assert!(closed(&chain(Vec::new())).contains("filter_chains[0].filters: missing"));
    let mut two = http(Vec::new());
    two.filter_chains.push(wire::FilterChain::default());
    assert_eq!(closed(&two), "filter_chains: 2 chains, expected one");
    let none = wire::Listener {
        filter_chains: Vec::new(),
        ..http(Vec::new())
    };
    assert_eq!(closed(&none), "filter_chains: 0 chains, expected one");
    let tree = wire::Listener {
        filter_chain_matcher: Some(Default::default()),
        ..http(Vec::new())
    };
    assert!(closed(&tree).starts_with("filter_chain_matcher: "));
    let garbage = Any {
        type_url: type_url::HTTP_RBAC.into(),
        value: b"\x0a\xff".to_vec().into(),
    };
    assert!(closed(&http(vec![http_filter("rbac", garbage)])).contains("http_filters[0]: "));
    let apart = hcm::HttpFilter {
        config_type: Some(hcm::http_filter::ConfigType::ConfigDiscovery(
            Default::default(),
        )),
        ..Default::default()
    };
    assert!(closed(&http(vec![apart])).contains("http_filters[0]: filter \"\""));
    let rds = hcm::http_connection_manager::RouteSpecifier::Rds(hcm::Rds::default());
    let rds = hcm::HttpConnectionManager {
        route_specifier: Some(rds),
        ..manager(Vec::new())
    };
    assert!(closed(&managed(&rds)).ends_with("rds: routes that come apart is not supported"));
    let tree = http_rbac::Rbac {
        matcher: Some(Default::default()),
        ..Default::default()
    };
    let tree = http_filter("rbac", any(type_url::HTTP_RBAC, &tree));
    assert!(closed(&http(vec![tree])).contains("matcher: a tree of matchers"));

    let in_rule = |rule| {
        let entries = vec![(
            "ns-one-0",
            rbac::Policy {
                permissions: vec![rule],
                ..policy(Vec::new())
            },
        )];
        closed(&http(vec![http_rbac(Some(rules(Allow, entries)), None)]))
    };
    let at =
        "filter_chains[0].filters[0].http_filters[0].rules.policies[\"ns-one-0\"].permissions[0]";
    assert_eq!(
        in_rule(rbac::Permission::default()),
        format!("{at}: a permission of an unknown kind is not supported")
    );
    let named = core::TypedExtensionConfig {
        name: "tls".into(),
        typed_config: None,
    };
    assert_eq!(
        in_rule(permission(rbac::permission::Rule::Matcher(named))),
        format!("{at}.matcher: \"tls\" is not supported")
    );
    let path = permission(rbac::permission::Rule::Header(header(":path", None)));
    assert_eq!(
        in_rule(path),
        format!("{at}.header.name: \":path\" is not supported")
    );
    let regex = matcher::RegexMatcher {
        regex: "(".into(),
        engine_type: None,
    };
    let regex = text(matcher::string_matcher::MatchPattern::SafeRegex(regex));
    let regex = header(
        "x",
        Some(route::header_matcher::HeaderMatchSpecifier::StringMatch(
            regex,
        )),
    );
    let regex = in_rule(permission(rbac::permission::Rule::Header(regex)));
    assert_eq!(
        regex,
        format!("{at}.header.safe_regex: \"(\", expected an RE2 expression of at most 1 MiB")
    );
    let ports = crate::proto::envoy::r#type::v3::Int32Range {
        start: 0,
        end: 60_000,
    };
    let ports = in_rule(permission(rbac::permission::Rule::DestinationPortRange(
        ports,
    )));
    assert_eq!(
        ports,
        format!("{at}.destination_port_range: more than 16 ports is not supported")
    );
    let condition = rbac::Policy {
        condition: Some(Default::default()),
        ..policy(Vec::new())
    };
    let condition = rules(Deny, vec![("ns-one-0", condition)]);
    assert!(
        closed(&http(vec![http_rbac(Some(condition), None)])).contains("condition: an expression")
    );
}

/// A route may not turn a filter off, or into another, for some requests.
#[test]
fn overrides_of_filters_close_the_listener() {
    let overriding = |name: &str| {
        let route = route::Route {
            typed_per_filter_config: [(name.to_owned(), any(type_url::HTTP_RBAC_PER_ROUTE, &()))]
                .into(),
            ..Default::default()
        };
        let host = route::VirtualHost {
            routes: vec![route],
            ..Default::default()
        };
        let routes = route::RouteConfiguration {
            virtual_hosts: vec![host],
            ..Default::default()
        };
        managed(&hcm::HttpConnectionManager {
            route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::RouteConfig(
                routes,
            )),
            ..manager(vec![
                http_rbac(Some(only_below(Allow, "/a")), None),
                http_filter(
                    "fault",
                    unknown("envoy.extensions.filters.http.fault.v3.HTTPFault"),
                ),
            ])
        })
    };
    assert!(closed(&overriding("rbac")).contains("typed_per_filter_config: \"rbac\""));
    assert!(closed(&overriding("nobody")).contains("typed_per_filter_config: \"nobody\""));
    assert_eq!(open(&overriding("fault")).len(), 1);
}

#[test]
fn a_listener_is_taken_for_its_own_port_only() {
    let decoder = Decoder::new();
    let decode = |name: &str, listener: &wire::Listener| {
        decoder
            .decode(ResourceType::Listener, name, &listener.encode_to_vec())
            .map_err(|rejection| rejection.to_string())
    };
    let client = wire::Listener {
        name: "ratings.default.svc.cluster.local:9080".into(),
        ..Default::default()
    };
    assert_eq!(decode(&client.name, &client), Ok(None));
    assert_eq!(decode("", &client), Ok(None));
    assert!(decode("", &http(Vec::new())).is_ok());
    assert!(
        decode("other", &http(Vec::new()))
            .unwrap_err()
            .starts_with("name: ")
    );
    let other = wire::Listener {
        name: NAME.replace("9080", "9081"),
        ..http(Vec::new())
    };
    assert_eq!(
        decode(&other.name, &other).unwrap_err(),
        "address: \"10.0.0.1\" port 9080, expected 10.0.0.1:9081, as the name says"
    );
    let bare = wire::Listener {
        address: None,
        ..http(Vec::new())
    };
    assert_eq!(
        decode(NAME, &bare).unwrap_err(),
        "address: missing, expected 10.0.0.1:9080"
    );
    let odd = wire::Listener {
        name: "xds.istio.io/grpc/lds/inbound/here".into(),
        ..http(Vec::new())
    };
    assert!(decode(&odd.name, &odd).unwrap_err().starts_with("name: "));
}
