//! The whole client against a server that does what the test says.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt;
use http::Uri;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::*;
use crate::ads::{Client, Event, Events, Health, Kept, Presence};
use crate::error::ErrorKind;
use crate::model::{Batch, Verdict};
use crate::proto::envoy::service::discovery::v3::DiscoveryResponse;
use crate::proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use crate::proto::type_url;
use crate::transport::tests::Pipe;
use crate::transport::{Channel, ChannelBuilder};

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The server's end of a stream.
pub(super) struct Peer<Q, P> {
    token: String,
    requests: Streaming<Q>,
    responses: mpsc::UnboundedSender<Result<P, Status>>,
}

pub(super) type DeltaPeer = Peer<DeltaDiscoveryRequest, DeltaDiscoveryResponse>;
type WorldPeer = Peer<DiscoveryRequest, DiscoveryResponse>;

impl<Q, P: Send + 'static> Peer<Q, P> {
    fn new(request: Request<Streaming<Q>>) -> (Self, Responses<P>) {
        let token = request.metadata().get("authorization");
        let token = token.map(|token| token.to_str().expect("ASCII").to_owned());
        let (responses, stream) = mpsc::unbounded_channel();
        let peer = Self {
            token: token.unwrap_or_default(),
            requests: request.into_inner(),
            responses,
        };
        (peer, Box::pin(UnboundedReceiverStream::new(stream)))
    }

    pub(super) async fn request(&mut self) -> Q {
        let request = self.requests.message().await.expect("a message");
        request.expect("the stream goes on")
    }

    fn send(&self, response: P) {
        self.responses.send(Ok(response)).expect("a stream");
    }

    fn fail(self, code: Code) {
        let _ = self.responses.send(Err(Status::new(code, "scripted")));
    }
}

impl DeltaPeer {
    pub(super) fn answer(&self, nonce: &str, resources: Vec<Resource>, removed: &[&str]) {
        let Incoming::Delta(response) = response(nonce, resources, removed) else {
            panic!("it is delta");
        };
        self.send(response);
    }
}

struct Scripted {
    delta: Option<mpsc::UnboundedSender<DeltaPeer>>,
    world: Option<mpsc::UnboundedSender<WorldPeer>>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Scripted {
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let peers = self.delta.as_ref().ok_or(Status::unimplemented("no"))?;
        let (peer, responses) = Peer::new(request);
        peers.send(peer).map_err(|_| Status::unavailable("gone"))?;
        Ok(Response::new(responses))
    }

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let peers = self.world.as_ref().ok_or(Status::unimplemented("no"))?;
        let (peer, responses) = Peer::new(request);
        peers.send(peer).map_err(|_| Status::unavailable("gone"))?;
        Ok(Response::new(responses))
    }
}

/// Takes streams, and never answers.
pub(super) struct Silent(pub(super) mpsc::UnboundedSender<()>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Silent {
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.0.send(()).expect("the test goes on");
        std::future::pending().await
    }

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        panic!("the client speaks delta");
    }
}

pub(super) fn serve(scripted: impl AggregatedDiscoveryService) -> Pipe {
    let (pipe, connections, _) = Pipe::new();
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(AggregatedDiscoveryServiceServer::new(scripted))
            .serve_with_incoming(connections),
    );
    pipe
}

/// Streams, as they are opened.
pub(super) type Peers = mpsc::UnboundedReceiver<DeltaPeer>;

pub(super) fn delta_server() -> (Pipe, mpsc::UnboundedReceiver<DeltaPeer>) {
    let (delta, peers) = mpsc::unbounded_channel();
    let pipe = serve(Scripted {
        delta: Some(delta),
        world: None,
    });
    (pipe, peers)
}

pub(super) fn builder() -> ChannelBuilder {
    Channel::builder(Uri::from_static("http://istiod.istio-system.svc:15010"))
}

pub(super) fn start(channel: Channel, settings: Settings) -> (Client, Events) {
    let client = Client::with_decoder(channel, settings, Arc::new(Texts));
    let (client, events, worker) = client.expect("settings");
    tokio::spawn(worker.run());
    (client, events)
}

pub(super) async fn next(events: &mut Events) -> Event {
    events.next().await.expect("the session goes on")
}

pub(super) async fn batch(events: &mut Events) -> Batch {
    match next(events).await {
        Event::Batch(batch) => batch,
        other => panic!("expected a batch: {other:?}"),
    }
}

/// Applies a batch, all but what is called `refused`; says what it had.
pub(super) fn apply(batch: Batch) -> (Vec<String>, Vec<String>) {
    let (updates, removed, reply) = batch.into_parts();
    let names: Vec<_> = updates.iter().map(Update::name).collect();
    let verdict = |name: &ResourceName| match Texts.name(name).as_str() {
        "refused" => Verdict::rejected(name.clone(), Rejection::new("cannot be applied")),
        _ => Verdict::accepted(name.clone()),
    };
    reply.send(names.iter().map(verdict).collect());
    let text = |names: &[ResourceName]| names.iter().map(|n| Texts.name(n)).collect();
    (text(&names), text(&removed))
}

#[tokio::test(start_paused = true)]
async fn verdicts_are_acknowledgements_and_streams_come_and_go() {
    let (pipe, mut peers) = delta_server();
    let count = AtomicUsize::new(0);
    let token = move || {
        let n = count.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok(Some(format!("token-{n}"))))
    };
    let channel = builder().token(token).build(pipe).expect("settings");
    let (client, mut events) = start(channel, settings(&[(URL, Interest::All)]));
    client
        .report_health(Health::Healthy)
        .await
        .expect("a session");

    let mut peer = peers.recv().await.expect("a stream");
    assert_eq!(peer.token, "Bearer token-0");
    assert!(peer.request().await.node.is_some());
    assert_eq!(peer.request().await.type_url, type_url::HEALTH);
    let resources = vec![resource("a", "1", "x"), resource("refused", "1", "x")];
    peer.answer("n1", resources, &[]);
    // With what was refused gone, all is here.
    peer.answer("n2", vec![resource("b", "1", "x")], &["a", "refused"]);
    assert!(matches!(next(&mut events).await, Event::Connected));
    let (updated, _) = apply(batch(&mut events).await);
    assert_eq!(updated, ["a", "refused"]);
    let request = peer.request().await;
    assert_eq!(request.response_nonce, "n1");
    let message = request.error_detail.expect("a refusal").message;
    assert_eq!(message, "refused: cannot be applied");
    match next(&mut events).await {
        Event::Refused { resources, .. } => {
            assert_eq!(
                resources,
                [("refused".to_owned(), "cannot be applied".to_owned())]
            );
        }
        other => panic!("{other:?}"),
    }
    let stands = async |events: &mut _| match next(events).await {
        Event::Standing {
            type_url,
            resources,
            and_more,
        } => (type_url, resources, and_more),
        other => panic!("{other:?}"),
    };
    assert_eq!(stands(&mut events).await, (URL.into(), 1, false));
    let (updated, removed) = apply(batch(&mut events).await);
    assert_eq!(
        (updated, removed),
        (vec!["b".to_owned()], vec!["a".to_owned()])
    );
    match next(&mut events).await {
        Event::Mended { type_url, names } => {
            assert_eq!((&*type_url, &*names), (URL, &["refused".into()][..]));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(stands(&mut events).await, (URL.into(), 0, false));
    assert!(matches!(next(&mut events).await, Event::Synced(url) if *url == *URL));
    let request = peer.request().await;
    assert_eq!(
        (&*request.response_nonce, request.error_detail),
        ("n2", None)
    );

    peer.fail(Code::Unavailable);
    match next(&mut events).await {
        Event::Disconnected(Some(error)) => assert_eq!(error.kind(), ErrorKind::Unavailable),
        other => panic!("{other:?}"),
    }
    let mut peer = peers.recv().await.expect("another stream");
    assert_eq!(peer.token, "Bearer token-1", "read anew");
    let versions = peer.request().await.initial_resource_versions;
    assert_eq!(versions.into_keys().collect::<Vec<_>>(), ["b"]);
    assert_eq!(
        peer.request().await.type_url,
        type_url::HEALTH,
        "said again"
    );
    drop(peer);
    assert!(matches!(next(&mut events).await, Event::Disconnected(None)));

    // A batch that nobody applied is asked for again.
    let mut peer = peers.recv().await.expect("another stream");
    peer.request().await;
    peer.answer("m1", vec![resource("c", "1", "x")], &[]);
    assert!(matches!(next(&mut events).await, Event::Connected));
    drop(batch(&mut events).await);
    assert!(matches!(
        next(&mut events).await,
        Event::Disconnected(Some(_))
    ));
    let mut peer = peers.recv().await.expect("another stream");
    let versions = peer.request().await.initial_resource_versions;
    assert_eq!(versions.into_keys().collect::<Vec<_>>(), ["b"]);

    drop(client);
    assert!(
        events.next().await.is_none(),
        "it ends with the last client"
    );
}

/// Ends every stream with its first headers, in order.
struct Leaves(mpsc::UnboundedSender<Instant>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Leaves {
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.0.send(Instant::now()).expect("the test goes on");
        Err(Status::ok(""))
    }

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        panic!("the server speaks delta");
    }
}

/// gRPC's Trailers-Only: the status is among the first headers.
#[tokio::test(start_paused = true)]
async fn a_stream_that_ends_in_order_before_it_began_has_not_failed() {
    let (tell, mut opened) = mpsc::unbounded_channel();
    let pipe = serve(Leaves(tell));
    let channel = builder().build(pipe).expect("settings");
    let (_client, mut events) = start(channel, settings(&[(URL, Interest::All)]));
    for _ in 0..20 {
        assert!(matches!(next(&mut events).await, Event::Disconnected(None)));
    }
    let first = opened.recv().await.expect("a stream");
    // It is tried again, and not in a hurry.
    assert!(
        first.elapsed() > Duration::from_secs(60),
        "{:?}",
        first.elapsed()
    );
}

/// It has said HTTP/2's hello, and nothing ever after.
#[tokio::test(start_paused = true)]
async fn a_connection_that_is_silent_is_given_up_after_the_time_that_is_set() {
    let silent = tower::service_fn(|_: Uri| async {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        // SETTINGS, and that it has ours.
        far.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await?;
        far.write_all(&[0, 0, 0, 4, 1, 0, 0, 0, 0]).await?;
        tokio::spawn(async move { tokio::io::copy(&mut far, &mut tokio::io::sink()).await });
        Ok::<_, std::io::Error>(near)
    });
    let (interval, patience) = (Duration::from_secs(20), Duration::from_secs(3));
    let channel = builder().keep_alive(interval, patience).build(silent);
    let began = Instant::now();
    let channel = channel.expect("settings");
    let (_client, mut events) = start(channel, settings(&[(URL, Interest::All)]));
    match next(&mut events).await {
        Event::Disconnected(Some(error)) => assert_eq!(error.kind(), ErrorKind::Connection),
        other => panic!("{other:?}"),
    }
    let took = began.elapsed();
    let (least, most) = (
        interval + patience,
        interval + patience + Duration::from_secs(1),
    );
    assert!((least..most).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn names_are_asked_for_while_a_batch_waits() {
    let (pipe, mut peers) = delta_server();
    let channel = builder().build(pipe).expect("settings");
    let (client, mut events) = start(channel, settings(&[(URL, Interest::Named)]));
    client.want(URL, "a").await.expect("a name");
    let mut peer = peers.recv().await.expect("a stream");
    assert_eq!(peer.request().await.resource_names_subscribe, ["a"]);
    peer.answer("n1", vec![resource("a", "1", "x")], &["b"]);
    assert!(matches!(next(&mut events).await, Event::Connected));
    let waiting = batch(&mut events).await;
    for n in 0..200 {
        let presence = client.want(URL, n.to_string()).await.expect("a name");
        assert_eq!(presence, Presence::Asked);
    }
    let mut asked = 0;
    while asked < 200 {
        asked += peer.request().await.resource_names_subscribe.len();
    }
    apply(waiting);
    assert_eq!(peer.request().await.response_nonce, "n1");
    peer.answer("n2", Vec::new(), &["7"]);
    assert!(matches!(next(&mut events).await, Event::Synced(_)));
    match next(&mut events).await {
        Event::Absent { type_url, name } => assert_eq!((&*type_url, &*name), (URL, "7")),
        other => panic!("{other:?}"),
    }
    assert_eq!(peer.request().await.response_nonce, "n2");
    let presence = client.want(URL, "7").await.expect("a name");
    assert_eq!(presence, Presence::Absent);
    client.forget(URL, "a").await.expect("a type");
    assert_eq!(peer.request().await.resource_names_unsubscribe, ["a"]);
    assert!(client.want("other", "a").await.is_err());

    // Ten seconds later another stream finds out what is left.
    let mut peer = peers.recv().await.expect("another stream");
    let request = peer.request().await;
    assert_eq!(request.resource_names_subscribe.len(), 200);
    assert!(request.initial_resource_versions.is_empty());
    peer.answer("m1", Vec::new(), &[]);
    assert!(matches!(next(&mut events).await, Event::Connected));
    assert_eq!(apply(batch(&mut events).await).1, ["a"]);
    assert_eq!(peer.request().await.response_nonce, "m1");
}

#[tokio::test(start_paused = true)]
async fn a_server_without_delta_is_spoken_to_as_it_can() {
    let (world, mut peers) = mpsc::unbounded_channel();
    let pipe = serve(Scripted {
        delta: None,
        world: Some(world),
    });
    let channel = builder().build(pipe).expect("settings");
    let (_client, mut events) = start(channel, settings(&[(URL, Interest::All)]));
    match next(&mut events).await {
        Event::Disconnected(Some(error)) => assert_eq!(error.kind(), ErrorKind::Unimplemented),
        other => panic!("{other:?}"),
    }
    let mut peer = peers.recv().await.expect("a stream");
    assert!(peer.request().await.node.is_some());
    peer.send(DiscoveryResponse {
        version_info: "v1".to_owned(),
        resources: vec![packed(URL, "a", "x")],
        type_url: URL.to_owned(),
        nonce: "n1".to_owned(),
        ..DiscoveryResponse::default()
    });
    assert!(matches!(next(&mut events).await, Event::Connected));
    assert_eq!(apply(batch(&mut events).await).0, ["a"]);
    let request = peer.request().await;
    assert_eq!(
        (&*request.response_nonce, &*request.version_info),
        ("n1", "v1")
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_ends_the_stream_and_nothing_else() {
    let (pipe, mut peers) = delta_server();
    let channel = builder().max_message_size(10_000).build(pipe);
    let channel = channel.expect("settings");
    let (_client, mut events) = start(channel, settings(&[(URL, Interest::All)]));
    let mut peer = peers.recv().await.expect("a stream");
    peer.request().await;
    peer.answer("n1", vec![resource("a", "1", "x")], &[]);
    assert!(matches!(next(&mut events).await, Event::Connected));
    apply(batch(&mut events).await);
    assert!(matches!(next(&mut events).await, Event::Synced(_)));
    peer.answer("n2", vec![resource("a", "2", &"x".repeat(10_000))], &[]);
    match next(&mut events).await {
        Event::Disconnected(Some(error)) => assert_eq!(error.kind(), ErrorKind::TooLarge),
        other => panic!("{other:?}"),
    }
    let mut peer = peers.recv().await.expect("another stream");
    let versions = peer.request().await.initial_resource_versions;
    assert_eq!(versions["a"], "1", "the last good version stays");
}

#[tokio::test(start_paused = true)]
async fn garbage_is_an_error_and_tried_again_later() {
    let (pipe, mut connections, mut dialled) = Pipe::new();
    let channel = builder().build(pipe).expect("settings");
    let (_client, mut events) = start(channel, settings(&[(URL, Interest::All)]));
    let start = Instant::now();
    for _ in 0..5 {
        let connection = connections.next().await.expect("a connection");
        let mut connection = connection.expect("a pipe");
        connection.write_all(&[0xff; 1000]).await.expect("a pipe");
        match next(&mut events).await {
            Event::Disconnected(Some(error)) => assert!(error.is_connection(), "{error:?}"),
            other => panic!("{other:?}"),
        }
        dialled.try_recv().expect("an attempt");
    }
    // And when nobody takes connections at all.
    drop(connections);
    for _ in 0..5 {
        match next(&mut events).await {
            Event::Disconnected(Some(error)) => assert!(error.is_connection(), "{error:?}"),
            other => panic!("{other:?}"),
        }
    }
    let waited = start.elapsed();
    assert!(
        waited > Duration::from_secs(10),
        "{waited:?} for ten attempts"
    );
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_takes_nothing_stops_the_stream() {
    let (pipe, mut peers) = delta_server();
    let channel = builder().build(pipe).expect("settings");
    let (_client, mut events) = start(channel, settings(&[(URL, Interest::All)]));
    let mut peer = peers.recv().await.expect("a stream");
    peer.request().await;
    for n in 0..100 {
        peer.answer(
            &n.to_string(),
            vec![resource(&n.to_string(), "1", "x")],
            &[],
        );
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let requests = tokio::time::timeout(Duration::from_secs(5), peer.request()).await;
    assert!(
        requests.is_err(),
        "nothing is acknowledged that was not applied"
    );
    assert!(matches!(next(&mut events).await, Event::Connected));
    for n in 0..100 {
        let (updated, _) = loop {
            if let Event::Batch(batch) = next(&mut events).await {
                break apply(batch);
            }
        };
        assert_eq!(updated, [n.to_string()]);
        assert_eq!(peer.request().await.response_nonce, n.to_string());
    }
}

/// What a session was told is what another begins with.
#[tokio::test(start_paused = true)]
async fn a_session_begins_with_what_another_was_told() {
    let (pipe, mut peers) = delta_server();
    let channel = builder().build(pipe.clone()).expect("settings");
    let all = || settings(&[(URL, Interest::All)]);
    let (_client, mut events) = start(channel, all().with_changes());
    let mut peer = peers.recv().await.expect("a stream");
    peer.request().await;
    let resources = ["a", "b", "refused"].map(|name| resource(name, "1", "x"));
    peer.answer("n1", resources.to_vec(), &[]);
    peer.answer("n2", vec![resource("c", "2", "y")], &["a", "refused"]);
    let mut kept: Vec<Kept> = Vec::new();
    while kept.iter().all(|one| one.name() != "c") {
        match next(&mut events).await {
            Event::Batch(batch) => drop(apply(batch)),
            Event::Changed { put, gone, .. } => {
                kept.extend(put);
                kept.retain(|one| gone.iter().all(|(_, name)| **name != *one.name()));
            }
            _ => {}
        }
    }
    let text = |one: &Kept| {
        let value = String::from_utf8_lossy(one.value()).into_owned();
        (one.name().to_owned(), one.version().to_owned(), value)
    };
    let mut texts: Vec<_> = kept.iter().map(text).collect();
    texts.sort();
    let expected = [("b", "1", "b=x"), ("c", "2", "c=y")];
    assert_eq!(
        texts,
        expected.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned()))
    );

    let channel = builder().build(pipe).expect("settings");
    let (_client, mut events) = start(channel, all().with_restored(kept));
    let (mut names, _) = apply(batch(&mut events).await);
    names.sort();
    assert_eq!(names, ["b", "c"]);
    assert!(matches!(
        next(&mut events).await,
        Event::Restored { whole: true }
    ));
    let mut peer = peers.recv().await.expect("a stream");
    let versions = peer.request().await.initial_resource_versions;
    let expected = [("b", "1"), ("c", "2")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    assert_eq!(versions, expected.into());
    // Only what differs comes, and it is whole.
    peer.answer("m1", Vec::new(), &["b"]);
    assert!(matches!(next(&mut events).await, Event::Connected));
    let (_, removed) = apply(batch(&mut events).await);
    assert_eq!(removed, ["b"]);
    assert!(matches!(next(&mut events).await, Event::Synced(_)));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_restored_whole_is_said_to_be_so() {
    for (name, value) in [("refused", "refused=x"), ("a", "nonsense")] {
        let (pipe, _peers) = delta_server();
        let channel = builder().build(pipe).expect("settings");
        let kept = vec![
            Kept::new(URL, "good", "1", *b"good=x"),
            Kept::new(URL, name, "1", value.as_bytes()),
            // Of a type that nobody asks for any more.
            Kept::new(OTHER, "other", "1", *b"other=x"),
        ];
        let settings = settings(&[(URL, Interest::All)]).with_restored(kept);
        let (_client, mut events) = start(channel, settings);
        assert!(
            apply(batch(&mut events).await)
                .0
                .contains(&"good".to_owned())
        );
        assert!(
            matches!(next(&mut events).await, Event::Restored { whole: false }),
            "{name}"
        );
    }
}

/// Notes how many resources were read with no other task in between.
struct Watching {
    turns: Arc<AtomicUsize>,
    at: AtomicUsize,
    run: AtomicUsize,
    longest: Arc<AtomicUsize>,
}

impl Decode for Watching {
    fn decode(
        &self,
        replicas: &mut Replicas,
        url: &str,
        name: &str,
        value: &[u8],
    ) -> Result<Option<Update>, Rejection> {
        let turns = self.turns.load(Ordering::Relaxed);
        if self.at.swap(turns, Ordering::Relaxed) != turns {
            self.run.store(0, Ordering::Relaxed);
        }
        let run = self.run.fetch_add(1, Ordering::Relaxed) + 1;
        self.longest.fetch_max(run, Ordering::Relaxed);
        Texts.decode(replicas, url, name, value)
    }

    fn removed(&self, url: &str, name: &str) -> Vec<ResourceName> {
        Texts.removed(url, name)
    }

    fn name(&self, resource: &ResourceName) -> String {
        Texts.name(resource)
    }
}

#[tokio::test]
async fn others_have_their_turn_while_a_large_response_is_read() {
    let (pipe, mut peers) = delta_server();
    let channel = builder().build(pipe).expect("settings");
    let (turns, longest) = (Arc::default(), Arc::default());
    let watching = Watching {
        turns: Arc::clone(&turns),
        at: AtomicUsize::new(0),
        run: AtomicUsize::new(0),
        longest: Arc::clone(&longest),
    };
    let settings = settings(&[(URL, Interest::All)]);
    let client = Client::with_decoder(channel, settings, Arc::new(watching));
    let (_client, mut events, worker) = client.expect("settings");
    tokio::spawn(worker.run());
    let mut peer = peers.recv().await.expect("a stream");
    peer.request().await;
    let other = tokio::spawn(async move {
        loop {
            turns.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    });
    let names = (0..5_000).map(|number| resource(&number.to_string(), "1", "x"));
    peer.answer("n1", names.collect(), &[]);
    assert!(matches!(next(&mut events).await, Event::Connected));
    assert_eq!(apply(batch(&mut events).await).0.len(), 5_000);
    let longest = longest.load(Ordering::Relaxed);
    // Two tasks that yield to each other have two turns each, one after the other.
    assert!((1..=2 * 256).contains(&longest), "{longest}");
    other.abort();
}
