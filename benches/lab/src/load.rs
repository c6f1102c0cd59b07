//! The clients: connections with one request on its way each, for as long as a line says.
//!
//! `run <connections> <milliseconds>` is answered by `begin` when all connections are warm and counting begins, by
//! `stop` when it ends, and by `end <requests> <seconds> <p50 ns> <p99 ns> <failures>`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use mesh_core::{Mesh, MeshClient};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsConnector;

use crate::args::{Load, Road, say};
use crate::bare::{self, Keys};
use crate::{BoxError, Done, connect, member};

/// How long connections warm up before they count, and how long the first may take.
const WARM_UP: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn run(of: Load) -> Done {
    let folder = || of.folder.as_deref().ok_or("--folder: this road needs it");
    let mesh = || member::join(folder()?, "client");
    let keys = || Keys::read(folder()?);
    let over = match of.road {
        Road::Plain => Over::Plain,
        Road::Tls => Over::Tls(Arc::new(keys()?.client()?).into()),
        Road::Connect => Over::Connect(connect::Client::new(&keys()?, of.to)?),
        Road::Tunnel => Over::Tunnel(mesh()?),
        Road::Http => Over::Http(mesh()?),
    };
    let way = Way { to: of.to, over };
    // Whoever is in between may not be there yet.
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = way.try_once().await {
        if Instant::now() > deadline {
            return Err(error);
        }
        sleep(Duration::from_millis(100)).await;
    }
    say("ready");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let mut words = line.split(' ').skip(1).map(str::parse::<u64>);
        let (Some(connections), Some(millis)) = (words.next(), words.next()) else {
            return Err(
                format!("expected `run <connections> <milliseconds>`, got {line:?}").into(),
            );
        };
        measure(
            &way,
            usize::try_from(connections?)?,
            Duration::from_millis(millis?),
        )
        .await?;
    }
    Ok(())
}

/// How requests reach the server.
pub(crate) struct Way {
    pub(crate) to: SocketAddr,
    pub(crate) over: Over,
}

/// A [`Road`], with what it takes.
pub(crate) enum Over {
    Plain,
    Tls(TlsConnector),
    Connect(connect::Client),
    Tunnel(Mesh),
    Http(Mesh),
}

/// One connection with one request on its way at a time.
enum Connection {
    Own(SendRequest<Empty<Bytes>>, http::HeaderValue),
    /// The SDK's own pool has connections.
    Pooled(MeshClient, http::Uri),
}

impl Way {
    async fn open(&self) -> Result<Connection, BoxError> {
        match &self.over {
            Over::Plain => self.own(self.dial().await?).await,
            Over::Tls(connector) => {
                let stream = bare::connect(connector, self.dial().await?).await?;
                self.own(stream).await
            }
            Over::Connect(client) => self.own(client.open().await?).await,
            Over::Tunnel(mesh) => self.own(mesh.connect(self.to.to_string()).await?).await,
            Over::Http(mesh) => {
                let uri = format!("http://{}/", self.to).parse()?;
                Ok(Connection::Pooled(mesh.http_client(), uri))
            }
        }
    }

    async fn dial(&self) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect(self.to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn own<T>(&self, io: T) -> Result<Connection, BoxError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = handshake(TokioIo::new(io)).await?;
        tokio::spawn(connection);
        let host = http::HeaderValue::from_str(&self.to.to_string())?;
        Ok(Connection::Own(sender, host))
    }

    /// One request on a connection of its own.
    pub(crate) async fn try_once(&self) -> Done {
        self.open().await?.request().await
    }
}

impl Connection {
    async fn request(&mut self) -> Done {
        let (status, body) = match self {
            Self::Own(sender, host) => {
                sender.ready().await?;
                let request = Request::get("/").header(header::HOST, host.clone());
                let response = sender.send_request(request.body(Empty::new())?).await?;
                let (parts, body) = response.into_parts();
                (parts.status, body.collect().await?.to_bytes())
            }
            Self::Pooled(client, uri) => {
                let request = Request::get(uri.clone()).body(Empty::<Bytes>::new())?;
                let response = client.request(request).await?;
                let (parts, body) = response.into_parts();
                (parts.status, body.collect().await?.to_bytes())
            }
        };
        if status.is_success() && body.len() == 64 {
            Ok(())
        } else {
            Err(format!("{status}, {} bytes", body.len()).into())
        }
    }
}

/// What connections do: warm up, count, end.
const WARMING: u8 = 0;
const COUNTING: u8 = 1;

async fn measure(way: &Way, connections: usize, time: Duration) -> Done {
    let phase = Arc::new(AtomicU8::new(WARMING));
    let mut tasks = Vec::new();
    for _ in 0..connections {
        let (mut connection, phase) = (way.open().await?, Arc::clone(&phase));
        tasks.push(tokio::spawn(async move {
            let (mut latencies, mut failures) = (Vec::new(), 0_u64);
            loop {
                let before = phase.load(Ordering::Relaxed);
                let start = Instant::now();
                let answered = connection.request().await;
                match (before, phase.load(Ordering::Relaxed)) {
                    (WARMING, WARMING | COUNTING) => {}
                    (COUNTING, COUNTING) => match answered {
                        Ok(()) => latencies.push(start.elapsed().as_nanos() as u64),
                        Err(_) => failures += 1,
                    },
                    _ => return (latencies, failures),
                }
            }
        }));
    }
    sleep(WARM_UP).await;
    phase.store(COUNTING, Ordering::Relaxed);
    say("begin");
    let start = Instant::now();
    sleep(time).await;
    phase.store(COUNTING + 1, Ordering::Relaxed);
    say("stop");
    let seconds = start.elapsed().as_secs_f64();
    let (mut latencies, mut failures) = (Vec::new(), 0);
    for task in tasks {
        let (of_one, failed) = task.await?;
        latencies.extend(of_one);
        failures += failed;
    }
    latencies.sort_unstable();
    let at = |share: f64| {
        let index = (latencies.len() as f64 * share) as usize;
        latencies.get(index).copied().unwrap_or_default()
    };
    say(&format!(
        "end {} {seconds} {} {} {failures}",
        latencies.len(),
        at(0.5),
        at(0.99)
    ));
    Ok(())
}
