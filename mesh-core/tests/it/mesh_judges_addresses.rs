//! Policies on addresses: the transport's counts, whatever a peer says of where it comes from.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use mesh_core::ConnectionContext;
use mesh_core::authz::policy::Action;
use mesh_core::authz::policy::istio::Source;
use mesh_core::hbone::config::Config;
use mesh_core::hbone::{client, tls};
use mesh_core::xds::model::Update;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tower::service_fn;

use crate::handler::from;
use crate::mesh_world::{PORT, World, connect_to, identity, policy};

/// Whom policies name, and a neighbour.
const LISTED: u8 = 11;
const OTHER: u8 = 12;
/// There, who has asked waits for the end; at [`PORT`] an answer comes after it.
const HTTP_PORT: u16 = PORT + 1;

/// A connection to the server at `port` that comes from `host`.
async fn dial(world: &World, host: u8, port: u16) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(world.ip(host), 0))?;
    socket.connect(SocketAddr::new(world.ip(2), port)).await
}

/// The workload at a host.
fn name(host: u8) -> &'static str {
    match host {
        LISTED => "listed",
        _ => "other",
    }
}

/// All that some server somewhere believes of where a request comes from.
fn claims(world: &World, host: u8) -> Vec<(&'static str, String)> {
    let (ip, workload) = (world.ip(host), name(host));
    vec![
        ("forwarded", format!("for=\"{ip}:51000\"")),
        ("forwarded", format!("for={ip}")),
        ("x-forwarded-for", ip.to_string()),
        ("x-forwarded-network", "elsewhere".to_owned()),
        ("x-real-ip", ip.to_string()),
        ("x-client-ip", ip.to_string()),
        ("x-envoy-external-address", ip.to_string()),
        ("x-envoy-original-src-host", format!("{ip}:51000")),
        (
            "baggage",
            format!("k8s.namespace.name=default,k8s.pod.name={workload},source.ip={ip}"),
        ),
    ]
}

/// A request for `/` that claims to be of another, the only one of its connection.
fn request(world: &World, claimed: u8) -> String {
    let claims = claims(world, claimed).into_iter();
    let lines: String = claims
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    format!("GET / HTTP/1.1\r\nhost: server\r\n{lines}connection: close\r\n\r\n")
}

/// As a proxy says it in front of a connection's bytes.
fn proxy_line(world: &World, claimed: u8) -> String {
    let ip = world.ip(claimed);
    format!("PROXY TCP4 {ip} {ip} 51000 80\r\n")
}

/// The answer to what was said on a connection; none if it was refused.
async fn plaintext(world: &World, host: u8, port: u16, said: &str) -> Option<String> {
    let mut stream = dial(world, host, port).await.unwrap();
    // Refused is closed, perhaps before anything was said.
    stream.write_all(said.as_bytes()).await.ok()?;
    if port == PORT {
        stream.shutdown().await.ok()?;
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    (!answer.is_empty()).then_some(answer)
}

/// The same through a tunnel, whose CONNECT claims to be of another too.
async fn tunnel(world: &World, host: u8, claimed: u8, port: u16, said: &str) -> Option<String> {
    let credentials = world.credentials("client").await;
    let io = dial(world, host, 15008).await.unwrap();
    let stream = tls::connect(io, &credentials, &[identity("server")])
        .await
        .unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(SocketAddr::new(world.ip(2), port).to_string());
    for (name, value) in claims(world, claimed) {
        request = request.header(name, value);
    }
    let (response, mut body) = sender
        .send_request(request.body(()).unwrap(), false)
        .unwrap();
    let response = response.await.unwrap();
    if response.status() != StatusCode::OK {
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        return None;
    }
    body.send_data(Bytes::copy_from_slice(said.as_bytes()), port == PORT)
        .unwrap();
    let (mut answer, mut heard) = (response.into_body(), Vec::new());
    while let Some(data) = answer.data().await {
        heard.extend_from_slice(&data.unwrap());
    }
    connection.abort();
    Some(String::from_utf8(heard).unwrap())
}

/// Where an application was told that somebody comes from, who claims to be at `claimed`, by each way to
/// it; none by a way on which it was refused.
async fn ways(world: &World, host: u8, claimed: u8) -> Vec<(&'static str, Option<String>)> {
    let (line, request) = (proxy_line(world, claimed), request(world, claimed));
    // Of HTTP, what is answered with 200.
    let told = |answer: Option<String>| {
        let (head, told) = answer.as_deref()?.split_once("\r\n\r\n")?;
        match head.split(' ').nth(1) {
            Some("200") => Some(told.to_owned()),
            Some("403") => None,
            _ => panic!("{head}"),
        }
    };
    vec![
        ("tunnel", tunnel(world, host, claimed, PORT, &line).await),
        ("plaintext", plaintext(world, host, PORT, &line).await),
        (
            "HTTP in a tunnel",
            told(tunnel(world, host, claimed, HTTP_PORT, &request).await),
        ),
        (
            "HTTP in plaintext",
            told(plaintext(world, host, HTTP_PORT, &request).await),
        ),
    ]
}

/// Applications that answer with the address of whoever has spoken.
async fn serve(world: &World) -> mesh_core::Mesh {
    let (_, server) = world.pair().await;
    let mut listener = server.listen(PORT).await.unwrap();
    tokio::spawn(async move {
        while let Ok(mut stream) = listener.accept().await {
            tokio::spawn(async move {
                let mut said = Vec::new();
                stream.read_to_end(&mut said).await?;
                let source = stream.context().source().ip().to_string();
                stream.write_all(source.as_bytes()).await?;
                stream.shutdown().await
            });
        }
    });
    let http = server.listen_http(HTTP_PORT).await.unwrap();
    let tells = |request: Request<hyper::body::Incoming>| async move {
        let context = request.extensions().get::<ConnectionContext>().unwrap();
        let source = Bytes::from(context.source().ip().to_string());
        Ok::<_, Infallible>(Response::new(Full::new(source)))
    };
    tokio::spawn(http.serve(service_fn(tells)));
    server
}

fn rule(action: Action, edit: impl FnOnce(&mut Source)) -> Update {
    policy("addresses", action, vec![from(edit)])
}

/// PT-05, ISTIO-SECURITY-2020-011: the address of a tunnel is that of its TLS connection, as with
/// istio/ztunnel, and no header, no baggage and no PROXY line is another.
#[tokio::test]
async fn no_peer_says_where_it_comes_from() {
    let world = World::new(66);
    let _server = serve(&world).await;
    // Those whom claims name are known, so that one that was believed would find a record.
    let named = [LISTED, OTHER].map(|host| world.workload(name(host), host));
    world.control.set(named.map(Into::into).to_vec()).await;
    let listed = || vec![world.ip(LISTED).to_string()];
    let block = || vec![format!("{}/31", world.ip(LISTED - 1))];
    let mut judged = 0;
    // Each with whom of the two it lets in.
    for (rule, lets) in [
        (rule(Action::Allow, |of| of.ip_blocks = listed()), LISTED),
        (rule(Action::Deny, |of| of.ip_blocks = listed()), OTHER),
        (rule(Action::Allow, |of| of.not_ip_blocks = listed()), OTHER),
        (rule(Action::Deny, |of| of.not_ip_blocks = listed()), LISTED),
        // The block is 10 and 11.
        (rule(Action::Allow, |of| of.ip_blocks = block()), LISTED),
        (rule(Action::Deny, |of| of.ip_blocks = block()), OTHER),
    ] {
        world.control.set(vec![rule]).await;
        for (host, claimed) in [(LISTED, OTHER), (OTHER, LISTED)] {
            let expected = (host == lets).then(|| world.ip(host).to_string());
            for (way, told) in ways(&world, host, claimed).await {
                assert_eq!(told, expected, "{way} from {host}, let in is {lets}");
                judged += 1;
            }
        }
    }
    assert_eq!(judged, 6 * 2 * 4);
}

/// Of a request, `remoteIpBlocks` is the address of the connection too, as long as no proxy is trusted.
#[tokio::test]
async fn without_a_trusted_proxy_nobody_forwards_an_address() {
    let world = World::new(67);
    let _server = serve(&world).await;
    let listed = || vec![world.ip(LISTED).to_string()];
    for (rule, lets) in [
        (
            rule(Action::Allow, |of| of.remote_ip_blocks = listed()),
            LISTED,
        ),
        (
            rule(Action::Deny, |of| of.remote_ip_blocks = listed()),
            OTHER,
        ),
    ] {
        world.control.set(vec![rule]).await;
        for (host, claimed) in [(LISTED, OTHER), (OTHER, LISTED)] {
            let expected = (host == lets).then(|| world.ip(host).to_string());
            for (way, told) in ways(&world, host, claimed).await {
                if way.starts_with("HTTP") {
                    assert_eq!(told, expected, "{way} from {host}, let in is {lets}");
                } else {
                    // It is a request's: without one no ALLOW holds, and every DENY does.
                    assert_eq!(told, None, "{way} from {host}");
                }
            }
        }
    }
}

/// Live connections are judged again by the same address.
#[tokio::test]
async fn an_address_that_is_denied_loses_what_it_has_and_another_keeps_it() {
    let world = World::new(69);
    let _server = serve(&world).await;
    let target = SocketAddr::new(world.ip(2), PORT);
    let open = async |host| {
        let credentials = world.credentials("client").await;
        let io = dial(&world, host, 15008).await.unwrap();
        let tls = tls::connect(io, &credentials, &[identity("server")])
            .await
            .unwrap();
        let (connection, sender) = client::handshake(tls, &Config::default()).await.unwrap();
        tokio::spawn(connection);
        sender.connect(connect_to(target)).await.unwrap().0
    };
    let (mut denied, mut kept) = (open(LISTED).await, open(OTHER).await);
    let listed = vec![world.ip(LISTED).to_string()];
    let deny = rule(Action::Deny, |of| of.ip_blocks = listed);
    world.control.set(vec![deny]).await;
    let error = denied.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    kept.shutdown().await.unwrap();
    let mut told = String::new();
    kept.read_to_string(&mut told).await.unwrap();
    assert_eq!(told, world.ip(OTHER).to_string());
}
