//! Discovery over gRPC: a [`Session`] for each stream.

use std::error::Error as StdError;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{StreamExt, unfold};
use http::header::USER_AGENT;
use mesh_authz::Identity;
use prost::Message;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tonic::body::Body;
use tonic::{Code, Status, Streaming};

use super::auth::Credentials;
use super::outgoing::Outgoing;
use super::registry::Refused;
use super::server::{Registered, Shared};
use super::session::{Bounds, End, Session};
use super::status::{ClientStatus, Features};
use super::store::{Owner, Store};
use super::{host, stream};
use crate::proto::envoy::config::core::v3::Node;
use crate::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use crate::proto::google::protobuf::value::Kind;
use crate::proto::google::rpc;
use crate::proto::type_url;

/// Characters of what a client says is wrong with its application.
const MAX_HEALTH: usize = 1024;

/// Bytes of a node's id. Each of its four parts has 253 at most.
const MAX_NODE_ID: usize = 1024;

/// Characters of what a client says its version is, and of each of its features.
const MAX_VERSION: usize = 256;

/// Features of a client; Envoy has some ten.
const MAX_FEATURES: usize = 32;

/// Opens a stream, and answers it.
pub(super) async fn open<P, B>(
    shared: Arc<Shared>,
    request: http::Request<B>,
) -> http::Response<Body>
where
    P: Protocol,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>> + Send,
{
    match Running::<P>::open(&shared, request).await {
        Ok(running) => stream::answer(unfold(running, |mut running| async {
            let next = running.next().await?;
            Some((next, running))
        })),
        Err(status) => status.into_http(),
    }
}

/// # Errors
///
/// `Unauthenticated`, if the caller does not prove who it is.
pub(super) async fn authenticate(
    shared: &Shared,
    caller: &Credentials,
) -> Result<Identity, Status> {
    let found = shared.authenticator.authenticate(caller).await;
    found.map_err(|refused| {
        let text = refused.to_string();
        shared.reject(caller.remote(), None, &text);
        Status::unauthenticated(text)
    })
}

/// One of the two protocols of discovery.
pub(super) trait Protocol: Send + 'static {
    const DELTA: bool;
    type Request: Message + Default + 'static;
    fn node(request: &mut Self::Request) -> Option<Node>;
    fn type_url(request: &Self::Request) -> &str;
    fn error(request: Self::Request) -> Option<rpc::Status>;
    fn request(session: &mut Session, request: Self::Request, store: &Store) -> Result<(), End>;
    fn poll(session: &mut Session, store: &Store) -> Result<Option<Outgoing>, End>;
}

pub(super) struct Delta;

impl Protocol for Delta {
    const DELTA: bool = true;
    type Request = DeltaDiscoveryRequest;

    fn node(request: &mut Self::Request) -> Option<Node> {
        request.node.take()
    }

    fn type_url(request: &Self::Request) -> &str {
        &request.type_url
    }

    fn error(request: Self::Request) -> Option<rpc::Status> {
        request.error_detail
    }

    fn request(session: &mut Session, request: Self::Request, store: &Store) -> Result<(), End> {
        session.request(request, store)
    }

    fn poll(session: &mut Session, store: &Store) -> Result<Option<Outgoing>, End> {
        session.poll(store)
    }
}

pub(super) struct World;

impl Protocol for World {
    const DELTA: bool = false;
    type Request = DiscoveryRequest;

    fn node(request: &mut Self::Request) -> Option<Node> {
        request.node.take()
    }

    fn type_url(request: &Self::Request) -> &str {
        &request.type_url
    }

    fn error(request: Self::Request) -> Option<rpc::Status> {
        request.error_detail
    }

    fn request(session: &mut Session, request: Self::Request, _: &Store) -> Result<(), End> {
        session.world_request(request)
    }

    fn poll(session: &mut Session, store: &Store) -> Result<Option<Outgoing>, End> {
        session.world_poll(store)
    }
}

/// A stream that is open. It makes a response when one is wanted, so what changes while the client does
/// not read costs nothing.
struct Running<P: Protocol> {
    changes: watch::Receiver<u64>,
    session: Session,
    client: Registered,
    from: Option<IpAddr>,
    requests: Streaming<P::Request>,
    ended: bool,
}

impl<P: Protocol> Running<P> {
    async fn open<B>(shared: &Arc<Shared>, request: http::Request<B>) -> Result<Self, Status>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>> + Send,
    {
        let (head, body) = request.into_parts();
        let requests = stream::requests(&head.headers, body, shared.limits.request)?;
        let caller = Credentials::of(&head.headers, &head.extensions);
        let identity = authenticate(shared, &caller).await?;
        let agent = head.headers.get(USER_AGENT);
        let agent = agent
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let status = ClientStatus {
            id: 0,
            identity,
            node_id: String::new(),
            version: agent,
            features: Features::default(),
            delta: P::DELTA,
            subscriptions: Vec::new(),
            health: None,
        };
        let (from, who) = (caller.remote(), status.identity.clone());
        let client = shared.enter(status).map_err(|full| {
            let text = full.to_string();
            shared.reject(from, Some(&who), &text);
            Status::resource_exhausted(text)
        })?;
        Ok(Self {
            changes: shared.changes(),
            session: Session::new(Bounds {
                names: shared.limits.names,
                size: shared.limits.names_size,
            }),
            client,
            from,
            requests,
            ended: false,
        })
    }

    async fn next(&mut self) -> Option<Result<Outgoing, Status>> {
        if self.ended {
            return None;
        }
        loop {
            self.changes.mark_unchanged();
            let shared = &self.client.shared;
            let response = shared.read(|store| P::poll(&mut self.session, store));
            match response {
                Ok(None) => {}
                Ok(Some(response)) => {
                    self.show();
                    return Some(Ok(response));
                }
                Err(end) => return self.end(end.into()),
            }
            let report = self.client.next_report();
            tokio::select! {
                request = self.requests.next() => match request {
                    None => return None,
                    Some(Err(status)) => return self.end(of_request(status)),
                    Some(Ok(request)) => {
                        if let Err(status) = self.request(request) {
                            return self.end(status);
                        }
                    }
                },
                changed = self.changes.changed() => if changed.is_err() {
                    return None;
                },
                () = sleep_until(report.unwrap_or_else(Instant::now)), if report.is_some() => {
                    self.client.report_due();
                }
            }
        }
    }

    fn request(&mut self, mut request: P::Request) -> Result<(), Status> {
        if let Some(node) = P::node(&mut request)
            && self.client.status.node_id.is_empty()
        {
            self.client.status.node_id = check_node(&node, &self.client.status.identity)?;
            self.client.status.features = features(&node);
            if has_listeners(&node) {
                self.session.own(Owner {
                    identity: self.client.status.identity.clone(),
                    network: text(&node, "NETWORK").unwrap_or_default().into(),
                });
            }
            if let Some(host) = host::read(&node, &self.client.status.identity)? {
                self.client.register(host)?;
            }
            let version = text(&node, "ISTIO_VERSION").map(str::to_owned);
            let version = version.or_else(|| build(&node));
            let version = version.map(|text| text.chars().take(MAX_VERSION).collect());
            self.client.status.version = version.or(self.client.status.version.take());
        }
        if self.client.status.node_id.is_empty() {
            let text = "node: missing, expected one in the first request";
            return Err(Status::invalid_argument(text));
        }
        // No answer is wanted to those.
        if P::type_url(&request) == type_url::HEALTH {
            let mut text = P::error(request).map(|error| error.message);
            text = text.map(|text| text.chars().take(MAX_HEALTH).collect());
            self.client.report(text.map_or(Ok(()), Err));
        } else {
            let shared = &self.client.shared;
            shared.read(|store| P::request(&mut self.session, request, store))?;
        }
        self.show();
        Ok(())
    }

    fn show(&mut self) {
        self.client.status.subscriptions = self.session.subscriptions();
        self.client.show();
    }

    fn end<T>(&mut self, status: Status) -> Option<Result<T, Status>> {
        self.ended = true;
        let ClientStatus {
            identity, node_id, ..
        } = &self.client.status;
        match status.code() {
            Code::Cancelled => {}
            Code::InvalidArgument
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::AlreadyExists
            | Code::ResourceExhausted => {
                let shared = &self.client.shared;
                shared.reject(self.from, Some(identity), status.message());
            }
            _ => tracing::debug!(node = node_id, %status, "a stream ends"),
        }
        Some(Err(status))
    }
}

/// A request that is too large is OUT_OF_RANGE to tonic, and RESOURCE_EXHAUSTED to grpc-go, so to istiod.
fn of_request(status: Status) -> Status {
    match status.code() {
        Code::OutOfRange => Status::resource_exhausted(status.message()),
        _ => status,
    }
}

impl From<End> for Status {
    fn from(end: End) -> Self {
        match end {
            End::Invalid(text) => Self::invalid_argument(text),
            End::TooManyNames(most) => {
                Self::resource_exhausted(format!("more than {most} names of a type"))
            }
            End::NamesTooLarge(most) => {
                Self::resource_exhausted(format!("names of more than {most} bytes together"))
            }
            End::Behind => Self::aborted("too far behind: connect anew"),
            End::TooLarge => Self::resource_exhausted("a response of more than 4 GiB"),
        }
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        match refused {
            Refused::NoGroup(_) => Self::failed_precondition(text),
            Refused::Account { .. } => Self::permission_denied(text),
            Refused::Taken { .. } => Self::already_exists(text),
            Refused::TooMany(_) | Refused::TooManyOf(..) => Self::resource_exhausted(text),
        }
    }
}

/// The node's id, if the node is of whom the caller proved to be: its namespace, and its service account
/// where it says one. As in istiod the trust domain is not compared.
fn check_node(node: &Node, identity: &Identity) -> Result<String, Status> {
    if node.id.len() > MAX_NODE_ID {
        let length = node.id.len();
        let text = format!("node.id: {length} bytes, expected at most {MAX_NODE_ID}");
        return Err(Status::invalid_argument(text));
    }
    let parts: Vec<_> = node.id.split('~').collect();
    let [_, _, _, domain] = parts.as_slice() else {
        let expected = "<type>~<address>~<name>.<namespace>~<domain>";
        let text = format!("node.id: {:?}, expected {expected}", node.id);
        return Err(Status::invalid_argument(text));
    };
    let in_id = domain.split('.').next().filter(|label| !label.is_empty());
    let namespace = text(node, "NAMESPACE").or(in_id).unwrap_or_default();
    if namespace != identity.namespace() {
        let text = format!("node.metadata.NAMESPACE: {namespace:?} is not that of {identity}");
        return Err(Status::permission_denied(text));
    }
    if let Some(account) = text(node, "SERVICE_ACCOUNT")
        && account != identity.service_account()
    {
        let text = format!("node.metadata.SERVICE_ACCOUNT: {account:?} is not that of {identity}");
        return Err(Status::permission_denied(text));
    }
    Ok(node.id.clone())
}

/// What the node says that it is and can do.
fn features(node: &Node) -> Features {
    let short = |text: &str| -> String { text.chars().take(MAX_VERSION).collect() };
    let of_client = node.client_features.iter().take(MAX_FEATURES);
    Features {
        generator: text(node, "GENERATOR").map(short),
        hbone: text(node, "ENABLE_HBONE") == Some("true"),
        of_client: of_client.map(|feature| short(feature)).collect(),
    }
}

/// Whether istiod would make inbound listeners in the form for proxyless servers, and take the node for one
/// that is reached by HBONE.
fn has_listeners(node: &Node) -> bool {
    node.id.starts_with("sidecar~")
        && text(node, "GENERATOR") == Some("grpc")
        && text(node, "ENABLE_HBONE") == Some("true")
}

pub(super) fn text<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    let value = node.metadata.as_ref()?.fields.get(key)?;
    match value.kind.as_ref()? {
        Kind::StringValue(text) if !text.is_empty() => Some(text),
        _ => None,
    }
}

fn build(node: &Node) -> Option<String> {
    let name = Some(node.user_agent_name.as_str()).filter(|name| !name.is_empty());
    name.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::google::protobuf::{Struct, Value};

    #[test]
    fn features_are_those_of_the_node_within_bounds() {
        let value = |text: &str| Value {
            kind: Some(Kind::StringValue(text.to_owned())),
        };
        let metadata = [
            ("GENERATOR".to_owned(), value("grpc")),
            ("ENABLE_HBONE".to_owned(), value("true")),
        ];
        let mut node = Node {
            metadata: Some(Struct {
                fields: metadata.into(),
            }),
            client_features: vec!["envoy.lb.does_not_support_overprovisioning".to_owned()],
            ..Node::default()
        };
        let expected = Features {
            generator: Some("grpc".to_owned()),
            hbone: true,
            of_client: node.client_features.clone(),
        };
        assert_eq!(features(&node), expected);
        node.client_features = vec!["x".repeat(1000); 1000];
        let bounded = features(&node).of_client;
        assert_eq!(
            (bounded.len(), bounded[0].len()),
            (MAX_FEATURES, MAX_VERSION)
        );
        assert_eq!(features(&Node::default()), Features::default());
    }
}
