//! Bounds that no other test sets: each is the builder's, and holds.

use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Wake};
use std::thread::Thread;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use mesh_core::config::File;
use mesh_core::hbone::config::Config;
use mesh_core::hbone::tls::{AdmissionLimits, Bundle, Credentials, Options, Provider};
use mesh_core::hbone::{client, tls};
use mesh_core::identity::DevCa;
use mesh_core::xds::file::Settings as FileSettings;
use mesh_core::xds::model::{GatewayAddress, GatewayDestination};
use mesh_core::{ErrorKind, Mesh, Node};
use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::mesh_requests::{OK, by_hand};
use crate::mesh_world::{PORT, World, connect_to, echo, identity, ping, until};

/// A plaintext connection that is served.
async fn plaintext(to: SocketAddr) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(b"ping").await?;
    stream.read_exact(&mut [0; 4]).await?;
    Ok(stream)
}

/// Waits until there is room again.
async fn served(to: SocketAddr) -> TcpStream {
    let tries = async {
        loop {
            match plaintext(to).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    };
    let served = tokio::time::timeout(Duration::from_secs(10), tries).await;
    served.expect("the place becomes free")
}

#[tokio::test]
async fn plaintext_connections_leave_the_rest_to_tunnels() {
    let world = World::with(169, |node| node.max_plaintext_connections(2));
    let (client, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let target = SocketAddr::new(world.ip(2), PORT);
    let first = plaintext(target).await.unwrap();
    let _second = plaintext(target).await.unwrap();
    plaintext(target).await.unwrap_err();
    let mut tunnel = client.connect(format!("server:{PORT}")).await.unwrap();
    ping(&mut tunnel).await.unwrap();
    drop(first);
    served(target).await;
}

#[tokio::test]
async fn the_workloads_of_a_node_share_its_sockets() {
    let world = World::with(170, |node| node.max_node_connections(1));
    let (client, server) = world.pair().await;
    for mesh in [&client, &server] {
        echo(mesh.listen(PORT).await.unwrap());
    }
    let [one, other] = [1, 2].map(|host| SocketAddr::new(world.ip(host), PORT));
    let open = plaintext(one).await.unwrap();
    plaintext(other).await.unwrap_err();
    drop(open);
    served(other).await;
}

async fn request(client: &Mesh) {
    let request = Request::get(format!("http://server:{PORT}/"));
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let response = client.http_client().request(request).await.unwrap();
    response.into_body().collect().await.unwrap();
}

#[tokio::test]
async fn an_http_connection_that_is_idle_for_too_long_is_not_used_again() {
    let world = World::with(171, |node| node.http_idle_timeout(Duration::from_millis(1)));
    let (client, server) = world.pair().await;
    let accepted = by_hand(server.listen(PORT).await.unwrap(), OK, usize::MAX);
    for count in 1..=3 {
        request(&client).await;
        assert_eq!(accepted.load(Ordering::Relaxed), count);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn no_more_idle_http_connections_of_an_endpoint_are_kept_than_set() {
    for (net, kept, connections) in [(172, 1, 3), (173, 2, 2)] {
        let world = World::with(net, |node| node.idle_connections_per_endpoint(kept));
        let (client, server) = world.pair().await;
        let accepted = by_hand(server.listen(PORT).await.unwrap(), OK, usize::MAX);
        for open in [2, connections] {
            tokio::join!(request(&client), request(&client));
            until("all are there", || accepted.load(Ordering::Relaxed) == open).await;
            // The task of a connection says when it can take another request.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A body that begins and stalls, in HTTP/1.1.
const STALLS: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegins";

#[tokio::test]
async fn a_response_that_stalls_for_too_long_fails_and_its_connection_is_not_used_again() {
    let limit = Duration::from_millis(100);
    let world = World::with(174, |node| node.response_idle_timeout(Some(limit)));
    let (client, server) = world.pair().await;
    let accepted = by_hand(server.listen(PORT).await.unwrap(), STALLS, usize::MAX);
    for count in 1..=2 {
        let request = Request::get(format!("http://server:{PORT}/"));
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let response = client.http_client().request(request).await.unwrap();
        let error = response.into_body().collect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RequestTimeout);
        assert_eq!(error.detail(), Some("nothing of the response for 100ms"));
        assert!(!error.is_retry_safe());
        assert_eq!(accepted.load(Ordering::Relaxed), count);
    }
}

/// Polls where no runtime is.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[tokio::test]
async fn a_response_that_stalls_fails_wherever_it_is_read() {
    let limit = Duration::from_millis(100);
    let world = World::with(191, |node| node.response_idle_timeout(Some(limit)));
    let (client, server) = world.pair().await;
    by_hand(server.listen(PORT).await.unwrap(), STALLS, usize::MAX);
    for with_runtime in [true, false] {
        let request = Request::get(format!("http://server:{PORT}/"));
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let response = client.http_client().request(request).await.unwrap();
        let reads = std::thread::spawn(move || {
            // One that keeps no time.
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            let body = response.into_body().collect();
            match with_runtime {
                true => runtime.unwrap().block_on(body),
                false => block_on(body),
            }
        });
        until("it is given up", || reads.is_finished()).await;
        let error = reads.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RequestTimeout);
    }
}

#[tokio::test]
async fn a_stream_of_grpc_may_be_silent_and_so_may_a_body_that_nobody_reads() {
    let limit = Duration::from_millis(50);
    let world = World::with(175, |node| node.response_idle_timeout(Some(limit)));
    let (client, server) = world.pair().await;
    by_hand(server.listen(PORT).await.unwrap(), STALLS, usize::MAX);
    let request = || Request::get(format!("http://server:{PORT}/"));
    let grpc = request().header("content-type", "application/grpc+proto");
    let grpc = grpc.body(Empty::<Bytes>::new()).unwrap();
    let mut silent = client
        .http_client()
        .request(grpc)
        .await
        .unwrap()
        .into_body();
    silent.frame().await.unwrap().unwrap();
    let waits = tokio::time::timeout(4 * limit, silent.frame());
    assert!(waits.await.is_err(), "it is waited for");

    let plain = request().body(Empty::<Bytes>::new()).unwrap();
    let mut unread = client
        .http_client()
        .request(plain)
        .await
        .unwrap()
        .into_body();
    tokio::time::sleep(4 * limit).await;
    let first = unread.frame().await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "begins");
}

/// Who says nothing on the port of tunnels waits for its handshake.
#[tokio::test]
async fn connections_without_a_handshake_are_as_many_as_set() {
    let limits = AdmissionLimits::default().waiting(1);
    let world = World::with(178, |node| node.admission(limits));
    let (client, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let tunnels = SocketAddr::new(world.ip(2), 15008);
    let mut oldest = TcpStream::connect(tunnels).await.unwrap();
    let mut newest = TcpStream::connect(tunnels).await.unwrap();
    // The first has to give way to the second; closed or reset, it is over.
    let mut byte = [0; 1];
    let over = tokio::time::timeout(Duration::from_secs(10), oldest.read(&mut byte)).await;
    assert!(!matches!(over.expect("it gives way"), Ok(1..)));
    let waits = tokio::time::timeout(Duration::from_millis(50), newest.read(&mut byte)).await;
    assert!(waits.is_err(), "the second waits on");
    // And to who has something to say.
    ping(&mut client.connect(format!("server:{PORT}")).await.unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn tunnels_come_to_the_port_that_is_set() {
    let world = World::with(194, |node| node.hbone_port(25018));
    let (_, server) = world.pair().await;
    let _listener = server.listen(PORT).await.unwrap();
    TcpStream::connect((world.ip(2), 25018)).await.unwrap();
    TcpStream::connect((world.ip(2), 15008)).await.unwrap_err();
}

/// What a destination goes through may be on its way.
#[tokio::test(start_paused = true)]
async fn what_the_configuration_still_owes_is_waited_for_as_long_as_set() {
    let limit = Duration::from_secs(7);
    let world = World::with(195, |node| node.policy_wait(limit));
    let (client, _) = world.pair().await;
    client.ready().await.unwrap();
    let waypoint = GatewayDestination::Address {
        network: "".into(),
        ip: world.ip(9),
    };
    let service = world.service("server", 2);
    let service = service.with_waypoint(GatewayAddress::new(waypoint, 15008));
    world.control.set(vec![service.into()]).await;
    let began = tokio::time::Instant::now();
    let error = client.connect(format!("server:{PORT}")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownWaypoint);
    assert_eq!(began.elapsed(), limit);
}

#[tokio::test]
async fn workloads_are_of_the_trust_domain_that_is_set() {
    let ca = DevCa::ephemeral("td.example");
    let world = World::with_ca(188, ca, |node| node.trust_domain("td.example"));
    let server = world.mesh("server");
    let expected = "spiffe://td.example/ns/default/sa/server";
    assert_eq!(server.identity().to_string(), expected);
    until("it is certified", || server.certificate().is_some()).await;
}

/// A certificate of another trust domain, by the same root.
fn elsewhere(folder: &Path) -> Bundle {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let root = read("root-cert.pem");
    let authority = KeyPair::from_pem(&read("root-key.pem")).unwrap();
    let authority = Issuer::from_ca_cert_pem(&root, authority).unwrap();
    let mut params = CertificateParams::default();
    let uri = "spiffe://old.example/ns/default/sa/client";
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &authority).unwrap().pem();
    let (leaf, key, root) = (leaf.as_bytes(), key.serialize_pem(), root.as_bytes());
    Bundle::from_pem(leaf, key.as_bytes(), root, b"").unwrap()
}

#[tokio::test]
async fn clients_of_another_trust_domain_are_taken_where_it_is_an_alias() {
    let folder = tempfile::tempdir().unwrap();
    let ca = DevCa::in_dir(folder.path(), "cluster.local");
    for (net, alias) in [(189, None), (190, Some("old.example"))] {
        let world = World::with_ca(net, ca.clone(), |node| node.trust_domain_aliases(alias));
        let (_, server) = world.pair().await;
        echo(server.listen(PORT).await.unwrap());
        let provider = Provider::by_feature().unwrap();
        let bundle = elsewhere(folder.path());
        let credentials = Credentials::new(provider, bundle, Options::default()).unwrap();
        let io = TcpStream::connect((world.ip(2), 15008)).await.unwrap();
        let outcome = async {
            let stream = tls::connect(io, &credentials, &[identity("server")]).await?;
            let (connection, sender) = client::handshake(stream, &Config::default()).await?;
            tokio::spawn(connection);
            let to = connect_to(SocketAddr::new(world.ip(2), PORT));
            sender.connect(to).await.map(drop)
        };
        let outcome = outcome.await;
        assert_eq!(outcome.is_ok(), alias.is_some(), "{outcome:?}");
    }
}

const PODS: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {istio.io/dataplane-mode: ambient}}\n\
    ---\napiVersion: v1\nkind: Service\nmetadata: {name: server}\n\
    spec: {clusterIP: 240.179.0.9, selector: {app: server}, ports: [{name: tcp, port: 9080}]}\n\
    ---\napiVersion: v1\nkind: Pod\nmetadata: {name: server, labels: {app: server}}\nspec: {serviceAccountName: server}\nstatus: {podIP: 127.179.0.2}\n\
    ---\napiVersion: v1\nkind: Pod\nmetadata: {name: client}\nspec: {serviceAccountName: client}\nstatus: {podIP: 127.179.0.1}\n\
    ---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: none, namespace: mesh-root}\nspec: {action: DENY, rules: [{}]}\n";

/// What the files say of the mesh themselves, whatever the builder does.
#[tokio::test]
async fn settings_of_the_files_win_over_the_builders() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mesh.yaml");
    std::fs::write(&file, PODS.replace("179", "182")).unwrap();
    for (own, builders, denied) in [
        ("mesh-root", "istio-system", true),
        ("istio-system", "mesh-root", false),
    ] {
        let settings = FileSettings::new().with_root_namespace(own);
        let node = Node::builder()
            .root_namespace(builders)
            .config(File::watch(&file).settings(settings))
            .identity(DevCa::ephemeral("cluster.local"))
            .build_node()
            .unwrap();
        let [client, server] =
            ["client", "server"].map(|name| node.workload("default", name, name).unwrap());
        echo(server.listen(PORT).await.unwrap());
        let connected = client.connect(format!("127.182.0.2:{PORT}")).await;
        assert_eq!(
            connected.as_ref().is_err_and(mesh_core::Error::is_denied),
            denied,
            "{own} before {builders}: {connected:?}"
        );
        server.shutdown(Duration::ZERO).await;
    }
}

/// A policy in the root namespace is everybody's, and services have the cluster's domain.
#[tokio::test]
async fn files_are_read_with_the_builders_root_namespace_and_domain() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mesh.yaml");
    std::fs::write(&file, PODS).unwrap();
    for (root, denied) in [("istio-system", false), ("mesh-root", true)] {
        let node = Node::builder()
            .root_namespace(root)
            .cluster_domain("mesh.example")
            .config(File::watch(&file))
            .identity(DevCa::ephemeral("cluster.local"))
            .build_node()
            .unwrap();
        let [client, server] =
            ["client", "server"].map(|name| node.workload("default", name, name).unwrap());
        echo(server.listen(PORT).await.unwrap());
        let virtual_address = [std::net::IpAddr::from([240, 179, 0, 9])];
        for name in ["server", "server.default.svc.mesh.example"] {
            assert_eq!(client.resolve(name).await.unwrap(), virtual_address);
        }
        let elsewhere = client.resolve("server.default.svc.cluster.local").await;
        assert_eq!(elsewhere.unwrap_err().kind(), ErrorKind::UnknownHost);
        let connected = client.connect("server.default.svc.mesh.example:9080").await;
        assert_eq!(
            connected.as_ref().is_err_and(mesh_core::Error::is_denied),
            denied,
            "{root}: {connected:?}"
        );
        server.shutdown(Duration::ZERO).await;
    }
}

/// Who starts with files that have long been there does not wait for a second look: a command that is run often.
#[tokio::test(start_paused = true)]
async fn files_that_have_long_been_there_are_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mesh.yaml");
    std::fs::write(&file, PODS.replace("179", "183")).unwrap();
    let started = async || {
        let node = Node::builder()
            .config(File::watch(&file))
            .identity(DevCa::ephemeral("cluster.local"))
            .build_node()
            .unwrap();
        let client = node.workload("default", "client", "client").unwrap();
        let start = tokio::time::Instant::now();
        client.ready().await.unwrap();
        start.elapsed()
    };
    // The time is the runtime's: it stands unless somebody sleeps.
    assert!(started().await >= Duration::from_millis(500));
    let opened = std::fs::File::open(&file).unwrap();
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
    opened.set_modified(long_ago).unwrap();
    assert!(started().await < Duration::from_millis(500));
}

/// And once more soon after: a change counts once two looks saw the same.
#[tokio::test(start_paused = true)]
async fn files_are_looked_at_as_often_as_is_set() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mesh.yaml");
    let hour = Duration::from_secs(3600);
    let published = async |every: Option<Duration>, after: Duration| {
        let _ = std::fs::remove_file(&file);
        let mut source = File::watch(&file);
        if let Some(every) = every {
            source = source.every(every);
        }
        let node = Node::builder()
            .config(source)
            .identity(DevCa::ephemeral("cluster.local"))
            .build_node()
            .unwrap();
        let client = node.workload("default", "client", "client").unwrap();
        // It may come after the first look.
        tokio::time::sleep(Duration::from_secs(1)).await;
        std::fs::write(&file, PODS).unwrap();
        client.ready().await.unwrap();
        std::fs::write(
            &file,
            PODS.replace("metadata: {name: server}\n", "metadata: {name: other}\n"),
        )
        .unwrap();
        tokio::time::sleep(after).await;
        client.resolve("other").await.is_ok()
    };
    assert!(published(None, Duration::from_secs(10)).await);
    assert!(!published(Some(hour), Duration::from_secs(10)).await);
    assert!(published(Some(hour), hour + Duration::from_secs(1)).await);
}
