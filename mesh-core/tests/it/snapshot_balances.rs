use std::collections::BTreeMap;

use mesh_core::snapshot::{EndpointId, Hop, Refusal, Resolution, Route, Snapshot, Source, Target};
use mesh_core::xds::model::{
    Batch, Health, HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, Locality,
    LocalityScope, Membership, Port, ResourceName, Service, ServiceName, TunnelProtocol, Update,
    Workload,
};
use proptest::prelude::*;

use crate::snapshot_model::{HOSTNAMES, Naive, PORTS, batch_of, batches, workload};

/// The random number that stands for the unit `unit` of `total`.
fn unit(unit: u64, total: u64) -> u64 {
    (u128::from(unit) << 64).div_ceil(u128::from(total)) as u64
}

/// The endpoint that was chosen, whether or not there is a way to it.
fn chosen(resolution: &Resolution) -> Option<String> {
    match resolution {
        Resolution::Found(route) => Some(route.endpoint()?.to_string()),
        Resolution::Refused(
            Refusal::UnsupportedNetwork { uid, .. } | Refusal::NoAddress { uid, .. },
        ) => Some(uid.to_string()),
        Resolution::Refused(Refusal::NoHealthyUpstream { .. } | Refusal::NoSuchPort { .. }) => None,
        other => panic!("unexpected {other:?}"),
    }
}

fn scope(workload: &Workload, scope: LocalityScope) -> &str {
    match scope {
        LocalityScope::Region => workload.locality().region(),
        LocalityScope::Zone => workload.locality().zone(),
        LocalityScope::Subzone => workload.locality().subzone(),
        LocalityScope::Node => workload.node(),
        LocalityScope::Cluster => workload.cluster_id(),
        LocalityScope::Network => workload.network(),
        _ => "",
    }
}

/// ztunnel.md 4.3, word by word: leading scopes in common; a network that comes first counts for all
/// the others, and one that differs is passed over.
fn rank(source: &Workload, endpoint: &Workload, preference: &[LocalityScope]) -> usize {
    let leading = |scopes: &[LocalityScope]| {
        let equal = scopes
            .iter()
            .map(|of| scope(source, *of) == scope(endpoint, *of));
        equal.take_while(|equal| *equal).count()
    };
    match preference {
        [LocalityScope::Network, rest @ ..] if source.network() == endpoint.network() => {
            1 + rest.len() + leading(rest)
        }
        [LocalityScope::Network, rest @ ..] => leading(rest),
        all => leading(all),
    }
}

/// Uids of the endpoints that may be chosen, with their shares.
fn expected(
    naive: &Naive,
    service: &Service,
    port: u16,
    source: &Workload,
    exclude: &[String],
) -> BTreeMap<String, u64> {
    let Some(declared) = service.port(port) else {
        return BTreeMap::new();
    };
    let usable = naive
        .endpoints(service.name())
        .filter(|(workload, membership)| {
            let mut own = membership.ports().iter();
            let own = own.any(|own| own.service_port() == port && own.target_port().is_some());
            let tunnel = workload
                .application_tunnel()
                .is_some_and(|tunnel| tunnel.port().is_some());
            let mut addresses = workload.addresses().iter();
            let address = addresses.any(|ip| match service.ip_families() {
                IpFamilies::Ipv4Only => ip.is_ipv4(),
                IpFamilies::Ipv6Only => ip.is_ipv6(),
                _ => true,
            });
            let healthy = workload.health_in(membership) == Health::Healthy
                || service.load_balancing().health_policy() == HealthPolicy::AllowAll;
            workload.capacity() > 0
                && healthy
                && (address || !workload.hostname().is_empty())
                && (declared.target_port().is_some() || own || tunnel)
        });
    let preference = service.load_balancing().routing_preference();
    let mode = service.load_balancing().mode();
    let usable: Vec<&Workload> = usable.map(|(workload, _)| workload).collect();
    let pick = |usable: Vec<&Workload>| -> BTreeMap<String, u64> {
        let ranks = usable
            .iter()
            .map(|workload| rank(source, workload, preference));
        let highest = ranks.max().unwrap_or_default();
        let preferred = usable.into_iter().filter(|workload| match mode {
            LoadBalancingMode::Failover => rank(source, workload, preference) == highest,
            LoadBalancingMode::Strict => {
                let mut all = preference.iter();
                all.all(|of| scope(source, *of) == scope(workload, *of))
            }
            _ => true,
        });
        preferred
            .map(|workload| (workload.uid().to_owned(), u64::from(workload.capacity())))
            .collect()
    };
    let others = usable
        .iter()
        .filter(|workload| !exclude.iter().any(|uid| uid == workload.uid()));
    let first = pick(others.copied().collect());
    if first.is_empty() {
        pick(usable)
    } else {
        first
    }
}

fn with_source(snapshot: &Snapshot, source: &Workload) -> (Snapshot, Source) {
    let batch = Batch::new(vec![source.clone().into()], Vec::new());
    let snapshot = snapshot.apply(&batch).snapshot;
    let source = Source::new(snapshot.workload(source.uid()).unwrap().clone());
    (snapshot, source)
}

fn client(uid: &str, like: &Workload) -> Workload {
    Workload::new(uid, like.namespace(), uid)
        .with_addresses(vec!["10.9.9.9".parse().unwrap()])
        .with_network(like.network())
        .with_locality(like.locality().clone())
        .with_node(like.node())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(512)))]

    #[test]
    fn exactly_the_preferred_endpoints_each_by_its_share(
        batches in batches(),
        like in prop::array::uniform2(workload()),
        excluded in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
    ) {
        let clients = [client("client", &like[0]), client("another", &like[1])];
        let joined = clients.iter().map(|client| client.clone().into()).collect();
        let mut snapshot = Snapshot::new().apply(&Batch::new(joined, Vec::new())).snapshot;
        let mut naive = Naive::default();
        let excluded_of = |naive: &Naive| -> Vec<EndpointId> {
            let uids: Vec<&String> = naive.workloads.keys().collect();
            let all = excluded.iter().filter(|_| !uids.is_empty());
            all.map(|index| EndpointId::new(index.get::<&String>(&uids).as_str())).collect()
        };
        for changes in &batches {
            snapshot = snapshot.apply(&batch_of(changes)).snapshot;
            changes.iter().for_each(|change| naive.change(change));
            // What a choice leaves behind must not outlive the next change, nor be another client's.
            for client in &clients {
                choose_once(&snapshot, client);
            }
        }
        for client in &clients {
            choose_all(&snapshot, &naive, client, &[])?;
            choose_all(&snapshot, &naive, client, &excluded_of(&naive))?;
        }
    }
}

fn source(snapshot: &Snapshot, client: &Workload) -> Source {
    Source::new(snapshot.workload(client.uid()).unwrap().clone())
}

fn choose_once(snapshot: &Snapshot, client: &Workload) {
    let source = source(snapshot, client);
    for name in HOSTNAMES {
        for port in PORTS {
            let target = Target::Host { name, port };
            snapshot.resolve(&source, target, &[], &mut || 0);
        }
    }
}

/// Makes each choice that there is.
fn choose_all(
    snapshot: &Snapshot,
    naive: &Naive,
    client: &Workload,
    excluded: &[EndpointId],
) -> Result<(), TestCaseError> {
    let source = source(snapshot, client);
    let excluded_uids: Vec<String> = excluded.iter().map(|id| id.to_string()).collect();
    for hostname in HOSTNAMES {
        let Some(service) = naive.service_with_hostname(hostname, client.namespace()) else {
            continue;
        };
        for port in PORTS {
            let expected = expected(naive, service, port, client, &excluded_uids);
            let target = Target::Host {
                name: hostname,
                port,
            };
            let total: u64 = expected.values().sum();
            let mut counted: BTreeMap<String, u64> = BTreeMap::new();
            for number in 0..total.max(1) {
                let mut rng = || unit(number, total.max(1));
                let resolution = snapshot.resolve(&source, target, excluded, &mut rng);
                if let Some(uid) = chosen(&resolution) {
                    *counted.entry(uid).or_default() += 1;
                }
            }
            prop_assert_eq!(&counted, &expected, "{} {} {:?}", hostname, port, service);
        }
    }
    Ok(())
}

fn ratings() -> ServiceName {
    ServiceName::new("default", "ratings.default.svc.cluster.local")
}

fn endpoint(number: u32) -> Workload {
    Workload::new(
        format!("c//Pod/default/ratings-{number}"),
        "default",
        format!("ratings-{number}"),
    )
    .with_addresses(vec![std::net::Ipv4Addr::from(0x0a00_0000 + number).into()])
    .with_protocol(TunnelProtocol::Hbone)
    .with_services(vec![Membership::new(ratings())])
}

fn mesh(service: Service, endpoints: impl Iterator<Item = Workload>) -> (Snapshot, Source) {
    let service = service.with_ports(vec![Port::new(80).with_target_port(8080)]);
    let updates = endpoints
        .map(Update::from)
        .chain([service.into()])
        .collect();
    let snapshot = Snapshot::new()
        .apply(&Batch::new(updates, Vec::new()))
        .snapshot;
    let client = Workload::new("client", "default", "client")
        .with_locality(Locality::new("r1", "z1", ""))
        .with_addresses(vec!["10.9.9.9".parse().unwrap()]);
    with_source(&snapshot, &client)
}

fn resolve(snapshot: &Snapshot, source: &Source, exclude: &[EndpointId], random: u64) -> Route {
    let target = Target::Host {
        name: "ratings",
        port: 80,
    };
    match snapshot.resolve(source, target, exclude, &mut || random) {
        Resolution::Found(route) => route,
        other => panic!("unexpected {other:?}"),
    }
}

/// A small generator of uniform numbers (splitmix64).
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[test]
fn shares_come_out_within_one_percent_of_random_choices() {
    let capacities = [0, 1, 2, 5, 12];
    let endpoints = capacities.iter().enumerate();
    let endpoints =
        endpoints.map(|(number, capacity)| endpoint(number as u32).with_capacity(*capacity));
    let (snapshot, source) = mesh(Service::new(ratings()), endpoints);
    let mut state = 7;
    let mut counted = [0_u32; 5];
    const ROUNDS: u32 = 200_000;
    for _ in 0..ROUNDS {
        let route = resolve(&snapshot, &source, &[], random(&mut state));
        let uid = route.endpoint().unwrap().to_string();
        let number: usize = uid.rsplit('-').next().unwrap().parse().unwrap();
        counted[number] += 1;
    }
    for (capacity, counted) in capacities.iter().zip(counted) {
        let share = f64::from(counted) / f64::from(ROUNDS);
        let due = f64::from(*capacity) / 20.0;
        assert!(
            (share - due).abs() < 0.01,
            "capacity {capacity}: {share} of {due}"
        );
    }
    assert_eq!(counted[0], 0);
}

#[test]
fn a_retry_goes_elsewhere_and_comes_back_only_when_all_were_tried() {
    let (snapshot, source) = mesh(Service::new(ratings()), (0..3).map(endpoint));
    let mut tried = Vec::new();
    for _ in 0..3 {
        let endpoint = resolve(&snapshot, &source, &tried, 0).endpoint().unwrap();
        assert!(!tried.contains(&endpoint));
        tried.push(endpoint);
    }
    assert!(tried.contains(&resolve(&snapshot, &source, &tried, 0).endpoint().unwrap()));
}

#[test]
fn a_retry_leaves_the_preferred_zone_when_that_was_tried() {
    let balancing = LoadBalancing::new()
        .with_mode(LoadBalancingMode::Failover)
        .with_routing_preference(vec![LocalityScope::Region, LocalityScope::Zone]);
    let near = endpoint(1).with_locality(Locality::new("r1", "z1", ""));
    let far = endpoint(2).with_locality(Locality::new("r1", "z2", ""));
    let service = Service::new(ratings()).with_load_balancing(balancing);
    let (snapshot, source) = mesh(service, [near, far].into_iter());
    let first = resolve(&snapshot, &source, &[], 0).endpoint().unwrap();
    assert_eq!(&**first.uid(), "c//Pod/default/ratings-1");
    let second = resolve(&snapshot, &source, &[first], 0).endpoint().unwrap();
    assert_eq!(&**second.uid(), "c//Pod/default/ratings-2");
}

#[test]
fn other_networks_are_ranked_by_the_scopes_that_follow() {
    let preference = vec![
        LocalityScope::Network,
        LocalityScope::Region,
        LocalityScope::Zone,
    ];
    let balancing = LoadBalancing::new()
        .with_mode(LoadBalancingMode::Failover)
        .with_routing_preference(preference);
    let at = |number: u32, network: &str, region: &str, zone: &str| {
        endpoint(number)
            .with_network(network)
            .with_locality(Locality::new(region, zone, ""))
    };
    let all = [
        at(1, "", "r9", "z9"),
        at(2, "far", "r1", "z1"),
        at(3, "farther", "r1", "z1"),
        at(4, "far", "r1", "z9"),
        at(5, "farther", "r9", "z1"),
    ];
    let preferred = |left: &[Workload]| {
        let service = Service::new(ratings()).with_load_balancing(balancing.clone());
        let (snapshot, source) = mesh(service, left.iter().cloned());
        let target = Target::Host {
            name: "ratings",
            port: 80,
        };
        let picks = (0..12).map(|step| {
            let uid = chosen(&snapshot.resolve(&source, target, &[], &mut || unit(step, 12)));
            uid.unwrap().rsplit('-').next().unwrap().to_owned()
        });
        let picks: std::collections::BTreeSet<String> = picks.collect();
        picks.into_iter().collect::<Vec<_>>().join(" ")
    };
    // The own network before all, whatever else differs; then the region and zone in any network.
    assert_eq!(preferred(&all), "1");
    assert_eq!(preferred(&all[1..]), "2 3");
    assert_eq!(preferred(&all[3..]), "4");
    assert_eq!(preferred(&all[4..]), "5");
}

#[test]
fn one_endpoint_of_ten_thousand_is_lost_and_comes_back() {
    let (snapshot, source) = mesh(Service::new(ratings()), (0..10_000).map(endpoint));
    let middle = u64::MAX / 2;
    let first = resolve(&snapshot, &source, &[], middle).endpoint().unwrap();
    let number: u32 = first.uid().rsplit('-').next().unwrap().parse().unwrap();
    let sick = endpoint(number).with_health(Health::Unhealthy);
    let without = snapshot
        .apply(&Batch::new(vec![sick.into()], Vec::new()))
        .snapshot;
    for step in 0..10_000_u64 {
        let route = resolve(&without, &source, &[], unit(step, 10_000));
        assert_ne!(route.endpoint().unwrap(), first);
    }
    let back = without
        .apply(&Batch::new(vec![endpoint(number).into()], Vec::new()))
        .snapshot;
    assert_eq!(
        resolve(&back, &source, &[], middle).endpoint().unwrap(),
        first
    );
}

#[test]
fn a_service_that_changes_its_mind_sorts_its_endpoints_again() {
    let zone = |number: u32| {
        endpoint(number).with_locality(Locality::new("r1", format!("z{}", number % 3), ""))
    };
    let (snapshot, source) = mesh(Service::new(ratings()), (0..30).map(zone));
    let zones = |snapshot: &Snapshot| {
        let mut zones: Vec<String> = (0..30)
            .map(|step| {
                let route = resolve(snapshot, &source, &[], unit(step, 30));
                route.workload().unwrap().zone().to_string()
            })
            .collect();
        zones.sort();
        zones.dedup();
        zones
    };
    assert_eq!(zones(&snapshot), ["z0", "z1", "z2"]);
    let change = |snapshot: &Snapshot, mode| {
        let balancing = LoadBalancing::new()
            .with_mode(mode)
            .with_routing_preference(vec![LocalityScope::Region, LocalityScope::Zone]);
        let service = Service::new(ratings())
            .with_ports(vec![Port::new(80).with_target_port(8080)])
            .with_load_balancing(balancing);
        let batch = Batch::new(vec![service.into()], Vec::new());
        snapshot.apply(&batch).snapshot
    };
    let strict = change(&snapshot, LoadBalancingMode::Strict);
    assert_eq!(zones(&strict), ["z1"]);
    // None is left in the zone: the same preference says something else to each mode.
    let others = (0..30).filter(|number| number % 3 == 1);
    let gone = others
        .map(|number| ResourceName::Workload(endpoint(number).uid().into()))
        .collect();
    let strict = strict.apply(&Batch::new(Vec::new(), gone)).snapshot;
    let failover = change(&strict, LoadBalancingMode::Failover);
    assert_eq!(zones(&failover), ["z0", "z2"]);
    let strict = change(&failover, LoadBalancingMode::Strict);
    let target = Target::Host {
        name: "ratings",
        port: 80,
    };
    let refused = strict.resolve(&source, target, &[], &mut || 0);
    assert_eq!(chosen(&refused), None);
}

#[test]
fn endpoints_without_a_port_for_it_are_not_chosen() {
    let named = |number: u32, ports: Vec<Port>| {
        let membership = Membership::new(ratings()).with_ports(ports);
        endpoint(number).with_services(vec![membership])
    };
    let port = |target: u16| vec![Port::new(80).with_target_port(target)];
    let endpoints = [named(1, vec![]), named(2, port(9080)), named(3, port(9081))];
    let (snapshot, source) = mesh(Service::new(ratings()), endpoints.into_iter());
    let open = Service::new(ratings()).with_ports(vec![Port::new(80)]);
    let snapshot = snapshot
        .apply(&Batch::new(vec![open.into()], Vec::new()))
        .snapshot;
    let authorities: Vec<String> = (0..2)
        .map(
            |step| match resolve(&snapshot, &source, &[], unit(step, 2)).hop() {
                Hop::Hbone(tunnel) => tunnel.authority().to_string(),
                other => panic!("unexpected {other:?}"),
            },
        )
        .collect();
    assert_eq!(authorities, ["10.0.0.2:9080", "10.0.0.3:9081"]);
}
