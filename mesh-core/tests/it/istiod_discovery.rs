//! The discovery of the istiod in memory: what it knows is what a recorded stream said, and it answers
//! as the real one does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::BufMut;
use futures_util::StreamExt;
use mesh_core::authz::Identity;
use prost::Message;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::server::{Grpc, StreamingService};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::istiod::{self, HttpRequest, HttpResponse, Istiod, Method};

pub(crate) const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
pub(crate) const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
pub(crate) const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
pub(crate) const HEALTH: &str = "type.googleapis.com/istio.v1.HealthInformation";

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Ask {
    #[prost(message, optional, tag = "1")]
    pub(crate) node: Option<Node>,
    #[prost(string, tag = "2")]
    pub(crate) type_url: String,
    #[prost(string, repeated, tag = "3")]
    pub(crate) subscribe: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    pub(crate) unsubscribe: Vec<String>,
    #[prost(btree_map = "string, string", tag = "5")]
    pub(crate) versions: BTreeMap<String, String>,
    #[prost(string, tag = "6")]
    pub(crate) nonce: String,
    #[prost(message, optional, tag = "7")]
    pub(crate) error: Option<Problem>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Problem {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Node {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(message, optional, tag = "3")]
    pub(crate) metadata: Option<istiod::Struct>,
    #[prost(message, optional, tag = "4")]
    pub(crate) locality: Option<Locality>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Locality {
    #[prost(string, tag = "1")]
    pub(crate) region: String,
    #[prost(string, tag = "2")]
    pub(crate) zone: String,
    #[prost(string, tag = "3")]
    pub(crate) subzone: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Answer {
    #[prost(message, repeated, tag = "2")]
    pub(crate) resources: Vec<Resource>,
    #[prost(string, tag = "4")]
    pub(crate) type_url: String,
    #[prost(string, tag = "5")]
    pub(crate) nonce: String,
    #[prost(string, repeated, tag = "6")]
    pub(crate) removed: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Resource {
    #[prost(string, tag = "1")]
    pub(crate) version: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) value: Option<Any>,
    #[prost(string, tag = "3")]
    pub(crate) name: String,
    #[prost(string, repeated, tag = "4")]
    pub(crate) aliases: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Any {
    #[prost(string, tag = "1")]
    pub(crate) type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) value: Vec<u8>,
}

/// A recorded response and the step of the manifests that it belongs to.
#[derive(Clone)]
pub(crate) struct Recorded {
    pub(crate) step: String,
    pub(crate) answer: Answer,
}

/// The responses of a recorded stream, in order.
pub(crate) fn recorded(client: &Path) -> Vec<Recorded> {
    let stream = fs::read_to_string(client.join("stream.jsonl")).unwrap();
    let lines = stream
        .lines()
        .map(|line| -> Value { serde_json::from_str(line).unwrap() });
    let server = lines.filter(|line| line["from"] == "server");
    let read = |line: Value| {
        let text = |name: &str| line[name].as_str().unwrap().to_owned();
        let bytes = fs::read(client.join(text("file") + ".pb")).unwrap();
        Recorded {
            step: text("step"),
            answer: Answer::decode(&*bytes).unwrap(),
        }
    };
    server.map(read).collect()
}

/// What was asked on which stream, and by whom.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) stream: usize,
    pub(crate) ask: Ask,
    pub(crate) by_token: bool,
}

#[derive(Default)]
pub(crate) struct Discovery {
    state: Mutex<State>,
}

/// Addresses that are made when they are asked for, so that a large mesh takes no memory here.
#[derive(Clone, Copy)]
pub(crate) struct Made {
    pub(crate) all: fn() -> Vec<Resource>,
    pub(crate) of: fn(name: &str) -> Vec<Resource>,
}

#[derive(Default)]
struct State {
    /// Beside the world.
    made: Option<Made>,
    world: BTreeMap<String, BTreeMap<String, Resource>>,
    /// What the streams that are open send.
    streams: BTreeMap<usize, Open>,
    opened: usize,
    asked: Vec<Asked>,
    nonces: usize,
    /// What streams are refused with.
    refuse: Option<(Code, &'static str)>,
    /// Types of which nothing is answered.
    silent: BTreeSet<&'static str>,
}

/// What is sent on a stream.
pub(crate) enum Sent {
    Answer(Answer),
    Raw(Vec<u8>),
}

/// protobuf, or what is to look like it.
#[derive(Default)]
pub(crate) struct SentCodec;

impl Codec for SentCodec {
    type Encode = Sent;
    type Decode = Ask;
    type Encoder = Self;
    type Decoder = <ProstCodec<Answer, Ask> as Codec>::Decoder;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<Answer, Ask>::default().decoder()
    }
}

impl Encoder for SentCodec {
    type Item = Sent;
    type Error = Status;

    fn encode(&mut self, sent: Sent, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        match sent {
            Sent::Answer(answer) => to.put_slice(&answer.encode_to_vec()),
            Sent::Raw(bytes) => to.put_slice(&bytes),
        }
        Ok(())
    }
}

struct Open {
    send: mpsc::UnboundedSender<Result<Sent, Status>>,
    types: BTreeMap<String, BTreeSet<String>>,
}

impl Discovery {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Says something to all streams that asked for its type, and knows it from now on.
    ///
    /// Gives its nonce, and how many were told.
    pub(crate) fn say(&self, answer: &Answer) -> (String, usize) {
        let mut state = self.state();
        let known = state.world.entry(answer.type_url.clone()).or_default();
        for resource in &answer.resources {
            known.insert(resource.name.clone(), resource.clone());
        }
        for name in &answer.removed {
            known.remove(name);
        }
        state.nonces += 1;
        let nonce = format!("pushed-{}", state.nonces);
        let mut told = 0;
        for open in state.streams.values() {
            let Some(names) = open.types.get(&answer.type_url) else {
                continue;
            };
            let mut answer = answer.clone();
            answer.nonce.clone_from(&nonce);
            if !names.is_empty() {
                answer.resources.retain(|one| names.contains(&one.name));
            }
            told += usize::from(open.send.send(Ok(Sent::Answer(answer))).is_ok());
        }
        (nonce, told)
    }

    #[allow(dead_code, reason = "for on_demand_memory.rs, a binary of its own")]
    pub(crate) fn make(&self, made: Made) {
        self.state().made = Some(made);
    }

    /// Sends bytes of this type that are none of it, to all streams.
    pub(crate) fn garble(&self, answer: &Answer) {
        for open in self.state().streams.values() {
            let _ = open.send.send(Ok(Sent::Answer(answer.clone())));
        }
    }

    /// Sends a message of these bytes, whatever they are, to all streams.
    pub(crate) fn say_raw(&self, bytes: &[u8]) {
        for open in self.state().streams.values() {
            let _ = open.send.send(Ok(Sent::Raw(bytes.to_vec())));
        }
    }

    /// Ends all streams.
    pub(crate) fn end_streams(&self) {
        self.state().streams.clear();
    }

    pub(crate) fn refuse(&self, with: Option<(Code, &'static str)>) {
        self.state().refuse = with;
    }

    pub(crate) fn be_silent_of(&self, type_url: &'static str, silent: bool) {
        let mut state = self.state();
        match silent {
            true => state.silent.insert(type_url),
            false => state.silent.remove(type_url),
        };
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state().asked.clone()
    }

    pub(crate) fn streams(&self) -> usize {
        self.state().opened
    }

    fn open(&self) -> (usize, UnboundedReceiverStream<Result<Sent, Status>>) {
        let mut state = self.state();
        state.opened += 1;
        let number = state.opened;
        let (send, receive) = mpsc::unbounded_channel();
        let types = BTreeMap::new();
        state.streams.insert(number, Open { send, types });
        (number, receive.into())
    }

    fn hear(&self, stream: usize, ask: Ask, by_token: bool) {
        let mut state = self.state();
        state.asked.push(Asked {
            stream,
            ask: ask.clone(),
            by_token,
        });
        let State {
            made,
            world,
            streams,
            nonces,
            silent,
            ..
        } = &mut *state;
        let Some(open) = streams.get_mut(&stream) else {
            return;
        };
        if ask.type_url == HEALTH || silent.contains(&*ask.type_url) {
            return;
        }
        let first = !open.types.contains_key(&ask.type_url);
        let names = open.types.entry(ask.type_url.clone()).or_default();
        if !first && ask.subscribe.is_empty() {
            for name in &ask.unsubscribe {
                names.remove(name);
            }
            return;
        }
        names.extend(ask.subscribe.iter().cloned());
        let empty = BTreeMap::new();
        let known = world.get(&ask.type_url).unwrap_or(&empty);
        let wildcard = names.is_empty();
        let is_named =
            |one: &Resource, name: &String| one.name == *name || one.aliases.contains(name);
        let resources = known.values().filter(|one| {
            let wanted = wildcard || ask.subscribe.iter().any(|name| is_named(one, name));
            wanted && ask.versions.get(&one.name) != Some(&one.version)
        });
        let mut resources: Vec<_> = resources.cloned().collect();
        if let Some(made) = made.filter(|_| ask.type_url == ADDRESS) {
            match wildcard {
                true => resources.extend((made.all)()),
                false => resources.extend(ask.subscribe.iter().flat_map(|name| (made.of)(name))),
            }
        }
        let gone = |name: &&String| {
            let mut there = known.values().chain(&resources);
            !there.any(|one| is_named(one, name))
        };
        let removed = ask.versions.keys().chain(&ask.subscribe).filter(gone);
        let removed = removed.cloned().collect();
        *nonces += 1;
        let answer = Answer {
            resources,
            removed,
            type_url: ask.type_url,
            nonce: format!("answer-{nonces}"),
        };
        let _ = open.send.send(Ok(Sent::Answer(answer)));
    }
}

/// The gRPC service.
#[derive(Clone)]
pub(crate) struct Service(pub(crate) Arc<Istiod>);

impl Method for Service {
    const SERVICE: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
    const METHOD: &'static str = "DeltaAggregatedResources";

    async fn answer(self, request: HttpRequest) -> HttpResponse {
        Grpc::new(SentCodec).streaming(self, request).await
    }
}

pub(crate) type Answers = Pin<Box<dyn futures_util::Stream<Item = Result<Sent, Status>> + Send>>;

impl StreamingService<Ask> for Service {
    type Response = Sent;
    type ResponseStream = Answers;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answers>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<Ask>>) -> Self::Future {
        let istiod = Arc::clone(&self.0);
        Box::pin(async move {
            let header = request.metadata().get("authorization");
            let header = header.map(|value| value.to_str().unwrap().to_owned());
            let peer = request
                .extensions()
                .get::<istiod::PeerOf>()
                .unwrap()
                .0
                .clone();
            let by_token = peer.is_none();
            if let Some((code, message)) = istiod.discovery.state().refuse {
                return Err(Status::new(code, message));
            }
            let who = istiod.who(header.as_deref(), peer.as_ref());
            let who: Identity =
                who.ok_or_else(|| Status::unauthenticated("authentication failure"))?;
            let (number, answers) = istiod.discovery.open();
            let mut asks = request.into_inner();
            tokio::spawn(async move {
                while let Some(Ok(ask)) = asks.next().await {
                    if let Some(node) = &ask.node {
                        // As istiod: an identity must be of the namespace that the node says.
                        let namespace = &node.metadata.as_ref().unwrap().fields["NAMESPACE"];
                        assert_eq!(namespace.string, who.namespace());
                    }
                    istiod.discovery.hear(number, ask, by_token);
                }
                istiod.discovery.state().streams.remove(&number);
            });
            Ok(Response::new(Box::pin(answers) as Answers))
        })
    }
}
