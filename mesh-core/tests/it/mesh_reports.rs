//! What both ends of a known pair report: metrics with all labels, and the access log.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::service_fn;

use crate::layers_logs::capture;
#[cfg(feature = "admin")]
use crate::mesh_world::identity;
use crate::mesh_world::{PORT, World, echo, until};

type Series = (BTreeMap<String, String>, f64);

/// The series of a name by reporter.
fn series(world: &World, name: &str, reporter: &str) -> Vec<Series> {
    let text = world.node.metrics().encode();
    let lines = text
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
    let parsed = lines.map(|line| {
        let (labels, value) = line.rsplit_once("} ").unwrap();
        let labels = labels.split("\",").map(|label| {
            let (key, value) = label.split_once("=\"").unwrap();
            (key.to_owned(), value.trim_end_matches('"').to_owned())
        });
        (labels.collect::<BTreeMap<_, _>>(), value.parse().unwrap())
    });
    parsed
        .filter(|(labels, _)| labels["reporter"] == reporter)
        .collect()
}

/// Waits for the one series and says its labels, without the reporter.
async fn one(world: &World, name: &str, reporter: &str, value: f64) -> BTreeMap<String, String> {
    until(&format!("{name} of {reporter} is {value}"), || {
        series(world, name, reporter)
            .iter()
            .any(|(_, found)| *found == value)
    })
    .await;
    let mut all = series(world, name, reporter);
    assert_eq!(all.len(), 1, "{all:?}");
    let (mut labels, _) = all.remove(0);
    labels.remove("reporter");
    labels
}

fn pair_labels() -> BTreeMap<String, String> {
    [
        ("source_workload", "client"),
        ("source_canonical_service", "client"),
        ("source_canonical_revision", "v1"),
        ("source_workload_namespace", "default"),
        (
            "source_principal",
            "spiffe://cluster.local/ns/default/sa/client",
        ),
        ("source_app", "client"),
        ("source_version", "v1"),
        ("source_cluster", "Kubernetes"),
        ("destination_service", "server.default.svc.cluster.local"),
        ("destination_service_namespace", "default"),
        ("destination_service_name", "server"),
        ("destination_workload", "server"),
        ("destination_canonical_service", "server"),
        ("destination_canonical_revision", "v1"),
        ("destination_workload_namespace", "default"),
        (
            "destination_principal",
            "spiffe://cluster.local/ns/default/sa/server",
        ),
        ("destination_app", "server"),
        ("destination_version", "v1"),
        ("destination_cluster", "Kubernetes"),
        ("connection_security_policy", "mutual_tls"),
        ("response_flags", "-"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

fn with(mut labels: BTreeMap<String, String>, more: &[(&str, &str)]) -> BTreeMap<String, String> {
    labels.extend(
        more.iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned())),
    );
    labels
}

const REGIONS: [(&str, &str); 4] = [
    ("source_region", "unknown"),
    ("source_zone", "unknown"),
    ("destination_region", "unknown"),
    ("destination_zone", "unknown"),
];

#[tokio::test]
async fn both_ends_of_a_connection_report_it_alike() {
    let (lines, _guard) = capture("info");
    let world = World::new(110);
    let (client, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let mut stream = client.connect(format!("server:{PORT}")).await.unwrap();
    stream.write_all(&[7; 1000]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer.len(), 1000);
    drop(stream);
    let tcp = with(
        with(pair_labels(), &REGIONS),
        &[("request_protocol", "tcp")],
    );
    for reporter in ["source", "destination"] {
        for (name, value) in [
            ("istio_tcp_connections_opened_total", 1.0),
            ("istio_tcp_connections_closed_total", 1.0),
            ("istio_tcp_received_bytes_total", 1000.0),
            ("istio_tcp_sent_bytes_total", 1000.0),
        ] {
            assert_eq!(
                one(&world, name, reporter, value).await,
                tcp,
                "{name} {reporter}"
            );
        }
    }
    let ends = [
        ("src.addr=127.110.0.1:0 ", "outbound"),
        ("src.addr=127.0.0.1:", "inbound"),
    ];
    for (source, direction) in ends {
        lines.has(&[
            "connection complete",
            source,
            &format!("direction=\"{direction}\""),
            "src.workload=\"client\"",
            "src.identity=\"spiffe://cluster.local/ns/default/sa/client\"",
            "dst.addr=127.110.0.2:15008",
            "dst.hbone_addr=\"127.110.0.2:9080\"",
            "dst.service=\"server.default.svc.cluster.local\"",
            "dst.identity=\"spiffe://cluster.local/ns/default/sa/server\"",
            "bytes_sent=1000",
            "bytes_recv=1000",
        ]);
    }
}

#[tokio::test]
async fn both_ends_of_a_request_report_it_alike() {
    let world = World::new(111);
    let (client, server) = world.pair().await;
    let http = server.listen_http(PORT).await.unwrap();
    tokio::spawn(
        http.serve(service_fn(|_: Request<hyper::body::Incoming>| async {
            Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
        })),
    );
    for _ in 0..3 {
        let request = Request::get("http://server:9080/")
            .body(Empty::<Bytes>::new())
            .unwrap();
        let response = client.http_client().request(request).await.unwrap();
        response.into_body().collect().await.unwrap();
    }
    let expected = with(
        pair_labels(),
        &[("request_protocol", "http"), ("response_code", "200")],
    );
    for reporter in ["source", "destination"] {
        let labels = one(&world, "istio_requests_total", reporter, 3.0).await;
        for (key, value) in &expected {
            assert_eq!(
                labels.get(key),
                Some(value),
                "{key} of {reporter} in {labels:?}"
            );
        }
        for histogram in [
            "istio_request_duration_milliseconds",
            "istio_request_bytes",
            "istio_response_bytes",
        ] {
            let labels = one(&world, &format!("{histogram}_count"), reporter, 3.0).await;
            assert!(expected.iter().all(|(key, value)| labels[key] == *value));
        }
    }
    assert!(series(&world, "istio_tcp_connections_opened_total", "destination").is_empty());
}

#[tokio::test]
async fn a_refused_connection_is_reported_with_its_flag() {
    use mesh_core::authz::policy::Action;
    let world = World::new(112);
    let (client, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    world
        .control
        .set(vec![crate::mesh_world::policy(
            "none",
            Action::Allow,
            vec![],
        )])
        .await;
    client.connect(format!("server:{PORT}")).await.unwrap_err();
    let labels = one(
        &world,
        "istio_tcp_connections_failed_total",
        "destination",
        1.0,
    )
    .await;
    assert_eq!(labels["response_flags"], "DENY");
    assert_eq!(
        labels["source_principal"],
        "spiffe://cluster.local/ns/default/sa/client"
    );
}

/// What a refused peer may read of a policy.
fn hears_nothing(error: &impl std::fmt::Debug) {
    let text = format!("{error:?} {error:#?}");
    assert!(!text.contains("secret-name"), "{text}");
}

#[tokio::test]
async fn refusals_name_the_policy_and_the_rule_and_the_peer_is_not_told() {
    use crate::handler::to;
    use crate::mesh_world::{caller, policy};
    use mesh_core::authz::policy::Action;
    let (lines, _guard) = capture("info,mesh::authz=debug");
    let world = World::new(119);
    let (client, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let mut live = client.connect(format!("server:{PORT}")).await.unwrap();
    crate::mesh_world::ping(&mut live).await.unwrap();
    let rules = vec![caller("nobody"), caller("client")];
    world
        .control
        .set(vec![policy("secret-name", Action::Deny, rules)])
        .await;

    // The live connection, and a new one.
    hears_nothing(&live.read_u8().await.unwrap_err());
    drop(live);
    hears_nothing(&client.connect(format!("server:{PORT}")).await.unwrap_err());
    let denied = "explicitly denied by: default/secret-name, rule 1";
    until("both are logged, and the second's denial", || {
        lines.text().matches(denied).count() == 3
    })
    .await;
    let who = "identity=spiffe://cluster.local/ns/default/sa/client";
    lines.has(&[
        "DEBUG mesh::authz",
        denied,
        who,
        "destination=127.119.0.2:9080",
    ]);
    // Who is denied can fill no log of errors.
    lines.has(&["INFO mesh::access", "denied by policy: expl"]);
    lines.has(&[
        "mesh::inbound",
        "policy=default/secret-name",
        "rule=1",
        "no longer allowed",
    ]);
    for message in ["closed due to policy change: ", "denied by policy: expl"] {
        lines.has(&["mesh::access", "direction=\"inbound\"", denied, message]);
    }

    // Requests, and their answers.
    let world = World::new(120);
    let (client, server) = world.pair().await;
    let http = server.listen_http(PORT).await.unwrap();
    tokio::spawn(
        http.serve(service_fn(|_: Request<hyper::body::Incoming>| async {
            Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
        })),
    );
    let path = |path: &str| to(|operation| operation.paths = vec![path.into()]);
    let rules = vec![path("/a"), path("/b")];
    world
        .control
        .set(vec![policy("secret-name", Action::Deny, rules)])
        .await;
    for (path, status) in [("/b", 403), ("/c", 200)] {
        let request = Request::get(format!("http://server:9080{path}"))
            .body(Empty::<Bytes>::new())
            .unwrap();
        let response = client.http_client().request(request).await.unwrap();
        assert_eq!(response.status(), status);
        let (head, body) = response.into_parts();
        hears_nothing(&head);
        hears_nothing(&body.collect().await.unwrap().to_bytes());
    }
    let details = "response_code_details=\"rbac_access_denied_matched_policy[ns[default]-policy[secret-name]-rule[1]]\"";
    until("both are logged", || {
        lines.text().matches("path=\"/c\"").count() == 2
    })
    .await;
    lines.has(&[
        "mesh::access",
        "inbound",
        "path=\"/b\"",
        "response_code=403",
        details,
    ]);
    // The client's own record says what it knows, and an answer of the application has no details.
    assert_eq!(lines.text().matches("response_code_details").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn series_that_nobody_uses_are_forgotten_by_themselves() {
    let transport = mesh_core::Transport::new(
        |_| std::future::ready(Err(std::io::ErrorKind::ConnectionRefused.into())),
        |_| std::future::ready(Err(std::io::ErrorKind::Unsupported.into())),
    );
    let minutes = |minutes: u64| std::time::Duration::from_secs(60 * minutes);
    for (idle, kept, gone) in [(None, 9, 12), (Some(minutes(30)), 29, 32)] {
        let world = World::with(113, |node| {
            let settings = mesh_core::telemetry::MetricsSettings::default();
            let node = node.transport(transport.clone());
            match idle {
                Some(idle) => node.metrics(settings.with_idle(idle)),
                None => node,
            }
        });
        let (client, _) = world.pair().await;
        client.connect(format!("server:{PORT}")).await.unwrap_err();
        tokio::time::sleep(minutes(kept)).await;
        assert!(world.node.metrics().series() > 0);
        tokio::time::sleep(minutes(gone - kept)).await;
        assert_eq!(world.node.metrics().series(), 0);
    }
}

#[tokio::test]
async fn requests_and_connections_without_a_way_are_counted_and_logged() {
    use mesh_core::xds::model::Health;
    let (lines, _guard) = capture("info");
    let world = World::with(158, |node| {
        node.outbound_policy(mesh_core::OutboundPolicy::RegistryOnly)
    });
    let (client, _) = world.pair().await;
    let ill = world.workload("server", 2).with_health(Health::Unhealthy);
    world.control.set(vec![ill.into()]).await;
    let cases = [
        (
            "server:9080",
            "503",
            "UH",
            "server",
            "server.default.svc.cluster.local",
        ),
        (
            "nowhere.example:80",
            "502",
            "NR",
            "BlackHoleCluster",
            "unknown",
        ),
        ("192.0.2.1:80", "502", "NR", "BlackHoleCluster", "unknown"),
    ];
    for (target, code, flags, name, hostname) in cases {
        let request = Request::get(format!("http://{target}/x"));
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        client.http_client().request(request).await.unwrap_err();
        client.connect(target).await.unwrap_err();
        let all = series(&world, "istio_requests_total", "source");
        let (labels, _) = all
            .iter()
            .find(|(labels, _)| labels["destination_service_name"] == name)
            .unwrap_or_else(|| panic!("{target}: {all:?}"));
        assert_eq!(labels["response_code"], code);
        assert_eq!(labels["response_flags"], flags);
        assert_eq!(labels["destination_service"], hostname);
        assert_eq!(labels["source_workload"], "client");
        assert_eq!(labels["destination_workload"], "unknown");
        assert_eq!(labels["connection_security_policy"], "unknown");
        lines.has(&[
            "request complete",
            &format!("authority=\"{target}\""),
            &format!("response_flags=\"{flags}\""),
            "src.workload=\"client\"",
        ]);
        let all = series(&world, "istio_tcp_connections_failed_total", "source");
        let (labels, _) = all
            .iter()
            .find(|(labels, _)| labels["destination_service_name"] == name)
            .unwrap_or_else(|| panic!("{target}: {all:?}"));
        assert_eq!(labels["response_flags"], "CONNECT");
    }
    // Both kinds of name, in one series.
    let count = |name: &str| {
        let all = series(&world, name, "source");
        let black_hole = all
            .into_iter()
            .find(|(labels, _)| labels["destination_service_name"] == "BlackHoleCluster");
        black_hole.unwrap().1
    };
    assert_eq!(count("istio_requests_total"), 2.0);
    assert_eq!(count("istio_tcp_connections_failed_total"), 2.0);
    lines.has(&[
        "connection complete",
        "dst.addr=192.0.2.1:80",
        "not in the mesh",
    ]);
}

/// What an attempt fails with is no error while another follows; the last one's is.
#[tokio::test]
async fn of_several_attempts_the_last_is_the_error() {
    let world = World::with(241, |node| node.connect_attempts(3));
    // Nobody listens.
    let (client, _) = world.pair().await;
    let levels = |lines: &crate::layers_logs::Lines, message: &str| -> Vec<String> {
        let text = lines.text();
        let told = text.lines().filter(|line| line.contains(message));
        told.map(|line| line.split_whitespace().nth(1).unwrap().to_owned())
            .collect()
    };
    let (lines, guard) = capture("info");
    client.connect("server:9080").await.unwrap_err();
    assert_eq!(
        levels(&lines, "connection complete"),
        ["WARN", "WARN", "ERROR"]
    );
    drop(guard);
    let (lines, _guard) = capture("info");
    let request = Request::get("http://server:9080/");
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    client.http_client().request(request).await.unwrap_err();
    assert_eq!(
        levels(&lines, "connection complete"),
        ["WARN", "WARN", "ERROR"]
    );
    assert_eq!(levels(&lines, "request complete"), ["ERROR"]);
    // Each attempt is counted.
    let failed = series(&world, "istio_tcp_connections_failed_total", "source");
    assert_eq!(failed.iter().map(|(_, count)| count).sum::<f64>(), 6.0);
}

#[tokio::test]
async fn bytes_to_hosts_outside_the_mesh_are_the_passthrough_cluster_s() {
    let world = World::new(159);
    let (client, _) = world.pair().await;
    let outside = tokio::net::TcpListener::bind("127.159.9.9:0")
        .await
        .unwrap();
    let target = outside.local_addr().unwrap().to_string();
    let (stream, accepted) = tokio::join!(client.connect(&target), outside.accept());
    let (mut stream, mut accepted) = (stream.unwrap(), accepted.unwrap().0);
    stream.write_all(&[1; 300]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut received = Vec::new();
    accepted.read_to_end(&mut received).await.unwrap();
    accepted.write_all(&[2; 500]).await.unwrap();
    drop(accepted);
    stream.read_to_end(&mut Vec::new()).await.unwrap();
    drop(stream);
    for (name, value) in [
        ("istio_tcp_received_bytes_total", 300.0),
        ("istio_tcp_sent_bytes_total", 500.0),
        ("istio_tcp_connections_closed_total", 1.0),
    ] {
        let labels = one(&world, name, "source", value).await;
        assert_eq!(labels["source_workload"], "client");
        assert_eq!(labels["destination_service_name"], "PassthroughCluster");
        for unknown in [
            "destination_service",
            "destination_service_namespace",
            "destination_workload",
            "destination_principal",
            "connection_security_policy",
        ] {
            assert_eq!(labels[unknown], "unknown", "{unknown}");
        }
        assert_eq!(labels["response_flags"], "-");
    }
}

#[tokio::test]
async fn a_request_has_one_id_at_both_ends() {
    let (lines, _guard) = capture("info");
    let world = World::with(160, |node| node.rng(7));
    let (client, server) = world.pair().await;
    let http = server.listen_http(PORT).await.unwrap();
    tokio::spawn(http.serve(service_fn(
        |request: Request<hyper::body::Incoming>| async move {
            let ids: Vec<_> = request.headers().get_all("x-request-id").iter().collect();
            assert_eq!(ids.len(), 1);
            Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::copy_from_slice(
                ids[0].as_bytes(),
            ))))
        },
    )));
    let ask = async |id: Option<&str>| {
        let mut request = Request::get("http://server:9080/");
        if let Some(id) = id {
            request = request.header("x-request-id", id);
        }
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let response = client.http_client().request(request).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    };
    assert_eq!(ask(Some("the-caller-s")).await, "the-caller-s");
    let (first, second) = (ask(None).await, ask(None).await);
    assert_ne!(first, second);
    for id in [&first, &second] {
        assert_eq!((id.len(), &id[14..15]), (36, "4"), "{id}");
    }
    for id in ["the-caller-s", &first, &second] {
        for direction in ["outbound", "inbound"] {
            until(&format!("{direction} {id} is logged"), || {
                lines.text().lines().any(|line| {
                    line.contains(&format!("request_id=\"{id}\""))
                        && line.contains(&format!("direction=\"{direction}\""))
                })
            })
            .await;
        }
    }
}

#[cfg(feature = "admin")]
#[tokio::test]
async fn the_dump_lists_the_connections_of_both_ends() {
    let world = World::new(133);
    let (client, server) = world.pair().await;
    let mut listener = server.listen(PORT).await.unwrap();
    let connections = async |uid: &str| {
        let dump = crate::admin::get(&world.node.admin(), "/config_dump").await;
        dump.json()["workloadState"][uid]["connections"].clone()
    };
    let empty = serde_json::json!({"inbound": [], "outbound": []});
    assert_eq!(connections("uid/client").await, empty);

    let stream = client.connect(format!("server:{PORT}")).await.unwrap();
    let accepted = listener.accept().await.unwrap();
    let bare = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let outside = bare.local_addr().unwrap();
    let plain = client.connect(outside.to_string()).await.unwrap();
    let source = std::net::SocketAddr::new(world.ip(1), 0);
    let dump = connections("uid/client").await;
    assert_eq!(dump["inbound"], empty["inbound"]);
    let mut outbound = vec![
        serde_json::json!({
            "src": source, "originalDst": format!("server:{PORT}"), "protocol": "HBONE",
            "actualDst": std::net::SocketAddr::new(world.ip(2), 15008),
            "dstIdentity": identity("server").to_string(),
        }),
        serde_json::json!({
            "src": source, "originalDst": outside, "actualDst": outside, "protocol": "TCP",
        }),
    ];
    outbound.sort_by_key(|one| {
        one["actualDst"]
            .as_str()
            .unwrap()
            .parse::<std::net::SocketAddr>()
            .unwrap()
    });
    assert_eq!(dump["outbound"], serde_json::Value::from(outbound));
    let dump = connections("uid/server").await;
    assert_eq!(
        dump["inbound"][0]["srcIdentity"],
        identity("client").to_string()
    );
    assert_eq!(dump["outbound"], empty["outbound"]);

    drop((stream, accepted, plain));
    assert_eq!(connections("uid/client").await, empty);
    assert_eq!(connections("uid/server").await, empty);
}

#[tokio::test]
async fn a_response_that_nobody_reads_has_its_status_and_is_no_error() {
    let (lines, _guard) = capture("mesh::access=info");
    let world = World::new(146);
    let (client, server) = world.pair().await;
    let http = server.listen_http(PORT).await.unwrap();
    tokio::spawn(
        http.serve(service_fn(|_: Request<hyper::body::Incoming>| async {
            Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
        })),
    );
    let request = Request::get("http://server:9080/").body(Empty::<Bytes>::new());
    let response = client.http_client().request(request.unwrap()).await;
    assert_eq!(response.unwrap().status(), 200);
    let labels = one(&world, "istio_requests_total", "source", 1.0).await;
    assert_eq!(
        (
            labels["response_code"].as_str(),
            labels["response_flags"].as_str()
        ),
        ("200", "DC")
    );
    lines.has(&["INFO", "direction=\"outbound\"", "response_code=200"]);
    assert!(!lines.text().contains("ERROR"), "{}", lines.text());
}
