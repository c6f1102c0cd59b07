//! What is worth noticing in what a real istiod says to Envoys and to gRPC, as our subset of the interfaces has it.

use std::collections::BTreeSet;

use prost::Message;

use crate::istiod_notes::{Response, responses};
use crate::proto::envoy::config::core::v3::transport_socket;
use crate::proto::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use crate::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use crate::proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use crate::proto::google::protobuf::Any;
use crate::require;
use hcm::http_connection_manager::RouteSpecifier;

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

fn recording(client: &str, url: &str) -> Option<Vec<Response>> {
    let data = require::data(client)?;
    Some(responses(&data.join("istiod/bookinfo").join(client), url))
}

fn read<M: Message + Default>(any: &Any) -> M {
    M::decode(&*any.value).unwrap_or_else(|error| panic!("{}: {error}", any.type_url))
}

fn listeners(response: &Response) -> Vec<Listener> {
    let resources = response.message.resources.iter();
    let values = resources.map(|one| one.resource.as_ref().expect("a value"));
    values.map(read).collect()
}

fn config(of: &Filter) -> &Any {
    match of.config_type.as_ref().expect("a config") {
        filter::ConfigType::TypedConfig(any) => any,
        other => panic!("{other:?}"),
    }
}

/// The connection manager of a chain that has one.
fn manager(of: &FilterChain) -> Option<hcm::HttpConnectionManager> {
    let mut configs = of.filters.iter().map(config);
    let found = configs.find(|any| any.type_url.ends_with(".HttpConnectionManager"));
    found.map(read)
}

/// The names of a manager's filters, those of Envoy without what they all begin with.
fn filters(of: &hcm::HttpConnectionManager) -> Vec<&str> {
    let names = of.http_filters.iter().map(|one| one.name.as_str());
    names
        .map(|name| name.strip_prefix("envoy.filters.http.").unwrap_or(name))
        .collect()
}

/// Note 4: what a delta of clusters leaves out is not gone by that, though there are fewer in it than in the one before.
#[test]
fn a_delta_of_clusters_has_fewer_and_removes_none() {
    let Some(all) = recording("waypoint", CLUSTER) else {
        return;
    };
    let names = |response: &Response| -> BTreeSet<String> {
        let resources = response.message.resources.iter();
        resources.map(|one| one.name.clone()).collect()
    };
    assert!(
        all.iter()
            .all(|one| one.message.removed_resources.is_empty())
    );
    let sizes: Vec<_> = all
        .iter()
        .map(|one| (one.step.as_str(), names(one).len()))
        .collect();
    let expected = [
        ("base", 15),
        ("04-new-service.apply", 14),
        ("05-waypoint-for-cart.apply", 16),
        ("06-reviews-half.apply", 15),
    ];
    assert_eq!(sizes, expected);
    let native = "outbound|80||native.default.svc.cluster.local";
    let there: Vec<_> = all.iter().map(|one| names(one).contains(native)).collect();
    assert_eq!(there, [true, false, true, false]);
}

/// Note 7: a chain for each service and port, and what takes the rest; which it is a tree says that we do not read.
#[test]
fn a_waypoint_has_its_routes_inline_and_its_policies_in_order() {
    let Some(all) = recording("waypoint", LISTENER) else {
        return;
    };
    assert!(!all.is_empty());
    for response in &all {
        let listeners = listeners(response);
        let names: BTreeSet<_> = listeners.iter().map(|one| one.name.as_str()).collect();
        let expected = ["connect_originate", "connect_terminate", "main_internal"];
        assert_eq!(names, expected.into());
        let main = listeners.iter().find(|one| one.name == "main_internal");
        let main = main.unwrap();
        assert!(main.filter_chain_matcher.is_some());
        let matched = main.filter_chains.iter().map(|one| &one.filter_chain_match);
        assert!(matched.flatten().next().is_none(), "the tree alone chooses");
        let names: Vec<_> = main.filter_chains.iter().map(|one| &*one.name).collect();
        let (rest, services) = names
            .iter()
            .partition::<Vec<&str>, _>(|name| name.starts_with("direct-"));
        assert_eq!(rest, ["direct-tcp", "direct-http"]);
        assert!(
            services.len() >= 6 && services.iter().all(|name| name.starts_with("inbound-vip|")),
            "{services:?}"
        );
        let managers = main.filter_chains.iter();
        let managers: Vec<_> = managers
            .filter_map(|chain| Some((&*chain.name, manager(chain)?)))
            .collect();
        for (name, manager) in &managers {
            assert!(name.contains("http"), "{name}");
            let routes = &manager.route_specifier;
            let inline = matches!(routes, Some(RouteSpecifier::RouteConfig(_)));
            assert!(inline, "{name}: {routes:?}");
            let filters = filters(manager);
            assert!(filters.contains(&"rbac"), "{name}: {filters:?}");
            assert_eq!(filters.last(), Some(&"router"));
        }
        let reviews = managers
            .iter()
            .find(|(name, _)| *name == "inbound-vip|9080|http|reviews.default.svc.cluster.local");
        // Who somebody is before what they may, and a DENY before an ALLOW.
        assert_eq!(
            filters(&reviews.unwrap().1)[..3],
            ["jwt_authn", "rbac", "rbac"]
        );
    }
    let Some(routes) = recording("waypoint", ROUTES) else {
        return;
    };
    assert!(routes.is_empty(), "none is discovered apart");
}

/// Note 8: one chain, with a provider of certificates that has a name or in plaintext, and what is refused before what is
/// allowed.
#[test]
fn a_server_of_grpc_has_one_chain_with_its_policies_around_an_inline_route() {
    let mut chains = BTreeSet::new();
    for client in ["proxyless-server", "proxyless", "sdk"] {
        let Some(all) = recording(client, LISTENER) else {
            return;
        };
        for listener in all.iter().flat_map(listeners) {
            if !listener.name.starts_with("xds.istio.io/grpc/lds/inbound/") {
                continue;
            }
            let [chain] = &listener.filter_chains[..] else {
                panic!("{}: {}", listener.name, listener.filter_chains.len());
            };
            let socket = chain.transport_socket.as_ref().map(|socket| {
                let Some(transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type
                else {
                    panic!("{}: {socket:?}", listener.name);
                };
                read::<tls::DownstreamTlsContext>(any)
            });
            match (chain.name.as_str(), socket) {
                ("inbound-plaintext", None) => {}
                ("inbound-mtls", Some(socket)) => {
                    let asks = socket.require_client_certificate;
                    assert_eq!(asks, Some(true));
                    let common = socket.common_tls_context.unwrap();
                    let provider = common.tls_certificate_provider_instance.unwrap();
                    assert_eq!(provider.instance_name, "default");
                }
                (name, socket) => panic!("{name}: {socket:?}"),
            }
            let manager = manager(chain).unwrap();
            let order = ["rbac.DENY", "rbac", "router"];
            let filters = filters(&manager);
            let places: Vec<_> = filters
                .iter()
                .map(|one| order.iter().position(|of| of == one).expect(one))
                .collect();
            assert!(places.is_sorted() && places.contains(&2), "{filters:?}");
            let Some(RouteSpecifier::RouteConfig(routes)) = &manager.route_specifier else {
                panic!("{:?}", manager.route_specifier);
            };
            assert_eq!(routes.name, "inbound");
            chains.insert(chain.name.clone());
        }
    }
    let both = ["inbound-mtls", "inbound-plaintext"];
    assert_eq!(chains, both.map(str::to_owned).into());
}

/// Note 8: what a client dials leads to routes that are discovered apart, under the name that it says.
#[test]
fn a_client_of_grpc_finds_its_routes_by_name() {
    let (Some(all), Some(routes)) = (
        recording("proxyless", LISTENER),
        recording("proxyless", ROUTES),
    ) else {
        return;
    };
    let mut asked = BTreeSet::new();
    for listener in all.iter().flat_map(listeners) {
        let Some(api) = listener.api_listener else {
            continue;
        };
        let manager: hcm::HttpConnectionManager = read(api.api_listener.as_ref().unwrap());
        let Some(RouteSpecifier::Rds(rds)) = manager.route_specifier else {
            panic!("{}: {:?}", listener.name, manager.route_specifier);
        };
        let (name, port) = listener.name.rsplit_once(':').unwrap();
        assert_eq!(rds.route_config_name, format!("outbound|{port}||{name}"));
        asked.insert(rds.route_config_name);
    }
    let named: BTreeSet<_> = routes
        .iter()
        .flat_map(|response| &response.message.resources)
        .map(|one| {
            let value = one.resource.as_ref().unwrap();
            read::<crate::proto::envoy::config::route::v3::RouteConfiguration>(value).name
        })
        .collect();
    assert_eq!(asked.len(), 3);
    assert_eq!(named, asked);
}
