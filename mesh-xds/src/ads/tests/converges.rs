//! Whatever happens in between, what is here ends as what a fresh client is sent (PT-08). There are two types on the
//! one stream, whose resources have the same names.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;
use crate::proto::envoy::service::discovery::v3::DiscoveryResponse;

/// `svc-0` brings `svc-0/a` and `svc-0/b` along.
const SERVICES: usize = 3;

const TYPES: [&str; 2] = [URL, OTHER];

/// A resource by its type and its name.
type Key = (&'static str, String);

/// Resources are texts, and the two types are not mixed up in what is made of them.
struct Typed;

impl Typed {
    fn resource(url: &str, name: &str) -> ResourceName {
        ResourceName::Workload(format!("{url}|{name}").into())
    }

    fn key(resource: &ResourceName) -> Key {
        let ResourceName::Workload(uid) = resource else {
            panic!("{resource} is none of ours");
        };
        let (url, name) = uid.split_once('|').expect("one of ours");
        let url = TYPES.into_iter().find(|one| *one == url);
        (url.expect("a type"), name.to_owned())
    }
}

impl Decode for Typed {
    fn decode(
        &self,
        replicas: &mut Replicas,
        url: &str,
        name: &str,
        value: &[u8],
    ) -> Result<Option<Update>, Rejection> {
        let update = Texts.decode(replicas, url, name, value)?;
        let typed = update.map(|update| {
            let Update::Workload(text) = update else {
                panic!("a text");
            };
            let uid = format!("{url}|{}", text.uid());
            Workload::new(uid, "ns", text.name()).into()
        });
        Ok(typed)
    }

    fn removed(&self, url: &str, name: &str) -> Vec<ResourceName> {
        vec![Self::resource(url, name)]
    }

    fn name(&self, resource: &ResourceName) -> String {
        Self::key(resource).1
    }
}

fn all_names() -> Vec<String> {
    let service = |n: usize| format!("svc-{n}");
    (0..SERVICES)
        .flat_map(|n| [service(n), service(n) + "/a", service(n) + "/b"])
        .collect()
}

#[derive(Debug, Clone, Copy)]
enum Action {
    /// A resource gets a new version. A bad one cannot be decoded, a refused one not applied.
    Change(&'static str, usize, Quality),
    Remove(&'static str, usize),
    /// The server sends what changed of a type.
    Push(&'static str),
    /// The client takes the next response, and answers it now or later.
    Take,
    Judge,
    Want(&'static str, usize),
    Forget(&'static str, usize),
    /// The stream ends.
    Lose,
    /// The server is another one: with or without delta, with or without room for versions.
    Replace {
        delta: bool,
        refuses_versions: bool,
    },
    /// Time passes: retries and what is dropped become due.
    Wait(u64),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Quality {
    Good,
    Bad,
    Refused,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let url = || prop::sample::select(&TYPES[..]);
    let (name, service) = (|| (url(), 0..SERVICES * 3), || (url(), 0..SERVICES));
    let quality = prop_oneof![
        4 => Just(Quality::Good),
        1 => Just(Quality::Bad),
        1 => Just(Quality::Refused),
    ];
    let action = prop_oneof![
        4 => (name(), quality).prop_map(|((url, n), q)| Action::Change(url, n, q)),
        2 => name().prop_map(|(url, n)| Action::Remove(url, n)),
        4 => url().prop_map(Action::Push),
        6 => Just(Action::Take),
        5 => Just(Action::Judge),
        3 => service().prop_map(|(url, n)| Action::Want(url, n)),
        2 => service().prop_map(|(url, n)| Action::Forget(url, n)),
        2 => Just(Action::Lose),
        1 => (any::<bool>(), any::<bool>())
            .prop_map(|(delta, refuses_versions)| Action::Replace { delta, refuses_versions }),
        3 => (0_u64..20_000).prop_map(Action::Wait),
    ];
    prop::collection::vec(action, 0..100)
}

/// The control plane, and what it has told this client.
struct Server {
    types: [OneType; 2],
    next: u64,
    delta: bool,
    refuses_versions: bool,
    /// Of both types, in the order of the stream.
    responses: VecDeque<Incoming>,
    /// Nonces that were sent and not answered, of which type, and whether a refusal is due.
    open: BTreeMap<String, (&'static str, bool)>,
}

/// What there is of a type, and what of it the client was told.
struct OneType {
    url: &'static str,
    things: BTreeMap<String, (u64, Quality)>,
    started: bool,
    wildcard: bool,
    subscribed: BTreeSet<String>,
    sent: BTreeMap<String, u64>,
}

impl OneType {
    fn new(url: &'static str) -> Self {
        Self {
            url,
            things: BTreeMap::new(),
            started: false,
            wildcard: false,
            subscribed: BTreeSet::new(),
            sent: BTreeMap::new(),
        }
    }

    fn visible(&self) -> BTreeMap<String, (u64, Quality)> {
        let asked = |name: &str| {
            let service = name.split('/').next().unwrap_or(name);
            self.wildcard || self.subscribed.contains(service)
        };
        let things = self.things.iter().filter(|(name, _)| asked(name));
        things.map(|(k, v)| (k.clone(), *v)).collect()
    }

    fn value(version: u64, quality: Quality) -> String {
        match quality {
            Quality::Good => format!("{version}"),
            Quality::Bad => format!("!{version}"),
            Quality::Refused => format!("refuse {version}"),
        }
    }
}

impl Server {
    fn new() -> Self {
        Self {
            types: TYPES.map(OneType::new),
            next: 0,
            delta: true,
            refuses_versions: false,
            responses: VecDeque::new(),
            open: BTreeMap::new(),
        }
    }

    fn of(&mut self, url: &str) -> &mut OneType {
        let mut types = self.types.iter_mut();
        let found = types.find(|one| one.url == url);
        found.expect("a type that there is")
    }

    fn send(&mut self, url: &str, names: &BTreeSet<String>, removed: &[String]) {
        self.next += 1;
        let nonce = self.next.to_string();
        let of = self.of(url);
        let bad = |name: &String| of.things[name].1 != Quality::Good;
        let open = (of.url, names.iter().any(bad));
        let mut resources = Vec::new();
        for name in names {
            let (version, quality) = of.things[name];
            of.sent.insert(name.clone(), version);
            resources.push(Resource {
                name: name.clone(),
                version: version.to_string(),
                resource: Some(packed(url, name, &OneType::value(version, quality))),
                ..Resource::default()
            });
        }
        for name in removed {
            of.sent.remove(name);
        }
        self.open.insert(nonce.clone(), open);
        self.responses
            .push_back(Incoming::Delta(DeltaDiscoveryResponse {
                type_url: url.to_owned(),
                nonce,
                resources,
                removed_resources: removed.to_vec(),
                ..DeltaDiscoveryResponse::default()
            }));
    }

    fn send_world(&mut self, url: &str) {
        self.next += 1;
        let nonce = self.next.to_string();
        let of = self.of(url);
        let visible = of.visible();
        let bad = visible
            .values()
            .any(|(_, quality)| *quality != Quality::Good);
        let open = (of.url, bad);
        self.open.insert(nonce.clone(), open);
        let resources = visible.iter();
        let resources = resources.map(|(name, (v, q))| packed(url, name, &OneType::value(*v, *q)));
        self.responses
            .push_back(Incoming::StateOfTheWorld(DiscoveryResponse {
                version_info: nonce.clone(),
                resources: resources.collect(),
                type_url: url.to_owned(),
                nonce,
                ..DiscoveryResponse::default()
            }));
    }

    /// Sends what this client does not have in its newest version.
    fn push(&mut self, url: &str) {
        let delta = self.delta;
        let of = self.of(url);
        if !of.started {
            return;
        }
        if !delta {
            self.send_world(url);
            return;
        }
        let visible = of.visible();
        let news = visible.iter();
        let news = news.filter(|(name, (version, _))| of.sent.get(*name) != Some(version));
        let news: BTreeSet<String> = news.map(|(name, _)| name.clone()).collect();
        let gone = of.sent.keys().filter(|name| !of.things.contains_key(*name));
        let gone: Vec<String> = gone.cloned().collect();
        if !news.is_empty() || !gone.is_empty() {
            self.send(url, &news, &gone);
        }
    }

    fn answered(&mut self, url: &str, nonce: &str, refused: bool) {
        if nonce.is_empty() {
            return;
        }
        let due = self.open.remove(nonce);
        assert_eq!(
            due,
            Some((self.of(url).url, refused)),
            "nonce {nonce} is answered once, and so"
        );
    }

    /// Takes a request; `Err` ends the stream.
    fn request(&mut self, request: Outgoing) -> Result<(), ErrorKind> {
        match request {
            Outgoing::Delta(_) if !self.delta => return Err(ErrorKind::Unimplemented),
            Outgoing::Delta(request) => {
                let url = &*request.type_url;
                let refused = request.error_detail.is_some();
                self.answered(url, &request.response_nonce, refused);
                let refuses_versions = self.refuses_versions;
                let of = self.of(url);
                let subscribe: BTreeSet<_> = request.resource_names_subscribe.into_iter().collect();
                // As istiod does it: a subscription that it has is not answered, and of a name in both lists it goes.
                let is_new = !subscribe.is_subset(&of.subscribed);
                of.subscribed.extend(subscribe.iter().cloned());
                for name in &request.resource_names_unsubscribe {
                    of.subscribed.remove(name);
                }
                let mut gone: Vec<String> = subscribe.iter().cloned().collect();
                gone.retain(|name| !of.things.contains_key(name));
                if !of.started {
                    assert!(request.node.is_some());
                    let versions = request.initial_resource_versions;
                    if refuses_versions && !versions.is_empty() {
                        return Err(ErrorKind::ResourceExhausted);
                    }
                    of.started = true;
                    of.wildcard = subscribe.is_empty();
                    of.sent = BTreeMap::new();
                    for (name, version) in versions {
                        if !of.things.contains_key(&name) && !gone.contains(&name) {
                            gone.push(name.clone());
                        }
                        of.sent.insert(name, version.parse().unwrap_or_default());
                    }
                    let visible = of.visible();
                    let news = visible
                        .into_iter()
                        .filter(|(name, (v, _))| of.sent.get(name) != Some(v));
                    let news = news.map(|(name, _)| name).collect();
                    self.send(url, &news, &gone);
                } else if is_new {
                    let visible = of.visible();
                    let asked = |name: &String| {
                        let service = name.split('/').next().unwrap_or(name);
                        subscribe.contains(service)
                    };
                    let news = visible.into_keys().filter(asked).collect();
                    self.send(url, &news, &gone);
                }
            }
            Outgoing::StateOfTheWorld(_) if self.delta => return Err(ErrorKind::Unimplemented),
            Outgoing::StateOfTheWorld(request) => {
                let url = &*request.type_url;
                let names: BTreeSet<_> = request.resource_names.into_iter().collect();
                let of = self.of(url);
                let changed = !of.started || names != of.subscribed;
                of.wildcard = names.is_empty();
                of.subscribed = names;
                of.started = true;
                // A change of names repeats the last nonce.
                if !changed || self.open.contains_key(&request.response_nonce) {
                    let refused = request.error_detail.is_some();
                    self.answered(url, &request.response_nonce, refused);
                }
                if changed {
                    self.send_world(url);
                }
            }
        }
        Ok(())
    }

    fn forget_client(&mut self) {
        for of in &mut self.types {
            of.started = false;
            of.subscribed.clear();
        }
        self.responses.clear();
        self.open.clear();
    }
}

struct World {
    server: Server,
    session: Session,
    now: Instant,
    up: bool,
    /// A response that is being applied: what of it is refused.
    judging: Option<Vec<(ResourceName, String)>>,
    /// What is in effect.
    applied: BTreeMap<Key, String>,
    /// What stands refused, as the caller is told, by type and name.
    refused: BTreeSet<(String, String)>,
    wanted: BTreeSet<(&'static str, usize)>,
}

impl World {
    fn new(interest: Interest) -> Self {
        let settings = settings(&TYPES.map(|url| (url, interest)));
        let now = Instant::now();
        Self {
            server: Server::new(),
            session: Session::new(settings, Arc::new(Typed), now).expect("settings"),
            now,
            up: false,
            judging: None,
            applied: BTreeMap::new(),
            refused: BTreeSet::new(),
            wanted: BTreeSet::new(),
        }
    }

    fn lose(&mut self, why: Option<ErrorKind>) {
        if std::mem::take(&mut self.up) {
            self.server.forget_client();
            self.session.closed(why, self.now);
        }
    }

    /// What the worker does between events.
    fn turn(&mut self) {
        if self.judging.is_none() && self.session.poll_connect(self.now).is_some() {
            self.server.forget_client();
            self.up = true;
            for removed in self.session.opened() {
                self.applied.remove(&Typed::key(&removed));
            }
            self.hear();
        }
        while let Some(request) = self.up.then(|| self.session.poll_transmit()).flatten() {
            if let Err(why) = self.server.request(request) {
                self.lose(Some(why));
            }
        }
    }

    fn take(&mut self) {
        if self.judging.is_some() {
            return;
        }
        let Some(response) = self.server.responses.pop_front() else {
            return;
        };
        let delivery = self.session.received(response);
        for removed in delivery.removed {
            self.applied.remove(&Typed::key(&removed));
        }
        let mut refused = Vec::new();
        for update in delivery.updates {
            let name = update.name();
            let Update::Workload(workload) = update else {
                panic!("not one of ours");
            };
            if workload.name().starts_with("refuse") {
                refused.push((name, "cannot be applied".to_owned()));
            } else {
                self.applied
                    .insert(Typed::key(&name), workload.name().to_owned());
            }
        }
        self.judging = Some(refused);
    }

    fn judge(&mut self) {
        if let Some(refused) = self.judging.take() {
            self.session.judged(refused);
            self.hear();
        }
    }

    /// What the worker tells of what is refused.
    fn hear(&mut self) {
        for mended in self.session.take_mended() {
            for name in mended.names {
                let key = (mended.type_url.to_string(), name.into_string());
                assert!(self.refused.remove(&key), "{key:?} stood not refused");
            }
        }
        if let Some(refused) = self.session.take_refused() {
            let names = refused.resources.into_iter();
            let keys = names.map(|(name, _)| (refused.type_url.to_string(), name));
            self.refused.extend(keys);
        }
    }

    fn act(&mut self, action: Action) {
        let names = all_names();
        match action {
            Action::Change(url, n, quality) => {
                self.server.next += 1;
                let version = self.server.next;
                let things = &mut self.server.of(url).things;
                things.insert(names[n].clone(), (version, quality));
            }
            Action::Remove(url, n) => drop(self.server.of(url).things.remove(&names[n])),
            Action::Push(url) => self.server.push(url),
            Action::Take => self.take(),
            Action::Judge => self.judge(),
            Action::Want(url, n) => {
                self.wanted.insert((url, n));
                self.session.want(url, &format!("svc-{n}")).expect("a name");
            }
            Action::Forget(url, n) => {
                self.wanted.remove(&(url, n));
                let name = format!("svc-{n}");
                self.session.forget(url, &name, self.now).expect("a type");
            }
            Action::Lose => self.lose(None),
            Action::Replace {
                delta,
                refuses_versions,
            } => {
                self.lose(Some(ErrorKind::Connection));
                self.server.delta = delta;
                self.server.refuses_versions = refuses_versions;
            }
            Action::Wait(millis) => self.now += Duration::from_millis(millis),
        }
        self.turn();
    }

    /// Everything is made good, and everything that is due happens.
    fn settle(&mut self) {
        for url in TYPES {
            for (n, name) in all_names().into_iter().enumerate() {
                let thing = self.server.of(url).things.get(&name);
                if thing.is_some_and(|(_, q)| *q != Quality::Good) {
                    self.act(Action::Change(url, n, Quality::Good));
                }
            }
        }
        for _ in 0..20 {
            for url in TYPES {
                self.act(Action::Push(url));
            }
            while self.judging.is_some() || !self.server.responses.is_empty() {
                self.act(Action::Judge);
                self.act(Action::Take);
            }
            self.act(Action::Wait(30_000));
        }
        assert!(self.server.open.is_empty(), "every response is answered");
    }
}

/// All that there is, by type and name, with its version.
fn things(world: &World) -> impl Iterator<Item = (Key, String)> {
    world.server.types.iter().flat_map(|of| {
        let things = of.things.iter();
        things.map(|(name, (version, _))| ((of.url, name.clone()), version.to_string()))
    })
}

/// What a client is sent that has never been here.
fn fresh(world: &World, interest: Interest) -> BTreeMap<Key, String> {
    let is_sent = |(url, name): &Key| {
        let service = name.split('/').next().unwrap_or(name);
        let mut wanted = world.wanted.iter();
        interest == Interest::All
            || wanted.any(|(of, n)| of == url && service == format!("svc-{n}"))
    };
    things(world).filter(|(key, _)| is_sent(key)).collect()
}

fn converges(interest: Interest, actions: Vec<Action>) {
    let mut world = World::new(interest);
    world.turn();
    let mut seen: BTreeSet<(Key, String)> = BTreeSet::new();
    for action in actions {
        world.act(action);
        seen.extend(things(&world));
        for (key, value) in &world.applied {
            assert!(
                seen.contains(&(key.clone(), value.clone())),
                "{key:?}={value} never was"
            );
        }
    }
    world.settle();
    assert_eq!(world.applied, fresh(&world, interest));
    assert!(world.refused.is_empty(), "{:?} is good", world.refused);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(1500), ..ProptestConfig::default() })]

    #[test]
    fn everything_converges(actions in actions()) {
        converges(Interest::All, actions);
    }

    #[test]
    fn what_is_wanted_converges(actions in actions()) {
        converges(Interest::Named, actions);
    }
}
