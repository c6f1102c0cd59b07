//! What a user reads whose `main` returns the error of the likeliest mistakes: `Error: {error:?}`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use http::Version;
use mesh_core::authz::policy::Action;
use mesh_core::config::File;
use mesh_core::identity::{DevCa, Files};
use mesh_core::xds::model::TunnelProtocol;
use mesh_core::{Error, Mesh};
use tokio::io::AsyncReadExt;

use crate::handler::Handler;
use crate::layers_logs::capture;
use crate::mesh_world::{PORT, World, caller, policy};

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: reviews-v1}\n\
                   spec: {serviceAccountName: reviews}\nstatus: {podIP: 127.91.0.1}\n";

/// What is printed, with the folder's name taken out.
fn printed(folder: &Path, error: &Error) -> String {
    let text = format!("Error: {error:?}");
    assert_eq!(text.lines().count(), 1, "{text}");
    text.replace(&folder.display().to_string(), "DIR")
}

fn mesh(folder: &Path, name: &str) -> Mesh {
    Mesh::builder()
        .workload("default", name, "reviews")
        .start_timeout(Duration::from_secs(1))
        .config(File::watch(folder.join("mesh.yaml")))
        .identity(DevCa::ephemeral("cluster.local"))
        .build()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let error = mesh(folder.path(), "reviews-v1")
        .listen(PORT)
        .await
        .unwrap_err();
    assert_eq!(
        printed(folder.path(), &error),
        "Error: not ready in time: not ready, pending: configuration (no configuration yet), \
         configuration files (DIR/mesh.yaml: No such file or directory (os error 2))"
    );
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_none() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("mesh.yaml"),
        POD.replace("127.91.0.1", "localhost"),
    )
    .unwrap();
    let error = mesh(folder.path(), "reviews-v1")
        .listen(PORT)
        .await
        .unwrap_err();
    assert_eq!(
        printed(folder.path(), &error),
        "Error: no record of this workload: default/reviews-v1; the configuration has none in this \
         namespace whose name is like it; DIR/mesh.yaml:5: status.podIP: expected an IP address, \
         found \"localhost\""
    );
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_misspelt() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("mesh.yaml"), POD).unwrap();
    let error = mesh(folder.path(), "review-v1")
        .listen(PORT)
        .await
        .unwrap_err();
    assert_eq!(
        printed(folder.path(), &error),
        "Error: no record of this workload: default/review-v1; near it: reviews-v1"
    );
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name| folder.path().join(name);
    fs::write(at("mesh.yaml"), POD).unwrap();
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        fs::write(at(name), "").unwrap();
    }
    let mesh = Mesh::builder()
        .workload("default", "reviews-v1", "reviews")
        .config(File::watch(at("mesh.yaml")))
        .identity(Files::new(at("tls.crt"), at("tls.key"), at("ca.crt")))
        .build()
        .unwrap();
    let error = mesh.listen(PORT).await.unwrap_err();
    assert_eq!(
        printed(folder.path(), &error),
        "Error: no usable certificate: certificate of spiffe://cluster.local/ns/default/sa/reviews: \
         invalid certificate or key: certificate chain DIR/tls.crt, private key DIR/tls.key, \
         trust roots DIR/ca.crt: invalid certificate bundle: private key: no items found"
    );
}

/// Nothing else tells its caller that it was in plaintext.
#[tokio::test]
async fn a_label_that_is_missing() {
    let world = World::new(42);
    let (client, server) = world.pair().await;
    let plaintext = world
        .workload("server", 2)
        .with_protocol(TunnelProtocol::None);
    let callers = policy("callers", Action::Allow, vec![caller("client")]);
    world.control.set(vec![plaintext.into(), callers]).await;
    let http = server.listen_http(PORT).await.unwrap();
    tokio::spawn(http.serve(Handler::default()));
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let request = http::Request::get(format!("http://server:{PORT}/")).version(version);
        let request = request.body(String::new()).unwrap();
        let error = client.http_client().request(request).await.unwrap_err();
        let text = error.to_string();
        let expected = "in plaintext to 127.42.0.2:9080, whose record is not in the mesh";
        assert!(text.ends_with(expected), "{text}");
    }
}

#[tokio::test]
async fn a_layer_that_is_missing() {
    let world = World::new(168);
    let (client, server) = world.pair().await;
    let mut http = server.listen_http(PORT).await.unwrap();
    tokio::spawn(async move {
        while let Ok(mut stream) = http.listener.accept().await {
            let _ = stream.read(&mut [0; 1]).await;
        }
    });
    let request = http::Request::get(format!("http://server:{PORT}/"));
    let request = request.body(String::new()).unwrap();
    let error = client.http_client().request(request).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("127.168.0.2:15008"), "{text}");
}

#[tokio::test]
async fn a_namespace_that_is_misspelt() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("mesh.yaml"), POD).unwrap();
    let mesh = Mesh::builder()
        .workload("defalt", "reviews-v1", "reviews")
        .config(File::watch(folder.path().join("mesh.yaml")))
        .identity(DevCa::ephemeral("cluster.local"))
        .build()
        .unwrap();
    let error = mesh.listen(PORT).await.unwrap_err();
    assert_eq!(
        printed(folder.path(), &error),
        "Error: no record of this workload: defalt/reviews-v1; near it: default/reviews-v1"
    );
}

/// As a manifest that was copied from a cluster.
#[tokio::test]
async fn an_address_that_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let pod = POD.replace("status: {podIP: 127.91.0.1}\n", "");
    fs::write(folder.path().join("mesh.yaml"), &pod).unwrap();
    let error = mesh(folder.path(), "reviews-v1")
        .listen(PORT)
        .await
        .unwrap_err();
    let text = printed(folder.path(), &error);
    let expected = "Pod default/reviews-v1 has no address in podIPs or podIP";
    assert!(
        text.contains("DIR/mesh.yaml:") && text.contains(expected),
        "{text}"
    );
}

#[tokio::test]
async fn a_port_that_is_taken() {
    let world = World::new(166);
    let (_, server) = world.pair().await;
    let _taken = tokio::net::TcpListener::bind((world.ip(2), PORT))
        .await
        .unwrap();
    let error = server.listen(PORT).await.unwrap_err();
    assert_eq!(
        printed(Path::new("/nowhere"), &error),
        "Error: binding failed: 127.166.0.2:9080 (`Builder::bind` sets another address): \
         Address already in use (os error 98)"
    );
    let client = world.mesh("client");
    let _taken = tokio::net::TcpListener::bind((world.ip(1), 15008))
        .await
        .unwrap();
    let error = client.listen(PORT).await.unwrap_err();
    assert_eq!(
        printed(Path::new("/nowhere"), &error),
        "Error: binding failed: 127.166.0.1:15008 (tunnels come there; `Builder::hbone_port` sets another port, \
         `Builder::bind` another address): Address already in use (os error 98)"
    );
}

/// The peer refuses somebody of whom nobody has heard. Who has is the one who gave the builder that name.
#[tokio::test]
async fn a_service_account_that_is_misspelt() {
    let (lines, _guard) = capture("mesh=warn");
    let world = World::new(224);
    let (_, server) = world.pair().await;
    let _listener = server.listen(PORT).await.unwrap();
    let allow = policy("allow", Action::Allow, vec![caller("client")]);
    world.control.set(vec![allow]).await;
    let client = world.node.workload("default", "client", "cleint").unwrap();
    let error = client.connect(format!("server:{PORT}")).await.unwrap_err();
    let text = printed(Path::new("/nowhere"), &error);
    let says = "the certificate of default/client proves spiffe://cluster.local/ns/default/sa/cleint, its record in the \
                mesh is of spiffe://cluster.local/ns/default/sa/client: give the builder the record's service account";
    assert!(
        text.starts_with("Error: tunnel denied by policy with 401 ") && text.contains(says),
        "{text}"
    );
    lines.has(&["WARN", "sa/cleint", "sa/client"]);
    let told = lines.text().matches("policies see the former").count();
    assert_eq!(told, 1, "{}", lines.text());
    client.connect(format!("server:{PORT}")).await.unwrap_err();
    let again = lines.text().matches("policies see the former").count();
    assert_eq!(again, 1, "once");
    let another = world.workload("client", 1).with_service_account("another");
    world.control.set(vec![another.into()]).await;
    client.connect(format!("server:{PORT}")).await.unwrap_err();
    lines.has(&["WARN", "sa/cleint", "sa/another"]);

    // A slip that was mended and is made again is told again.
    let told = || lines.text().matches("policies see the former").count();
    let before = told();
    let right = world.workload("client", 1).with_service_account("cleint");
    world.control.set(vec![right.into()]).await;
    client.connect(format!("server:{PORT}")).await.unwrap_err();
    assert_eq!(told(), before);
    let another = world.workload("client", 1).with_service_account("another");
    world.control.set(vec![another.into()]).await;
    client.connect(format!("server:{PORT}")).await.unwrap_err();
    assert_eq!(told(), before + 1);
}

/// Peers refuse who serves, which dials nobody that could say so.
#[tokio::test]
async fn a_record_that_becomes_another_s_under_a_listener() {
    let (lines, _guard) = capture("mesh=warn");
    let world = World::new(229);
    let (_, server) = world.pair().await;
    let _listener = server.listen(PORT).await.unwrap();
    let another = world.workload("server", 2).with_service_account("another");
    world.control.set(vec![another.into()]).await;
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(120)).await;
    lines.has(&["WARN", "sa/server", "sa/another"]);
    let told = || lines.text().matches("policies see the former").count();
    assert_eq!(told(), 1, "{}", lines.text());
    // Mended, nothing is said of it; but what was mended may come again.
    for (account, expected) in [("server", 1), ("another", 2)] {
        let record = world.workload("server", 2).with_service_account(account);
        world.control.set(vec![record.into()]).await;
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(told(), expected, "{account}: {}", lines.text());
    }
}

#[tokio::test]
async fn a_server_that_is_not_up() {
    let world = World::new(167);
    let (client, _) = world.pair().await;
    let error = client.connect(format!("server:{PORT}")).await.unwrap_err();
    let text = printed(Path::new("/nowhere"), &error);
    for part in [
        "Error: connecting failed: ",
        "127.167.0.2:15008",
        "Connection refused (os error 111)",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn a_service_that_nobody_knows() {
    let world = World::new(168);
    let (client, _) = world.pair().await;
    let error = client.connect("sever:9080").await.unwrap_err();
    let text = printed(Path::new("/nowhere"), &error);
    for part in ["Error: host has no address: ", "sever"] {
        assert!(text.contains(part), "{text}");
    }
}
