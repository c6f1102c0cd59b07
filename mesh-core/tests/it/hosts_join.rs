//! Hosts outside Kubernetes: from the files that istioctl writes to a mesh that serves. On real sockets, to
//! which `hosts` leads.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::{ErrorKind, Mesh};
use tokio::io::copy_bidirectional;
use tokio::net::TcpListener;
use tokio::time::sleep;

use crate::istiod::{self, Istiod};
use crate::istiod_place::{
    HOUR, Place, addresses, dump, pending, until, workload, workload_in, workload_of,
};
use crate::layers_logs::capture;

const NAME: &str = istiod::NAME;

/// An istiod on a port of this machine.
pub(crate) async fn istiod() -> (Arc<Istiod>, u16) {
    istiod_for(24 * HOUR).await
}

/// One whose certificates live that long.
pub(crate) async fn istiod_for(life: Duration) -> (Arc<Istiod>, u16) {
    let istiod = Istiod::start(life, SystemTime::now);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let behind = Arc::clone(&istiod);
    tokio::spawn(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            let mut far = behind.connect();
            tokio::spawn(async move { copy_bidirectional(&mut io, &mut far).await });
        }
    });
    (istiod, port)
}

pub(crate) fn write(dir: &Path, name: &str, content: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// What istioctl writes of the group `forum` for a host at `own`, whatever it does not know being empty.
fn variables(own: &str, network: &str) -> Vec<(&'static str, String)> {
    vec![
        ("CANONICAL_SERVICE", "forum".to_owned()),
        ("ISTIO_META_AUTO_REGISTER_GROUP", "forum".to_owned()),
        ("ISTIO_META_CLUSTER_ID", String::new()),
        ("ISTIO_META_DNS_CAPTURE", "true".to_owned()),
        ("ISTIO_META_MESH_ID", String::new()),
        ("ISTIO_META_NETWORK", network.to_owned()),
        ("ISTIO_META_WORKLOAD_NAME", "forum".to_owned()),
        ("ISTIO_SVC_IP", own.to_owned()),
        ("POD_NAMESPACE", "default".to_owned()),
        ("SERVICE_ACCOUNT", "forum-sa".to_owned()),
        ("TRUST_DOMAIN", String::new()),
    ]
}

fn cluster_env(own: &str, network: &str) -> String {
    let lines = variables(own, network);
    let lines = lines
        .iter()
        .map(|(key, value)| format!("{key}='{value}'\n"));
    lines.collect()
}

/// The name of the entry that istiod makes of it.
fn entry_name(own: &str, network: &str) -> String {
    match network {
        "" => format!("forum-{own}"),
        network => format!("forum-{own}-{network}"),
    }
}

/// Says who joined, and that it serves.
async fn serves(istiod: &Istiod, dir: &Path, own: &str, network: &str) {
    let mesh = Mesh::builder().bootstrap_dir(dir).unwrap().build().unwrap();
    let _server = mesh.listen(7000).await.unwrap();
    assert_eq!(mesh.workload().name(), entry_name(own, network));
    let expected = "spiffe://cluster.local/ns/default/sa/forum-sa";
    assert_eq!(mesh.identity().to_string(), expected);
    let tunnels = mesh.hbone_addrs().await;
    assert_eq!(tunnels, [SocketAddr::new(own.parse().unwrap(), 15008)]);
    assert!(mesh.readiness().is_ready());
    let names = istiod.sni();
    assert!(
        !names.is_empty() && names.iter().all(|name| name.as_deref() == Some(NAME)),
        "{names:?}"
    );
    let asked = istiod.discovery.asked();
    let node = asked.last().unwrap();
    assert!(node.by_token);
    let first = asked.iter().find(|one| one.stream == node.stream);
    let node = first.unwrap().ask.node.clone().unwrap();
    let metadata = node.metadata.unwrap().fields;
    let said = |key: &str| metadata.get(key).map(|value| value.string.as_str());
    assert_eq!(said("AUTO_REGISTER_GROUP"), Some("forum"));
    assert_eq!(said("INSTANCE_IPS"), Some(own));
    assert_eq!(said("NETWORK"), Some(network).filter(|it| !it.is_empty()));
    assert_eq!(said("SERVICE_ACCOUNT"), Some("forum-sa"));
    assert_eq!((said("CLUSTER_ID"), said("MESH_ID")), (None, None));
    let error = mesh.resolve("nobody").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownHost);
}

/// V002, V004, V005: five files, side by side and in the places of an installed istio-agent.
#[tokio::test]
async fn five_files_in_either_place_are_all_that_it_needs() {
    let (istiod, port) = istiod().await;
    let side_by_side = [
        "mesh.yaml",
        "cluster.env",
        "root-cert.pem",
        "istio-token",
        "hosts",
    ];
    let installed = [
        "etc/istio/config/mesh",
        "var/lib/istio/envoy/cluster.env",
        "etc/certs/root-cert.pem",
        "var/run/secrets/tokens/istio-token",
        "hosts",
    ];
    for (places, own, network) in [
        (side_by_side, [127, 95, 1, 1], "vm-net"),
        (installed, [127, 95, 1, 2], ""),
    ] {
        let text = std::net::IpAddr::from(own).to_string();
        let name = entry_name(&text, network);
        istiod.discovery.say(&addresses(
            vec![workload_of(&name, "forum-sa", own, "1")],
            &[],
        ));
        let dir = tempfile::tempdir().unwrap();
        let contents = [
            format!("defaultConfig:\n  discoveryAddress: {NAME}:{port}\n"),
            cluster_env(&text, network),
            istiod.root_pem(),
            istiod.token("forum-sa", HOUR),
            format!("127.0.0.1 {NAME}\n"),
        ];
        for (name, content) in places.iter().zip(&contents) {
            write(dir.path(), name, content);
        }
        serves(&istiod, dir.path(), &text, network).await;
    }
}

/// V003: namespace, service account and trust domain come from `proxyMetadata`. `hosts` is there as nobody resolves
/// the name here.
#[tokio::test]
async fn mesh_yaml_token_and_root_are_enough() {
    let (istiod, port) = istiod().await;
    let own = [127, 95, 1, 3];
    let text = std::net::IpAddr::from(own).to_string();
    let name = format!("forum-{text}-vm-net");
    istiod.discovery.say(&addresses(
        vec![workload_of(&name, "forum-sa", own, "1")],
        &[],
    ));
    let dir = tempfile::tempdir().unwrap();
    let mut mesh = format!("defaultConfig:\n  discoveryAddress: {NAME}:{port}\n  proxyMetadata:\n");
    for (key, value) in variables(&text, "vm-net") {
        mesh.push_str(&format!("    {key}: {value:?}\n"));
    }
    write(dir.path(), "mesh.yaml", &mesh);
    write(dir.path(), "root-cert.pem", &istiod.root_pem());
    write(dir.path(), "istio-token", &istiod.token("forum-sa", HOUR));
    write(dir.path(), "hosts", &format!("127.0.0.1 {NAME}\n"));
    serves(&istiod, dir.path(), &text, "vm-net").await;
}

/// A folder of a host at `own` whose token is of `identity`, as of a mesh that says this of its trust domain.
pub(crate) fn host_of(
    istiod: &Istiod,
    port: u16,
    own: &str,
    identity: &str,
    said: &str,
) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mesh = format!("defaultConfig:\n  discoveryAddress: {NAME}:{port}\n");
    let env =
        cluster_env(own, "vm-net").replace("TRUST_DOMAIN=''", &format!("TRUST_DOMAIN='{said}'"));
    let token = istiod.token_of(identity.parse().unwrap(), HOUR);
    write(dir.path(), "mesh.yaml", &mesh);
    write(dir.path(), "cluster.env", &env);
    write(dir.path(), "root-cert.pem", &istiod.root_pem());
    write(dir.path(), "istio-token", &token);
    write(dir.path(), "hosts", &format!("127.0.0.1 {NAME}\n"));
    dir
}

/// V004: where nobody says the trust domain it is the one of the certificate, on the wire, too.
#[tokio::test]
async fn a_trust_domain_that_nobody_says_is_that_of_the_certificate() {
    let (istiod, port) = istiod().await;
    let domain = "td.example";
    let identity = "spiffe://td.example/ns/default/sa/forum-sa";
    let (one, other) = ([127, 95, 1, 4], [127, 95, 1, 5]);
    let text = |own: [u8; 4]| std::net::IpAddr::from(own).to_string();
    let entry = |own| {
        let name = format!("forum-{}-vm-net", text(own));
        workload_in(domain, &name, "forum-sa", own, "1")
    };
    let both = vec![entry(one), entry(other)];
    istiod.discovery.say(&addresses(both, &[]));

    let files = host_of(&istiod, port, &text(one), identity, "");
    let state = tempfile::tempdir().unwrap();
    let join = |files: &Path| Mesh::builder().bootstrap_dir(files).unwrap();
    let server = join(files.path()).state_dir(state.path()).build().unwrap();
    let mut listener = server.listen(7000).await.unwrap();
    assert_eq!(server.identity().to_string(), identity);
    let told = dump(&server).await;
    assert_eq!(told["certificates"][0]["identity"], identity);

    let files = host_of(&istiod, port, &text(other), identity, "");
    let client = join(files.path()).build().unwrap();
    let at = format!("{}:7000", text(one));
    let (near, far) = tokio::join!(client.connect(&at), listener.accept());
    for stream in [near.unwrap(), far.unwrap()] {
        let peer = stream.context().identity().unwrap().to_string();
        assert_eq!(peer, identity);
    }

    // Of what is kept, too; nobody issues anything any more.
    drop((listener, server));
    let issued = istiod.calls().len();
    let files = host_of(&istiod, port, &text(one), identity, "");
    let again = join(files.path()).state_dir(state.path()).build().unwrap();
    again.ready().await.unwrap();
    assert_eq!(again.identity().to_string(), identity);
    assert_eq!(istiod.calls().len(), issued);
}

/// Hosts at these addresses, each with a record of the trust domain.
pub(crate) fn say_hosts(istiod: &Istiod, trust_domain: &str, version: &str, hosts: &[[u8; 4]]) {
    let entry = |own: &[u8; 4]| {
        let name = format!("forum-{}-vm-net", std::net::IpAddr::from(*own));
        workload_in(trust_domain, &name, "forum-sa", *own, version)
    };
    let entries = hosts.iter().map(entry).collect();
    istiod.discovery.say(&addresses(entries, &[]));
}

/// `cluster.env` of a host that registers with its group, or that has an entry of the same name.
fn env_of(own: &str, registers: bool) -> String {
    let env = cluster_env(own, "vm-net");
    if registers {
        return env;
    }
    let name = format!("WORKLOAD_NAME='forum-{own}-vm-net'");
    env.replace("AUTO_REGISTER_GROUP='forum'", "AUTO_REGISTER_GROUP=''")
        .replace("WORKLOAD_NAME='forum'", &name)
}

/// A reboot before there is a network: no control plane, no DNS that would know where it is, and no token any
/// more. The files do not say the host's address, and pin nothing.
async fn reboots(registers: bool, [first, second]: [u8; 2]) {
    let (istiod, port) = istiod().await;
    let identity = "spiffe://cluster.local/ns/default/sa/forum-sa";
    let text = |last: u8| format!("127.95.1.{last}");
    let entry = |last| {
        let name = format!("forum-{}-vm-net", text(last));
        workload_of(&name, "forum-sa", [127, 95, 1, last], "1")
    };
    let both = vec![entry(first), entry(second)];
    istiod.discovery.say(&addresses(both, &[]));
    let hosts = [first, second].map(|last| {
        let own = text(last);
        let files = host_of(&istiod, port, &own, identity, "");
        write(files.path(), "cluster.env", &env_of(&own, registers));
        (own, files, tempfile::tempdir().unwrap())
    });
    let join = || {
        hosts.each_ref().map(|(own, files, state)| {
            let builder = Mesh::builder().bootstrap_dir(files.path()).unwrap();
            let mesh = builder.state_dir(state.path()).build().unwrap();
            assert_eq!(mesh.workload().name(), format!("forum-{own}-vm-net"));
            mesh
        })
    };
    let greet = async |[server, client]: &[Mesh; 2]| {
        let mut listener = server.listen(7000).await.unwrap();
        let at = format!("{}:7000", hosts[0].0);
        let (near, far) = tokio::join!(client.connect(&at), listener.accept());
        for stream in [near.unwrap(), far.unwrap()] {
            let peer = stream.context().identity().unwrap().to_string();
            assert_eq!(peer, identity);
        }
    };
    let before = join();
    greet(&before).await;
    for (own, _, state) in &hosts {
        let file = format!("discovery/default_forum-{own}-vm-net.snapshot");
        let file = state.path().join(file);
        until("it is kept", || file.exists()).await;
    }
    for mesh in before {
        mesh.shutdown(Duration::ZERO).await;
    }

    let (calls, streams) = (istiod.calls().len(), istiod.discovery.streams());
    for (own, files, _) in &hosts {
        let said = format!("ISTIO_SVC_IP='{own}'");
        let env = env_of(own, registers).replace(&said, "ISTIO_SVC_IP=''");
        assert!(env.contains("ISTIO_SVC_IP=''"));
        write(files.path(), "cluster.env", &env);
        write(files.path(), "hosts", "");
        fs::remove_file(files.path().join("istio-token")).unwrap();
    }
    let after = join();
    greet(&after).await;
    for mesh in &after {
        assert!(mesh.readiness().is_ready());
        let reason = dump(mesh).await["stale"]["reason"].to_string();
        assert!(reason.contains("kept by the last process"), "{reason}");
    }
    let now = (istiod.calls().len(), istiod.discovery.streams());
    assert_eq!(now, (calls, streams), "nothing leads there");
}

#[tokio::test]
async fn a_registered_host_reboots_without_token_network_or_control_plane_and_serves() {
    reboots(true, [9, 10]).await;
}

#[tokio::test]
async fn a_host_with_an_entry_reboots_without_token_network_or_control_plane_and_serves() {
    reboots(false, [11, 12]).await;
}

/// Written without `--autoregister`: the control plane has nothing against it, and makes no entry.
#[tokio::test]
async fn a_host_that_waits_for_an_entry_that_nobody_makes_says_so_at_once() {
    let (lines, _guard) = capture("mesh::config=info");
    let (istiod, port) = istiod().await;
    let own = "127.95.1.40";
    istiod.discovery.say(&addresses(Vec::new(), &[]));
    let identity = "spiffe://cluster.local/ns/default/sa/forum-sa";
    let files = host_of(&istiod, port, own, identity, "");
    write(files.path(), "cluster.env", &env_of(own, false));
    let builder = Mesh::builder().bootstrap_dir(files.path()).unwrap();
    let mesh = builder.build().unwrap();
    let listens = tokio::spawn(async move { mesh.listen(7000).await.map(drop) });
    // In real time.
    crate::mesh_world::until("it is told", || lines.text().contains("no record")).await;
    lines.has(&[
        "INFO",
        "no record of this workload: waiting for it",
        "workload=default/forum-127.95.1.40-vm-net",
        "a WorkloadEntry of this name",
        "cluster.env has no ISTIO_META_AUTO_REGISTER_GROUP, which --autoregister writes",
    ]);
    listens.abort();
}

const DAY: Duration = HOUR.saturating_mul(24);

/// Writes the head of what is kept of `default_<name>` by somebody who speaks so, so long ago.
fn keep(path: &Path, name: &str, how: &str, ago: Duration) {
    let whose = format!("{}, {how}", name.replacen('_', "/", 1));
    let numbers = [1, u32::try_from(whose.len()).unwrap()].map(u32::to_be_bytes);
    let head = [
        b"mesh discovery snapshot\n",
        numbers.as_flattened(),
        whose.as_bytes(),
    ];
    fs::write(path, head.concat()).unwrap();
    age(path, ago);
}

fn age(path: &Path, ago: Duration) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - ago).unwrap();
}

/// The name has the address: what was kept by one that the host had is of no use any more.
#[tokio::test]
async fn what_was_kept_by_an_address_that_the_host_had_goes_when_there_is_another() {
    let (istiod, port) = istiod().await;
    let own = [127, 95, 1, 17];
    say_hosts(&istiod, "cluster.local", "1", &[own]);
    let state = tempfile::tempdir().unwrap();
    let kept = |name: &str| state.path().join(format!("discovery/{name}.snapshot"));
    // The documentation's addresses are no host's. All of 127.0.0.0/8 is this one's.
    let former = [
        "default_forum-192.0.2.7-vm-net",
        "default_forum-2001-db8--c8-vm-net",
    ];
    let others = [
        "default_forum-127.95.1.18-vm-net",
        "default_another-192.0.2.7-vm-net",
        "other_forum-192.0.2.7-vm-net",
        "default_forum-192.0.2.7",
    ];
    fs::create_dir(state.path().join("discovery")).unwrap();
    let at = format!("whole, at {NAME}:{port}");
    for name in former.iter().chain(&others) {
        keep(&kept(name), name, &at, DAY);
    }
    // These may be somebody's.
    let foreign = [20, 21, 22, 23].map(|host| format!("default_forum-192.0.2.{host}-vm-net"));
    let [recent, by_name, elsewhere, unknown] = &foreign;
    keep(&kept(recent), recent, &at, DAY - HOUR);
    keep(
        &kept(by_name),
        by_name,
        &at.replace("whole", "on demand"),
        DAY,
    );
    keep(&kept(elsewhere), elsewhere, "whole, at another:15012", DAY);
    fs::write(kept(unknown), "").unwrap();
    age(&kept(unknown), DAY);
    let identity = "spiffe://cluster.local/ns/default/sa/forum-sa";
    let files = host_of(&istiod, port, "127.95.1.17", identity, "");
    let builder = Mesh::builder().bootstrap_dir(files.path()).unwrap();
    let mesh = builder.state_dir(state.path()).build().unwrap();
    mesh.ready().await.unwrap();
    until("what was kept before is gone", || {
        former.iter().all(|name| !kept(name).exists())
    })
    .await;
    assert!(
        kept("default_forum-127.95.1.17-vm-net").exists(),
        "not before"
    );
    for name in others.into_iter().chain(foreign.iter().map(|name| &**name)) {
        assert!(kept(name).exists(), "{name}");
    }
}

/// Behind NAT nobody can tell what was kept by which address; a disk is full at some time.
#[tokio::test]
async fn of_what_was_kept_the_oldest_goes_when_there_is_much() {
    const MOST: usize = 64;
    let (istiod, port) = istiod().await;
    say_hosts(&istiod, "cluster.local", "1", &[[127, 95, 1, 28]]);
    let state = tempfile::tempdir().unwrap();
    let folder = state.path().join("discovery");
    fs::create_dir(&folder).unwrap();
    let kept = |name: &str| folder.join(format!("{name}.snapshot"));
    // Of a young one nobody says that it is a former one.
    let others: Vec<_> = (0..MOST + 6)
        .map(|n| kept(&format!("default_forum-192.0.2.{n}-vm-net")))
        .collect();
    for (n, file) in (0..).zip(&others) {
        fs::write(file, "").unwrap();
        age(file, HOUR + Duration::from_secs(n));
    }
    let foreign = folder.join("of-somebody");
    fs::write(&foreign, "").unwrap();
    age(&foreign, DAY * 100);
    let identity = "spiffe://cluster.local/ns/default/sa/forum-sa";
    let files = host_of(&istiod, port, "127.95.1.28", identity, "");
    let builder = Mesh::builder().bootstrap_dir(files.path()).unwrap();
    let mesh = builder.state_dir(state.path()).build().unwrap();
    mesh.ready().await.unwrap();
    let own = kept("default_forum-127.95.1.28-vm-net");
    until("the oldest are gone", || {
        own.exists() && others[MOST - 1..].iter().all(|file| !file.exists())
    })
    .await;
    assert!(others[..MOST - 1].iter().all(|file| file.exists()));
    assert!(foreign.exists());
}

/// V004, the other way round: what somebody says is compared, and so is all of it but the trust domain.
#[tokio::test]
async fn a_trust_domain_that_somebody_says_is_the_only_one() {
    let (istiod, port) = istiod().await;
    let elsewhere = "spiffe://td.example/ns/default/sa/forum-sa";
    let another = "spiffe://td.example/ns/default/sa/another";
    for (at, identity, said, by_code) in [
        ("127.95.1.6", elsewhere, "cluster.local", None),
        ("127.95.1.7", elsewhere, "", Some("cluster.local")),
        ("127.95.1.8", another, "", None),
    ] {
        let files = host_of(&istiod, port, at, identity, said);
        let builder = Mesh::builder().bootstrap_dir(files.path()).unwrap();
        let builder = builder.start_timeout(Duration::from_secs(5));
        let mesh = match by_code {
            Some(said) => builder.trust_domain(said),
            None => builder,
        };
        let mesh = mesh.build().unwrap();
        let error = mesh.ready().await.unwrap_err();
        let told = error.to_string() + &pending(&mesh);
        assert!(
            told.contains(identity) && told.contains("cluster.local"),
            "{told}"
        );
        assert!(mesh.certificate().is_none());
    }
}

/// V010: both have expired. It says so, tries now and then, and a new token is all that it takes.
#[tokio::test(start_paused = true)]
async fn with_token_and_certificate_expired_a_new_token_heals_without_a_restart() {
    let place = Place::new();
    place.token("client", HOUR);
    let client = place.mesh("client", "client", place.xds("client", [10, 0, 0, 1]));
    client.ready().await.unwrap();
    place.kill();
    // A certificate lives a day.
    sleep(48 * HOUR).await;
    place.revive();
    until("it says so", || {
        let told = pending(&client);
        told.contains("certificate of ") && told.contains("it has expired")
    })
    .await;
    sleep(HOUR).await;
    let calls = place.istiod.calls().len();
    sleep(HOUR).await;
    let in_an_hour = place.istiod.calls().len() - calls;
    assert!(
        (1..200).contains(&in_an_hour),
        "{in_an_hour} attempts in an hour"
    );
    let streams = place.istiod.discovery.streams();
    let reason = dump(&client).await["stale"]["reason"].to_string();
    assert!(reason.contains("authentication failure"), "{reason}");

    place.token("client", HOUR);
    until("a stream", || place.istiod.discovery.streams() > streams).await;
    until("it is ready", || client.readiness().is_ready()).await;
    assert_eq!(dump(&client).await.get("stale"), None);
}

/// V021: stock istiod does not register a host again before its stream is another.
#[tokio::test(start_paused = true)]
async fn a_host_whose_entry_is_deleted_registers_again() {
    let place = Place::new();
    let join = |group: bool| {
        place.token("client", 100 * HOUR);
        let mut xds = place.xds("client", [10, 0, 0, 1]);
        if group {
            xds = xds.metadata("AUTO_REGISTER_GROUP", "client");
        }
        place.mesh("client", "client", xds)
    };
    let host = join(true);
    host.ready().await.unwrap();
    place
        .istiod
        .discovery
        .say(&addresses(Vec::new(), &["client"]));
    until("another stream", || place.istiod.discovery.streams() == 2).await;
    let entry = vec![workload("client", [10, 0, 0, 1], "2")];
    place.say(&addresses(entry, &[])).await;
    sleep(HOUR).await;
    assert_eq!(
        place.istiod.discovery.streams(),
        2,
        "once for each time that it goes"
    );
    drop(host);

    // A Pod that goes is one that ends.
    let pod = join(false);
    pod.ready().await.unwrap();
    assert_eq!(place.istiod.discovery.streams(), 3);
    place.say(&addresses(Vec::new(), &["client"])).await;
    sleep(HOUR).await;
    assert_eq!(place.istiod.discovery.streams(), 3);
}
