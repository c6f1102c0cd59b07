//! processes that run out of file descriptors, with whole meshes in them.
//!
//! Each is a child of its test, with 256 of them, and shares a root certificate with it.

use std::convert::Infallible;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use mesh_core::hbone::tls::{self, Credentials};
use mesh_core::identity::DevCa;
use mesh_core::xds::model::Update;
use mesh_core::{ErrorKind, Mesh, MeshStream};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tower::service_fn;

use crate::mesh_world::{PORT, Settings, World, echo, identity, ping};

const PARENT: &str = "started-by-parent";
const ROOT: &str = "root";
const HTTP_PORT: u16 = 9081;
const TUNNELS: u16 = 15008;
/// What nobody needs here ends by itself.
const HOUR: Duration = Duration::from_secs(3600);
/// Long enough for any machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Such a line says that descriptors lack.
const LACKS: &str = "no connections are accepted for a moment";

/// A client and a server for the two processes of a test, `another` being one more server.
async fn world(folder: &Path, net: u8, set: impl FnOnce(Settings) -> Settings) -> World {
    let ca = DevCa::in_dir(folder.join(ROOT), "cluster.local");
    let world = World::with_ca(net, ca, set);
    let updates = [("client", 1), ("server", 2), ("another", 3)].map(|(name, host)| {
        let workload: Update = world.workload(name, host).into();
        [workload, world.service(name, host).into()]
    });
    world
        .control
        .set(updates.into_iter().flatten().collect())
        .await;
    world
}

/// A process with 256 descriptors, killed when dropped.
struct Limited {
    process: Child,
    /// What it has printed.
    lines: Arc<Mutex<Vec<String>>>,
}

impl Limited {
    fn start(folder: &Path, scene: &str) -> Self {
        File::create(folder.join(PARENT)).unwrap();
        let mut process = Command::new("sh")
            .args(["-c", "ulimit -n 256 && exec \"$0\" \"$@\""])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", &format!("descriptors_run_out::{scene}")])
            .args(["--ignored", "--nocapture", "--test-threads=1"])
            .current_dir(folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let (output, heard) = (process.stdout.take().unwrap(), Arc::clone(&lines));
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                heard.lock().unwrap().push(line.unwrap());
            }
        });
        Self { process, lines }
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Waits for such a line.
    async fn says(&mut self, what: &str) -> String {
        let begin = Instant::now();
        loop {
            if let Some(rest) = said(&self.lines(), what).pop() {
                return rest;
            }
            let ended = self.process.try_wait().unwrap();
            let waits = ended.is_none() && begin.elapsed() < PATIENCE;
            assert!(waits, "{what}: {ended:?}: {:#?}", self.lines);
            sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the lines with this in them say after it.
fn said(lines: &[String], what: &str) -> Vec<String> {
    let found = lines.iter().filter_map(|line| line.split_once(what));
    found.map(|(_, rest)| rest.trim().to_owned()).collect()
}

/// A new tunnel, of which the other end is heard.
async fn tunnel(client: &Mesh, to: &str) -> Result<MeshStream, mesh_core::Error> {
    let mut stream = client.connect(format!("{to}:{PORT}")).await?;
    ping(&mut stream).await.unwrap();
    Ok(stream)
}

async fn request(client: &Mesh, server: IpAddr) -> u16 {
    let request = Request::get(format!("http://{server}:{HTTP_PORT}/"));
    let request = request.body(Empty::<bytes::Bytes>::new()).unwrap();
    let response = client.http_client().request(request).await.unwrap();
    let status = response.status().as_u16();
    response.into_body().collect().await.unwrap();
    status
}

async fn said_in_plaintext(stream: &mut TcpStream) {
    stream.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"ping");
}

async fn asked(admin: &mut TcpStream) {
    let request = b"GET /healthz/ready HTTP/1.1\r\nhost: localhost\r\n\r\n";
    admin.write_all(request).await.unwrap();
    let mut admin = tokio::io::BufReader::new(admin);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(admin.read_line(&mut head).await.unwrap() > 0, "{head}");
    }
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let (_, length) = head.split_once("content-length: ").unwrap();
    let (length, _) = length.split_once('\r').unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    admin.read_exact(&mut body).await.unwrap();
}

/// One connection of each kind.
struct Kept {
    server: IpAddr,
    tunnel: MeshStream,
    plain: TcpStream,
    admin: TcpStream,
}

impl Kept {
    async fn open(client: &Mesh, server: IpAddr, admin: SocketAddr) -> Self {
        Self {
            server,
            tunnel: tunnel(client, "server").await.unwrap(),
            plain: TcpStream::connect((server, PORT)).await.unwrap(),
            admin: TcpStream::connect(admin).await.unwrap(),
        }
    }

    async fn go_on(&mut self, client: &Mesh) {
        ping(&mut self.tunnel).await.unwrap();
        said_in_plaintext(&mut self.plain).await;
        asked(&mut self.admin).await;
        assert_eq!(request(client, self.server).await, 200);
    }
}

/// Whether a new connection is closed without a word: of one to the tunnels' port that says nothing, that would be its
/// end in any case.
async fn is_shed(to: SocketAddr, credentials: &Credentials) -> bool {
    let Ok(mut stream) = TcpStream::connect(to).await else {
        return true;
    };
    if to.port() == TUNNELS {
        let expected = [identity("server")];
        return tls::connect(stream, credentials, &expected).await.is_err();
    }
    stream.read_u8().await.is_err()
}

/// Connections go on, those that find no descriptor are closed, all four listeners live through it without
/// spinning or filling the log, and serve again once there are descriptors.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_descriptors_keeps_what_it_has_and_recovers() {
    starve("a_server", 200).await;
}

/// The same on two threads, of which one may take the descriptor that the other gave up to close a connection:
/// so connections may be taken after all, or wait in the queue for as long as descriptors lack.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_two_threads_without_descriptors_keeps_what_it_has_and_recovers() {
    starve("a_server_of_two_threads", 202).await;
}

async fn starve(scene: &str, net: u8) {
    let folder = tempfile::tempdir().unwrap();
    let client = world(folder.path(), net, |node| node).await;
    let stranger = world(folder.path(), net, |node| node).await;
    let server = client.ip(2);
    let credentials = stranger.credentials("client").await;
    let (client, stranger) = (client.mesh("client"), stranger.mesh("client"));
    let mut process = Limited::start(folder.path(), scene);
    let admin: SocketAddr = process.says("admin on ").await.parse().unwrap();
    let mut kept = Kept::open(&client, server, admin).await;
    let tunnels = SocketAddr::from((server, TUNNELS));
    assert!(!is_shed(tunnels, &credentials).await, "there is room");
    kept.go_on(&client).await;

    let begin = Instant::now();
    let mut flood = Vec::new();
    // More than there are descriptors for. The system takes them before the process does.
    while flood.len() < 300 && said(&process.lines(), LACKS).is_empty() {
        for port in [PORT, HTTP_PORT] {
            flood.extend(TcpStream::connect((server, port)).await);
        }
        sleep(Duration::from_millis(5)).await;
    }
    process.says(LACKS).await;
    let mut listeners = vec![admin];
    listeners.extend([PORT, HTTP_PORT, TUNNELS].map(|port| SocketAddr::new(server, port)));
    let sheds = scene == "a_server";
    let mut tunnels = Vec::new();
    for _ in 0..10 {
        for listener in &listeners {
            if sheds {
                let shed = timeout(PATIENCE, is_shed(*listener, &credentials)).await;
                assert_eq!(shed, Ok(true), "{listener}");
            } else {
                flood.extend(TcpStream::connect(listener).await);
                sleep(Duration::from_millis(100)).await;
            }
        }
        kept.go_on(&client).await;
        // They come on a connection that is there.
        tunnels.push(tunnel(&client, "server").await.unwrap());
    }
    if sheds {
        let error = tunnel(&stranger, "server").await.unwrap_err();
        assert!(error.is_retry_safe(), "{error:?}");
    }

    // At most two attempts a second after the first eight of each listener, which may begin anew when another
    // one's reserve was lost to it; and a line a second.
    let all = process.lines();
    let seconds = begin.elapsed().as_secs() as usize + 1;
    let lines = said(&all, LACKS);
    let errors = lines.iter().map(|line| {
        let (_, rest) = line.split_once(" errors=").unwrap();
        rest.split(' ').next().unwrap().parse::<usize>().unwrap()
    });
    let errors: usize = errors.sum();
    let most = 2 * listeners.len() * (8 + 2 * seconds);
    assert!(errors <= most, "{errors} in {seconds} s");
    let most = listeners.len() * (1 + seconds);
    assert!(lines.len() <= most, "{} in {seconds} s", lines.len());
    assert_eq!(said(&all, " WARN ").len(), lines.len());
    assert_eq!(said(&all, " ERROR "), Vec::<String>::new());

    drop(flood);
    let recovers = async {
        while tunnel(&stranger, "server").await.is_err() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, recovers).await.expect("it recovers");
    let mut another = Kept::open(&stranger, server, admin).await;
    another.go_on(&stranger).await;
    kept.go_on(&client).await;
}

#[tokio::test]
#[ignore = "the other side of a_server_without_descriptors_keeps_what_it_has_and_recovers"]
async fn a_server() {
    serve(200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the other side of a_server_of_two_threads_without_descriptors_keeps_what_it_has_and_recovers"]
async fn a_server_of_two_threads() {
    serve(202).await;
}

#[allow(clippy::print_stdout, reason = "the parent reads it")]
async fn serve(net: u8) {
    assert!(Path::new(PARENT).exists(), "started by its parent only");
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::WARN)
        .init();
    let world = world(Path::new(""), net, |node| node.header_timeout(HOUR)).await;
    let server = world.mesh("server");
    echo(server.listen(PORT).await.unwrap());
    let http = server.listen_http(HTTP_PORT).await.unwrap();
    tokio::spawn(
        http.serve(service_fn(|_: Request<hyper::body::Incoming>| async move {
            Ok::<_, Infallible>(Response::new(Full::new(bytes::Bytes::new())))
        })),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("admin on {}", listener.local_addr().unwrap());
    let admin = server.admin().header_timeout(HOUR).connection_timeout(HOUR);
    admin.serve(listener).await;
}

/// What is at the bottom of an error.
fn reason(error: &mesh_core::Error) -> String {
    let mut error: &dyn std::error::Error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Its callers are told what lacks; what it has goes on, tunnels on connections that are there included.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_without_descriptors_says_so_and_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), 201, |node| node).await;
    let servers = [world.mesh("server"), world.mesh("another")];
    for server in &servers {
        echo(server.listen(PORT).await.unwrap());
    }
    let mut process = Limited::start(folder.path(), "a_client");
    process.says("all of it is so").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the other side of a_client_without_descriptors_says_so_and_recovers"]
#[allow(clippy::print_stdout, reason = "the parent reads it")]
async fn a_client() {
    assert!(Path::new(PARENT).exists(), "started by its parent only");
    let world = world(Path::new(""), 201, |node| node).await;
    let client = world.mesh("client");
    let mut kept = tunnel(&client, "server").await.unwrap();
    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }
    for _ in 0..10 {
        let error = tunnel(&client, "another").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectFailed, "{error:?}");
        assert!(error.is_retry_safe());
        let address = world.ip(3).to_string();
        assert!(error.to_string().contains(&address), "{error}");
        let why = reason(&error);
        assert!(why.contains("open files"), "{why}");
        ping(&mut kept).await.unwrap();
        tunnel(&client, "server").await.unwrap();
    }
    drop(hoard);
    tunnel(&client, "another").await.unwrap();
    println!("all of it is so");
}
