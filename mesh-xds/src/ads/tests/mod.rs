//! A scripted control plane drives the session; see each file for what it shows.

mod answers;
mod backoff;
mod client;
mod converges;
mod parts;
mod protocol;
mod refusals;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use prost::Message;

use super::state::{Decode, Delivery, Outgoing, Protocol, Session};
use super::{Interest, Node, Settings};
use crate::decode::Replicas;
use crate::model::{Rejection, ResourceName, Update, Workload};
use crate::proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use crate::proto::google::protobuf::Any;

pub(super) const URL: &str = "type.googleapis.com/test.Thing";
pub(super) const OTHER: &str = "type.googleapis.com/test.Other";

/// A resource is the text `<name>=<value>`; a value that begins with `!` is refused.
pub(super) struct Texts;

impl Decode for Texts {
    fn decode(
        &self,
        _: &mut Replicas,
        _: &str,
        name: &str,
        value: &[u8],
    ) -> Result<Option<Update>, Rejection> {
        let text = std::str::from_utf8(value).map_err(|_| Rejection::new("expected UTF-8"))?;
        let (own, value) = text
            .split_once('=')
            .ok_or_else(|| Rejection::new("expected <name>=<value>"))?;
        if !name.is_empty() && name != own {
            return Err(Rejection::new("is another one"));
        }
        if value.starts_with('!') {
            return Err(Rejection::new("value: expected a good one"));
        }
        Ok(Some(Workload::new(own, "ns", value).into()))
    }

    fn removed(&self, _: &str, name: &str) -> Vec<ResourceName> {
        vec![ResourceName::Workload(name.into())]
    }

    fn name(&self, resource: &ResourceName) -> String {
        match resource {
            ResourceName::Workload(uid) => uid.to_string(),
            other => panic!("{other} is none of ours"),
        }
    }
}

pub(super) fn settings(types: &[(&str, Interest)]) -> Settings {
    let settings = Settings::new(Node::new("ztunnel~10.0.0.1~a.ns~ns.svc.cluster.local"));
    types
        .iter()
        .fold(settings.with_seed(7), |settings, (url, interest)| {
            settings.with_type(*url, *interest)
        })
}

pub(super) fn session(settings: Settings) -> (Session, Instant) {
    let now = Instant::now();
    let session = Session::new(settings, Arc::new(Texts), now).expect("settings");
    (session, now)
}

pub(super) fn packed(url: &str, name: &str, value: &str) -> Any {
    Any {
        type_url: url.to_owned(),
        value: format!("{name}={value}").into(),
    }
}

pub(super) fn resource(name: &str, version: &str, value: &str) -> Resource {
    Resource {
        name: name.to_owned(),
        version: version.to_owned(),
        resource: Some(packed(URL, name, value)),
        ..Resource::default()
    }
}

pub(super) fn response(nonce: &str, resources: Vec<Resource>, removed: &[&str]) -> Incoming {
    Incoming::Delta(DeltaDiscoveryResponse {
        type_url: URL.to_owned(),
        nonce: nonce.to_owned(),
        resources,
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryResponse::default()
    })
}

/// A response that came.
#[derive(Debug, Clone)]
pub(super) enum Incoming {
    Delta(DeltaDiscoveryResponse),
    StateOfTheWorld(DiscoveryResponse),
}

impl Session {
    #[track_caller]
    pub(super) fn received(&mut self, incoming: Incoming) -> Delivery {
        let (protocol, message) = match incoming {
            Incoming::Delta(response) => (Protocol::Delta, response.encode_to_vec()),
            Incoming::StateOfTheWorld(response) => {
                (Protocol::StateOfTheWorld, response.encode_to_vec())
            }
        };
        let delivery = self.receive(protocol, message.into());
        delivery.expect("it is a response")
    }
}

/// Opens a stream; the session has to want one now.
#[track_caller]
pub(super) fn open(session: &mut Session, now: Instant) -> Vec<ResourceName> {
    assert!(session.poll_connect(now).is_some(), "a stream is wanted");
    session.opened()
}

#[track_caller]
pub(super) fn delta(session: &mut Session) -> DeltaDiscoveryRequest {
    match session.poll_transmit() {
        Some(Outgoing::Delta(request)) => request,
        other => panic!("expected a delta request: {other:?}"),
    }
}

#[track_caller]
pub(super) fn world(session: &mut Session) -> DiscoveryRequest {
    match session.poll_transmit() {
        Some(Outgoing::StateOfTheWorld(request)) => request,
        other => panic!("expected a request of the state of the world: {other:?}"),
    }
}

/// The wait until the session wants a stream again.
#[track_caller]
pub(super) fn wait(session: &Session, now: Instant) -> Duration {
    session.poll_timeout().expect("a time") - now
}
