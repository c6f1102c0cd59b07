//! What an attack on one connection costs in memory. Its own binary, for its allocator counts.
//!
//! The attacker runs in a thread of its own over TCP and TLS; only what the other thread holds is
//! counted: `(peak - idle) / bytes read`, once at least a MiB was. What an attacker has written and nobody has read
//! waits in the kernel, and would make any figure look better than it is.
#![cfg(any(feature = "aws-lc-rs", feature = "ring"))]

#[path = "../it/authority.rs"]
#[allow(dead_code, reason = "the other binary's tests use the rest")]
mod authority;
mod counting;
#[path = "../it/foreign.rs"]
#[allow(dead_code, reason = "the other binary's tests use the rest")]
mod foreign;
mod from_clients;
mod from_servers;
mod left_behind;
mod pending;
mod reading;
mod spare_buffers;
#[path = "../it/hostile/wire.rs"]
#[allow(dead_code, reason = "the other binary's tests use the rest")]
mod wire;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use mesh_hbone::config::Config;
use rustls::{ClientConnection, ConnectionCommon, ServerConnection, SideData, StreamOwned};

use authority::{Authority, CLIENT, SERVER};
use wire::{Frame, PREFACE};

/// What an attack may make of its bytes.
const MOST: f64 = 10.0;
/// From here on it counts.
const ENOUGH: usize = 1 << 20;

/// The attacker's end: blocking, and it never keeps us waiting for its answers.
struct Attacker<C: std::ops::DerefMut + std::ops::Deref<Target = ConnectionCommon<S>>, S: SideData>
{
    io: StreamOwned<C, TcpStream>,
    read: Vec<u8>,
    sent: usize,
}

/// How an attack went.
struct Sent {
    bytes: usize,
    /// The peer stopped listening before the attack was over.
    cut: bool,
}

impl<C, S> Attacker<C, S>
where
    C: std::ops::DerefMut + std::ops::Deref<Target = ConnectionCommon<S>>,
    S: SideData,
{
    fn new(tls: C, tcp: TcpStream) -> Self {
        // Who does not listen to us for this long never will: it has stopped reading.
        tcp.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        Self {
            io: StreamOwned::new(tls, tcp),
            read: Vec::new(),
            sent: 0,
        }
    }

    /// Says whether the peer took it.
    fn send(&mut self, bytes: &[u8]) -> bool {
        let sent = self.io.write_all(bytes).and_then(|()| self.io.flush());
        self.sent += bytes.len();
        sent.is_ok()
    }

    /// The next frame of a kind.
    fn until(&mut self, kind: u8) -> Frame {
        loop {
            while let Some(frame) = Frame::take(&mut self.read) {
                if frame.kind == kind {
                    return frame;
                }
            }
            let mut chunk = [0; 4096];
            let count = self.io.read(&mut chunk).expect("the peer is gone");
            assert!(count > 0, "the peer is gone");
            self.read.extend_from_slice(&chunk[..count]);
        }
    }

    /// Takes what is there off the wire, so that the peer can go on.
    fn drain(&mut self) {
        self.io.sock.set_nonblocking(true).unwrap();
        let mut chunk = [0; 65_536];
        loop {
            match self.io.read(&mut chunk) {
                Ok(1..) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
            }
        }
        self.io.sock.set_nonblocking(false).unwrap();
    }

    /// The same again and again, reading answers or not, until so many bytes are sent.
    fn flood(&mut self, total: usize, listens: bool, mut next: impl FnMut() -> Vec<u8>) -> Sent {
        while self.sent < total {
            let mut batch = Vec::new();
            while batch.len() < 16_000 {
                batch.extend(next());
            }
            if !self.send(&batch) {
                return Sent {
                    bytes: self.sent,
                    cut: true,
                };
            }
            if listens {
                self.drain();
            }
        }
        Sent {
            bytes: self.sent,
            cut: false,
        }
    }
}

/// What was sent last has to arrive before the end does.
#[expect(
    clippy::disallowed_methods,
    reason = "the attacker has a thread of its own"
)]
fn linger() {
    thread::sleep(Duration::from_millis(300));
}

/// The default settings, but for those that would end a flood before it counts.
fn patient() -> Config {
    Config::default()
        .max_control_frames(u32::MAX)
        .max_resets_per_second(u32::MAX)
}

type HostileClient = Attacker<ClientConnection, rustls::client::ClientConnectionData>;
type HostileServer = Attacker<ServerConnection, rustls::server::ServerConnectionData>;

/// A client that has said preface and SETTINGS; its bytes so far do not count.
fn client(root: &Authority, address: SocketAddr) -> HostileClient {
    let config = Arc::new(foreign::client(Some(&root.leaf(CLIENT))));
    let tls = ClientConnection::new(config, foreign::name()).unwrap();
    let mut attacker = Attacker::new(tls, TcpStream::connect(address).unwrap());
    assert!(attacker.send(PREFACE));
    assert!(attacker.send(&wire::settings(&[])));
    attacker.until(wire::SETTINGS);
    assert!(attacker.send(&wire::settings_ack()));
    attacker.sent = 0;
    attacker
}

/// A server that has said its SETTINGS and read the first CONNECT.
fn server(root: &Authority, listener: &TcpListener) -> HostileServer {
    let config = Arc::new(foreign::server(&root.leaf(SERVER)));
    let tls = ServerConnection::new(config).unwrap();
    let mut attacker = Attacker::new(tls, listener.accept().unwrap().0);
    assert!(attacker.send(&wire::settings(&[])));
    let mut preface = [0; PREFACE.len()];
    attacker.io.read_exact(&mut preface).unwrap();
    attacker.until(wire::SETTINGS);
    assert!(attacker.send(&wire::settings_ack()));
    assert_eq!(attacker.until(wire::HEADERS).stream, 1);
    attacker.sent = 0;
    attacker
}

fn attack<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    thread::spawn(run)
}

/// Checks and shows what it came to, for bytes that the victim read.
#[expect(clippy::print_stdout, reason = "the figure is what the test is for")]
fn judge(what: &str, sent: &Sent, read: usize, idle: isize, peak: isize) {
    let grown = peak - idle;
    let ratio = grown as f64 / read.max(ENOUGH) as f64;
    println!(
        "{what}: {ratio:.2} ({grown} bytes held for {read} read of {} sent{})",
        sent.bytes,
        if sent.cut { ", then cut off" } else { "" }
    );
    assert!(ratio <= MOST, "{what}: {ratio:.2}");
}
