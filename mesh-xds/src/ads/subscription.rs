//! What is asked for, what is here and what is to be said about one type of resources.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use prost::Message;

use super::settings::{Interest, MAX_NAME};
use super::state::INVALID_ARGUMENT;
use crate::error::{Error, ErrorKind};
use crate::hashing::Seeded;
use crate::proto::envoy::config::core::v3::Node;
use crate::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use crate::proto::google::rpc::Status;

/// All wanted names of a type go in one request, which istiod takes up to 4 MiB.
const MAX_NAMES_SIZE: usize = 3 * 1024 * 1024;

/// A resource's version. istiod's are hashes in 16 hexadecimal digits, kept as numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Version {
    Hash(u64),
    Text(Box<str>),
}

impl Version {
    pub(super) fn new(text: &str) -> Self {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let is_hash = text.len() == 16 && text.bytes().all(is_digit);
        match u64::from_str_radix(text, 16).ok().filter(|_| is_hash) {
            Some(hash) => Self::Hash(hash),
            // One that nobody would say again only makes the server send the resource again.
            None if text.len() > MAX_NAME => Self::Text("".into()),
            None => Self::Text(text.into()),
        }
    }

    fn to_text(&self) -> String {
        match self {
            Self::Hash(hash) => format!("{hash:016x}"),
            Self::Text(text) => text.to_string(),
        }
    }
}

/// A resource that is here, or is being applied.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) version: Version,
    /// The last response that had it.
    pub(super) seen: u32,
    /// Whether it was not here before that.
    pub(super) new: bool,
}

/// An answer to a response.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) nonce: String,
    /// Why some of it was refused.
    pub(super) refusal: Option<String>,
    /// State of the world: the version of the response.
    pub(super) version: String,
}

impl Reply {
    fn error_detail(&mut self) -> Option<Status> {
        let message = self.refusal.take()?;
        Some(Status {
            code: INVALID_ARGUMENT,
            message,
            details: Vec::new(),
        })
    }
}

/// What the caller learns of a name that it wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// It is asked for now, or with the next stream.
    Asked,
    /// It was asked for before.
    Already,
    /// It was asked for before, and there is no such resource.
    Absent,
}

#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) url: Arc<str>,
    pub(super) interest: Interest,
    /// The names that are wanted, and whether it is known that there is no such resource.
    pub(super) wanted: BTreeMap<Box<str>, bool>,
    wanted_size: usize,
    /// What is here.
    pub(super) known: HashMap<Arc<str>, Known, Seeded>,
    /// Whether all that came was accepted, ever.
    pub(super) synced: bool,
    /// What was refused and has not been accepted or removed since, and whether there was more of it than
    /// is remembered.
    pub(super) bad: BTreeSet<Box<str>>,
    pub(super) more_bad: bool,
    /// Whether that is to be told.
    pub(super) standing_due: bool,
    /// Whether what is here has more than what is wanted: the next stream asks for everything anew.
    pub(super) surplus: bool,
    pub(super) stream: OnStream,
}

/// What holds for one stream.
#[derive(Debug, Default)]
pub(super) struct OnStream {
    pub(super) started: bool,
    pub(super) answered: bool,
    /// Whether the first answer has everything.
    pub(super) complete: bool,
    /// Whether the first request said which versions are here.
    pub(super) said_versions: bool,
    pub(super) reply: Option<Reply>,
    /// What is to be said; the second goes first.
    subscribe: BTreeSet<Box<str>>,
    unsubscribe: BTreeSet<Box<str>>,
    /// State of the world: the last version that was accepted and the last nonce.
    version: String,
    nonce: String,
    /// State of the world: the names of the last request.
    named: Vec<String>,
}

impl Subscription {
    /// Keeps no room for many more names than there are: a response that was refused had as many as it liked.
    pub(super) fn let_room_go(&mut self) {
        let names = self.known.len().max(1024);
        if self.known.capacity() / 4 > names {
            self.known.shrink_to(2 * names);
        }
    }

    pub(super) fn new(url: &str, interest: Interest) -> Self {
        Self {
            url: url.into(),
            interest,
            wanted: BTreeMap::new(),
            wanted_size: 0,
            known: HashMap::default(),
            synced: false,
            bad: BTreeSet::new(),
            more_bad: false,
            standing_due: false,
            surplus: false,
            stream: OnStream::default(),
        }
    }

    pub(super) fn want(&mut self, name: &str, max_names: usize) -> Result<Wanted, Error> {
        if self.interest == Interest::All {
            return Ok(Wanted::Already);
        }
        if let Some(absent) = self.wanted.get(name) {
            return Ok(if *absent {
                Wanted::Absent
            } else {
                Wanted::Already
            });
        }
        let refuse = |detail: String| Err(Error::new(ErrorKind::InvalidSettings, detail));
        if name.is_empty() || name.len() > MAX_NAME || name == "*" {
            return refuse(format!("expected a name of 1 to {MAX_NAME} bytes"));
        }
        if self.wanted.len() >= max_names || self.wanted_size + name.len() > MAX_NAMES_SIZE {
            return refuse(format!(
                "more than {} names of {}",
                self.wanted.len(),
                self.url
            ));
        }
        self.wanted.insert(name.into(), false);
        self.wanted_size += name.len();
        self.stream.subscribe.insert(name.into());
        Ok(Wanted::Asked)
    }

    /// Whether the name was wanted, and asked for.
    pub(super) fn forget(&mut self, name: &str) -> bool {
        let Some((name, _)) = self.wanted.remove_entry(name) else {
            return false;
        };
        self.wanted_size -= name.len();
        // What the server was not asked for is not taken back, and has brought nothing along.
        if self.stream.subscribe.remove(&name) {
            return false;
        }
        // The next stream asks for what is wanted then.
        if self.stream.started {
            self.stream.unsubscribe.insert(name);
        }
        // What it brings along may be here, or on its way.
        self.surplus |= self.stream.started || !self.known.is_empty();
        true
    }

    /// The first request of the type on this stream, if it is due.
    pub(super) fn first_delta(
        &mut self,
        node: &Node,
        max_versions: usize,
    ) -> Option<DeltaDiscoveryRequest> {
        if self.stream.started || !self.has_interest() {
            return None;
        }
        self.start();
        let mut request = DeltaDiscoveryRequest {
            node: Some(node.clone()),
            type_url: self.url.to_string(),
            resource_names_subscribe: self.names(),
            ..DeltaDiscoveryRequest::default()
        };
        if !self.surplus && max_versions > 0 {
            let known = self.known.iter();
            let known = known.map(|(name, known)| (name.to_string(), known.version.to_text()));
            request.initial_resource_versions = known.collect();
            if request.encoded_len() > max_versions {
                request.initial_resource_versions.clear();
            }
        }
        self.stream.said_versions = !request.initial_resource_versions.is_empty();
        self.stream.complete = !self.stream.said_versions;
        self.surplus &= !self.stream.complete;
        Some(request)
    }

    /// An answer, or a change of names.
    pub(super) fn next_delta(&mut self) -> Option<DeltaDiscoveryRequest> {
        if !self.stream.started {
            return None;
        }
        let mut request = DeltaDiscoveryRequest {
            type_url: self.url.to_string(),
            ..DeltaDiscoveryRequest::default()
        };
        if let Some(mut reply) = self.stream.reply.take() {
            request.error_detail = reply.error_detail();
            request.response_nonce = reply.nonce;
            return Some(request);
        }
        let take = |names: &mut BTreeSet<Box<str>>| {
            let names = std::mem::take(names);
            names.into_iter().map(String::from).collect::<Vec<_>>()
        };
        request.resource_names_unsubscribe = take(&mut self.stream.unsubscribe);
        // Of a name in both lists istiod takes the subscription away, and one that it has already it does not answer:
        // what is forgotten and wanted again is given up first.
        let is_wanted_again = |name: &String| self.stream.subscribe.contains(&**name);
        if !request
            .resource_names_unsubscribe
            .iter()
            .any(is_wanted_again)
        {
            request.resource_names_subscribe = take(&mut self.stream.subscribe);
        }
        let some = !request.resource_names_subscribe.is_empty()
            || !request.resource_names_unsubscribe.is_empty();
        some.then_some(request)
    }

    pub(super) fn first_world(&mut self, node: &Node) -> Option<DiscoveryRequest> {
        if self.stream.started || !self.has_interest() {
            return None;
        }
        self.start();
        self.stream.complete = true;
        self.stream.named = self.names();
        self.surplus = false;
        Some(DiscoveryRequest {
            node: Some(node.clone()),
            ..self.world()
        })
    }

    pub(super) fn next_world(&mut self) -> Option<DiscoveryRequest> {
        if !self.stream.started {
            return None;
        }
        if !self.has_interest() {
            // No names would be all of them. The next stream does not ask for the type.
            return None;
        }
        let mut error_detail = None;
        let names = self.names();
        if let Some(mut reply) = self.stream.reply.take() {
            error_detail = reply.error_detail();
            if error_detail.is_none() {
                self.stream.version = reply.version;
            }
            self.stream.nonce = reply.nonce;
        } else if names == self.stream.named {
            return None;
        }
        self.stream.named = names;
        self.stream.subscribe.clear();
        Some(DiscoveryRequest {
            error_detail,
            ..self.world()
        })
    }

    fn world(&self) -> DiscoveryRequest {
        DiscoveryRequest {
            version_info: self.stream.version.clone(),
            resource_names: self.stream.named.clone(),
            type_url: self.url.to_string(),
            response_nonce: self.stream.nonce.clone(),
            ..DiscoveryRequest::default()
        }
    }

    fn start(&mut self) {
        self.stream.started = true;
        self.stream.subscribe.clear();
        self.stream.unsubscribe.clear();
    }

    pub(super) fn has_interest(&self) -> bool {
        self.interest == Interest::All || !self.wanted.is_empty()
    }

    fn names(&self) -> Vec<String> {
        self.wanted.keys().map(ToString::to_string).collect()
    }
}
