//! A port of a workload as the inbound listener that istiod makes of it for a proxyless server.

use std::net::SocketAddr;

use mesh_authz::policy::{Action, Policy};
use prost::Message;

use super::rbac::rbac;
use crate::proto::envoy::config::core::v3::{Address, SocketAddress, address, socket_address};
use crate::proto::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use crate::proto::envoy::config::rbac::v3::rbac::Action as WireAction;
use crate::proto::envoy::config::route::v3::{
    NonForwardingAction, Route, RouteConfiguration, RouteMatch, VirtualHost, route, route_match,
};
use crate::proto::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use crate::proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_connection_manager, http_filter,
};
use crate::proto::google::protobuf::Any;
use crate::proto::type_url;

/// One chain for every connection: the tunnel is the transport, so the chain has no TLS of its own. DENY
/// stands before ALLOW.
pub(super) fn listener(name: &str, address: SocketAddr, policies: &[&Policy]) -> Listener {
    let mut http_filters = Vec::new();
    http_filters.extend(filter(
        "envoy.filters.http.rbac.DENY",
        WireAction::Deny,
        policies,
    ));
    http_filters.extend(filter(
        "envoy.filters.http.rbac",
        WireAction::Allow,
        policies,
    ));
    http_filters.push(http_filter(
        "envoy.filters.http.router",
        type_url::ROUTER,
        Vec::new(),
    ));
    let manager = HttpConnectionManager {
        route_specifier: Some(http_connection_manager::RouteSpecifier::RouteConfig(
            routes(),
        )),
        http_filters,
        ..HttpConnectionManager::default()
    };
    let manager = Filter {
        name: "inbound-hcmplaintext".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(Any {
            type_url: type_url::HTTP_CONNECTION_MANAGER.to_owned(),
            value: manager.encode_to_vec().into(),
        })),
    };
    let socket = SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(
            address.port().into(),
        )),
        ..SocketAddress::default()
    };
    Listener {
        name: name.to_owned(),
        address: Some(Address {
            address: Some(address::Address::SocketAddress(socket)),
        }),
        filter_chains: vec![FilterChain {
            filters: vec![manager],
            name: "inbound-plaintext".to_owned(),
            ..FilterChain::default()
        }],
        ..Listener::default()
    }
}

/// The policies with an action, dry-run ones as shadow rules. A filter without rules permits nothing, so
/// there is one only where there are policies.
fn filter(name: &str, action: WireAction, policies: &[&Policy]) -> Option<HttpFilter> {
    let rules = |dry_run: bool| {
        let mut found = policies.iter().filter(|policy| {
            let denies = matches!(policy.action(), Action::Deny | Action::Custom { .. });
            let has = match action {
                WireAction::Deny => denies,
                _ => *policy.action() == Action::Allow,
            };
            has && policy.dry_run() == dry_run
        });
        let found: Vec<&Policy> = found.by_ref().copied().collect();
        (!found.is_empty()).then(|| rbac(action, found))
    };
    let (rules, shadow_rules) = (rules(false), rules(true));
    if rules.is_none() && shadow_rules.is_none() {
        return None;
    }
    let config = HttpRbac {
        rules,
        shadow_rules,
        ..HttpRbac::default()
    };
    Some(http_filter(
        name,
        type_url::HTTP_RBAC,
        config.encode_to_vec(),
    ))
}

fn http_filter(name: &str, type_url: &str, value: Vec<u8>) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(Any {
            type_url: type_url.to_owned(),
            value: value.into(),
        })),
        ..HttpFilter::default()
    }
}

/// Every request is the application's.
fn routes() -> RouteConfiguration {
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(route_match::PathSpecifier::Prefix("/".to_owned())),
            ..RouteMatch::default()
        }),
        action: Some(route::Action::NonForwardingAction(NonForwardingAction {})),
        ..Route::default()
    };
    RouteConfiguration {
        name: "inbound".to_owned(),
        virtual_hosts: vec![VirtualHost {
            domains: vec!["*".to_owned()],
            routes: vec![route],
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    }
}
