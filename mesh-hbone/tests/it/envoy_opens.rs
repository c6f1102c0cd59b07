//! Envoy opens tunnels to us.

use std::io::ErrorKind as IoErrorKind;

use http::StatusCode;
use mesh_hbone::config::Config;
use mesh_hbone::headers::Baggage;
use mesh_hbone::server::{self, Incoming};
use mesh_hbone::tls::{self, Credentials};
use mesh_hbone::{Error, ErrorKind, Side, Tunnel};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::authority::{CLIENT, SERVER, id};
use crate::envoy::{Envoy, Pki, Role, noise, soon};
use crate::envoy_accepts::credentials;
use crate::require;

const STRANGER: &str = "spiffe://cluster.local/ns/default/sa/stranger";
const FOREIGNER: &str = "spiffe://elsewhere.example/ns/default/sa/client";

/// Envoy, and what it asks of our server: tunnels, or why it got none.
struct Near {
    envoy: Envoy,
    arrived: mpsc::Receiver<Result<Incoming, Error>>,
}

impl Near {
    /// An Envoy that is `identity` and takes us for `expected`; we are [`SERVER`].
    async fn start(test: &str, identity: &str, expected: &str) -> Option<Self> {
        let program = require::peer(test, "PEER_ENVOY")?;
        let pki = Pki::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        let (arrive, arrived) = mpsc::channel(16);
        tokio::spawn(serve(listener, credentials(&pki.issue(SERVER)), arrive));
        let role = Role::client(&pki.issue(identity), expected, server, "10.0.0.7:9080");
        let envoy = Envoy::start(&program, &role).await;
        Some(Self { envoy, arrived })
    }

    async fn next(&mut self) -> Result<Incoming, Error> {
        let next = soon("a tunnel from Envoy", self.arrived.recv()).await;
        next.unwrap()
    }

    async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.envoy.addr()).await.unwrap()
    }

    /// A plain client of Envoy and our end of its tunnel.
    async fn open(&mut self) -> (TcpStream, Tunnel) {
        let client = self.dial().await;
        let incoming = self.next().await.unwrap();
        (client, incoming.accept(Baggage::default()).unwrap())
    }
}

async fn serve(
    listener: TcpListener,
    credentials: Credentials,
    arrive: mpsc::Sender<Result<Incoming, Error>>,
) {
    loop {
        let (io, _) = listener.accept().await.unwrap();
        let (credentials, arrive) = (credentials.clone(), arrive.clone());
        tokio::spawn(async move {
            let tls = match tls::accept(io, &credentials).await {
                Ok(tls) => tls,
                Err(error) => return arrive.send(Err(error)).await.unwrap(),
            };
            assert_eq!(*tls.peer().identity(), id(CLIENT));
            let mut connection = server::handshake(tls, &Config::default());
            while let Some(incoming) = connection.accept().await {
                // The test may be over.
                let _ = arrive.send(incoming).await;
            }
        });
    }
}

#[tokio::test]
async fn a_plain_client_reaches_us_through_envoy() {
    let test = "a_plain_client_reaches_us_through_envoy";
    let Some(mut near) = Near::start(test, CLIENT, SERVER).await else {
        return;
    };
    let client = near.dial().await;
    let incoming = near.next().await.unwrap();
    assert_eq!(incoming.authority().to_string(), "10.0.0.7:9080");
    let baggage = incoming.headers().baggage().unwrap();
    assert_eq!(baggage.canonical_name(), Some("envoy"));
    let tunnel = incoming.accept(Baggage::default()).unwrap();

    let (mut up, mut down) = (client.into_split(), tokio::io::split(tunnel));
    let exchange = async {
        tokio::join!(
            async {
                up.1.write_all(&noise(4 << 20, 1)).await.unwrap();
                up.1.shutdown().await.unwrap();
            },
            async {
                down.1.write_all(&noise(4 << 20, 2)).await.unwrap();
                down.1.shutdown().await.unwrap();
            },
            async {
                let mut received = Vec::new();
                up.0.read_to_end(&mut received).await.unwrap();
                assert!(received == noise(4 << 20, 2), "{} bytes", received.len());
            },
            async {
                let mut received = Vec::new();
                down.0.read_to_end(&mut received).await.unwrap();
                assert!(received == noise(4 << 20, 1), "{} bytes", received.len());
            },
        )
    };
    soon("4 MiB each way", exchange).await;
    near.envoy.logged(&[&format!("flags - to {SERVER}")]).await;
}

#[tokio::test]
async fn each_end_may_finish_first() {
    let test = "each_end_may_finish_first";
    let Some(mut near) = Near::start(test, CLIENT, SERVER).await else {
        return;
    };
    let (mut client, mut tunnel) = near.open().await;
    soon("the client ends first", async {
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        tunnel.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        tunnel.write_all(b"answer").await.unwrap();
        tunnel.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
    })
    .await;

    let (mut client, mut tunnel) = near.open().await;
    soon("we end first", async {
        tunnel.write_all(b"greeting").await.unwrap();
        tunnel.shutdown().await.unwrap();
        let mut greeting = String::new();
        client.read_to_string(&mut greeting).await.unwrap();
        assert_eq!(greeting, "greeting");
        client.write_all(b"more").await.unwrap();
        client.shutdown().await.unwrap();
        let mut more = String::new();
        tunnel.read_to_string(&mut more).await.unwrap();
        assert_eq!(more, "more");
    })
    .await;
}

/// Envoy knows our reset for one, but a clean end is all that its TCP proxy gives the client.
#[tokio::test]
async fn our_reset_reaches_envoy_which_ends_its_client_cleanly() {
    let test = "our_reset_reaches_envoy_which_ends_its_client_cleanly";
    let Some(mut near) = Near::start(test, CLIENT, SERVER).await else {
        return;
    };
    let (mut client, mut tunnel) = near.open().await;
    tunnel.write_all(b"part").await.unwrap();
    client.read_exact(&mut [0; 4]).await.unwrap();
    drop(tunnel);
    let ended = soon("our reset", client.read_u8()).await;
    assert_eq!(ended.unwrap_err().kind(), IoErrorKind::UnexpectedEof);
    near.envoy.counted("cluster.tunnels.http2.rx_reset").await;
}

#[tokio::test]
async fn a_reset_of_the_client_is_a_reset_to_us() {
    let test = "a_reset_of_the_client_is_a_reset_to_us";
    let Some(mut near) = Near::start(test, CLIENT, SERVER).await else {
        return;
    };
    let (mut client, mut tunnel) = near.open().await;
    client.write_all(b"part").await.unwrap();
    tunnel.read_exact(&mut [0; 4]).await.unwrap();
    client.set_zero_linger().unwrap();
    drop(client);
    let ended = soon("the client's reset", tunnel.read_u8()).await;
    assert_eq!(ended.unwrap_err().kind(), IoErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_tunnel_that_we_refuse_closes_the_client_and_not_the_connection() {
    let test = "a_tunnel_that_we_refuse_closes_the_client_and_not_the_connection";
    let Some(mut near) = Near::start(test, CLIENT, SERVER).await else {
        return;
    };
    let mut client = near.dial().await;
    near.next().await.unwrap().refuse(StatusCode::UNAUTHORIZED);
    let ended = soon("the client's end", client.read_u8()).await;
    assert!(ended.is_err());
    near.envoy.logged(&["tunnel_response:401"]).await;
    let (mut client, mut tunnel) = near.open().await;
    client.write_all(b"x").await.unwrap();
    soon("a byte", tunnel.read_u8()).await.unwrap();
    near.envoy
        .counted("cluster.tunnels.upstream_cx_total")
        .await;
}

#[tokio::test]
async fn envoy_refuses_us_if_we_are_somebody_else() {
    let test = "envoy_refuses_us_if_we_are_somebody_else";
    let Some(mut near) = Near::start(test, CLIENT, STRANGER).await else {
        return;
    };
    let mut client = near.dial().await;
    let error = near.next().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.side()),
        (ErrorKind::Refused, Side::Downstream)
    );
    assert!(soon("the client's end", client.read_u8()).await.is_err());
    near.envoy
        .counted("cluster.tunnels.ssl.fail_verify_san")
        .await;
}

#[tokio::test]
async fn an_envoy_of_another_trust_domain_is_refused() {
    let test = "an_envoy_of_another_trust_domain_is_refused";
    let Some(mut near) = Near::start(test, FOREIGNER, SERVER).await else {
        return;
    };
    let mut client = near.dial().await;
    let error = near.next().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.side()),
        (ErrorKind::UnexpectedTrustDomain, Side::Downstream)
    );
    assert!(soon("the client's end", client.read_u8()).await.is_err());
}
