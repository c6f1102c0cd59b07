//! What a member makes of a control plane's bytes when they come late, not whole, broken, or from somebody who
//! means harm.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use mesh_core::config::Xds;
use mesh_core::identity::Istiod;
use mesh_core::{ControlPlane, Mesh};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::cast::{CALLER, Cast, ECHO, STRANGER, call, echo, is_refused, knows, manifests};
use crate::hostile::Hostile;
use crate::plane::{Plane, control_plane, join, joining, stale, until};
use crate::way::{Mode, Way};

/// A member that does not wait long between its attempts.
fn restless(name: &str, own: IpAddr, through: ControlPlane) -> Mesh {
    let (first, most) = (Duration::from_millis(300), Duration::from_secs(1));
    let discovery = Xds::istiod(through.clone()).backoff(first, most);
    joining(name, own, discovery, Istiod::new(through))
        .build()
        .unwrap()
}

/// With so much more that all of it is some records long, and so is an edit.
fn many(generation: usize) -> String {
    let mut all = manifests(generation, &["caller"]);
    for number in 0..64 {
        all += &format!(
            "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: other-{number}, namespace: default}}
spec:
  hosts: [other-{number}.generation-{generation}.example]
  addresses: [240.0.1.{number}]
  ports: [{{number: 80, name: http}}]
  resolution: STATIC
"
        );
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_come_late_or_broken_cost_a_session_and_nothing_else() {
    let plane = Plane::start(15, &many(0), &[]).await;
    let way = Way::open(plane.address()).await;
    let member = |name, last| {
        let own = plane.ip(last);
        let through = control_plane(&plane.configure(name, own), way.address());
        restless(name, own, through)
    };
    way.turn(Mode::Slow(200, Duration::from_millis(20)));
    let cast = Cast {
        echo: member("echo", ECHO),
        caller: member("caller", CALLER),
        stranger: member("stranger", STRANGER),
    };
    tokio::spawn(echo(cast.echo.clone()));
    cast.play().await;
    // A connection for the certificate, one for discovery: none was given up for being slow.
    assert_eq!(way.connections(), 6);

    for (generation, spoilt) in [
        (1, Mode::Garbled(0)),
        (2, Mode::Garbled(5000)),
        (3, Mode::Cut(5000)),
        (4, Mode::Cut(0)),
    ] {
        // Each member has a session on which something will come.
        way.turn(Mode::Open);
        let what = format!("{spoilt:?}");
        for mesh in [&cast.echo, &cast.caller, &cast.stranger] {
            until(&what, async || stale(mesh).await.is_none()).await;
        }
        let (begun, before) = (Instant::now(), way.connections());
        way.turn(spoilt);
        plane.save(&many(generation));
        for mesh in [&cast.echo, &cast.caller, &cast.stranger] {
            until(&what, async || stale(mesh).await.is_some()).await;
        }
        let spoilt = Instant::now();
        while spoilt.elapsed() < Duration::from_secs(1) {
            cast.plays_on(&what).await;
            for mesh in [&cast.echo, &cast.caller, &cast.stranger] {
                assert!(mesh.readiness().is_ready(), "{what}");
                assert!(!knows(mesh, generation).await, "{what}: part of it is here");
            }
            sleep(Duration::from_millis(50)).await;
        }
        // They pause between their attempts.
        let attempts = way.connections() - before;
        let most = 3 * (4 + begun.elapsed().as_secs() as usize * 8);
        assert!(
            attempts <= most,
            "{what}: {attempts} attempts, at most {most}"
        );
        way.turn(Mode::Open);
        for mesh in [&cast.echo, &cast.caller, &cast.stranger] {
            until(&what, async || knows(mesh, generation).await).await;
        }
        cast.plays_on("all is well again").await;
    }
}

/// A field of protobuf with bytes in it.
fn field(out: &mut BytesMut, number: u32, bytes: &[u8]) {
    varint(out, u64::from(number << 3 | 2));
    varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

fn varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// A message in a message in a message, by one field.
fn nested(number: u32, depth: usize) -> BytesMut {
    (0..depth).fold(BytesMut::new(), |inner, _| {
        let mut outer = BytesMut::with_capacity(inner.len() + 6);
        field(&mut outer, number, &inner);
        outer
    })
}

const ADDRESS: &[u8] = b"type.googleapis.com/istio.workload.Address";
const AUTHORIZATION: &[u8] = b"type.googleapis.com/istio.security.Authorization";

/// A resource of a delta response.
fn resource(url: &[u8], name: &str, value: &[u8]) -> BytesMut {
    let mut any = BytesMut::new();
    field(&mut any, 1, url);
    field(&mut any, 2, value);
    let mut all = BytesMut::new();
    field(&mut all, 1, b"9");
    field(&mut all, 2, &any);
    field(&mut all, 3, name.as_bytes());
    all
}

/// A delta response of resources and of names that are gone.
fn response<'a>(
    url: &[u8],
    resources: impl IntoIterator<Item = BytesMut>,
    removed: impl IntoIterator<Item = &'a str>,
) -> BytesMut {
    let mut all = BytesMut::new();
    for one in resources {
        field(&mut all, 2, &one);
    }
    field(&mut all, 4, url);
    field(&mut all, 5, b"hostile");
    for name in removed {
        field(&mut all, 6, name.as_bytes());
    }
    all
}

/// As gRPC frames a message that says it is so long.
fn framed(length: u32, message: &[u8]) -> Bytes {
    let mut all = BytesMut::with_capacity(message.len() + 5);
    all.put_u8(0);
    all.put_u32(length);
    all.put_slice(message);
    all.freeze()
}

fn whole(message: &[u8]) -> Bytes {
    framed(u32::try_from(message.len()).unwrap(), message)
}

const MIB: usize = 1 << 20;

/// How many names a response says are gone. The session's bound (`with_max_removed`) is twice as many.
const REMOVED: usize = 1_000_000;

/// What such a name may take in memory, of its few bytes on the wire.
const NAME: usize = 256;

/// What may come on top, whatever is sent: the heap's own disorder.
const ROOM: usize = 32 * MIB;

/// What each is called, the bytes of it, and how many names it says are gone.
fn hostile(own: &str) -> Vec<(&'static str, Bytes, usize)> {
    let names: Vec<_> = (0..REMOVED).map(|name| format!("n{name}")).collect();
    let removed = response(ADDRESS, [], names.iter().map(String::as_str));
    let empty = (0..1_000_000).map(|name| resource(ADDRESS, &format!("n{name}"), b""));
    let huge = resource(ADDRESS, own, &vec![0; 64 * MIB]);
    let unknown = resource(b"type.googleapis.com/of.nobody", own, &vec![0; 64 * MIB]);
    let noise: Vec<u8> = (0..MIB as u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let mut length = BytesMut::new();
    varint(&mut length, 2 << 3 | 2);
    varint(&mut length, 1 << 30);
    let deep = |url, name, number| {
        let deep = resource(url, name, &nested(number, 5000));
        whole(&response(url, [deep], []))
    };
    let bytes = [
        ("no gRPC", Bytes::from(noise.clone())),
        ("a message of noise", whole(&noise)),
        ("a message of 1 GiB", framed(1 << 30, &noise)),
        ("a resource of 1 GiB", whole(&length)),
        (
            "a resource of 64 MiB",
            whole(&response(ADDRESS, [huge], [])),
        ),
        (
            "one of no known type",
            whole(&response(ADDRESS, [unknown], [])),
        ),
        ("a deep workload", deep(ADDRESS, own, 1)),
        ("a deep policy", deep(AUTHORIZATION, "default/echo", 5)),
        ("a million of nothing", whole(&response(ADDRESS, empty, []))),
    ];
    let mut all: Vec<_> = bytes.map(|(what, bytes)| (what, bytes, 0)).into();
    all.push(("a million names that are gone", whole(&removed), REMOVED));
    all
}

const ADDRESSES: &str = "addresses";

/// The echo in a process of its own, whose memory is nobody else's.
struct Process(Child);

impl Process {
    /// Starts it with the files of a host, for a control plane at `to`. It answers questions at `admin`.
    fn start(files: &Path, to: SocketAddr, admin: SocketAddr) -> Self {
        fs::write(files.join(ADDRESSES), format!("{to} {admin}")).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "on_the_wire::member", "--ignored", "--nocapture"])
            .current_dir(files)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// What the kernel says of it, in bytes: `VmRSS` is what it has now, `VmHWM` the most that it had.
    fn memory(&self, key: &str) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        let kib = line.split_whitespace().nth(1).unwrap();
        kib.parse::<usize>().unwrap() * 1024
    }

    /// From now on `VmHWM` counts anew.
    fn forget_most(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.0.id()), "5").unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
#[ignore = "the other side of what_means_harm_changes_nothing_and_takes_no_memory"]
async fn member() {
    let addresses = fs::read_to_string(ADDRESSES).expect("started by its parent only");
    let (to, admin) = addresses.split_once(' ').unwrap();
    let (to, admin): (SocketAddr, SocketAddr) = (to.parse().unwrap(), admin.parse().unwrap());
    let mesh = restless("echo", admin.ip(), control_plane(Path::new("."), to));
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    tokio::select! {
        () = echo(mesh.clone()) => panic!("it listens no more"),
        served = mesh.admin().serve_on(admin) => served.unwrap(),
        _ = ended => {}
    }
}

/// A page of its admin service.
async fn page(admin: SocketAddr, path: &str) -> Option<(String, String)> {
    let mut stream = TcpStream::connect(admin).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.to_owned(), body.to_owned()))
}

async fn dump(admin: SocketAddr) -> Value {
    let (_, body) = page(admin, "/config_dump").await.expect("it is there");
    serde_json::from_str(&body).unwrap()
}

/// All that it goes by, but for how old it may be.
async fn state(admin: SocketAddr) -> [Value; 3] {
    let dump = dump(admin).await;
    ["workloads", "services", "policies"].map(|part| {
        assert!(!dump[part].is_null(), "{part} in {dump}");
        dump[part].clone()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_means_harm_changes_nothing_and_takes_no_memory() {
    let plane = Plane::start(16, &many(0), &[]).await;
    let harmful = Hostile::start(&plane).await;
    let way = Way::open(plane.address()).await;
    let files = plane.configure("echo", plane.ip(ECHO));
    let admin = SocketAddr::new(plane.ip(ECHO), 15000);
    let member = Process::start(&files, way.address(), admin);
    let caller = join(&plane.configure("caller", plane.ip(CALLER)));
    let stranger = join(&plane.configure("stranger", plane.ip(STRANGER)));
    until("the caller is answered", async || {
        call(&caller).await.is_ok()
    })
    .await;
    until("the stranger is refused", async || {
        is_refused(&stranger).await
    })
    .await;
    let before = state(admin).await;
    assert_eq!(page(admin, "/healthz/ready").await.unwrap().0, "200");
    let base = member.memory("VmRSS");
    let own = "Kubernetes//Pod/default/echo";
    for (what, message, removed) in hostile(own) {
        let (size, sent) = (message.len(), harmful.sent());
        harmful.say(message);
        member.forget_most();
        way.lead(harmful.address);
        until(what, async || harmful.has_said()).await;
        call(&caller).await.unwrap();
        assert!(is_refused(&stranger).await, "{what}");
        assert_eq!(state(admin).await, before, "{what}");
        assert_eq!(
            page(admin, "/healthz/ready").await.unwrap().0,
            "200",
            "{what}"
        );
        let (most, sent) = (member.memory("VmHWM"), harmful.sent() - sent);
        let more = most.saturating_sub(base);
        println(&format!(
            "{what}: {} KiB, of which {} KiB went; {} KiB more at most",
            size >> 10,
            sent >> 10,
            more >> 10,
        ));
        let bound = ROOM + sent * 5 / 2 + removed * NAME;
        assert!(more <= bound, "{what}: {more} bytes more, at most {bound}");
        way.lead(plane.address());
        until("it is back", async || dump(admin).await["stale"].is_null()).await;
    }
    plane.save(&many(1));
    until("what is well is heard again", async || {
        state(admin).await[1].to_string().contains("generation-1")
    })
    .await;
    call(&caller).await.unwrap();
    assert!(is_refused(&stranger).await);
}

#[expect(clippy::print_stdout, reason = "figures for who runs the tests")]
fn println(text: &str) {
    println!("{text}");
}
