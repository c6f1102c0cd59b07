//! a storm of connections that are reset, at whatever they had come to.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use mesh_core::hbone::client;
use mesh_core::hbone::config::Config;
use mesh_core::hbone::tls::{self, Credentials};
use mesh_core::hbone::{Error, Tunnel};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::mesh_world::{PORT, World, connect_to, echo, identity};

/// Sockets that the server may have, half of them in plaintext.
const PLACES: usize = 24;
const ROUNDS: usize = 20;
/// Of each stage in each round: more at once than there are places.
const AT_ONCE: usize = 8;

/// How far a connection comes before it is reset.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Silent,
    HalfHello,
    Handshake,
    Tunnel,
    Plaintext,
    HalfRequest,
}

const STAGES: [Stage; 6] = [
    Stage::Silent,
    Stage::HalfHello,
    Stage::Handshake,
    Stage::Tunnel,
    Stage::Plaintext,
    Stage::HalfRequest,
];

struct Server {
    hbone: SocketAddr,
    plain: SocketAddr,
    http: SocketAddr,
    credentials: Credentials,
}

/// A tunnel, and the task that moves its connection.
async fn tunnel(io: TcpStream, server: &Server) -> Result<(Tunnel, JoinHandle<()>), Error> {
    let stream = tls::connect(io, &server.credentials, &[identity("server")]).await?;
    let (connection, sender) = client::handshake(stream, &Config::default()).await?;
    let moves = tokio::spawn(async {
        let _ = connection.await;
    });
    let (tunnel, _) = sender.connect(connect_to(server.plain)).await?;
    Ok((tunnel, moves))
}

async fn hears(io: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> bool {
    let mut answer = [0; 4];
    io.write_all(b"ping").await.is_ok() && io.read_exact(&mut answer).await.is_ok()
}

/// Whether it got so far; then it is reset.
async fn comes_to(stage: Stage, server: &Server) -> bool {
    let to = match stage {
        Stage::Plaintext => server.plain,
        Stage::HalfRequest => server.http,
        _ => server.hbone,
    };
    let Ok(mut io) = TcpStream::connect(to).await else {
        return false;
    };
    io.set_zero_linger().unwrap();
    match stage {
        Stage::Silent => true,
        Stage::HalfHello => io
            .write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01")
            .await
            .is_ok(),
        Stage::Handshake => {
            let expected = [identity("server")];
            let tls = tls::connect(io, &server.credentials, &expected).await;
            tls.is_ok()
        }
        Stage::Tunnel => match tunnel(io, server).await {
            Ok((mut tunnel, moves)) => {
                let heard = hears(&mut tunnel).await;
                moves.abort();
                heard
            }
            Err(_) => false,
        },
        Stage::Plaintext => hears(&mut io).await,
        Stage::HalfRequest => io.write_all(b"GET / HTTP/1.1\r\nhost: ").await.is_ok(),
    }
}

/// All places are free again: as many live connections as ever fit, of both kinds, and not one more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_reset_give_their_places_back() {
    let world = World::with(204, |node| node.max_connections(PLACES));
    let (_, mesh) = world.pair().await;
    echo(mesh.listen(PORT).await.unwrap());
    let mut http = mesh.listen_http(PORT + 1).await.unwrap();
    tokio::spawn(async move {
        while let Ok(mut stream) = http.listener.accept().await {
            let layer = http.layer.for_connection(stream.context().clone());
            tokio::spawn(async move {
                let _layer = layer;
                while stream.read_u8().await.is_ok() {}
            });
        }
    });
    let at = |port| SocketAddr::new(world.ip(2), port);
    let server = Server {
        hbone: at(15008),
        plain: at(PORT),
        http: at(PORT + 1),
        credentials: world.credentials("client").await,
    };
    let mut came = [0; STAGES.len()];
    for _ in 0..ROUNDS {
        let all = (0..STAGES.len() * AT_ONCE).map(|at| comes_to(STAGES[at / AT_ONCE], &server));
        for (at, reached) in join_all(all).await.into_iter().enumerate() {
            came[at / AT_ONCE] += usize::from(reached);
        }
    }
    for (stage, came) in STAGES.iter().zip(came) {
        assert!(came > 0, "{stage:?}");
    }

    let (mut plain, mut tunnels) = (Vec::new(), Vec::new());
    let fill = async {
        while plain.len() < PLACES / 2 {
            if let Ok(mut io) = TcpStream::connect(server.plain).await
                && hears(&mut io).await
            {
                plain.push(io);
            }
        }
        while tunnels.len() < PLACES / 2 {
            if let Ok(io) = TcpStream::connect(server.hbone).await
                && let Ok((mut tunnel, moves)) = tunnel(io, &server).await
                && hears(&mut tunnel).await
            {
                tunnels.push((tunnel, moves));
            }
        }
    };
    let filled = tokio::time::timeout(Duration::from_secs(60), fill).await;
    assert!(filled.is_ok(), "{} and {}", plain.len(), tunnels.len());
    // The end of one beyond may be seen already while it connects.
    let beyond = async {
        let plain = match TcpStream::connect(server.plain).await {
            Ok(mut io) => hears(&mut io).await,
            Err(_) => false,
        };
        let tunnel = match TcpStream::connect(server.hbone).await {
            Ok(io) => match tunnel(io, &server).await {
                Ok((mut tunnel, _moves)) => hears(&mut tunnel).await,
                Err(_) => false,
            },
            Err(_) => false,
        };
        (plain, tunnel)
    };
    let beyond = tokio::time::timeout(Duration::from_secs(60), beyond).await;
    assert_eq!(beyond, Ok((false, false)), "in plaintext, and in a tunnel");
    for io in &mut plain {
        assert!(hears(io).await, "a place is taken from nobody");
    }
    for (tunnel, _) in &mut tunnels {
        assert!(hears(tunnel).await, "a place is taken from nobody");
    }
}
