//! Much at once through Envoy, both ways: nothing is lost, nobody waits for a slow neighbour.

use std::net::{Ipv4Addr, SocketAddr};

use mesh_hbone::client::{self, ConnectRequest, Sender};
use mesh_hbone::config::Config;
use mesh_hbone::headers::ConnectHeaders;
use mesh_hbone::server::{self, Incoming};
use mesh_hbone::tls::{self, Credentials};
use mesh_hbone::{Error, Tunnel};
use rcgen::{CertificateParams, DnType};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::authority::{CLIENT, SERVER, id};
use crate::envoy::{Envoy, Pki, Role, noise, soon};
use crate::envoy_accepts::credentials;
use crate::require;

const BLOCK: usize = 1 << 20;

/// Block number `at`, which is like no other.
fn block(noise: &[u8], at: u64) -> Vec<u8> {
    let mut block = noise.to_vec();
    block[..8].copy_from_slice(&at.to_le_bytes());
    block
}

/// Says so many MiB.
async fn say(to: &mut (impl AsyncWrite + Unpin), seed: u64, mebibytes: u64) {
    let noise = noise(BLOCK, seed);
    for at in 0..mebibytes {
        to.write_all(&block(&noise, at)).await.unwrap();
    }
}

/// Hears exactly that.
async fn hear(mut from: impl AsyncRead + Unpin, seed: u64, mebibytes: u64) {
    let noise = noise(BLOCK, seed);
    let mut read = vec![0; BLOCK];
    for at in 0..mebibytes {
        from.read_exact(&mut read).await.unwrap();
        assert!(read == block(&noise, at), "MiB {at} is another");
    }
    assert_eq!(from.read(&mut read).await.unwrap(), 0);
}

/// `far` is upstream of Envoy, and ends last: Envoy throws away what it still holds for an upstream that
/// has ended.
pub(crate) async fn both_ways(
    near: impl AsyncRead + AsyncWrite,
    far: impl AsyncRead + AsyncWrite,
    mebibytes: u64,
) {
    let ((near_read, mut near_write), (far_read, mut far_write)) = (split(near), split(far));
    let near_says = async {
        say(&mut near_write, 3, mebibytes).await;
        near_write.shutdown().await.unwrap();
    };
    let far_speaks = async {
        tokio::join!(
            say(&mut far_write, 5, mebibytes),
            hear(far_read, 3, mebibytes)
        );
        far_write.shutdown().await.unwrap();
    };
    tokio::join!(near_says, far_speaks, hear(near_read, 5, mebibytes));
}

/// An Envoy that accepts our tunnels, and the application behind it.
async fn accepting(test: &str) -> Option<(Pki, TcpListener, Envoy)> {
    let program = require::peer(test, "PEER_ENVOY")?;
    let pki = Pki::new();
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (on, to) = (Ipv4Addr::LOCALHOST.into(), app.local_addr().unwrap());
    let role = Role::server(&pki.issue(SERVER), on, CLIENT, to);
    let envoy = Envoy::start(&program, &role).await;
    Some((pki, app, envoy))
}

pub(crate) async fn dial(envoy: &Envoy, credentials: &Credentials) -> Sender {
    dial_to(envoy.addr(), credentials).await
}

async fn dial_to(envoy: SocketAddr, credentials: &Credentials) -> Sender {
    let io = TcpStream::connect(envoy).await.unwrap();
    let tls = tls::connect(io, credentials, &[id(SERVER)]).await.unwrap();
    let (connection, sender) = client::handshake(tls, &Config::default()).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request() -> ConnectRequest {
    ConnectRequest::new("10.0.0.7:9080".parse().unwrap(), ConnectHeaders::default())
}

pub(crate) async fn try_open(sender: &Sender) -> Result<Tunnel, Error> {
    sender.connect(request()).await.map(|(tunnel, _)| tunnel)
}

async fn open(sender: &Sender) -> Tunnel {
    try_open(sender).await.unwrap()
}

/// Our server before an Envoy that opens tunnels.
struct Opening {
    pki: Pki,
    ours: Credentials,
    envoy: Envoy,
    arrived: mpsc::Receiver<Incoming>,
}

async fn opening(test: &str) -> Option<Opening> {
    opening_with(test, |role| role).await
}

async fn opening_with(test: &str, change: impl FnOnce(Role) -> Role) -> Option<Opening> {
    let program = require::peer(test, "PEER_ENVOY")?;
    let pki = Pki::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let (arrive, arrived) = mpsc::channel(256);
    let ours = credentials(&pki.issue(SERVER));
    let presented = ours.clone();
    tokio::spawn(async move {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            let (presented, arrive) = (presented.clone(), arrive.clone());
            tokio::spawn(async move {
                let tls = tls::accept(io, &presented).await.unwrap();
                let mut connection = server::handshake(tls, &Config::default());
                while let Some(incoming) = connection.accept().await {
                    arrive.send(incoming.unwrap()).await.unwrap();
                }
            });
        }
    });
    let role = Role::client(&pki.issue(CLIENT), SERVER, address, "10.0.0.7:9080");
    let envoy = Envoy::start(&program, &change(role)).await;
    Some(Opening {
        pki,
        ours,
        envoy,
        arrived,
    })
}

impl Opening {
    /// A plain client of Envoy and our end of its tunnel.
    async fn open(&mut self) -> (TcpStream, Tunnel) {
        let client = TcpStream::connect(self.envoy.addr()).await.unwrap();
        let incoming = soon("a tunnel", self.arrived.recv()).await.unwrap();
        (client, incoming.accept(None).unwrap())
    }
}

/// Answers with what it hears, until that ends.
async fn echo(stream: impl AsyncRead + AsyncWrite) {
    let (mut read, mut write) = split(stream);
    copy(&mut read, &mut write).await.unwrap();
    write.shutdown().await.unwrap();
}

/// Says so much, and hears it again from an [`echo`].
async fn says_and_hears(stream: impl AsyncRead + AsyncWrite, bytes: usize, seed: u64) {
    let (sent, mut heard) = (noise(bytes, seed), Vec::new());
    let (mut read, mut write) = split(stream);
    let say = async {
        write.write_all(&sent).await?;
        write.shutdown().await
    };
    let (said, listened) = tokio::join!(say, read.read_to_end(&mut heard));
    said.unwrap();
    listened.unwrap();
    assert!(heard == sent, "{seed}: {} bytes of {bytes}", heard.len());
}

/// Somebody who says this again and again for as long as it is taken.
fn never_done(mut to: impl AsyncWrite + Unpin + Send + 'static, said: &[u8]) -> JoinHandle<()> {
    let said = said.to_vec();
    // Never done: Envoy throws away what it holds of an upstream that has ended.
    tokio::spawn(async move { while to.write_all(&said).await.is_ok() {} })
}

/// Reads what nobody has read until now, at our end of one tunnel and at the far end of another.
async fn read_late(
    mut ours: impl AsyncRead + Unpin,
    mut theirs: impl AsyncRead + Unpin,
    writers: [JoinHandle<()>; 2],
    sent: &[u8],
) {
    let mut heard = vec![0; sent.len()];
    let read = soon("whom we did not read", ours.read_exact(&mut heard));
    read.await.unwrap();
    assert!(heard == sent);
    let read = soon("who did not read us", theirs.read_exact(&mut heard));
    read.await.unwrap();
    assert!(heard == sent);
    drop((ours, theirs));
    for writer in writers {
        soon("its writer", writer).await.unwrap();
    }
}

#[tokio::test]
async fn much_through_an_envoy_that_accepts() {
    let Some((pki, app, envoy)) = accepting("much_through_an_envoy_that_accepts").await else {
        return;
    };
    let sender = dial(&envoy, &credentials(&pki.issue(CLIENT))).await;
    let (tunnel, app) = tokio::join!(open(&sender), app.accept());
    both_ways(tunnel, app.unwrap().0, require::bulk()).await;
}

#[tokio::test]
async fn much_through_an_envoy_that_opens() {
    let Some(mut opening) = opening("much_through_an_envoy_that_opens").await else {
        return;
    };
    let (client, tunnel) = opening.open().await;
    both_ways(client, tunnel, require::bulk()).await;
}

/// A hundred tunnels on one connection, of which we do not read one, and the application behind Envoy not another, until all
/// others are done.
#[tokio::test]
async fn a_hundred_tunnels_and_two_that_nobody_reads() {
    let test = "a_hundred_tunnels_and_two_that_nobody_reads";
    let Some((pki, app, envoy)) = accepting(test).await else {
        return;
    };
    let sender = dial(&envoy, &credentials(&pki.issue(CLIENT))).await;
    let (ours, unread_app) = tokio::join!(open(&sender), app.accept());
    let (unread, theirs) = tokio::join!(open(&sender), app.accept());
    let theirs = theirs.unwrap().0;
    let sent = noise(8 << 20, 7);
    let writers = [
        never_done(unread_app.unwrap().0, &sent),
        never_done(unread, &sent),
    ];
    let echoes = tokio::spawn(async move {
        let mut echoes = JoinSet::new();
        for _ in 0..98 {
            echoes.spawn(echo(app.accept().await.unwrap().0));
        }
        echoes.join_all().await;
    });
    let mut open_now = Vec::new();
    for _ in 0..98 {
        open_now.push(open(&sender).await);
    }
    assert_eq!(sender.live_streams(), 100);
    let mut tunnels = JoinSet::new();
    for (seed, tunnel) in (0..).zip(open_now) {
        tunnels.spawn(says_and_hears(tunnel, 128 << 10, 2 * seed + 1));
    }
    soon("ninety-eight tunnels", tunnels.join_all()).await;
    soon("their echoes", echoes).await.unwrap();
    read_late(ours, theirs, writers, &sent).await;
}

/// The same where Envoy opens them, with a neighbour whom we do not read and one who does not read us.
#[tokio::test]
async fn a_hundred_tunnels_of_an_envoy_and_two_that_nobody_reads() {
    let test = "a_hundred_tunnels_of_an_envoy_and_two_that_nobody_reads";
    let Some(mut opening) = opening(test).await else {
        return;
    };
    let (unread_client, ours) = opening.open().await;
    let (theirs, unread_tunnel) = opening.open().await;
    let mut fast = Vec::new();
    for _ in 0..98 {
        fast.push(opening.open().await);
    }
    // All of them are on one connection.
    let connections = opening.envoy.count("cluster.tunnels.upstream_cx_total");
    assert_eq!(connections.await, Some(1));
    let sent = noise(8 << 20, 7);
    let writers = [
        never_done(unread_client, &sent),
        never_done(unread_tunnel, &sent),
    ];
    let mut tunnels = JoinSet::new();
    for (seed, (client, tunnel)) in (0..).zip(fast) {
        tunnels.spawn(async move {
            let answers = says_and_hears(client, 128 << 10, 2 * seed + 1);
            tokio::join!(answers, echo(tunnel));
        });
    }
    soon("ninety-eight tunnels", tunnels.join_all()).await;
    read_late(ours, theirs, writers, &sent).await;
}

/// The certificate changes under us all the while, and no tunnel fails, old or new.
#[tokio::test]
async fn certificates_change_under_load() {
    let Some((pki, app, envoy)) = accepting("certificates_change_under_load").await else {
        return;
    };
    let echo = tokio::spawn(async move {
        loop {
            let (stream, _) = app.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = stream.into_split();
                if copy(&mut read, &mut write).await.is_ok() {
                    let _ = write.shutdown().await;
                }
            });
        }
    });
    let ours = credentials(&pki.issue(CLIENT));
    let first = dial(&envoy, &ours).await;
    let mut long = open(&first).await;
    // Handshakes that are under way whenever the certificate changes.
    let (stop, stopped) = watch::channel(false);
    let mut load = JoinSet::new();
    for seed in 0..4 {
        let (to, ours, stopped) = (envoy.addr(), ours.clone(), stopped.clone());
        load.spawn(async move {
            let mut met_a_change = 0;
            while !*stopped.borrow() {
                let before = ours.generation();
                let sender = dial_to(to, &ours).await;
                met_a_change += u32::from(ours.generation() != before);
                let tunnel = open(&sender).await;
                soon("an echo", says_and_hears(tunnel, 1000, seed)).await;
            }
            met_a_change
        });
    }
    for round in 0..50_u8 {
        // A new key and a new certificate of the same identity.
        let fresh = credentials(&pki.issue(CLIENT));
        ours.replace((*fresh.current()).clone()).unwrap();
        let sender = dial(&envoy, &ours).await;
        let mut tunnel = open(&sender).await;
        for tunnel in [&mut long, &mut tunnel] {
            let said = [round; 1000];
            let mut heard = [0; 1000];
            tunnel.write_all(&said).await.unwrap();
            soon("an echo", tunnel.read_exact(&mut heard))
                .await
                .unwrap();
            assert_eq!(heard, said);
        }
    }
    stop.send(true).unwrap();
    let met_a_change: u32 = soon("the last", load.join_all()).await.iter().sum();
    assert!(
        met_a_change >= 10,
        "only {met_a_change} handshakes met a change"
    );
    assert_eq!(ours.generation(), 51);
    echo.abort();
}

/// Our server's certificate changes all the while, and no tunnel that Envoy opens fails, old or new.
#[tokio::test]
async fn our_servers_certificate_changes_under_an_envoy_that_opens() {
    const ROUNDS: u64 = 30;
    let test = "our_servers_certificate_changes_under_an_envoy_that_opens";
    let each_its_own = |role: Role| {
        let options = "explicit_http_config:";
        let one = "common_http_protocol_options: { max_requests_per_connection: 1 }";
        role.replacing(options, &format!("{one}\n        {options}"))
            .replacing("to %UPSTREAM_PEER_URI_SAN%", "to %UPSTREAM_PEER_SUBJECT%,")
    };
    let Some(mut opening) = opening_with(test, each_its_own).await else {
        return;
    };
    let (mut client, mut tunnel) = opening.open().await;
    let Opening {
        pki,
        ours,
        envoy,
        mut arrived,
    } = opening;
    let echoes = tokio::spawn(async move {
        while let Some(incoming) = arrived.recv().await {
            tokio::spawn(echo(incoming.accept(None).unwrap()));
        }
    });
    // Handshakes that are under way whenever the certificate changes.
    let (stop, stopped) = watch::channel(false);
    let mut load = JoinSet::new();
    for seed in 0..4 {
        let (to, stopped) = (envoy.addr(), stopped.clone());
        load.spawn(async move {
            while !*stopped.borrow() {
                let client = TcpStream::connect(to).await.unwrap();
                soon("an echo", says_and_hears(client, 1000, seed)).await;
            }
        });
    }
    for round in 0..ROUNDS {
        let named = |params: &mut CertificateParams| {
            let name = format!("round {round}");
            params.distinguished_name.push(DnType::CommonName, name);
        };
        let fresh = credentials(&pki.issue_with(SERVER, named));
        ours.replace((*fresh.current()).clone()).unwrap();
        let said = round.to_le_bytes();
        client.write_all(&said).await.unwrap();
        let mut heard = [0; 8];
        soon("a word", tunnel.read_exact(&mut heard)).await.unwrap();
        assert_eq!(heard, said);
        // The next change is due as soon as one tunnel of this one was whole.
        let presented = format!("flags - to CN=round {round},");
        envoy.logged(&[&presented]).await;
    }
    stop.send(true).unwrap();
    soon("the last", load.join_all()).await;
    assert_eq!(ours.generation(), ROUNDS + 1);
    echoes.abort();
}
