//! Our own subset of the protobuf interfaces against Envoy's, as `envoy-types` has them: what they write
//! we read, and what we write of it they read as what they wrote.
//!
//! Here and not in mesh-xds, because `envoy-types` would cost every build of its tests 20 s and more, and a
//! server stack; this workspace is built once, by `.ci/run`.

use std::collections::HashMap;
use std::fmt::Debug;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::config::rbac::v3 as rbac;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as http_rbac;
use envoy_types::pb::envoy::extensions::filters::http::router::v3 as router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3 as network_rbac;
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3 as uri_template;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::envoy::r#type::v3 as range;
use envoy_types::pb::google::protobuf::{Any, BoolValue, Struct, UInt32Value, Value, value::Kind};
use envoy_types::pb::google::rpc::Status;
use envoy_types::pb::xds::r#type::matcher::v3 as tree;
use prost::Message;

#[allow(
    dead_code,
    unexpected_cfgs,
    unused_imports,
    reason = "of the interfaces only Envoy's are compared"
)]
#[path = "../../mesh-xds/src/proto/mod.rs"]
mod proto;

/// Theirs, through ours, is theirs.
#[track_caller]
fn same<Theirs, Ours>(theirs: &Theirs)
where
    Theirs: Message + Default + PartialEq + Debug,
    Ours: Message + Default,
{
    leaves::<Theirs, Ours>(theirs, theirs);
}

/// Of theirs, through ours, that is left: the rest is not in the subset.
#[track_caller]
fn leaves<Theirs, Ours>(theirs: &Theirs, left: &Theirs)
where
    Theirs: Message + Default + PartialEq + Debug,
    Ours: Message + Default,
{
    let ours = Ours::decode(&*theirs.encode_to_vec()).expect("we read what they write");
    let again = Theirs::decode(&*ours.encode_to_vec()).expect("they read what we write");
    assert_eq!(&again, left);
}

fn any() -> Any {
    Any {
        type_url: "type.googleapis.com/a.B".to_owned(),
        value: vec![1, 2, 3],
    }
}

fn text(text: &str) -> String {
    text.to_owned()
}

fn status() -> Status {
    Status {
        code: 3,
        message: text("why"),
        details: vec![any()],
    }
}

fn node() -> core::Node {
    let value = |kind| Value { kind: Some(kind) };
    let labels = [("app".to_owned(), value(Kind::StringValue(text("a"))))];
    let fields = [
        ("NAME", Kind::StringValue(text("n"))),
        ("N", Kind::NumberValue(1.5)),
        ("B", Kind::BoolValue(true)),
        (
            "L",
            Kind::StructValue(Struct {
                fields: labels.into(),
            }),
        ),
    ];
    let fields = fields.map(|(name, kind)| (name.to_owned(), value(kind)));
    core::Node {
        id: text("id"),
        cluster: text("cluster"),
        metadata: Some(Struct {
            fields: fields.into(),
        }),
        locality: Some(core::Locality {
            region: text("r"),
            zone: text("z"),
            sub_zone: text("s"),
        }),
        user_agent_name: text("agent"),
        client_features: vec![text("f")],
        ..core::Node::default()
    }
}

fn resource_name() -> discovery::ResourceName {
    discovery::ResourceName {
        name: text("d"),
        ..Default::default()
    }
}

fn resource_error() -> discovery::ResourceError {
    discovery::ResourceError {
        resource_name: Some(resource_name()),
        error_detail: Some(status()),
    }
}

#[test]
fn discovery() {
    same::<_, proto::envoy::service::discovery::v3::DeltaDiscoveryRequest>(
        &discovery::DeltaDiscoveryRequest {
            node: Some(node()),
            type_url: text("t"),
            resource_names_subscribe: vec![text("a"), text("b")],
            resource_names_unsubscribe: vec![text("c")],
            initial_resource_versions: HashMap::from([(text("a"), text("1"))]),
            response_nonce: text("n"),
            error_detail: Some(status()),
            ..Default::default()
        },
    );
    same::<_, proto::envoy::service::discovery::v3::DeltaDiscoveryResponse>(
        &discovery::DeltaDiscoveryResponse {
            system_version_info: text("v"),
            resources: vec![discovery::Resource {
                name: text("a"),
                aliases: vec![text("b")],
                version: text("1"),
                resource: Some(any()),
                cache_control: Some(discovery::resource::CacheControl { do_not_cache: true }),
                metadata: Some(core::Metadata {
                    typed_filter_metadata: HashMap::from([(text("k"), any())]),
                    ..Default::default()
                }),
                ..Default::default()
            }],
            type_url: text("t"),
            removed_resources: vec![text("c")],
            nonce: text("n"),
            control_plane: Some(core::ControlPlane {
                identifier: text("i"),
            }),
            removed_resource_names: vec![resource_name()],
            resource_errors: vec![resource_error()],
        },
    );
    same::<_, proto::envoy::service::discovery::v3::DiscoveryRequest>(
        &discovery::DiscoveryRequest {
            version_info: text("v"),
            node: Some(node()),
            resource_names: vec![text("a")],
            type_url: text("t"),
            response_nonce: text("n"),
            error_detail: Some(status()),
            ..Default::default()
        },
    );
    same::<_, proto::envoy::service::discovery::v3::DiscoveryResponse>(
        &discovery::DiscoveryResponse {
            version_info: text("v"),
            resources: vec![any()],
            type_url: text("t"),
            nonce: text("n"),
            control_plane: Some(core::ControlPlane {
                identifier: text("i"),
            }),
            resource_errors: vec![resource_error()],
            ..Default::default()
        },
    );
}

fn strings() -> Vec<matcher::StringMatcher> {
    use matcher::string_matcher::MatchPattern as P;
    let regex = matcher::RegexMatcher {
        regex: text(".*"),
        ..Default::default()
    };
    [
        P::Exact(text("a")),
        P::Prefix(text("a")),
        P::Suffix(text("a")),
        P::SafeRegex(regex),
        P::Contains(text("a")),
    ]
    .map(|pattern| matcher::StringMatcher {
        ignore_case: true,
        match_pattern: Some(pattern),
    })
    .into()
}

fn headers() -> Vec<route::HeaderMatcher> {
    use route::header_matcher::HeaderMatchSpecifier as S;
    let mut kinds: Vec<S> = strings().into_iter().map(S::StringMatch).collect();
    kinds.push(S::PresentMatch(true));
    kinds.push(S::RangeMatch(range::Int64Range { start: -1, end: 5 }));
    let header = |kind| route::HeaderMatcher {
        name: text(":method"),
        invert_match: true,
        treat_missing_header_as_empty: true,
        header_match_specifier: Some(kind),
    };
    kinds.into_iter().map(header).collect()
}

fn block() -> core::CidrRange {
    core::CidrRange {
        address_prefix: text("10.0.0.0"),
        prefix_len: Some(UInt32Value { value: 8 }),
    }
}

fn path() -> matcher::PathMatcher {
    let path = strings().remove(1);
    matcher::PathMatcher {
        rule: Some(matcher::path_matcher::Rule::Path(path)),
    }
}

fn metadata() -> matcher::MetadataMatcher {
    use matcher::metadata_matcher::{PathSegment, path_segment::Segment};
    use matcher::value_matcher::MatchPattern as P;
    let one = matcher::ValueMatcher {
        match_pattern: Some(P::StringMatch(strings().remove(0))),
    };
    let list = matcher::ListMatcher {
        match_pattern: Some(matcher::list_matcher::MatchPattern::OneOf(Box::new(one))),
    };
    matcher::MetadataMatcher {
        filter: text("jwt"),
        path: vec![PathSegment {
            segment: Some(Segment::Key(text("claims"))),
        }],
        value: Some(matcher::ValueMatcher {
            match_pattern: Some(P::ListMatch(Box::new(list))),
        }),
        invert: true,
    }
}

fn rules() -> rbac::Rbac {
    use rbac::permission::Rule as R;
    use rbac::principal::Identifier as I;
    let permission = |rule| rbac::Permission { rule: Some(rule) };
    let principal = |id| rbac::Principal {
        identifier: Some(id),
    };
    let extension = core::TypedExtensionConfig {
        name: text("template"),
        typed_config: Some(any()),
    };
    let mut permissions: Vec<_> = headers().into_iter().map(R::Header).collect();
    permissions.extend([
        R::Any(true),
        R::UrlPath(path()),
        R::DestinationIp(block()),
        R::DestinationPort(80),
        R::DestinationPortRange(range::Int32Range { start: 1, end: 9 }),
        R::RequestedServerName(strings().remove(0)),
        R::UriTemplate(extension),
        R::NotRule(Box::new(permission(R::Any(true)))),
    ]);
    let permissions: Vec<_> = permissions.into_iter().map(permission).collect();
    let set = rbac::permission::Set {
        rules: permissions.clone(),
    };
    let permissions = [R::AndRules(set.clone()), R::OrRules(set)].map(permission);
    let mut ids: Vec<_> = headers().into_iter().map(I::Header).collect();
    ids.extend([
        I::Any(true),
        I::Authenticated(rbac::principal::Authenticated {
            principal_name: Some(strings().remove(3)),
        }),
        I::DirectRemoteIp(block()),
        I::RemoteIp(block()),
        I::UrlPath(path()),
        I::FilterState(matcher::FilterStateMatcher {
            key: text("io.istio.peer_principal"),
            matcher: Some(matcher::filter_state_matcher::Matcher::StringMatch(
                strings().remove(0),
            )),
        }),
        I::SourcedMetadata(rbac::SourcedMetadata {
            metadata_matcher: Some(metadata()),
            metadata_source: 1,
        }),
        I::NotId(Box::new(principal(I::Any(true)))),
    ]);
    let ids: Vec<_> = ids.into_iter().map(principal).collect();
    let set = rbac::principal::Set { ids };
    let principals = [I::AndIds(set.clone()), I::OrIds(set)].map(principal);
    let policy = rbac::Policy {
        permissions: permissions.into(),
        principals: principals.into(),
        ..Default::default()
    };
    rbac::Rbac {
        action: 1,
        policies: HashMap::from([(text("p"), policy)]),
        ..Default::default()
    }
}

#[test]
fn access_control() {
    same::<_, proto::envoy::extensions::filters::http::rbac::v3::Rbac>(&http_rbac::Rbac {
        rules: Some(rules()),
        rules_stat_prefix: text("a"),
        shadow_rules: Some(rules()),
        shadow_rules_stat_prefix: text("b"),
        track_per_rule_stats: true,
        ..Default::default()
    });
    same::<_, proto::envoy::extensions::filters::http::rbac::v3::RbacPerRoute>(
        &http_rbac::RbacPerRoute {
            rbac: Some(http_rbac::Rbac::default()),
        },
    );
    same::<_, proto::envoy::extensions::filters::network::rbac::v3::Rbac>(&network_rbac::Rbac {
        rules: Some(rules()),
        shadow_rules: Some(rules()),
        shadow_rules_stat_prefix: text("b"),
        stat_prefix: text("a"),
        enforcement_type: 1,
        ..Default::default()
    });
}

type OurConnections =
    proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;

#[test]
fn listeners() {
    use core::address::Address as Kind;
    use core::socket_address::PortSpecifier;
    let manager = hcm::HttpConnectionManager {
        codec_type: 2,
        stat_prefix: text("s"),
        http_filters: vec![hcm::HttpFilter {
            name: text("envoy.filters.http.rbac"),
            is_optional: true,
            disabled: true,
            config_type: Some(hcm::http_filter::ConfigType::TypedConfig(any())),
        }],
        forward_client_cert_details: 3,
        xff_num_trusted_hops: 1,
        merge_slashes: true,
        path_with_escaped_slashes_action: 4,
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::RouteConfig(
            route::RouteConfiguration {
                name: text("inbound"),
                virtual_hosts: vec![route::VirtualHost {
                    name: text("v"),
                    domains: vec![text("*")],
                    routes: vec![route::Route {
                        name: text("r"),
                        r#match: Some(route::RouteMatch {
                            headers: headers(),
                            path_specifier: Some(route::route_match::PathSpecifier::Prefix(text(
                                "/",
                            ))),
                            ..Default::default()
                        }),
                        typed_per_filter_config: HashMap::from([(text("f"), any())]),
                        action: Some(route::route::Action::NonForwardingAction(
                            route::NonForwardingAction {},
                        )),
                        ..Default::default()
                    }],
                    typed_per_filter_config: HashMap::from([(text("f"), any())]),
                    ..Default::default()
                }],
                typed_per_filter_config: HashMap::from([(text("f"), any())]),
                ..Default::default()
            },
        )),
        ..Default::default()
    };
    same::<_, OurConnections>(&manager);
    let rds = |config_source| hcm::HttpConnectionManager {
        normalize_path: Some(BoolValue { value: true }),
        use_remote_address: Some(BoolValue { value: false }),
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::Rds(
            hcm::Rds {
                config_source,
                route_config_name: text("outbound|80||a"),
            },
        )),
        ..Default::default()
    };
    // Where to ask for the routes is not in the subset: that there are none here is.
    let source = core::ConfigSource::default();
    leaves::<_, OurConnections>(&rds(Some(source)), &rds(None));
    let address = core::Address {
        address: Some(Kind::SocketAddress(core::SocketAddress {
            address: text("10.0.0.1"),
            port_specifier: Some(PortSpecifier::PortValue(80)),
            ..Default::default()
        })),
    };
    let chain = listener::FilterChain {
        filter_chain_match: Some(listener::FilterChainMatch {
            destination_port: Some(UInt32Value { value: 80 }),
            prefix_ranges: vec![block()],
            direct_source_prefix_ranges: vec![block()],
            source_type: 2,
            source_prefix_ranges: vec![block()],
            source_ports: vec![1, 2],
            server_names: vec![text("a")],
            transport_protocol: text("tls"),
            application_protocols: vec![text("istio")],
            ..Default::default()
        }),
        filters: vec![listener::Filter {
            name: text("hcm"),
            config_type: Some(listener::filter::ConfigType::TypedConfig(any())),
        }],
        transport_socket: Some(core::TransportSocket {
            name: text("tls"),
            config_type: Some(core::transport_socket::ConfigType::TypedConfig(any())),
        }),
        name: text("inbound-mtls"),
        ..Default::default()
    };
    let listener = |filter_chain_matcher| listener::Listener {
        name: text("xds.istio.io/grpc/lds/inbound/10.0.0.1:80"),
        address: Some(address.clone()),
        filter_chains: vec![chain.clone()],
        default_filter_chain: Some(chain.clone()),
        traffic_direction: 1,
        api_listener: Some(listener::ApiListener {
            api_listener: Some(any()),
        }),
        use_original_dst: Some(BoolValue { value: true }),
        listener_filters: vec![listener::ListenerFilter {
            name: text("original_dst"),
            config_type: Some(listener::listener_filter::ConfigType::TypedConfig(any())),
            ..Default::default()
        }],
        filter_chain_matcher,
        ..Default::default()
    };
    same::<_, proto::envoy::config::listener::v3::Listener>(&listener(None));
    // Of a match tree that there is one.
    let matched = tree::matcher::OnMatch {
        keep_matching: true,
        ..Default::default()
    };
    let tree = tree::Matcher {
        on_no_match: Some(Box::new(matched)),
        ..Default::default()
    };
    leaves::<_, proto::envoy::config::listener::v3::Listener>(
        &listener(Some(tree)),
        &listener(Some(tree::Matcher::default())),
    );
}

#[test]
fn the_last_filter_of_requests() {
    let router = router::Router {
        dynamic_stats: Some(BoolValue { value: true }),
        suppress_envoy_headers: true,
        ..Default::default()
    };
    type Ours = proto::envoy::extensions::filters::http::router::v3::Router;
    leaves::<_, Ours>(&router, &router::Router::default());
}

#[test]
fn path_templates() {
    let config = uri_template::UriTemplateMatchConfig {
        path_template: text("/a/{*}/{**}"),
    };
    same::<_, proto::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig>(
        &config,
    );
}

/// Both forms of naming a provider of certificates: istiod fills in the older one as well.
#[test]
#[allow(deprecated, reason = "istiod says it both ways")]
fn tls_of_a_server() {
    use tls::common_tls_context::{
        CertificateProviderInstance, CombinedCertificateValidationContext,
        ValidationContextType as V,
    };
    let instance = |certificate: &str| CertificateProviderInstance {
        instance_name: text("default"),
        certificate_name: text(certificate),
    };
    let plugin = |certificate: &str| tls::CertificateProviderPluginInstance {
        instance_name: text("default"),
        certificate_name: text(certificate),
    };
    let validation = || tls::CertificateValidationContext {
        ca_certificate_provider_instance: Some(plugin("ROOTCA")),
        ..Default::default()
    };
    let combined = CombinedCertificateValidationContext {
        default_validation_context: Some(validation()),
        validation_context_certificate_provider_instance: Some(instance("ROOTCA")),
        ..Default::default()
    };
    for kind in [
        V::ValidationContext(validation()),
        V::CombinedValidationContext(combined),
    ] {
        let common = tls::CommonTlsContext {
            tls_certificate_provider_instance: Some(plugin("default")),
            tls_certificate_certificate_provider_instance: Some(instance("default")),
            validation_context_type: Some(kind),
            ..Default::default()
        };
        same::<_, proto::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext>(
            &tls::DownstreamTlsContext {
                common_tls_context: Some(common),
                require_client_certificate: Some(BoolValue { value: true }),
                ..Default::default()
            },
        );
    }
}
