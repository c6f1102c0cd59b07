//! What a client asked for of one type, what it has of it and what it is owed.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::outgoing::Encoded;
use super::session::End;
use super::status::{Refusal, Subscription};
use super::store::{Kind, Owner, Store, Table, is_by_list, version};
use crate::model::InboundListener;

/// What a refusal of a client says is kept up to here.
const MAX_REFUSAL: usize = 4096;

/// Where the resources of a type come from.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// The model does not fill the type: none of its resources exist.
    Nothing,
    /// Inbound listeners of whoever this is.
    Listeners(Owner),
    Table(Kind),
}

impl Source {
    /// The order in which types are pushed.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Nothing => 0,
            Self::Listeners(_) => 1,
            Self::Table(Kind::Authorization) => 2,
            Self::Table(Kind::Address) => 3,
        }
    }
}

/// What is owed to the client.
#[derive(Debug, Default)]
pub(super) struct Ask {
    /// A response, even an empty one.
    pub(super) owed: bool,
    pub(super) all: bool,
    names: BTreeSet<String>,
    /// Names were taken back: what came with them is taken away, as no other name could tell the client
    /// that it is no more.
    fewer: bool,
    /// What a client that comes back has, by name and version.
    pub(super) known: BTreeMap<String, String>,
}

/// What a client asked for of one type.
#[derive(Debug)]
pub(super) struct Type {
    pub(super) source: Source,
    pub(super) wildcard: bool,
    pub(super) names: BTreeSet<String>,
    /// Bytes of them.
    pub(super) size: usize,
    /// Listeners: the names by the addresses in them.
    by_ip: HashMap<IpAddr, BTreeSet<String>>,
    /// What a client that asks by name has. Of everything, it has all up to `seen`.
    has: HashMap<Arc<str>, Arc<str>>,
    /// What of it its names may stand for no more: it goes when the next name is taken back.
    loose: HashSet<Arc<str>>,
    /// The names that a client which asks by name has something by, other than its own.
    known_as: HashMap<Arc<str>, Vec<String>>,
    pub(super) seen: u64,
    pub(super) ask: Ask,
    /// Hosts that the client has from a server before this one, or listeners of them, that may come back.
    awaited: BTreeSet<String>,
    /// Policies that are gone, or bind less by themselves, since a revision; the client is told once it
    /// knows which workloads list them.
    held: BTreeMap<String, u64>,
    /// Policies that the client has and that bind, as far as is known, who does not list them.
    wide: HashSet<Arc<str>>,
    /// State of the world: what the client has.
    world: BTreeMap<Arc<str>, Had>,
    /// State of the world: whether the client was left policies that are no more.
    pub(super) unsettled: bool,
    pub(super) outstanding: Option<String>,
    pub(super) status: Subscription,
}

pub(super) struct Push {
    pub(super) resources: Vec<Arc<Encoded>>,
    pub(super) removed: BTreeSet<String>,
}

impl Type {
    pub(super) fn new(url: &str, source: Source) -> Self {
        Self {
            source,
            wildcard: false,
            names: BTreeSet::new(),
            size: 0,
            by_ip: HashMap::new(),
            has: HashMap::new(),
            loose: HashSet::new(),
            known_as: HashMap::new(),
            seen: 0,
            ask: Ask::default(),
            awaited: BTreeSet::new(),
            held: BTreeMap::new(),
            wide: HashSet::new(),
            world: BTreeMap::new(),
            unsettled: false,
            outstanding: None,
            status: Subscription::new(url),
        }
    }

    /// An answer to anything but the last response is too late to say anything.
    pub(super) fn answered(&mut self, nonce: &str, error: Option<String>) {
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

    pub(super) fn subscribe(&mut self, names: Vec<String>, first: bool) {
        for name in names {
            if name == "*" {
                if !self.wildcard {
                    self.wildcard = true;
                    self.ask.all = true;
                    self.ask.owed = true;
                    self.loose.clear();
                    self.known_as.clear();
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
            self.name(name);
        }
    }

    fn name(&mut self, name: String) {
        let length = name.len();
        if matches!(self.source, Source::Listeners(_))
            && let Some(address) = InboundListener::address_in(&name)
        {
            let names = self.by_ip.entry(address.ip()).or_default();
            names.insert(name.clone());
        }
        if self.names.insert(name) {
            self.size += length;
        }
    }

    /// State of the world: these are all names.
    pub(super) fn rename(&mut self, names: BTreeSet<String>) {
        self.by_ip.clear();
        self.names.clear();
        self.size = 0;
        names.into_iter().for_each(|name| self.name(name));
    }

    /// Comes after [`subscribe`](Self::subscribe): `*` in both of a first request is how clients ask for nothing yet.
    pub(super) fn unsubscribe(&mut self, names: &[String], first: bool, store: &Store) {
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
            if self.names.remove(name) {
                self.size -= name.len();
                if let Source::Table(kind) = self.source {
                    let came = store.table(kind).resolve(name).into_iter();
                    let has = came.filter(|name| self.has.contains_key(name));
                    self.loose.extend(has);
                }
            }
            if let Some(address) = InboundListener::address_in(name)
                && let Entry::Occupied(mut names) = self.by_ip.entry(address.ip())
            {
                names.get_mut().remove(name);
                if names.get().is_empty() {
                    names.remove();
                }
            }
            self.ask.names.remove(name);
        }
        self.ask.fewer |= !first && !names.is_empty();
    }

    /// Whether there are new or changed policies that have to wait until the last ones are answered.
    pub(super) fn lags(&self, store: &Store) -> bool {
        if self.outstanding.is_none() {
            return false;
        }
        let table = store.table(Kind::Authorization);
        let mut changed = table.changed_after(self.seen).into_iter().flatten();
        self.ask.owed || changed.any(|name| table.get(name).is_some())
    }

    pub(super) fn sent(&mut self, nonce: &str, revision: u64) {
        self.outstanding = Some(nonce.to_owned());
        self.status.sent = Some(revision.to_string());
        self.status.responses += 1;
    }

    pub(super) fn awaits(&self) -> bool {
        !self.awaited.is_empty()
    }

    pub(super) fn is_of(&self, kind: Kind) -> bool {
        matches!(self.source, Source::Table(found) if found == kind)
    }

    pub(super) fn push(&mut self, store: &Store) -> Result<Option<Push>, End> {
        let ask = std::mem::take(&mut self.ask);
        let kind = match self.source.clone() {
            Source::Table(kind) => kind,
            Source::Nothing => {
                let push = Push {
                    resources: Vec::new(),
                    removed: ask.names,
                };
                return Ok(ask.owed.then_some(push));
            }
            Source::Listeners(owner) => return Ok(self.push_listeners(&ask, &owner, store)),
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
            if found.is_empty() && !(ask.known.contains_key(name) && store.may_return(name)) {
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
                    }
                    if !self.wildcard {
                        self.hold_of(name, one);
                        if !self.wants(table, name) {
                            self.loose.insert(Arc::clone(name));
                        }
                    }
                }
                None if store.may_return(name) => _ = self.awaited.insert(name.clone()),
                None if !table.is_known(name) => _ = removed.insert(name.clone()),
                None => {}
            }
        }
        self.awaited.retain(|name| table.get(name).is_none());
        if !store.is_waiting() {
            let awaited = std::mem::take(&mut self.awaited).into_iter();
            removed.extend(awaited.filter(|name| table.get(name).is_none()));
        }
        // All that changed after a revision, in the place of names: of a whole mesh a search for each takes long.
        let mut swept = None;
        let may_sweep = self.wildcard && kind == Kind::Address;
        if ask.all && may_sweep && ask.known.is_empty() {
            swept = Some(0);
        } else if ask.all {
            let all = table
                .iter()
                .filter(|(name, one)| known(name) != Some(&*one.version));
            let all = all.map(|(name, _)| Arc::clone(name));
            match send.is_empty() {
                // They are in order: as a whole the set is made without a search for each.
                true => send = all.collect(),
                false => send.extend(all),
            }
        } else if self.wildcard {
            let changed = table.changed_after(self.seen).ok_or(End::Behind)?;
            let is_sooner_swept = table.is_sooner_swept(self.seen, store.revision());
            if may_sweep && send.is_empty() && is_sooner_swept {
                swept = Some(self.seen);
                let gone = table.gone_after(self.seen);
                removed.extend(gone.map(ToString::to_string));
            } else {
                for name in changed {
                    match table.get(name) {
                        Some((name, _)) => _ = send.insert(Arc::clone(name)),
                        None => _ = removed.insert(name.to_string()),
                    }
                }
            }
        } else {
            self.changes(table, &mut send, &mut removed)?;
        }
        if ask.fewer && !self.wildcard {
            self.drop_unwanted(table, &mut send, &mut removed);
            send.retain(|name| !removed.contains(&**name));
        }
        self.seen = store.revision();
        if kind == Kind::Authorization {
            self.hold(table, &ask, &mut send, &mut removed);
        }
        let resources = match swept {
            Some(since) => {
                let swept: Vec<_> = table.sweep(since).map(|one| &one.encoded).collect();
                shared(&swept)
            }
            None => self.resources(kind, table, &send),
        };
        let empty = resources.is_empty() && removed.is_empty();
        Ok((!empty || ask.owed).then_some(Push { resources, removed }))
    }

    fn resources(
        &mut self,
        kind: Kind,
        table: &Table,
        send: &BTreeSet<Arc<str>>,
    ) -> Vec<Arc<Encoded>> {
        // As all of a table are sent, none is looked for.
        let is_whole = send.len() == table.len();
        let whole = is_whole.then(|| table.iter()).into_iter().flatten();
        let some = (!is_whole).then_some(send).into_iter().flatten();
        let resources = whole.chain(some.filter_map(|name| table.get(name)));
        resources
            .map(|(name, one)| {
                if !self.wildcard {
                    self.hold_of(name, one);
                }
                if kind == Kind::Authorization && !one.by_list {
                    self.wide.insert(Arc::clone(name));
                } else if kind == Kind::Authorization {
                    self.wide.remove(name);
                }
                Arc::clone(&one.encoded)
            })
            .collect()
    }

    /// Keeps back policies that are gone, but for answers to what was asked, and those that may bind less
    /// by themselves than what the client has.
    fn hold(
        &mut self,
        table: &Table,
        ask: &Ask,
        send: &mut BTreeSet<Arc<str>>,
        removed: &mut BTreeSet<String>,
    ) {
        let since = self.seen;
        removed.retain(|name| {
            let gone = table.get(name).is_none() && !ask.names.contains(name);
            if gone {
                self.held.insert(name.clone(), since);
            }
            !gone
        });
        // Of what it has already nothing but versions is known.
        let known = ask.known.iter();
        let wide = known.filter(|(_, version)| !is_by_list(version));
        self.wide.extend(wide.map(|(name, _)| name.as_str().into()));
        send.retain(|name| {
            let by_list = table.get(name).is_some_and(|(_, one)| one.by_list);
            let later = by_list && self.wide.contains(name) && !ask.names.contains(&**name);
            if later {
                self.held.insert(name.to_string(), since);
            } else {
                self.held.remove(&**name);
            }
            !later
        });
    }

    /// What was kept back up to a revision.
    pub(super) fn push_held(&mut self, listed: u64, store: &Store) -> Option<Push> {
        let kind = Kind::Authorization;
        let table = store.table(kind);
        let due = self.held.iter().filter(|(_, since)| **since <= listed);
        let due: Vec<String> = due.map(|(name, _)| name.clone()).collect();
        if due.is_empty() {
            return None;
        }
        let mut send = BTreeSet::new();
        let mut removed = BTreeSet::new();
        for name in due {
            self.held.remove(&name);
            match table.get(&name) {
                Some((name, _)) => _ = send.insert(Arc::clone(name)),
                None => {
                    self.wide.remove(&*name);
                    removed.insert(name);
                }
            }
        }
        let resources = self.resources(kind, table, &send);
        Some(Push { resources, removed })
    }

    /// Listeners are asked for by name: nobody is told of those that it has not named.
    fn push_listeners(&mut self, ask: &Ask, owner: &Owner, store: &Store) -> Option<Push> {
        if self.seen == store.revision() && !ask.owed && !ask.fewer {
            return None;
        }
        let mut push = Push {
            resources: Vec::new(),
            removed: BTreeSet::new(),
        };
        for (name, version) in &ask.known {
            self.has
                .insert(name.as_str().into(), version.as_str().into());
            self.awaited.insert(name.clone());
        }
        self.awaited.retain(|name| self.names.contains(name));
        self.has.retain(|name, _| {
            let wanted = self.names.contains(&**name);
            if !wanted {
                push.removed.insert(name.to_string());
            }
            wanted
        });
        for name in &self.concerned(ask, store) {
            let asked = ask.names.contains(name);
            let ip = InboundListener::address_in(name).map(|address| address.ip());
            let changed = ip.is_some_and(|ip| store.listener_changed(ip, self.seen));
            if !asked && !changed {
                continue;
            }
            let Some(value) = store.listener(name, owner) else {
                // That of a host which is still to come back stays with who has it.
                if self.awaited.contains(name) && ip.is_some_and(|ip| store.may_come(ip)) {
                    continue;
                }
                self.awaited.remove(name);
                if self.has.remove(&**name).is_some() || asked {
                    push.removed.insert(name.clone());
                }
                continue;
            };
            self.awaited.remove(name);
            let version = version(&value);
            // Who asks anew has it no more, unless it says so.
            let anew = asked && !ask.known.contains_key(name);
            if !anew && self.has.get(&**name) == Some(&version) {
                continue;
            }
            let encoded = Encoded::new(&self.status.type_url, name, &version, &value, &[]);
            push.resources.push(Arc::new(encoded));
            self.has.insert(name.as_str().into(), version);
        }
        self.seen = store.revision();
        let empty = push.resources.is_empty() && push.removed.is_empty();
        (!empty || ask.owed).then_some(push)
    }

    /// The names of listeners that may have become others, which few of many names are: those that are asked for,
    /// here or awaited, and those of workloads that changed.
    fn concerned(&self, ask: &Ask, store: &Store) -> BTreeSet<String> {
        let Some(changed) = store.table(Kind::Address).changed_after(self.seen) else {
            return self.names.clone();
        };
        let changed = changed.flat_map(|uid| store.addresses_of(uid));
        let changed = changed.filter_map(|ip| self.by_ip.get(&ip.to_canonical()));
        let has = self.has.keys().map(|name| name.to_string());
        let mut names: BTreeSet<String> = changed.flatten().cloned().chain(has).collect();
        names.extend(ask.names.union(&self.awaited).cloned());
        names.retain(|name| self.names.contains(name));
        names
    }

    /// The client has it, under the names that it asked for it by.
    fn hold_of(&mut self, name: &Arc<str>, one: &super::store::Resource) {
        self.has.insert(Arc::clone(name), Arc::clone(&one.version));
        let aliases = one.aliases.iter();
        let aliases: Vec<_> = aliases
            .filter(|alias| self.names.contains(*alias))
            .cloned()
            .collect();
        if aliases.is_empty() {
            self.known_as.remove(name);
        } else {
            self.known_as.insert(Arc::clone(name), aliases);
        }
    }

    /// Whether some of its names stands for a resource.
    fn wants(&self, table: &Table, name: &str) -> bool {
        let named = |name: &str| {
            let Some((name, one)) = table.get(name) else {
                return false;
            };
            let mut aliases = one.aliases.iter();
            self.names.contains(&**name) || aliases.any(|alias| self.names.contains(alias))
        };
        let services = table.get(name).map(|(_, one)| one.services());
        named(name) || services.into_iter().flatten().any(|of| named(of))
    }

    /// What its names may stand for no more, because a resource is another one now or gone.
    fn loosen(&mut self, table: &Table, name: &Arc<str>) {
        let with = table.endpoints(name).chain([name]);
        let has = with.filter(|name| self.has.contains_key(*name));
        let loose: Vec<_> = has
            .filter(|name| !self.wants(table, name))
            .cloned()
            .collect();
        self.loose.extend(loose);
    }

    /// Takes away what a client has, or was to be sent, and its names no longer stand for, now that some were
    /// taken back.
    fn drop_unwanted(
        &mut self,
        table: &Table,
        send: &mut BTreeSet<Arc<str>>,
        removed: &mut BTreeSet<String>,
    ) {
        let loose = std::mem::take(&mut self.loose);
        let with = loose.iter().flat_map(|name| table.endpoints(name));
        for name in with.chain(&loose) {
            if self.wants(table, name) {
                continue;
            }
            send.remove(name);
            if self.has.remove(name).is_some() {
                self.known_as.remove(name);
                removed.insert(name.to_string());
            }
        }
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
        // An alias whose last resource is gone stands for nothing now.
        let mut aliases = Vec::new();
        // Services first: their workloads are wanted with them.
        let changed: Vec<_> = table.changed_after(self.seen).ok_or(End::Behind)?.collect();
        let mut services = BTreeSet::new();
        for name in &changed {
            self.loosen(table, name);
            let Some((name, one)) = table.get(name) else {
                if self.has.remove(*name).is_some() {
                    self.loose.remove(*name);
                    aliases.extend(self.known_as.remove(*name).into_iter().flatten());
                    removed.insert(name.to_string());
                }
                continue;
            };
            let before = self.known_as.get(name).into_iter().flatten();
            aliases.extend(before.filter(|alias| !one.aliases.contains(alias)).cloned());
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
        let gone = aliases.into_iter();
        removed.extend(gone.filter(|name| self.names.contains(name) && !table.is_known(name)));
        Ok(())
    }

    /// All that is asked for. Of policies, what is no more stays until the client has been sent, up to
    /// `listed`, which workloads list them.
    pub(super) fn world(
        &mut self,
        listed: Option<u64>,
        store: &Store,
    ) -> Option<Vec<Arc<Encoded>>> {
        let owed = std::mem::take(&mut self.ask).owed;
        if !owed && !self.unsettled && !self.is_concerned(store) {
            self.seen = store.revision();
            return None;
        }
        let mut now: BTreeMap<Arc<str>, Had> = match &self.source {
            Source::Nothing => return owed.then(Vec::new),
            Source::Listeners(owner) => {
                let names = self.names.iter();
                let url = &self.status.type_url;
                let found = names.filter_map(|name| {
                    let value = store.listener(name, owner)?;
                    let encoded = Encoded::new(url, name, &version(&value), &value, &[]);
                    let had = Had {
                        encoded: Arc::new(encoded),
                        by_list: false,
                    };
                    Some((name.as_str().into(), had))
                });
                found.collect()
            }
            Source::Table(kind) => self.of_table(store.table(*kind)),
        };
        let table = store.table(Kind::Authorization);
        self.unsettled = false;
        if self.is_of(Kind::Authorization) && listed != Some(store.revision()) {
            for (name, had) in &self.world {
                let one = table.get(name).map(|(_, one)| one);
                if one.is_none_or(|one| one.by_list && !had.by_list) {
                    now.insert(Arc::clone(name), had.clone());
                    self.unsettled = true;
                }
            }
        }
        self.seen = store.revision();
        if now == self.world && !owed {
            return None;
        }
        let resources = now.values().map(|one| Arc::clone(&one.encoded));
        let resources = resources.collect();
        self.world = now;
        Some(resources)
    }

    /// State of the world: whether what has changed may change what it is sent.
    fn is_concerned(&self, store: &Store) -> bool {
        if self.seen == store.revision() {
            return false;
        }
        let kind = match &self.source {
            Source::Nothing => return false,
            Source::Table(kind) => *kind,
            Source::Listeners(_) => Kind::Address,
        };
        let table = store.table(kind);
        let Some(mut changed) = table.changed_after(self.seen) else {
            return true;
        };
        if matches!(self.source, Source::Table(_)) {
            return changed.any(|name| {
                self.wildcard || self.world.contains_key(name) || self.wants(table, name)
            });
        }
        let mut ips = changed.flat_map(|uid| store.addresses_of(uid));
        let has = |name: &Arc<str>| {
            let address = InboundListener::address_in(name);
            address.is_some_and(|at| store.listener_changed(at.ip(), self.seen))
        };
        ips.any(|ip| self.by_ip.contains_key(&ip.to_canonical())) || self.world.keys().any(has)
    }

    fn of_table(&self, table: &Table) -> BTreeMap<Arc<str>, Had> {
        let names: BTreeSet<Arc<str>> = if self.wildcard {
            table.iter().map(|(name, _)| Arc::clone(name)).collect()
        } else {
            let names = self.names.iter();
            names.flat_map(|name| table.resolve(name)).collect()
        };
        let found = names.into_iter().filter_map(|name| {
            let (_, one) = table.get(&name)?;
            Some((name, Had::of(one)))
        });
        found.collect()
    }
}

/// How many of them are looked at before they are counted.
const AHEAD: usize = 64;

/// All of these. Of a whole mesh nearly each is fetched from memory: those fetches overlap where they are reads, and not
/// where a count is changed.
fn shared(found: &[&Arc<Encoded>]) -> Vec<Arc<Encoded>> {
    let mut all = Vec::with_capacity(found.len());
    for some in found.chunks(AHEAD) {
        let length: usize = some.iter().map(|one| one.len()).sum();
        std::hint::black_box(length);
        all.extend(some.iter().map(|one| Arc::clone(one)));
    }
    all
}

/// A resource that a client has.
#[derive(Debug, Clone, PartialEq)]
struct Had {
    encoded: Arc<Encoded>,
    by_list: bool,
}

impl Had {
    fn of(one: &super::store::Resource) -> Self {
        Self {
            encoded: Arc::clone(&one.encoded),
            by_list: one.by_list,
        }
    }
}
