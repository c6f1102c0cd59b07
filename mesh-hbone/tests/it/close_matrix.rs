//! who ends a connection, how, when and over which HTTP/2 connection: application, relay, tunnel, relay,
//! application, on real sockets. Truncated data never looks complete, and complete data is never lost.

use std::io;
use std::net::Shutdown;
use std::time::Duration;

use mesh_hbone::Tunnel;
use mesh_hbone::client::Sender;
use mesh_hbone::config::Config;
use mesh_hbone::copy::{Counters, bidirectional_or_reset};
use mesh_hbone::server::Incoming;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::peers::{open, ours};

/// How one application ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Closes a socket of which all was read.
    Fin,
    /// Ends its side, then aborts.
    FinThenRst,
    /// Shuts its reading side down, which tells nobody, then ends its side.
    ShutRead,
    /// Ends its side and reads on.
    ShutWrite,
    /// Closes with data unread, which TCP makes a reset.
    CloseUnread,
    /// Aborts (SO_LINGER 0).
    Linger0,
}

const ENDS: [End; 6] = [
    End::Fin,
    End::FinThenRst,
    End::ShutRead,
    End::ShutWrite,
    End::CloseUnread,
    End::Linger0,
];

/// What it does just before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Idle,
    Sending,
    Receiving,
    Both,
}

const STAGES: [Stage; 4] = [Stage::Idle, Stage::Sending, Stage::Receiving, Stage::Both];

#[derive(Debug, Clone, Copy)]
struct Case {
    end: End,
    stage: Stage,
    client_ends: bool,
}

/// More than a window and the sockets' buffers take at once.
const MUCH: usize = 600_000;

fn payload(length: usize, salt: usize) -> Vec<u8> {
    (0..length).map(|at| ((at + salt) % 251) as u8).collect()
}

/// One HTTP/2 connection, and where its tunnels are relayed to.
struct Path {
    sender: Sender,
    incoming: mpsc::Receiver<Incoming>,
    near: TcpListener,
    far: TcpListener,
}

struct Pair {
    client: TcpStream,
    server: TcpStream,
    relays: [JoinHandle<()>; 2],
}

impl Path {
    async fn new() -> Self {
        let (sender, incoming) = ours(Config::default()).await;
        let listen = || TcpListener::bind("127.0.0.1:0");
        let (near, far) = (listen().await.unwrap(), listen().await.unwrap());
        Self {
            sender,
            incoming,
            near,
            far,
        }
    }

    async fn pair(&mut self) -> Pair {
        let (client, relayed) = connected(&self.near).await;
        let (relaying, server) = connected(&self.far).await;
        let (here, there) = open(&self.sender, &mut self.incoming).await;
        Pair {
            client,
            server,
            relays: [relay(relayed, here), relay(relaying, there)],
        }
    }
}

async fn connected(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let dials = TcpStream::connect(listener.local_addr().unwrap());
    let (dialled, accepted) = tokio::join!(dials, listener.accept());
    (dialled.unwrap(), accepted.unwrap().0)
}

fn relay(socket: TcpStream, tunnel: Tunnel) -> JoinHandle<()> {
    tokio::spawn(async move {
        let _ = bidirectional_or_reset(socket, tunnel, &Counters::default()).await;
    })
}

/// The other application: says what it has to say, reads to the end, and then ends too.
async fn other(stream: TcpStream, says: Vec<u8>) -> (Vec<u8>, io::Result<()>) {
    let (mut read, mut write) = stream.into_split();
    let writes = tokio::spawn(async move {
        let wrote = write.write_all(&says).await;
        (write, wrote)
    });
    let mut heard = Vec::new();
    let ended = read.read_to_end(&mut heard).await.map(|_| ());
    if ended.is_ok() {
        let (mut write, wrote) = writes.await.unwrap();
        if wrote.is_ok() {
            let _ = write.shutdown().await;
        }
    } else {
        writes.abort();
    }
    (heard, ended)
}

/// Ends as the case says, and says what it heard where it reads to the end.
async fn ends(case: Case, mut stream: TcpStream, says: &[u8], hears: usize) -> Option<Vec<u8>> {
    stream.write_all(says).await.unwrap();
    match case.end {
        End::Fin => {
            stream.read_exact(&mut vec![0; hears]).await.unwrap();
            None
        }
        End::FinThenRst => {
            stream.shutdown().await.unwrap();
            stream.set_zero_linger().unwrap();
            None
        }
        End::ShutRead => {
            let stream = stream.into_std().unwrap();
            stream.shutdown(Shutdown::Read).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let stream = TcpStream::from_std(stream).unwrap();
            // Its socket stays until the relays have ended.
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(5)).await;
                drop(stream);
            });
            None
        }
        End::ShutWrite => {
            stream.shutdown().await.unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).await.unwrap();
            Some(heard)
        }
        End::CloseUnread => {
            stream.readable().await.unwrap();
            stream.peek(&mut [0; 1]).await.unwrap();
            None
        }
        End::Linger0 => {
            stream.set_zero_linger().unwrap();
            None
        }
    }
}

async fn play(case: Case, path: &mut Path) {
    let Pair {
        client,
        server,
        relays,
    } = path.pair().await;
    let (actor, witness) = match case.client_ends {
        true => (client, server),
        false => (server, client),
    };
    let says = match case.stage {
        Stage::Sending | Stage::Both => payload(MUCH, 1),
        Stage::Idle | Stage::Receiving => Vec::new(),
    };
    let hears = match (case.stage, case.end) {
        (Stage::Receiving | Stage::Both, _) => payload(MUCH, 2),
        (_, End::CloseUnread) => payload(10, 2),
        _ => Vec::new(),
    };
    let witnesses = tokio::spawn(other(witness, hears.clone()));
    let acted = ends(case, actor, &says, hears.len()).await;
    let (heard, ended) = witnesses.await.unwrap();

    assert!(says.starts_with(&heard), "{case:?}: other bytes");
    let complete = || {
        let ended = ended.as_ref().map_err(io::Error::kind);
        assert_eq!(ended, Ok(&()), "{case:?}");
        assert_eq!(heard.len(), says.len(), "{case:?}: complete data was lost");
    };
    match case.end {
        // The kernel resets a socket with both sides shut when something comes: below.
        End::ShutRead if hears.is_empty() => complete(),
        End::Fin | End::ShutWrite => complete(),
        End::CloseUnread | End::Linger0 => {
            let ended = ended.as_ref().map_err(io::Error::kind);
            assert_eq!(ended, Err(io::ErrorKind::ConnectionReset), "{case:?}");
        }
        // Its FIN may have been all that anybody saw.
        End::FinThenRst | End::ShutRead => assert!(
            ended.is_err() || heard.len() == says.len(),
            "{case:?}: cut data looks complete"
        ),
    }
    if let Some(acted) = acted {
        assert!(
            acted == hears,
            "{case:?}: {} of {}",
            acted.len(),
            hears.len()
        );
    }
    for relay in relays {
        relay.await.unwrap();
    }
}

async fn bounded(case: Case, path: &mut Path) {
    let played = timeout(Duration::from_secs(10), play(case, path)).await;
    assert!(played.is_ok(), "{case:?}: something never ended");
}

fn cases() -> impl Iterator<Item = Case> {
    let of_end = |end| STAGES.into_iter().map(move |stage| (end, stage));
    let both = |(end, stage)| {
        [true, false].map(|client_ends| Case {
            end,
            stage,
            client_ends,
        })
    };
    ENDS.into_iter().flat_map(of_end).flat_map(both)
}

/// Waits until the client's end counts so many streams.
async fn streams_are(sender: &Sender, count: usize) {
    let waits = async {
        while sender.live_streams() != count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = timeout(Duration::from_secs(5), waits).await;
    assert!(waited.is_ok(), "{} streams stay", sender.live_streams());
}

#[tokio::test]
async fn each_end_is_told_as_tcp_tells_it_on_a_connection_of_its_own() {
    for case in cases() {
        let mut path = Path::new().await;
        bounded(case, &mut path).await;
        streams_are(&path.sender, 0).await;
    }
}

#[tokio::test]
async fn each_end_is_told_as_tcp_tells_it_and_a_neighbour_on_the_connection_goes_on() {
    let mut path = Path::new().await;
    let mut neighbour = path.pair().await;
    for case in cases() {
        bounded(case, &mut path).await;
        streams_are(&path.sender, 1).await;
        neighbour.client.write_all(b"ping").await.unwrap();
        let mut heard = [0; 4];
        neighbour.server.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"ping", "{case:?}");
    }
    assert_eq!(cases().count() * 2, 96);
}
