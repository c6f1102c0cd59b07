//! peers that break the rules, frame by frame, over real mutual TLS.
//!
//! Time is paused in all of these tests. A sleep then ends only when every task waits, so each of
//! them shows too that an attack that is over leaves nothing that spins.

mod client_floods;
mod client_headers;
mod client_streams;
mod client_waits;
mod server_answers;
mod server_floods;
pub(crate) mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use mesh_hbone::client::{self, Sender};
use mesh_hbone::config::Config;
use mesh_hbone::tls::TlsStream;
use mesh_hbone::{Error, ErrorKind, Tunnel, server};
use tokio::io::{
    AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, copy, split,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::authority::pair;
use crate::peers::{ours, request};
use wire::{ACK, DATA, END_STREAM, Frame, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS};

/// An end of a connection that writes what it likes and keeps what it reads.
pub(crate) struct Raw {
    write: WriteHalf<TlsStream<DuplexStream>>,
    frames: mpsc::UnboundedReceiver<Frame>,
    /// Starts to read; until then nothing is taken from the wire.
    listen: Option<oneshot::Sender<()>>,
}

impl Raw {
    /// A server reads its client's preface first.
    pub(crate) fn new(io: TlsStream<DuplexStream>, preface: usize) -> Self {
        let (read, write) = split(io);
        let (arrived, frames) = mpsc::unbounded_channel();
        let (listen, listened) = oneshot::channel();
        tokio::spawn(async move {
            if listened.await.is_ok() {
                collect(read, preface, &arrived).await;
            }
        });
        Self {
            write,
            frames,
            listen: Some(listen),
        }
    }

    /// Begins to read, for ever.
    pub(crate) fn listen(&mut self) {
        if let Some(listen) = self.listen.take() {
            listen.send(()).unwrap();
        }
    }

    /// Says whether the peer took all of it.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        self.write.write_all(bytes).await.is_ok() && self.write.flush().await.is_ok()
    }

    /// Ends its side of the transport.
    pub(crate) async fn close(&mut self) {
        let _ = self.write.shutdown().await;
    }

    /// The next frame; none when the connection has ended.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        self.frames.recv().await
    }

    /// The next frame of a kind, which has to come.
    pub(crate) async fn until(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.expect("the connection ended first");
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// The next frame of a kind on a stream, which has to come.
    pub(crate) async fn until_on(&mut self, kind: u8, stream: u32) -> Frame {
        loop {
            let frame = self.until(kind).await;
            if frame.stream == stream {
                return frame;
            }
        }
    }

    /// Everything until the connection ends.
    async fn rest(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }

    /// Answers SETTINGS and PINGs that are here, and forgets all else that is.
    pub(crate) async fn polite(&mut self) {
        while let Ok(frame) = self.frames.try_recv() {
            match (frame.kind, frame.flags & ACK) {
                (SETTINGS, 0) => {
                    self.send(&wire::settings_ack()).await;
                }
                (PING, 0) => {
                    self.send(&wire::frame(PING, ACK, 0, &frame.payload)).await;
                }
                _ => {}
            }
        }
    }
}

async fn collect(
    mut read: ReadHalf<TlsStream<DuplexStream>>,
    preface: usize,
    frames: &mpsc::UnboundedSender<Frame>,
) {
    let mut buffer = Vec::new();
    let mut skip = preface;
    loop {
        if skip > 0 && buffer.len() >= skip {
            assert_eq!(&buffer[..skip], PREFACE);
            buffer.drain(..skip);
            skip = 0;
        }
        while skip == 0
            && let Some(frame) = Frame::take(&mut buffer)
        {
            if frames.send(frame).is_err() {
                return;
            }
        }
        if !matches!(read.read_buf(&mut buffer).await, Ok(1..)) {
            return;
        }
    }
}

/// Lets every task do what it can.
pub(crate) async fn settle() {
    sleep(Duration::from_millis(1)).await;
}

async fn echo(tunnel: Tunnel) {
    let (mut read, mut write) = split(tunnel);
    if copy(&mut read, &mut write).await.is_ok() {
        let _ = write.shutdown().await;
    }
}

/// Two of ours, whom what happens to others must not touch.
pub(crate) struct Neighbours {
    tunnel: Tunnel,
    sender: Sender,
}

impl Neighbours {
    async fn new() -> Self {
        let (sender, mut incoming) = ours(Config::default()).await;
        tokio::spawn(async move {
            while let Some(incoming) = incoming.recv().await {
                tokio::spawn(echo(incoming.accept(None).unwrap()));
            }
        });
        let (tunnel, _) = sender.connect(request("10.0.0.7:80")).await.unwrap();
        Self { tunnel, sender }
    }

    /// The old tunnel and a new one carry bytes.
    async fn are_well(&mut self) {
        say(&mut self.tunnel).await;
        let (mut new, _) = self.sender.connect(request("10.0.0.7:80")).await.unwrap();
        say(&mut new).await;
    }
}

async fn say(tunnel: &mut Tunnel) {
    tunnel.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    tunnel.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"hello");
}

fn judge(frames: &[Frame], ended: Result<(), Error>, elapsed: Duration) -> Result<u32, String> {
    let last = frames.iter().rfind(|frame| frame.kind == GOAWAY);
    match (last, ended) {
        (Some(last), Err(error))
            if matches!(error.kind(), ErrorKind::Http2 | ErrorKind::Flooded)
                && elapsed < Duration::from_secs(2) =>
        {
            Ok(last.code())
        }
        (last, ended) => Err(format!("{last:x?}, {ended:?} after {elapsed:?}")),
    }
}

/// What our server does with tunnels that it is asked for.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Application {
    /// Accepts and sends back what it reads.
    Echoes,
    /// Accepts and never reads.
    Stalls,
    /// Decides nothing.
    Waits,
}

/// Our server, with a hostile client on one connection and neighbours on another.
pub(crate) struct Server {
    pub(crate) raw: Raw,
    served: JoinHandle<Result<(), Error>>,
    /// Tunnels and requests that the application has.
    held: Arc<AtomicUsize>,
    /// Requests that it ever had.
    asked: Arc<AtomicUsize>,
    neighbours: Neighbours,
}

struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Server {
    /// Where the client has said preface and SETTINGS, and reads.
    pub(crate) async fn new(config: Config, application: Application) -> Self {
        let mut server = Self::silent(config, application).await;
        server.raw.listen();
        let mut hello = PREFACE.to_vec();
        hello.extend(wire::settings(&[]));
        assert!(server.raw.send(&hello).await);
        server.raw.until(SETTINGS).await;
        assert!(server.raw.send(&wire::settings_ack()).await);
        server
    }

    pub(crate) async fn echoing() -> Self {
        Self::new(Config::default(), Application::Echoes).await
    }

    /// Where the client has said nothing yet, and does not read.
    pub(crate) async fn silent(config: Config, application: Application) -> Self {
        let neighbours = Neighbours::new().await;
        let (near, far) = pair().await;
        let (held, asked) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let (holds, asks) = (Arc::clone(&held), Arc::clone(&asked));
        let served = tokio::spawn(async move {
            let mut connection = server::handshake(far, &config);
            while let Some(incoming) = connection.accept().await {
                let incoming = incoming?;
                holds.fetch_add(1, SeqCst);
                asks.fetch_add(1, SeqCst);
                let held = Held(Arc::clone(&holds));
                tokio::spawn(async move {
                    let _held = held;
                    match application {
                        Application::Echoes => {
                            if let Ok(tunnel) = incoming.accept(None) {
                                echo(tunnel).await;
                            }
                        }
                        Application::Stalls => {
                            let Ok(_tunnel) = incoming.accept(None) else {
                                return;
                            };
                            std::future::pending::<()>().await;
                        }
                        Application::Waits => {
                            let _incoming = incoming;
                            std::future::pending::<()>().await;
                        }
                    }
                });
            }
            Ok(())
        });
        Self {
            raw: Raw::new(near, 0),
            served,
            held,
            asked,
            neighbours,
        }
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }

    pub(crate) fn held(&self) -> usize {
        self.held.load(SeqCst)
    }

    /// How the attacked connection ends by itself: the code of its GOAWAY, if it does so at once and
    /// with an error that says so; what it says otherwise. The neighbours are well, and nothing spins.
    pub(crate) async fn end(mut self) -> Result<u32, String> {
        let start = Instant::now();
        let frames = self.raw.rest().await;
        let elapsed = start.elapsed();
        let ended = self.served.await.unwrap();
        settle().await;
        self.neighbours.are_well().await;
        sleep(Duration::from_secs(3600)).await;
        judge(&frames, ended, elapsed)
    }

    /// The attacked connection is closed at once with this code.
    pub(crate) async fn closes(self, what: &str, code: u32) {
        assert_eq!(self.end().await, Ok(code), "{what}");
    }

    /// The connection carries a new tunnel on this stream, and goes on to.
    pub(crate) async fn goes_on(&mut self, what: &str, stream: u32) {
        self.raw.polite().await;
        assert!(self.raw.send(&wire::connect(stream)).await, "{what}");
        assert!(
            self.raw
                .send(&wire::data(stream, END_STREAM, b"still here"))
                .await,
            "{what}"
        );
        let answer = self.answers(what, stream).await;
        assert_eq!(answer.as_deref(), Some(&b"still here"[..]), "{what}");
        settle().await;
        assert!(!self.served.is_finished(), "{what}");
        self.neighbours.are_well().await;
    }

    /// What comes back on a stream until its end; nothing if it is reset.
    pub(crate) async fn answers(&mut self, what: &str, stream: u32) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let frame = timeout(Duration::from_secs(5), self.raw.next());
            let frame = frame.await.unwrap_or_else(|_| panic!("{what}: no answer"));
            let frame = frame.unwrap_or_else(|| panic!("{what}: the connection ended"));
            assert_ne!(frame.kind, GOAWAY, "{what}: {frame:x?}");
            if frame.stream != stream {
                continue;
            }
            match frame.kind {
                RST_STREAM => return None,
                DATA => body.extend_from_slice(&frame.payload),
                HEADERS => {}
                _ => continue,
            }
            if frame.flags & END_STREAM != 0 {
                return Some(body);
            }
        }
    }

    /// The client closes, and with it everything ends.
    pub(crate) async fn ends(mut self) -> Result<(), Error> {
        self.raw.close().await;
        drop(self.raw);
        let ended = self.served.await.unwrap();
        settle().await;
        self.neighbours.are_well().await;
        ended
    }

    /// How serving the connection ended.
    pub(crate) async fn outcome(self) -> Result<(), Error> {
        let Self {
            raw: _raw,
            served,
            mut neighbours,
            ..
        } = self;
        let ended = served.await.unwrap();
        neighbours.are_well().await;
        ended
    }
}

/// Our client, with a hostile server on one connection and neighbours on another.
pub(crate) struct Client {
    pub(crate) raw: Raw,
    pub(crate) sender: Sender,
    connection: JoinHandle<Result<(), Error>>,
    neighbours: Neighbours,
}

impl Client {
    pub(crate) async fn new() -> Self {
        Self::with(Config::default(), &[]).await
    }

    /// Against a server that says these SETTINGS.
    pub(crate) async fn with(config: Config, settings: &[(u16, u32)]) -> Self {
        let neighbours = Neighbours::new().await;
        let (near, far) = pair().await;
        let mut raw = Raw::new(far, PREFACE.len());
        raw.listen();
        let hello = async {
            assert!(raw.send(&wire::settings(settings)).await);
            raw.until(SETTINGS).await;
            assert!(raw.send(&wire::settings_ack()).await);
        };
        let (started, ()) = tokio::join!(client::handshake(near, &config), hello);
        let (connection, sender) = started.unwrap();
        Self {
            raw,
            sender,
            connection: tokio::spawn(connection),
            neighbours,
        }
    }

    /// Asks for a tunnel; gives its stream, and what becomes of it.
    pub(crate) async fn ask(&mut self) -> (u32, JoinHandle<Result<Tunnel, Error>>) {
        let sender = self.sender.clone();
        let asked = tokio::spawn(async move {
            let opened = sender.connect(request("10.0.0.7:80")).await;
            opened.map(|(tunnel, _)| tunnel)
        });
        (self.raw.until(HEADERS).await.stream, asked)
    }

    /// A tunnel that is open, and its stream.
    pub(crate) async fn open(&mut self) -> (u32, Tunnel) {
        let (stream, asked) = self.ask().await;
        assert!(self.raw.send(&wire::accepted(stream)).await);
        (stream, asked.await.unwrap().unwrap())
    }

    /// A tunnel on this connection works.
    pub(crate) async fn goes_on(&mut self, what: &str) {
        self.raw.polite().await;
        let (stream, mut tunnel) = self.open().await;
        tunnel.write_all(b"to").await.expect(what);
        assert_eq!(
            self.raw.until_on(DATA, stream).await.payload,
            b"to",
            "{what}"
        );
        assert!(
            self.raw
                .send(&wire::data(stream, END_STREAM, b"from"))
                .await
        );
        let mut read = Vec::new();
        tunnel.read_to_end(&mut read).await.expect(what);
        assert_eq!(read, b"from", "{what}");
        tunnel.shutdown().await.expect(what);
        drop(tunnel);
        settle().await;
        assert!(!self.sender.is_closed(), "{what}");
        self.neighbours.are_well().await;
    }

    /// As [`Server::end`]; the sender knows that it is closed.
    pub(crate) async fn end(mut self) -> Result<u32, String> {
        let start = Instant::now();
        let frames = self.raw.rest().await;
        let elapsed = start.elapsed();
        let ended = self.connection.await.unwrap();
        assert!(self.sender.is_closed());
        let error = self.sender.connect(request("10.0.0.7:80")).await;
        assert!(error.unwrap_err().is_retry_safe());
        self.neighbours.are_well().await;
        sleep(Duration::from_secs(3600)).await;
        judge(&frames, ended, elapsed)
    }

    /// We close the connection at once with this code.
    pub(crate) async fn closes(self, what: &str, code: u32) {
        assert_eq!(self.end().await, Ok(code), "{what}");
    }

    /// How the connection ended.
    pub(crate) async fn outcome(mut self) -> Result<(), Error> {
        drop(self.sender);
        let ended = self.connection.await.unwrap();
        self.neighbours.are_well().await;
        drop(self.raw);
        ended
    }
}
