//! A server that says what was recorded, message by message, and the recording.

use std::fs;
use std::future::{Ready, ready};
use std::io;
use std::path::Path;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use http::Uri;
use serde_json::Value;
use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::server::{Grpc, StreamingService};
use tonic::{Request, Response, Status, Streaming};

use crate::istiod::{HttpRequest, HttpResponse, Method, Served};
use crate::istiod_discovery::{Answers, Ask, Sent, SentCodec};

/// Longer than anything takes here, where time passes when nothing else happens.
const LONG: Duration = Duration::from_secs(60);

/// A message of a recorded stream.
#[derive(Clone)]
pub(crate) struct Line {
    pub(crate) step: String,
    pub(crate) by_client: bool,
    pub(crate) type_url: String,
    pub(crate) bytes: Vec<u8>,
}

/// All of a recorded stream, in order.
pub(crate) fn lines(client: &Path) -> Vec<Line> {
    let stream = fs::read_to_string(client.join("stream.jsonl")).unwrap();
    let read = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| line[name].as_str().unwrap().to_owned();
        Line {
            step: text("step"),
            by_client: text("from") == "client",
            type_url: text("type_url"),
            bytes: fs::read(client.join(text("file") + ".pb")).unwrap(),
        }
    };
    stream.lines().map(read).collect()
}

/// What a client dials.
#[derive(Clone)]
pub(crate) struct Dial(mpsc::UnboundedSender<DuplexStream>);

impl tower_service::Service<Uri> for Dial {
    type Response = DuplexStream;
    type Error = io::Error;
    type Future = Ready<io::Result<DuplexStream>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (near, far) = duplex(64 * 1024);
        ready(match self.0.send(far) {
            Ok(()) => Ok(near),
            Err(_) => Err(io::ErrorKind::ConnectionRefused.into()),
        })
    }
}

/// A discovery server that leaves everything to the test.
pub(crate) struct Server {
    streams: mpsc::UnboundedReceiver<Stream>,
}

/// A stream that a client has opened.
pub(crate) struct Stream {
    asks: Streaming<Ask>,
    answers: mpsc::UnboundedSender<Result<Sent, Status>>,
}

impl Server {
    pub(crate) fn start() -> (Self, Dial) {
        let (dialled, connections) = mpsc::unbounded_channel();
        let (opened, streams) = mpsc::unbounded_channel();
        let connections = UnboundedReceiverStream::new(connections).map(Ok::<_, io::Error>);
        let server = tonic::transport::Server::builder().add_service(Served(Service(opened)));
        tokio::spawn(server.serve_with_incoming(connections));
        (Self { streams }, Dial(dialled))
    }

    /// The next stream that a client opens.
    pub(crate) async fn stream(&mut self) -> Stream {
        let opened = timeout(LONG, self.streams.recv()).await;
        opened.expect("a stream is opened").unwrap()
    }
}

impl Stream {
    pub(crate) fn say(&self, message: &[u8]) {
        self.answers.send(Ok(Sent::Raw(message.to_vec()))).unwrap();
    }

    /// What the client asks next.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped nothing is lost.
    pub(crate) async fn ask(&mut self) -> Ask {
        let ask = timeout(LONG, self.asks.next()).await;
        ask.expect("a request comes").unwrap().unwrap()
    }
}

#[derive(Clone)]
struct Service(mpsc::UnboundedSender<Stream>);

impl Method for Service {
    const SERVICE: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
    const METHOD: &'static str = "DeltaAggregatedResources";

    async fn answer(self, request: HttpRequest) -> HttpResponse {
        Grpc::new(SentCodec).streaming(self, request).await
    }
}

impl StreamingService<Ask> for Service {
    type Response = Sent;
    type ResponseStream = Answers;
    type Future = Ready<Result<Response<Answers>, Status>>;

    fn call(&mut self, request: Request<Streaming<Ask>>) -> Self::Future {
        let (answers, said) = mpsc::unbounded_channel();
        let asks = request.into_inner();
        // Nobody hears it when the test is over.
        let _ = self.0.send(Stream { asks, answers });
        let said = UnboundedReceiverStream::new(said);
        ready(Ok(Response::new(Box::pin(said) as Answers)))
    }
}
