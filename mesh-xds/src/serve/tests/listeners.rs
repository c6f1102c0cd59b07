//! The listener of a host that a client has from a server before this one.

use mesh_authz::Identity;

use super::new_session;
use crate::model::{Batch, Membership, ObjectName, Port, ServiceName, Workload};
use crate::proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use crate::proto::type_url;
use crate::serve::session::Session;
use crate::serve::store::Store;

const NAME: &str = "xds.istio.io/grpc/lds/inbound/10.0.0.1:9080";

fn client(store: &Store) -> Session {
    let mut session = new_session();
    session.own(Identity::new("td", "bank", "forum").unwrap());
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
    let response = session.poll(store).expect("it is not behind")?;
    let acknowledgement = DeltaDiscoveryRequest {
        type_url: response.type_url,
        response_nonce: response.nonce,
        ..Default::default()
    };
    session.request(acknowledgement, store).expect("a request");
    Some((response.resources.len(), response.removed_resources))
}

fn store() -> Store {
    let mut store = Store::default();
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
