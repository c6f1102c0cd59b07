use mesh_core::snapshot::{Authority, InboundRefusal, Snapshot, WorkloadRecord};
use mesh_core::xds::model::{
    ApplicationProtocol, ApplicationTunnel, Batch, GatewayAddress, GatewayDestination, Membership,
    NetworkAddress, Port, Service, ServiceName, Update, Workload,
};

fn name(object: &str) -> ServiceName {
    ServiceName::new("default", format!("{object}.default.svc.cluster.local"))
}

fn own() -> Workload {
    let services = vec![
        Membership::new(name("first")).with_ports(vec![Port::new(80).with_target_port(9000)]),
        Membership::new(name("second")),
    ];
    Workload::new("own", "default", "own")
        .with_addresses(vec![
            "10.0.0.1".parse().unwrap(),
            "fd00::1".parse().unwrap(),
        ])
        .with_services(services)
}

fn service(object: &str, port: Port) -> Service {
    Service::new(name(object)).with_ports(vec![port])
}

fn load(updates: Vec<Update>) -> Snapshot {
    Snapshot::new()
        .apply(&Batch::new(updates, Vec::new()))
        .snapshot
}

fn record(snapshot: &Snapshot) -> &WorkloadRecord {
    snapshot.workload("own").unwrap()
}

fn addr(text: &str) -> Authority {
    Authority::Addr(text.parse().unwrap())
}

fn ask(snapshot: &Snapshot, authority: &Authority) -> Result<(u16, u16), InboundRefusal> {
    let own_ip = "10.0.0.1".parse().unwrap();
    let inbound = snapshot.inbound(record(snapshot), own_ip, authority)?;
    Ok((inbound.port(), inbound.connect_port()))
}

#[test]
fn own_addresses_and_no_others() {
    let snapshot = load(vec![own().into()]);
    assert_eq!(ask(&snapshot, &addr("10.0.0.1:9080")), Ok((9080, 9080)));
    assert_eq!(
        ask(&snapshot, &addr("[::ffff:10.0.0.1]:9080")),
        Ok((9080, 9080))
    );
    assert_eq!(ask(&snapshot, &addr("[fd00::1]:9080")), Ok((9080, 9080)));
    let refusal = ask(&snapshot, &addr("10.0.0.2:9080")).unwrap_err();
    assert_eq!(refusal.to_string(), "ip mismatch: 10.0.0.1 != 10.0.0.2");

    // The address that the tunnel came to, even if the record does not have it.
    let bound = "127.0.0.9".parse().unwrap();
    assert!(
        snapshot
            .inbound(record(&snapshot), bound, &addr("127.0.0.9:80"))
            .is_ok()
    );
}

#[test]
fn any_address_for_an_application_with_a_tunnel_of_its_own() {
    let tunnel = ApplicationTunnel::new(ApplicationProtocol::Proxy);
    let with = |tunnel| load(vec![own().with_application_tunnel(tunnel).into()]);
    assert_eq!(
        ask(&with(tunnel.clone()), &addr("10.1.0.1:80")),
        Ok((80, 80))
    );
    assert_eq!(
        ask(&with(tunnel.with_port(15088)), &addr("10.1.0.1:80")),
        Ok((80, 15088))
    );
}

#[test]
fn addresses_behind_a_waypoint_for_that_waypoint() {
    let gateways = [
        GatewayDestination::Hostname(name("first")),
        GatewayDestination::Address {
            network: "".into(),
            ip: "10.0.0.1".parse().unwrap(),
        },
    ];
    for gateway in gateways {
        let gateway = GatewayAddress::new(gateway, 15008);
        let behind = service("behind", Port::new(80))
            .with_addresses(vec![NetworkAddress::new("", "10.1.0.2".parse().unwrap())])
            .with_waypoint(gateway.clone());
        let pod = Workload::new("behind", "default", "behind")
            .with_addresses(vec!["10.0.0.2".parse().unwrap()])
            .with_waypoint(gateway);
        let snapshot = load(vec![own().into(), behind.into(), pod.into()]);
        assert!(ask(&snapshot, &addr("10.1.0.2:80")).is_ok());
        assert!(ask(&snapshot, &addr("10.0.0.2:80")).is_ok());
        assert!(ask(&snapshot, &addr("10.0.0.3:80")).is_err());
    }
}

#[test]
fn names_by_the_own_port_then_the_services() {
    let snapshot = load(vec![
        own().into(),
        service("first", Port::new(80).with_target_port(8080)).into(),
        service("second", Port::new(81).with_target_port(8081)).into(),
        service("third", Port::new(82)).into(),
    ]);
    let host = |object: &str, port| Authority::Host(name(object).hostname().into(), port);
    assert_eq!(ask(&snapshot, &host("first", 80)), Ok((9000, 9000)));
    assert_eq!(ask(&snapshot, &host("second", 81)), Ok((8081, 8081)));
    for authority in [host("third", 82), host("second", 80), host("fourth", 80)] {
        let refusal = ask(&snapshot, &authority).unwrap_err();
        assert_eq!(refusal, InboundRefusal::NoPort { authority });
    }
}

#[test]
fn the_service_is_guessed_by_name_then_by_port() {
    let snapshot = load(vec![
        own().into(),
        service("first", Port::new(80).with_target_port(8080)).into(),
        service("second", Port::new(81).with_target_port(8080)).into(),
        service("third", Port::new(80).with_target_port(8080)).into(),
    ]);
    let guess = |port, authority: Option<&Authority>, forwarded: Option<&str>| {
        let service = snapshot.service_of_inbound(record(&snapshot), port, authority, forwarded);
        service.map(|service| service.object_name().to_string())
    };
    let (first, second, third) = (name("first"), name("second"), name("third"));
    assert_eq!(
        guess(1, None, Some(second.hostname())).as_deref(),
        Some("second")
    );
    // Not a service of its: the port decides.
    assert_eq!(
        guess(9000, None, Some(third.hostname())).as_deref(),
        Some("first")
    );
    // The workload has the first service's port elsewhere.
    assert_eq!(guess(8080, None, None).as_deref(), Some("second"));
    assert_eq!(guess(1, None, None), None);
    let authority = Authority::Host(first.hostname().into(), 80);
    assert_eq!(
        guess(8080, Some(&authority), Some(second.hostname())).as_deref(),
        Some("first")
    );
    let authority = Authority::Host(third.hostname().into(), 80);
    assert_eq!(guess(8080, Some(&authority), None), None);
}
