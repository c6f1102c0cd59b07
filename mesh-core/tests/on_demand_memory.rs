//! What a member costs that asks only for what it dials: as much in a large mesh as in one that has nothing else. Its
//! own binary: the counting allocator is the whole process's.
//!
//! The istiod is in this process, and makes what it sends when it is asked: it holds nothing of a mesh, so that what
//! differs between two meshes is the member's.

#[allow(dead_code, reason = "other tests ask more of it")]
#[path = "it/istiod.rs"]
mod istiod;
#[allow(dead_code, reason = "other tests ask more of it")]
#[path = "it/istiod_discovery.rs"]
mod istiod_discovery;
mod large_mesh;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use http::Request;
use http_body_util::BodyExt as _;
use mesh_core::config::Xds;
use mesh_core::{BoxedIo, ErrorKind, Incoming, Mesh, OutboundPolicy, Transport, identity};
use serde_json::Value;
use tower::ServiceExt as _;

use istiod::Istiod;
use istiod_discovery::{ADDRESS, Any, Made, Resource};
use large_mesh::{LIVE, Writer, service, workload};

/// The network of all Pods.
const NETWORK: &str = "network-1";

/// A service has so many Pods.
const PODS: usize = 16;

/// So many services are dialled.
const DIALLED: usize = 20;

/// How many services there are: the istiod's functions have nowhere else to know it from.
static SERVICES: AtomicUsize = AtomicUsize::new(0);

fn resource((name, value): (String, Vec<u8>)) -> Resource {
    Resource {
        name,
        version: "1".to_owned(),
        value: Some(Any {
            type_url: ADDRESS.to_owned(),
            value,
        }),
        aliases: Vec::new(),
    }
}

/// The member's own record, which it asks for by its address.
fn member() -> Resource {
    let uid = "Kubernetes//Pod/default/member";
    let workload = Writer::default()
        .text(1, "member")
        .text(2, "default")
        .bytes(3, &[192, 0, 2, 1])
        .text(4, NETWORK)
        .number(5, 1)
        .text(7, "member")
        .text(20, uid);
    let address = Writer::default().bytes(1, &workload.0);
    let mut member = resource((uid.to_owned(), address.0));
    member.aliases = vec![format!("{NETWORK}/192.0.2.1")];
    member
}

/// A service with its Pods, as istiod sends it to who asks for it by name.
fn with_pods(index: usize) -> impl Iterator<Item = Resource> {
    let pods = index * PODS..(index + 1) * PODS;
    std::iter::once(service(index))
        .chain(pods.map(workload))
        .map(resource)
}

fn all() -> Vec<Resource> {
    let services = 0..SERVICES.load(Ordering::Relaxed);
    let services = services.flat_map(with_pods);
    services.chain([member()]).collect()
}

fn of(name: &str) -> Vec<Resource> {
    let own = member();
    if own.name == name || own.aliases.iter().any(|alias| alias == name) {
        return vec![own];
    }
    // `team-0/service-7.team-0.svc.cluster.local`
    let index = name.split_once("/service-");
    let index = index.and_then(|(_, rest)| rest.split('.').next()?.parse().ok());
    let services = 0..SERVICES.load(Ordering::Relaxed);
    let index = index.filter(|index| services.contains(index) && service(*index).0 == name);
    index.into_iter().flat_map(with_pods).collect()
}

/// A network on which nobody answers: who is dialled is found all the same.
fn nobody() -> Transport {
    Transport::new(
        |_: SocketAddr| async { Err::<BoxedIo, _>(io::ErrorKind::ConnectionRefused.into()) },
        |_| async { Err::<Box<dyn Incoming>, _>(io::ErrorKind::Unsupported.into()) },
    )
}

/// The bytes that a member of a mesh of so many services has, after it has dialled [`DIALLED`] of them, and how
/// many workloads it knows.
fn heap(services: usize, on_demand: bool) -> (usize, usize) {
    SERVICES.store(services, Ordering::Relaxed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let hour = Duration::from_secs(3600);
        let istiod = Istiod::start(24 * hour, SystemTime::now);
        istiod.discovery.make(Made { all, of });
        let dir = tempfile::tempdir().unwrap();
        let (root, token) = (dir.path().join("root"), dir.path().join("token"));
        std::fs::write(&root, istiod.root_pem()).unwrap();
        std::fs::write(&token, istiod.token("member", hour)).unwrap();
        let control_plane = istiod.control_plane();
        let control_plane = control_plane.root_cert_file(root).token_file(token);
        tokio::task::yield_now().await;

        let before = LIVE.load(Ordering::Relaxed);
        let xds = Xds::istiod(control_plane.clone()).addresses([[192, 0, 2, 1].into()]);
        let xds = match on_demand {
            true => xds.on_demand(),
            false => xds,
        };
        let mesh = Mesh::builder()
            .workload("default", "member", "member")
            .network(NETWORK)
            .transport(nobody())
            .outbound_policy(OutboundPolicy::RegistryOnly)
            .config(xds.rng(7))
            .identity(identity::Istiod::new(control_plane).rng(7))
            .rng(7)
            .build()
            .unwrap();
        mesh.ready().await.unwrap();
        // Those of the smallest mesh, which are any of a larger one.
        for index in 0..DIALLED {
            let to = format!("service-{index}.team-{}:80", index / 32);
            let error = mesh.connect(&to).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectFailed, "{to}: {error:?}");
        }
        // What is on its way, and what is forgotten soon.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let after = LIVE.load(Ordering::Relaxed);
        let dump = Request::get("/config_dump").body(()).unwrap();
        let dump = mesh.admin().oneshot(dump).await.unwrap().into_body();
        let dump = dump.collect().await.unwrap().to_bytes();
        let dump: Value = serde_json::from_slice(&dump).unwrap();
        (after - before, dump["workloads"].as_array().unwrap().len())
    })
}

#[test]
#[allow(clippy::print_stdout, reason = "the figures are worth seeing")]
fn a_member_costs_what_it_dials_however_large_the_mesh_is() {
    // What a process makes once.
    heap(DIALLED, true);
    let (alone, few) = heap(DIALLED, true);
    let (among, as_few) = heap(100_000 / PODS, true);
    let (whole, many) = heap(20_000 / PODS, false);
    assert_eq!((few, as_few), (DIALLED * PODS + 1, DIALLED * PODS + 1));
    assert_eq!(many, 20_000 + 1);
    let each = (whole - alone) / (many - few);
    println!(
        "bytes: {alone} of 320 Pods, {among} of 100 000; with 20 000 of them here {whole}, {each} for each"
    );
    assert!(
        among * 10 <= alone * 12,
        "{among} bytes among 100 000 Pods, {alone} without the others"
    );
    // It is what is not here that makes the difference, and it is not much: with its share of a service.
    assert!(whole > 3 * among, "{whole} bytes with 20 000 of them");
    assert!(each <= 600, "{each} bytes for each workload that is here");
}
