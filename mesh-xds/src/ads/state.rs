//! A session with a control plane, without I/O.
//!
//! [`Session`] is told what happens (a stream opened, a response came, names are wanted) and asked what to
//! do ([`Session::poll_transmit`], [`Session::poll_connect`], [`Session::poll_timeout`]). What is here
//! outlives streams: a lost stream changes nothing but what the next one says first.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::backoff::Backoff;
use super::kept::{Changed, Kept};
use super::refusal::{Refusal, short};
use super::settings::{Interest, Settings};
use super::subscription::{Reply, Subscription, Version, Wanted};
use crate::decode::{Decoder, Replicas, ResourceType};
use crate::error::{Error, ErrorKind};
use crate::model::{InboundListener, Rejection, ResourceName, Update};
use crate::proto::envoy::config::core::v3::Node;
use crate::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use crate::proto::google::rpc::Status;
use crate::proto::type_url;

/// gRPC's INVALID_ARGUMENT.
pub(super) const INVALID_ARGUMENT: i32 = 3;

/// gRPC's INTERNAL: what istio-agent has as the code of a host that is not healthy.
const UNHEALTHY: i32 = 13;

/// Makes resources of bytes.
pub(crate) trait Decode: Send + Sync {
    /// The update that a resource is; `None` if the model has no place for it. `name` is empty where the
    /// response has none; `replicas` is what the response had so far.
    fn decode(
        &self,
        replicas: &mut Replicas,
        url: &str,
        name: &str,
        value: &[u8],
    ) -> Result<Option<Update>, Rejection>;

    /// What goes when the resource of this name does.
    fn removed(&self, url: &str, name: &str) -> Vec<ResourceName>;

    /// The name of a resource in discovery.
    fn name(&self, resource: &ResourceName) -> String;
}

impl Decode for Decoder {
    fn decode(
        &self,
        replicas: &mut Replicas,
        url: &str,
        name: &str,
        value: &[u8],
    ) -> Result<Option<Update>, Rejection> {
        let kind = ResourceType::from_url(url);
        let kind = kind.ok_or_else(|| Rejection::new("its type has no place in the model"))?;
        self.decode_with(replicas, kind, name, value)
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
            ResourceName::InboundListener(at) => format!("{}{at}", InboundListener::NAME),
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

/// What was refused before and is not any more: it was accepted since, or it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mended {
    pub(crate) type_url: Arc<str>,
    pub(crate) names: Vec<Box<str>>,
}

/// How much of a type stands refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) type_url: Arc<str>,
    pub(crate) resources: usize,
    pub(crate) and_more: bool,
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
    pub(super) settings: Settings,
    node: Node,
    pub(super) subscriptions: Vec<Subscription>,
    pub(super) backoff: Backoff,
    pub(super) protocol: Protocol,
    stream: Stream,
    /// When the current stream was begun.
    begun: Instant,
    /// Whether the current stream had a response.
    pub(super) answered: bool,
    /// Whether the last stream was refused for what it said first.
    pub(super) without_versions: bool,
    /// When what came along with forgotten names is to go.
    recycle_at: Option<Instant>,
    health: Option<Health>,
    health_due: bool,
    /// A response of a type that nobody asked for: its type and nonce.
    pub(super) stray: Option<(String, String)>,
    pub(super) pending: Option<Pending>,
    refused: Option<Refused>,
    mended: Vec<Mended>,
    pub(super) changed: Changed,
    /// Of what was replaced, until it is let go of.
    left: Vec<(Arc<str>, Version)>,
    pub(super) streams: u64,
    /// How many responses came so far.
    pub(super) responses: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Down { retry_at: Instant },
    Opening,
    Up,
}

/// A response whose resources are being applied.
pub(super) struct Pending {
    pub(super) stream: u64,
    pub(super) subscription: usize,
    /// Which response it is, among all.
    pub(super) number: u32,
    pub(super) reply: Reply,
    /// What it brings is among what is here, in its new version; these are those before.
    pub(super) before: Vec<(Arc<str>, Version)>,
    /// Those that are worth keeping, as they came.
    pub(super) kept: Vec<Kept>,
    /// Whether it did not come from a stream.
    pub(super) restored: bool,
    pub(super) gone: Vec<Box<str>>,
    /// What was refused and had not been before, as much as can be remembered and one more, and what had been.
    pub(super) bad: BTreeSet<Box<str>>,
    pub(super) bad_again: BTreeSet<Box<str>>,
    /// Whether this is all that there is.
    pub(super) complete: bool,
    /// Whether this is all that there is but for what the stream's first request said is here.
    pub(super) first: bool,
    pub(super) refusal: Refusal,
    /// Whether a resource was refused whose name is not known.
    pub(super) nameless: bool,
}

/// Names of a type that are remembered to have been refused.
const MAX_BAD: usize = 1_000;

/// How many versions are let go of at once, some 0.1 ms.
const LEFT: usize = 1_024;

impl Pending {
    pub(super) fn new(stream: u64, subscription: usize, number: u32, reply: Reply) -> Self {
        Self {
            stream,
            subscription,
            number,
            reply,
            before: Vec::new(),
            kept: Vec::new(),
            restored: false,
            gone: Vec::new(),
            bad: BTreeSet::new(),
            bad_again: BTreeSet::new(),
            complete: false,
            first: false,
            refusal: Refusal::default(),
            nameless: false,
        }
    }

    /// What came of no stream.
    pub(super) fn restored(subscription: usize, number: u32) -> Self {
        let nobody = Reply {
            nonce: String::new(),
            refusal: None,
            version: String::new(),
        };
        Self {
            restored: true,
            ..Self::new(0, subscription, number, nobody)
        }
    }

    /// `before` is what stood refused.
    pub(super) fn refused(&mut self, name: &str, before: &BTreeSet<Box<str>>) {
        let name = short(name);
        if before.contains(name) {
            self.bad_again.insert(name.into());
        } else if self.bad.len() <= MAX_BAD {
            self.bad.insert(name.into());
        }
    }
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
            begun: now,
            answered: false,
            without_versions: false,
            recycle_at: None,
            health: None,
            health_due: false,
            stray: None,
            pending: None,
            refused: None,
            mended: Vec::new(),
            changed: Changed::default(),
            left: Vec::new(),
            streams: 0,
            responses: 0,
        })
    }

    /// How many bytes a resource may have with its names.
    pub(super) fn max_length(&self) -> usize {
        self.settings.max_length()
    }

    /// How many resources a response may remove.
    pub(super) fn max_removed(&self) -> usize {
        self.settings.max_removed
    }

    /// Whether what a large response brings is handed over while it comes.
    pub(super) fn hands_over_parts(&self) -> bool {
        self.settings.parts
    }

    /// How long to pause after some of a response was read, if at all.
    pub(super) fn pause(&self) -> Option<Duration> {
        Some(self.settings.pause).filter(|pause| !pause.is_zero())
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
        self.begun = now;
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
                let stood = !subscription.bad.is_empty() || subscription.more_bad;
                subscription.standing_due |= stood;
                subscription.more_bad = false;
                let bad = std::mem::take(&mut subscription.bad);
                self.mended.extend(Mended::of(&subscription.url, bad));
                for (name, _) in subscription.known.drain() {
                    removed.extend(self.decoder.removed(&subscription.url, &name));
                    if self.settings.changes {
                        let url = Arc::clone(&subscription.url);
                        self.changed.gone.push((url, (&*name).into()));
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
        let lived = now.saturating_duration_since(self.begun);
        let retry_at = match wait {
            false => now,
            true if !refused && lived < self.settings.backoff_first => {
                now + self.backoff.wait_after_short()
            }
            true => now + self.backoff.wait(),
        };
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
            let before = &self.subscriptions[pending.subscription].bad;
            pending.refused(&name, before);
            rejected_names.insert(name);
        }
        let subscription = &mut self.subscriptions[pending.subscription];
        if !rejected_names.is_empty() {
            pending.take_back(&mut subscription.known, &rejected_names);
        }
        self.let_go(&mut pending.before);
        let subscription = &mut self.subscriptions[pending.subscription];
        if pending.restored {
            // Which of them are wanted is not known yet: what is not goes with the first answer.
            subscription.surplus |= subscription.interest == Interest::Named;
            return None;
        }
        if self.settings.changes {
            if !rejected_names.is_empty() {
                let is_rejected = |one: &Kept| rejected_names.contains(one.name());
                pending.kept.retain(|one| !is_rejected(one));
            }
            // Of a whole mesh it goes as it is.
            if self.changed.put.is_empty() {
                self.changed.put = pending.kept;
            } else {
                self.changed.put.append(&mut pending.kept);
            }
            let gone = pending.gone.iter().cloned();
            let gone = gone.map(|name| (Arc::clone(&subscription.url), name));
            self.changed.gone.extend(gone);
        }
        let stood = !subscription.bad.is_empty() || subscription.more_bad;
        let mut mended = BTreeSet::new();
        if pending.first {
            // What was refused and is not among it is gone, or as the last good version is.
            mended.append(&mut subscription.bad);
            subscription.more_bad = false;
        }
        // Not before: what nobody applied is asked for again, removals too.
        for name in pending.gone {
            subscription.known.remove(&*name);
            mended.extend(subscription.bad.take(&name));
        }
        subscription.let_room_go();
        let known = &subscription.known;
        subscription.bad.retain(|name| {
            let known = known.get(&**name);
            // Not where a response refused it and an older version is still here.
            let seen = known.is_some_and(|known| known.seen == pending.number);
            let stands = !seen || pending.bad_again.contains(name);
            if !stands {
                mended.insert(name.clone());
            }
            stands
        });
        subscription.more_bad |= pending.bad.len() > MAX_BAD;
        // First those of which it was told that they are refused.
        let bad = pending.bad_again.into_iter().chain(pending.bad);
        for name in bad {
            if subscription.bad.len() < MAX_BAD {
                subscription.bad.insert(name);
            } else {
                subscription.more_bad |= !subscription.bad.contains(&name);
            }
        }
        mended.retain(|name| !subscription.bad.contains(name));
        self.mended.extend(Mended::of(&subscription.url, mended));
        let refused = pending.refusal.take_named();
        self.refused = (!refused.is_empty()).then(|| Refused {
            type_url: subscription.url.clone(),
            // Of others nobody would say later that they are not refused any more.
            resources: refused
                .into_iter()
                .filter(|(name, _)| subscription.bad.contains(&**name))
                .collect(),
        });
        pending.reply.refusal = pending.refusal.into_text();
        let accepted = pending.reply.refusal.is_none();
        subscription.standing_due |= stood || !accepted;
        if pending.stream == self.streams {
            subscription.stream.reply = Some(pending.reply);
        }
        // What was refused may be what closes something: without it not all is here.
        let whole = accepted && subscription.bad.is_empty() && !subscription.more_bad;
        let first = whole && !subscription.synced;
        subscription.synced |= whole;
        first.then(|| subscription.url.clone())
    }

    /// Of a whole mesh these are a hundred thousand, and whoever waits for the core waits for all of them.
    fn let_go(&mut self, before: &mut Vec<(Arc<str>, Version)>) {
        if before.len() > LEFT && self.left.is_empty() {
            self.left = std::mem::take(before);
        } else if before.len() > LEFT {
            self.left.append(before);
        }
    }

    /// Whether versions are left of what was replaced, to be [let go of](Self::shed).
    pub(crate) fn has_left(&self) -> bool {
        !self.left.is_empty()
    }

    /// Lets go of some of them.
    pub(crate) fn shed(&mut self) {
        self.left.truncate(self.left.len().saturating_sub(LEFT));
        if self.left.is_empty() {
            self.left = Vec::new();
        }
    }

    /// What is not refused any more, since it was asked last.
    pub(crate) fn take_mended(&mut self) -> Vec<Mended> {
        std::mem::take(&mut self.mended)
    }

    /// How much stands refused of the types of which that may have changed since it was asked last.
    pub(crate) fn take_standing(&mut self) -> Vec<Standing> {
        let due = self.subscriptions.iter_mut();
        let due = due.filter_map(|s| std::mem::take(&mut s.standing_due).then_some(s));
        due.map(|subscription| Standing {
            type_url: Arc::clone(&subscription.url),
            resources: subscription.bad.len(),
            and_more: subscription.more_bad,
        })
        .collect()
    }

    /// What was refused of the response that was judged last.
    pub(crate) fn take_refused(&mut self) -> Option<Refused> {
        self.refused.take()
    }
}

impl Mended {
    fn of(url: &Arc<str>, names: BTreeSet<Box<str>>) -> Option<Self> {
        (!names.is_empty()).then(|| Self {
            type_url: Arc::clone(url),
            names: names.into_iter().collect(),
        })
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
