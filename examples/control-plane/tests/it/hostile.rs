//! A server with a certificate of the control plane's authority that says what no control plane says.

use std::fs;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use http::Response;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::plane::Plane;

/// How long it waits for somebody who takes no more of what it says, and for one who has all of it to leave.
const BORED: Duration = Duration::from_secs(1);

pub(crate) struct Hostile {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// How many messages there were, and the last of them.
    says: Mutex<(usize, Bytes)>,
    /// The number of the last that was said to its end, or as far as it was listened to.
    said: AtomicUsize,
    /// In bytes, of all.
    sent: AtomicUsize,
}

impl Hostile {
    /// Starts it beside the control plane, with nothing to say.
    pub(crate) async fn start(plane: &Plane) -> Self {
        let listener = TcpListener::bind((plane.address().ip(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls(plane)));
        let shared = Arc::new(Shared::default());
        let speaks = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, shared) = (acceptor.clone(), Arc::clone(&speaks));
                tokio::spawn(async move {
                    // Whoever leaves has heard enough.
                    let _ = connection(acceptor, stream, shared).await;
                });
            }
        });
        Self { address, shared }
    }

    /// What it says from now on to whoever asks for anything.
    pub(crate) fn say(&self, message: Bytes) {
        let mut says = self.shared.says.lock().unwrap();
        *says = (says.0 + 1, message);
    }

    /// Whether it has said it to somebody, or as much as they listened to.
    pub(crate) fn has_said(&self) -> bool {
        let last = self.shared.says.lock().unwrap().0;
        self.shared.said.load(Ordering::Relaxed) == last
    }

    /// How many bytes of messages it has sent.
    pub(crate) fn sent(&self) -> usize {
        self.shared.sent.load(Ordering::Relaxed)
    }
}

fn tls(plane: &Plane) -> ServerConfig {
    let read = |name: &str| fs::read_to_string(plane.path("state").join(name)).unwrap();
    let authority = KeyPair::from_pem(&read("root-key.pem")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("root-cert.pem"), authority).unwrap();
    let mut params = CertificateParams::new(["istiod.istio-system.svc".to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

async fn connection(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    shared: Arc<Shared>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let stream = acceptor.accept(stream).await?;
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(request) = connection.accept().await {
        let (_request, mut respond) = request?;
        let head = Response::builder().header("content-type", "application/grpc");
        let body = respond.send_response(head.body(())?, false)?;
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let (number, message) = shared.says.lock().unwrap().clone();
            let _ = speak(body, message, &shared).await;
            shared.said.fetch_max(number, Ordering::Relaxed);
        });
    }
    Ok(())
}

/// Says it, as fast as it is listened to, and holds the stream open.
async fn speak(
    mut body: SendStream<Bytes>,
    mut message: Bytes,
    shared: &Shared,
) -> Result<(), h2::Error> {
    while !message.is_empty() {
        body.reserve_capacity(message.len());
        let room = timeout(BORED, poll_fn(|cx| body.poll_capacity(cx))).await;
        let Ok(Some(room)) = room else {
            return Ok(());
        };
        let room = room?.min(message.len());
        shared.sent.fetch_add(room, Ordering::Relaxed);
        body.send_data(message.split_to(room), false)?;
    }
    let left = timeout(BORED, poll_fn(|cx| body.poll_reset(cx))).await;
    left.map_or(Ok(()), |left| left.map(|_| ()))
}
