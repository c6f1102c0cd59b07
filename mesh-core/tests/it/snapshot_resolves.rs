use std::net::{IpAddr, SocketAddr};

use mesh_core::authz::Identity;
use mesh_core::snapshot::{
    Authority, Hop, Refusal, Resolution, Route, Snapshot, Source, Target, Tunnelled,
};
use mesh_core::xds::model::{
    ApplicationProtocol, ApplicationTunnel, Batch, GatewayAddress, GatewayDestination, Health,
    IpFamilies, LoadBalancing, LoadBalancingMode, Membership, NetworkAddress, Port, Service,
    ServiceName, TunnelProtocol, Update, Visibility, WeightedWaypoint, Workload,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn name(object: &str) -> ServiceName {
    ServiceName::new("default", format!("{object}.default.svc.cluster.local"))
}

fn pod(name: &str, address: &str) -> Workload {
    Workload::new(format!("Kubernetes//Pod/default/{name}"), "default", name)
        .with_addresses(vec![ip(address)])
        .with_service_account(name)
        .with_protocol(TunnelProtocol::Hbone)
}

fn ratings() -> Service {
    Service::new(name("ratings"))
        .with_addresses(vec![NetworkAddress::new("", ip("10.1.0.1"))])
        .with_ports(vec![Port::new(80).with_target_port(9080)])
}

fn ratings_pod() -> Workload {
    pod("ratings-v1", "10.0.0.1").with_services(vec![Membership::new(name("ratings"))])
}

fn waypoint() -> Service {
    Service::new(name("waypoint"))
        .with_addresses(vec![NetworkAddress::new("", ip("10.1.0.9"))])
        .with_ports(vec![Port::new(15008).with_target_port(15008)])
}

fn waypoint_pod() -> Workload {
    pod("waypoint-1", "10.0.0.9").with_services(vec![Membership::new(name("waypoint"))])
}

fn by_name() -> GatewayAddress {
    GatewayAddress::new(GatewayDestination::Hostname(name("waypoint")), 15008)
}

fn by_ip(address: &str) -> GatewayAddress {
    let ip = ip(address);
    GatewayAddress::new(
        GatewayDestination::Address {
            network: "".into(),
            ip,
        },
        15008,
    )
}

fn load(updates: impl IntoIterator<Item = Update>) -> Snapshot {
    let client = pod("client", "10.0.0.200");
    let updates = updates.into_iter().chain([client.into()]).collect();
    let applied = Snapshot::new().apply(&Batch::new(updates, Vec::new()));
    for verdict in &applied.verdicts {
        assert_eq!(verdict.result(), Ok(()));
    }
    applied.snapshot
}

fn source(snapshot: &Snapshot, name: &str) -> Source {
    Source::new(snapshot.workload_named("default", name).unwrap().clone())
}

fn ask(snapshot: &Snapshot, target: Target<'_>) -> Resolution {
    snapshot.resolve(&source(snapshot, "client"), target, &[], &mut || 0)
}

fn found(snapshot: &Snapshot, target: Target<'_>) -> Route {
    match ask(snapshot, target) {
        Resolution::Found(route) => route,
        other => panic!("unexpected {other:?}"),
    }
}

fn refused(snapshot: &Snapshot, target: Target<'_>) -> Refusal {
    match ask(snapshot, target) {
        Resolution::Refused(refusal) => refusal,
        other => panic!("unexpected {other:?}"),
    }
}

fn addr(text: &str) -> Target<'static> {
    Target::Addr(text.parse().unwrap())
}

fn host(name: &str) -> Target<'_> {
    let (name, port) = name.rsplit_once(':').unwrap();
    let port = port.parse().unwrap();
    Target::Host { name, port }
}

fn tunnel(route: &Route) -> &Tunnelled {
    match route.hop() {
        Hop::Hbone(tunnel) => tunnel,
        other => panic!("unexpected {other:?}"),
    }
}

fn tunnel_is(route: &Route, next_hop: &str, authority: &str, identities: &[&str]) {
    let tunnel = tunnel(route);
    assert_eq!(tunnel.next_hop(), next_hop.parse::<SocketAddr>().unwrap());
    assert_eq!(tunnel.authority().to_string(), authority);
    let accounts = tunnel.identities().iter().map(Identity::service_account);
    assert_eq!(accounts.collect::<Vec<_>>(), identities);
}

#[test]
fn a_service_by_address_and_by_any_of_its_names() {
    let snapshot = load([ratings().into(), ratings_pod().into()]);
    for target in [
        addr("10.1.0.1:80"),
        addr("[::ffff:10.1.0.1]:80"),
        host("ratings:80"),
        host("ratings.default:80"),
        host("ratings.default.svc.cluster.local:80"),
        host("10.1.0.1:80"),
        host("[::ffff:10.1.0.1]:80"),
    ] {
        let route = found(&snapshot, target);
        tunnel_is(&route, "10.0.0.1:15008", "10.0.0.1:9080", &["ratings-v1"]);
        assert_eq!(route.service().unwrap().name(), &name("ratings"));
        assert_eq!(route.workload().unwrap().name(), "ratings-v1");
        assert!(!route.is_through_waypoint());
    }
}

#[test]
fn the_service_vouches_for_more_identities() {
    let other = Identity::new("cluster.local", "other", "san").unwrap();
    let own = Identity::new("cluster.local", "default", "ratings-v1").unwrap();
    let service = ratings().with_subject_alt_names(vec![own, other]);
    let snapshot = load([service.into(), ratings_pod().into()]);
    let route = found(&snapshot, host("ratings:80"));
    tunnel_is(
        &route,
        "10.0.0.1:15008",
        "10.0.0.1:9080",
        &["ratings-v1", "san"],
    );
}

#[test]
fn a_workload_by_its_address_on_its_own_tunnel_port() {
    let snapshot = load([ratings_pod().with_hbone_port(25008).into()]);
    let route = found(&snapshot, addr("10.0.0.1:1234"));
    tunnel_is(&route, "10.0.0.1:25008", "10.0.0.1:1234", &["ratings-v1"]);
    assert!(route.service().is_none());
}

#[test]
fn plain_tcp_to_what_takes_no_tunnels() {
    let snapshot = load([
        ratings().into(),
        ratings_pod().with_protocol(TunnelProtocol::None).into(),
    ]);
    let route = found(&snapshot, host("ratings:80"));
    assert_eq!(route.hop(), &Hop::Plain("10.0.0.1:9080".parse().unwrap()));
    assert!(route.workload().is_some());
}

#[test]
fn what_the_mesh_does_not_know_is_unknown() {
    let snapshot = load([ratings().into()]);
    for target in [
        addr("8.8.8.8:53"),
        host("example.com:443"),
        host("8.8.8.8:53"),
        host("ratings.other:80"),
    ] {
        assert!(
            matches!(ask(&snapshot, target), Resolution::Unknown),
            "{target:?}"
        );
    }
}

#[test]
fn a_known_service_without_a_usable_endpoint_is_refused() {
    let snapshot = load([ratings().into()]);
    let no_healthy = Refusal::NoHealthyUpstream {
        service: name("ratings"),
        port: 80,
    };
    assert_eq!(refused(&snapshot, host("ratings:80")), no_healthy);

    let sick = ratings_pod().with_health(Health::Unhealthy);
    assert_eq!(
        refused(&load([ratings().into(), sick.into()]), host("ratings:80")),
        no_healthy
    );

    let empty = ratings_pod().with_capacity(0);
    assert_eq!(
        refused(&load([ratings().into(), empty.into()]), host("ratings:80")),
        no_healthy
    );

    let snapshot = load([ratings().into(), ratings_pod().into()]);
    let no_port = Refusal::NoSuchPort {
        service: name("ratings"),
        port: 81,
    };
    assert_eq!(refused(&snapshot, host("ratings:81")), no_port);
}

#[test]
fn passthrough_services_take_no_part() {
    let balancing = LoadBalancing::new().with_mode(LoadBalancingMode::Passthrough);
    let snapshot = load([
        ratings().with_load_balancing(balancing).into(),
        ratings_pod().into(),
    ]);
    let route = found(&snapshot, addr("10.1.0.1:80"));
    assert_eq!(
        route.hop(),
        &Hop::Passthrough("10.1.0.1:80".parse().unwrap())
    );
    assert!(route.workload().is_none() && route.service().is_none());

    let route = found(&snapshot, host("ratings:80"));
    let Hop::Resolve(lookup) = route.hop() else {
        panic!("{route:?}")
    };
    assert_eq!((&**lookup.hostname(), lookup.port()), ("ratings", 80));
    let route = route.with_address(ip("10.1.0.1"));
    assert_eq!(
        route.hop(),
        &Hop::Passthrough("10.1.0.1:80".parse().unwrap())
    );
}

#[test]
fn through_the_services_waypoint() {
    for gateway in [by_name(), by_ip("10.1.0.9"), by_ip("10.0.0.9")] {
        let snapshot = load([
            ratings().with_waypoint(gateway).into(),
            ratings_pod().into(),
            waypoint().into(),
            waypoint_pod().into(),
        ]);
        for target in [addr("10.1.0.1:80"), host("ratings:80")] {
            let route = found(&snapshot, target);
            tunnel_is(&route, "10.0.0.9:15008", "10.1.0.1:80", &["waypoint-1"]);
            assert!(route.is_through_waypoint());
            assert_eq!(route.service().unwrap().name(), &name("ratings"));
            assert_eq!(route.workload().unwrap().name(), "waypoint-1");
        }
    }
}

#[test]
fn a_waypoint_is_asked_by_name_for_what_has_no_address() {
    let headless = ratings()
        .with_addresses(Vec::new())
        .with_waypoint(by_name());
    let snapshot = load([headless.into(), waypoint().into(), waypoint_pod().into()]);
    let route = found(&snapshot, host("ratings:80"));
    let authority = Authority::Host("ratings.default.svc.cluster.local".into(), 80);
    assert_eq!(tunnel(&route).authority(), &authority);

    let wildcard = ServiceName::new("default", "*.example.com");
    let wildcard = Service::new(wildcard).with_waypoint(by_name());
    let snapshot = load([wildcard.into(), waypoint().into(), waypoint_pod().into()]);
    let route = found(&snapshot, host("api.example.com:443"));
    assert_eq!(
        tunnel(&route).authority().to_string(),
        "api.example.com:443"
    );
}

#[test]
fn a_waypoint_that_is_not_there_is_waited_for_and_never_passed_by() {
    for gateway in [by_name(), by_ip("10.1.0.9")] {
        let service = ratings().with_waypoint(gateway.clone());
        let snapshot = load([service.into(), ratings_pod().into()]);
        match ask(&snapshot, host("ratings:80")) {
            Resolution::Missing(name) => assert_eq!(&name, gateway.destination()),
            other => panic!("unexpected {other:?}"),
        }
    }
    let service = ratings().with_waypoint(by_name());
    let snapshot = load([service.into(), ratings_pod().into(), waypoint().into()]);
    let no_healthy = Refusal::NoHealthyUpstream {
        service: name("waypoint"),
        port: 15008,
    };
    assert_eq!(refused(&snapshot, host("ratings:80")), no_healthy);
}

#[test]
fn weighted_waypoints_by_weight_and_the_single_one_without_weights() {
    let weighted = |first: u32, second: u32| {
        let weights = vec![
            WeightedWaypoint::new(by_ip("10.0.0.8"), first),
            WeightedWaypoint::new(by_ip("10.0.0.9"), second),
        ];
        let service = ratings()
            .with_weighted_waypoints(weights)
            .with_waypoint(by_ip("10.0.0.7"));
        load([
            service.into(),
            pod("w7", "10.0.0.7").into(),
            pod("w8", "10.0.0.8").into(),
            pod("w9", "10.0.0.9").into(),
        ])
    };
    let hops = |snapshot: &Snapshot| -> Vec<String> {
        let quarters = [0, u64::MAX / 4 + 1, u64::MAX / 2 + 1, u64::MAX];
        let hops = quarters.map(|random| {
            let source = source(snapshot, "client");
            match snapshot.resolve(&source, host("ratings:80"), &[], &mut || random) {
                Resolution::Found(route) => route.workload().unwrap().name().to_string(),
                other => panic!("unexpected {other:?}"),
            }
        });
        hops.to_vec()
    };
    assert_eq!(hops(&weighted(1, 3)), ["w8", "w9", "w9", "w9"]);
    assert_eq!(hops(&weighted(0, 3)), ["w9"; 4]);
    assert_eq!(hops(&weighted(0, 0)), ["w7"; 4]);
}

#[test]
fn a_workloads_own_waypoint_binds_those_who_dial_the_workload() {
    let snapshot = load([
        ratings().into(),
        ratings_pod().with_waypoint(by_name()).into(),
        waypoint().into(),
        waypoint_pod().into(),
    ]);
    let direct = found(&snapshot, addr("10.0.0.1:9080"));
    tunnel_is(&direct, "10.0.0.9:15008", "10.0.0.1:9080", &["waypoint-1"]);
    assert!(direct.service().is_none());

    // Through the service the workload's waypoint has no say (ztunnel.md 4.2, row 4).
    let service = found(&snapshot, addr("10.1.0.1:80"));
    tunnel_is(&service, "10.0.0.1:15008", "10.0.0.1:9080", &["ratings-v1"]);

    // Nor for the waypoint itself, whichever way it is written.
    for gateway in [by_name(), by_ip("10.1.0.9"), by_ip("10.0.0.9")] {
        let snapshot = load([
            ratings_pod().with_waypoint(gateway).into(),
            waypoint().into(),
            waypoint_pod().into(),
        ]);
        let source = source(&snapshot, "waypoint-1");
        match snapshot.resolve(&source, addr("10.0.0.1:9080"), &[], &mut || 0) {
            Resolution::Found(route) => {
                tunnel_is(&route, "10.0.0.1:15008", "10.0.0.1:9080", &["ratings-v1"]);
            }
            other => panic!("unexpected {other:?}"),
        }
    }
}

#[test]
fn a_waypoint_in_its_applications_tunnel_takes_a_port_it_does_not_declare() {
    let tunnel = ApplicationTunnel::new(ApplicationProtocol::Proxy).with_port(15088);
    let sandwiched = waypoint_pod().with_application_tunnel(tunnel);
    let undeclared = waypoint().with_ports(vec![Port::new(80).with_target_port(80)]);
    let service = ratings().with_waypoint(by_name());
    let snapshot = load([
        service.clone().into(),
        undeclared.clone().into(),
        sandwiched.into(),
    ]);
    let route = found(&snapshot, host("ratings:80"));
    tunnel_is(&route, "10.0.0.9:15008", "10.1.0.1:80", &["waypoint-1"]);

    let snapshot = load([service.into(), undeclared.into(), waypoint_pod().into()]);
    let no_healthy = Refusal::NoHealthyUpstream {
        service: name("waypoint"),
        port: 15008,
    };
    assert_eq!(refused(&snapshot, host("ratings:80")), no_healthy);
}

#[test]
fn other_networks_are_refused_for_now() {
    let snapshot = load([ratings().into(), ratings_pod().with_network("far").into()]);
    assert!(matches!(
        refused(&snapshot, host("ratings:80")),
        Refusal::UnsupportedNetwork { .. }
    ));
    // An address of another network means something else here.
    assert!(matches!(
        ask(&snapshot, addr("10.0.0.1:80")),
        Resolution::Unknown
    ));

    let service = ratings().with_waypoint(by_name());
    let far = waypoint_pod().with_network("far");
    let snapshot = load([
        service.into(),
        ratings_pod().into(),
        waypoint().into(),
        far.into(),
    ]);
    assert!(matches!(
        refused(&snapshot, host("ratings:80")),
        Refusal::UnsupportedNetwork { .. }
    ));
}

#[test]
fn a_service_that_the_client_may_not_see_is_unknown() {
    let hidden = Service::new(ServiceName::new("other", "hidden.example.com"))
        .with_visibility(Visibility::Namespace)
        .with_addresses(vec![NetworkAddress::new("", ip("10.1.0.7"))]);
    let snapshot = load([hidden.into()]);
    assert!(matches!(
        ask(&snapshot, addr("10.1.0.7:80")),
        Resolution::Unknown
    ));
    assert!(matches!(
        ask(&snapshot, host("hidden.example.com:80")),
        Resolution::Unknown
    ));
}

#[test]
fn addresses_of_the_family_that_was_dialled_and_that_the_service_allows() {
    let dual = ratings_pod().with_addresses(vec![ip("10.0.0.1"), ip("fd00::1")]);
    let addresses = vec![
        NetworkAddress::new("", ip("10.1.0.1")),
        NetworkAddress::new("", ip("fd01::1")),
    ];
    let service = ratings().with_addresses(addresses);
    let snapshot = load([service.clone().into(), dual.clone().into()]);
    let hop = |snapshot: &Snapshot, target| tunnel(&found(snapshot, target)).next_hop().to_string();
    assert_eq!(hop(&snapshot, addr("10.1.0.1:80")), "10.0.0.1:15008");
    assert_eq!(hop(&snapshot, addr("[fd01::1]:80")), "[fd00::1]:15008");
    // By name, the family of the client.
    assert_eq!(hop(&snapshot, host("ratings:80")), "10.0.0.1:15008");

    let only6 = service.with_ip_families(IpFamilies::Ipv6Only);
    let snapshot = load([only6.into(), dual.into()]);
    assert_eq!(hop(&snapshot, addr("10.1.0.1:80")), "[fd00::1]:15008");
}

#[test]
fn an_endpoint_without_address_is_looked_up_by_its_hostname() {
    let external = |protocol| {
        ratings_pod()
            .with_addresses(Vec::new())
            .with_hostname("db.example.org")
            .with_protocol(protocol)
    };
    let snapshot = load([ratings().into(), external(TunnelProtocol::Hbone).into()]);
    let route = found(&snapshot, host("ratings:80"));
    let Hop::Resolve(lookup) = route.hop() else {
        panic!("{route:?}")
    };
    assert_eq!(
        (&**lookup.hostname(), lookup.port()),
        ("db.example.org", 9080)
    );
    let route = route.with_address(ip("192.0.2.1"));
    tunnel_is(&route, "192.0.2.1:15008", "192.0.2.1:9080", &["ratings-v1"]);

    let snapshot = load([ratings().into(), external(TunnelProtocol::None).into()]);
    for (target, port) in [
        (host("ratings:80"), 9080),
        (host("db.example.org:5432"), 5432),
    ] {
        let route = found(&snapshot, target).with_address(ip("192.0.2.1"));
        assert_eq!(
            route.hop(),
            &Hop::Plain(SocketAddr::new(ip("192.0.2.1"), port))
        );
    }
}

#[test]
fn a_wildcards_endpoint_is_the_name_that_was_dialled() {
    let wildcard = ServiceName::new("default", "*.example.com");
    let service =
        Service::new(wildcard.clone()).with_ports(vec![Port::new(443).with_target_port(443)]);
    let endpoint = pod("wildcard", "10.0.0.5")
        .with_addresses(Vec::new())
        .with_hostname("*.example.com")
        .with_protocol(TunnelProtocol::None)
        .with_services(vec![Membership::new(wildcard)]);
    let snapshot = load([service.into(), endpoint.into()]);
    let route = found(&snapshot, host("api.example.com:443"));
    let Hop::Resolve(lookup) = route.hop() else {
        panic!("{route:?}")
    };
    assert_eq!(&**lookup.hostname(), "api.example.com");
}
