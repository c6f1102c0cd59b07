//! Meshes that a live istiod drives: what recordings of one cannot show.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use std::{fs, io};

use http::{Method, StatusCode};
use mesh_core::config::AppHealth;
use mesh_core::{ControlPlane, ErrorKind, Mesh, Node, OutboundPolicy, config, identity};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::envoy::{PATIENCE, soon};
use crate::istiod_discovery::{ADDRESS, AUTHORIZATION, LISTENER};
use crate::istiod_live::Cluster;
use crate::istiod_place::dump;
use crate::mesh_joins_istiod::{answer, listener_of, serve, status};
use crate::require;

/// An address of this machine that no other test has.
pub(crate) fn address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(
        127,
        64 + high % 64,
        low,
        NEXT.fetch_add(1, Ordering::Relaxed),
    )
}

/// A Pod of the ambient mesh, whose application is in this process.
async fn pod(cluster: &Cluster, name: &str, address: Ipv4Addr) {
    let metadata = json!({
        "name": name,
        "namespace": cluster.namespace(),
        "labels": {"app": name},
        "annotations": {"ambient.istio.io/redirection": "enabled"},
    });
    cluster
        .apply(json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": name, "namespace": cluster.namespace()},
        }))
        .await;
    cluster.apply(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {"serviceAccountName": name, "nodeName": "node", "containers": [{"name": "app", "image": "app"}]},
    })).await;
    cluster.apply_status(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": cluster.namespace()},
        "status": {
            "phase": "Running", "podIP": address.to_string(), "podIPs": [{"ip": address.to_string()}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })).await;
}

async fn service(cluster: &Cluster, name: &str, port: u16) {
    cluster
        .apply(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": cluster.namespace()},
            "spec": {
                "selector": {"app": name},
                "ports": [{"name": "http", "port": port, "targetPort": port, "protocol": "TCP"}],
            },
        }))
        .await;
}

/// `page` may ask `details` so for what is below `/details`, and nobody anything else.
fn allow(cluster: &Cluster, methods: &[&str]) -> Value {
    let page = format!("cluster.local/ns/{}/sa/page", cluster.namespace());
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "details", "namespace": cluster.namespace()},
        "spec": {
            "selector": {"matchLabels": {"app": "details"}},
            "action": "ALLOW",
            "rules": [{
                "from": [{"source": {"principals": [page]}}],
                "to": [{"operation": {"methods": methods, "paths": ["/details/*"]}}],
            }],
        },
    })
}

async fn mesh(cluster: &Cluster, name: &str, address: Ipv4Addr) -> Mesh {
    let istiod = cluster.control_plane(name).await;
    let xds = xds(&istiod, address);
    build(cluster, name, xds, identity::Istiod::new(istiod))
}

pub(crate) fn xds(istiod: &ControlPlane, address: Ipv4Addr) -> config::Xds {
    config::Xds::istiod(istiod.clone())
        .addresses([IpAddr::from(address)])
        .cluster_id("Kubernetes")
        .backoff(Duration::from_millis(100), Duration::from_secs(1))
}

pub(crate) fn build(
    cluster: &Cluster,
    name: &str,
    xds: config::Xds,
    identity: identity::Istiod,
) -> Mesh {
    // An entry of a group is named for its address, too.
    let account = name.split('-').next().unwrap();
    Mesh::builder()
        .workload(cluster.namespace(), name, account)
        .config(xds)
        .identity(identity)
        .outbound_policy(OutboundPolicy::RegistryOnly)
        .build()
        .unwrap()
}

/// Waits until it is answered so, as what is applied is effective a moment later.
async fn answered(client: &Mesh, method: Method, path: &str, expected: StatusCode) {
    let what = format!("{method} {path}: {expected}");
    soon(&what, async {
        while status(client, method.clone(), path).await != expected {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// As `allow(&["GET"])` has it.
async fn judged(client: &Mesh) {
    for (method, expected) in [
        (Method::GET, StatusCode::OK),
        (Method::POST, StatusCode::FORBIDDEN),
    ] {
        assert_eq!(
            status(client, method.clone(), "/details/1").await,
            expected,
            "{method}"
        );
    }
}

/// Waits until the workload is known.
async fn known(mesh: &Mesh, name: &str) {
    let known = async {
        while !names(mesh).await.iter().any(|one| one == name) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    soon(name, known).await;
}

/// The names of the workloads that are here.
async fn names(mesh: &Mesh) -> Vec<String> {
    let dump = dump(mesh).await;
    let workloads = dump["workloads"].as_array().unwrap().iter();
    let names = workloads.map(|one| one["name"].as_str().unwrap().to_owned());
    names.collect()
}

/// At CONNECT, as no request of it could be allowed.
async fn refused(client: &Mesh) {
    let error = soon("a refusal", client.connect("details:9080"))
        .await
        .unwrap_err();
    let status = ErrorKind::TunnelRefused(StatusCode::UNAUTHORIZED);
    assert_eq!(error.kind(), status, "{error:?}");
}

/// The stage of most: `page` calls `details`.
async fn details_and_page(cluster: &Cluster) -> (Mesh, Mesh) {
    let (at_details, at_page) = (address(), address());
    pod(cluster, "details", at_details).await;
    pod(cluster, "page", at_page).await;
    service(cluster, "details", 9080).await;
    cluster.apply(allow(cluster, &["GET"])).await;
    let details = mesh(cluster, "details", at_details).await;
    let page = mesh(cluster, "page", at_page).await;
    serve(&details, 9080).await;
    soon("a caller is ready", page.ready()).await.unwrap();
    // istiod gathers changes for a moment before it sends them to anybody.
    answered(&page, Method::POST, "/details/1", StatusCode::FORBIDDEN).await;
    judged(&page).await;
    (details, page)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_istiods_policies_on_requests_are_enforced_and_follow_changes() {
    let test = "a_live_istiods_policies_on_requests_are_enforced_and_follow_changes";
    let Some(cluster) = Cluster::new(test).await else {
        return;
    };
    let (details, page) = details_and_page(&cluster).await;
    let listener = listener_of(&details, 9080).await;
    assert!(listener.contains("whole"), "{listener}");

    cluster.apply(allow(&cluster, &["POST"])).await;
    answered(&page, Method::POST, "/details/1", StatusCode::OK).await;
    answered(&page, Method::GET, "/details/1", StatusCode::FORBIDDEN).await;
    cluster.apply(allow(&cluster, &["GET"])).await;
    answered(&page, Method::GET, "/details/1", StatusCode::OK).await;
    answered(&page, Method::POST, "/details/1", StatusCode::FORBIDDEN).await;

    // DENY comes first, whoever is allowed.
    let deny = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "deny", "namespace": cluster.namespace()},
        "spec": {"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/details/secret"]}}]}]},
    });
    cluster.apply(deny.clone()).await;
    answered(&page, Method::GET, "/details/secret", StatusCode::FORBIDDEN).await;
    judged(&page).await;
    cluster.delete(&deny).await;
    answered(&page, Method::GET, "/details/secret", StatusCode::OK).await;

    // Nobody is asked who they are, but in plaintext, once STRICT asks for it.
    cluster.delete(&allow(&cluster, &["GET"])).await;
    answered(&page, Method::POST, "/details/1", StatusCode::OK).await;
    let at = SocketAddr::new(details.hbone_addrs().await[0].ip(), 9080);
    let open = soon("an answer", plaintext(at)).await.unwrap();
    assert!(open.starts_with("HTTP/1.1 200 "), "{open}");
    cluster
        .apply(json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": {"name": "strict", "namespace": cluster.namespace()},
            "spec": {"mtls": {"mode": "STRICT"}},
        }))
        .await;
    soon("plaintext is refused", async {
        while plaintext(at).await.is_ok_and(|answer| !answer.is_empty()) {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    answered(&page, Method::POST, "/details/1", StatusCode::OK).await;
}

/// What a request in plaintext is answered.
async fn plaintext(at: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(at).await?;
    let request = "GET /details/1 HTTP/1.1\r\nhost: details\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_istiod_that_crashes_takes_nothing_away_and_is_followed_again() {
    let test = "a_live_istiod_that_crashes_takes_nothing_away_and_is_followed_again";
    let Some(cluster) = Cluster::new(test).await else {
        return;
    };
    let (details, page) = details_and_page(&cluster).await;
    let client = page.clone();
    let judging = tokio::spawn(async move {
        for _ in 0..200 {
            judged(&client).await;
            sleep(Duration::from_millis(20)).await;
        }
    });
    for round in 0..2 {
        if !cluster.restart().await {
            require::skip(test, "this istiod is not ours to restart");
            return;
        }
        let reviews = format!("reviews-{round}");
        let at = address();
        pod(&cluster, &reviews, at).await;
        known(&page, &reviews).await;
        assert!(details.readiness().is_ready() && page.readiness().is_ready());
    }
    judging.await.unwrap();
    cluster.apply(allow(&cluster, &["POST"])).await;
    answered(&page, Method::POST, "/details/1", StatusCode::OK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_istiod_shows_who_has_joined_and_that_all_is_acknowledged() {
    let test = "a_live_istiod_shows_who_has_joined_and_that_all_is_acknowledged";
    let Some(cluster) = Cluster::new(test).await else {
        return;
    };
    let _both = details_and_page(&cluster).await;
    let Some(told) = cluster.page("/debug/syncz").await else {
        require::skip(test, "this istiod's debug pages are not ours to read");
        return;
    };
    let told: Value = serde_json::from_str(&told).unwrap();
    for (proxy, types) in [
        ("details", &[ADDRESS, AUTHORIZATION, LISTENER][..]),
        ("page", &[ADDRESS, AUTHORIZATION]),
    ] {
        let proxy = format!("{proxy}.{}", cluster.namespace());
        let mut all = told.as_array().unwrap().iter();
        let one = all.find(|one| one["proxy"] == proxy).unwrap();
        let version = concat!("mesh-core-", env!("CARGO_PKG_VERSION"));
        assert_eq!(
            (&one["proxy_type"], &one["istio_version"]),
            (&json!("sidecar"), &json!(version))
        );
        for kind in types {
            let of = &one["resources"][kind];
            assert!(
                of["sent"].is_string() && of["sent"] == of["acked"],
                "{proxy} {kind}: {of}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_live_istiod_only_what_is_dialled_is_here_on_demand() {
    let test = "of_a_live_istiod_only_what_is_dialled_is_here_on_demand";
    let Some(cluster) = Cluster::new(test).await else {
        return;
    };
    let (_details, page) = details_and_page(&cluster).await;
    for n in 0..20 {
        pod(&cluster, &format!("other-{n}"), address()).await;
    }
    let at = address();
    pod(&cluster, "few", at).await;
    let istiod = cluster.control_plane("few").await;
    let few = build(
        &cluster,
        "few",
        xds(&istiod, at).on_demand(),
        identity::Istiod::new(istiod),
    );
    soon("a caller is ready", few.ready()).await.unwrap();
    // `few` is not who may.
    refused(&few).await;
    let mut here = names(&few).await;
    here.sort();
    assert_eq!(here, ["details", "few"]);
    let error = few.connect("10.9.9.9:80").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownHost, "{error:?}");
    let error = few.connect("nobody:80").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownHost, "{error:?}");
    cluster.apply(allow(&cluster, &["POST"])).await;
    answered(&page, Method::POST, "/details/1", StatusCode::OK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_of_a_host_has_all_of_a_live_istiod_and_certificates_of_its_pods() {
    let test = "the_proxy_of_a_host_has_all_of_a_live_istiod_and_certificates_of_its_pods";
    let Some(cluster) = Cluster::new(test).await else {
        return;
    };
    let _both = details_and_page(&cluster).await;
    let (one, other) = (address(), address());
    pod(&cluster, "one", one).await;
    pod(&cluster, "other", other).await;
    let istiod = cluster.node_proxy("ztunnel").await;
    let xds = xds(&istiod, address()).node_proxy("istio-system", "ztunnel");
    let node = Node::builder()
        .config(xds)
        .identity(identity::Istiod::new(istiod).for_node())
        .outbound_policy(OutboundPolicy::RegistryOnly)
        .build_node()
        .unwrap();
    let one = node.workload(cluster.namespace(), "one", "one").unwrap();
    let other = node
        .workload(cluster.namespace(), "other", "other")
        .unwrap();
    soon("both are ready", async {
        let (one, other) = tokio::join!(one.ready(), other.ready());
        (one.unwrap(), other.unwrap())
    })
    .await;
    refused(&one).await;
    // A certificate of somebody who is not on the proxy's host is refused.
    let stranger = node
        .workload(cluster.namespace(), "stranger", "stranger")
        .unwrap();
    soon("a refusal", async {
        let refused = "request impersonation authentication failure";
        while !stranger.readiness().to_string().contains(refused) {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Waits until the host's health in its entry is this.
async fn reported(cluster: &Cluster, entry: &Value, healthy: &str) {
    let what = format!("healthy: {healthy}");
    soon(&what, async {
        loop {
            let told = cluster.get(entry).await.unwrap_or_default();
            let conditions = told["status"]["conditions"].as_array();
            let mut conditions = conditions.into_iter().flatten();
            if conditions.any(|one| one["type"] == "Healthy" && one["status"] == healthy) {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_registers_with_a_live_istiod_and_outlives_its_token() {
    let test = "a_host_registers_with_a_live_istiod_and_outlives_its_token";
    let Some(cluster) = Cluster::new(test).await else {
        return;
    };
    let (_details, page) = details_and_page(&cluster).await;
    cluster
        .apply(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "WorkloadGroup",
            "metadata": {"name": "forum", "namespace": cluster.namespace()},
            "spec": {
                "metadata": {"labels": {"app": "forum"}},
                "template": {"serviceAccount": "forum"},
                "probe": {"periodSeconds": 1, "httpGet": {"path": "/ready", "port": 8080}},
            },
        }))
        .await;
    service(&cluster, "forum", 8080).await;
    let at = address();
    let istiod = cluster.control_plane("forum").await;
    let host = build(
        &cluster,
        &format!("forum-{at}"),
        xds(&istiod, at).metadata("AUTO_REGISTER_GROUP", "forum"),
        identity::Istiod::new(istiod),
    );
    host.report_health(AppHealth::Unhealthy("it starts".into()));
    soon("it is ready", host.ready()).await.unwrap();
    serve(&host, 8080).await;
    let entry = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
        "metadata": {"name": format!("forum-{at}"), "namespace": cluster.namespace()},
    });
    reported(&cluster, &entry, "False").await;
    host.report_health(AppHealth::Healthy);
    reported(&cluster, &entry, "True").await;
    known(&page, &format!("forum-{at}")).await;
    assert_eq!(
        answer(&page, Method::GET, "http://forum:8080/").await,
        StatusCode::OK
    );

    // A certificate does in place of a token that is not believed.
    cluster.spoil_token("forum");
    if cluster.restart().await {
        let reviews = address();
        pod(&cluster, "reviews", reviews).await;
        known(&host, "reviews").await;
    }
    assert_eq!(
        answer(&page, Method::GET, "http://forum:8080/").await,
        StatusCode::OK
    );
    host.shutdown(Duration::ZERO).await;
    drop(host);
    soon("its entry goes", async {
        while cluster.get(&entry).await.is_some() {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

/// The files of a host of which somebody has written the entry, as istioctl writes them but for the line that it does
/// not: which entry it is. Nobody says the trust domain.
async fn host_files(cluster: &Cluster, name: &str, at: Ipv4Addr) -> tempfile::TempDir {
    let istiod = cluster.discovery();
    let dir = tempfile::tempdir().unwrap();
    let env = format!(
        "ISTIO_META_CLUSTER_ID='Kubernetes'\nISTIO_META_WORKLOAD_ENTRY='{name}'\nISTIO_META_WORKLOAD_NAME='group'\n\
         ISTIO_SVC_IP='{at}'\nPOD_NAMESPACE='{}'\nSERVICE_ACCOUNT='{name}'\nTRUST_DOMAIN=''\n",
        cluster.namespace()
    );
    let mesh = format!(
        "defaultConfig:\n  discoveryAddress: istiod.istio-system.svc:{}\n",
        istiod.port()
    );
    let (root, token) = cluster.root_and_token(name).await;
    for (name, text) in [
        ("cluster.env", env),
        ("mesh.yaml", mesh),
        ("root-cert.pem", root),
        ("istio-token", token),
        (
            "hosts",
            format!("{} istiod.istio-system.svc\n", istiod.ip()),
        ),
    ] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// An entry that somebody has written, whose health the host reports.
fn entry(cluster: &Cluster, name: &str, at: Ipv4Addr) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
        "metadata": {
            "name": name, "namespace": cluster.namespace(),
            "annotations": {"proxy.istio.io/health-checks-enabled": "true"},
        },
        "spec": {
            "address": at.to_string(), "serviceAccount": name,
            "labels": {"app": name, "networking.istio.io/tunnel": "http"},
        },
    })
}

/// `WORKLOAD_ENTRY`: one that is there, is reported on, and stays. V026: callers hear nothing of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_has_the_entry_of_a_live_istiod_that_somebody_has_written() {
    let test = "a_host_has_the_entry_of_a_live_istiod_that_somebody_has_written";
    let Some(cluster) = Cluster::new(test).await else {
        return;
    };
    let (_details, page) = details_and_page(&cluster).await;
    let at = address();
    let vault = entry(&cluster, "vault", at);
    cluster.apply(vault.clone()).await;
    service(&cluster, "vault", 8200).await;
    let files = host_files(&cluster, "vault", at).await;
    let host = Mesh::builder().bootstrap_dir(files.path()).unwrap();
    let host = host.build().unwrap();
    assert_eq!(host.workload().name(), "vault");
    host.report_health(AppHealth::Unhealthy("it is sealed".into()));
    soon("it is ready", host.ready()).await.unwrap();
    serve(&host, 8200).await;
    reported(&cluster, &vault, "False").await;
    known(&page, "vault").await;
    let health = || async {
        let dump = dump(&page).await;
        let mut workloads = dump["workloads"].as_array().unwrap().iter();
        let one =
            workloads.find(|one| one["name"] == "vault" && one["namespace"] == cluster.namespace());
        one.unwrap()["status"].clone()
    };
    assert_eq!(health().await, "Healthy");
    let uri = "http://vault:8200/";
    soon("an answer", async {
        while answer(&page, Method::GET, uri).await != StatusCode::OK {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    host.report_health(AppHealth::Healthy);
    reported(&cluster, &vault, "True").await;
    assert_eq!(health().await, "Healthy");
    host.shutdown(Duration::ZERO).await;
    drop(host);
    soon("nothing is known of its health", async {
        loop {
            let told = cluster.get(&vault).await.expect("it stays");
            let conditions = told["status"]["conditions"].as_array();
            let mut conditions = conditions.into_iter().flatten();
            if !conditions.any(|one| one["type"] == "Healthy") {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

/// V004: hosts whose files say nothing of it have the trust domain of the mesh.
#[tokio::test(flavor = "multi_thread")]
async fn a_live_istiods_trust_domain_is_that_of_hosts_to_which_nobody_says_it() {
    let test = "a_live_istiods_trust_domain_is_that_of_hosts_to_which_nobody_says_it";
    let mesh = json!({"trustDomain": "td.example"});
    let Some(cluster) = Cluster::with_mesh(test, &mesh).await else {
        return;
    };
    let mut hosts = Vec::new();
    for name in ["one", "other"] {
        let at = address();
        cluster.apply(entry(&cluster, name, at)).await;
        let files = host_files(&cluster, name, at).await;
        let builder = Mesh::builder().bootstrap_dir(files.path()).unwrap();
        let host = builder.build().unwrap();
        soon("it is ready", host.ready()).await.unwrap();
        let identity = format!("spiffe://td.example/ns/{}/sa/{name}", cluster.namespace());
        assert_eq!(host.identity().to_string(), identity);
        hosts.push((host, at, identity, files));
    }
    let (one, at, expected, _) = &hosts[0];
    let (other, _, caller, _) = &hosts[1];
    known(other, "one").await;
    let mut listener = soon("it listens", one.listen(7000)).await.unwrap();
    let to = format!("{at}:7000");
    let both = async { tokio::join!(other.connect(&to), listener.accept()) };
    let (near, far) = soon("a tunnel", both).await;
    for (stream, expected) in [(near.unwrap(), expected), (far.unwrap(), caller)] {
        let peer = stream.context().identity().unwrap().to_string();
        assert_eq!(peer, *expected);
    }
}

/// What istiod refuses, it says why, and so do we.
#[tokio::test(flavor = "multi_thread")]
async fn a_live_istiod_says_why_somebody_may_not_join() {
    let test = "a_live_istiod_says_why_somebody_may_not_join";
    let Some(cluster) = Cluster::new(test).await else {
        return;
    };
    let at = address();
    pod(&cluster, "page", at).await;
    let istiod = cluster.control_plane("page").await;
    let of_page = || identity::Istiod::new(istiod.clone());
    let by_token = || xds(&istiod, at);
    let group = by_token().metadata("AUTO_REGISTER_GROUP", "nowhere");
    let nowhere = format!("cannot find WorkloadGroup {}/nowhere", cluster.namespace());
    let elsewhere = istiod.clone().cluster_id("elsewhere");
    let unknown = config::Xds::istiod(elsewhere.clone()).addresses([IpAddr::from(at)]);
    let of_unknown = identity::Istiod::new(elsewhere);
    for (mesh, parts) in [
        // The token is of another service account: for both services.
        (
            build(&cluster, "details", by_token(), of_page()),
            [
                "expected a certificate of",
                "sa/page",
                "authorization failed",
            ],
        ),
        (
            build(&cluster, "page", group, of_page()),
            [&*nowhere, "", ""],
        ),
        (
            build(&cluster, "page", unknown, of_unknown),
            ["refused the token", "certificate of", "control plane ("],
        ),
    ] {
        let told = || mesh.readiness().to_string();
        let all = async {
            while !parts.iter().all(|part| told().contains(part)) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let in_time = timeout(PATIENCE, all).await;
        assert!(in_time.is_ok(), "{parts:?}: {}", told());
    }
}

/// As `PEER_ISTIOD=<ip:port>` with `PEER_KUBERNETES` has it: it is not ours to start, and there may be others in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_live_istiod_that_runs_already_is_joined_beside_others() {
    let test = "a_live_istiod_that_runs_already_is_joined_beside_others";
    let Some(cluster) = Cluster::new(test).await else {
        return;
    };
    let others = details_and_page(&cluster).await;
    let joined = cluster.join().await;
    assert_ne!(joined.namespace(), cluster.namespace());
    let (details, page) = details_and_page(&joined).await;
    assert!(!joined.restart().await && joined.page("/ready").await.is_none());
    let expected = format!("spiffe://cluster.local/ns/{}/sa/", joined.namespace());
    for mesh in [&details, &page] {
        assert!(mesh.identity().to_string().starts_with(&expected));
    }
    joined.apply(allow(&joined, &["POST"])).await;
    answered(&page, Method::POST, "/details/1", StatusCode::OK).await;
    judged(&others.1).await;
    let policy = allow(&joined, &["POST"]);
    drop((details, page, joined));
    assert_eq!(cluster.get(&policy).await, None, "it leaves nothing behind");
}
