//! Certificates that SPIRE's agent pushes. Its messages are written down here once more, so that the wire
//! is checked and not only ourselves.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::{Stream, StreamExt, stream};
use mesh_core::BoxedIo;
use mesh_core::identity::{CertificateSource, ErrorKind, WorkloadApi};
use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tokio::io::{DuplexStream, duplex};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::server::{Grpc, ServerStreamingService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::identity_renewal::{reviews, wall_clock};
use crate::istiod::{HttpRequest, HttpResponse, Method, Served};

const HOUR: Duration = Duration::from_secs(3600);

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct Update {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<Svid>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    crl: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Svid {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(bytes = "vec", tag = "2")]
    chain: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    bundle: Vec<u8>,
}

type Answer = Result<Update, Status>;

/// An agent on a pipe instead of a socket.
struct Agent {
    issuer: CertifiedIssuer<'static, KeyPair>,
    says: watch::Sender<Answer>,
    connections: mpsc::UnboundedSender<DuplexStream>,
    clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    dials: Arc<Mutex<usize>>,
}

impl Agent {
    fn start() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let (says, _) = watch::channel(Err(Status::permission_denied("no identity issued")));
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
            connections: serve(says.clone()),
            clock: Arc::new(wall_clock()),
            says,
            dials: Arc::default(),
        }
    }

    fn api(&self) -> WorkloadApi {
        let (connections, dials) = (self.connections.clone(), Arc::clone(&self.dials));
        let clock = Arc::clone(&self.clock);
        WorkloadApi::new("unix:///run/agent.sock")
            .clock(move || clock())
            .rng(7)
            .dialer(move || {
                *dials.lock().unwrap() += 1;
                let (near, far) = duplex(64 * 1024);
                let sent = connections.send(far);
                async move {
                    sent.map_err(|_| io::ErrorKind::ConnectionRefused)?;
                    Ok(BoxedIo::new(near))
                }
            })
    }

    fn svid(&self, id: &str, serial: u64, life: Duration) -> Svid {
        let now = (self.clock)();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.serial_number = Some(serial.into());
        params.not_before = now.into();
        params.not_after = (now + life).into();
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        Svid {
            id: id.to_owned(),
            chain: leaf.der().to_vec(),
            key: key.serialize_der(),
            bundle: self.issuer.der().to_vec(),
        }
    }

    fn push(&self, svids: Vec<Svid>) {
        let crl = Vec::new();
        self.say(Ok(Update { svids, crl }));
    }

    fn say(&self, answer: Answer) {
        self.says.send_modify(|says| *says = answer);
    }
}

fn serve(says: watch::Sender<Answer>) -> mpsc::UnboundedSender<DuplexStream> {
    let (connections, arriving) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        tonic::transport::Server::builder()
            .add_service(Served(Service(says)))
            .serve_with_incoming(UnboundedReceiverStream::new(arriving).map(Ok::<_, io::Error>))
            .await
            .unwrap();
    });
    connections
}

#[derive(Clone)]
struct Service(watch::Sender<Answer>);

impl Method for Service {
    const SERVICE: &'static str = "SpiffeWorkloadAPI";
    const METHOD: &'static str = "FetchX509SVID";

    async fn answer(self, request: HttpRequest) -> HttpResponse {
        let codec = ProstCodec::<Update, Empty>::default();
        Grpc::new(codec).server_streaming(self, request).await
    }
}

type Answers = Pin<Box<dyn Stream<Item = Answer> + Send>>;

impl ServerStreamingService<Empty> for Service {
    type Response = Update;
    type ResponseStream = Answers;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answers>, Status>> + Send>>;

    fn call(&mut self, request: Request<Empty>) -> Self::Future {
        let header = request.metadata().get("workload.spiffe.io").cloned();
        let mut says = self.0.subscribe();
        says.mark_changed();
        let answers: Answers = Box::pin(stream::unfold(says, async |mut says| {
            says.changed().await.ok()?;
            let answer = says.borrow_and_update().clone();
            Some((answer, says))
        }));
        Box::pin(async move {
            match header {
                Some(value) if value == "true" => Ok(Response::new(answers)),
                _ => Err(Status::invalid_argument("security header missing")),
            }
        })
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_agent_pushes_is_used_at_once() {
    let agent = Agent::start();
    let other = "spiffe://cluster.local/ns/default/sa/ratings";
    let own = reviews().to_string();
    agent.push(vec![agent.svid(other, 1, HOUR), agent.svid(&own, 2, HOUR)]);
    let mut watch = agent.api().watch(reviews());
    let first = watch.next().await.unwrap().unwrap();
    assert_eq!((first.identity(), first.serial_number()), (&reviews(), "2"));
    assert_eq!(first.roots(), [agent.issuer.der().clone()]);
    agent.push(vec![agent.svid(&own, 3, HOUR)]);
    let second = watch.next().await.unwrap().unwrap();
    assert_eq!(second.serial_number(), "3");
    assert_eq!(*agent.dials.lock().unwrap(), 1);

    // What is not ours, or damaged, is an error; the watch goes on.
    agent.push(vec![agent.svid(other, 4, HOUR)]);
    let error = watch.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongIdentity);
    // The agent gives it as soon as its entry is registered.
    assert!(!error.is_permanent());
    assert!(error.detail().contains(other), "{error}");
    let mut damaged = agent.svid(&own, 5, HOUR);
    damaged.key = vec![1];
    damaged.chain.truncate(100);
    agent.push(vec![damaged]);
    let error = watch.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    agent.push(vec![agent.svid(&own, 6, HOUR)]);
    assert_eq!(watch.next().await.unwrap().unwrap().serial_number(), "6");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_says_no_or_is_gone_is_asked_again_with_pauses() {
    let agent = Agent::start();
    let mut watch = agent.api().watch(reviews());
    let error = watch.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.detail().starts_with("/run/agent.sock: "), "{error}");
    let begin = Instant::now();
    while begin.elapsed() < HOUR {
        watch.next().await.unwrap().unwrap_err();
    }
    let dials = *agent.dials.lock().unwrap();
    assert!((60..150).contains(&dials), "{dials}");

    let svid = agent.svid(&reviews().to_string(), 1, HOUR);
    agent.push(vec![svid.clone()]);
    let first = loop {
        if let Ok(bundle) = watch.next().await.unwrap() {
            break bundle;
        }
    };
    // The agent goes; what it gave is good until it expires, and is given anew by the next agent.
    agent.say(Err(Status::unavailable("going")));
    let error = watch.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    agent.push(vec![svid]);
    let again = watch.next().await.unwrap().unwrap();
    assert_eq!(again.chain(), first.chain());
    let begin = Instant::now();
    let error = watch.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Expired);
    assert!(begin.elapsed() <= HOUR);
}

#[tokio::test(start_paused = true)]
async fn an_agent_is_asked_again_after_the_pauses_that_are_set() {
    let agent = Agent::start();
    let pause = Duration::from_secs(600);
    let mut watch = agent.api().backoff(pause, pause).watch(reviews());
    let begin = Instant::now();
    for _ in 0..10 {
        watch.next().await.unwrap().unwrap_err();
    }
    // Nine pauses, each drawn from the upper half.
    let (least, most) = (pause * 9 / 2, pause * 9 + Duration::from_secs(1));
    let took = begin.elapsed();
    assert!((least..most).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_answer_is_given_up_after_the_time_that_is_set() {
    let held = Arc::new(Mutex::new(Vec::new()));
    let silent = WorkloadApi::new("unix:///run/agent.sock").dialer(move || {
        let (near, far) = duplex(64 * 1024);
        held.lock().unwrap().push(far);
        std::future::ready(Ok(BoxedIo::new(near)))
    });
    let source = silent.timeout(Duration::from_secs(3));
    let begin = Instant::now();
    let error = source.watch(reviews()).next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.detail().contains("no answer within 3s"), "{error}");
    assert_eq!(begin.elapsed(), Duration::from_secs(3));
}

/// A real socket, and no agent behind it.
#[tokio::test]
async fn a_socket_that_is_not_there_is_named() {
    let source = WorkloadApi::new("unix:///nonexistent/agent.sock");
    let error = source.watch(reviews()).next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error.detail().starts_with("/nonexistent/agent.sock: "),
        "{error}"
    );
}
