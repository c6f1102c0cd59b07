//! What policies a client is left with after each message: it is never without one that the mesh has.

use std::collections::{BTreeMap, BTreeSet};

use mesh_authz::policy::{Action, Policy, PolicyName, Rule};
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;

use super::{Told, new_session, new_store};
use crate::model::{AttachedPolicy, Batch, ObjectName, ResourceName, Scope, Update, Workload};
use crate::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use crate::proto::istio::security::{Authorization, Scope as WireScope};
use crate::proto::istio::workload::{Address, address};
use crate::proto::type_url;
use crate::serve::session::Session;
use crate::serve::store::Store;

const UID: &str = "c//Pod/ns/w";

/// The mesh has one policy that binds its workload: of some name, by namespace or by the workload's list.
fn mesh(name: u8, listed: bool) -> Batch {
    let named = |name: u8| PolicyName::new("ns", format!("p{name}"));
    let policy = Policy::new(
        named(name),
        Action::Deny,
        vec![Rule::new(mesh_authz::policy::Expr::TRUE)],
    );
    let scope = match listed {
        true => Scope::Workload,
        false => Scope::Namespace("ns".into()),
    };
    let list = Vec::from_iter(listed.then(|| named(name)));
    let workload = Workload::new(UID, "ns", "w").with_authorization_policies(list);
    let updates: Vec<Update> = vec![
        AttachedPolicy::new(policy.into(), scope).into(),
        workload.into(),
    ];
    let others = (0..3).filter(|other| *other != name);
    let removed = others.map(|other| ResourceName::Policy(named(other)));
    Batch::new(updates, removed.collect())
}

/// A client that applies what it reads at once and answers when it is told to.
struct Client {
    session: Session,
    delta: bool,
    /// By name: version, and whether it binds the namespace.
    policies: BTreeMap<String, (String, bool)>,
    workload: Option<(String, BTreeSet<String>)>,
    unanswered: BTreeMap<String, String>,
}

const TYPES: [&str; 2] = [type_url::AUTHORIZATION, type_url::ADDRESS];

impl Client {
    fn new(delta: bool, store: &Store) -> Self {
        let mut client = Self {
            session: new_session(),
            delta,
            policies: BTreeMap::new(),
            workload: None,
            unanswered: BTreeMap::new(),
        };
        client.connect(store);
        client
    }

    fn connect(&mut self, store: &Store) {
        self.session = new_session();
        self.unanswered.clear();
        for url in TYPES {
            let has: Vec<(String, String)> = match url {
                type_url::ADDRESS => {
                    let workload = self.workload.iter();
                    workload
                        .map(|(version, _)| (UID.to_owned(), version.clone()))
                        .collect()
                }
                _ => {
                    let policies = self.policies.iter();
                    policies
                        .map(|(name, (version, _))| (name.clone(), version.clone()))
                        .collect()
                }
            };
            self.request(url, String::new(), has, store);
        }
    }

    fn request(&mut self, url: &str, nonce: String, has: Vec<(String, String)>, store: &Store) {
        let type_url = url.to_owned();
        if self.delta {
            let request = DeltaDiscoveryRequest {
                type_url,
                response_nonce: nonce,
                initial_resource_versions: has.into_iter().collect(),
                ..Default::default()
            };
            self.session.request(request, store).expect("a request");
        } else {
            let request = DiscoveryRequest {
                type_url,
                response_nonce: nonce,
                ..Default::default()
            };
            self.session.world_request(request).expect("a request");
        }
    }

    /// Reads the next message, if there is one.
    fn read(&mut self, store: &Store) -> bool {
        let (url, nonce, values, removed) = if self.delta {
            let Some(response) = self.session.told(store).expect("it is not behind") else {
                return false;
            };
            let resources = response.resources.into_iter();
            let values = resources.map(|one| (one.version, one.resource.expect("a value").value));
            let values: Vec<_> = values.collect();
            (
                response.type_url,
                response.nonce,
                values,
                response.removed_resources,
            )
        } else {
            let Some(response) = self.session.world_told(store).expect("it is not too large")
            else {
                return false;
            };
            let resources = response.resources.into_iter();
            let values = resources.map(|one| (String::new(), one.value)).collect();
            let all = self.policies.keys().cloned().collect();
            (response.type_url, response.nonce, values, all)
        };
        if url == type_url::ADDRESS {
            assert!(!removed.contains(&UID.to_owned()));
            for (version, value) in values {
                let Ok(Address {
                    r#type: Some(address::Type::Workload(workload)),
                }) = Address::decode(value)
                else {
                    panic!("a workload");
                };
                let list = workload.authorization_policies.into_iter().collect();
                self.workload = Some((version, list));
            }
        } else {
            for name in removed {
                self.policies.remove(&name);
            }
            for (version, value) in values {
                let policy = Authorization::decode(value).expect("a policy");
                let wide = policy.scope == i32::from(WireScope::Namespace);
                let name = format!("{}/{}", policy.namespace, policy.name);
                self.policies.insert(name, (version, wide));
            }
        }
        let before = self.unanswered.insert(url, nonce);
        assert_eq!(before, None, "one response of a type is on its way");
        self.check();
        true
    }

    fn check(&self) {
        let Some((_, list)) = &self.workload else {
            return;
        };
        let listed = list.iter().any(|name| self.policies.contains_key(name));
        let wide = self.policies.values().any(|(_, wide)| *wide);
        assert!(
            listed || wide,
            "nothing binds: {list:?} of {:?}",
            self.policies
        );
        assert!(
            list.iter().all(|name| self.policies.contains_key(name)),
            "it lists what has not come: {list:?} of {:?}",
            self.policies
        );
    }

    fn answer(&mut self, url: &str, store: &Store) {
        if let Some(nonce) = self.unanswered.remove(url) {
            self.request(url, nonce, Vec::new(), store);
        }
    }

    /// Reads and answers everything.
    fn finish(&mut self, store: &Store) -> Vec<&str> {
        loop {
            for url in TYPES {
                self.answer(url, store);
            }
            if !self.read(store) && self.unanswered.is_empty() {
                return self.policies.keys().map(String::as_str).collect();
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Change { name: u8, listed: bool },
    Read,
    Answer(usize),
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0_u8..3, any::<bool>()).prop_map(|(name, listed)| Step::Change { name, listed }),
        5 => Just(Step::Read),
        4 => (0_usize..2).prop_map(Step::Answer),
        1 => Just(Step::Reconnect),
    ]
}

proptest! {
    #[test]
    fn a_workload_is_never_without_the_policy_that_binds_it(
        delta in any::<bool>(),
        steps in vec(step(), 0..60),
    ) {
        let mut store = new_store();
        store.apply(mesh(0, true));
        let mut client = Client::new(delta, &store);
        let mut last = "ns/p0".to_owned();
        for step in &steps {
            match *step {
                Step::Change { name, listed } => {
                    store.apply(mesh(name, listed));
                    last = format!("ns/p{name}");
                }
                Step::Read => _ = client.read(&store),
                Step::Answer(url) => client.answer(TYPES[url], &store),
                // Nobody knows what a client of the other protocol has when it comes back.
                Step::Reconnect if delta => client.connect(&store),
                Step::Reconnect => {}
            }
        }
        prop_assert_eq!(client.finish(&store), [&*last]);
    }
}

#[test]
fn a_policy_with_another_name_goes_after_the_addresses_that_listed_it() {
    for delta in [true, false] {
        let mut store = new_store();
        store.apply(mesh(0, true));
        let mut client = Client::new(delta, &store);
        assert_eq!(client.finish(&store), ["ns/p0"]);
        store.apply(mesh(1, true));
        let policies = |client: &Client| client.policies.len();
        assert!(client.read(&store));
        assert_eq!(policies(&client), 2, "the new one beside the old one");
        assert!(client.read(&store));
        let list = client.workload.as_ref().map(|(_, list)| list.clone());
        assert_eq!(list, Some(["ns/p1".to_owned()].into()));
        assert_eq!(policies(&client), 2);
        assert_eq!(client.finish(&store), ["ns/p1"]);
    }
}

/// A policy that binds by a list can only bind less by itself if it did so before, which its version tells.
#[test]
fn who_comes_back_has_changed_policies_before_the_addresses_that_list_them() {
    let mut store = new_store();
    store.apply(mesh(0, true));
    let mut client = Client::new(true, &store);
    assert!(client.read(&store) && client.read(&store));
    let name = PolicyName::new("ns", "p0");
    let policy = Policy::new(name.clone(), Action::Deny, vec![]);
    let workload = Workload::new(UID, "ns", "another").with_authorization_policies(vec![name]);
    let updates: Vec<Update> = vec![
        AttachedPolicy::new(policy.into(), Scope::Workload).into(),
        workload.into(),
    ];
    store.apply(Batch::new(updates, Vec::new()));
    client.connect(&store);
    let mut order = Vec::new();
    while let Some(response) = client.session.told(&store).expect("it is not behind") {
        order.extend(response.resources.iter().map(|one| one.name.clone()));
        let nonce = response.nonce;
        client.request(&response.type_url, nonce, Vec::new(), &store);
    }
    assert_eq!(order, ["ns/p0", UID]);
}

#[test]
fn addresses_wait_for_policies_that_wait_for_an_answer() {
    for delta in [true, false] {
        let mut store = new_store();
        store.apply(mesh(0, true));
        let mut client = Client::new(delta, &store);
        client.finish(&store);
        store.apply(mesh(1, true));
        assert!(client.read(&store), "p1");
        // Before p1 is answered, there is another one, and the workload lists it.
        store.apply(mesh(2, true));
        assert!(!client.read(&store), "its policy is not here");
        client.answer(type_url::AUTHORIZATION, &store);
        assert!(client.read(&store), "p2");
        assert!(client.read(&store), "now it may be listed");
        assert_eq!(client.finish(&store), ["ns/p2"]);
    }
}

#[test]
fn a_policy_stays_while_a_host_that_lists_it_may_come_back() {
    let uid = "c/networking.istio.io/WorkloadEntry/ns/forum-1";
    let mut store = new_store();
    store.set_groups([ObjectName::new("ns", "forum")].iter());
    let mut session = new_session();
    for (url, name) in [(type_url::AUTHORIZATION, "ns/p0"), (type_url::ADDRESS, uid)] {
        let request = DeltaDiscoveryRequest {
            type_url: url.to_owned(),
            initial_resource_versions: [(name.to_owned(), "old".to_owned())].into(),
            ..Default::default()
        };
        session.request(request, &store).unwrap();
    }
    // Reads and answers all there is, and says what is gone.
    let mut gone = |store: &Store| {
        let mut gone = Vec::new();
        while let Some(response) = session.told(store).unwrap() {
            gone.extend(response.removed_resources);
            let answer = DeltaDiscoveryRequest {
                type_url: response.type_url,
                response_nonce: response.nonce,
                ..Default::default()
            };
            session.request(answer, store).unwrap();
        }
        gone
    };
    assert_eq!(gone(&store), [""; 0]);
    store.apply(mesh(1, true));
    assert_eq!(gone(&store), [""; 0], "also not with a change of others");
    store.settle();
    assert_eq!(gone(&store), [uid, "ns/p0"]);
}
