//! Hosts whose files have no trust domain, in a mesh that gets another one: from the files that istioctl writes, on
//! real sockets.

use std::convert::Infallible;
use std::fs;
use std::future::ready;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use mesh_core::hbone::config::Config;
use mesh_core::{BoxedIo, ConnectionContext, Error, ErrorKind, Mesh, MeshListener, Transport};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, copy_bidirectional, duplex};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};
use tonic::Code;
use tower::service_fn;

use crate::admin::get;
use crate::hosts_join::{host_of, istiod, istiod_for, say_hosts, write};
use crate::istiod::Istiod;
use crate::istiod_place::{HOUR, pending, until};
use crate::layers_logs::capture;

const BEFORE: &str = "spiffe://old.example/ns/default/sa/forum-sa";
const AFTER: &str = "spiffe://new.example/ns/default/sa/forum-sa";

/// So long does a certificate live that is to be renewed soon, at half of it.
const SHORT: Duration = Duration::from_secs(6);

const MINUTE: Duration = Duration::from_secs(60);

/// Tries again while it fails: a machine that stalls for long has certificates expire that live so short.
async fn patiently<T>(mut attempt: impl AsyncFnMut() -> Result<T, Error>) -> T {
    let begin = Instant::now();
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) => assert!(begin.elapsed() < Duration::from_secs(60), "{error:?}"),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

fn seen(context: &ConnectionContext) -> String {
    context.identity().map(ToString::to_string).unwrap()
}

/// Tells everybody who connects whom it sees.
fn tells(mut listener: MeshListener) {
    tokio::spawn(async move {
        while let Ok(mut stream) = listener.accept().await {
            tokio::spawn(async move {
                let who = seen(stream.context());
                stream.write_all(who.as_bytes()).await?;
                stream.shutdown().await
            });
        }
    });
}

/// Tells it everybody who asks, in HTTP.
fn tells_requests(mut listener: MeshListener) {
    tokio::spawn(async move {
        while let Ok(stream) = listener.accept().await {
            let who = Bytes::from(seen(stream.context()));
            let service = service_fn(move |_: Request<Incoming>| {
                ready(Ok::<_, Infallible>(Response::new(Full::new(who.clone()))))
            });
            let service = TowerToHyperService::new(service);
            tokio::spawn(async move {
                let serving = auto::Builder::new(TokioExecutor::new());
                let serving = serving.serve_connection(TokioIo::new(stream), service);
                let _ = serving.await;
            });
        }
    });
}

/// Whom both ends of a connection see, the server first.
async fn connects(client: &Mesh, to: &str) -> [String; 2] {
    patiently(async || {
        let mut stream = client.connect(to).await?;
        let mut who = String::new();
        stream.read_to_string(&mut who).await.unwrap();
        Ok([seen(stream.context()), who])
    })
    .await
}

/// Whom the server of a request sees.
async fn requests(client: &Mesh, to: &str, version: Version) -> String {
    patiently(async || {
        let request = Request::get(format!("http://{to}/")).version(version);
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let response = client.http_client().request(request).await;
        // What made room is not in the way.
        let response = response.inspect_err(|error| {
            assert_ne!(error.kind(), ErrorKind::Overloaded, "{error:?}");
        })?;
        assert_eq!(response.version(), version);
        let who = response.into_body().collect().await?.to_bytes();
        Ok(String::from_utf8(who.to_vec()).unwrap())
    })
    .await
}

/// V004, later: the mesh gets another trust domain while the host runs, and the next certificate is of that one.
#[tokio::test]
async fn a_trust_domain_that_nobody_says_changes_with_the_certificate() {
    let (lines, _guard) = capture("mesh::identity=warn");
    let (istiod, port) = istiod_for(SHORT).await;
    let both = [[127, 95, 1, 13], [127, 95, 1, 14]];
    say_hosts(&istiod, "old.example", "1", &both);
    let texts = both.map(|own| std::net::IpAddr::from(own).to_string());
    let files = texts
        .each_ref()
        .map(|own| host_of(&istiod, port, own, BEFORE, ""));
    let join = |files: &TempDir| {
        let builder = Mesh::builder().bootstrap_dir(files.path()).unwrap();
        builder.build().unwrap()
    };
    let [server, client] = files.each_ref().map(join);
    tells(patiently(async || server.listen(7000).await).await);
    tells_requests(patiently(async || server.listen(7001).await).await);
    let [stream, http] = [7000, 7001].map(|port| format!("{}:{port}", texts[0]));
    let met = async |expected: &str| {
        assert_eq!(connects(&client, &stream).await, [expected; 2]);
        for version in [Version::HTTP_11, Version::HTTP_2] {
            assert_eq!(requests(&client, &http, version).await, expected);
        }
    };
    met(BEFORE).await;

    istiod.issue_for(AFTER, 24 * HOUR);
    say_hosts(&istiod, "new.example", "2", &both);
    for files in &files {
        let token = istiod.token_of(AFTER.parse().unwrap(), HOUR);
        write(files.path(), "istio-token", &token);
    }
    for mesh in [&server, &client] {
        until("its next certificate", || {
            mesh.identity().to_string() == AFTER
        })
        .await;
    }
    // What was opened before is of before; nobody goes on by it.
    met(AFTER).await;
    lines.has(&[
        "WARN",
        BEFORE,
        AFTER,
        "the trust domain is another: nobody has set one",
    ]);
}

/// A network of which every connection waits when it has got so far, until all may go on.
struct Held {
    transport: Transport,
    /// How many were dialled.
    dials: Arc<AtomicUsize>,
    waits: watch::Receiver<bool>,
    open: watch::Sender<bool>,
}

/// What waits, of each connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// The first that the client says: a TLS handshake begins with it.
    Beginning,
    /// What the server says after the handshake.
    Answers,
}

impl Held {
    /// Does something while a connection waits, and then lets all go on.
    async fn meanwhile(&mut self, something: impl Future<Output = ()>) {
        self.waits.wait_for(|waits| *waits).await.unwrap();
        something.await;
        self.open.send_replace(true);
    }
}

fn held(what: Wait) -> Held {
    let (begin, waits) = watch::channel(false);
    let (open, opened) = watch::channel(false);
    let dials = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&dials);
    let transport = Transport::new(
        move |to| {
            count.fetch_add(1, Ordering::Relaxed);
            let (begin, mut opened) = (begin.clone(), opened.clone());
            async move {
                let mut socket = TcpStream::connect(to).await?;
                let (near, mut far) = duplex(64 * 1024);
                tokio::spawn(async move {
                    let mut said = vec![0; 16 * 1024];
                    if what == Wait::Answers {
                        // Until the client says for the second time something, its hello is being answered.
                        let count = far.read(&mut said).await?;
                        socket.write_all(&said[..count]).await?;
                        let (mut answers, mut hello) = socket.split();
                        let (mut says, mut hears) = tokio::io::split(&mut far);
                        tokio::select! {
                            copied = copy(&mut answers, &mut hears) => copied.map(drop)?,
                            count = says.read(&mut said) => hello.write_all(&said[..count?]).await?,
                        }
                        begin.send_replace(true);
                        let said = async {
                            tokio::select! {
                                copied = copy(&mut says, &mut hello) => copied.map(drop),
                                _ = opened.wait_for(|opened| *opened) => Ok(()),
                            }
                        };
                        said.await?;
                    } else {
                        let count = far.read(&mut said).await?;
                        begin.send_replace(true);
                        let _ = opened.wait_for(|opened| *opened).await;
                        socket.write_all(&said[..count]).await?;
                    }
                    copy_bidirectional(&mut far, &mut socket).await
                });
                Ok(BoxedIo::new(near))
            }
        },
        |_| ready(Err(io::ErrorKind::Unsupported.into())),
    );
    Held {
        transport,
        dials,
        waits,
        open,
    }
}

/// A client that gets another name while it runs, and a server of the former one that knows both.
struct Renamed {
    istiod: Arc<Istiod>,
    files: [TempDir; 2],
    server: Mesh,
    client: Mesh,
    server_address: String,
}

impl Renamed {
    /// Of two addresses of this machine.
    async fn new(both: [[u8; 4]; 2], transport: Option<Transport>) -> Self {
        Self::with(both, transport, Config::default()).await
    }

    async fn with(both: [[u8; 4]; 2], transport: Option<Transport>, hbone: Config) -> Self {
        let (istiod, port) = istiod_for(SHORT).await;
        // Records come later.
        say_hosts(&istiod, "old.example", "1", &both);
        let texts = both.map(|own| std::net::IpAddr::from(own).to_string());
        let files = texts
            .each_ref()
            .map(|own| host_of(&istiod, port, own, BEFORE, ""));
        let join = |files: &TempDir| Mesh::builder().bootstrap_dir(files.path()).unwrap();
        let server = join(&files[0]).trust_domain_aliases(["new.example"]);
        let mut client = join(&files[1]).hbone(hbone);
        if let Some(transport) = transport {
            client = client.transport(transport);
        }
        let [server_address, _] = texts;
        Self {
            istiod,
            server: server.build().unwrap(),
            client: client.build().unwrap(),
            files,
            server_address,
        }
    }

    /// As [`new`](Self::new), of who waits on the network and of a server that tells everybody whom it sees, both ready.
    async fn waiting(both: [[u8; 4]; 2], what: Wait) -> (Self, Held) {
        let held = held(what);
        let renamed = Self::new(both, Some(held.transport.clone())).await;
        tells(patiently(async || renamed.server.listen(7000).await).await);
        patiently(async || renamed.client.ready().await).await;
        (renamed, held)
    }

    /// The server's `host:port`.
    fn at(&self, port: u16) -> String {
        format!("{}:{port}", self.server_address)
    }

    /// The client's next certificate is of the new name.
    async fn rename(&self) {
        assert_eq!(self.client.identity().to_string(), BEFORE);
        self.istiod.issue_for(AFTER, 24 * HOUR);
        let token = self.istiod.token_of(AFTER.parse().unwrap(), HOUR);
        write(self.files[1].path(), "istio-token", &token);
        until("its next certificate", || {
            self.client.identity().to_string() == AFTER
        })
        .await;
    }
}

/// V004, in the middle of a handshake, which began by the certificate of before.
#[tokio::test]
async fn a_connection_that_is_made_while_the_trust_domain_changes_is_of_the_new_one() {
    let (lines, _guard) = capture("mesh::identity=warn");
    let both = [[127, 95, 1, 19], [127, 95, 1, 20]];
    let (renamed, mut held) = Renamed::waiting(both, Wait::Beginning).await;
    let (client, to) = (&renamed.client, renamed.at(7000));
    let (met, ()) = tokio::join!(connects(client, &to), held.meanwhile(renamed.rename()));
    assert_eq!(met, [BEFORE, AFTER]);
    assert_eq!(connects(client, &to).await, [BEFORE, AFTER]);
    // Nobody has made a mistake.
    assert!(!lines.text().contains("its record"), "{}", lines.text());
}

/// V004, where a peer takes its time: whose CONNECT is under way makes it again, and who waits for a place on that
/// connection does not have another made as who it was.
#[tokio::test]
async fn a_connect_that_is_under_way_is_made_again_and_nobody_dials_as_who_it_was() {
    for host in (40..60).step_by(2) {
        let begin = Instant::now();
        let both = [[127, 95, 1, host], [127, 95, 1, host + 1]];
        let (renamed, mut held) = Renamed::waiting(both, Wait::Answers).await;
        let (client, to) = (&renamed.client, renamed.at(7000));
        let (first, second, ()) = tokio::join!(
            connects(client, &to),
            connects(client, &to),
            held.meanwhile(renamed.rename())
        );
        assert_eq!([first, second], [[BEFORE, AFTER], [BEFORE, AFTER]]);
        let dials = held.dials.load(Ordering::Relaxed);
        // Where the machine stalled, certificates may have expired on the way, and others were dialled for that.
        if begin.elapsed() < SHORT {
            return assert_eq!(dials, 2, "one as who it was, one as who it is");
        }
    }
    panic!("the machine is too slow for certificates that live {SHORT:?}");
}

/// V004, where records come later: all that a request could go on by is there still, but as who the host was.
#[tokio::test]
async fn no_request_goes_on_by_a_connection_of_the_trust_domain_before() {
    let renamed = Renamed::new([[127, 95, 1, 22], [127, 95, 1, 23]], None).await;
    let Renamed { server, client, .. } = &renamed;
    tells_requests(patiently(async || server.listen(7001).await).await);
    let to = renamed.at(7001);
    let met = async |expected: &str| {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            assert_eq!(requests(client, &to, version).await, expected);
        }
    };
    met(BEFORE).await;
    renamed.rename().await;
    met(AFTER).await;
    // Its record is of before: that is no mistake of who runs it.
    client.listen(7002).await.unwrap();
}

/// V004, as above, where there is one connection at most.
#[tokio::test]
async fn an_idle_connection_of_the_trust_domain_before_makes_room_for_the_next_request() {
    for (version, own) in [(Version::HTTP_11, 31), (Version::HTTP_2, 33)] {
        let both = [[127, 95, 1, own], [127, 95, 1, own + 1]];
        let one = Config::default().max_connections(1);
        let renamed = Renamed::with(both, None, one).await;
        let Renamed { server, client, .. } = &renamed;
        tells_requests(patiently(async || server.listen(7001).await).await);
        let to = renamed.at(7001);
        assert_eq!(requests(client, &to, version).await, BEFORE);
        renamed.rename().await;
        assert_eq!(requests(client, &to, version).await, AFTER);
    }
}

/// V004, as above, of a request that waited while another had the connection made.
#[tokio::test]
async fn a_request_that_waited_for_a_connection_goes_by_one_of_the_new_trust_domain() {
    let mut held = held(Wait::Answers);
    let both = [[127, 95, 1, 26], [127, 95, 1, 27]];
    let renamed = Renamed::new(both, Some(held.transport)).await;
    let Renamed { server, client, .. } = &renamed;
    tells_requests(patiently(async || server.listen(7001).await).await);
    patiently(async || client.ready().await).await;

    let to = renamed.at(7001);
    let mut dials = pin!(requests(client, &to, Version::HTTP_2));
    let mut waits = pin!(requests(client, &to, Version::HTTP_2));
    tokio::select! {
        biased;
        _ = &mut dials => unreachable!("nobody answers"),
        _ = held.waits.wait_for(|waits| *waits) => {}
    }
    tokio::select! {
        biased;
        _ = &mut waits => unreachable!("nobody answers"),
        () = yield_now() => {}
    }
    held.open.send_replace(true);
    // The other is not polled meanwhile, and so gets the connection only later.
    assert_eq!(dials.await, BEFORE);
    renamed.rename().await;
    assert_eq!(waits.await, AFTER);
}

/// V004, where records do not come at all: peers refuse who serves, and nobody would say why.
#[tokio::test]
async fn a_trust_domain_that_stays_another_than_the_record_s_is_told_once() {
    let (lines, _guard) = capture("mesh::identity=warn");
    let renamed = Renamed::new([[127, 95, 1, 29], [127, 95, 1, 30]], None).await;
    // Its record is here.
    let _listener = patiently(async || renamed.client.listen(7002).await).await;
    renamed.rename().await;
    let told = || {
        let text = lines.text();
        let told = text
            .lines()
            .filter(|line| line.contains("two trust domains"));
        told.count()
    };
    let explained = get(
        &renamed.client.admin(),
        "/explain?format=json&to=7002&from=plaintext",
    )
    .await;
    let explained = explained.json();
    assert_eq!(explained["identity"], AFTER, "{explained}");
    let expected = explained["recordIdentity"].as_str().unwrap_or_default();
    assert!(expected.starts_with(BEFORE), "{explained}");
    tokio::time::pause();
    sleep(4 * MINUTE).await;
    assert_eq!(told(), 0, "records may come later");
    sleep(2 * MINUTE).await;
    lines.has(&["WARN", "two trust domains", BEFORE, AFTER, "trustDomain"]);
    sleep(30 * MINUTE).await;
    assert_eq!(told(), 1);
}

/// What nobody has said is not told as if somebody had.
#[tokio::test]
async fn who_is_refused_is_told_without_a_trust_domain_that_nobody_says() {
    let (istiod, port) = istiod().await;
    istiod
        .discovery
        .refuse(Some((Code::PermissionDenied, "authorization failed")));
    let identity = "spiffe://td.example/ns/default/sa/forum-sa";
    let files = host_of(&istiod, port, "127.95.1.21", identity, "");
    let mesh = Mesh::builder().bootstrap_dir(files.path()).unwrap();
    let mesh = mesh.build().unwrap();
    until("it says as whom", || {
        pending(&mesh).contains("authorization failed (said to be ns/default/sa/forum-sa)")
    })
    .await;
}

/// V004, after a move: what is kept is of the mesh that the host was in.
#[tokio::test]
async fn a_host_that_moves_to_another_mesh_with_its_state_is_of_that_mesh() {
    let own = [127, 95, 1, 15];
    let text = std::net::IpAddr::from(own).to_string();
    let state = tempfile::tempdir().unwrap();
    let roots = state.path();
    let roots = roots.join("cluster.local/default/forum-sa/roots.pem");
    let kept = || fs::read(&roots).ok();
    for (domain, identity) in [("old.example", BEFORE), ("new.example", AFTER)] {
        let before = kept();
        let (istiod, port) = istiod().await;
        say_hosts(&istiod, domain, "1", &[own]);
        let files = host_of(&istiod, port, &text, identity, "");
        let builder = Mesh::builder().bootstrap_dir(files.path()).unwrap();
        let mesh = builder.state_dir(state.path()).build().unwrap();
        mesh.ready().await.unwrap();
        until("a certificate of this mesh", || {
            mesh.identity().to_string() == identity
        })
        .await;
        mesh.listen(7000).await.unwrap();
        until("it is kept", || {
            kept().is_some_and(|now| Some(now) != before)
        })
        .await;
        mesh.shutdown(Duration::ZERO).await;
    }
}

/// The other way round: what somebody has said stays, and the certificate with it until it expires.
#[tokio::test]
async fn a_trust_domain_that_somebody_says_stays_whatever_is_issued_later() {
    let (lines, _guard) = capture("mesh::identity=warn");
    let (istiod, port) = istiod_for(SHORT).await;
    let own = [127, 95, 1, 16];
    let text = std::net::IpAddr::from(own).to_string();
    say_hosts(&istiod, "old.example", "1", &[own]);
    let files = host_of(&istiod, port, &text, BEFORE, "old.example");
    let mesh = Mesh::builder().bootstrap_dir(files.path()).unwrap();
    let mesh = mesh.build().unwrap();
    patiently(async || mesh.ready().await).await;
    let token = istiod.token_of(AFTER.parse().unwrap(), HOUR);
    write(files.path(), "istio-token", &token);
    until("it says so", || lines.text().contains(AFTER)).await;
    lines.has(&["WARN", "no new certificate", BEFORE, AFTER]);
    assert_eq!(mesh.identity().to_string(), BEFORE);
    until("it has expired", || !mesh.readiness().is_ready()).await;
    let error = mesh.connect("127.95.1.16:7000").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Identity);
    assert_eq!(mesh.identity().to_string(), BEFORE);
}
