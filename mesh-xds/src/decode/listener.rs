//! The inbound listeners of proxyless servers.

use std::net::SocketAddr;

use mesh_authz::matcher::PathNormalization;
use prost::Message;

use super::field::{Field, Problem};
use super::rbac::{Chain, Layer};
use crate::model::InboundListener;
use crate::proto::envoy::config::core::v3::{address, socket_address};
use crate::proto::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener, filter,
};
use crate::proto::envoy::config::route::v3::RouteConfiguration;
use crate::proto::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use crate::proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_connection_manager, http_filter,
};
use crate::proto::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use crate::proto::google::protobuf::Any;
use crate::proto::type_url;

/// Reads an inbound listener; `None` for any other.
pub(super) fn inbound(listener: &Listener) -> Result<Option<InboundListener>, Problem> {
    let Some(own) = listener.name.strip_prefix(InboundListener::NAME) else {
        return Ok(None);
    };
    let address: SocketAddr = own.parse().map_err(|_| {
        let found = format_args!("{:?}", listener.name);
        Field::root("name").wrong(
            found,
            format_args!("{}<address>:<port>", InboundListener::NAME),
        )
    })?;
    check_address(listener, address)?;
    Ok(Some(match policies(listener) {
        Ok((chain, normalization)) => {
            let inbound = InboundListener::new(address, chain.policies);
            match normalization {
                Some(normalization) => inbound.with_path_normalization(normalization),
                None => inbound,
            }
        }
        Err(problem) => InboundListener::closed_because(address, problem.to_string()),
    }))
}

/// A listener of one port must not be taken for that of another.
fn check_address(listener: &Listener, named: SocketAddr) -> Result<(), Problem> {
    let field = Field::root("address");
    let Some(address) = listener
        .address
        .as_ref()
        .and_then(|address| address.address.as_ref())
    else {
        return Err(field.missing(named));
    };
    let address::Address::SocketAddress(address) = address else {
        return Err(field.wrong("no socket", named));
    };
    let port = match &address.port_specifier {
        Some(socket_address::PortSpecifier::PortValue(port)) => u16::try_from(*port).ok(),
        _ => None,
    };
    let found = address.address.parse().ok().zip(port);
    if found.map(|(ip, port)| SocketAddr::new(ip, port)) == Some(named) {
        return Ok(());
    }
    Err(field.wrong(
        format_args!("{:?} port {}", address.address, port.unwrap_or(0)),
        format_args!("{named}, as the name says"),
    ))
}

type Policies = (Chain, Option<PathNormalization>);

/// All that binds the listener's connections and requests; an error closes it.
fn policies(listener: &Listener) -> Result<Policies, Problem> {
    if listener.filter_chain_matcher.is_some() {
        let field = Field::root("filter_chain_matcher");
        return Err(field.unsupported("a choice of chains"));
    }
    if listener.api_listener.is_some() {
        return Err(Field::root("api_listener").unsupported("an inbound API listener"));
    }
    let field = Field::root("filter_chains");
    // What cannot be told is by which of several a connection goes.
    match (
        listener.filter_chains.as_slice(),
        &listener.default_filter_chain,
    ) {
        ([chain], None) => {
            let field = field.index(0);
            // What does not match is closed, which a listener for all would be not.
            match &chain.filter_chain_match {
                Some(some) if *some != FilterChainMatch::default() => {
                    let field = field.at("filter_chain_match");
                    Err(field.unsupported("a choice of connections"))
                }
                _ => chain_policies(chain, &field),
            }
        }
        ([], Some(chain)) => chain_policies(chain, &Field::root("default_filter_chain")),
        (chains, default) => {
            let count = chains.len() + usize::from(default.is_some());
            Err(field.wrong(format_args!("{count} chains"), "one"))
        }
    }
}

fn chain_policies(chain: &FilterChain, field: &Field<'_>) -> Result<Policies, Problem> {
    let mut policies = Chain::default();
    let mut normalization = None;
    let filters = field.at("filters");
    if chain.filters.is_empty() {
        return Err(filters.missing("filters"));
    }
    for (index, filter) in chain.filters.iter().enumerate() {
        let at = filters.index(index);
        let config = network_config(filter, &at)?;
        match config.type_url.as_str() {
            type_url::NETWORK_RBAC => {
                let rbac: NetworkRbac = read(config, &at)?;
                if rbac.matcher.is_some() {
                    return Err(at.at("matcher").unsupported("a tree of matchers"));
                }
                if let Some(rules) = &rbac.rules {
                    policies.add(rules, Layer::Network, false, &at.at("rules"))?;
                }
                if let Some(rules) = &rbac.shadow_rules {
                    policies.add(rules, Layer::Network, true, &at.at("shadow_rules"))?;
                }
            }
            type_url::HTTP_CONNECTION_MANAGER => {
                let manager: HttpConnectionManager = read(config, &at)?;
                http_policies(&manager, &mut policies, &at)?;
                normalization = path_normalization(&manager, &at)?;
            }
            other if HARMLESS.contains(&bare(other)) => {}
            other => return Err(unknown(&at, &filter.name, other)),
        }
    }
    Ok((policies, normalization))
}

fn http_policies(
    manager: &HttpConnectionManager,
    policies: &mut Chain,
    field: &Field<'_>,
) -> Result<(), Problem> {
    let filters = field.at("http_filters");
    for (index, filter) in manager.http_filters.iter().enumerate() {
        let at = filters.index(index);
        if filter.disabled {
            continue;
        }
        let Some(http_filter::ConfigType::TypedConfig(config)) = &filter.config_type else {
            // Its configuration is elsewhere, and may refuse requests.
            return Err(unknown(&at, &filter.name, ""));
        };
        match config.type_url.as_str() {
            type_url::HTTP_RBAC => {
                let rbac: HttpRbac = read(config, &at)?;
                if rbac.matcher.is_some() {
                    return Err(at.at("matcher").unsupported("a tree of matchers"));
                }
                if let Some(rules) = &rbac.rules {
                    policies.add(rules, Layer::Http, false, &at.at("rules"))?;
                }
                if let Some(rules) = &rbac.shadow_rules {
                    policies.add(rules, Layer::Http, true, &at.at("shadow_rules"))?;
                }
            }
            other if HARMLESS.contains(&bare(other)) || filter.is_optional => {}
            other => return Err(unknown(&at, &filter.name, other)),
        }
    }
    use http_connection_manager::RouteSpecifier;
    match &manager.route_specifier {
        Some(RouteSpecifier::RouteConfig(routes)) => {
            check_overrides(routes, &manager.http_filters, &field.at("route_config"))
        }
        Some(RouteSpecifier::Rds(_)) => {
            // They could hold other rules for some requests.
            Err(field.at("rds").unsupported("routes that come apart"))
        }
        None => Ok(()),
    }
}

/// Routes that change what a filter does for some requests are not told apart.
fn check_overrides(
    routes: &RouteConfiguration,
    filters: &[HttpFilter],
    field: &Field<'_>,
) -> Result<(), Problem> {
    let hosts = routes.virtual_hosts.iter();
    let overrides = hosts
        .flat_map(|host| {
            let routes = host
                .routes
                .iter()
                .map(|route| &route.typed_per_filter_config);
            std::iter::once(&host.typed_per_filter_config).chain(routes)
        })
        .chain([&routes.typed_per_filter_config]);
    for (name, config) in overrides.flatten() {
        let mut filters = filters.iter();
        let filter = filters.find(|filter| filter.name == *name && !filter.disabled);
        let known = filter.is_some_and(|filter| match &filter.config_type {
            Some(http_filter::ConfigType::TypedConfig(config)) => {
                HARMLESS.contains(&bare(&config.type_url))
            }
            _ => false,
        });
        if !known {
            let found = format_args!("{name:?} ({})", config.type_url);
            return Err(field.at("typed_per_filter_config").unsupported(found));
        }
    }
    Ok(())
}

fn path_normalization(
    manager: &HttpConnectionManager,
    field: &Field<'_>,
) -> Result<Option<PathNormalization>, Problem> {
    use http_connection_manager::PathWithEscapedSlashesAction as Escaped;
    let at = field.at("path_with_escaped_slashes_action");
    let escaped = at.one_of(
        manager.path_with_escaped_slashes_action,
        "an action, 0 to 4",
    )?;
    Ok(match (escaped, manager.normalize_path) {
        (Escaped::UnescapeAndForward, _) => Some(PathNormalization::DecodeAndMergeSlashes),
        (Escaped::RejectRequest, _) => return Err(at.unsupported("REJECT_REQUEST")),
        (Escaped::UnescapeAndRedirect, _) => {
            return Err(at.unsupported("UNESCAPE_AND_REDIRECT"));
        }
        _ if manager.merge_slashes => Some(PathNormalization::MergeSlashes),
        (_, Some(true)) => Some(PathNormalization::Base),
        (_, Some(false)) => Some(PathNormalization::None),
        // istiod says nothing of it to proxyless servers: as the layer is set.
        (_, None) => None,
    })
}

fn network_config<'a>(filter: &'a Filter, field: &Field<'_>) -> Result<&'a Any, Problem> {
    match &filter.config_type {
        Some(filter::ConfigType::TypedConfig(config)) => Ok(config),
        _ => Err(unknown(field, &filter.name, "")),
    }
}

fn unknown(field: &Field<'_>, name: &str, type_url: &str) -> Problem {
    let kind = bare(type_url);
    field.unsupported(format_args!("filter {name:?} ({kind})"))
}

fn read<M: Message + Default>(config: &Any, field: &Field<'_>) -> Result<M, Problem> {
    M::decode(&*config.value).map_err(|error| field.wrong(error, bare(&config.type_url)))
}

/// The message that a type URL names.
fn bare(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or(type_url)
}

/// Filters that refuse nothing: they answer, count, inject faults or exchange what telemetry tells.
const HARMLESS: [&str; 12] = [
    "envoy.extensions.filters.http.alpn.v3.FilterConfig",
    "envoy.extensions.filters.http.cors.v3.Cors",
    "envoy.extensions.filters.http.fault.v3.HTTPFault",
    "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
    "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb",
    "envoy.extensions.filters.http.router.v3.Router",
    "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
    "envoy.tcp.metadataexchange.config.MetadataExchange",
    "io.istio.http.peer_metadata.Config",
    "io.istio.network.metadata_exchange.Config",
    "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
    "stats.PluginConfig",
];
