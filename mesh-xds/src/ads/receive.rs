//! A response on its way into the session, resource by resource.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use prost::bytes::Bytes;

use super::kept::Kept;
use super::response::{Head, Resource, Response};
use super::settings::{MAX_NAME, Settings};
use super::state::{Decode, Delivery, Pending, Protocol, Session};
use super::subscription::{Known, Reply, Version};
use crate::decode::Replicas;
use crate::error::Error;
use crate::model::Update;
use crate::proto::google::protobuf::Any;

/// A response that is being read: see [`Session::begin`].
pub(crate) struct Receiving {
    pending: Pending,
    delivery: Delivery,
    replicas: Replicas,
    /// Names in it that are not among what is here: refused, or wanted under another name.
    others: HashSet<Box<str>>,
    removed: Vec<String>,
}

impl Session {
    /// A response came. What it brings is to be applied, and then [judged](Self::judged).
    ///
    /// # Errors
    ///
    /// `Status`, if it is no response; it has changed nothing then.
    pub(crate) fn receive(
        &mut self,
        protocol: Protocol,
        message: Bytes,
    ) -> Result<Delivery, Error> {
        let (head, mut response) = Response::read(protocol, message)?;
        let Some(mut receiving) = self.begin(head) else {
            return Ok(Delivery::default());
        };
        loop {
            match response.next() {
                Ok(Some(resource)) => self.resource(resource, &mut receiving),
                Ok(None) => return Ok(self.end(receiving)),
                Err(error) => {
                    self.cancel(receiving);
                    return Err(error);
                }
            }
        }
    }

    /// A response came; `None` if nobody asked for its type. Its [resources](Self::resource) follow, then its
    /// [end](Self::end), and nothing else meanwhile.
    pub(crate) fn begin(&mut self, head: Head) -> Option<Receiving> {
        debug_assert!(self.pending.is_none(), "one response at a time");
        let reply = Reply {
            nonce: head.nonce,
            refusal: None,
            version: head.version,
        };
        let found = self.subscriptions.iter().position(|s| *s.url == *head.url);
        let Some(index) = found.filter(|index| self.subscriptions[*index].stream.started) else {
            self.stray = Some((head.url, reply.nonce));
            self.answers();
            return None;
        };
        let number = self.next_number();
        Some(Receiving {
            pending: Pending::new(self.streams, index, number, reply),
            delivery: Delivery::default(),
            replicas: Replicas::default(),
            others: HashSet::new(),
            removed: head.removed,
        })
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
    pub(crate) fn end(&mut self, receiving: Receiving) -> Delivery {
        let Receiving {
            mut pending,
            mut delivery,
            mut others,
            removed,
            ..
        } = receiving;
        self.answers();
        let subscription = &mut self.subscriptions[pending.subscription];
        let world = self.protocol == Protocol::StateOfTheWorld;
        let complete = world || (subscription.stream.complete && !subscription.stream.answered);
        subscription.stream.answered = true;
        let mut gone: Vec<Box<str>> = removed.into_iter().map(String::into_boxed_str).collect();
        // What is not among everything is no more, unless what it is was not understood.
        pending.complete = complete && !pending.nameless;
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
                None => {
                    others.insert(name.clone());
                }
            }
            pending.gone.push(name.clone());
            if let Some(absent) = subscription.wanted.get_mut(&name)
                && !std::mem::replace(absent, true)
            {
                delivery.absent.push(name.into());
            }
        }
        self.pending = Some(pending);
        delivery
    }

    /// The next resource of a response.
    pub(crate) fn resource(&mut self, resource: Resource, receiving: &mut Receiving) {
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
            &resource,
        );
        let (name, update) = match decoded {
            Ok((name, update)) => (name, update),
            Err(reason) => {
                pending.refusal.add(&resource.name, &reason);
                pending.nameless |= resource.name.is_empty();
                pending.refused(&resource.name);
                // Its last good version stays.
                if let Some(known) = subscription.known.get_mut(&*resource.name) {
                    // It may be here by this response, and is there twice then.
                    known.new &= known.seen == pending.number;
                    known.seen = pending.number;
                } else if resource.name.len() <= MAX_NAME {
                    others.insert(resource.name.into());
                }
                return;
            }
        };
        let known = subscription.known.get_mut(&*name);
        let twice = known
            .as_ref()
            .is_some_and(|known| known.seen == pending.number);
        if twice || (!others.is_empty() && others.contains(&*name)) {
            pending.refusal.add(&name, "is there twice");
            pending.refused(&name);
            return;
        }
        let version = Version::new(&resource.version);
        if let Some(known) = known {
            known.seen = pending.number;
            known.new = false;
            let before = std::mem::replace(&mut known.version, version);
            pending.before.push((Arc::clone(&name), before));
        } else {
            let room = self.settings.max_resources;
            if subscription.known.len() >= room {
                let reason = format!("there are {room} resources of its type already");
                pending.refusal.add(&name, &reason);
                pending.refused(&name);
                others.insert((&*name).into());
                return;
            }
            let known = Known {
                version,
                seen: pending.number,
                new: true,
            };
            subscription.known.insert(Arc::clone(&name), known);
        }
        if !subscription.wanted.is_empty() {
            for asked in resource.aliases.iter().map(String::as_str).chain([&*name]) {
                if let Some(absent) = subscription.wanted.get_mut(asked) {
                    *absent = false;
                    // It was answered, though under another name.
                    if asked != &*name {
                        others.insert(asked.into());
                    }
                }
            }
        }
        if let Some(value) = resource.value.filter(|_| self.settings.changes) {
            let url = Arc::clone(&subscription.url);
            let version = resource.version.as_str();
            pending
                .kept
                .push(Kept::new(url, &*name, version, &*value.value));
        }
        delivery.updates.extend(update);
    }

    /// What the last response brought was not applied, and nobody will say what became of it.
    pub(crate) fn abandoned(&mut self) {
        if let Some(mut pending) = self.pending.take() {
            let known = &mut self.subscriptions[pending.subscription].known;
            pending.take_back(known, |_| true);
        }
    }
}

impl Pending {
    /// Takes back what the response brought of these.
    pub(super) fn take_back(
        &mut self,
        known: &mut HashMap<Arc<str>, Known>,
        of: impl Fn(&str) -> bool,
    ) {
        known.retain(|name, known| !(known.new && known.seen == self.number && of(name)));
        for (name, before) in self.before.drain(..) {
            if of(&name)
                && let Some(known) = known.get_mut(&*name)
            {
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
    resource: &Resource,
) -> Result<(Arc<str>, Option<Update>), String> {
    if resource.name.len() > MAX_NAME {
        return Err(format!("its name has more than {MAX_NAME} bytes"));
    }
    let value: &Any = resource.value.as_ref().ok_or("has no value")?;
    if value.type_url != url {
        return Err(format!("is of type {:?}, expected {url}", value.type_url));
    }
    let bytes: &Bytes = &value.value;
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
        (_, false) => resource.name.as_str().into(),
        (Some(update), true) => decoder.name(&update.name()).into(),
        (None, true) => return Err("has no name".to_owned()),
    };
    Ok((name, update))
}
