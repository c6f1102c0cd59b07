//! What a control plane that means harm costs its members in memory. Its own binary: the counting allocator is the
//! whole process's.
//!
//! What it says is made while it is sent: what is allocated is the member's.
#![cfg(all(
    feature = "dev-ca",
    feature = "http",
    any(feature = "aws-lc-rs", feature = "ring")
))]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream;
use http::{Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use mesh_core::{BoxedIo, ControlPlane, Mesh, config, identity};
use prost::Message;
use prost::encoding::encode_varint;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower::service_fn;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grow(size: usize) {
    let live = LIVE.fetch_add(size, Ordering::Relaxed) + size;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

// The one way to see allocations; the library itself has no unsafe code here.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(rounded(layout.size()));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(rounded(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // What is large grows where it is.
        grow(rounded(size));
        LIVE.fetch_sub(rounded(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// What a general allocator hands out for a request: a multiple of 16 bytes.
fn rounded(size: usize) -> usize {
    size.next_multiple_of(16)
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MIB: usize = 1 << 20;
const NAME: &str = "istiod.istio-system.svc";
const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
const PATIENCE: Duration = Duration::from_secs(120);

/// `DeltaDiscoveryRequest`, as far as it is needed.
#[derive(Clone, PartialEq, prost::Message)]
struct Ask {
    #[prost(string, tag = "2")]
    type_url: String,
    #[prost(string, tag = "6")]
    nonce: String,
    #[prost(message, optional, tag = "7")]
    error: Option<Problem>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Problem {
    #[prost(string, tag = "2")]
    message: String,
}

fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 12);
    encode_varint(u64::from(number << 3 | 2), &mut out);
    encode_varint(bytes.len() as u64, &mut out);
    out.extend_from_slice(bytes);
    out
}

/// A message in a message in a message, by these fields in turn.
fn nested(numbers: &[u32], depth: usize) -> Vec<u8> {
    (0..depth).fold(Vec::new(), |inner, level| {
        field(numbers[level % numbers.len()], &inner)
    })
}

fn resource(url: &str, name: &str, value: &[u8]) -> Vec<u8> {
    let any = [field(1, url.as_bytes()), field(2, value)].concat();
    let resource = [field(1, b"9"), field(2, &any), field(3, name.as_bytes())];
    field(2, &resource.concat())
}

/// A workload of `default`.
fn workload(name: &str) -> Vec<u8> {
    let uid = format!("Kubernetes//Pod/default/{name}");
    let workload = [
        field(1, name.as_bytes()),
        field(2, b"default"),
        field(20, uid.as_bytes()),
    ];
    resource(ADDRESS, &uid, &field(1, &workload.concat()))
}

/// What ends a response: its type, and by which name it is answered.
fn end(url: &str, nonce: &str) -> Vec<u8> {
    [field(4, url.as_bytes()), field(5, nonce.as_bytes())].concat()
}

/// Parts of a message, made one after the other.
type Parts = Box<dyn Iterator<Item = Vec<u8>> + Send>;

/// A message on its way: pieces of some 16 KiB, and how many bytes of it left.
struct Saying {
    parts: Parts,
    buffer: BytesMut,
    sent: Arc<AtomicUsize>,
}

impl Saying {
    /// `announced` is its length as its header has it.
    fn new(announced: usize, parts: Parts, sent: &Arc<AtomicUsize>) -> Self {
        let mut buffer = BytesMut::from(&[0][..]);
        buffer.extend_from_slice(&u32::try_from(announced).unwrap().to_be_bytes());
        let sent = Arc::clone(sent);
        Self {
            parts,
            buffer,
            sent,
        }
    }
}

impl Iterator for Saying {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        while self.buffer.len() < 16 << 10 {
            match self.parts.next() {
                Some(part) => self.buffer.extend_from_slice(&part),
                None => break,
            }
        }
        let length = self.buffer.len().min(16 << 10);
        // A piece does not keep what comes behind it.
        let piece = Bytes::copy_from_slice(&self.buffer[..length]);
        self.buffer.advance(length);
        self.sent.fetch_add(length, Ordering::Relaxed);
        (length > 0).then_some(piece)
    }
}

/// What a member makes of what it is told.
#[derive(Debug, PartialEq)]
enum Heard {
    Accepted(String),
    Refused(String),
    /// Its stream has ended.
    Left,
}

struct Server {
    stream: Mutex<Option<UnboundedSender<Saying>>>,
    heard: UnboundedSender<Heard>,
    sent: Arc<AtomicUsize>,
}

impl Server {
    /// Says how clients connect to it, and what it hears of them; writes its root to a file.
    fn start(root_file: &std::path::Path) -> (Arc<Self>, ControlPlane, UnboundedReceiver<Heard>) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(root_file, root.pem()).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName(NAME.try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &root).unwrap();
        #[cfg(feature = "aws-lc-rs")]
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        #[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
        let provider = rustls::crypto::ring::default_provider();
        let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let (heard, hears) = mpsc::unbounded_channel();
        let this = Arc::new(Self {
            stream: Mutex::default(),
            heard,
            sent: Arc::default(),
        });
        let behind = Arc::clone(&this);
        let control_plane = ControlPlane::new(format!("{NAME}:15012"))
            .root_cert_file(root_file)
            .token_file(root_file.with_file_name("token"))
            .dialer(move |_| {
                let (near, far) = duplex(64 << 10);
                tokio::spawn(Arc::clone(&behind).serve(acceptor.clone(), far));
                async move { Ok::<_, io::Error>(BoxedIo::new(near)) }
            });
        (this, control_plane, hears)
    }

    async fn serve(self: Arc<Self>, acceptor: TlsAcceptor, io: DuplexStream) {
        let Ok(io) = acceptor.accept(io).await else {
            return;
        };
        let service = service_fn(move |request| {
            let this = Arc::clone(&self);
            async move { Ok::<_, Infallible>(this.answer(request)) }
        });
        let serving = http2::Builder::new(TokioExecutor::new());
        // A member that leaves is its own affair.
        let _ = serving
            .serve_connection(TokioIo::new(io), TowerToHyperService::new(service))
            .await;
    }

    fn answer(
        self: &Arc<Self>,
        request: Request<Incoming>,
    ) -> Response<
        StreamBody<impl futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>> + use<>>,
    > {
        assert!(request.uri().path().ends_with("/DeltaAggregatedResources"));
        let (say, says) = mpsc::unbounded_channel();
        *self.stream.lock().unwrap() = Some(say.clone());
        tokio::spawn(Arc::clone(self).hear(request.into_body(), say));
        let messages = stream::unfold((says, None), |(mut says, saying)| async move {
            let mut saying: Option<Saying> = saying;
            loop {
                if let Some(piece) = saying.as_mut().and_then(Iterator::next) {
                    return Some((Ok(Frame::data(piece)), (says, saying)));
                }
                saying = Some(says.recv().await?);
            }
        });
        Response::builder()
            .header("content-type", "application/grpc")
            .body(StreamBody::new(messages))
            .unwrap()
    }

    /// Answers the first request of each type as it should, and tells of all others.
    async fn hear(self: Arc<Self>, mut body: Incoming, say: UnboundedSender<Saying>) {
        let mut known = BTreeSet::new();
        let mut buffer = BytesMut::new();
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else {
                continue;
            };
            buffer.extend_from_slice(&data);
            while buffer.len() >= 5 {
                let length = u32::from_be_bytes(buffer[1..5].try_into().unwrap()) as usize;
                if buffer.len() < 5 + length {
                    break;
                }
                buffer.advance(5);
                let ask = Ask::decode(buffer.split_to(length)).unwrap();
                if known.insert(ask.type_url.clone()) {
                    let mut message = end(&ask.type_url, "well");
                    if ask.type_url == ADDRESS {
                        message.extend_from_slice(&workload("client"));
                    }
                    let parts = Box::new(std::iter::once(message.clone()));
                    let _ = say.send(Saying::new(message.len(), parts, &Arc::default()));
                } else if !ask.nonce.is_empty() {
                    let _ = self.heard.send(match ask.error {
                        None => Heard::Accepted(ask.nonce),
                        Some(_) => Heard::Refused(ask.nonce),
                    });
                }
            }
        }
        let _ = self.heard.send(Heard::Left);
    }

    fn say(&self, announced: usize, parts: Parts) {
        self.sent.store(0, Ordering::Relaxed);
        let saying = Saying::new(announced, parts, &self.sent);
        let stream = self.stream.lock().unwrap();
        stream.as_ref().unwrap().send(saying).unwrap();
    }
}

/// Waits until the member has what is well of every type on a stream.
async fn well(hears: &mut UnboundedReceiver<Heard>) {
    for _ in 0..2 {
        let heard = timeout(PATIENCE, hears.recv()).await.unwrap().unwrap();
        assert_eq!(heard, Heard::Accepted("well".to_owned()));
    }
}

struct Case {
    what: &'static str,
    /// Of the message; `None`: what it has.
    announced: Option<usize>,
    parts: fn() -> Parts,
    expected: Expected,
    /// How many times the bytes that were sent it may take, and how many beside.
    bound: (usize, usize),
    /// Whether some of it is in effect.
    stays: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Accepted,
    Refused,
    Left,
}

const MILLION: usize = 1_000_000;

/// Bytes of nothing, to be sent in pieces.
fn zeros(length: usize) -> impl Iterator<Item = Vec<u8>> + Send {
    (0..length)
        .step_by(8 << 10)
        .map(move |at| vec![0; (8 << 10).min(length - at)])
}

/// The beginning of a field of this length.
fn header(number: u32, length: usize) -> Vec<u8> {
    let mut out = Vec::new();
    encode_varint(u64::from(number << 3 | 2), &mut out);
    encode_varint(length as u64, &mut out);
    out
}

fn one(message: Vec<u8>) -> Parts {
    let starts = (0..message.len()).step_by(8 << 10);
    Box::new(starts.map(move |at| {
        let rest = &message[at..];
        rest[..rest.len().min(8 << 10)].to_vec()
    }))
}

fn cases() -> Vec<Case> {
    use Expected::{Accepted, Left, Refused};
    let case = |what, parts: fn() -> Parts, expected, bound| Case {
        what,
        announced: None,
        parts,
        expected,
        bound,
        stays: false,
    };
    vec![
        Case {
            announced: Some(1 << 30),
            ..case(
                "a message of 1 GiB",
                || Box::new(zeros(1 << 30)),
                Left,
                (0, 4 * MIB),
            )
        },
        Case {
            announced: Some(150 * MIB),
            ..case(
                "a resource of 1 GiB in a message of 150 MiB",
                || Box::new(std::iter::once(header(2, 1 << 30)).chain(zeros(150 * MIB))),
                Left,
                (0, 4 * MIB),
            )
        },
        case(
            "a resource of 100 MiB",
            || {
                let url = field(1, ADDRESS.as_bytes());
                let value = header(2, 100 * MIB);
                let any = header(2, url.len() + value.len() + 100 * MIB);
                let length = any.len() + url.len() + value.len() + 100 * MIB;
                let begin = [header(2, length), any, url, value].concat();
                let rest = zeros(100 * MIB).chain([end(ADDRESS, "large")]);
                Box::new(std::iter::once(begin).chain(rest))
            },
            Refused,
            (2, 8 * MIB),
        ),
        case(
            "a resource of 100 MiB of no type",
            || {
                let begin = header(2, 100 * MIB);
                let rest = zeros(100 * MIB).chain([end(ADDRESS, "typeless")]);
                Box::new(std::iter::once(begin).chain(rest))
            },
            Refused,
            (5, 4 * MIB),
        ),
        case(
            "a field of 100 MiB that nobody knows",
            || {
                let begin = header(99, 100 * MIB);
                let rest = zeros(100 * MIB).chain([end(ADDRESS, "unknown")]);
                Box::new(std::iter::once(begin).chain(rest))
            },
            Accepted,
            (0, 4 * MIB),
        ),
        case(
            "a nonce of 100 MiB",
            || {
                let begin = [field(4, ADDRESS.as_bytes()), header(5, 100 * MIB)].concat();
                Box::new(std::iter::once(begin).chain(zeros(100 * MIB)))
            },
            Left,
            (0, 4 * MIB),
        ),
        case(
            "a removed name of 100 MiB",
            || {
                let begin = header(6, 100 * MIB);
                let rest = zeros(100 * MIB).chain([end(ADDRESS, "long")]);
                Box::new(std::iter::once(begin).chain(rest))
            },
            Accepted,
            (0, 4 * MIB),
        ),
        case(
            "a million names that are removed",
            || {
                let names = (0..MILLION).map(|name| field(6, format!("x{name}").as_bytes()));
                Box::new(names.chain([end(ADDRESS, "removed")]))
            },
            Accepted,
            (8, 4 * MIB),
        ),
        case(
            "a million resources that are none",
            || {
                let none = |name: usize| resource(ADDRESS, &format!("x{name}"), b"\x0a\xff");
                let resources = (0..MILLION).map(none);
                Box::new(resources.chain([end(ADDRESS, "none")]))
            },
            Refused,
            (2, 4 * MIB),
        ),
        Case {
            stays: true,
            ..case(
                "a hundred thousand workloads that are each there twice",
                || {
                    let twice = (0..200_000).map(|name| workload(&format!("x{}", name / 2)));
                    Box::new(twice.chain([end(ADDRESS, "twice")]))
                },
                Refused,
                (2, 4 * MIB),
            )
        },
        case(
            "a resource with a million names",
            || {
                let names = (0..MILLION).flat_map(|name| field(4, format!("{name}").as_bytes()));
                let mut resource = field(3, b"Kubernetes//Pod/default/client");
                resource.extend(names);
                one([field(2, &resource), end(ADDRESS, "names")].concat())
            },
            Refused,
            (4, 4 * MIB),
        ),
        case(
            "a workload as deep as a resource has room for",
            || {
                let uid = "Kubernetes//Pod/default/client";
                let deep = nested(&[1], 200_000);
                one([resource(ADDRESS, uid, &deep), end(ADDRESS, "deep")].concat())
            },
            Refused,
            (2, 4 * MIB),
        ),
        case(
            "a policy as deep as a resource has room for",
            || {
                let deep = nested(&[5, 1, 2], 200_000);
                let policy = resource(AUTHORIZATION, "default/deep", &deep);
                one([policy, end(AUTHORIZATION, "deep")].concat())
            },
            Refused,
            (2, 4 * MIB),
        ),
        case(
            "what it should say",
            || one([workload("client"), end(ADDRESS, "again")].concat()),
            Accepted,
            (0, MIB),
        ),
    ]
}

#[tokio::test]
#[allow(clippy::print_stdout, reason = "the figures are worth seeing")]
async fn what_a_hostile_control_plane_says_costs_so_much_and_is_given_back() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), "token").unwrap();
    let (server, control_plane, mut hears) = Server::start(&folder.path().join("root"));
    let xds = config::Xds::istiod(control_plane)
        .addresses([[10, 0, 0, 1].into()])
        .backoff(Duration::from_millis(10), Duration::from_millis(10));
    let mesh = Mesh::builder()
        .workload("default", "client", "client")
        .config(xds)
        .identity(identity::DevCa::ephemeral("cluster.local"))
        .build()
        .unwrap();
    mesh.ready().await.unwrap();
    well(&mut hears).await;
    let mut failed = Vec::new();
    for case in cases() {
        let what = case.what;
        let announced = case.announced;
        let announced = announced.unwrap_or_else(|| (case.parts)().map(|part| part.len()).sum());
        let parts = (case.parts)();
        let before = LIVE.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        server.say(announced, parts);
        let heard = timeout(PATIENCE, hears.recv()).await;
        let heard = heard
            .unwrap_or_else(|_| panic!("{what}: nothing is heard"))
            .unwrap();
        let heard = match heard {
            Heard::Accepted(_) => Expected::Accepted,
            Heard::Refused(_) => Expected::Refused,
            Heard::Left => {
                well(&mut hears).await;
                Expected::Left
            }
        };
        let (sent, peak) = (
            server.sent.load(Ordering::Relaxed),
            PEAK.load(Ordering::Relaxed),
        );
        // What is large is let go of beside the runtime.
        let mut left = usize::MAX;
        for _ in 0..100 {
            left = LIVE.load(Ordering::Relaxed).saturating_sub(before);
            if left < MIB || case.stays {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let peak = peak - before;
        println!("{what}: {sent} bytes sent, {peak} at most, {left} in the end: {heard:?}");
        let (times, beside) = case.bound;
        if heard != case.expected || peak > times * sent + beside || (left > MIB && !case.stays) {
            failed.push(what);
        }
        assert!(mesh.readiness().is_ready(), "{what}");
    }
    assert!(failed.is_empty(), "{failed:?}");
}
