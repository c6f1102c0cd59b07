//! Every interleaving of changes, answers, subscriptions and lost streams ends with what there is.

mod listeners;
mod order;
mod pieces;
mod registrations;
mod registry;

use std::collections::{BTreeMap, BTreeSet};

use mesh_authz::policy::{Action, Policy, PolicyName};
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;

use super::outgoing::Outgoing;
use super::session::{Bounds, End, Session};
use super::store::{Kind, Store};
use crate::model::{
    AttachedPolicy, Batch, Membership, NetworkAddress, ObjectName, ResourceName, Scope, Service,
    ServiceName, Target, Update, Workload,
};
use crate::proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use crate::proto::google::rpc::Status;
use crate::proto::type_url;

fn workload(n: u8, variant: u8) -> Workload {
    let service = ServiceName::new("ns", format!("s{}", variant % 3));
    let address = [10, 0, 0, n % 4].into();
    Workload::new(format!("c//Pod/ns/w{n}"), "ns", format!("w{n}"))
        .with_addresses(vec![address])
        .with_node(format!("node-{variant}"))
        .with_services(vec![Membership::new(service)])
}

fn service(n: u8, variant: u8) -> Service {
    let address = NetworkAddress::new("", [10, 1, 0, variant % 3].into());
    Service::new(ServiceName::new("ns", format!("s{n}"))).with_addresses(vec![address])
}

/// What a session sends, as a client reads it.
trait Told {
    fn told(&mut self, store: &Store) -> Result<Option<DeltaDiscoveryResponse>, End>;
    fn world_told(&mut self, store: &Store) -> Result<Option<DiscoveryResponse>, End>;
}

impl Told for Session {
    fn told(&mut self, store: &Store) -> Result<Option<DeltaDiscoveryResponse>, End> {
        Ok(self.poll(store)?.map(read))
    }

    fn world_told(&mut self, store: &Store) -> Result<Option<DiscoveryResponse>, End> {
        Ok(self.world_poll(store)?.map(read))
    }
}

/// The message of a response.
fn read<M: Message + Default>(response: Outgoing) -> M {
    let sent: Vec<u8> = response.flatten().collect();
    let (header, message) = sent.split_at(5);
    let length = (message.len() as u32).to_be_bytes();
    assert_eq!(header, [&[0], &length[..]].concat(), "gRPC's header");
    M::decode(message).expect("a message")
}

fn new_session() -> Session {
    Session::new(Bounds {
        names: 100,
        size: 1 << 20,
    })
}

/// Of a server that has been told that there is nothing.
fn new_store() -> Store {
    let mut store = Store::default();
    store.apply(Batch::default());
    store
}

/// What a test does.
#[derive(Debug, Clone)]
enum Step {
    Set(u8, u8),
    Remove(u8),
    Subscribe(u8),
    Unsubscribe(u8),
    /// The server sends, if it has something to send.
    Send,
    /// The client reads and answers.
    Answer {
        refuse: bool,
    },
    Reconnect,
}

/// Workloads 0 to 5, services 6 to 8.
fn change(step: &Step) -> Option<Batch> {
    match *step {
        Step::Set(n @ 0..=5, variant) => {
            Some(Batch::new(vec![workload(n, variant).into()], Vec::new()))
        }
        Step::Set(n, variant) => Some(Batch::new(vec![service(n - 6, variant).into()], Vec::new())),
        Step::Remove(n) => {
            let update: Update = match n {
                0..=5 => workload(n, 0).into(),
                _ => service(n - 6, 0).into(),
            };
            Some(Batch::new(Vec::new(), vec![update.name()]))
        }
        _ => None,
    }
}

fn asked(n: u8) -> String {
    match n {
        0..=1 => format!("c//Pod/ns/w{n}"),
        2..=3 => format!("/10.0.0.{n}"),
        4..=6 => format!("ns/s{}", n - 4),
        _ => format!("/10.1.0.{}", n - 7),
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u8..9, 0_u8..6).prop_map(|(n, variant)| Step::Set(n, variant)),
        2 => (0_u8..9).prop_map(Step::Remove),
        2 => (0_u8..10).prop_map(Step::Subscribe),
        1 => (0_u8..10).prop_map(Step::Unsubscribe),
        4 => Just(Step::Send),
        4 => any::<bool>().prop_map(|refuse| Step::Answer { refuse }),
        1 => Just(Step::Reconnect),
    ]
}

/// A client of one type, as the protocol asks of it.
struct Client {
    wildcard: bool,
    names: BTreeSet<String>,
    /// Name to version.
    has: BTreeMap<String, String>,
    values: BTreeMap<String, Vec<u8>>,
    session: Session,
    unread: Vec<DeltaDiscoveryResponse>,
}

impl Client {
    fn new(wildcard: bool, store: &Store) -> Self {
        let mut client = Self {
            wildcard,
            names: BTreeSet::new(),
            has: BTreeMap::new(),
            values: BTreeMap::new(),
            session: new_session(),
            unread: Vec::new(),
        };
        client.connect(store);
        client
    }

    fn connect(&mut self, store: &Store) {
        self.session = new_session();
        self.unread.clear();
        let star = vec!["*".to_owned()];
        let (subscribe, unsubscribe) = match self.wildcard {
            true => (Vec::new(), Vec::new()),
            false if self.names.is_empty() => (star.clone(), star),
            false => (self.names.iter().cloned().collect(), Vec::new()),
        };
        let request = DeltaDiscoveryRequest {
            type_url: type_url::ADDRESS.to_owned(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            initial_resource_versions: self.has.clone().into_iter().collect(),
            ..Default::default()
        };
        self.session.request(request, store).expect("a request");
    }

    fn send(&mut self, store: &Store) -> bool {
        let response = self.session.told(store).expect("it is not behind");
        let sent = response.is_some();
        self.unread.extend(response);
        assert!(self.unread.len() <= 1, "one response is on its way");
        sent
    }

    fn answer(&mut self, refuse: bool, store: &Store) {
        let Some(response) = self.unread.pop() else {
            return;
        };
        for name in response.removed_resources {
            self.has.remove(&name);
        }
        for resource in response.resources {
            let value = resource.resource.expect("a value").value;
            self.values.insert(resource.name.clone(), value.into());
            self.has.insert(resource.name, resource.version);
        }
        let error = refuse.then(|| Status {
            message: "no".to_owned(),
            ..Default::default()
        });
        let request = DeltaDiscoveryRequest {
            type_url: type_url::ADDRESS.to_owned(),
            response_nonce: response.nonce,
            error_detail: error,
            ..Default::default()
        };
        self.session.request(request, store).expect("an answer");
        let subscription = &self.session.subscriptions()[0];
        assert_eq!(
            subscription.refusal().map(|one| one.text()),
            refuse.then_some("no")
        );
    }

    fn name(&mut self, n: u8, add: bool, store: &Store) {
        if self.wildcard {
            return;
        }
        let name = asked(n);
        let mut request = DeltaDiscoveryRequest {
            type_url: type_url::ADDRESS.to_owned(),
            ..Default::default()
        };
        if add {
            self.names.insert(name.clone());
            request.resource_names_subscribe.push(name);
        } else {
            self.names.remove(&name);
            request.resource_names_unsubscribe.push(name);
        }
        self.session
            .request(request, store)
            .expect("a subscription");
    }

    /// After everything was read, it has what there is.
    fn check(&mut self, store: &Store) -> BTreeSet<String> {
        loop {
            self.answer(false, store);
            if !self.send(store) {
                break;
            }
        }
        let table = store.table(Kind::Address);
        let wanted: BTreeSet<_> = if self.wildcard {
            table.iter().map(|(name, _)| name.clone()).collect()
        } else {
            self.names
                .iter()
                .flat_map(|name| table.resolve(name))
                .collect()
        };
        for name in &wanted {
            let version = table.get(name).map(|(_, one)| &*one.version);
            assert_eq!(self.has.get(&**name).map(String::as_str), version, "{name}");
        }
        if self.wildcard {
            assert_eq!(self.has.len(), wanted.len(), "nothing else: {:?}", self.has);
        }
        // What it still has beside is in no service that it wants.
        for name in self
            .has
            .keys()
            .filter(|name| !wanted.contains(name.as_str()))
        {
            for service in wanted.iter().filter(|name| name.starts_with("ns/")) {
                let value = &self.values[name];
                let mut parts = value.windows(service.len());
                assert!(
                    !parts.any(|part| part == service.as_bytes()),
                    "{name} in {service}"
                );
            }
        }
        wanted.iter().map(ToString::to_string).collect()
    }
}

proptest! {
    #[test]
    fn who_asks_for_everything_has_everything(steps in vec(step(), 0..60)) {
        run(true, &steps);
    }

    #[test]
    fn who_asks_by_name_has_what_the_names_stand_for(steps in vec(step(), 0..60)) {
        run(false, &steps);
    }

    #[test]
    fn the_state_of_the_world_is_all_there_is(steps in vec(step(), 0..60)) {
        let mut store = new_store();
        let mut session = new_session();
        let ask = |nonce: String, refuse: bool| DiscoveryRequest {
            type_url: type_url::ADDRESS.to_owned(),
            response_nonce: nonce,
            error_detail: refuse.then(Status::default),
            ..Default::default()
        };
        session.world_request(ask(String::new(), false)).expect("a request");
        let mut last = None;
        let mut nonce = None;
        for step in steps.iter().chain([&Step::Answer { refuse: false }, &Step::Send]) {
            if let Some(batch) = change(step) {
                store.apply(batch);
            }
            match step {
                Step::Send => if let Some(response) = session.world_told(&store).expect("it is not too large") {
                    nonce = Some(response.nonce);
                    last = Some(response.resources);
                },
                Step::Answer { refuse } => if let Some(nonce) = nonce.take() {
                    session.world_request(ask(nonce, *refuse)).expect("an answer");
                },
                _ => {}
            }
        }
        let values: Vec<_> = last.expect("a first response").into_iter().map(|any| any.value).collect();
        let expected: Vec<_> = store.table(Kind::Address).iter().map(|(_, one)| one.encoded.value()).collect();
        prop_assert_eq!(values, expected);
    }
}

fn run(wildcard: bool, steps: &[Step]) {
    let mut store = new_store();
    let mut client = Client::new(wildcard, &store);
    for step in steps {
        if let Some(batch) = change(step) {
            store.apply(batch);
        }
        match *step {
            Step::Subscribe(n) => client.name(n, true, &store),
            Step::Unsubscribe(n) => client.name(n, false, &store),
            Step::Send => _ = client.send(&store),
            Step::Answer { refuse } => client.answer(refuse, &store),
            Step::Reconnect => client.connect(&store),
            _ => {}
        }
    }
    let wanted = client.check(&store);
    // And what it has is what a server that was started anew would not send again.
    client.connect(&store);
    let response = client
        .session
        .told(&store)
        .expect("not behind")
        .expect("an answer is owed");
    let again = names(&response)
        .into_iter()
        .filter(|name| wanted.contains(*name));
    assert_eq!(again.collect::<Vec<_>>(), [""; 0], "nothing is sent again");
}

fn ask(url: &str, subscribe: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: url.to_owned(),
        resource_names_subscribe: subscribe.iter().map(|&name| name.to_owned()).collect(),
        ..Default::default()
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response
        .resources
        .iter()
        .map(|one| one.name.as_str())
        .collect()
}

#[test]
fn a_name_brings_what_it_stands_for() {
    let mut store = new_store();
    let updates = vec![
        workload(0, 1).into(),
        workload(1, 1).into(),
        service(1, 2).into(),
    ];
    store.apply(Batch::new(updates, Vec::new()));
    let mut session = new_session();
    let asked = ["/10.1.0.2", "/10.9.9.9", "ns/nowhere"];
    session
        .request(ask(type_url::ADDRESS, &asked), &store)
        .unwrap();
    let response = session.told(&store).unwrap().unwrap();
    assert_eq!(names(&response), ["c//Pod/ns/w0", "c//Pod/ns/w1", "ns/s1"]);
    assert_eq!(response.resources[2].aliases, ["/10.1.0.2"]);
    assert_eq!(response.resources[0].aliases, ["/10.0.0.0"]);
    assert_eq!(response.removed_resources, ["/10.9.9.9", "ns/nowhere"]);
}

#[test]
fn what_changes_before_an_answer_is_merged() {
    let mut store = new_store();
    let mut session = new_session();
    session
        .request(ask(type_url::ADDRESS, &[]), &store)
        .unwrap();
    let first = session
        .told(&store)
        .unwrap()
        .expect("an empty answer is one");
    assert!(first.resources.is_empty());
    for variant in 0..3 {
        store.apply(Batch::new(vec![workload(variant, 0).into()], Vec::new()));
        assert_eq!(
            session.told(&store),
            Ok(None),
            "the first is not answered yet"
        );
    }
    store.apply(Batch::new(
        Vec::new(),
        vec![ResourceName::Workload("c//Pod/ns/w0".into())],
    ));
    let mut answer = ask(type_url::ADDRESS, &[]);
    answer.response_nonce = "an old one".to_owned();
    session.request(answer.clone(), &store).unwrap();
    assert_eq!(
        session.told(&store),
        Ok(None),
        "that is no answer to the first"
    );
    answer.response_nonce = first.nonce;
    session.request(answer, &store).unwrap();
    let second = session.told(&store).unwrap().unwrap();
    assert_eq!(names(&second), ["c//Pod/ns/w1", "c//Pod/ns/w2"]);
    assert_eq!(second.removed_resources, ["c//Pod/ns/w0"]);
}

#[test]
fn policies_come_before_addresses_and_other_types_before_both() {
    let store = new_store();
    let mut session = new_session();
    for url in [
        type_url::ADDRESS,
        type_url::AUTHORIZATION,
        type_url::LISTENER,
    ] {
        session.request(ask(url, &["a/b"]), &store).unwrap();
    }
    let order: Vec<_> = std::iter::from_fn(|| session.told(&store).unwrap())
        .map(|response| {
            assert_eq!(response.removed_resources, ["a/b"]);
            response.type_url
        })
        .collect();
    let expected = [
        type_url::LISTENER,
        type_url::AUTHORIZATION,
        type_url::ADDRESS,
    ];
    assert_eq!(order, expected);
}

/// What comes to a service while the answer to the one before is on its way is not wanted with it any more.
#[test]
fn what_came_to_a_name_that_is_taken_back_is_not_sent() {
    let mut store = new_store();
    store.apply(Batch::new(
        vec![service(0, 0).into(), workload(0, 0).into()],
        Vec::new(),
    ));
    let mut session = new_session();
    let say =
        |session: &mut Session, ask: &[&str], take_back: &[&str], nonce: &str, store: &Store| {
            let names = |of: &[&str]| of.iter().map(|&one| one.to_owned()).collect();
            let request = DeltaDiscoveryRequest {
                type_url: type_url::ADDRESS.to_owned(),
                resource_names_subscribe: names(ask),
                resource_names_unsubscribe: names(take_back),
                response_nonce: nonce.to_owned(),
                ..Default::default()
            };
            session.request(request, store).expect("a request");
        };
    say(&mut session, &["ns/s0"], &[], "", &store);
    let first = session.told(&store).unwrap().expect("an answer");
    assert_eq!(first.resources.len(), 2);
    // While it is not answered, and then taken back and asked for in turn.
    say(&mut session, &[], &["ns/s0"], "", &store);
    say(&mut session, &["c//Pod/ns/w0"], &[], "", &store);
    store.apply(Batch::new(vec![workload(1, 0).into()], Vec::new()));
    say(&mut session, &[], &[], &first.nonce, &store);
    let second = session.told(&store).unwrap().expect("an answer");
    assert_eq!(second.removed_resources, ["ns/s0"]);
    let names: Vec<_> = second.resources.iter().map(|one| &*one.name).collect();
    assert_eq!(names, ["c//Pod/ns/w0"]);
    say(&mut session, &[], &["c//Pod/ns/w0"], &second.nonce, &store);
    let third = session.told(&store).unwrap().expect("an answer");
    assert_eq!(third.removed_resources, ["c//Pod/ns/w0"]);
}

#[test]
fn what_a_client_may_ask_for_is_bounded() {
    let store = new_store();
    let bounds = |names, size| Session::new(Bounds { names, size });
    let mut session = bounds(2, 100);
    session
        .request(ask(type_url::ADDRESS, &["a", "b"]), &store)
        .unwrap();
    let more = session.request(ask(type_url::ADDRESS, &["c"]), &store);
    assert_eq!(more, Err(End::TooManyNames(2)));
    let mut session = bounds(2, 100);
    for n in 0..16 {
        session
            .request(ask(&format!("type {n}"), &[]), &store)
            .unwrap();
    }
    let more = session.request(ask("one more", &[]), &store);
    assert!(matches!(more, Err(End::Invalid(_))), "{more:?}");
    let none = session.request(ask("", &[]), &store);
    assert!(matches!(none, Err(End::Invalid(_))), "{none:?}");

    // Of all types together, and what is taken back counts no more.
    let mut session = bounds(10, 10);
    session
        .request(ask(type_url::ADDRESS, &["12345"]), &store)
        .unwrap();
    session.request(ask("other", &["12345"]), &store).unwrap();
    let mut swap = ask(type_url::ADDRESS, &["abcde"]);
    swap.resource_names_unsubscribe = vec!["12345".to_owned()];
    session.request(swap, &store).unwrap();
    let more = session.request(ask("other", &["x"]), &store);
    assert_eq!(more, Err(End::NamesTooLarge(10)));
    let mut session = bounds(10, 10);
    let world = DiscoveryRequest {
        type_url: type_url::ADDRESS.to_owned(),
        resource_names: vec!["1234567890".to_owned()],
        ..Default::default()
    };
    session.world_request(world.clone()).unwrap();
    let more = session.world_request(DiscoveryRequest {
        resource_names: vec!["12345678901".to_owned()],
        ..world
    });
    assert_eq!(more, Err(End::NamesTooLarge(10)));
    let long = session.request(ask(&"x".repeat(257), &[]), &store);
    assert!(matches!(long, Err(End::Invalid(_))), "{long:?}");
}

#[test]
fn a_workload_lists_no_policy_that_is_not_sent() {
    let policy = |action| {
        let policy = Policy::new(PolicyName::new("ns", "p"), action, Vec::new());
        Update::from(AttachedPolicy::new(policy.into(), Scope::Workload))
    };
    let listed = |store: &Store| {
        let (_, one) = store.table(Kind::Address).get("c//Pod/ns/w0").unwrap();
        one.encoded.value().windows(4).any(|part| part == b"ns/p")
    };
    let listing = vec![PolicyName::new("ns", "p")];
    let workload = workload(0, 0).with_authorization_policies(listing);
    let mut store = new_store();
    store.apply(Batch::new(vec![workload.into()], Vec::new()));
    assert!(listed(&store), "it may come yet");
    store.apply(Batch::new(vec![policy(Action::Audit)], Vec::new()));
    assert!(!listed(&store));
    store.apply(Batch::new(vec![policy(Action::Deny)], Vec::new()));
    assert!(listed(&store));
    store.apply(Batch::new(vec![policy(Action::Audit)], Vec::new()));
    store.apply(Batch::new(Vec::new(), vec![policy(Action::Audit).name()]));
    assert!(listed(&store));
}

#[test]
fn who_says_what_it_has_and_names_nothing_keeps_it() {
    // As ztunnel does when it comes back: `*` taken back at once, and the versions of what it has, with an
    // empty one for what it waits for.
    let mut store = new_store();
    let updates = vec![
        workload(0, 1).into(),
        workload(1, 1).into(),
        service(1, 2).into(),
    ];
    store.apply(Batch::new(updates, Vec::new()));
    let version = |name: &str| {
        store
            .table(Kind::Address)
            .get(name)
            .unwrap()
            .1
            .version
            .to_string()
    };
    let mut request = ask(type_url::ADDRESS, &["*"]);
    request.resource_names_unsubscribe = vec!["*".to_owned()];
    request.initial_resource_versions = [
        ("c//Pod/ns/w0", version("c//Pod/ns/w0")),
        ("c//Pod/ns/gone", "old".to_owned()),
        ("/10.1.0.2", String::new()),
        ("/10.9.9.9", String::new()),
    ]
    .map(|(name, version)| (name.to_owned(), version))
    .into();
    let mut session = new_session();
    session.request(request, &store).unwrap();
    let response = session.told(&store).unwrap().unwrap();
    assert_eq!(
        names(&response),
        ["c//Pod/ns/w1", "ns/s1"],
        "w0 is the same"
    );
    assert_eq!(response.removed_resources, ["/10.9.9.9", "c//Pod/ns/gone"]);
    let mut answer = ask(type_url::ADDRESS, &[]);
    answer.response_nonce = response.nonce;
    session.request(answer, &store).unwrap();
    store.apply(Batch::new(vec![workload(0, 2).into()], Vec::new()));
    let response = session.told(&store).unwrap().unwrap();
    assert_eq!(names(&response), ["c//Pod/ns/w0"], "and it is still wanted");
}

#[test]
fn what_a_client_came_back_with_goes_when_its_name_is_taken_back() {
    for is_old in [false, true] {
        let mut store = new_store();
        let updates = vec![service(1, 0).into(), workload(0, 0).into()];
        store.apply(Batch::new(updates, Vec::new()));
        let table = store.table(Kind::Address);
        let version = table.get("c//Pod/ns/w0").unwrap().1.version.to_string();
        let version = if is_old { "old".to_owned() } else { version };
        // Of another service than the one that it came with.
        let mut request = ask(type_url::ADDRESS, &["ns/s1"]);
        request.initial_resource_versions = [("c//Pod/ns/w0".to_owned(), version)].into();
        let mut session = new_session();
        session.request(request, &store).unwrap();
        let first = session.told(&store).unwrap().unwrap();
        let with = if is_old {
            &["c//Pod/ns/w0", "ns/s1"][..]
        } else {
            &["ns/s1"]
        };
        assert_eq!(names(&first), with);
        let mut request = ask(type_url::ADDRESS, &[]);
        request.resource_names_unsubscribe = vec!["ns/s1".to_owned()];
        request.response_nonce = first.nonce;
        session.request(request, &store).unwrap();
        let second = session.told(&store).unwrap().unwrap();
        assert_eq!(second.removed_resources, ["c//Pod/ns/w0", "ns/s1"]);
    }
}

/// V027: the server before had the entries, and this one does not know them yet.
#[test]
fn what_hosts_have_registered_stays_while_they_may_come_back() {
    let entry = |name: &str| format!("c/networking.istio.io/WorkloadEntry/{name}");
    let [back, lost, other] = ["ns/forum-1", "ns/forum-2", "ns/other-1"].map(entry);
    for named in [false, true] {
        let mut store = new_store();
        store.set_groups([ObjectName::new("ns", "forum")].iter());
        let mut request = ask(type_url::ADDRESS, if named { &["*"] } else { &[] });
        if named {
            request.resource_names_unsubscribe = vec!["*".to_owned()];
        }
        let known = [&back, &lost, &other].map(|name| (name.clone(), "old".to_owned()));
        request.initial_resource_versions = known.into();
        let mut session = new_session();
        session.request(request, &store).unwrap();
        let mut answered = |store: &Store| {
            let response = session.told(store).unwrap()?;
            let mut answer = ask(type_url::ADDRESS, &[]);
            answer.response_nonce = response.nonce.clone();
            session.request(answer, store).unwrap();
            let names = names(&response).into_iter().map(str::to_owned);
            Some((names.collect::<Vec<_>>(), response.removed_resources))
        };
        let nothing = Vec::<String>::new;
        assert_eq!(answered(&store), Some((nothing(), vec![other.clone()])));
        let host = Workload::new(&*back, "ns", "forum-1");
        store.apply(Batch::new(vec![host.into()], Vec::new()));
        assert_eq!(answered(&store), Some((vec![back.clone()], nothing())));
        store.settle();
        assert_eq!(answered(&store), Some((nothing(), vec![lost.clone()])));
        assert_eq!(answered(&store), None);
    }
}

#[test]
fn what_nobody_is_sent_is_named() {
    let name = PolicyName::new("ns", "p");
    let policy = |action, scope| {
        let policy = Policy::new(name.clone(), action, Vec::new());
        Update::from(AttachedPolicy::new(policy.into(), scope))
    };
    let said =
        |store: &Store| -> Vec<String> { store.withheld().map(ToString::to_string).collect() };
    let target = Target::Service(ObjectName::new("ns", "s"));
    let mut store = new_store();
    let targets = policy(Action::Deny, Scope::Targets(vec![target]));
    store.apply(Batch::new(vec![targets], Vec::new()));
    let expected = "policy ns/p is sent to nobody: waypoints enforce what has targetRefs, and none is configured here";
    assert_eq!(said(&store), [expected]);
    assert!(store.withheld().all(|one| one.binds()));
    store.apply(Batch::new(
        vec![policy(Action::Audit, Scope::Mesh)],
        Vec::new(),
    ));
    assert_eq!(
        said(&store),
        ["policy ns/p is sent to nobody: an AUDIT decides nothing"]
    );
    assert!(!store.withheld().any(|one| one.binds()));
    store.apply(Batch::new(
        vec![policy(Action::Deny, Scope::Mesh)],
        Vec::new(),
    ));
    assert_eq!(said(&store), [""; 0]);
}

#[test]
fn who_does_not_read_for_too_long_has_to_connect_anew() {
    let workloads = |from: u32, to: u32| -> Vec<Update> {
        let one = |n| Workload::new(format!("c//Pod/ns/{n}"), "ns", "w").into();
        (from..to).map(one).collect()
    };
    let mut store = new_store();
    store.apply(Batch::new(workloads(0, 1), Vec::new()));
    let mut session = new_session();
    session
        .request(ask(type_url::ADDRESS, &[]), &store)
        .unwrap();
    let mut answer = ask(type_url::ADDRESS, &[]);
    answer.response_nonce = session.told(&store).unwrap().unwrap().nonce;
    // More come and go than are remembered.
    let many = workloads(1, 100_002);
    let removed = many.iter().map(Update::name).collect();
    store.apply(Batch::new(many, Vec::new()));
    store.apply(Batch::new(Vec::new(), removed));
    session.request(answer, &store).unwrap();
    assert_eq!(session.told(&store), Err(End::Behind));
    // A new one is told what there is, and of what it still has that it is gone.
    let mut request = ask(type_url::ADDRESS, &[]);
    let known = ["c//Pod/ns/0", "c//Pod/ns/7"].map(|name| (name.to_owned(), "old".to_owned()));
    request.initial_resource_versions = known.into_iter().collect();
    let mut session = new_session();
    session.request(request, &store).unwrap();
    let response = session.told(&store).unwrap().unwrap();
    assert_eq!(names(&response), ["c//Pod/ns/0"]);
    assert_eq!(response.removed_resources, ["c//Pod/ns/7"]);
}
