//! Whatever happens in between, what is here ends as what a fresh client is sent (PT-08).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;
use crate::proto::envoy::service::discovery::v3::DiscoveryResponse;

/// `svc-0` brings `svc-0/a` and `svc-0/b` along.
const SERVICES: usize = 3;

fn all_names() -> Vec<String> {
    let service = |n: usize| format!("svc-{n}");
    (0..SERVICES)
        .flat_map(|n| [service(n), service(n) + "/a", service(n) + "/b"])
        .collect()
}

#[derive(Debug, Clone, Copy)]
enum Action {
    /// A resource gets a new version. A bad one cannot be decoded, a refused one not applied.
    Change(usize, Quality),
    Remove(usize),
    /// The server sends what changed.
    Push,
    /// The client takes the next response, and answers it now or later.
    Take,
    Judge,
    Want(usize),
    Forget(usize),
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
    let name = 0..SERVICES * 3;
    let quality = prop_oneof![
        4 => Just(Quality::Good),
        1 => Just(Quality::Bad),
        1 => Just(Quality::Refused),
    ];
    let action = prop_oneof![
        4 => (name.clone(), quality).prop_map(|(n, q)| Action::Change(n, q)),
        2 => name.prop_map(Action::Remove),
        4 => Just(Action::Push),
        6 => Just(Action::Take),
        5 => Just(Action::Judge),
        3 => (0..SERVICES).prop_map(Action::Want),
        2 => (0..SERVICES).prop_map(Action::Forget),
        2 => Just(Action::Lose),
        1 => (any::<bool>(), any::<bool>())
            .prop_map(|(delta, refuses_versions)| Action::Replace { delta, refuses_versions }),
        3 => (0_u64..20_000).prop_map(Action::Wait),
    ];
    prop::collection::vec(action, 0..80)
}

/// The control plane: what there is, and what it has told this client.
struct Server {
    things: BTreeMap<String, (u64, Quality)>,
    next: u64,
    delta: bool,
    refuses_versions: bool,
    started: bool,
    wildcard: bool,
    subscribed: BTreeSet<String>,
    sent: BTreeMap<String, u64>,
    responses: VecDeque<Incoming>,
    /// Nonces that were sent and not answered, and whether a refusal is due.
    open: BTreeMap<String, bool>,
}

impl Server {
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

    fn send(&mut self, names: &BTreeSet<String>, removed: &[String]) {
        self.next += 1;
        let nonce = self.next.to_string();
        let bad = |name: &String| self.things[name].1 != Quality::Good;
        self.open.insert(nonce.clone(), names.iter().any(bad));
        let mut resources = Vec::new();
        for name in names {
            let (version, quality) = self.things[name];
            self.sent.insert(name.clone(), version);
            resources.push(resource(
                name,
                &version.to_string(),
                &Self::value(version, quality),
            ));
        }
        for name in removed {
            self.sent.remove(name);
        }
        let removed: Vec<&str> = removed.iter().map(String::as_str).collect();
        self.responses
            .push_back(response(&nonce, resources, &removed));
    }

    fn send_world(&mut self) {
        self.next += 1;
        let nonce = self.next.to_string();
        let visible = self.visible();
        let bad = visible
            .values()
            .any(|(_, quality)| *quality != Quality::Good);
        self.open.insert(nonce.clone(), bad);
        let resources = visible.iter();
        let resources = resources.map(|(name, (v, q))| packed(URL, name, &Self::value(*v, *q)));
        self.responses
            .push_back(Incoming::StateOfTheWorld(DiscoveryResponse {
                version_info: nonce.clone(),
                resources: resources.collect(),
                type_url: URL.to_owned(),
                nonce,
                ..DiscoveryResponse::default()
            }));
    }

    /// Sends what this client does not have in its newest version.
    fn push(&mut self) {
        if !self.started {
            return;
        }
        if !self.delta {
            self.send_world();
            return;
        }
        let visible = self.visible();
        let news = visible.iter();
        let news = news.filter(|(name, (version, _))| self.sent.get(*name) != Some(version));
        let news: BTreeSet<String> = news.map(|(name, _)| name.clone()).collect();
        let gone = self
            .sent
            .keys()
            .filter(|name| !self.things.contains_key(*name));
        let gone: Vec<String> = gone.cloned().collect();
        if !news.is_empty() || !gone.is_empty() {
            self.send(&news, &gone);
        }
    }

    fn answered(&mut self, nonce: &str, refused: bool) {
        if nonce.is_empty() {
            return;
        }
        let due = self.open.remove(nonce);
        assert_eq!(due, Some(refused), "nonce {nonce} is answered once, and so");
    }

    /// Takes a request; `Err` ends the stream.
    fn request(&mut self, request: Outgoing) -> Result<(), ErrorKind> {
        match request {
            Outgoing::Delta(_) if !self.delta => return Err(ErrorKind::Unimplemented),
            Outgoing::Delta(request) => {
                self.answered(&request.response_nonce, request.error_detail.is_some());
                let subscribe: BTreeSet<_> = request.resource_names_subscribe.into_iter().collect();
                // As istiod does it: a subscription that it has is not answered, and of a name in both lists it goes.
                let is_new = !subscribe.is_subset(&self.subscribed);
                self.subscribed.extend(subscribe.iter().cloned());
                for name in &request.resource_names_unsubscribe {
                    self.subscribed.remove(name);
                }
                let mut gone: Vec<String> = subscribe.iter().cloned().collect();
                gone.retain(|name| !self.things.contains_key(name));
                if !self.started {
                    assert!(request.node.is_some());
                    let versions = request.initial_resource_versions;
                    if self.refuses_versions && !versions.is_empty() {
                        return Err(ErrorKind::ResourceExhausted);
                    }
                    self.started = true;
                    self.wildcard = subscribe.is_empty();
                    self.sent = BTreeMap::new();
                    for (name, version) in versions {
                        if !self.things.contains_key(&name) && !gone.contains(&name) {
                            gone.push(name.clone());
                        }
                        self.sent.insert(name, version.parse().unwrap_or_default());
                    }
                    let visible = self.visible();
                    let news = visible
                        .into_iter()
                        .filter(|(name, (v, _))| self.sent.get(name) != Some(v));
                    let news = news.map(|(name, _)| name).collect();
                    self.send(&news, &gone);
                } else if is_new {
                    let visible = self.visible();
                    let of = |name: &String| {
                        let service = name.split('/').next().unwrap_or(name);
                        subscribe.contains(service)
                    };
                    let news = visible.into_keys().filter(of).collect();
                    self.send(&news, &gone);
                }
            }
            Outgoing::StateOfTheWorld(_) if self.delta => return Err(ErrorKind::Unimplemented),
            Outgoing::StateOfTheWorld(request) => {
                let names: BTreeSet<_> = request.resource_names.into_iter().collect();
                let changed = !self.started || names != self.subscribed;
                // A change of names repeats the last nonce.
                if !changed || self.open.contains_key(&request.response_nonce) {
                    self.answered(&request.response_nonce, request.error_detail.is_some());
                }
                self.wildcard = names.is_empty();
                self.subscribed = names;
                self.started = true;
                if changed {
                    self.send_world();
                }
            }
        }
        Ok(())
    }

    fn forget_client(&mut self) {
        self.started = false;
        self.subscribed.clear();
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
    /// What is in effect, by name.
    applied: BTreeMap<String, String>,
    /// What stands refused, as the caller is told.
    refused: BTreeSet<String>,
    wanted: BTreeSet<usize>,
}

impl World {
    fn new(interest: Interest) -> Self {
        let (session, now) = session(settings(&[(URL, interest)]));
        let server = Server {
            things: BTreeMap::new(),
            next: 0,
            delta: true,
            refuses_versions: false,
            started: false,
            wildcard: false,
            subscribed: BTreeSet::new(),
            sent: BTreeMap::new(),
            responses: VecDeque::new(),
            open: BTreeMap::new(),
        };
        Self {
            server,
            session,
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
                self.applied.remove(&Texts.name(&removed));
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
            self.applied.remove(&Texts.name(&removed));
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
                    .insert(Texts.name(&name), workload.name().to_owned());
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
        for name in self.session.take_mended().iter().flat_map(|m| &m.names) {
            assert!(self.refused.remove(&**name), "{name} stood not refused");
        }
        let refused = self.session.take_refused().into_iter();
        let names = refused.flat_map(|refused| refused.resources);
        self.refused.extend(names.map(|(name, _)| name));
    }

    fn act(&mut self, action: Action) {
        let names = all_names();
        match action {
            Action::Change(n, quality) => {
                self.server.next += 1;
                let version = self.server.next;
                self.server
                    .things
                    .insert(names[n].clone(), (version, quality));
            }
            Action::Remove(n) => drop(self.server.things.remove(&names[n])),
            Action::Push => self.server.push(),
            Action::Take => self.take(),
            Action::Judge => self.judge(),
            Action::Want(n) => {
                self.wanted.insert(n);
                self.session.want(URL, &format!("svc-{n}")).expect("a name");
            }
            Action::Forget(n) => {
                self.wanted.remove(&n);
                let name = format!("svc-{n}");
                self.session.forget(URL, &name, self.now).expect("a type");
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
        for (n, name) in all_names().into_iter().enumerate() {
            if self
                .server
                .things
                .get(&name)
                .is_some_and(|(_, q)| *q != Quality::Good)
            {
                self.act(Action::Change(n, Quality::Good));
            }
        }
        for _ in 0..20 {
            self.act(Action::Push);
            while self.judging.is_some() || !self.server.responses.is_empty() {
                self.act(Action::Judge);
                self.act(Action::Take);
            }
            self.act(Action::Wait(30_000));
        }
        assert!(self.server.open.is_empty(), "every response is answered");
    }
}

/// What a client is sent that has never been here.
fn fresh(world: &World, interest: Interest) -> BTreeMap<String, String> {
    let things = world.server.things.iter().filter(|(name, _)| {
        let service = name.split('/').next().unwrap_or(name);
        interest == Interest::All || world.wanted.iter().any(|n| service == format!("svc-{n}"))
    });
    things
        .map(|(name, (version, _))| (name.clone(), version.to_string()))
        .collect()
}

fn converges(interest: Interest, actions: Vec<Action>) {
    let mut world = World::new(interest);
    world.turn();
    let mut seen: BTreeSet<(String, String)> = BTreeSet::new();
    for action in actions {
        world.act(action);
        let things = world.server.things.iter();
        seen.extend(things.map(|(name, (version, _))| (name.clone(), version.to_string())));
        for (name, value) in &world.applied {
            assert!(
                seen.contains(&(name.clone(), value.clone())),
                "{name}={value} never was"
            );
        }
    }
    world.settle();
    assert_eq!(world.applied, fresh(&world, interest));
    assert!(world.refused.is_empty(), "{:?} is good", world.refused);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn everything_converges(actions in actions()) {
        converges(Interest::All, actions);
    }

    #[test]
    fn what_is_wanted_converges(actions in actions()) {
        converges(Interest::Named, actions);
    }
}
