//! One client's stream: what it asked for, what it has been sent and what it said to it. No I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::status::{Refusal, Subscription};
use super::store::{Kind, Store, Table};
use crate::proto::envoy::config::core::v3::ControlPlane;
use crate::proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use crate::proto::google::protobuf::Any;
use crate::proto::type_url;

/// Types that a client may ask for on one stream.
const MAX_TYPES: usize = 16;

/// What a refusal of a client says is kept up to here.
const MAX_REFUSAL: usize = 4096;

/// Why a stream ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// A request that cannot be meant.
    Invalid(String),
    /// More names than the settings allow.
    TooManyNames(usize),
    /// It has not read for so long that what is gone since is forgotten.
    Behind,
}

#[derive(Debug)]
pub(super) struct Session {
    /// In the order in which they are pushed.
    types: Vec<Type>,
    nonce: u64,
    max_names: usize,
}

impl Session {
    pub(super) fn new(max_names: usize) -> Self {
        Self {
            types: Vec::new(),
            nonce: 0,
            max_names,
        }
    }

    pub(super) fn subscriptions(&self) -> Vec<Subscription> {
        self.types.iter().map(|one| one.status.clone()).collect()
    }

    /// Takes a request of the delta protocol.
    pub(super) fn request(
        &mut self,
        request: DeltaDiscoveryRequest,
        store: &Store,
    ) -> Result<(), End> {
        let max_names = self.max_names;
        let (one, first) = self.of(&request.type_url)?;
        let error = request.error_detail.map(|status| status.message);
        one.answered(&request.response_nonce, error);
        if first {
            one.wildcard = request.resource_names_subscribe.is_empty();
            one.ask.all = one.wildcard;
            one.ask.owed = true;
            one.ask.known = request.initial_resource_versions.into_iter().collect();
            one.seen = store.revision();
        }
        one.subscribe(request.resource_names_subscribe, first);
        one.unsubscribe(&request.resource_names_unsubscribe, first);
        one.check(max_names)
    }

    /// Takes a request of the state of the world: its names are all that is asked for; none are everything.
    pub(super) fn world_request(&mut self, request: DiscoveryRequest) -> Result<(), End> {
        let max_names = self.max_names;
        let (one, first) = self.of(&request.type_url)?;
        let error = request.error_detail.map(|status| status.message);
        one.answered(&request.response_nonce, error);
        let mut names: BTreeSet<String> = request.resource_names.into_iter().collect();
        let star = names.remove("*");
        // No names at all is everything for who has never named any.
        let wildcard = star || (names.is_empty() && (first || one.wildcard));
        if first || names != one.names || wildcard != one.wildcard {
            one.ask.owed = true;
            one.wildcard = wildcard;
            one.names = names;
        }
        one.check(max_names)
    }

    fn of(&mut self, url: &str) -> Result<(&mut Type, bool), End> {
        if url.is_empty() {
            return Err(End::Invalid("type_url: empty, expected a type".to_owned()));
        }
        let found = self.types.iter().position(|one| one.status.type_url == url);
        let (at, first) = match found {
            Some(at) => (at, false),
            None if self.types.len() == MAX_TYPES => {
                let text = format!("type_url: {url}, expected at most {MAX_TYPES} types");
                return Err(End::Invalid(text));
            }
            None => {
                let kind = match url {
                    type_url::ADDRESS => Some(Kind::Address),
                    type_url::AUTHORIZATION => Some(Kind::Authorization),
                    _ => None,
                };
                let last = self.types.len();
                let at = self
                    .types
                    .iter()
                    .position(|one| one.kind > kind)
                    .unwrap_or(last);
                self.types.insert(at, Type::new(url, kind));
                (at, true)
            }
        };
        Ok((&mut self.types[at], first))
    }

    /// What to send next, if anything. Of a type one response is on its way until it is answered; what
    /// changes meanwhile comes with the next.
    pub(super) fn poll(&mut self, store: &Store) -> Result<Option<DeltaDiscoveryResponse>, End> {
        for one in self
            .types
            .iter_mut()
            .filter(|one| one.outstanding.is_none())
        {
            let Some(push) = one.push(store)? else {
                continue;
            };
            self.nonce += 1;
            let nonce = self.nonce.to_string();
            one.sent(&nonce, store.revision());
            return Ok(Some(DeltaDiscoveryResponse {
                system_version_info: store.revision().to_string(),
                resources: push.resources,
                type_url: one.status.type_url.clone(),
                nonce,
                removed_resources: push.removed.into_iter().collect(),
                control_plane: Some(control_plane()),
                ..DeltaDiscoveryResponse::default()
            }));
        }
        Ok(None)
    }

    /// The same for the state of the world: all that is asked for, if some of it changed.
    pub(super) fn world_poll(&mut self, store: &Store) -> Option<DiscoveryResponse> {
        for one in self
            .types
            .iter_mut()
            .filter(|one| one.outstanding.is_none())
        {
            let Some(resources) = one.world(store) else {
                continue;
            };
            self.nonce += 1;
            let nonce = self.nonce.to_string();
            one.sent(&nonce, store.revision());
            return Some(DiscoveryResponse {
                version_info: store.revision().to_string(),
                resources,
                type_url: one.status.type_url.clone(),
                nonce,
                control_plane: Some(control_plane()),
                ..DiscoveryResponse::default()
            });
        }
        None
    }
}

fn control_plane() -> ControlPlane {
    ControlPlane {
        identifier: concat!("mesh-xds/", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

/// What is owed to the client.
#[derive(Debug, Default)]
struct Ask {
    /// A response, even an empty one.
    owed: bool,
    all: bool,
    names: BTreeSet<String>,
    /// Names were taken back: what came with them is taken away, as no other name could tell the client
    /// that it is no more.
    fewer: bool,
    /// What a client that comes back has, by name and version.
    known: BTreeMap<String, String>,
}

/// What a client asked for of one type.
#[derive(Debug)]
struct Type {
    kind: Option<Kind>,
    wildcard: bool,
    names: BTreeSet<String>,
    /// What a client that asks by name has. Of everything, it has all up to `seen`.
    has: HashMap<Arc<str>, Arc<str>>,
    seen: u64,
    ask: Ask,
    outstanding: Option<String>,
    status: Subscription,
}

struct Push {
    resources: Vec<Resource>,
    removed: BTreeSet<String>,
}

impl Type {
    fn new(url: &str, kind: Option<Kind>) -> Self {
        Self {
            kind,
            wildcard: false,
            names: BTreeSet::new(),
            has: HashMap::new(),
            seen: 0,
            ask: Ask::default(),
            outstanding: None,
            status: Subscription::new(url),
        }
    }

    /// An answer to anything but the last response is too late to say anything.
    fn answered(&mut self, nonce: &str, error: Option<String>) {
        if nonce.is_empty() || self.outstanding.as_deref() != Some(nonce) {
            return;
        }
        self.outstanding = None;
        let version = self.status.sent.take().unwrap_or_default();
        match error {
            None => {
                self.status.acknowledged = Some(version);
                self.status.refusal = None;
            }
            Some(mut text) => {
                let end = (0..=MAX_REFUSAL.min(text.len())).rev();
                let end = end.into_iter().find(|at| text.is_char_boundary(*at));
                text.truncate(end.unwrap_or_default());
                self.status.refusal = Some(Refusal::new(version, text));
            }
        }
    }

    fn subscribe(&mut self, names: Vec<String>, first: bool) {
        for name in names {
            if name == "*" {
                if !self.wildcard {
                    self.wildcard = true;
                    self.ask.all = true;
                    self.ask.owed = true;
                    if !first {
                        let has = self.has.drain();
                        let has =
                            has.map(|(name, version)| (name.to_string(), version.to_string()));
                        self.ask.known.extend(has);
                    }
                }
                continue;
            }
            self.ask.owed = true;
            self.ask.names.insert(name.clone());
            self.names.insert(name);
        }
    }

    /// Comes after [`subscribe`](Self::subscribe): `*` in both of a first request is how clients ask for nothing yet.
    fn unsubscribe(&mut self, names: &[String], first: bool) {
        for name in names {
            if name == "*" {
                if self.wildcard && !first {
                    // It has some state of everything; what it named it is told anew.
                    self.ask.names = self.names.clone();
                    self.ask.owed = true;
                }
                self.wildcard = false;
                self.ask.all = false;
            }
            self.names.remove(name);
            self.ask.names.remove(name);
        }
        self.ask.fewer |= !names.is_empty();
    }

    fn check(&mut self, max_names: usize) -> Result<(), End> {
        self.status.everything = self.wildcard;
        self.status.names = self.names.len();
        if self.names.len() > max_names {
            return Err(End::TooManyNames(max_names));
        }
        Ok(())
    }

    fn sent(&mut self, nonce: &str, revision: u64) {
        self.outstanding = Some(nonce.to_owned());
        self.status.sent = Some(revision.to_string());
        self.status.responses += 1;
    }

    fn push(&mut self, store: &Store) -> Result<Option<Push>, End> {
        let ask = std::mem::take(&mut self.ask);
        let Some(kind) = self.kind else {
            // A type that the model does not fill: none of these exist.
            let push = Push {
                resources: Vec::new(),
                removed: ask.names,
            };
            return Ok(ask.owed.then_some(push));
        };
        if self.seen == store.revision() && !ask.owed && !ask.fewer {
            return Ok(None);
        }
        let table = store.table(kind);
        let mut send = BTreeSet::new();
        let mut removed = BTreeSet::new();
        let known = |name: &str| ask.known.get(name).map(String::as_str);
        for name in &ask.names {
            let found = table.resolve(name);
            if found.is_empty() {
                removed.insert(name.clone());
            }
            // Who comes back and has it need not be sent it again.
            send.extend(found.into_iter().filter(|name| {
                let version = table.get(name).map(|(_, one)| &*one.version);
                version != known(name)
            }));
        }
        for (name, version) in &ask.known {
            match table.get(name) {
                Some((name, one)) => {
                    if *one.version != **version {
                        send.insert(Arc::clone(name));
                    } else if !self.wildcard {
                        self.has.insert(Arc::clone(name), Arc::clone(&one.version));
                    }
                }
                None if !table.is_known(name) => _ = removed.insert(name.clone()),
                None => {}
            }
        }
        if ask.all {
            let all = table
                .iter()
                .filter(|(name, one)| known(name) != Some(&*one.version));
            send.extend(all.map(|(name, _)| Arc::clone(name)));
        } else if self.wildcard {
            let changed = table.changed_after(self.seen).ok_or(End::Behind)?;
            for name in changed {
                match table.get(name) {
                    Some((name, _)) => _ = send.insert(Arc::clone(name)),
                    None => _ = removed.insert(name.to_string()),
                }
            }
        } else {
            self.changes(table, &mut send, &mut removed)?;
        }
        if ask.fewer && !self.wildcard {
            self.drop_unwanted(table, &mut removed);
            send.retain(|name| !removed.contains(&**name));
        }
        self.seen = store.revision();
        if send.is_empty() && removed.is_empty() && !ask.owed {
            return Ok(None);
        }
        let resources = send.iter().filter_map(|name| table.get(name));
        let resources: Vec<_> = resources
            .map(|(name, one)| {
                if !self.wildcard {
                    self.has.insert(Arc::clone(name), Arc::clone(&one.version));
                }
                Resource {
                    name: name.to_string(),
                    version: one.version.to_string(),
                    resource: Some(Any {
                        type_url: self.status.type_url.clone(),
                        value: one.value.clone(),
                    }),
                    // As istiod: who asks for everything knows them from the resource.
                    aliases: if self.wildcard {
                        Vec::new()
                    } else {
                        one.aliases.clone()
                    },
                    ..Resource::default()
                }
            })
            .collect();
        Ok(Some(Push { resources, removed }))
    }

    /// Takes away what a client has and its names no longer stand for.
    fn drop_unwanted(&mut self, table: &Table, removed: &mut BTreeSet<String>) {
        let wanted: BTreeSet<_> = self.names.iter().flat_map(|n| table.resolve(n)).collect();
        self.has.retain(|name, _| {
            let stays = wanted.contains(name);
            if !stays {
                removed.insert(name.to_string());
            }
            stays
        });
    }

    /// What changed of that which a client that asks by name wants or has.
    fn changes(
        &mut self,
        table: &Table,
        send: &mut BTreeSet<Arc<str>>,
        removed: &mut BTreeSet<String>,
    ) -> Result<(), End> {
        if self.names.is_empty() && self.has.is_empty() {
            return Ok(());
        }
        let mut lost = false;
        // Services first: their workloads are wanted with them.
        let changed: Vec<_> = table.changed_after(self.seen).ok_or(End::Behind)?.collect();
        let mut services = BTreeSet::new();
        for name in &changed {
            let Some((name, one)) = table.get(name) else {
                if self.has.remove(*name).is_some() {
                    removed.insert(name.to_string());
                    lost = true;
                }
                continue;
            };
            let wanted = self.has.contains_key(name)
                || self.names.contains(&**name)
                || one.aliases.iter().any(|alias| self.names.contains(alias));
            if wanted {
                send.insert(Arc::clone(name));
                services.insert(Arc::clone(name));
            }
        }
        for service in &services {
            let new = table
                .endpoints(service)
                .filter(|name| !self.has.contains_key(*name));
            send.extend(new.cloned());
        }
        for name in changed {
            let Some((name, one)) = table.get(name) else {
                continue;
            };
            let mut of = one.services().iter();
            let wanted = |service: &String| {
                let named = self.names.contains(service);
                (named || self.has.contains_key(service.as_str())) && table.is_known(service)
            };
            if of.any(wanted) {
                send.insert(Arc::clone(name));
            }
        }
        // An alias whose last resource is gone stands for nothing now.
        if lost || !services.is_empty() {
            let gone = self
                .names
                .iter()
                .filter(|name| lost && !table.is_known(name));
            removed.extend(gone.cloned());
        }
        Ok(())
    }

    fn world(&mut self, store: &Store) -> Option<Vec<Any>> {
        let owed = std::mem::take(&mut self.ask).owed;
        let Some(kind) = self.kind else {
            return owed.then(Vec::new);
        };
        if self.seen == store.revision() && !owed {
            return None;
        }
        let table = store.table(kind);
        let now: HashMap<Arc<str>, Arc<str>> = if self.wildcard {
            let all = table.iter();
            all.map(|(name, one)| (Arc::clone(name), Arc::clone(&one.version)))
                .collect()
        } else {
            let names = self.names.iter().flat_map(|name| table.resolve(name));
            let found = names.filter_map(|name| {
                let version = Arc::clone(&table.get(&name)?.1.version);
                Some((name, version))
            });
            found.collect()
        };
        self.seen = store.revision();
        if now == self.has && !owed {
            return None;
        }
        let mut names: Vec<_> = now.keys().collect();
        names.sort();
        let resources = names.into_iter().filter_map(|name| table.get(name));
        let resources = resources.map(|(_, one)| Any {
            type_url: self.status.type_url.clone(),
            value: one.value.clone(),
        });
        let resources = resources.collect();
        self.has = now;
        Some(resources)
    }
}
