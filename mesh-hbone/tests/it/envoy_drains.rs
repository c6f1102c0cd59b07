//! GOAWAY while tunnels carry data, from us to Envoy and from Envoy to us.

use std::net::Ipv4Addr;

use mesh_hbone::ErrorKind;
use mesh_hbone::config::Config;
use mesh_hbone::server::{self, Incoming};
use mesh_hbone::tls;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use crate::authority::{CLIENT, SERVER};
use crate::envoy::{Envoy, Pki, Role, noise, soon};
use crate::envoy_accepts::credentials;
use crate::envoy_load::{both_ways, dial, try_open};
use crate::require;

/// Our server before an Envoy that opens tunnels; the connections that are there drain at a word.
async fn opening(test: &str) -> Option<(Envoy, mpsc::Receiver<Incoming>, watch::Sender<u32>)> {
    let program = require::peer(test, "PEER_ENVOY")?;
    let pki = Pki::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (arrive, arrived) = mpsc::channel(256);
    let (drain, words) = watch::channel(0);
    let ours = credentials(&pki.issue(SERVER));
    tokio::spawn(async move {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            let tls = tls::accept(io, &ours).await.unwrap();
            let (arrive, mut words) = (arrive.clone(), words.clone());
            words.mark_unchanged();
            tokio::spawn(async move {
                let mut connection = server::handshake(tls, &Config::default());
                loop {
                    tokio::select! {
                        incoming = connection.accept() => match incoming {
                            Some(incoming) => arrive.send(incoming.unwrap()).await.unwrap(),
                            None => return,
                        },
                        Ok(()) = words.changed() => connection.graceful_shutdown(),
                    }
                }
            });
        }
    });
    let role = Role::client(&pki.issue(CLIENT), SERVER, address, "10.0.0.7:9080");
    let envoy = Envoy::start(&program, &role).await;
    Some((envoy, arrived, drain))
}

#[tokio::test]
async fn tunnels_of_an_envoy_that_we_leave_go_on() {
    let test = "tunnels_of_an_envoy_that_we_leave_go_on";
    let Some((envoy, mut arrived, drain)) = opening(test).await else {
        return;
    };
    let client = TcpStream::connect(envoy.addr()).await.unwrap();
    let tunnel = soon("a tunnel", arrived.recv()).await.unwrap();
    let tunnel = tunnel.accept(None).unwrap();
    let leave = async {
        envoy
            .counted_to("cluster.tunnels.upstream_cx_rx_bytes_total", 1 << 20)
            .await;
        drain.send_modify(|words| *words += 1);
        // Wherever Envoy opens it: the two may cross.
        let mut client = TcpStream::connect(envoy.addr()).await.unwrap();
        let another = soon("another tunnel", arrived.recv()).await.unwrap();
        let mut another = another.accept(None).unwrap();
        client.write_all(b"x").await.unwrap();
        assert_eq!(another.read_u8().await.unwrap(), b'x');
    };
    let all = async { tokio::join!(both_ways(client, tunnel, require::bulk()), leave) };
    soon("all of both", all).await;
}

/// Envoy takes more than its client does, and throws it away when the connection is closed that it came
/// on, and its client sees a clean end. So that connection is Envoy's to close.
#[tokio::test]
async fn what_an_envoy_still_holds_when_we_leave_is_not_lost() {
    let test = "what_an_envoy_still_holds_when_we_leave_is_not_lost";
    let Some((envoy, mut arrived, drain)) = opening(test).await else {
        return;
    };
    let mut client = TcpStream::connect(envoy.addr()).await.unwrap();
    let tunnel = soon("a tunnel", arrived.recv()).await.unwrap();
    let mut tunnel = tunnel.accept(None).unwrap();
    drain.send_modify(|words| *words += 1);
    client.shutdown().await.unwrap();
    soon("the client's end", tunnel.read_to_end(&mut Vec::new()))
        .await
        .unwrap();
    // More than the sockets take, less than Envoy's window for a stream, 16 MiB.
    let said = noise(15 << 20, 3);
    soon("Envoy takes all", async {
        tunnel.write_all(&said).await.unwrap();
        tunnel.shutdown().await.unwrap();
        let counter = "cluster.tunnels.upstream_cx_rx_bytes_total";
        envoy.counted_to(counter, said.len()).await;
    })
    .await;
    drop(tunnel);
    let mut heard = Vec::new();
    soon("the client hears all", client.read_to_end(&mut heard))
        .await
        .unwrap();
    assert!(heard == said, "{} bytes look complete", heard.len());
    let counter = "cluster.tunnels.upstream_cx_destroy_local";
    envoy.counted(counter).await;
}

/// GOAWAY, and while the tunnel goes on another.
#[tokio::test]
async fn tunnels_to_an_envoy_that_leaves_go_on() {
    let test = "tunnels_to_an_envoy_that_leaves_go_on";
    let Some(program) = require::peer(test, "PEER_ENVOY") else {
        return;
    };
    let pki = Pki::new();
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (on, to) = (Ipv4Addr::LOCALHOST.into(), app.local_addr().unwrap());
    let codec = "codec_type: HTTP2";
    let leaves = format!(
        "{codec}\n          drain_timeout: 0.3s\n          common_http_protocol_options: {{ max_connection_duration: 0.5s }}"
    );
    let role = Role::server(&pki.issue(SERVER), on, CLIENT, to).replacing(codec, &leaves);
    let envoy = Envoy::start(&program, &role).await;
    let ours = credentials(&pki.issue(CLIENT));
    let sender = dial(&envoy, &ours).await;
    let (tunnel, behind) = tokio::join!(try_open(&sender), app.accept());
    let left = async {
        // Before that they are still taken.
        let error = loop {
            match try_open(&sender).await {
                Ok(tunnel) => drop(tunnel),
                Err(error) => break error,
            }
            app.accept().await.unwrap();
        };
        assert_eq!(error.kind(), ErrorKind::GoingAway);
        assert!(error.is_retry_safe());
        assert!(sender.is_closed());
        try_open(&dial(&envoy, &ours).await).await.unwrap();
    };
    let (tunnel, behind) = (tunnel.unwrap(), behind.unwrap().0);
    let all = async { tokio::join!(both_ways(tunnel, behind, require::bulk()), left) };
    soon("all of both", all).await;
    envoy
        .counted("http.tunnels.downstream_cx_max_duration_reached")
        .await;
}
