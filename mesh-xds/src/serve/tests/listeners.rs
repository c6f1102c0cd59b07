//! The listener of a host that a client has from a server before this one.

use mesh_authz::Identity;
use mesh_authz::policy::{Action, Expr, Policy, PolicyName, Rule};

use super::{Told, new_session, new_store};
use crate::model::{
    AttachedPolicy, Batch, InboundListener, Membership, ObjectName, Port, Scope, ServiceName,
    Update, Workload,
};
use crate::proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use crate::proto::type_url;
use crate::serve::session::Session;
use crate::serve::store::{Owner, Store};

const NAME: &str = "xds.istio.io/grpc/lds/inbound/10.0.0.1:9080";

fn client(store: &Store) -> Session {
    client_in("", store)
}

fn client_in(network: &str, store: &Store) -> Session {
    let mut session = new_session();
    session.own(Owner {
        identity: Identity::new("td", "bank", "forum").unwrap(),
        network: network.into(),
    });
    let request = DeltaDiscoveryRequest {
        type_url: type_url::LISTENER.to_owned(),
        resource_names_subscribe: vec![NAME.to_owned()],
        initial_resource_versions: [(NAME.to_owned(), "before".to_owned())].into(),
        ..Default::default()
    };
    session.request(request, store).expect("a request");
    session
}

fn read(session: &mut Session, store: &Store) -> Option<(usize, Vec<String>)> {
    let response = session.told(store).expect("it is not behind")?;
    let acknowledgement = DeltaDiscoveryRequest {
        type_url: response.type_url,
        response_nonce: response.nonce,
        ..Default::default()
    };
    session.request(acknowledgement, store).expect("a request");
    Some((response.resources.len(), response.removed_resources))
}

fn store() -> Store {
    let mut store = new_store();
    store.set_groups([ObjectName::new("bank", "forum")].iter());
    store
}

fn host() -> Batch {
    let service = Membership::new(ServiceName::new("bank", "forum.example"));
    let service = service.with_ports(vec![Port::new(80).with_target_port(9080)]);
    let uid = "td/networking.istio.io/WorkloadEntry/bank/forum-10.0.0.1";
    let workload = Workload::new(uid, "bank", "forum-10.0.0.1")
        .with_service_account("forum")
        .with_addresses(vec![[10, 0, 0, 1].into()])
        .with_services(vec![service]);
    Batch::new(vec![workload.into()], Vec::new())
}

#[test]
fn it_stays_until_the_host_is_back() {
    let mut store = store();
    let mut client = client(&store);
    assert_eq!(read(&mut client, &store), Some((0, Vec::new())), "kept");
    store.apply(host());
    assert_eq!(read(&mut client, &store), Some((1, Vec::new())));
    // From now on it is as any other.
    let gone = host().updates()[0].name();
    store.apply(Batch::new(Vec::new(), vec![gone]));
    assert_eq!(read(&mut client, &store), Some((0, vec![NAME.to_owned()])));
}

#[test]
fn it_goes_when_the_host_does_not_come_back() {
    let mut store = store();
    let mut client = client(&store);
    assert_eq!(read(&mut client, &store), Some((0, Vec::new())), "kept");
    store.settle();
    assert_eq!(read(&mut client, &store), Some((0, vec![NAME.to_owned()])));
    let mut late = self::client(&store);
    assert_eq!(read(&mut late, &store), Some((0, vec![NAME.to_owned()])));
}

/// Most of what it names is nobody's.
#[test]
fn one_of_many_names_is_told_when_its_workload_comes_changes_and_goes() {
    let mut store = new_store();
    let mut client = client(&store);
    let names = (0..50).map(|port| format!("{}10.0.0.2:{port}", InboundListener::NAME));
    let request = DeltaDiscoveryRequest {
        type_url: type_url::LISTENER.to_owned(),
        resource_names_subscribe: names.collect(),
        ..Default::default()
    };
    client.request(request, &store).expect("a request");
    store.settle();
    let (_, removed) = read(&mut client, &store).expect("an answer");
    assert_eq!(removed.len(), 51);
    store.apply(host());
    assert_eq!(read(&mut client, &store), Some((1, Vec::new())));
    let policy = Policy::new(
        PolicyName::new("bank", "deny"),
        Action::Deny,
        vec![Rule::new(Expr::TRUE)],
    );
    let policy = AttachedPolicy::new(policy.into(), Scope::Mesh);
    store.apply(Batch::new(vec![policy.into()], Vec::new()));
    assert_eq!(read(&mut client, &store), Some((1, Vec::new())));
    // Another workload is none of its business.
    let other = Workload::new("other", "bank", "other");
    let other = other.with_addresses(vec![[10, 0, 0, 9].into()]);
    store.apply(Batch::new(vec![other.into()], Vec::new()));
    assert_eq!(read(&mut client, &store), None);
    // It moves to where another of the names is, and back.
    let Update::Workload(workload) = host().updates()[0].clone() else {
        panic!("a workload");
    };
    let service = Membership::new(ServiceName::new("bank", "forum.example"));
    let service = service.with_ports(vec![Port::new(80).with_target_port(7)]);
    let moved = workload
        .with_addresses(vec![[10, 0, 0, 2].into()])
        .with_services(vec![service]);
    store.apply(Batch::new(vec![moved.into()], Vec::new()));
    assert_eq!(read(&mut client, &store), Some((1, vec![NAME.to_owned()])));
    store.apply(host());
    let moved = format!("{}10.0.0.2:7", InboundListener::NAME);
    assert_eq!(read(&mut client, &store), Some((1, vec![moved])));
    let gone = host().updates()[0].name();
    store.apply(Batch::new(Vec::new(), vec![gone]));
    assert_eq!(read(&mut client, &store), Some((0, vec![NAME.to_owned()])));
}

/// One address is that of a workload in each network, under policies of its own.
#[test]
fn it_is_of_the_workload_in_the_clients_network() {
    let mut store = store();
    let deny = PolicyName::new("bank", "deny");
    let policy = Policy::new(deny.clone(), Action::Deny, vec![Rule::new(Expr::TRUE)]);
    let policy = AttachedPolicy::new(policy.into(), Scope::Workload);
    let update = host().updates()[0].clone();
    let Update::Workload(open) = update else {
        panic!("a workload");
    };
    let workload = |uid: &str, network: &str| {
        let workload = Workload::new(uid, "bank", "forum")
            .with_service_account("forum")
            .with_addresses(open.addresses().to_vec())
            .with_services(open.services().to_vec());
        workload.with_network(network)
    };
    let closed = workload("closed", "net-1").with_authorization_policies(vec![deny]);
    let updates: Vec<Update> = vec![
        policy.into(),
        closed.into(),
        workload("open", "net-2").into(),
    ];
    store.apply(Batch::new(updates, Vec::new()));
    let of = |network: &str| {
        let mut client = client_in(network, &store);
        let response = client.told(&store).unwrap().expect("an answer");
        response.resources.first().map(|one| one.version.clone())
    };
    let (one, other) = (of("net-1"), of("net-2"));
    assert!(one.is_some() && other.is_some() && one != other);
    assert_eq!(of("net-3"), None, "an address of nobody there");
    assert!(of("").is_some(), "who does not say may be in any");
}
