//! An istiod: TLS, tokens and certificates, in memory. Its messages are written down here once more, so
//! that the wire is checked and not only ourselves.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use mesh_core::authz::Identity;
use mesh_core::{BoxedIo, ControlPlane};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::server::WebPkiClientVerifier;
use rustls::time_provider::TimeProvider;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::server::Connected;
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::istiod_discovery::{self, Discovery};

pub(crate) const NAME: &str = "istiod.istio-system.svc";

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Ask {
    #[prost(string, tag = "1")]
    pub(crate) csr: String,
    #[prost(int64, tag = "3")]
    pub(crate) validity: i64,
    #[prost(message, optional, tag = "4")]
    pub(crate) metadata: Option<Struct>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Struct {
    #[prost(btree_map = "string, message", tag = "1")]
    pub(crate) fields: std::collections::BTreeMap<String, Value>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Value {
    #[prost(string, tag = "3")]
    pub(crate) string: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    #[prost(string, repeated, tag = "1")]
    chain: Vec<String>,
}

/// What was asked, and how.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) ask: Ask,
    pub(crate) authorization: Option<String>,
    pub(crate) cluster: Option<String>,
    pub(crate) tenant: Option<String>,
    /// Who the client's certificate says it is.
    pub(crate) peer: Option<Identity>,
}

/// What is answered instead of a certificate.
#[derive(Debug, Clone)]
pub(crate) enum Mood {
    Nothing,
    NoRoot,
    Garbage,
    /// The first that was issued, to another key.
    Another,
    /// A certificate by an authority under the root, and beside the root one that is none.
    Intermediate,
    Status(Code, &'static str),
    After(Duration),
}

type Authority = CertifiedIssuer<'static, KeyPair>;

pub(crate) struct Istiod {
    root: Authority,
    /// Further roots to trust.
    extra_roots: Mutex<String>,
    /// Of the next certificate.
    life: Duration,
    /// Whose certificates live for another time.
    of: Mutex<Option<(Identity, Duration)>>,
    clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    /// Whose a token is, and until when.
    tokens: Mutex<Vec<(String, Identity, SystemTime)>>,
    mood: Mutex<Option<Mood>>,
    calls: Mutex<Vec<Call>>,
    issued: Mutex<Vec<String>>,
    connections: mpsc::UnboundedSender<DuplexStream>,
    /// The names by which clients have asked for it, in TLS.
    sni: Mutex<Vec<Option<String>>>,
    /// How many handshakes have failed.
    failed: AtomicUsize,
    /// Whether connections are refused.
    pub(crate) away: AtomicBool,
    pub(crate) discovery: Discovery,
}

impl Ask {
    pub(crate) fn signing_request(&self) -> CertificateSigningRequestParams {
        CertificateSigningRequestParams::from_pem(&self.csr).unwrap()
    }
}

impl Istiod {
    pub(crate) fn start(
        life: Duration,
        clock: impl Fn() -> SystemTime + Send + Sync + 'static,
    ) -> Arc<Self> {
        Self::start_as(NAME, life, clock)
    }

    pub(crate) fn start_as(
        name: &str,
        life: Duration,
        clock: impl Fn() -> SystemTime + Send + Sync + 'static,
    ) -> Arc<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "cluster.local");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = Authority::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let (connections, arriving) = mpsc::unbounded_channel();
        let this = Arc::new(Self {
            root,
            extra_roots: Mutex::default(),
            life,
            of: Mutex::new(None),
            clock: Arc::new(clock),
            tokens: Mutex::default(),
            mood: Mutex::default(),
            calls: Mutex::default(),
            issued: Mutex::default(),
            connections,
            sni: Mutex::default(),
            failed: AtomicUsize::default(),
            away: AtomicBool::default(),
            discovery: Discovery::default(),
        });
        let acceptor = TlsAcceptor::from(Arc::new(this.tls(name)));
        tokio::spawn(serve(Arc::clone(&this), acceptor, arriving));
        this
    }

    pub(crate) fn root_pem(&self) -> String {
        self.root.pem()
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.root.der().clone()
    }

    pub(crate) fn trust_too(&self, pem: &str) {
        pem.clone_into(&mut self.extra_roots.lock().unwrap());
    }

    /// So long live the certificates of this one.
    pub(crate) fn issue_for(&self, identity: &str, life: Duration) {
        *self.of.lock().unwrap() = Some((identity.parse().unwrap(), life));
    }

    /// A token of `account`, good for `life`.
    pub(crate) fn token(&self, account: &str, life: Duration) -> String {
        let identity = Identity::new("cluster.local", "default", account).unwrap();
        self.token_of(identity, life)
    }

    pub(crate) fn token_of(&self, identity: Identity, life: Duration) -> String {
        let mut tokens = self.tokens.lock().unwrap();
        let token = format!("token-{}", tokens.len());
        tokens.push((token.clone(), identity, (self.clock)() + life));
        token
    }

    pub(crate) fn be(&self, mood: impl Into<Option<Mood>>) {
        *self.mood.lock().unwrap() = mood.into();
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// The names by which clients have asked for it, in TLS.
    pub(crate) fn sni(&self) -> Vec<Option<String>> {
        self.sni.lock().unwrap().clone()
    }

    /// How many handshakes have failed: a certificate that it does not believe is one reason.
    pub(crate) fn failed_handshakes(&self) -> usize {
        self.failed.load(Ordering::Relaxed)
    }

    /// A connection, as a client makes it.
    pub(crate) fn connect(&self) -> DuplexStream {
        let (near, far) = duplex(64 * 1024);
        self.connections.send(far).unwrap();
        near
    }

    /// The control plane as its clients are told of it.
    pub(crate) fn control_plane(self: &Arc<Self>) -> ControlPlane {
        let (this, clock) = (Arc::clone(self), Arc::clone(&self.clock));
        ControlPlane::new(format!("{NAME}:15012"))
            .clock(move || clock())
            .dialer(move |address| {
                assert_eq!(address, format!("{NAME}:15012"));
                let (near, far) = duplex(64 * 1024);
                let away = this.away.load(Ordering::Relaxed);
                let sent = match away {
                    true => Err(mpsc::error::SendError(far)),
                    false => this.connections.send(far),
                };
                async move {
                    sent.map_err(|_| io::ErrorKind::ConnectionRefused)?;
                    Ok(BoxedIo::new(near))
                }
            })
    }

    fn tls(self: &Arc<Self>, name: &str) -> ServerConfig {
        let provider = provider();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.root).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(self.root()).unwrap();
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .allow_unauthenticated()
                .build()
                .unwrap();
        let clock = Arc::new(Time(Arc::clone(&self.clock)));
        let mut config = ServerConfig::builder_with_details(provider, clock)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    /// Who somebody is, as istiod has it: a certificate beats a token.
    pub(crate) fn who(
        &self,
        authorization: Option<&str>,
        peer: Option<&Identity>,
    ) -> Option<Identity> {
        let now = (self.clock)();
        let by_token = || {
            let token = authorization?.strip_prefix("Bearer ")?;
            let tokens = self.tokens.lock().unwrap();
            let known = tokens
                .iter()
                .find(|(known, _, until)| known == token && now < *until);
            known.map(|(_, identity, _)| identity.clone())
        };
        peer.cloned().or_else(by_token)
    }

    /// As istiod does it: the names of a request do not count.
    fn create(&self, call: &Call, issuer: &Authority) -> Result<Vec<String>, Status> {
        let now = (self.clock)();
        let mut identity = self
            .who(call.authorization.as_deref(), call.peer.as_ref())
            .ok_or_else(|| Status::unauthenticated("authentication failure"))?;
        if let Some(metadata) = &call.ask.metadata {
            let value = &metadata.fields["ImpersonatedIdentity"];
            identity = value.string.parse().unwrap();
        }
        let mut csr = CertificateSigningRequestParams::from_pem(&call.ask.csr)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        csr.params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().unwrap())];
        csr.params.not_before = now.into();
        let of = self.of.lock().unwrap().clone();
        let life = of.filter(|(of, _)| *of == identity);
        csr.params.not_after = (now + life.map_or(self.life, |(_, life)| life)).into();
        csr.params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let leaf = csr.signed_by(issuer).unwrap().pem();
        self.issued.lock().unwrap().push(leaf.clone());
        let roots = self.root.pem() + &*self.extra_roots.lock().unwrap();
        Ok(vec![leaf, roots])
    }

    async fn answer(self: Arc<Self>, request: Request<Ask>) -> Result<Response<Answer>, Status> {
        let header = |name: &str| {
            let value = request.metadata().get(name)?;
            Some(value.to_str().unwrap().to_owned())
        };
        let call = Call {
            authorization: header("authorization"),
            cluster: header("clusterid"),
            tenant: header("x-tenant"),
            peer: request.extensions().get::<PeerOf>().unwrap().0.clone(),
            ask: request.get_ref().clone(),
        };
        self.calls.lock().unwrap().push(call.clone());
        let mood = self.mood.lock().unwrap().clone();
        let mut chain = self.create(&call, &self.root);
        match mood {
            None => {}
            Some(Mood::Nothing) => chain = Ok(Vec::new()),
            Some(Mood::NoRoot) => chain.as_mut().map_or((), |chain| chain.truncate(1)),
            Some(Mood::Garbage) => chain = Ok(vec!["garbage".to_owned(), self.root.pem()]),
            Some(Mood::Another) => {
                chain = Ok(vec![
                    self.issued.lock().unwrap()[0].clone(),
                    self.root.pem(),
                ]);
            }
            Some(Mood::Intermediate) => {
                let mut params = CertificateParams::default();
                params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
                params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
                let key = KeyPair::generate().unwrap();
                let between = Authority::signed_by(params, key, &self.root).unwrap();
                chain = self.create(&call, &between).map(|mut chain| {
                    chain[1] +=
                        "-----BEGIN CERTIFICATE-----\nbm9uZQ==\n-----END CERTIFICATE-----\n";
                    chain.insert(1, between.pem());
                    chain
                });
            }
            Some(Mood::Status(code, message)) => return Err(Status::new(code, message)),
            Some(Mood::After(time)) => tokio::time::sleep(time).await,
        }
        Ok(Response::new(Answer { chain: chain? }))
    }
}

pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    #[cfg(feature = "aws-lc-rs")]
    return Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    #[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
    return Arc::new(rustls::crypto::ring::default_provider());
}

async fn serve(
    istiod: Arc<Istiod>,
    acceptor: TlsAcceptor,
    mut arriving: mpsc::UnboundedReceiver<DuplexStream>,
) {
    let (accepted, streams) = mpsc::unbounded_channel();
    let behind = Arc::clone(&istiod);
    tokio::spawn(async move {
        while let Some(io) = arriving.recv().await {
            let (acceptor, accepted) = (acceptor.clone(), accepted.clone());
            let istiod = Arc::clone(&behind);
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(io).await else {
                    istiod.failed.fetch_add(1, Ordering::Relaxed);
                    return;
                };
                let name = stream.get_ref().1.server_name().map(str::to_owned);
                istiod.sni.lock().unwrap().push(name);
                let _ = accepted.send(Ok::<_, io::Error>(Stream(stream)));
            });
        }
    });
    let streams = tokio_stream::wrappers::UnboundedReceiverStream::new(streams);
    tonic::transport::Server::builder()
        .add_service(Served(Service(Arc::clone(&istiod))))
        .add_service(Served(istiod_discovery::Service(istiod)))
        .serve_with_incoming(streams)
        .await
        .unwrap();
}

pub(crate) type HttpRequest = http::Request<tonic::body::Body>;
pub(crate) type HttpResponse = http::Response<tonic::body::Body>;

/// A gRPC service of one method.
pub(crate) trait Method: Clone + Send + Sync + 'static {
    const SERVICE: &'static str;
    const METHOD: &'static str;

    fn answer(self, request: HttpRequest) -> impl Future<Output = HttpResponse> + Send;
}

/// Such a service, as tonic's server takes it.
#[derive(Clone)]
pub(crate) struct Served<M>(pub(crate) M);

impl<M: Method> NamedService for Served<M> {
    const NAME: &'static str = M::SERVICE;
}

impl<M: Method> tower_service::Service<HttpRequest> for Served<M> {
    type Response = HttpResponse;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest) -> Self::Future {
        let expected = format!("/{}/{}", M::SERVICE, M::METHOD);
        assert_eq!(request.uri().path(), expected);
        let method = self.0.clone();
        Box::pin(async move { Ok(method.answer(request).await) })
    }
}

/// The gRPC service.
#[derive(Clone)]
struct Service(Arc<Istiod>);

impl Method for Service {
    const SERVICE: &'static str = "istio.v1.auth.IstioCertificateService";
    const METHOD: &'static str = "CreateCertificate";

    async fn answer(self, request: HttpRequest) -> HttpResponse {
        let codec = ProstCodec::<Answer, Ask>::default();
        Grpc::new(codec).unary(self, request).await
    }
}

impl UnaryService<Ask> for Service {
    type Response = Answer;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answer>, Status>> + Send>>;

    fn call(&mut self, request: Request<Ask>) -> Self::Future {
        Box::pin(Arc::clone(&self.0).answer(request))
    }
}

/// A connection, by which tonic tells who the client is.
struct Stream(TlsStream<DuplexStream>);

#[derive(Clone)]
pub(crate) struct PeerOf(pub(crate) Option<Identity>);

impl Connected for Stream {
    type ConnectInfo = PeerOf;

    fn connect_info(&self) -> PeerOf {
        let certificates = self.0.get_ref().1.peer_certificates();
        let leaf = certificates.and_then(|chain| chain.first());
        PeerOf(leaf.map(|leaf| {
            let (_, leaf) = X509Certificate::from_der(leaf).unwrap();
            let names = leaf.subject_alternative_name().unwrap().unwrap();
            match names.value.general_names[..] {
                [GeneralName::URI(uri)] => uri.parse().unwrap(),
                _ => panic!("one URI"),
            }
        }))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

struct Time(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl std::fmt::Debug for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Time")
    }
}

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        let since = (self.0)().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        Some(UnixTime::since_unix_epoch(since))
    }
}
