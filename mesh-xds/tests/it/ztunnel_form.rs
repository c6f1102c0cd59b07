//! ztunnel's local configuration: every key, its defaults, and what is refused.

use mesh_authz::policy::{Action, Expr, Matcher, PolicyName};
use mesh_xds::file::{Loader, Settings};
use mesh_xds::model::*;

fn load(text: &str) -> Vec<Update> {
    let mut loader = Loader::new(Settings::default());
    let loaded = loader.load(vec![("local.yaml".into(), text.into())]);
    assert!(loaded.problems().is_empty(), "{:?}", loaded.problems());
    loaded.into_parts().0.into_parts().0
}

fn problem(text: &str) -> String {
    let mut loader = Loader::new(Settings::default());
    let loaded = loader.load(vec![("local.yaml".into(), text.into())]);
    assert_eq!(loaded.problems().len(), 1, "{:?}", loaded.problems());
    loaded.problems()[0].to_string()
}

const WORKLOAD: &str = r#"
workloads:
- uid: cluster1//Pod/shop/store-1
  name: store-1
  namespace: shop
  workloadIps: [10.0.0.1, "fd00::1"]
  protocol: HBONE
  hbonePort: 15018
  networkMode: HostNetwork
  trustDomain: mesh.example
  serviceAccount: store
  network: net-1
  workloadName: store
  workloadType: cronjob
  canonicalName: the-store
  canonicalRevision: v2
  hostname: store.example
  node: n1
  nativeTunnel: true
  applicationTunnel: {protocol: PROXY, port: 15088}
  authorizationPolicies: [shop/allow, root/deny]
  status: Unhealthy
  clusterId: cluster1
  locality: {region: eu, zone: eu-1, subzone: rack}
  capacity: 3
  waypoint: {destination: net-1/10.0.0.9, hboneMtlsPort: 15008}
  networkGateway: {destination: "istio-system/east.example", hboneMtlsPort: 15009}
  services:
    "shop/store.example":
      80: 8080
      81: 0
"#;

#[test]
fn every_key_of_a_workload() {
    let store = ServiceName::new("shop", "store.example");
    let expected = Workload::new("cluster1//Pod/shop/store-1", "shop", "store-1")
        .with_addresses(vec![
            "10.0.0.1".parse().unwrap(),
            "fd00::1".parse().unwrap(),
        ])
        .with_protocol(TunnelProtocol::Hbone)
        .with_hbone_port(15018)
        .with_network_mode(NetworkMode::HostNetwork)
        .with_trust_domain("mesh.example")
        .with_service_account("store")
        .with_network("net-1")
        .with_workload_name("store")
        .with_workload_type(WorkloadType::CronJob)
        .with_canonical_name("the-store")
        .with_canonical_revision("v2")
        .with_hostname("store.example")
        .with_node("n1")
        .with_native_tunnel(true)
        .with_application_tunnel(
            ApplicationTunnel::new(ApplicationProtocol::Proxy).with_port(15088),
        )
        .with_authorization_policies(vec![
            PolicyName::new("shop", "allow"),
            PolicyName::new("root", "deny"),
        ])
        .with_health(Health::Unhealthy)
        .with_cluster_id("cluster1")
        .with_locality(Locality::new("eu", "eu-1", "rack"))
        .with_capacity(3)
        .with_waypoint(GatewayAddress::new(
            GatewayDestination::Address {
                network: "net-1".into(),
                ip: "10.0.0.9".parse().unwrap(),
            },
            15008,
        ))
        .with_network_gateway(GatewayAddress::new(
            GatewayDestination::Hostname(ServiceName::new("istio-system", "east.example")),
            15009,
        ))
        .with_services(vec![
            Membership::new(store)
                .with_ports(vec![Port::new(80).with_target_port(8080), Port::new(81)]),
        ]);
    assert_eq!(load(WORKLOAD), [expected.into()]);
}

#[test]
fn words_of_a_workload() {
    let load = |key: &str, value: &str| {
        let text = format!(
            "workloads: [{{uid: u, name: n, namespace: ns, workloadIps: [], {key}: {value}}}]"
        );
        match load(&text).remove(0) {
            Update::Workload(workload) => workload,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(load("protocol", "TCP").protocol(), TunnelProtocol::None);
    assert_eq!(
        load("networkMode", "Standard").network_mode(),
        NetworkMode::Standard
    );
    assert_eq!(load("status", "Healthy").health(), Health::Healthy);
    for (word, kind) in [
        ("deployment", WorkloadType::Deployment),
        ("pod", WorkloadType::Pod),
        ("job", WorkloadType::Job),
    ] {
        assert_eq!(load("workloadType", word).workload_type(), kind);
    }
    let tunnel = load("applicationTunnel", "{protocol: NONE, port: 0}");
    let expected = ApplicationTunnel::new(ApplicationProtocol::None);
    assert_eq!(tunnel.application_tunnel(), Some(&expected));
    assert_eq!(load("capacity", "0").capacity(), 0);
}

#[test]
fn a_workload_without_trust_domain_and_account_has_an_identity() {
    let updates = load("workloads: [{uid: u, name: n, namespace: ns, workloadIps: []}]");
    let Update::Workload(workload) = &updates[0] else {
        panic!("{updates:?}");
    };
    let identity = workload.identity().unwrap().to_string();
    assert_eq!(identity, "spiffe://cluster.local/ns/ns/sa/default");
    assert_eq!(workload.hbone_port(), 15008);
    assert_eq!(workload.capacity(), 1);
    assert_eq!(workload.cluster_id(), "Kubernetes");
}

#[test]
fn every_key_of_a_service() {
    let updates = load(
        r#"
services:
- name: store
  namespace: shop
  hostname: store.example
  vips: [/10.1.0.1, net-1/10.1.0.2]
  cidrVips: [{network: net-1, cidr: 198.51.100.0/24}]
  ports: {80: 8080, 81: 0}
  endpoints:
    u1: {workloadUid: u1, port: {80: 9090}, status: Unhealthy}
    absent: {workloadUid: absent, port: {80: 1}, status: Healthy}
  subjectAltNames: [spiffe://cluster.local/ns/shop/sa/store]
  waypoint: {destination: shop/way.example, hboneMtlsPort: 15008}
  weightedWaypoints:
  - destination: {destination: /10.0.0.9, hboneMtlsPort: 15008}
    weight: 7
  loadBalancer:
    routingPreferences: [Region, Zone, Subzone, Node, Cluster, Network]
    mode: Failover
    healthPolicy: AllowAll
  ipFamilies: Dual
  canonical: true
  visibility: Namespace
workloads:
- {uid: u1, name: one, namespace: shop, workloadIps: [10.0.0.1]}
"#,
    );
    let name = ServiceName::new("shop", "store.example");
    let way = GatewayDestination::Hostname(ServiceName::new("shop", "way.example"));
    let weighted = GatewayDestination::Address {
        network: "".into(),
        ip: "10.0.0.9".parse().unwrap(),
    };
    let expected = Service::new(name.clone())
        .with_object_name("store")
        .with_addresses(vec![
            NetworkAddress::new("", "10.1.0.1".parse().unwrap()),
            NetworkAddress::new("net-1", "10.1.0.2".parse().unwrap()),
            NetworkAddress::cidr("net-1", "198.51.100.0/24".parse().unwrap()),
        ])
        .with_ports(vec![Port::new(80).with_target_port(8080), Port::new(81)])
        .with_subject_alt_names(vec![
            "spiffe://cluster.local/ns/shop/sa/store".parse().unwrap(),
        ])
        .with_waypoint(GatewayAddress::new(way, 15008))
        .with_weighted_waypoints(vec![WeightedWaypoint::new(
            GatewayAddress::new(weighted, 15008),
            7,
        )])
        .with_load_balancing(
            LoadBalancing::new()
                .with_routing_preference(vec![
                    LocalityScope::Region,
                    LocalityScope::Zone,
                    LocalityScope::Subzone,
                    LocalityScope::Node,
                    LocalityScope::Cluster,
                    LocalityScope::Network,
                ])
                .with_mode(LoadBalancingMode::Failover)
                .with_health_policy(HealthPolicy::AllowAll),
        )
        .with_ip_families(IpFamilies::Dual)
        .with_canonical(true)
        .with_visibility(Visibility::Namespace);
    // The endpoint became a membership of the workload that it names.
    let membership = Membership::new(name)
        .with_ports(vec![Port::new(80).with_target_port(9090)])
        .with_health(Health::Unhealthy);
    let one = Workload::new("u1", "shop", "one")
        .with_addresses(vec!["10.0.0.1".parse().unwrap()])
        .with_services(vec![membership]);
    assert_eq!(one.health_in(&one.services()[0]), Health::Unhealthy);
    assert_eq!(
        load_sorted(updates),
        load_sorted(vec![expected.into(), one.into()])
    );
}

fn load_sorted(mut updates: Vec<Update>) -> Vec<Update> {
    updates.sort_by_key(Update::name);
    updates
}

#[test]
fn words_of_a_service() {
    let load = |key: &str, value: &str| {
        let text = format!(
            "services: [{{name: n, namespace: ns, hostname: h, vips: [], ports: {{}}, {key}: {value}}}]"
        );
        match load(&text).remove(0) {
            Update::Service(service) => service,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        load("ipFamilies", "IPv4").ip_families(),
        IpFamilies::Ipv4Only
    );
    assert_eq!(
        load("ipFamilies", "IPv6").ip_families(),
        IpFamilies::Ipv6Only
    );
    assert_eq!(
        load("visibility", "Public").visibility(),
        Visibility::Public
    );
    for (word, mode) in [
        ("Standard", LoadBalancingMode::Standard),
        ("Strict", LoadBalancingMode::Strict),
        ("Passthrough", LoadBalancingMode::Passthrough),
    ] {
        let service = load(
            "loadBalancer",
            &format!("{{mode: {word}, healthPolicy: OnlyHealthy}}"),
        );
        assert_eq!(service.load_balancing().mode(), mode);
    }
}

#[test]
fn every_key_of_a_policy() {
    let updates = load(
        r#"
policies:
- name: all
  namespace: shop
  scope: WorkloadSelector
  action: Deny
  dryRun: true
  rules:
  - - - namespaces: [{Exact: shop}]
        notNamespaces: [{Prefix: test-}]
        serviceAccounts: [{namespace: shop, serviceAccount: store}]
        notServiceAccounts: [{namespace: shop, serviceAccount: evil}]
        principals: [{Suffix: /sa/store}, {Presence: []}]
        notPrincipals: [{Exact: td/ns/a/sa/b}]
        sourceIps: [10.0.0.0/8, 192.0.2.1]
        notSourceIps: [10.9.0.0/16]
        destinationIps: ["fd00::/8"]
        notDestinationIps: ["fd00::1/128"]
        destinationPorts: [80]
        notDestinationPorts: [81]
- {name: mesh, namespace: "", scope: Global, action: Allow, rules: []}
- {name: own, namespace: shop, scope: Namespace, action: Allow, rules: [[]]}
"#,
    );
    let policies: Vec<_> = updates
        .iter()
        .map(|update| match update {
            Update::Policy(policy) => policy,
            other => panic!("{other:?}"),
        })
        .collect();
    let [mesh, all, own] = policies.as_slice() else {
        panic!("{policies:?}");
    };
    assert_eq!(*mesh.scope(), Scope::Mesh);
    assert!(mesh.policy().rules().is_empty());
    assert_eq!(*own.scope(), Scope::Namespace("shop".into()));
    assert_eq!(own.policy().rules().len(), 1);
    assert_eq!(*all.scope(), Scope::Workload);
    assert_eq!(*all.policy().action(), Action::Deny);
    assert!(all.policy().dry_run());
    let mut matchers = Vec::new();
    collect(all.policy().rules()[0].when(), &mut matchers);
    assert_eq!(matchers.len(), 14, "{matchers:?}");
}

fn collect<'a>(expr: &'a Expr, matchers: &mut Vec<&'a Matcher>) {
    match expr {
        Expr::All(parts) | Expr::Any(parts) => {
            parts.iter().for_each(|part| collect(part, matchers));
        }
        Expr::Not(part) => collect(part, matchers),
        Expr::Is(matcher) => matchers.push(matcher),
        other => panic!("{other:?}"),
    }
}

#[test]
fn json_is_the_same_form() {
    let json = r#"{"workloads": [{"uid": "u", "name": "n", "namespace": "ns", "workloadIps": ["10.0.0.1"],
        "services": {"ns/h": {"80": 8080}}}]}"#;
    let yaml = "workloads:\n- uid: u\n  name: n\n  namespace: ns\n  workloadIps: [10.0.0.1]\n  services: {ns/h: {80: 8080}}\n";
    assert_eq!(load(json), load(yaml));
}

#[test]
fn unknown_keys_are_refused_everywhere() {
    for (broken, expected) in [
        (WORKLOAD.replace("  node: n1", "  nodes: n1"), "local.yaml:18: workloads[0].nodes: unknown field"),
        (
            WORKLOAD.replace("{region: eu,", "{regio: eu,"),
            "local.yaml:24: workloads[0].locality.regio: unknown field",
        ),
        (
            WORKLOAD.replace("{protocol: PROXY,", "{protocols: 1, protocol: PROXY,"),
            "local.yaml:20: workloads[0].applicationTunnel.protocols: unknown field",
        ),
        (format!("{WORKLOAD}gateways: []\n"), "local.yaml:32: gateways: unknown field"),
        (
            "policies: [{name: n, namespace: ns, scope: Namespace, action: Allow, rules: [[[{principal: []}]]]}]".into(),
            "local.yaml:1: policies[0].rules[0][0][0].principal: unknown field",
        ),
    ] {
        let problem = problem(&broken);
        assert!(problem.starts_with(expected), "{problem}\nis not {expected}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let policy = |rule: &str| {
        format!(
            "policies:\n- name: n\n  namespace: ns\n  scope: Namespace\n  action: Allow\n  rules:\n  - - - {rule}\n"
        )
    };
    for (text, expected) in [
        (
            WORKLOAD.replace("10.0.0.1, ", "10.0.0.999, "),
            "local.yaml:6: workloads[0].workloadIps[0]: expected an IP address, found \"10.0.0.999\"",
        ),
        (
            WORKLOAD.replace("      80: 8080", "      80: 70000"),
            "local.yaml:30: workloads[0].services[shop/store.example].80: expected a port from 1 to 65535, found 70000",
        ),
        (
            WORKLOAD.replace("protocol: HBONE", "protocol: HBONES"),
            "local.yaml:7: workloads[0].protocol: expected one of TCP, HBONE, found \"HBONES\"",
        ),
        (
            WORKLOAD.replace("  serviceAccount: store", "  serviceAccount: a/b"),
            "local.yaml:3: workloads[0]: no identity can be made of it: invalid SPIFFE id: service account: expected only a-z, A-Z, 0-9, '.', '-' and '_'",
        ),
        (
            WORKLOAD.replace("  workloadIps: [10.0.0.1, \"fd00::1\"]\n", ""),
            "local.yaml:3: workloads[0].workloadIps: missing",
        ),
        (
            policy("sourceIps: [10.0.0.0/8, 10.0.0.0/33]"),
            "local.yaml:7: policies[0].rules[0][0][0].sourceIps[1]: expected",
        ),
        (
            policy("principals: [{Exactly: x}]"),
            "local.yaml:7: policies[0].rules[0][0][0].principals[0].Exactly: expected one of Exact, Prefix, Suffix, Presence",
        ),
    ] {
        let problem = problem(&text);
        assert!(
            problem.starts_with(expected),
            "{problem}\nis not {expected}"
        );
    }
}

/// As istio/ztunnel's own serializer writes it, and as its examples have it.
#[test]
fn string_matches_may_be_written_as_tags() {
    let policies = |exact: &str, presence: &str| {
        load(&format!(
            "policies:\n- name: p\n  namespace: ns\n  scope: Namespace\n  action: Allow\n  rules:\n  - - - principals:\n        - \
             {exact}\n        notNamespaces:\n        - {presence}\n"
        ))
    };
    let mapped = policies("{Exact: td/ns/a/sa/b}", "{Presence: []}");
    assert_eq!(policies("!Exact td/ns/a/sa/b", "!Presence []"), mapped);
    assert_eq!(policies("!Exact 'td/ns/a/sa/b'", "!Presence {}"), mapped);
    let wrong = problem(
        "policies:\n- name: p\n  namespace: ns\n  scope: Namespace\n  action: Deny\n  rules:\n  - - - principals:\n        - !Exactly a\n",
    );
    assert!(wrong.contains("local.yaml:8: "), "{wrong}");
    assert!(
        wrong.contains("expected one of Exact, Prefix, Suffix, Presence"),
        "{wrong}"
    );
}
