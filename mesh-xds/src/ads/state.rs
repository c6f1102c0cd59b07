//! A session with a control plane, without I/O.
//!
//! [`Session`] is told what happens (a stream opened, a response came, names are wanted) and asked what to
//! do ([`Session::poll_transmit`], [`Session::poll_connect`], [`Session::poll_timeout`]). What is here
//! outlives streams: a lost stream changes nothing but what the next one says first.

use std::collections::HashSet;
use std::sync::Arc;

use prost::bytes::Bytes;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::kept::{Changed, Kept};
use super::refusal::Refusal;
use super::settings::{Interest, MAX_NAME, Settings};
use super::subscription::{Reply, Subscription, Version, Wanted};
use crate::decode::{Decoder, ResourceType};
use crate::error::{Error, ErrorKind};
use crate::model::{Rejection, ResourceName, Update};
use crate::proto::envoy::config::core::v3::Node;
use crate::proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use crate::proto::google::protobuf::Any;
use crate::proto::google::rpc::Status;
use crate::proto::type_url;

/// gRPC's INVALID_ARGUMENT.
pub(super) const INVALID_ARGUMENT: i32 = 3;

/// gRPC's INTERNAL: what istio-agent has as the code of a host that is not healthy.
const UNHEALTHY: i32 = 13;

/// What the name of a proxyless server's listener begins with.
const INBOUND_LISTENER: &str = "xds.istio.io/grpc/lds/inbound/";

/// Makes resources of bytes.
pub(crate) trait Decode: Send + Sync {
    /// The update that a resource is; `None` if the model has no place for it. `name` is empty where the
    /// response has none.
    fn decode(&self, url: &str, name: &str, value: &[u8]) -> Result<Option<Update>, Rejection>;

    /// What goes when the resource of this name does.
    fn removed(&self, url: &str, name: &str) -> Vec<ResourceName>;

    /// The name of a resource in discovery.
    fn name(&self, resource: &ResourceName) -> String;
}

impl Decode for Decoder {
    fn decode(&self, url: &str, name: &str, value: &[u8]) -> Result<Option<Update>, Rejection> {
        let kind = ResourceType::from_url(url);
        let kind = kind.ok_or_else(|| Rejection::new("its type has no place in the model"))?;
        Self::decode(self, kind, name, value)
    }

    fn removed(&self, url: &str, name: &str) -> Vec<ResourceName> {
        let kind = ResourceType::from_url(url);
        kind.map(|kind| kind.removed(name)).unwrap_or_default()
    }

    fn name(&self, resource: &ResourceName) -> String {
        match resource {
            ResourceName::Workload(uid) => uid.to_string(),
            ResourceName::Service(name) => name.to_string(),
            ResourceName::Policy(name) => name.to_string(),
            ResourceName::InboundListener(at) => format!("{INBOUND_LISTENER}{at}"),
            // No other kind is decoded.
            other => other.to_string(),
        }
    }
}

/// How a stream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Delta,
    StateOfTheWorld,
}

/// A request to send.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outgoing {
    Delta(DeltaDiscoveryRequest),
    StateOfTheWorld(DiscoveryRequest),
}

/// A response that came.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Incoming {
    Delta(DeltaDiscoveryResponse),
    StateOfTheWorld(DiscoveryResponse),
}

impl Incoming {
    pub(crate) fn type_url(&self) -> &str {
        match self {
            Self::Delta(response) => &response.type_url,
            Self::StateOfTheWorld(response) => &response.type_url,
        }
    }
}

/// What a response brings. [`Session::judged`] has to follow before the next one.
#[derive(Debug, Default)]
pub(crate) struct Delivery {
    pub(crate) updates: Vec<Update>,
    pub(crate) removed: Vec<ResourceName>,
    /// Names that were wanted and of which there is no resource.
    pub(crate) absent: Vec<String>,
}

/// What was refused of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) type_url: Arc<str>,
    /// Their names, each with the reason.
    pub(crate) resources: Vec<(String, String)>,
}

/// What a host says of its application.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// It is to get traffic.
    Healthy,
    /// It is to get none, and why.
    Unhealthy(String),
}

pub(crate) struct Session {
    pub(super) decoder: Arc<dyn Decode>,
    settings: Settings,
    node: Node,
    pub(super) subscriptions: Vec<Subscription>,
    backoff: Backoff,
    protocol: Protocol,
    stream: Stream,
    /// Whether the current stream had a response.
    answered: bool,
    /// Whether the last stream was refused for what it said first.
    without_versions: bool,
    /// When what came along with forgotten names is to go.
    recycle_at: Option<Instant>,
    health: Option<Health>,
    health_due: bool,
    /// A response of a type that nobody asked for: its type and nonce.
    stray: Option<(String, String)>,
    pub(super) pending: Option<Pending>,
    refused: Option<Refused>,
    pub(super) changed: Changed,
    streams: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Down { retry_at: Instant },
    Opening,
    Up,
}

/// A response whose resources are being applied.
pub(super) struct Pending {
    stream: u64,
    subscription: usize,
    reply: Reply,
    pub(super) accepted: Vec<(Box<str>, Version)>,
    /// Those that are worth keeping, as they came.
    kept: Vec<Kept>,
    /// Whether it did not come from a stream.
    restored: bool,
    /// How many of them were not here before.
    new: usize,
    gone: Vec<Box<str>>,
    bad: Vec<Box<str>>,
    /// Whether this is all that there is.
    complete: bool,
    refusal: Refusal,
    /// Whether a resource was refused whose name is not known.
    nameless: bool,
}

/// Names of a type that are remembered to have been refused.
const MAX_BAD: usize = 1_000;

impl Pending {
    fn new(stream: u64, subscription: usize, reply: Reply, room: usize) -> Self {
        Self {
            stream,
            subscription,
            reply,
            accepted: Vec::with_capacity(room),
            kept: Vec::new(),
            restored: false,
            new: 0,
            gone: Vec::new(),
            bad: Vec::new(),
            complete: false,
            refusal: Refusal::default(),
            nameless: false,
        }
    }

    /// What came of no stream.
    pub(super) fn restored(subscription: usize, room: usize) -> Self {
        let nobody = Reply {
            nonce: String::new(),
            refusal: None,
            version: String::new(),
        };
        Self {
            restored: true,
            ..Self::new(0, subscription, nobody, room)
        }
    }

    fn refused(&mut self, name: &str) {
        if self.bad.len() <= MAX_BAD {
            let name = if name.len() > MAX_NAME { "" } else { name };
            self.bad.push(name.into());
        }
    }
}

/// A resource of either protocol.
struct Resource {
    /// Empty in the state of the world.
    name: String,
    version: String,
    aliases: Vec<String>,
    value: Option<Any>,
}

impl Session {
    pub(crate) fn new(
        settings: Settings,
        decoder: Arc<dyn Decode>,
        now: Instant,
    ) -> Result<Self, Error> {
        settings.check()?;
        let types = settings.types.iter();
        let subscriptions = types.map(|(url, interest)| Subscription::new(url, *interest));
        let (first, max) = (settings.backoff_first, settings.backoff_max);
        Ok(Self {
            decoder,
            node: settings.node.to_proto(),
            subscriptions: subscriptions.collect(),
            backoff: Backoff::new(first, max, settings.seed_or_random()),
            settings,
            protocol: Protocol::Delta,
            stream: Stream::Down { retry_at: now },
            answered: false,
            without_versions: false,
            recycle_at: None,
            health: None,
            health_due: false,
            stray: None,
            pending: None,
            refused: None,
            changed: Changed::default(),
            streams: 0,
        })
    }

    /// How the stream speaks that is to be opened, or is open.
    pub(crate) fn protocol(&self) -> Protocol {
        self.protocol
    }

    fn subscription(&mut self, url: &str) -> Result<&mut Subscription, Error> {
        let found = self.subscriptions.iter_mut().find(|s| *s.url == *url);
        found.ok_or_else(|| {
            let detail = format!("{url} is not among the types that are asked for");
            Error::new(ErrorKind::InvalidSettings, detail)
        })
    }

    /// Asks for a resource by name.
    pub(crate) fn want(&mut self, url: &str, name: &str) -> Result<Wanted, Error> {
        let max = self.settings.max_names;
        self.subscription(url)?.want(name, max)
    }

    /// Does not ask for it any more; what came along with it goes a little later.
    pub(crate) fn forget(&mut self, url: &str, name: &str, now: Instant) -> Result<(), Error> {
        let wait = self.settings.drop_forgotten_after;
        let subscription = self.subscription(url)?;
        if subscription.forget(name) && subscription.surplus {
            // Too long to be said is never.
            self.recycle_at = self.recycle_at.or_else(|| now.checked_add(wait));
        }
        Ok(())
    }

    /// Says how the application is, on this stream and every later one.
    pub(crate) fn report_health(&mut self, health: Health) {
        if self.health.as_ref() != Some(&health) {
            self.health = Some(health);
            self.health_due = true;
        }
    }

    /// When the session wants to be asked again whether it wants to connect.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match self.stream {
            Stream::Down { retry_at } => Some(retry_at),
            Stream::Opening => None,
            Stream::Up => self.recycle_at,
        }
    }

    /// Whether to open a stream now, and which. [`opened`](Self::opened) or [`closed`](Self::closed) follows.
    ///
    /// A stream that is up is to be ended then: the new one takes over what is here.
    pub(crate) fn poll_connect(&mut self, now: Instant) -> Option<Protocol> {
        let due = match self.stream {
            Stream::Down { retry_at } => retry_at <= now,
            Stream::Opening => false,
            Stream::Up => self.recycle_at.is_some_and(|at| at <= now),
        };
        if !due {
            return None;
        }
        self.stream = Stream::Opening;
        Some(self.protocol)
    }

    /// A stream is open. Returns what is here and will not be asked for any more.
    pub(crate) fn opened(&mut self) -> Vec<ResourceName> {
        self.stream = Stream::Up;
        self.streams += 1;
        self.answered = false;
        self.recycle_at = None;
        self.stray = None;
        self.health_due = self.health.is_some();
        let mut removed = Vec::new();
        for subscription in &mut self.subscriptions {
            let last = std::mem::take(&mut subscription.stream);
            // What was to be dropped by the first answer was not, for there was none.
            subscription.surplus |= last.started && last.complete && !last.answered;
            if !subscription.has_interest() {
                subscription.surplus = false;
                for (name, _) in subscription.known.drain() {
                    removed.extend(self.decoder.removed(&subscription.url, &name));
                    if self.settings.changes {
                        self.changed
                            .gone
                            .push((Arc::clone(&subscription.url), name));
                    }
                }
            }
        }
        removed
    }

    /// The stream ended, or could not be opened.
    pub(crate) fn closed(&mut self, why: Option<ErrorKind>, now: Instant) {
        let opened = self.stream == Stream::Up;
        let said = opened && self.subscriptions.iter().any(|s| s.stream.said_versions);
        let refused = !self.answered || !opened;
        let mut wait = true;
        match why {
            Some(ErrorKind::Unimplemented) if refused => {
                // A server that lacks both may learn one; it is asked in turn, and not in a hurry.
                wait = self.protocol == Protocol::StateOfTheWorld;
                self.protocol = match self.protocol {
                    Protocol::Delta => Protocol::StateOfTheWorld,
                    Protocol::StateOfTheWorld => Protocol::Delta,
                };
            }
            // grpc-go says RESOURCE_EXHAUSTED, tonic OUT_OF_RANGE.
            Some(ErrorKind::ResourceExhausted | ErrorKind::TooLarge) if refused && said => {
                self.without_versions = true;
            }
            // Whoever comes next may speak delta.
            _ if !refused => self.protocol = Protocol::Delta,
            _ => {}
        }
        let retry_at = if wait { now + self.backoff.wait() } else { now };
        self.stream = Stream::Down { retry_at };
    }

    /// The next request to send.
    pub(crate) fn poll_transmit(&mut self) -> Option<Outgoing> {
        if self.stream != Stream::Up {
            return None;
        }
        match self.protocol {
            Protocol::Delta => self.next_delta().map(Outgoing::Delta),
            Protocol::StateOfTheWorld => self.next_world().map(Outgoing::StateOfTheWorld),
        }
    }

    fn next_delta(&mut self) -> Option<DeltaDiscoveryRequest> {
        let max = match self.without_versions {
            true => 0,
            false => self.settings.max_initial_versions,
        };
        let node = &self.node;
        let mut subscriptions = self.subscriptions.iter_mut();
        let first = subscriptions.find_map(|s| s.first_delta(node, max));
        let next = || {
            self.subscriptions
                .iter_mut()
                .find_map(Subscription::next_delta)
        };
        if let Some(request) = first.or_else(next) {
            return Some(request);
        }
        if let Some((type_url, response_nonce)) = self.stray.take() {
            return Some(DeltaDiscoveryRequest {
                error_detail: Some(not_asked(&type_url)),
                type_url,
                response_nonce,
                ..DeltaDiscoveryRequest::default()
            });
        }
        let error_detail = self.next_health()?;
        Some(DeltaDiscoveryRequest {
            type_url: type_url::HEALTH.to_owned(),
            error_detail,
            ..DeltaDiscoveryRequest::default()
        })
    }

    fn next_world(&mut self) -> Option<DiscoveryRequest> {
        let node = &self.node;
        let mut subscriptions = self.subscriptions.iter_mut();
        let first = subscriptions.find_map(|s| s.first_world(node));
        let next = || {
            self.subscriptions
                .iter_mut()
                .find_map(Subscription::next_world)
        };
        if let Some(request) = first.or_else(next) {
            return Some(request);
        }
        if let Some((type_url, response_nonce)) = self.stray.take() {
            return Some(DiscoveryRequest {
                error_detail: Some(not_asked(&type_url)),
                type_url,
                response_nonce,
                ..DiscoveryRequest::default()
            });
        }
        let error_detail = self.next_health()?;
        Some(DiscoveryRequest {
            type_url: type_url::HEALTH.to_owned(),
            error_detail,
            ..DiscoveryRequest::default()
        })
    }

    /// The status of a report that is due. istiod drops one that is a stream's first message.
    fn next_health(&mut self) -> Option<Option<Status>> {
        let started = self.subscriptions.iter().any(|s| s.stream.started);
        if !started || !std::mem::take(&mut self.health_due) {
            return None;
        }
        Some(match self.health.as_ref()? {
            Health::Healthy => None,
            Health::Unhealthy(why) => Some(Status {
                code: UNHEALTHY,
                message: why.clone(),
                details: Vec::new(),
            }),
        })
    }

    /// A response came. What it brings is to be applied, and then [judged](Self::judged).
    pub(crate) fn received(&mut self, incoming: Incoming) -> Delivery {
        debug_assert!(self.pending.is_none(), "one response at a time");
        self.answered = true;
        self.without_versions = false;
        self.backoff.reset();
        let (url, reply, resources, removed) = parts(incoming);
        let found = self.subscriptions.iter().position(|s| *s.url == *url);
        let Some(index) = found.filter(|index| self.subscriptions[*index].stream.started) else {
            self.stray = Some((url, reply.nonce));
            return Delivery::default();
        };
        let mut delivery = Delivery::default();
        let mut pending = Pending::new(self.streams, index, reply, resources.len());
        let mut seen: HashSet<Box<str>> = HashSet::with_capacity(resources.len());
        for resource in resources {
            self.resource(resource, &mut pending, &mut seen, &mut delivery.updates);
        }
        let subscription = &mut self.subscriptions[index];
        let world = self.protocol == Protocol::StateOfTheWorld;
        let complete = world || (subscription.stream.complete && !subscription.stream.answered);
        subscription.stream.answered = true;
        let mut gone: Vec<Box<str>> = removed.into_iter().map(String::into_boxed_str).collect();
        // What is not among everything is no more, unless what it is was not understood.
        pending.complete = complete && !pending.nameless;
        if pending.complete {
            let names = subscription.known.keys();
            gone.extend(names.filter(|name| !seen.contains(*name)).cloned());
            if world {
                let wanted = subscription.wanted.keys();
                gone.extend(wanted.filter(|name| !seen.contains(*name)).cloned());
            }
        }
        for name in gone {
            if !seen.insert(name.clone()) {
                continue;
            }
            if subscription.known.contains_key(&name) {
                delivery.removed.extend(self.decoder.removed(&url, &name));
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

    fn resource(
        &mut self,
        resource: Resource,
        pending: &mut Pending,
        seen: &mut HashSet<Box<str>>,
        updates: &mut Vec<Update>,
    ) {
        let subscription = &mut self.subscriptions[pending.subscription];
        let decoded = decode(&*self.decoder, &self.settings, &subscription.url, &resource);
        let (name, update) = match decoded {
            Ok((name, update)) => (name, update),
            Err(reason) => {
                pending.refusal.add(&resource.name, &reason);
                pending.nameless |= resource.name.is_empty();
                pending.refused(&resource.name);
                // Its last good version stays.
                if resource.name.len() <= MAX_NAME {
                    seen.insert(resource.name.into());
                }
                return;
            }
        };
        if !seen.insert(name.as_str().into()) {
            pending.refusal.add(&name, "is there twice");
            pending.refused(&name);
            return;
        }
        let room = self.settings.max_resources;
        let new = !subscription.known.contains_key(&*name);
        if new && subscription.known.len() + pending.new >= room {
            let reason = format!("there are {room} resources of its type already");
            pending.refusal.add(&name, &reason);
            pending.refused(&name);
            return;
        }
        pending.new += usize::from(new);
        for asked in resource.aliases.iter().chain([&name]) {
            if let Some(absent) = subscription.wanted.get_mut(asked.as_str()) {
                *absent = false;
                // It was answered, though under another name.
                seen.insert(asked.as_str().into());
            }
        }
        if let Some(value) = resource.value.filter(|_| self.settings.changes) {
            let url = Arc::clone(&subscription.url);
            let version = resource.version.as_str();
            pending
                .kept
                .push(Kept::new(url, name.as_str(), version, &*value.value));
        }
        pending
            .accepted
            .push((name.into(), Version::new(&resource.version)));
        updates.extend(update);
    }

    /// What the last response brought was not applied, and nobody will say what became of it.
    pub(crate) fn abandoned(&mut self) {
        self.pending = None;
    }

    /// What the last response brought is in effect, but for these, by their names in discovery, and why.
    ///
    /// Returns the type whose resources are all here now, for the first time.
    pub(crate) fn judged(
        &mut self,
        rejected: impl IntoIterator<Item = (ResourceName, String)>,
    ) -> Option<Arc<str>> {
        let mut pending = self.pending.take()?;
        let mut rejected_names = HashSet::new();
        for (resource, reason) in rejected {
            let name = self.decoder.name(&resource);
            pending.refusal.add(&name, &reason);
            pending.refused(&name);
            rejected_names.insert(name);
        }
        let subscription = &mut self.subscriptions[pending.subscription];
        if pending.restored {
            let accepted = pending.accepted.into_iter();
            let accepted = accepted.filter(|(name, _)| !rejected_names.contains(&**name));
            subscription.known.extend(accepted);
            // Which of them are wanted is not known yet: what is not goes with the first answer.
            subscription.surplus |= subscription.interest == Interest::Named;
            return None;
        }
        if self.settings.changes {
            let kept = pending.kept.drain(..);
            let kept = kept.filter(|one| !rejected_names.contains(one.name()));
            self.changed.put.extend(kept);
            let gone = pending.gone.iter().cloned();
            let gone = gone.map(|name| (Arc::clone(&subscription.url), name));
            self.changed.gone.extend(gone);
        }
        if pending.complete {
            subscription.bad.clear();
            subscription.more_bad = false;
        }
        // Not before: what nobody applied is asked for again, removals too.
        for name in pending.gone {
            subscription.known.remove(&name);
            subscription.bad.remove(&name);
        }
        for (name, version) in pending.accepted {
            if !rejected_names.contains(&*name) {
                subscription.bad.remove(&name);
                subscription.known.insert(name, version);
            }
        }
        subscription.more_bad |= pending.bad.len() > MAX_BAD;
        for name in pending.bad.into_iter().take(MAX_BAD) {
            if subscription.bad.len() < MAX_BAD {
                subscription.bad.insert(name);
            } else {
                subscription.more_bad |= !subscription.bad.contains(&name);
            }
        }
        let refused = pending.refusal.take_named();
        self.refused = (!refused.is_empty()).then(|| Refused {
            type_url: subscription.url.clone(),
            resources: refused,
        });
        pending.reply.refusal = pending.refusal.into_text();
        let accepted = pending.reply.refusal.is_none();
        if pending.stream == self.streams {
            subscription.stream.reply = Some(pending.reply);
        }
        // What was refused may be what closes something: without it not all is here.
        let whole = accepted && subscription.bad.is_empty() && !subscription.more_bad;
        let first = whole && !subscription.synced;
        subscription.synced |= whole;
        first.then(|| subscription.url.clone())
    }

    /// What was refused of the response that was judged last.
    pub(crate) fn take_refused(&mut self) -> Option<Refused> {
        self.refused.take()
    }
}

fn not_asked(url: &str) -> Status {
    let mut refusal = Refusal::default();
    refusal.add(url, "was not asked for");
    Status {
        code: INVALID_ARGUMENT,
        message: refusal.into_text().unwrap_or_default(),
        details: Vec::new(),
    }
}

fn parts(incoming: Incoming) -> (String, Reply, Vec<Resource>, Vec<String>) {
    match incoming {
        Incoming::Delta(response) => {
            let resources = response.resources.into_iter().map(|resource| Resource {
                name: resource.name,
                version: resource.version,
                aliases: resource.aliases,
                value: resource.resource,
            });
            let mut removed = response.removed_resources;
            let names = response.removed_resource_names.into_iter();
            removed.extend(names.map(|name| name.name));
            let reply = Reply {
                nonce: response.nonce,
                refusal: None,
                version: String::new(),
            };
            (response.type_url, reply, resources.collect(), removed)
        }
        Incoming::StateOfTheWorld(response) => {
            let resources = response.resources.into_iter().map(|value| Resource {
                name: String::new(),
                version: String::new(),
                aliases: Vec::new(),
                value: Some(value),
            });
            let reply = Reply {
                nonce: response.nonce,
                refusal: None,
                version: response.version_info,
            };
            (response.type_url, reply, resources.collect(), Vec::new())
        }
    }
}

/// The resource's name in discovery, and what it is in the model.
fn decode(
    decoder: &dyn Decode,
    settings: &Settings,
    url: &str,
    resource: &Resource,
) -> Result<(String, Option<Update>), String> {
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
        .decode(url, &resource.name, bytes)
        .map_err(|rejection| rejection.reason().to_owned())?;
    let name = match (&update, resource.name.is_empty()) {
        (_, false) => resource.name.clone(),
        (Some(update), true) => decoder.name(&update.name()),
        (None, true) => return Err("has no name".to_owned()),
    };
    Ok((name, update))
}
