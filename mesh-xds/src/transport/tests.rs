use std::future::{Ready, ready};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status};

use super::*;
use crate::proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use crate::proto::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use crate::proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};

/// A pipe to a server in this process; refuses when the server is gone.
#[derive(Clone)]
pub(crate) struct Pipe {
    server: mpsc::UnboundedSender<io::Result<DuplexStream>>,
    dialled: mpsc::UnboundedSender<Uri>,
    /// Bytes that it holds.
    width: usize,
}

/// The server's ends of pipes.
pub(crate) type Incoming = UnboundedReceiverStream<io::Result<DuplexStream>>;

impl Pipe {
    /// A pipe, its other end, and what is dialled.
    pub(crate) fn new() -> (Self, Incoming, mpsc::UnboundedReceiver<Uri>) {
        Self::of(64 * 1024)
    }

    fn of(width: usize) -> (Self, Incoming, mpsc::UnboundedReceiver<Uri>) {
        let (server, connections) = mpsc::unbounded_channel();
        let (dialled, uris) = mpsc::unbounded_channel();
        let pipe = Self {
            server,
            dialled,
            width,
        };
        (pipe, connections.into(), uris)
    }
}

impl Service<Uri> for Pipe {
    type Response = DuplexStream;
    type Error = io::Error;
    type Future = Ready<io::Result<DuplexStream>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (ours, theirs) = tokio::io::duplex(self.width);
        let _ = self.dialled.send(uri);
        let refused = |_| io::Error::from(io::ErrorKind::ConnectionRefused);
        ready(self.server.send(Ok(theirs)).map(|()| ours).map_err(refused))
    }
}

/// Answers with what it was sent: the CSR's length in bytes of `x`, or the status that the CSR names.
struct Echo;

#[tonic::async_trait]
impl IstioCertificateService for Echo {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let text = |name: &str| {
            let values = request.metadata().get_all(name).iter();
            let values: Vec<_> = values.map(|v| v.to_str().expect("ASCII")).collect();
            values.join("|")
        };
        match request.get_ref().csr.as_str() {
            "headers" => {}
            "large" => {
                let cert_chain = vec!["x".repeat(100_000)];
                return Ok(Response::new(IstioCertificateResponse { cert_chain }));
            }
            code => {
                return Err(Status::new(
                    code.parse::<i32>().expect("a code").into(),
                    "no",
                ));
            }
        }
        let cert_chain = ["authorization", "clusterid", "user-agent"].map(text);
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: cert_chain.into(),
        }))
    }
}

fn server() -> (Pipe, mpsc::UnboundedReceiver<Uri>) {
    let (pipe, connections, uris) = Pipe::new();
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(IstioCertificateServiceServer::new(Echo))
            .serve_with_incoming(connections),
    );
    (pipe, uris)
}

fn builder() -> ChannelBuilder {
    Channel::builder(Uri::from_static("https://istiod.istio-system.svc:15012"))
}

async fn ask(channel: &Channel, csr: &str) -> Result<Vec<String>, Error> {
    let request = channel.request(IstioCertificateRequest {
        csr: csr.to_owned(),
        ..Default::default()
    });
    let mut client = IstioCertificateServiceClient::new(channel.fresh())
        .max_decoding_message_size(channel.max_message_size());
    let response = client.create_certificate(request.await?).await?;
    Ok(response.into_inner().cert_chain)
}

#[tokio::test]
async fn requests_have_the_headers_and_the_token_as_it_is_now() {
    let (pipe, mut uris) = server();
    let count = Arc::new(AtomicUsize::new(0));
    let channel = builder()
        .header("clusterid", "Kubernetes")
        .token(move || {
            let n = count.fetch_add(1, Ordering::Relaxed);
            ready(Ok((n != 1).then(|| format!("token-{n}\n"))))
        })
        .build(pipe)
        .expect("settings");
    let agent = concat!("mesh-xds/", env!("CARGO_PKG_VERSION"));
    for token in ["Bearer token-0", "", "Bearer token-2"] {
        let answer = ask(&channel, "headers").await.expect("an answer");
        assert_eq!(answer[..2], [token, "Kubernetes"]);
        assert!(answer[2].starts_with(agent), "{answer:?}");
    }
    for _ in 0..3 {
        let dialled = uris.try_recv().expect("each has a connection of its own");
        assert_eq!(dialled, "https://istiod.istio-system.svc:15012");
    }
}

#[tokio::test]
async fn the_longest_times_that_can_be_set_are_for_ever() {
    let (pipe, _uris) = server();
    let channel = builder()
        .connect_timeout(Duration::MAX)
        .keep_alive(Duration::MAX, Duration::MAX)
        .build(pipe)
        .expect("settings");
    ask(&channel, "headers").await.expect("an answer");
}

#[tokio::test]
async fn errors_say_what_failed() {
    let (pipe, _uris) = server();
    let channel = builder().build(pipe).expect("settings");
    for (code, kind) in [
        (2, ErrorKind::Status),
        (3, ErrorKind::InvalidRequest),
        (7, ErrorKind::PermissionDenied),
        (8, ErrorKind::ResourceExhausted),
        (12, ErrorKind::Unimplemented),
        (14, ErrorKind::Unavailable),
        (16, ErrorKind::Unauthenticated),
    ] {
        let error = ask(&channel, &code.to_string()).await.expect_err("refused");
        assert_eq!(error.kind(), kind, "{code}: {error:?}");
        assert!(!error.is_connection());
        assert_eq!(error.is_refused(), matches!(code, 7 | 16));
        assert!(error.to_string().ends_with(": no"), "{error}");
    }

    let (pipe, connections, _uris) = Pipe::new();
    drop(connections);
    let gone = builder().build(pipe).expect("settings");
    let error = ask(&gone, "headers").await.expect_err("refused");
    assert!(error.is_connection(), "{error:?}");
    let mut cause: &dyn std::error::Error = &error;
    while let Some(below) = cause.source() {
        cause = below;
    }
    let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
    assert_eq!(cause.to_string(), refused.to_string());
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let (pipe, _uris) = server();
    let channel = builder().max_message_size(200_000).build(pipe.clone());
    ask(&channel.expect("settings"), "large")
        .await
        .expect("an answer");
    let channel = builder().max_message_size(50_000).build(pipe);
    let error = ask(&channel.expect("settings"), "large").await;
    assert_eq!(error.expect_err("large").kind(), ErrorKind::TooLarge);
}

#[tokio::test]
async fn a_token_that_cannot_be_had_is_an_error_of_ours() {
    let (pipe, mut uris) = server();
    let source = || ready(Err("the file is gone".into()));
    let channel = builder().token(source).build(pipe.clone());
    let error = ask(&channel.expect("settings"), "headers").await;
    let error = error.expect_err("no token");
    assert_eq!(error.kind(), ErrorKind::Token);
    let source = std::error::Error::source(&error).expect("why");
    assert_eq!(source.to_string(), "the file is gone");
    let source = || ready(Ok(Some("a\nb".to_owned())));
    let channel = builder().token(source).build(pipe);
    let error = ask(&channel.expect("settings"), "headers").await;
    let error = error.expect_err("no header value");
    assert_eq!(error.kind(), ErrorKind::Token);
    assert!(!format!("{error:?}").contains("a\\nb"), "{error:?}");
    assert!(uris.try_recv().is_err(), "nothing was dialled");
}

#[tokio::test]
async fn settings_are_checked() {
    let (pipe, _uris) = server();
    let build = |builder: ChannelBuilder| builder.build(pipe.clone());
    for (builder, expected) in [
        (Channel::builder(Uri::from_static("/a")), "scheme and host"),
        (Channel::builder(Uri::from_static("istiod:15012")), "scheme"),
        (
            Channel::builder(Uri::from_static("ftp://istiod")),
            "http or https",
        ),
        (builder().header("a b", "c"), "\"a b\""),
        (builder().header("authorization", "c"), "authorization"),
        (builder().header("grpc-timeout", "1S"), "grpc-timeout"),
        (builder().header("a", "b\nc"), "header a"),
        (builder().connect_timeout(Duration::ZERO), "0"),
        (builder().max_message_size(0), "0"),
    ] {
        let error = build(builder).expect_err(expected);
        assert_eq!(error.kind(), ErrorKind::InvalidSettings);
        assert!(error.to_string().contains(expected), "{error}");
    }
}

/// V031: istiod (grpc-go) takes pings that come sooner than 15 s after one another, or without a stream, for an
/// attack, and answers the third with GOAWAY. On the wire: each frame has nine bytes before it, its length and type first.
#[tokio::test(start_paused = true)]
async fn pings_are_seldom_enough_for_istiod() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::{Instant, timeout};

    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    let (pipe, mut connections, _) = Pipe::new();
    let channel = builder().build(pipe).expect("settings");
    let asking = tokio::spawn(async move { drop(ask(&channel, "headers").await) });
    let mut io = tokio_stream::StreamExt::next(&mut connections)
        .await
        .expect("a connection")
        .expect("a pipe");
    let mut preface = [0; 24];
    io.read_exact(&mut preface).await.expect("the preface");
    io.write_all(&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0])
        .await
        .expect("a client");
    let begin = Instant::now();
    let mut pings = Vec::new();
    // The request is never answered, so there is a stream all the time.
    while begin.elapsed() < Duration::from_secs(600) {
        let mut head = [0; 9];
        if timeout(Duration::from_secs(600), io.read_exact(&mut head))
            .await
            .is_err()
        {
            break;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        io.read_exact(&mut payload).await.expect("the frame");
        match (head[3], head[4]) {
            (SETTINGS, 0) => io
                .write_all(&[0, 0, 0, SETTINGS, 1, 0, 0, 0, 0])
                .await
                .expect("a client"),
            (PING, 0) => {
                pings.push(begin.elapsed());
                io.write_all(&[0, 0, 8, PING, 1, 0, 0, 0, 0])
                    .await
                    .expect("a client");
                io.write_all(&payload).await.expect("a client");
            }
            _ => {}
        }
    }
    asking.abort();
    assert!(pings.len() > 5, "a dead connection is noticed: {pings:?}");
    for pair in pings.windows(2) {
        assert!(pair[1] - pair[0] >= Duration::from_secs(15), "{pings:?}");
    }
}

/// B11: each word of room that a server is told costs both ends a record and a system call. Told at each frame it is 21 here.
#[tokio::test(start_paused = true)]
async fn a_server_that_is_faster_hears_of_room_for_a_quarter_of_the_window_at_a_time() {
    const LENGTH: usize = 4 * 1024 * 1024;
    let (pipe, mut connections, _) = Pipe::of(LENGTH);
    let channel = builder().build(pipe).expect("settings");
    let serving = tokio::spawn(async move {
        let io = tokio_stream::StreamExt::next(&mut connections).await;
        pours(io.expect("a connection").expect("a pipe"), LENGTH).await
    });
    let (requests, received) = mpsc::unbounded_channel::<IstioCertificateRequest>();
    let mut messages = messages::open(
        channel.connect().await.expect("a connection"),
        channel.uri(),
        "/a/b",
        channel.request(()).await.expect("a request"),
        UnboundedReceiverStream::new(received),
        channel.max_message_size(),
    )
    .await
    .expect("an answer");
    // Who has used up its turn cannot write, and would say all at once.
    tokio::task::unconstrained(async {
        let mut taken = 0;
        while taken < LENGTH {
            let piece = messages.next().await.expect("data").expect("a piece");
            taken += piece.data.len();
            assert_eq!(piece.ends, taken == LENGTH);
        }
    })
    .await;
    drop((messages, requests));
    let told = serving.await.expect("the server");
    assert!((4..=16).contains(&told), "{told}");
}

/// Answers a request by one message of that length, as fast as it may; says how often it was told of room for it.
async fn pours(mut io: DuplexStream, length: usize) -> usize {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const FRAME: usize = 16 * 1024;
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const WINDOW_UPDATE: u8 = 8;
    io.read_exact(&mut [0; 24]).await.expect("the preface");
    io.write_all(&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0])
        .await
        .expect("a client");
    let mut message = vec![0; 5 + length];
    message[1..5].copy_from_slice(&(length as u32).to_be_bytes());
    let (mut rest, mut asked, mut told) = (message.as_slice(), false, 0);
    // Of the connection, and of the stream.
    let mut windows = [65_535_usize; 2];
    let mut head = [0; 9];
    // Until the client goes.
    while io.read_exact(&mut head).await.is_ok() {
        let size = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = usize::from(head[8]);
        let mut payload = vec![0; size as usize];
        io.read_exact(&mut payload).await.expect("the frame");
        match (head[3], head[4]) {
            (SETTINGS, 0) => {
                for setting in payload.as_chunks::<6>().0 {
                    if let [0, 4, value @ ..] = *setting {
                        windows[1] = u32::from_be_bytes(value) as usize;
                    }
                }
                let _ = io.write_all(&[0, 0, 0, SETTINGS, 1, 0, 0, 0, 0]).await;
            }
            (HEADERS, _) => {
                asked = true;
                // `:status: 200`, which HPACK has whole.
                let answer = [0, 0, 1, HEADERS, 4, 0, 0, 0, 1, 0x88];
                let _ = io.write_all(&answer).await;
            }
            (WINDOW_UPDATE, _) => {
                let more = u32::from_be_bytes(payload.try_into().expect("four bytes"));
                windows[stream] += more as usize;
                told += stream;
            }
            _ => {}
        }
        while asked && !rest.is_empty() {
            let size = rest.len().min(FRAME).min(windows[0]).min(windows[1]);
            if size == 0 {
                break;
            }
            let (data, after) = rest.split_at(size);
            rest = after;
            windows = windows.map(|window| window - size);
            let [_, high, middle, low] = (size as u32).to_be_bytes();
            let _ = io
                .write_all(&[high, middle, low, DATA, 0, 0, 0, 0, 1])
                .await;
            let _ = io.write_all(data).await;
        }
    }
    told
}
