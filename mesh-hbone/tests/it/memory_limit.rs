//! a process with little memory, and peers that send more than its readers take.
//!
//! The server is a child process whose address space is limited to what it has at rest and
//! [`ROOM`]. An allocation beyond that ends it.

use std::fs;
use std::io::{self, BufRead as _, BufReader, ErrorKind as IoErrorKind, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::panic;
use std::path::PathBuf;
use std::process::{self, Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures_util::future::join_all;
use mesh_hbone::client::{self, ConnectRequest, Sender};
use mesh_hbone::config::Config;
use mesh_hbone::headers::ConnectHeaders;
use mesh_hbone::server;
use mesh_hbone::tls::{self, Admission, AdmissionLimits, Credentials, Options};
use mesh_hbone::{Error, ErrorKind, Tunnel};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy, split};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::authority::{CLIENT, SERVER, id};
use crate::envoy::{Files, Pki, noise, soon};
use crate::envoy_accepts::{credentials, credentials_with};
use crate::require;
use crate::tls_admission::client_hello;

const CONNECTIONS: usize = 12;
/// Tunnels of each connection that are not read. With the stream windows that they start with, all of
/// them together hold 48 MiB, and with the least windows 12 MiB.
const SLOW: usize = 16;
const BUDGET: u64 = 16 << 20;
const ROOM: u64 = 32 << 20;
/// What is said on one tunnel: more than any window.
const SAID: usize = 512 << 10;
/// The first byte of a tunnel that is read at once; of others it is the round after which they are.
const ECHO: u8 = 0;
const ROUNDS: u8 = 2;
/// Sockets that come while all is full, and go no further than half way into a handshake.
const HALF_OPEN: usize = 480;
/// How many of them the server bears with; it lets go of the others.
const WAITING: usize = 64;
const HANDSHAKES: usize = 16;
/// Those that come meanwhile and mean it, from an address of their own.
const NEWCOMERS: usize = 8;

/// The server's process, killed when dropped.
struct Limited {
    process: Child,
    address: SocketAddr,
}

impl Limited {
    fn start(files: &Files) -> Self {
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "memory_limit::limited", "--ignored"])
            .args(["--nocapture", "--test-threads=1"])
            // glibc reserves 64 MiB for each thread's arena, in which much would go unnoticed.
            .env("MALLOC_ARENA_MAX", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut limited = Self {
            process,
            address: nowhere,
        };
        for path in [&files.chain, &files.key, &files.roots] {
            limited.say(path.to_str().unwrap());
        }
        let output = BufReader::new(limited.process.stdout.take().unwrap());
        let address = output
            .lines()
            .find_map(|line| Some(line.unwrap().split_once("listening on ")?.1.to_owned()));
        limited.address = address.unwrap().parse().unwrap();
        limited
    }

    fn say(&mut self, word: &str) {
        let input = self.process.stdin.as_mut().unwrap();
        writeln!(input, "{word}").unwrap();
    }

    /// Leaves it this much more than it has now; an error if there is no program that does so.
    fn leave_room(&self, bytes: u64) -> io::Result<()> {
        let process = self.process.id();
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
        let kibibytes = size.unwrap().trim().strip_suffix(" kB").unwrap();
        let limit = kibibytes.parse::<u64>().unwrap() * 1024 + bytes;
        let done = Command::new("prlimit")
            .arg(format!("--pid={process}"))
            .arg(format!("--as={limit}"))
            .status()?;
        assert!(done.success(), "{done}");
        Ok(())
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn dial(to: SocketAddr, credentials: &Credentials) -> Sender {
    dial_from(Ipv4Addr::LOCALHOST, to, credentials).await
}

async fn dial_from(from: Ipv4Addr, to: SocketAddr, credentials: &Credentials) -> Sender {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from.into(), 0)).unwrap();
    let io = socket.connect(to).await.unwrap();
    let tls = tls::connect(io, credentials, &[id(SERVER)]).await.unwrap();
    let (connection, sender) = client::handshake(tls, &Config::default()).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request() -> ConnectRequest {
    ConnectRequest::new("10.0.0.7:9080".parse().unwrap(), ConnectHeaders::default())
}

async fn open(sender: &Sender, kind: u8) -> Tunnel {
    let (mut tunnel, _) = sender.connect(request()).await.unwrap();
    tunnel.write_all(&[kind]).await.unwrap();
    tunnel
}

/// All of them say this and hear it again.
async fn echoes(tunnels: &mut [Tunnel], said: &[u8]) {
    let all = tunnels.iter_mut().map(|tunnel| async move {
        let (mut read, mut write) = split(tunnel);
        let mut heard = vec![0; said.len()];
        let (written, got) = tokio::join!(write.write_all(said), read.read_exact(&mut heard));
        written.unwrap();
        got.unwrap();
        assert!(heard == said);
    });
    soon("echoes", join_all(all)).await;
}

/// Sockets that say nothing, half a hello, or a whole one and no more.
async fn half_open(to: SocketAddr, hello: &[u8]) -> Vec<TcpStream> {
    let mut sockets = Vec::with_capacity(HALF_OPEN);
    for at in 0..HALF_OPEN {
        let mut socket = TcpStream::connect(to).await.unwrap();
        // It may be let go of before it has spoken.
        let _ = socket.write_all(&hello[..hello.len() * (at % 3) / 2]).await;
        sockets.push(socket);
    }
    sockets
}

/// Waits until no more of them are left than the server bears with.
async fn are_let_go(sockets: &mut Vec<TcpStream>) {
    while sockets.len() > WAITING + HANDSHAKES {
        sockets.retain_mut(|socket| {
            // What is answered to a whole hello may stand before the end.
            let mut answer = vec![0; 16 << 10];
            loop {
                match socket.try_read(&mut answer) {
                    Ok(1..) => {}
                    Err(error) if error.kind() == IoErrorKind::WouldBlock => return true,
                    Ok(0) | Err(_) => return false,
                }
            }
        });
        sleep(Duration::from_millis(10)).await;
    }
}

/// Nobody reads most tunnels; the others go on, and more of them are refused. New connections are served
/// meanwhile, whoever else comes and goes no further than half way. Once they are read, everything arrives,
/// and all of it is possible again.
#[tokio::test]
async fn a_process_with_little_memory_outlives_what_nobody_reads_and_recovers() {
    let test = "a_process_with_little_memory_outlives_what_nobody_reads_and_recovers";
    let pki = Pki::new();
    let mut server = Limited::start(&pki.issue(SERVER));
    match server.leave_room(ROOM) {
        Err(error) if error.kind() == IoErrorKind::NotFound => {
            return require::skip(test, "there is no prlimit");
        }
        left => left.unwrap(),
    }
    let ours = credentials(&pki.issue(CLIENT));
    let (mut senders, mut read) = (Vec::new(), Vec::new());
    for _ in 0..CONNECTIONS {
        let sender = soon("a connection", dial(server.address, &ours)).await;
        read.push(soon("a tunnel", open(&sender, ECHO)).await);
        senders.push(sender);
    }
    let said = Arc::new(noise(SAID, 7));
    let hello = client_hello(&ours).await;
    for round in 1..=ROUNDS {
        let mut unread = Vec::new();
        for _ in 0..SLOW {
            for sender in &senders {
                unread.push(soon("a tunnel", open(sender, round)).await);
            }
        }
        for sender in &senders {
            let beyond = sender.connect(request()).await.unwrap_err();
            assert_eq!(beyond.kind(), ErrorKind::Overloaded);
            assert!(beyond.is_retry_safe());
        }
        // The SETTINGS that say how much there is for each: one at a time until it is acknowledged.
        for _ in 0..3 {
            echoes(&mut read, b"x").await;
        }
        let mut writers = JoinSet::new();
        for mut tunnel in unread {
            let said = Arc::clone(&said);
            writers.spawn(async move {
                tunnel.write_all(&said).await.unwrap();
                tunnel.shutdown().await.unwrap();
                let mut heard = Vec::new();
                tunnel.read_to_end(&mut heard).await.unwrap();
                assert_eq!(heard, (SAID as u64).to_be_bytes());
            });
        }
        // In turn with the frames of all others, so that every window is full in the end.
        echoes(&mut read, &said).await;
        assert!(writers.try_join_next().is_none(), "nobody reads yet");
        let mut strangers = half_open(server.address, &hello).await;
        let (mut newcomers, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..NEWCOMERS {
            let from = Ipv4Addr::new(127, 0, 0, 2);
            let sender = dial_from(from, server.address, &ours);
            let sender = soon("a newcomer", sender).await;
            theirs.push(soon("its tunnel", open(&sender, ECHO)).await);
            newcomers.push(sender);
        }
        soon("too many strangers", are_let_go(&mut strangers)).await;
        echoes(&mut theirs, b"x").await;
        echoes(&mut read, b"x").await;
        assert!(writers.try_join_next().is_none(), "nobody reads yet");
        drop((newcomers, theirs, strangers));
        server.say("read");
        soon("all that was said", writers.join_all()).await;
        echoes(&mut read, &said).await;
    }
    assert_eq!(server.process.try_wait().unwrap(), None);
}

async fn serve(mut tunnel: Tunnel, mut round: watch::Receiver<u8>, said: Arc<Vec<u8>>) {
    let kind = tunnel.read_u8().await.unwrap();
    if kind == ECHO {
        let (mut read, mut write) = split(tunnel);
        // Until the test is over.
        let _ = copy(&mut read, &mut write).await;
        return;
    }
    round.wait_for(|round| *round >= kind).await.unwrap();
    let (mut chunk, mut heard) = (vec![0; 16 << 10], 0);
    loop {
        let count = tunnel.read(&mut chunk).await.unwrap();
        if count == 0 {
            break;
        }
        assert!(chunk[..count] == said[heard..heard + count]);
        heard += count;
    }
    tunnel.write_u64(heard as u64).await.unwrap();
    tunnel.shutdown().await.unwrap();
}

/// Whoever was let go of was one too many, took too long, or left.
fn assert_refused(error: &Error) {
    let reasons = [
        ErrorKind::Overloaded,
        ErrorKind::Timeout,
        ErrorKind::Truncated,
        ErrorKind::Io,
    ];
    assert!(reasons.contains(&error.kind()), "{error:?}");
}

#[tokio::test]
#[ignore = "the other side of a_process_with_little_memory_outlives_what_nobody_reads_and_recovers"]
#[allow(clippy::print_stdout, reason = "the parent reads it")]
async fn limited() {
    let (say, mut words) = mpsc::unbounded_channel();
    // A task that panics is one that nobody served, and ends all of it.
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        before(info);
        process::abort();
    }));
    thread::spawn(move || {
        for line in io::stdin().lines() {
            let _ = say.send(line.unwrap());
        }
    });
    let mut word = async || words.recv().await.expect("started by its parent only");
    let files = Files {
        chain: PathBuf::from(word().await),
        key: PathBuf::from(word().await),
        roots: PathBuf::from(word().await),
        crl: None,
    };
    // Strangers have as long as they like: what lets them go is that they are too many.
    let ever = Options::default().handshake_timeout(Duration::from_secs(3600));
    let ours = credentials_with(&files, ever);
    let config = Config::default()
        .window_budget(BUDGET)
        // Those that are not read and one that is.
        .max_incoming_streams(SLOW as u32 + 1);
    let said = Arc::new(noise(SAID, 7));
    let (next, round) = watch::channel(0);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("listening on {}", listener.local_addr().unwrap());
    let limits = AdmissionLimits::default()
        .waiting(WAITING)
        .handshakes(HANDSHAKES);
    let admission = Admission::new(limits);
    tokio::spawn(async move {
        loop {
            let (io, from) = listener.accept().await.unwrap();
            let (ours, admission, config) = (ours.clone(), admission.clone(), config.clone());
            let (round, said) = (round.clone(), Arc::clone(&said));
            tokio::spawn(async move {
                let shaken = tls::accept_with(io, from.ip(), &ours, &admission).await;
                let tls = match shaken {
                    Ok(tls) => tls,
                    Err(error) => return assert_refused(&error),
                };
                let mut connection = server::handshake(tls, &config);
                while let Some(Ok(incoming)) = connection.accept().await {
                    let tunnel = incoming.accept(None).unwrap();
                    tokio::spawn(serve(tunnel, round.clone(), Arc::clone(&said)));
                }
            });
        }
    });
    loop {
        assert_eq!(word().await, "read");
        next.send_modify(|round| *round += 1);
    }
}
