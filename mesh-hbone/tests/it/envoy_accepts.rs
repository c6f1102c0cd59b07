//! Envoy at the far end of our tunnels.

use std::io::ErrorKind as IoErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use http::StatusCode;
use mesh_hbone::client::{self, ConnectRequest, Connection, Sender};
use mesh_hbone::config::Config;
use mesh_hbone::headers::{Baggage, ConnectHeaders, Forwarded, TraceParent};
use mesh_hbone::pool::Pool;
use mesh_hbone::tls::{self, Bundle, Credentials, Options};
use mesh_hbone::{Error, ErrorKind, Side, Tunnel};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::authority::{CLIENT, SERVER, id, provider};
use crate::envoy::{Envoy, Files, Pki, Role, noise, soon};
use crate::require;

const STRANGER: &str = "spiffe://cluster.local/ns/default/sa/stranger";

pub(crate) fn credentials(files: &Files) -> Credentials {
    credentials_with(files, Options::default())
}

pub(crate) fn credentials_with(files: &Files, options: Options) -> Credentials {
    let read = |path| std::fs::read(path).unwrap();
    let (chain, key) = (read(&files.chain), read(&files.key));
    let bundle = Bundle::from_pem(&chain, &key, &read(&files.roots), b"").unwrap();
    Credentials::new(provider(), bundle, options).unwrap()
}

/// An application behind Envoy, whose connections the test plays, and Envoy before it.
struct Far {
    pki: Pki,
    app: TcpListener,
    envoy: Envoy,
}

impl Far {
    async fn start(test: &str) -> Option<Self> {
        let program = require::peer(test, "PEER_ENVOY")?;
        let pki = Pki::new();
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (on, to) = (Ipv4Addr::LOCALHOST.into(), app.local_addr().unwrap());
        let role = Role::server(&pki.issue(SERVER), on, CLIENT, to);
        let envoy = Envoy::start(&program, &role).await;
        Some(Self { pki, app, envoy })
    }

    async fn connect_as(&self, identity: &str, expected: &str) -> Result<Sender, Error> {
        let (connection, sender) = self.dial_as(identity, expected).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn dial_as(&self, identity: &str, expected: &str) -> Result<(Connection, Sender), Error> {
        let io = TcpStream::connect(self.envoy.addr()).await.unwrap();
        let credentials = credentials(&self.pki.issue(identity));
        let tls = tls::connect(io, &credentials, &[id(expected)]).await?;
        assert_eq!(*tls.peer().identity(), id(expected));
        client::handshake(tls, &Config::default()).await
    }

    /// A tunnel of ours and the application's end of it.
    async fn open(&self, sender: &Sender) -> (Tunnel, TcpStream) {
        let open = async {
            let connect = async { sender.connect(request()).await.unwrap() };
            tokio::join!(connect, self.app.accept())
        };
        let ((tunnel, response), app) = soon("a tunnel through Envoy", open).await;
        assert_eq!(response.baggage().unwrap().canonical_name(), Some("envoy"));
        (tunnel, app.unwrap().0)
    }
}

pub(crate) fn request() -> ConnectRequest {
    let source = SocketAddr::from(([10, 0, 0, 1], 4321));
    let headers = ConnectHeaders::new(
        Baggage::default().with_namespace("default"),
        Forwarded::new(source).with_host("app.example"),
        TraceParent::from_random([1, 2, 3]),
    );
    ConnectRequest::new("10.0.0.7:9080".parse().unwrap(), headers)
}

#[tokio::test]
async fn tunnels_carry_data_both_ways_at_once() {
    let Some(far) = Far::start("tunnels_carry_data_both_ways_at_once").await else {
        return;
    };
    let sender = far.connect_as(CLIENT, SERVER).await.unwrap();
    let (one, other) = (far.open(&sender).await, far.open(&sender).await);
    let mut tasks = Vec::new();
    for (seed, (tunnel, app)) in [(3, one), (5, other)] {
        let (ours, theirs) = (noise(4 << 20, seed), noise(4 << 20, seed + 1));
        tasks.push(tokio::spawn(async move {
            let (mut near, mut far) = (tokio::io::split(tunnel), app.into_split());
            tokio::join!(
                async {
                    near.1.write_all(&ours).await.unwrap();
                    near.1.shutdown().await.unwrap();
                },
                async {
                    let mut question = Vec::new();
                    let write = far.1.write_all(&theirs);
                    let (written, read) = tokio::join!(write, far.0.read_to_end(&mut question));
                    written.unwrap();
                    read.unwrap();
                    assert!(question == ours, "{} bytes arrived", question.len());
                    far.1.shutdown().await.unwrap();
                },
                async {
                    let mut received = Vec::new();
                    near.0.read_to_end(&mut received).await.unwrap();
                    assert!(received == theirs, "{} bytes arrived", received.len());
                }
            );
        }));
    }
    for task in tasks {
        soon("4 MiB each way", task).await.unwrap();
    }
    let line = format!(
        "CONNECT 10.0.0.7:9080 200 flags - from {CLIENT} forwarded for=\"10.0.0.1:4321\";host=app.example"
    );
    far.envoy.logged(&[&line]).await;
}

#[tokio::test]
async fn our_end_may_finish_first() {
    let Some(far) = Far::start("our_end_may_finish_first").await else {
        return;
    };
    let sender = far.connect_as(CLIENT, SERVER).await.unwrap();
    let (mut tunnel, mut app) = far.open(&sender).await;
    soon("a question, then the answer", async {
        tunnel.write_all(b"question").await.unwrap();
        tunnel.shutdown().await.unwrap();
        let mut question = String::new();
        app.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        // Only now, with one direction at its end.
        let (sent, mut received) = (noise(1 << 20, 9), Vec::new());
        let answer = async {
            app.write_all(&sent).await.unwrap();
            app.shutdown().await.unwrap();
        };
        let (read, ()) = tokio::join!(tunnel.read_to_end(&mut received), answer);
        read.unwrap();
        assert!(received == sent, "{} bytes", received.len());
    })
    .await;
}

/// Envoy gives up a stream whose application ended first: END_STREAM, then RST_STREAM(NO_ERROR), which
/// takes nothing from what was said.
#[tokio::test]
async fn what_the_far_end_said_before_it_finished_first_is_whole() {
    let test = "what_the_far_end_said_before_it_finished_first_is_whole";
    let Some(far) = Far::start(test).await else {
        return;
    };
    let sender = far.connect_as(CLIENT, SERVER).await.unwrap();
    let (mut tunnel, mut app) = far.open(&sender).await;
    app.write_all(b"greeting").await.unwrap();
    app.shutdown().await.unwrap();
    let mut greeting = String::new();
    let read = soon("the greeting", tunnel.read_to_string(&mut greeting)).await;
    read.unwrap();
    assert_eq!(greeting, "greeting");
}

/// More than fits in our windows: Envoy throws away what it still holds and resets. What is cut must
/// not look complete.
#[tokio::test]
async fn what_envoy_cuts_does_not_look_complete() {
    let test = "what_envoy_cuts_does_not_look_complete";
    let Some(far) = Far::start(test).await else {
        return;
    };
    let sender = far.connect_as(CLIENT, SERVER).await.unwrap();
    let (mut tunnel, mut app) = far.open(&sender).await;
    let sent = noise(1 << 20, 7);
    let mut received = Vec::new();
    let (_, read) = soon("the end", async {
        tokio::join!(
            async {
                // Envoy may close while this is under way.
                let _ = app.write_all(&sent).await;
                let _ = app.shutdown().await;
            },
            async {
                far.envoy.counted("cluster.app.upstream_cx_destroy").await;
                tunnel.read_to_end(&mut received).await
            }
        )
    })
    .await;
    match read {
        Ok(_) => assert!(received == sent, "{} bytes look complete", received.len()),
        Err(error) => assert_eq!(error.kind(), IoErrorKind::ConnectionReset),
    }
}

#[tokio::test]
async fn a_reset_of_the_far_end_is_a_reset_to_us() {
    let Some(far) = Far::start("a_reset_of_the_far_end_is_a_reset_to_us").await else {
        return;
    };
    let sender = far.connect_as(CLIENT, SERVER).await.unwrap();
    let (mut tunnel, mut app) = far.open(&sender).await;
    app.write_all(b"part").await.unwrap();
    tunnel.read_exact(&mut [0; 4]).await.unwrap();
    app.set_zero_linger().unwrap();
    drop(app);
    let ended = soon("the application's reset", tunnel.read_u8()).await;
    assert_eq!(ended.unwrap_err().kind(), IoErrorKind::ConnectionReset);
}

/// Envoy knows our reset for one (DR: downstream remote reset), but a clean end is all that its upstream
/// connection is given.
#[tokio::test]
async fn our_reset_reaches_envoy_which_ends_its_application_cleanly() {
    let test = "our_reset_reaches_envoy_which_ends_its_application_cleanly";
    let Some(far) = Far::start(test).await else {
        return;
    };
    let sender = far.connect_as(CLIENT, SERVER).await.unwrap();
    let (mut tunnel, mut app) = far.open(&sender).await;
    tunnel.write_all(b"part").await.unwrap();
    app.read_exact(&mut [0; 4]).await.unwrap();
    drop(tunnel);
    let ended = soon("our reset", app.read_u8()).await;
    assert_eq!(ended.unwrap_err().kind(), IoErrorKind::UnexpectedEof);
    far.envoy.logged(&["flags DR "]).await;
}

/// Envoy answers and sends GOAWAY; the pool's next tunnel has a new connection.
#[tokio::test]
async fn a_refused_tunnel_is_an_error_and_the_pool_goes_on() {
    let test = "a_refused_tunnel_is_an_error_and_the_pool_goes_on";
    let Some(far) = Far::start(test).await else {
        return;
    };
    let (far, pool) = (Arc::new(far), Pool::new(Config::default()));
    let lease = || {
        let far = Arc::clone(&far);
        pool.checkout((), move || async move { far.dial_as(CLIENT, SERVER).await })
    };
    let forbidden = ConnectRequest::new(
        "forbidden.example:80".parse().unwrap(),
        ConnectHeaders::default(),
    );
    let refused = soon("an answer", lease().await.unwrap().connect(forbidden)).await;
    let error = refused.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::FORBIDDEN));
    soon("a tunnel", async {
        loop {
            match lease().await.unwrap().connect(request()).await {
                Ok(_) => return,
                // The GOAWAY and our CONNECT may cross.
                Err(error) => assert!(error.is_retry_safe(), "{error:?}"),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_envoy_that_is_somebody_else_is_refused() {
    let Some(far) = Far::start("an_envoy_that_is_somebody_else_is_refused").await else {
        return;
    };
    let error = far.connect_as(CLIENT, STRANGER).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.side()),
        (ErrorKind::UnexpectedIdentity, Side::Upstream)
    );
    assert!(error.is_authentication());
    far.envoy
        .counted("listener.tunnels.ssl.connection_error")
        .await;
}

#[tokio::test]
async fn envoy_refuses_whom_it_does_not_expect() {
    let Some(far) = Far::start("envoy_refuses_whom_it_does_not_expect").await else {
        return;
    };
    let error = far.connect_as(STRANGER, SERVER).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.side()),
        (ErrorKind::Refused, Side::Upstream)
    );
    assert!(error.is_retry_safe());
    far.envoy
        .counted("listener.tunnels.ssl.fail_verify_san")
        .await;
}
