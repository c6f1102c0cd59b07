use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use mesh_authz::matcher::{PathMatch, PathTemplate, StringMatch};
use mesh_authz::policy::{Action, Expr, Matcher, Policy, PolicyName, Rule};
use mesh_authz::{Attribute, Attributes, Identity, PolicySet, RequestAttributes};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::decode::{Decoder, ResourceType};
use crate::model::*;

fn decode(kind: ResourceType, name: &str, value: &[u8]) -> Update {
    let update = Decoder::new().decode(kind, name, value);
    update
        .expect("what we write is read")
        .expect("it has a place")
}

fn label() -> impl Strategy<Value = String> {
    "[a-z]{1,6}"
}

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(IpAddr::from),
    ]
}

fn service_name() -> impl Strategy<Value = ServiceName> {
    (label(), label()).prop_map(|(ns, name)| ServiceName::new(ns.clone(), format!("{name}.{ns}")))
}

fn ports() -> impl Strategy<Value = Vec<Port>> {
    let protocols = [
        AppProtocol::Unknown,
        AppProtocol::Http11,
        AppProtocol::Http2,
        AppProtocol::Grpc,
        AppProtocol::Tcp,
        AppProtocol::Tls,
    ];
    let port = (
        any::<u16>(),
        option::of(1_u16..),
        select(protocols.to_vec()),
    );
    let port = port.prop_map(|(port, target, protocol)| {
        let port = Port::new(port).with_app_protocol(protocol);
        target.map_or(port, |target| port.with_target_port(target))
    });
    vec(port, 0..3)
}

fn gateway() -> impl Strategy<Value = GatewayAddress> {
    let address = (label(), ip()).prop_map(|(network, ip)| GatewayDestination::Address {
        network: network.into(),
        ip,
    });
    let name = service_name().prop_map(GatewayDestination::Hostname);
    (prop_oneof![address, name], any::<u16>()).prop_map(|(to, port)| GatewayAddress::new(to, port))
}

fn workload() -> impl Strategy<Value = Workload> {
    let who = (label(), label(), label(), label(), label());
    let place = (vec(ip(), 0..3), "[a-z]{0,3}", "[a-z]{0,3}", "[a-z]{0,3}");
    let flags = (any::<[bool; 4]>(), 0_u32..3, any::<u16>());
    let kinds = [
        WorkloadType::Deployment,
        WorkloadType::CronJob,
        WorkloadType::Pod,
        WorkloadType::Job,
    ];
    let memberships = btree_map(service_name(), ports(), 0..3);
    let gateways = (option::of(gateway()), option::of(gateway()));
    let policies = vec((label(), label()), 0..3);
    let rest = (memberships, gateways, policies, select(kinds.to_vec()));
    (who, place, flags, rest).prop_map(|(who, place, flags, rest)| {
        let (name, namespace, account, domain, cluster) = who;
        let (addresses, network, region, node) = place;
        let ([hbone, native, host, unhealthy], capacity, port) = flags;
        let (memberships, (waypoint, network_gateway), policies, kind) = rest;
        let services = memberships.into_iter();
        let services = services.map(|(name, ports)| Membership::new(name).with_ports(ports));
        let policies = policies
            .into_iter()
            .map(|(ns, name)| PolicyName::new(ns, name));
        let mut workload = Workload::new(
            format!("{cluster}//Pod/{namespace}/{name}"),
            namespace,
            name,
        )
        .with_service_account(account)
        .with_trust_domain(domain)
        .with_cluster_id(cluster)
        .with_addresses(addresses)
        .with_network(network)
        .with_locality(Locality::new(region.clone(), "", region))
        .with_node(node.clone())
        .with_hostname(node)
        .with_native_tunnel(native)
        .with_capacity(capacity)
        .with_hbone_port(port.max(1))
        .with_workload_type(kind)
        .with_services(services.collect())
        .with_authorization_policies(policies.collect());
        if hbone {
            workload = workload.with_protocol(TunnelProtocol::Hbone);
            let tunnel = ApplicationTunnel::new(ApplicationProtocol::Proxy);
            let tunnel = if port == 0 {
                tunnel
            } else {
                tunnel.with_port(port)
            };
            workload = workload.with_application_tunnel(tunnel);
        }
        if host {
            workload = workload.with_network_mode(NetworkMode::HostNetwork);
        }
        if unhealthy {
            workload = workload.with_health(Health::Unhealthy);
        }
        if let Some(waypoint) = waypoint {
            workload = workload.with_waypoint(waypoint);
        }
        if let Some(gateway) = network_gateway {
            workload = workload.with_network_gateway(gateway);
        }
        workload
    })
}

fn service() -> impl Strategy<Value = Service> {
    let address = (label(), ip(), 0_u8..=32).prop_map(|(network, ip, length)| {
        NetworkAddress::cidr(network, ipnet::IpNet::new(ip, length).expect("at most 32"))
    });
    let single = (label(), ip()).prop_map(|(network, ip)| NetworkAddress::new(network, ip));
    let addresses = vec(prop_oneof![address, single], 0..3);
    let families = [
        IpFamilies::Automatic,
        IpFamilies::Ipv4Only,
        IpFamilies::Ipv6Only,
        IpFamilies::Dual,
    ];
    let scopes = [
        LocalityScope::Unspecified,
        LocalityScope::Region,
        LocalityScope::Zone,
        LocalityScope::Subzone,
        LocalityScope::Node,
        LocalityScope::Cluster,
        LocalityScope::Network,
    ];
    let modes = [
        LoadBalancingMode::Standard,
        LoadBalancingMode::Strict,
        LoadBalancingMode::Failover,
        LoadBalancingMode::Passthrough,
    ];
    let balancing = (vec(select(scopes.to_vec()), 0..3), select(modes.to_vec()));
    let gateways = (option::of(gateway()), vec((gateway(), any::<u32>()), 0..3));
    let sans = vec((label(), label(), label()), 0..2);
    let kinds = (select(families.to_vec()), any::<[bool; 3]>());
    let what = (service_name(), label(), addresses, ports());
    (what, balancing, gateways, sans, kinds).prop_map(|(what, balancing, gateways, sans, kinds)| {
        let (name, object, addresses, ports) = what;
        let (waypoint, weighted) = gateways;
        let (families, [canonical, hidden, allow]) = kinds;
        let sans = sans
            .iter()
            .map(|(td, ns, sa)| Identity::new(td, ns, sa).expect("labels"));
        let weighted = weighted
            .into_iter()
            .map(|(to, weight)| WeightedWaypoint::new(to, weight));
        let mut balancing = LoadBalancing::new()
            .with_routing_preference(balancing.0)
            .with_mode(balancing.1);
        if allow {
            balancing = balancing.with_health_policy(HealthPolicy::AllowAll);
        }
        let mut service = Service::new(name)
            .with_object_name(object)
            .with_addresses(addresses)
            .with_ports(ports)
            .with_subject_alt_names(sans.collect())
            .with_weighted_waypoints(weighted.collect())
            .with_load_balancing(balancing)
            .with_ip_families(families)
            .with_canonical(canonical);
        if hidden {
            service = service.with_visibility(Visibility::Namespace);
        }
        if let Some(waypoint) = waypoint {
            service = service.with_waypoint(waypoint);
        }
        service
    })
}

#[test]
fn a_reader_shares_what_replicas_have_in_common() {
    let pod = |number: u8| {
        Workload::new(format!("c//Pod/ns/a-{number}"), "ns", format!("a-{number}"))
            .with_addresses(vec![IpAddr::from([10, 0, 0, number])])
            .with_service_account("a")
            .with_node(format!("node-{}", number % 2))
    };
    let mut reader = Decoder::new().reader();
    let pods: Vec<_> = (0..4)
        .map(|number| {
            let value = super::workload(&pod(number), |_| false);
            let update = reader.decode(ResourceType::Address, "", &value);
            match update.expect("it is read") {
                Some(Update::Workload(workload)) => workload,
                other => panic!("{other:?}"),
            }
        })
        .collect();
    for (number, read) in pods.iter().enumerate() {
        assert_eq!(*read, pod(number as u8));
        assert!(Arc::ptr_eq(read.profile(), pods[0].profile()));
        assert!(Arc::ptr_eq(read.place(), pods[number % 2].place()));
        assert!(!Arc::ptr_eq(read.place(), pods[(number + 1) % 2].place()));
    }
}

proptest! {
    #[test]
    fn a_workload_survives_the_wire(workload in workload()) {
        let value = super::workload(&workload, |_| false);
        let read = decode(ResourceType::Address, workload.uid(), &value);
        prop_assert_eq!(read, Update::from(workload));
    }

    /// Whatever was read before, and whatever the bytes are.
    #[test]
    fn a_reader_reads_each_resource_as_it_reads_alone(
        workloads in vec(workload(), 1..4),
        picks in vec((0..4_usize, option::of((any::<prop::sample::Index>(), any::<u8>()))), 0..12),
    ) {
        let mut reader = Decoder::new().reader();
        for (at, damage) in picks {
            let workload = &workloads[at % workloads.len()];
            let mut value = super::workload(workload, |_| false).to_vec();
            if let Some((at, byte)) = damage {
                let at = at.index(value.len());
                value[at] = byte;
            }
            for name in ["", workload.uid(), "another"] {
                let alone = Decoder::new().decode(ResourceType::Address, name, &value);
                prop_assert_eq!(reader.decode(ResourceType::Address, name, &value), alone);
            }
        }
    }

    #[test]
    fn a_service_survives_the_wire(service in service()) {
        let value = super::service(&service);
        let name = service.name().to_string();
        let read = decode(ResourceType::Address, &name, &value);
        prop_assert_eq!(read, Update::from(service));
    }

    #[test]
    fn what_a_policy_says_of_connections_survives_the_wire(
        rules in vec(expr(l4()), 0..4),
        deny in any::<bool>(),
        mesh in any::<bool>(),
    ) {
        let (ours, theirs) = over_the_wire(&rules, deny, mesh);
        for attributes in corners() {
            let decided = |set: &PolicySet| set.evaluate_l4(&attributes).is_allowed();
            prop_assert_eq!(decided(&ours), decided(&theirs), "{:?}", attributes);
        }
    }

    /// Whatever a request has, nothing is allowed that the whole policy would refuse.
    #[test]
    fn what_is_lost_of_a_policy_permits_nothing(
        rules in vec(expr(prop_oneof![l4(), l7()]), 0..4),
        deny in any::<bool>(),
    ) {
        let (_, theirs) = over_the_wire(&rules, deny, false);
        for method in ["GET", "POST"] {
            // The whole policy, with what it says of requests decided.
            let decided = rules.iter().map(|rule| Rule::new(with_method(rule.when(), method)));
            let whole = set(&policy(decided.collect(), deny));
            for attributes in corners() {
                let reduced = theirs.evaluate_l4(&attributes).is_allowed();
                let whole = whole.evaluate_l4(&attributes).is_allowed();
                prop_assert!(whole || !reduced, "{:?} {}", attributes, method);
            }
        }
    }
}

proptest! {
    /// All that a policy says of connections and requests is in a listener.
    #[test]
    fn what_a_policy_says_survives_a_listener(
        rules in vec(expr(prop_oneof![l4(), requests()]), 0..4),
        deny in any::<bool>(),
    ) {
        let policy = policy(rules, deny);
        let theirs = in_a_listener(policy.policy());
        let [ours, theirs] = [&[Arc::clone(policy.policy())][..], &theirs]
            .map(|all| PolicySet::new(all.iter().cloned()));
        for method in [Method::GET, Method::POST] {
            for (path, host, header) in [("/a/b", "A.example", None), ("/x", "b.example", Some("v"))] {
                let mut headers = HeaderMap::new();
                headers.extend(header.map(|value| (X, HeaderValue::from_static(value))));
                let request = RequestAttributes::new(&method, Some(host), path, &headers);
                for attributes in corners() {
                    let attributes = attributes.with_request(request.clone());
                    let decided = |set: &PolicySet| set.evaluate(&attributes).is_allowed();
                    prop_assert_eq!(decided(&ours), decided(&theirs), "{:?}", attributes);
                }
            }
        }
    }
}

const X: HeaderName = HeaderName::from_static("x");

fn in_a_listener(policy: &Policy) -> Vec<Arc<Policy>> {
    let name = "xds.istio.io/grpc/lds/inbound/10.0.0.1:80";
    let address = InboundListener::address_in(name).expect("an address");
    let value = super::listener(name, address, &[policy]);
    match decode(ResourceType::Listener, name, &value) {
        Update::InboundListener(listener) => {
            assert_eq!(listener.closed(), None, "{policy:?}");
            listener.policies().to_vec()
        }
        other => panic!("{other:?}"),
    }
}

fn requests() -> BoxedStrategy<Matcher> {
    let text = |values: &[&'static str]| {
        let value = select(values.to_vec()).prop_map(Arc::<str>::from);
        prop_oneof![
            value.clone().prop_map(StringMatch::Exact),
            value.clone().prop_map(StringMatch::Prefix),
            value.prop_map(StringMatch::Suffix),
            Just(StringMatch::Present),
        ]
    };
    let template = select(vec!["/a/{*}", "/{**}"]);
    let template = template.prop_map(|text| PathTemplate::parse(text).expect("a template"));
    prop_oneof![
        text(&["GET", "POST"]).prop_map(Matcher::Method),
        text(&["a.example", "example"]).prop_map(Matcher::Host),
        text(&["/a", "/a/b"]).prop_map(|value| Matcher::Path(PathMatch::String(value))),
        template.prop_map(|template| Matcher::Path(PathMatch::Template(template))),
        text(&["v", ""]).prop_map(|value| Matcher::Header { name: X, value }),
        text(&["v"]).prop_map(Matcher::Audience),
        text(&["v"]).prop_map(|value| Matcher::RequestPrincipal {
            issuer: value,
            subject: StringMatch::Present,
        }),
    ]
    .boxed()
}

#[test]
fn a_rule_that_a_listener_cannot_say_fails_closed() {
    // A connection and a request in one condition, again and again: 2^n alternatives.
    let method = || Expr::Is(Matcher::Method(StringMatch::Exact("GET".into())));
    let port = || Expr::Is(Matcher::DestinationPort(80));
    let namespace = || Expr::Is(Matcher::Namespace(StringMatch::Present));
    let pair = || Expr::Any(vec![Expr::All(vec![method(), port()]), namespace()]);
    let many = Expr::All((0..20).map(|_| pair()).collect());
    let deep = (0..60).fold(method(), |inner, _| {
        Expr::Any(vec![Expr::Not(Box::new(inner)), port()])
    });
    for when in [many, deep] {
        for deny in [true, false] {
            let policy = policy(vec![Rule::new(when.clone())], deny);
            let set = PolicySet::new(in_a_listener(policy.policy()));
            let (method, headers) = (Method::GET, HeaderMap::new());
            let request = RequestAttributes::new(&method, None, "/", &headers);
            for attributes in corners() {
                assert!(
                    !set.evaluate(&attributes.with_request(request.clone()))
                        .is_allowed()
                );
            }
        }
    }
}

#[test]
fn what_a_listener_has_of_each_action() {
    let rules = || vec![Rule::new(Expr::TRUE)];
    let named = |action| Policy::new(PolicyName::new("a", "b-c"), action, rules());
    let found = |policy: &Policy| {
        let found = in_a_listener(policy).into_iter();
        let found = found.map(|one| (one.name().to_string(), one.action().clone(), one.dry_run()));
        found.collect::<Vec<_>>()
    };
    let name = || "a/b-c".to_owned();
    let provider = "x".into();
    assert_eq!(found(&named(Action::Audit)), []);
    assert_eq!(
        found(&named(Action::Custom { provider })),
        [(name(), Action::Deny, false)]
    );
    assert_eq!(found(&named(Action::Deny)), [(name(), Action::Deny, false)]);
    let dry = named(Action::Allow).with_dry_run(true);
    assert_eq!(found(&dry), [(name(), Action::Allow, true)]);
    // Permits nothing.
    let empty = Policy::new(PolicyName::new("a", "b"), Action::Allow, Vec::new());
    let [one] = &*in_a_listener(&empty) else {
        panic!("one policy");
    };
    assert_eq!((one.action(), one.rules().len()), (&Action::Allow, 0));
}

fn with_method(expr: &Expr, method: &str) -> Expr {
    let all = |parts: &[Expr]| parts.iter().map(|part| with_method(part, method)).collect();
    match expr {
        Expr::All(parts) => Expr::All(all(parts)),
        Expr::Any(parts) => Expr::Any(all(parts)),
        Expr::Not(part) => Expr::Not(Box::new(with_method(part, method))),
        Expr::Is(Matcher::Method(StringMatch::Exact(text))) => match **text == *method {
            true => Expr::TRUE,
            false => Expr::FALSE,
        },
        other => other.clone(),
    }
}

fn policy(rules: Vec<Rule>, deny: bool) -> AttachedPolicy {
    let action = if deny { Action::Deny } else { Action::Allow };
    let policy = Policy::new(PolicyName::new("default", "p"), action, rules);
    AttachedPolicy::new(Arc::new(policy), Scope::Namespace("default".into()))
}

fn set(policy: &AttachedPolicy) -> PolicySet {
    PolicySet::new([Arc::clone(policy.policy())])
}

fn over_the_wire(rules: &[Rule], deny: bool, mesh: bool) -> (PolicySet, PolicySet) {
    let mut ours = policy(rules.to_vec(), deny);
    if mesh {
        ours = AttachedPolicy::new(Arc::clone(ours.policy()), Scope::Mesh);
    }
    let value = super::policy(&ours).expect("a scope").expect("it is sent");
    let read = decode(ResourceType::Authorization, "default/p", &value);
    let Update::Policy(theirs) = read else {
        panic!("a policy")
    };
    assert_eq!(theirs.scope(), ours.scope());
    (set(&ours), set(&theirs))
}

fn l4() -> BoxedStrategy<Matcher> {
    let text = |values: [&'static str; 3]| {
        let value = select(values.to_vec()).prop_map(Arc::<str>::from);
        prop_oneof![
            value.clone().prop_map(StringMatch::Exact),
            value.clone().prop_map(StringMatch::Prefix),
            value.prop_map(StringMatch::Suffix),
            Just(StringMatch::Present),
        ]
    };
    let net = select(vec!["10.0.0.0/8", "10.1.0.0/16", "fd00::/8"]);
    let net = net.prop_map(|net| net.parse().expect("a block"));
    let account = select(vec!["a", "b"]).prop_map(|name| Matcher::ServiceAccount {
        namespace: "x".into(),
        name: name.into(),
    });
    let domain = select(vec!["td", "other"]);
    prop_oneof![
        text(["x", "y", ""]).prop_map(Matcher::Namespace),
        text(["td/ns/x/sa/a", "td", "a"]).prop_map(Matcher::Principal),
        account,
        domain.prop_map(|text| Matcher::TrustDomain(StringMatch::Exact(text.into()))),
        net.clone().prop_map(Matcher::SourceIp),
        net.prop_map(Matcher::DestinationIp),
        select(vec![80_u16, 81]).prop_map(Matcher::DestinationPort),
    ]
    .boxed()
}

fn l7() -> BoxedStrategy<Matcher> {
    let method = select(vec!["GET", "POST"]);
    method
        .prop_map(|text| Matcher::Method(StringMatch::Exact(text.into())))
        .boxed()
}

fn expr(matcher: impl Strategy<Value = Matcher> + 'static) -> impl Strategy<Value = Rule> {
    let leaf = matcher.prop_map(Expr::Is);
    let whole = leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Expr::All),
            vec(inner.clone(), 0..4).prop_map(Expr::Any),
            inner.prop_map(|part| Expr::Not(Box::new(part))),
        ]
    });
    whole.prop_map(Rule::new)
}

static CALLERS: LazyLock<Vec<Option<Identity>>> = LazyLock::new(|| {
    let callers = [
        None,
        Some(("td", "x", "a")),
        Some(("td", "y", "b")),
        Some(("other", "x", "b")),
    ];
    let identity = |(td, ns, sa)| Identity::new(td, ns, sa).expect("labels");
    callers.map(|caller| caller.map(identity)).into()
});

fn corners() -> Vec<Attributes<'static>> {
    let mut found = Vec::new();
    for caller in CALLERS.iter() {
        for source in ["10.1.0.1", "10.9.9.9", "fd00::1", "192.0.2.1"] {
            for destination in ["10.1.0.2:80", "[fd00::2]:81", "192.0.2.2:80"] {
                let source = SocketAddr::new(source.parse().expect("an address"), 4000);
                let destination = destination.parse().expect("an address");
                let attributes = Attributes::new(source, destination);
                found.push(attributes.with_identity(Attribute::from(caller.as_ref())));
            }
        }
    }
    found
}

#[test]
fn a_rule_that_would_need_too_many_matches_fails_closed() {
    // (p0 and q0) or (p1 and q1) or ...: 2^n clauses, and no match has two principals.
    let principal = |text: String| Expr::Is(Matcher::Principal(StringMatch::Prefix(text.into())));
    let pair = |n: usize| Expr::All(vec![principal(format!("p{n}")), principal(format!("q{n}"))]);
    let rules = vec![Rule::new(Expr::Any((0..20).map(pair).collect()))];
    for (deny, allowed) in [(true, false), (false, false)] {
        let (_, theirs) = over_the_wire(&rules, deny, false);
        for attributes in corners() {
            assert_eq!(theirs.evaluate_l4(&attributes).is_allowed(), allowed);
        }
    }
}

#[test]
fn who_is_sent_what() {
    let path = Matcher::Path(PathMatch::String(StringMatch::Exact("/".into())));
    let rule = || vec![Rule::new(Expr::Is(path.clone()))];
    let policy = |action, scope| {
        let policy = Policy::new(PolicyName::new("a", "p"), action, rule());
        AttachedPolicy::new(Arc::new(policy), scope)
    };
    let read = |of: &AttachedPolicy| {
        let value = super::policy(of).expect("a scope")?;
        let Update::Policy(read) = decode(ResourceType::Authorization, "a/p", &value) else {
            panic!("a policy")
        };
        Some((read.policy().action().clone(), read.policy().rules().len()))
    };
    let sent = |action, scope| read(&policy(action, scope));
    assert_eq!(sent(Action::Audit, Scope::Mesh), None);
    assert_eq!(sent(Action::Deny, Scope::Targets(Vec::new())), None);
    assert_eq!(sent(Action::Allow, Scope::Mesh), Some((Action::Allow, 0)));
    assert_eq!(sent(Action::Deny, Scope::Workload), Some((Action::Deny, 1)));
    let custom = Action::Custom {
        provider: "x".into(),
    };
    assert_eq!(sent(custom, Scope::Workload), Some((Action::Deny, 1)));
    let error = super::policy(&policy(Action::Deny, Scope::Namespace("b".into()))).unwrap_err();
    assert_eq!(
        error.reason(),
        "scope: namespace b, expected that of the policy a/p"
    );
}

#[test]
fn a_workload_is_unhealthy_when_no_service_would_use_it() {
    let member = |health| Membership::new(ServiceName::new("a", "b")).with_health(health);
    let health = |members: Vec<Membership>| {
        let workload = Workload::new("u", "a", "w").with_services(members);
        let value = super::workload(&workload, |_| false);
        match decode(ResourceType::Address, "u", &value) {
            Update::Workload(read) => read.health(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(health(vec![member(Health::Unhealthy)]), Health::Unhealthy);
    let both = vec![member(Health::Unhealthy), member(Health::Healthy)];
    assert_eq!(health(both), Health::Healthy);
}
