//! A response on its way into the session, resource by resource.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::mem;
use std::sync::Arc;

use prost::bytes::Bytes;

use super::kept::Kept;
use super::reading::Reading;
use super::response::{Head, Resource};
use super::settings::{MAX_NAME, Settings};
use super::state::{Decode, Delivery, Pending, Protocol, Session};
use super::subscription::{Known, Reply, Version};
use crate::decode::Replicas;
use crate::error::Error;
use crate::hashing::Seeded;
use crate::model::Update;

/// A response that is being read: see [`Session::begin`].
pub(crate) struct Receiving {
    pending: Pending,
    delivery: Delivery,
    replicas: Replicas,
    /// Names in it that are not among what is here: refused, or wanted under another name.
    others: HashSet<Box<str>>,
    /// Whether there was nothing of its type before.
    is_first: bool,
}

impl Receiving {
    /// Whether there was nothing of its type before.
    pub(crate) fn is_first(&self) -> bool {
        self.is_first
    }

    /// What it has brought so far and was not taken.
    pub(crate) fn updates(&mut self) -> &mut Vec<Update> {
        &mut self.delivery.updates
    }
}

impl Session {
    /// A response came as a whole. What it brings is to be applied, and then [judged](Self::judged).
    ///
    /// # Errors
    ///
    /// `Status`, if it is no response; it has changed nothing then.
    pub(crate) fn receive(
        &mut self,
        protocol: Protocol,
        message: Bytes,
    ) -> Result<Delivery, Error> {
        let mut reading = Reading::new(protocol, message.len());
        reading.push(message);
        let read = reading.read(self, &mut { usize::MAX });
        match read.and_then(|_| reading.end(self)) {
            Ok((_, delivery)) => Ok(delivery),
            Err(error) => {
                reading.cancel(self);
                Err(error)
            }
        }
    }

    /// A response of this type comes; `None` if nobody asked for it. Its [resources](Self::resource) follow, then
    /// its [end](Self::end), and no other response meanwhile.
    pub(super) fn begin(&mut self, url: &str) -> Option<Receiving> {
        debug_assert!(self.pending.is_none(), "one response at a time");
        let found = self.subscriptions.iter().position(|s| *s.url == *url);
        let index = found.filter(|index| self.subscriptions[*index].stream.started)?;
        let number = self.next_number();
        Some(Receiving {
            pending: Pending::new(self.streams, index, number, Reply::default()),
            delivery: Delivery::default(),
            replicas: Replicas::default(),
            others: HashSet::new(),
            is_first: self.subscriptions[index].known.is_empty(),
        })
    }

    /// A response is likely to have so many resources: their names are made room for once, and not for each doubling.
    /// Of an estimate that is too high little is wasted, as a quarter is left to grow.
    pub(super) fn expect(&mut self, receiving: &Receiving, resources: usize) {
        let known = &mut self.subscriptions[receiving.pending.subscription].known;
        let most = self.settings.max_resources.min(resources - resources / 4);
        known.reserve(most.saturating_sub(known.len()));
    }

    /// The type of a response that is being read.
    pub(super) fn url_of(&self, receiving: &Receiving) -> &Arc<str> {
        &self.subscriptions[receiving.pending.subscription].url
    }

    /// That was a response of a type that nobody asked for.
    pub(super) fn strays(&mut self, head: Head) {
        self.stray = Some((head.url, head.nonce));
        self.answers();
    }

    /// The server has said something that could be read.
    fn answers(&mut self) {
        self.answered = true;
        self.without_versions = false;
        self.backoff.reset();
    }

    /// There is no end of the response: it has changed nothing, and the next stream is in no hurry.
    pub(crate) fn cancel(&mut self, receiving: Receiving) {
        self.pending = Some(receiving.pending);
        self.abandoned();
    }

    pub(super) fn next_number(&mut self) -> u32 {
        self.responses = self.responses.wrapping_add(1);
        self.responses
    }

    /// That was all of the response.
    pub(super) fn end(&mut self, receiving: Receiving, head: Head) -> Delivery {
        let Receiving {
            mut pending,
            mut delivery,
            mut others,
            ..
        } = receiving;
        pending.reply = Reply {
            nonce: head.nonce,
            refusal: None,
            version: head.version,
        };
        self.answers();
        let subscription = &mut self.subscriptions[pending.subscription];
        let world = self.protocol == Protocol::StateOfTheWorld;
        let first = world || !subscription.stream.answered;
        let complete = world || (subscription.stream.complete && first);
        subscription.stream.answered = true;
        let mut gone: Vec<Box<str>> = head
            .removed
            .into_iter()
            .map(String::into_boxed_str)
            .collect();
        // What is not among everything is no more, unless what it is was not understood.
        pending.complete = complete && !pending.nameless;
        pending.first = first && !pending.nameless;
        // What could not be swept is, by the next stream's first answer.
        subscription.surplus |= complete && pending.nameless;
        if pending.complete {
            let known = subscription.known.iter();
            let unseen = known.filter(|(_, known)| known.seen != pending.number);
            gone.extend(unseen.map(|(name, _)| (&**name).into()));
            if world {
                gone.extend(subscription.wanted.keys().cloned());
            }
        }
        for name in gone {
            if others.contains(&name) {
                continue;
            }
            match subscription.known.get_mut(&*name) {
                Some(known) if known.seen == pending.number => continue,
                Some(known) => {
                    known.seen = pending.number;
                    known.new = false;
                    let url = &subscription.url;
                    delivery.removed.extend(self.decoder.removed(url, &name));
                }
                // Of names that nobody here has heard of a response can have millions.
                None if !subscription.wanted.contains_key(&name)
                    && !subscription.bad.contains(&name) =>
                {
                    continue;
                }
                None => {
                    others.insert(name.clone());
                }
            }
            pending.gone.push(name.clone());
            if let Some(absent) = subscription.wanted.get_mut(&name)
                && !mem::replace(absent, true)
            {
                delivery.absent.push(name.into());
            }
        }
        self.pending = Some(pending);
        delivery
    }

    /// The next resource of a response.
    pub(super) fn resource(&mut self, resource: &Resource<'_>, receiving: &mut Receiving) {
        let Receiving {
            pending,
            delivery,
            replicas,
            others,
            ..
        } = receiving;
        let subscription = &mut self.subscriptions[pending.subscription];
        let decoder = &*self.decoder;
        let decoded = decode(
            decoder,
            replicas,
            &self.settings,
            &subscription.url,
            resource,
        );
        let (name, mut update) = match decoded {
            Ok((name, update)) => (name, update),
            Err(reason) => {
                pending.refusal.add(&resource.name, &reason);
                pending.nameless |= resource.name.is_empty();
                pending.refused(&resource.name, &subscription.bad);
                // Its last good version stays.
                if let Some(known) = subscription.known.get_mut(&*resource.name) {
                    // It may be here by this response, and is there twice then.
                    known.new &= known.seen == pending.number;
                    known.seen = pending.number;
                } else if resource.name.len() <= MAX_NAME {
                    others.insert((&*resource.name).into());
                }
                return;
            }
        };
        let room = self.settings.max_resources;
        let is_full = subscription.known.len() >= room;
        let version = Version::new(&resource.version);
        let reason = match subscription.known.entry(Arc::clone(&name)) {
            _ if !others.is_empty() && others.contains(&*name) => Some("is there twice".to_owned()),
            Entry::Occupied(known) if known.get().seen == pending.number => {
                Some("is there twice".to_owned())
            }
            Entry::Occupied(mut known) => {
                let here = Arc::clone(known.key());
                // Kept twice, the names of a mesh would be most of what a push leaves behind.
                if let Some(Update::Workload(workload)) = &mut update
                    && workload.uid() == &*here
                {
                    workload.share_uid(&here);
                }
                let known = known.get_mut();
                known.seen = pending.number;
                known.new = false;
                let before = mem::replace(&mut known.version, version);
                pending.before.push((here, before));
                None
            }
            Entry::Vacant(_) if is_full => {
                others.insert((&*name).into());
                Some(format!("there are {room} resources of its type already"))
            }
            Entry::Vacant(place) => {
                place.insert(Known {
                    version,
                    seen: pending.number,
                    new: true,
                });
                None
            }
        };
        if let Some(reason) = reason {
            pending.refusal.add(&name, &reason);
            pending.refused(&name, &subscription.bad);
            return;
        }
        if !subscription.wanted.is_empty() {
            for asked in resource
                .aliases
                .iter()
                .map(|alias| &**alias)
                .chain([&*name])
            {
                if let Some(absent) = subscription.wanted.get_mut(asked) {
                    *absent = false;
                    // It was answered, though under another name.
                    if asked != &*name {
                        others.insert(asked.into());
                    }
                }
            }
        }
        if let Some(value) = &resource.value
            && self.settings.changes
        {
            let url = Arc::clone(&subscription.url);
            let kept = Kept::new(url, &*name, &*resource.version, &*value.bytes);
            pending.kept.push(kept);
        }
        delivery.updates.extend(update);
    }

    /// What the last response brought was not applied, and nobody will say what became of it.
    pub(crate) fn abandoned(&mut self) {
        if let Some(mut pending) = self.pending.take() {
            let subscription = &mut self.subscriptions[pending.subscription];
            pending.take_all_back(&mut subscription.known);
            subscription.let_room_go();
        }
    }
}

impl Pending {
    /// Takes back what the response brought of these. What it replaced of others stays, to be let go of.
    pub(super) fn take_back(
        &mut self,
        known: &mut HashMap<Arc<str>, Known, Seeded>,
        names: &HashSet<String>,
    ) {
        // By where they are: to read all names of a mesh takes as long as to let go of what was replaced.
        let mut replaced = HashSet::new();
        for name in names {
            let here = known.get_key_value(&**name);
            let Some((name, here)) = here.filter(|(_, known)| known.seen == self.number) else {
                continue;
            };
            if here.new {
                let name = Arc::clone(name);
                known.remove(&name);
            } else {
                replaced.insert(Arc::as_ptr(name).addr());
            }
        }
        if replaced.is_empty() {
            return;
        }
        for (name, before) in &mut self.before {
            if replaced.contains(&Arc::as_ptr(name).addr())
                && let Some(known) = known.get_mut(&**name)
            {
                mem::swap(&mut known.version, before);
            }
        }
    }

    fn take_all_back(&mut self, known: &mut HashMap<Arc<str>, Known, Seeded>) {
        known.retain(|_, known| !(known.new && known.seen == self.number));
        for (name, before) in self.before.drain(..) {
            if let Some(known) = known.get_mut(&*name) {
                known.version = before;
            }
        }
    }
}

/// The resource's name in discovery, and what it is in the model.
fn decode(
    decoder: &dyn Decode,
    replicas: &mut Replicas,
    settings: &Settings,
    url: &str,
    resource: &Resource<'_>,
) -> Result<(Arc<str>, Option<Update>), String> {
    if resource.name.len() > MAX_NAME {
        return Err(format!("its name has more than {MAX_NAME} bytes"));
    }
    let max = settings.max_length();
    if resource.length > max {
        let length = resource.length;
        return Err(format!("has {length} bytes with its names, at most {max}"));
    }
    let value = resource.value.as_ref().ok_or("has no value")?;
    if value.url != url {
        return Err(format!("is of type {:?}, expected {url}", value.url));
    }
    let bytes = &*value.bytes;
    let max = settings.max_resource_size;
    if bytes.len() > max {
        return Err(format!("has {} bytes, at most {max}", bytes.len()));
    }
    let update = decoder
        .decode(replicas, url, &resource.name, bytes)
        .map_err(|rejection| rejection.reason().to_owned())?;
    let name = match (&update, resource.name.is_empty()) {
        // The model has it already.
        (Some(Update::Workload(workload)), false) if *workload.uid() == *resource.name => {
            Arc::clone(workload.shared_uid())
        }
        (_, false) => (&*resource.name).into(),
        (Some(update), true) => decoder.name(&update.name()).into(),
        (None, true) => return Err("has no name".to_owned()),
    };
    Ok((name, update))
}
