//! One client's stream: what it asked for, what it has been sent and what it said to it. No I/O.

use std::collections::BTreeSet;

use super::outgoing::{Outgoing, TooLarge};
use super::status::Subscription;
use super::store::{Kind, Owner, Store};
use super::subscribed::{Push, Source, Type};
use crate::proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use crate::proto::type_url;

/// Types that a client may ask for on one stream.
const MAX_TYPES: usize = 16;

/// Bytes that the name of a type may have.
const MAX_TYPE_URL: usize = 256;

/// What a stream may ask for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Names of a type.
    pub(super) names: usize,
    /// Bytes of all names.
    pub(super) size: usize,
}

/// Why a stream ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// A request that cannot be meant.
    Invalid(String),
    /// More names than the settings allow.
    TooManyNames(usize),
    /// More bytes of names than the settings allow.
    NamesTooLarge(usize),
    /// It has not read for so long that what is gone since is forgotten.
    Behind,
    /// A response is larger than a message can be.
    TooLarge,
}

impl From<TooLarge> for End {
    fn from(_: TooLarge) -> Self {
        Self::TooLarge
    }
}

#[derive(Debug)]
pub(super) struct Session {
    /// In the order in which they are pushed.
    types: Vec<Type>,
    nonce: u64,
    bounds: Bounds,
    /// Whose listeners it may ask for.
    owner: Option<Owner>,
}

impl Session {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            types: Vec::new(),
            nonce: 0,
            bounds,
            owner: None,
        }
    }

    /// Lets the client ask for the inbound listeners of `owner`.
    pub(super) fn own(&mut self, owner: Owner) {
        self.owner = Some(owner);
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
        let (one, first) = self.of(&request.type_url)?;
        let error = request.error_detail.map(|status| status.message);
        one.answered(&request.response_nonce, error);
        let mut names = request.resource_names_subscribe;
        if first {
            one.wildcard = names.is_empty();
            one.ask.all = one.wildcard;
            one.ask.owed = true;
            one.ask.known = request.initial_resource_versions.into_iter().collect();
            one.seen = store.revision();
            // Who comes back may name what it wants by saying what it has, with an empty version where
            // it still waits: ztunnel does, beside `*` that it takes back at once.
            if !one.wildcard && names.iter().all(|name| name == "*") {
                names.extend(one.ask.known.keys().cloned());
            }
        }
        one.subscribe(names, first);
        one.unsubscribe(&request.resource_names_unsubscribe, first, store);
        self.check()
    }

    /// Takes a request of the state of the world: its names are all that is asked for; none are everything.
    pub(super) fn world_request(&mut self, request: DiscoveryRequest) -> Result<(), End> {
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
            one.rename(names);
        }
        self.check()
    }

    /// Whether all that is asked for stays within bounds.
    fn check(&mut self) -> Result<(), End> {
        let mut size = 0;
        for one in &mut self.types {
            one.status.everything = one.wildcard;
            one.status.names = one.names.len();
            size += one.size;
            if one.names.len() > self.bounds.names {
                return Err(End::TooManyNames(self.bounds.names));
            }
        }
        if size > self.bounds.size {
            return Err(End::NamesTooLarge(self.bounds.size));
        }
        Ok(())
    }

    fn of(&mut self, url: &str) -> Result<(&mut Type, bool), End> {
        if url.is_empty() {
            return Err(End::Invalid("type_url: empty, expected a type".to_owned()));
        }
        if url.len() > MAX_TYPE_URL {
            let length = url.len();
            let text = format!("type_url: {length} bytes, expected at most {MAX_TYPE_URL}");
            return Err(End::Invalid(text));
        }
        let found = self.types.iter().position(|one| one.status.type_url == url);
        let (at, first) = match found {
            Some(at) => (at, false),
            None if self.types.len() == MAX_TYPES => {
                let text = format!("type_url: {url}, expected at most {MAX_TYPES} types");
                return Err(End::Invalid(text));
            }
            None => {
                let source = match (url, &self.owner) {
                    (type_url::ADDRESS, _) => Source::Table(Kind::Address),
                    (type_url::AUTHORIZATION, _) => Source::Table(Kind::Authorization),
                    (type_url::LISTENER, Some(owner)) => Source::Listeners(owner.clone()),
                    _ => Source::Nothing,
                };
                let rank = source.rank();
                let mut types = self.types.iter();
                let at = types.position(|one| one.source.rank() > rank);
                let at = at.unwrap_or(self.types.len());
                self.types.insert(at, Type::new(url, source));
                (at, true)
            }
        };
        Ok((&mut self.types[at], first))
    }

    /// What to send next, if anything. Of a type one response is on its way until it is answered; what
    /// changes meanwhile comes with the next.
    ///
    /// Policies come before the addresses that list them, and go after those that list them no more: a
    /// client that applies what it reads in order is never without a policy that has another name now.
    pub(super) fn poll(&mut self, store: &Store) -> Result<Option<Outgoing>, End> {
        for at in 0..self.types.len() {
            if !self.may_send(at, store) {
                continue;
            }
            if let Some(push) = self.types[at].push(store)? {
                return self.response(at, push, store).map(Some);
            }
        }
        let (Some(at), Some(listed)) = (self.of_kind(Kind::Authorization), self.listed(store))
        else {
            return Ok(None);
        };
        if self.types[at].outstanding.is_some() {
            return Ok(None);
        }
        let push = self.types[at].push_held(listed, store);
        push.map(|push| self.response(at, push, store)).transpose()
    }

    fn response(&mut self, at: usize, push: Push, store: &Store) -> Result<Outgoing, End> {
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        let one = &mut self.types[at];
        one.sent(&nonce, store.revision());
        let rest = DeltaDiscoveryResponse {
            system_version_info: store.revision().to_string(),
            type_url: one.status.type_url.clone(),
            nonce,
            removed_resources: push.removed.into_iter().collect(),
            ..DeltaDiscoveryResponse::default()
        };
        // As istiod: who asks for everything knows other names from the resource.
        let with_aliases = !one.wildcard;
        Ok(Outgoing::delta(rest, push.resources, with_aliases)?)
    }

    /// The same for the state of the world: all that is asked for, if some of it changed.
    pub(super) fn world_poll(&mut self, store: &Store) -> Result<Option<Outgoing>, End> {
        for at in 0..self.types.len() {
            if !self.may_send(at, store) {
                continue;
            }
            let listed = self.listed(store);
            let one = &mut self.types[at];
            let Some(resources) = one.world(listed, store) else {
                continue;
            };
            self.nonce += 1;
            let nonce = self.nonce.to_string();
            one.sent(&nonce, store.revision());
            let rest = DiscoveryResponse {
                version_info: store.revision().to_string(),
                type_url: one.status.type_url.clone(),
                nonce,
                ..DiscoveryResponse::default()
            };
            return Ok(Some(Outgoing::world(rest, resources)?));
        }
        // Addresses have been sent since, so that policies may go.
        let policies = self.of_kind(Kind::Authorization).map(|at| &self.types[at]);
        let waits = policies.is_some_and(|one| one.unsettled && one.outstanding.is_none());
        match waits && self.listed(store) == Some(store.revision()) {
            true => self.world_poll(store),
            false => Ok(None),
        }
    }

    fn of_kind(&self, kind: Kind) -> Option<usize> {
        self.types.iter().position(|one| one.is_of(kind))
    }

    /// Whether a response of the type may be sent now. Before the first batch nothing is known of what there
    /// is; addresses wait for policies that wait for an answer.
    fn may_send(&self, at: usize, store: &Store) -> bool {
        let one = &self.types[at];
        if one.outstanding.is_some() {
            return false;
        }
        if !store.is_filled() && !matches!(one.source, Source::Nothing) {
            return false;
        }
        if !one.is_of(Kind::Address) {
            return true;
        }
        let policies = self.of_kind(Kind::Authorization);
        policies.is_none_or(|at| !self.types[at].lags(store))
    }

    /// Up to which revision the client has been sent which workloads list which policies, if at all.
    fn listed(&self, store: &Store) -> Option<u64> {
        let addresses = self.of_kind(Kind::Address).map(|at| &self.types[at]);
        match addresses {
            None => Some(store.revision()),
            // Hosts that may come back are left with the policies that they list.
            Some(one) if one.ask.owed || one.awaits() => None,
            Some(one) => Some(one.seen),
        }
    }
}
