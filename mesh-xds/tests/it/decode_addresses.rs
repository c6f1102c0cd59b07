//! The bytes of workloads, services and policies become the model; each is refused alone, by its field.

use mesh_xds::decode::{Decoder, ResourceType};
use mesh_xds::model::*;
use prost::Message;
use prost::bytes::Bytes;

use crate::proto::istio::security as policy;
use crate::proto::istio::workload as wire;

fn ip(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn address(bytes: &[u8]) -> wire::NetworkAddress {
    wire::NetworkAddress {
        network: "net-1".into(),
        address: ip(bytes),
        length: None,
    }
}

fn gateway() -> wire::GatewayAddress {
    wire::GatewayAddress {
        hbone_mtls_port: 15008,
        destination: Some(wire::gateway_address::Destination::Address(address(&[
            10, 0, 0, 9,
        ]))),
    }
}

fn decode(kind: ResourceType, name: &str, message: &impl Message) -> Result<Update, String> {
    let update = Decoder::new().decode(kind, name, &message.encode_to_vec());
    update
        .map(|update| update.expect("it has a place in the model"))
        .map_err(|rejection| rejection.to_string())
}

fn workload(change: impl FnOnce(&mut wire::Workload)) -> Result<Workload, String> {
    let mut message = wire::Workload {
        uid: "uid".into(),
        ..Default::default()
    };
    change(&mut message);
    let message = wire::Address {
        r#type: Some(wire::address::Type::Workload(message)),
    };
    match decode(ResourceType::Address, "", &message)? {
        Update::Workload(workload) => Ok(workload),
        other => panic!("{other:?}"),
    }
}

fn service(change: impl FnOnce(&mut wire::Service)) -> Result<Service, String> {
    let mut message = wire::Service {
        namespace: "ns".into(),
        hostname: "a.example".into(),
        ..Default::default()
    };
    change(&mut message);
    let message = wire::Address {
        r#type: Some(wire::address::Type::Service(message)),
    };
    match decode(ResourceType::Address, "", &message)? {
        Update::Service(service) => Ok((*service).clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_empty_has_istios_defaults() {
    let found = workload(|_| {}).unwrap();
    assert_eq!(found, Workload::new("uid", "", ""));
    assert_eq!(found.trust_domain(), "cluster.local");
    assert_eq!(found.service_account(), "default");
    assert_eq!(found.cluster_id(), "Kubernetes");
    assert_eq!(found.capacity(), 1);
    assert_eq!(workload(|it| it.capacity = Some(0)).unwrap().capacity(), 0);
    let found = service(|it| it.name = "a".into()).unwrap();
    assert_eq!(found, Service::new(ServiceName::new("ns", "a.example")));
}

#[test]
fn every_field_of_a_workload() {
    let found = workload(|it| {
        it.name = "name".into();
        it.namespace = "ns".into();
        it.addresses = vec![
            ip(&[10, 0, 0, 1]),
            ip(&[0; 15].iter().copied().chain([1]).collect::<Vec<_>>()),
        ];
        it.network = "net".into();
        it.tunnel_protocol = 1;
        it.trust_domain = "td".into();
        it.service_account = "sa".into();
        it.waypoint = Some(gateway());
        it.node = "node".into();
        it.canonical_name = "app".into();
        it.canonical_revision = "v1".into();
        it.workload_type = 3;
        it.workload_name = "job".into();
        it.native_tunnel = true;
        it.authorization_policies = vec!["ns/one".into(), "/root".into()];
        it.status = 1;
        it.cluster_id = "c1".into();
        it.network_gateway = Some(gateway());
        it.hostname = "h.example".into();
        let port = wire::Port {
            service_port: 80,
            target_port: 8080,
            app_protocol: 2,
        };
        let ports = vec![
            port,
            wire::Port {
                service_port: 81,
                ..Default::default()
            },
        ];
        it.services
            .insert("ns/a.example".into(), wire::PortList { ports });
        it.services
            .insert("ns-2/a.example".into(), wire::PortList::default());
        it.application_tunnel = Some(wire::ApplicationTunnel {
            protocol: 1,
            port: 0,
        });
        it.locality = Some(wire::Locality {
            region: "r".into(),
            zone: "z".into(),
            subzone: "s".into(),
        });
        it.network_mode = 1;
        it.extensions = vec![wire::Extension::default()];
        it.capacity = Some(7);
    });
    let to = GatewayDestination::Address {
        network: "net-1".into(),
        ip: "10.0.0.9".parse().unwrap(),
    };
    let to = GatewayAddress::new(to, 15008);
    let name = |name: &str| {
        mesh_authz::policy::PolicyName::new(if name == "one" { "ns" } else { "" }, name)
    };
    let first = Port::new(80)
        .with_target_port(8080)
        .with_app_protocol(AppProtocol::Http2);
    let expected = Workload::new("uid", "ns", "name")
        .with_addresses(vec!["10.0.0.1".parse().unwrap(), "::1".parse().unwrap()])
        .with_network("net")
        .with_protocol(TunnelProtocol::Hbone)
        .with_trust_domain("td")
        .with_service_account("sa")
        .with_waypoint(to.clone())
        .with_node("node")
        .with_canonical_name("app")
        .with_canonical_revision("v1")
        .with_workload_type(WorkloadType::Job)
        .with_workload_name("job")
        .with_native_tunnel(true)
        .with_authorization_policies(vec![name("one"), name("root")])
        .with_health(Health::Unhealthy)
        .with_cluster_id("c1")
        .with_network_gateway(to)
        .with_hostname("h.example")
        // By namespace, then hostname: as files have them.
        .with_services(vec![
            Membership::new(ServiceName::new("ns", "a.example"))
                .with_ports(vec![first, Port::new(81)]),
            Membership::new(ServiceName::new("ns-2", "a.example")),
        ])
        .with_application_tunnel(ApplicationTunnel::new(ApplicationProtocol::Proxy))
        .with_locality(Locality::new("r", "z", "s"))
        .with_network_mode(NetworkMode::HostNetwork)
        .with_capacity(7);
    assert_eq!(found.unwrap(), expected);
}

#[test]
fn every_field_of_a_service() {
    let found = service(|it| {
        it.name = "a".into();
        let block = |length| wire::NetworkAddress {
            length: Some(length),
            ..address(&[10, 1, 2, 3])
        };
        it.addresses = vec![address(&[10, 0, 0, 1]), block(8), block(32)];
        it.ports = vec![wire::Port {
            service_port: 80,
            target_port: 0,
            app_protocol: 5,
        }];
        it.subject_alt_names = vec!["spiffe://td/ns/a/sa/b".into()];
        it.waypoint = Some(wire::GatewayAddress {
            hbone_mtls_port: 15009,
            destination: Some(wire::gateway_address::Destination::Hostname(
                wire::NamespacedHostname {
                    namespace: "ns".into(),
                    hostname: "way.example".into(),
                },
            )),
        });
        it.load_balancing = Some(wire::LoadBalancing {
            routing_preference: (0..7).collect(),
            mode: 2,
            health_policy: 1,
        });
        it.ip_families = 3;
        it.canonical = true;
        it.ingress_use_waypoint = true;
        it.visibility = 1;
        it.weighted_waypoints = vec![wire::WeightedWaypoint {
            destination: Some(gateway()),
            weight: 9,
        }];
    })
    .unwrap();
    let cidr = |text: &str| NetworkAddress::cidr("net-1", text.parse().unwrap());
    assert_eq!(
        found.addresses(),
        [cidr("10.0.0.1/32"), cidr("10.0.0.0/8"), cidr("10.1.2.3/32")]
    );
    assert_eq!(
        found.ports(),
        [Port::new(80).with_app_protocol(AppProtocol::Tls)]
    );
    assert_eq!(
        found.subject_alt_names()[0].to_string(),
        "spiffe://td/ns/a/sa/b"
    );
    let way = found.waypoint().unwrap();
    assert_eq!(
        (way.destination().to_string(), way.hbone_mtls_port()),
        ("ns/way.example".into(), 15009)
    );
    let balancing = found.load_balancing();
    use LocalityScope::*;
    assert_eq!(
        balancing.routing_preference(),
        [Unspecified, Region, Zone, Subzone, Node, Cluster, Network]
    );
    assert_eq!(balancing.mode(), LoadBalancingMode::Failover);
    assert_eq!(balancing.health_policy(), HealthPolicy::AllowAll);
    assert_eq!(found.ip_families(), IpFamilies::Dual);
    assert!(found.canonical());
    assert_eq!(found.visibility(), Visibility::Namespace);
    assert_eq!(found.weighted_waypoints()[0].weight(), 9);
    // The one enum of which an unknown value has a meaning.
    assert_eq!(
        service(|it| it.visibility = 7).unwrap().visibility(),
        Visibility::Public
    );
}

#[test]
fn what_cannot_be_meant_is_refused_by_its_field() {
    type Change = fn(&mut wire::Workload);
    let workloads: [(Change, &str); 15] = [
        (
            |it| it.addresses = vec![ip(&[1; 4]), ip(&[1; 3])],
            "workload.addresses[1]: 3 bytes, expected 4 or 16",
        ),
        (
            |it| it.addresses = vec![ip(&[1])],
            "workload.addresses[0]: 1 byte, expected 4 or 16",
        ),
        (
            |it| it.addresses = vec![ip(&[])],
            "workload.addresses[0]: 0 bytes, expected 4 or 16",
        ),
        (
            |it| it.tunnel_protocol = 2,
            "workload.tunnel_protocol: LEGACY_ISTIO_MTLS, expected NONE (0) or HBONE (1)",
        ),
        (
            |it| it.tunnel_protocol = 3,
            "workload.tunnel_protocol: 3, expected NONE (0) or HBONE (1)",
        ),
        (
            |it| it.workload_type = 4,
            "workload.workload_type: 4, expected DEPLOYMENT (0), CRONJOB (1), POD (2) or JOB (3)",
        ),
        (
            |it| it.status = -1,
            "workload.status: -1, expected HEALTHY (0) or UNHEALTHY (1)",
        ),
        (
            |it| it.network_mode = 2,
            "workload.network_mode: 2, expected STANDARD (0) or HOST_NETWORK (1)",
        ),
        (
            |it| it.authorization_policies = vec!["bare".into()],
            "workload.authorization_policies[0]: \"bare\", expected <namespace>/<name>",
        ),
        (
            |it| it.services = [("bare".into(), wire::PortList::default())].into(),
            "workload.services[\"bare\"]: the key has no '/', expected <namespace>/<hostname>",
        ),
        (
            |it| {
                let ports = vec![wire::Port {
                    service_port: 65_536,
                    ..Default::default()
                }];
                it.services = [("a/b".into(), wire::PortList { ports })].into();
            },
            "workload.services[\"a/b\"].ports[0].service_port: 65536, expected a port, at most 65535",
        ),
        (
            |it| it.waypoint = Some(wire::GatewayAddress::default()),
            "workload.waypoint.destination: missing, expected a hostname or an address",
        ),
        (
            |it| {
                it.network_gateway = Some(wire::GatewayAddress {
                    hbone_mtls_port: 70_000,
                    ..gateway()
                });
            },
            "workload.network_gateway.hbone_mtls_port: 70000, expected a port, at most 65535",
        ),
        (
            |it| {
                it.application_tunnel = Some(wire::ApplicationTunnel {
                    protocol: 2,
                    port: 0,
                });
            },
            "workload.application_tunnel.protocol: 2, expected NONE (0) or PROXY (1)",
        ),
        (
            |it| {
                it.application_tunnel = Some(wire::ApplicationTunnel {
                    protocol: 1,
                    port: 65_536,
                });
            },
            "workload.application_tunnel.port: 65536, expected a port, at most 65535",
        ),
    ];
    for (change, expected) in workloads {
        assert_eq!(workload(change).unwrap_err(), expected);
    }
    type ChangeService = fn(&mut wire::Service);
    let services: [(ChangeService, &str); 9] = [
        (
            |it| it.addresses = vec![address(&[1; 5])],
            "service.addresses[0].address: 5 bytes, expected 4 or 16",
        ),
        (
            |it| {
                it.addresses = vec![wire::NetworkAddress {
                    length: Some(33),
                    ..address(&[1; 4])
                }];
            },
            "service.addresses[0].length: 33, expected at most 32",
        ),
        (
            |it| {
                it.addresses = vec![wire::NetworkAddress {
                    length: Some(256 + 8),
                    ..address(&[1; 16])
                }];
            },
            "service.addresses[0].length: 264, expected at most 128",
        ),
        (
            |it| it.ip_families = 4,
            "service.ip_families: 4, expected AUTOMATIC (0), IPV4_ONLY (1), IPV6_ONLY (2) or DUAL (3)",
        ),
        (
            |it| {
                it.load_balancing = Some(wire::LoadBalancing {
                    routing_preference: vec![1, 7],
                    ..Default::default()
                });
            },
            "service.load_balancing.routing_preference[1]: 7, expected a scope, 0 to 6",
        ),
        (
            |it| {
                it.load_balancing = Some(wire::LoadBalancing {
                    mode: 4,
                    ..Default::default()
                });
            },
            "service.load_balancing.mode: 4, expected a mode, 0 to 3",
        ),
        (
            |it| {
                it.load_balancing = Some(wire::LoadBalancing {
                    health_policy: 2,
                    ..Default::default()
                });
            },
            "service.load_balancing.health_policy: 2, expected ONLY_HEALTHY (0) or ALLOW_ALL (1)",
        ),
        (
            |it| {
                it.ports = vec![wire::Port {
                    app_protocol: 6,
                    ..Default::default()
                }];
            },
            "service.ports[0].app_protocol: 6, expected a protocol, 0 to 5",
        ),
        (
            |it| it.weighted_waypoints = vec![wire::WeightedWaypoint::default()],
            "service.weighted_waypoints[0].destination: missing, expected a gateway",
        ),
    ];
    for (change, expected) in services {
        assert_eq!(service(change).unwrap_err(), expected);
    }
    let error = service(|it| it.subject_alt_names = vec!["bare".into()]).unwrap_err();
    assert!(
        error.starts_with("service.subject_alt_names[0]: "),
        "{error}"
    );
    let error = service(|it| it.hostname = "a/b".into()).unwrap_err();
    assert_eq!(error, "service.hostname: \"a/b\", expected no '/'");
    let error = decode(ResourceType::Address, "", &wire::Address::default()).unwrap_err();
    assert_eq!(error, "type: missing, expected a workload or a service");
    let error = Decoder::new()
        .decode(ResourceType::Address, "x", b"\x0a\xff")
        .unwrap_err();
    assert!(error.to_string().contains("decode"), "{error}");
}

#[test]
fn a_resource_under_another_name_is_refused() {
    let message = |it| wire::Address { r#type: Some(it) };
    let workload = message(wire::address::Type::Workload(wire::Workload {
        uid: "c//Pod/ns/a".into(),
        ..Default::default()
    }));
    let service = message(wire::address::Type::Service(wire::Service {
        namespace: "ns".into(),
        hostname: "a.example".into(),
        ..Default::default()
    }));
    let policy = policy::Authorization {
        namespace: "ns".into(),
        name: "a".into(),
        ..Default::default()
    };
    let address = ResourceType::Address;
    assert!(decode(address, "c//Pod/ns/a", &workload).is_ok());
    assert!(decode(address, "c//Pod/ns/b", &workload).is_err());
    assert!(decode(address, "ns/a.example", &service).is_ok());
    // The form in which it was asked for is an alias, never the name.
    assert!(decode(address, "net-1/10.0.0.1", &service).is_err());
    assert!(decode(ResourceType::Authorization, "ns/a", &policy).is_ok());
    let error = decode(ResourceType::Authorization, "ns/b", &policy).unwrap_err();
    assert_eq!(
        error,
        "name: \"ns/a\", expected the name of the resource, \"ns/b\""
    );
}

/// Names of pods, of WorkloadEntries, of ServiceEntries' endpoints and of gateways; services; policies.
#[test]
fn a_removed_name_names_what_it_may_be() {
    for uid in [
        "Kubernetes//Pod/default/db-0",
        "Kubernetes/networking.istio.io/WorkloadEntry/default/forum-vm",
        "Kubernetes/networking.istio.io/ServiceEntry/bank/pinned/198.51.100.7",
        "NetworkGateway/net-2/203.0.113.9/15008",
    ] {
        assert_eq!(
            ResourceType::Address.removed(uid),
            [ResourceName::Workload(uid.into())]
        );
    }
    let service = ServiceName::new("ns", "*.example.org");
    assert_eq!(
        ResourceType::Address.removed("ns/*.example.org"),
        [
            ResourceName::Workload("ns/*.example.org".into()),
            ResourceName::Service(service)
        ]
    );
    let policy = mesh_authz::policy::PolicyName::new("ns", "a");
    assert_eq!(
        ResourceType::Authorization.removed("ns/a"),
        [ResourceName::Policy(policy)]
    );
    assert_eq!(ResourceType::Authorization.removed("bare"), []);
    let listener = "xds.istio.io/grpc/lds/inbound/[fd00::1]:9080";
    assert_eq!(
        ResourceType::Listener.removed(listener),
        [ResourceName::InboundListener(
            "[fd00::1]:9080".parse().unwrap()
        )]
    );
    // As what was added is called.
    let mapped = "[::ffff:10.0.0.1]:80".parse().unwrap();
    let added = Update::from(InboundListener::new(mapped, Vec::new())).name();
    let listener = format!("{}{mapped}", InboundListener::NAME);
    assert_eq!(ResourceType::Listener.removed(&listener), [added]);
    assert_eq!(ResourceType::Listener.removed("ratings:9080"), []);
    for kind in ResourceType::ALL {
        assert_eq!(ResourceType::from_url(kind.url()), Some(kind));
    }
    assert_eq!(
        ResourceType::from_url("type.googleapis.com/istio.workload.Workload"),
        None
    );
}
