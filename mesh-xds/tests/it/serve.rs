//! A server over sockets: what its clients are sent, and the certificates that they get.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use mesh_authz::Identity;
use mesh_xds::ca::{Client as CaClient, SigningRequest};
use mesh_xds::decode::{Decoder, ResourceType};
use mesh_xds::model::{Batch, Service, ServiceName, Update, Workload};
use mesh_xds::serve::{
    Authenticating, Authenticator, Ca, Credentials, Peer, Server, ServerBuilder, Unauthenticated,
};
use mesh_xds::transport::{Channel, ChannelBuilder};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status, Streaming};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::proto::envoy::config::core::v3::Node;
use crate::proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
};
use crate::proto::google::protobuf::{Struct, Value, value::Kind};
use crate::proto::google::rpc;
use crate::proto::type_url;

/// Tokens are `<namespace>/<service account>`; `node` may ask for others.
pub(crate) struct Tokens;

impl Authenticator for Tokens {
    fn authenticate<'a>(&'a self, caller: &'a Credentials) -> Authenticating<'a> {
        Box::pin(async {
            if let Some(identity) = caller.certificate() {
                return Ok(identity.clone());
            }
            let token = caller
                .token()
                .ok_or_else(|| Unauthenticated::new("no token"))?;
            let (namespace, account) = token.split_once('/').unwrap_or(("", ""));
            let identity = Identity::new("cluster.local", namespace, account);
            identity.map_err(|error| Unauthenticated::new(error.to_string()))
        })
    }

    fn may_speak_for(&self, caller: &Identity, _: &Identity) -> bool {
        caller.service_account() == "node"
    }
}

/// Serves on a port of this machine. `peer` is what its connections' certificates name.
pub(crate) async fn serve(server: &Server, peer: Option<Identity>) -> Uri {
    start(server, peer).await.0
}

/// The same; what is returned beside ends it with its connections.
pub(crate) async fn start(server: &Server, peer: Option<Identity>) -> (Uri, AbortHandle) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = server.service();
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (mut inner, peer) = (service.clone(), peer.clone());
            let service = tower::service_fn(move |mut request: http::Request<_>| {
                if let Some(peer) = peer.clone() {
                    request.extensions_mut().insert(Peer::new(peer));
                }
                tower_service::Service::call(&mut inner, request)
            });
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let service = TowerToHyperService::new(service);
            connections.spawn(connection.serve_connection(TokioIo::new(stream), service));
        }
    });
    let uri = format!("http://{address}").parse().unwrap();
    (uri, task.abort_handle())
}

fn node() -> Node {
    let metadata = [("NAMESPACE", "default"), ("ISTIO_VERSION", "1.30.0")];
    node_of(
        "ztunnel~10.0.0.1~a.default~default.svc.cluster.local",
        &metadata,
    )
}

pub(crate) fn node_of(id: &str, metadata: &[(&str, &str)]) -> Node {
    let field = |(key, value): &(&str, &str)| {
        let kind = Some(Kind::StringValue((*value).to_owned()));
        ((*key).to_owned(), Value { kind })
    };
    Node {
        id: id.to_owned(),
        metadata: Some(Struct {
            fields: metadata.iter().map(field).collect(),
        }),
        ..Node::default()
    }
}

pub(crate) struct Stream {
    node: Node,
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

pub(crate) async fn open(uri: &Uri, token: &str) -> Result<Stream, Status> {
    open_as(uri, token, node()).await
}

pub(crate) async fn open_as(uri: &Uri, token: &str, node: Node) -> Result<Stream, Status> {
    let channel = tonic::transport::Endpoint::from(uri.clone())
        .connect()
        .await
        .unwrap();
    let (requests, sent) = mpsc::channel(8);
    let mut request = Request::new(ReceiverStream::new(sent));
    if !token.is_empty() {
        let token: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", token);
    }
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let responses = client
        .delta_aggregated_resources(request)
        .await?
        .into_inner();
    Ok(Stream {
        node,
        requests,
        responses,
    })
}

impl Stream {
    pub(crate) async fn ask(&self, url: &str, names: &[&str]) {
        self.say(url, names, None, None).await;
    }

    pub(crate) async fn say(
        &self,
        url: &str,
        names: &[&str],
        nonce: Option<&str>,
        error: Option<&str>,
    ) {
        let request = DeltaDiscoveryRequest {
            node: Some(self.node.clone()),
            type_url: url.to_owned(),
            resource_names_subscribe: names.iter().map(|&name| name.to_owned()).collect(),
            response_nonce: nonce.unwrap_or_default().to_owned(),
            error_detail: error.map(|text| rpc::Status {
                message: text.to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        self.send(request).await;
    }

    pub(crate) async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    pub(crate) async fn try_next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let next = self.responses.message().await?;
        next.ok_or_else(|| Status::cancelled("the stream has ended"))
    }

    pub(crate) async fn next(&mut self) -> DeltaDiscoveryResponse {
        self.responses.message().await.unwrap().unwrap()
    }
}

pub(crate) fn batch(names: &[&str]) -> Batch {
    let updates = names.iter().map(|name| {
        let uid = format!("c//Pod/default/{name}");
        Workload::new(uid, "default", *name).into()
    });
    Batch::new(updates.collect(), Vec::new())
}

fn decoded(response: &DeltaDiscoveryResponse) -> Vec<Update> {
    let kind = ResourceType::from_url(&response.type_url).unwrap();
    let resources = response.resources.iter();
    let updates = resources.map(|one| {
        let value = &one.resource.as_ref().unwrap().value;
        Decoder::new()
            .decode(kind, &one.name, value)
            .unwrap()
            .unwrap()
    });
    updates.collect()
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response
        .resources
        .iter()
        .map(|one| one.name.as_str())
        .collect()
}

#[tokio::test]
async fn clients_are_sent_changes_and_the_server_knows_what_they_said() {
    let server = Server::builder(Tokens).build();
    server.apply(batch(&["a"]));
    let uri = serve(&server, None).await;
    let mut stream = open(&uri, "default/a").await.unwrap();
    stream.ask(type_url::ADDRESS, &[]).await;
    let first = stream.next().await;
    assert_eq!(names(&first), ["c//Pod/default/a"]);
    assert_eq!(decoded(&first), batch(&["a"]).updates());

    let client = &server.clients()[0];
    assert_eq!(client.identity().service_account(), "a");
    assert!(
        client.node_id().starts_with("ztunnel~10.0.0.1~"),
        "{client:?}"
    );
    assert_eq!(client.version(), Some("1.30.0"));
    assert!(client.is_delta());
    let subscription = &client.subscriptions()[0];
    assert!(subscription.everything() && subscription.pending().is_some());

    stream
        .say(type_url::ADDRESS, &[], Some(&first.nonce), Some("a: no"))
        .await;
    server.apply(batch(&["b"]));
    let second = stream.next().await;
    assert_eq!(names(&second), ["c//Pod/default/b"]);
    let client = &server.clients()[0];
    let refusal = client.subscriptions()[0].refusal().unwrap();
    assert_eq!(
        (refusal.text(), refusal.version()),
        ("a: no", &*first.system_version_info)
    );
    stream
        .say(type_url::ADDRESS, &[], Some(&second.nonce), None)
        .await;

    server.apply(Batch::new(
        Vec::new(),
        vec![batch(&["a"]).updates()[0].name()],
    ));
    let third = stream.next().await;
    assert_eq!(third.removed_resources, ["c//Pod/default/a"]);
    let client = &server.clients()[0];
    let subscription = &client.subscriptions()[0];
    assert_eq!(
        subscription.acknowledged(),
        Some(&*second.system_version_info)
    );
    assert_eq!(subscription.refusal(), None);
    assert_eq!(subscription.responses(), 3);

    drop(stream);
    while !server.clients().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn the_state_of_the_world_comes_whole() {
    let server = Server::builder(Tokens).build();
    server.apply(batch(&["a"]));
    let uri = serve(
        &server,
        Some("spiffe://td/ns/default/sa/x".parse().unwrap()),
    )
    .await;
    let channel = tonic::transport::Endpoint::from(uri)
        .connect()
        .await
        .unwrap();
    let (requests, sent) = mpsc::channel(8);
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let responses = client.stream_aggregated_resources(ReceiverStream::new(sent));
    let mut request = DiscoveryRequest {
        node: Some(node()),
        type_url: type_url::ADDRESS.to_owned(),
        ..Default::default()
    };
    requests.send(request.clone()).await.unwrap();
    let mut responses = responses.await.unwrap().into_inner();
    let first = responses.message().await.unwrap().unwrap();
    assert_eq!(first.resources.len(), 1);
    server.apply(batch(&["b"]));
    request.response_nonce = first.nonce;
    requests.send(request).await.unwrap();
    let second = responses.message().await.unwrap().unwrap();
    assert_eq!(second.resources.len(), 2);
    assert!(!server.clients()[0].is_delta());
}

#[tokio::test]
async fn who_cannot_be_whom_it_says_gets_nothing() {
    let server = Server::builder(Tokens).max_clients(1).max_names(1).build();
    let uri = serve(&server, None).await;
    let code = |result: Result<Stream, Status>| result.err().unwrap().code();
    assert_eq!(code(open(&uri, "").await), Code::Unauthenticated);
    assert_eq!(code(open(&uri, "nonsense").await), Code::Unauthenticated);

    let mut stream = open(&uri, "other/a").await.unwrap();
    assert_eq!(code(open(&uri, "default/a").await), Code::ResourceExhausted);
    stream.ask(type_url::ADDRESS, &[]).await;
    let refused = stream.responses.message().await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    drop(stream);
    while !server.clients().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    let mut stream = open(&uri, "default/a").await.unwrap();
    stream.ask(type_url::ADDRESS, &["a", "b"]).await;
    let refused = stream.responses.message().await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn the_names_of_a_stream_have_no_more_bytes_than_set() {
    let server = Server::builder(Tokens).max_names_size(8).build();
    server.apply(Batch::default());
    let uri = serve(&server, None).await;
    let mut stream = open(&uri, "default/a").await.unwrap();
    stream.ask(type_url::ADDRESS, &["four", "more"]).await;
    stream.next().await;
    // Of another type, and of the same stream.
    stream.ask(type_url::AUTHORIZATION, &["x"]).await;
    let refused = stream.try_next().await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("8 bytes"), "{refused}");
}

#[derive(Clone)]
pub(crate) struct Tcp;

impl tower_service::Service<Uri> for Tcp {
    type Response = TcpStream;
    type Error = std::io::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = std::io::Result<TcpStream>> + Send>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(async move { TcpStream::connect(uri.authority().unwrap().as_str()).await })
    }
}

fn root() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

pub(crate) fn channel(uri: &Uri, token: &'static str) -> ChannelBuilder {
    Channel::builder(uri.clone()).token(move || async move { Ok(Some(token.to_owned())) })
}

pub(crate) fn authority() -> Ca {
    let (root, key) = root();
    Ca::new(&root, &key).unwrap()
}

fn with_ca() -> (ServerBuilder, String) {
    let ca = authority();
    let root = ca.roots().to_owned();
    (Server::builder(Tokens).ca(ca), root)
}

#[tokio::test]
async fn a_certificate_names_who_asked_and_nobody_else() {
    let (server, root) = with_ca();
    let uri = serve(&server.build(), None).await;
    let client = CaClient::new(channel(&uri, "default/reviews").build(Tcp).unwrap());
    let me: Identity = "spiffe://cluster.local/ns/default/sa/reviews"
        .parse()
        .unwrap();
    let other: Identity = "spiffe://cluster.local/ns/default/sa/admin"
        .parse()
        .unwrap();
    let request = SigningRequest::new(&other).unwrap();
    let hour = Duration::from_secs(3600);
    let issued = client.create(request.pem(), hour, None).await.unwrap();
    assert_eq!(issued.roots().trim(), root.trim());
    let pem = x509_parser::pem::parse_x509_pem(issued.chain().as_bytes())
        .unwrap()
        .1;
    let (_, leaf) = X509Certificate::from_der(&pem.contents).unwrap();
    assert_eq!(
        leaf.public_key().subject_public_key.data,
        request.public_key()
    );
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    let uris: Vec<_> = names.value.general_names.iter().collect();
    let me_text = me.to_string();
    assert_eq!(uris, [&GeneralName::URI(&me_text)], "not {other}");
    assert!(names.critical && !leaf.is_ca());
    let life = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
    assert_eq!(life, 3600 + 120, "an hour, and two minutes before now");

    let refused = client
        .create(request.pem(), hour, Some(&other))
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), mesh_xds::ErrorKind::PermissionDenied);
    let node = CaClient::new(channel(&uri, "kube-system/node").build(Tcp).unwrap());
    assert!(node.create(request.pem(), hour, Some(&other)).await.is_ok());

    let long = Duration::from_secs(91 * 24 * 3600);
    let refused = client.create(request.pem(), long, None).await.unwrap_err();
    assert_eq!(refused.kind(), mesh_xds::ErrorKind::InvalidRequest);
    // Its signature is of another request.
    let (a, b) = (request.pem(), SigningRequest::new(&me).unwrap());
    let lines = |pem: &str| pem.lines().map(str::to_owned).collect::<Vec<_>>();
    let (mut forged, other_lines) = (lines(a), lines(b.pem()));
    let last = forged.len() - 2;
    forged[last] = other_lines[last].clone();
    let refused = client
        .create(&forged.join("\n"), hour, None)
        .await
        .unwrap_err();
    assert_eq!(
        refused.kind(),
        mesh_xds::ErrorKind::InvalidRequest,
        "{refused}"
    );
}

#[tokio::test]
async fn no_certificate_without_a_token_or_without_an_authority() {
    let (server, _) = with_ca();
    let uri = serve(&server.build(), None).await;
    let request = SigningRequest::new(&"spiffe://td/ns/a/sa/b".parse().unwrap()).unwrap();
    let hour = Duration::from_secs(3600);
    let nobody = CaClient::new(Channel::builder(uri).build(Tcp).unwrap());
    let refused = nobody.create(request.pem(), hour, None).await.unwrap_err();
    assert_eq!(refused.kind(), mesh_xds::ErrorKind::Unauthenticated);

    let uri = serve(&Server::builder(Tokens).build(), None).await;
    let client = CaClient::new(channel(&uri, "a/b").build(Tcp).unwrap());
    let refused = client.create(request.pem(), hour, None).await.unwrap_err();
    assert_eq!(refused.kind(), mesh_xds::ErrorKind::Unimplemented);
}

#[test]
fn an_authority_signs_while_it_is_valid_itself() {
    let (root, key) = root();
    let identity: Identity = "spiffe://td/ns/a/sa/b".parse().unwrap();
    let request = SigningRequest::new(&identity).unwrap();
    // rcgen's default validity ends in 4096.
    let late = std::time::UNIX_EPOCH + Duration::from_secs(67_100_000_000);
    let ca = Ca::new(&root, &key).unwrap().with_clock(move || late);
    let refused = ca.sign(request.pem(), &identity, None).unwrap_err();
    assert_eq!(refused.kind(), mesh_xds::ErrorKind::Unavailable);
    let other = KeyPair::generate().unwrap().serialize_pem();
    let refused = Ca::new(&root, &other).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the key: expected that of the first certificate"
    );
    let leaf = CertificateParams::default().self_signed(&KeyPair::from_pem(&key).unwrap());
    let refused = Ca::new(&leaf.unwrap().pem(), &key).unwrap_err();
    assert!(
        refused.to_string().contains("one of an authority"),
        "{refused}"
    );
}

#[test]
fn certificates_live_as_long_as_set_and_no_longer() {
    const MINUTE: Duration = Duration::from_secs(60);
    let (root, key) = root();
    let identity: Identity = "spiffe://td/ns/a/sa/b".parse().unwrap();
    let request = SigningRequest::new(&identity).unwrap();
    let authority = |default, max| Ca::new(&root, &key).unwrap().with_lifetimes(default, max);
    let life = |ca: &Ca, asked| {
        let chain = ca.sign(request.pem(), &identity, asked)?;
        let (_, pem) = x509_parser::pem::parse_x509_pem(chain[0].as_bytes()).unwrap();
        let (_, leaf) = X509Certificate::from_der(&pem.contents).unwrap();
        let validity = leaf.validity();
        let seconds = validity.not_after.timestamp() - validity.not_before.timestamp();
        // It began two minutes before now.
        Ok::<_, mesh_xds::Error>(Duration::from_secs(seconds.try_into().unwrap()) - 2 * MINUTE)
    };
    let ca = authority(10 * MINUTE, 30 * MINUTE);
    assert_eq!(life(&ca, None).unwrap(), 10 * MINUTE);
    assert_eq!(life(&ca, Some(30 * MINUTE)).unwrap(), 30 * MINUTE);
    let refused = life(&ca, Some(31 * MINUTE)).unwrap_err();
    assert_eq!(refused.kind(), mesh_xds::ErrorKind::InvalidRequest);
    assert_eq!(
        refused.to_string(),
        "validity_duration: 1860 s, expected at most 1800 s"
    );
    // A default beyond the most would refuse whoever does not say.
    let ca = authority(60 * MINUTE, 30 * MINUTE);
    assert_eq!(life(&ca, None).unwrap(), 30 * MINUTE);
}

#[test]
fn roots_that_are_added_are_trusted_beside_the_own_one_once_each() {
    let ((root, key), (next, _)) = (root(), root());
    let identity: Identity = "spiffe://td/ns/a/sa/b".parse().unwrap();
    let request = SigningRequest::new(&identity).unwrap();
    // The own one is there already.
    let others = format!("{next}{root}");
    let ca = Ca::new(&root, &key).unwrap().with_other_roots(&others);
    let lines = |pem: &str| {
        pem.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(lines(ca.roots()), lines(&format!("{root}{next}")));
    let chain = ca.sign(request.pem(), &identity, None).unwrap();
    assert_eq!(chain.len(), 2);
    assert_eq!(chain.last().unwrap(), ca.roots());
}

#[tokio::test]
async fn a_batch_is_answered_when_it_is_applied() {
    let server = Server::builder(Tokens).build();
    let told = Arc::new(Mutex::new(BTreeMap::new()));
    let teller = Arc::clone(&told);
    let service = Service::new(ServiceName::new("a", "b.a"));
    let batch = Batch::new(vec![service.into()], Vec::new()).with_reply(move |verdicts| {
        let verdicts = verdicts
            .iter()
            .map(|one| (one.resource().to_string(), one.result().is_ok()));
        teller.lock().unwrap().extend(verdicts);
    });
    server.apply(batch);
    assert_eq!(
        *told.lock().unwrap(),
        [("service a/b.a".to_owned(), true)].into()
    );
}
