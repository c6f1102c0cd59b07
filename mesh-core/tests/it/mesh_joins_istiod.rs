//! Meshes that have configuration and certificates from an istiod: they join, and outlive it.

use std::convert::Infallible;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{Empty, Full};
use mesh_core::config::AppHealth;
use mesh_core::identity::Istiod;
use mesh_core::{ErrorKind, Mesh, config};
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;
use tower::service_fn;

use crate::admin::get;
use crate::identity_renewal::wall_clock;
use crate::istiod;
use crate::istiod_discovery::{ADDRESS, AUTHORIZATION, Answer, HEALTH, LISTENER, recorded};
use crate::istiod_place::{
    HOUR, Place, addresses, dump, greet, pending, resource, uid, until, workload,
};
use crate::require;

#[tokio::test(start_paused = true)]
async fn two_meshes_join_and_talk() {
    let place = Place::new();
    let server = place.server().await;
    let client = place.client();
    greet(&client).await;
    assert!(server.readiness().is_ready() && client.readiness().is_ready());
    assert_eq!(dump(&client).await.get("stale"), None);

    let asked = place.istiod.discovery.asked();
    let first = &asked[0];
    assert!(asked.iter().all(|one| one.by_token));
    let node = first.ask.node.as_ref().unwrap();
    assert_eq!(
        node.id,
        "sidecar~10.0.0.2~server.default~default.svc.cluster.local"
    );
    let types = asked.iter().filter(|one| one.stream == 1);
    let types: Vec<_> = types.map(|one| &*one.ask.type_url).collect();
    assert!(types.starts_with(&[ADDRESS, AUTHORIZATION]), "{types:?}");
    assert!(
        !types.contains(&LISTENER),
        "a port of any other protocol has no listener"
    );
}

#[tokio::test(start_paused = true)]
async fn a_whole_push_of_many_workloads_is_applied_and_acknowledged() {
    let place = Place::new();
    let many = (0..2_000_u16).map(|at| {
        let [high, low] = at.to_be_bytes();
        workload(&format!("other-{at}"), [10, 1, high, low], "1")
    });
    place.istiod.discovery.say(&addresses(many.collect(), &[]));
    let _server = place.server().await;
    let client = place.client();
    greet(&client).await;
    let again = (0..2_000_u16).map(|at| {
        let [high, low] = at.to_be_bytes();
        workload(&format!("other-{at}"), [10, 2, high, low], "2")
    });
    let answers = place.say(&addresses(again.collect(), &[])).await;
    assert_eq!(answers.len(), 2);
    assert!(answers.iter().all(|one| one.ask.error.is_none()));
    let workloads = dump(&client).await["workloads"].as_array().unwrap().len();
    assert_eq!(workloads, 2_002);
    greet(&client).await;
}

/// no control plane at the start.
#[tokio::test(start_paused = true)]
async fn an_istiod_that_is_away_at_first_is_waited_for() {
    let place = Place::new();
    place.kill();
    let client = place.client();
    until("a first attempt", || {
        pending(&client).contains("connecting")
    })
    .await;
    let told = pending(&client);
    assert!(
        told.contains("control plane (istiod.istio-system.svc:15012: connecting"),
        "{told}"
    );
    let error = timeout(HOUR, client.ready()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotReady);
    place.revive();
    until("it is ready", || client.readiness().is_ready()).await;
    let _server = place.server().await;
    greet(&client).await;
}

/// however long it was away, and wherever in its wait a client is.
#[tokio::test(start_paused = true)]
async fn an_istiod_that_comes_back_is_found_within_the_longest_wait() {
    for away in (0..20).map(|at| Duration::from_secs(60 + at * 97)) {
        let place = Place::new();
        place.kill();
        let client = place.client();
        sleep(away).await;
        assert!(!client.readiness().is_ready());
        place.revive();
        let back = Instant::now();
        until("it is ready", || client.readiness().is_ready()).await;
        // 30 s, and a second for all that there is to do then.
        let took = back.elapsed();
        assert!(took <= Duration::from_secs(31), "{took:?} after {away:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_policies_nothing_is_ready() {
    let place = Place::new();
    place.istiod.discovery.be_silent_of(AUTHORIZATION, true);
    let client = place.client();
    until("the addresses are here", || {
        pending(&client).contains("not accepted whole yet: istio.security.Authorization")
    })
    .await;
    sleep(Duration::from_secs(20)).await;
    assert!(!client.readiness().is_ready());
    place.istiod.discovery.be_silent_of(AUTHORIZATION, false);
    place.istiod.discovery.end_streams();
    until("it is ready", || client.readiness().is_ready()).await;
}

/// no control plane any more.
#[tokio::test(start_paused = true)]
async fn what_an_istiod_said_outlives_it() {
    let place = Place::new();
    let server = place.server().await;
    let client = place.client();
    greet(&client).await;
    place.kill();
    sleep(HOUR).await;
    greet(&client).await;
    assert!(client.readiness().is_ready() && server.readiness().is_ready());
    let stale = dump(&client).await["stale"].clone();
    let reason = stale["reason"].as_str().unwrap();
    assert!(reason.contains("connecting"), "{stale}");
    assert!(stale["since"].as_str().unwrap().ends_with('Z'), "{stale}");

    // What has changed meanwhile, and only that, comes with the next stream.
    let change = vec![workload("another", [10, 0, 0, 3], "1")];
    place.istiod.discovery.say(&addresses(change, &["server"]));
    let before = place.istiod.discovery.streams();
    place.revive();
    until("both are back", || {
        place.istiod.discovery.streams() == before + 2
    })
    .await;
    until("the change is here", || {
        let asked = place.istiod.discovery.asked();
        let acks = asked.iter().filter(|one| {
            one.stream > before && one.ask.type_url == ADDRESS && !one.ask.nonce.is_empty()
        });
        acks.count() == 2
    })
    .await;
    let asked = place.istiod.discovery.asked();
    let again = asked.iter().find(|one| one.stream > before).unwrap();
    let versions: Vec<_> = again.ask.versions.keys().cloned().collect();
    assert_eq!(versions, [uid("client"), uid("server")]);
    let now = dump(&client).await;
    assert_eq!(now.get("stale"), None);
    let uids = now["workloads"].as_array().unwrap().iter();
    let mut uids: Vec<_> = uids.map(|one| one["uid"].as_str().unwrap()).collect();
    uids.sort_unstable();
    assert_eq!(uids, [uid("another"), uid("client")]);
    drop(server);
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_told_and_a_new_one_taken() {
    let place = Place::new();
    place.write("client", "a-token-of-another-cluster");
    let client = place.mesh("client", "client", place.xds("client", [10, 0, 0, 1]));
    until("it was refused", || {
        let told = pending(&client);
        told.contains("control plane (") && told.contains("authentication failure")
    })
    .await;
    place.token("client", HOUR);
    until("it is ready", || client.readiness().is_ready()).await;

    fs::remove_file(place.path("client")).unwrap();
    let fresh = place.mesh("client", "client", place.xds("client", [10, 0, 0, 1]));
    until("it is missing", || {
        let told = pending(&fresh);
        let file = format!("token file {} is missing", place.path("client").display());
        told.contains("control plane (") && told.contains(&file)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_certificate_does_in_place_of_a_token_that_has_expired() {
    let place = Place::new();
    place.token("client", HOUR);
    let client = place.mesh("client", "client", place.xds("client", [10, 0, 0, 1]));
    client.ready().await.unwrap();
    sleep(2 * HOUR).await;
    assert!(
        place
            .istiod
            .discovery
            .asked()
            .iter()
            .all(|one| one.by_token)
    );
    for round in 1..4 {
        place.istiod.discovery.end_streams();
        until("it is back", || {
            place.istiod.discovery.streams() == round + 1
        })
        .await;
        until("it was heard", || {
            let last = place.istiod.discovery.asked().pop().unwrap();
            last.stream == round + 1 && !last.by_token
        })
        .await;
    }
    assert_eq!(dump(&client).await.get("stale"), None);
}

/// V006.
#[tokio::test(start_paused = true)]
async fn another_root_is_told_with_the_file() {
    let place = Place::new();
    let other = istiod::Istiod::start(HOUR, wall_clock());
    place.write("root-cert.pem", &other.root_pem());
    let client = place.client();
    let file = place.path("root-cert.pem").display().to_string();
    until("it was refused", || {
        let told = pending(&client);
        told.contains("control plane (") && told.contains(&format!("root does not match {file}"))
    })
    .await;
    place.write("root-cert.pem", &place.istiod.root_pem());
    until("it is ready", || client.readiness().is_ready()).await;
}

/// V006: neither service is told anything by a name that is not expected, and the names that are set are those of both.
#[tokio::test(start_paused = true)]
async fn an_istiod_of_another_name_is_told_nothing_before_its_name_is_set() {
    let place = Place::of("gateway.example");
    let own = vec![workload("client", [10, 0, 0, 1], "1")];
    place.istiod.discovery.say(&addresses(own, &[]));
    let names = ["gateway.example"];
    let mesh = |for_discovery: bool, for_certificates: bool| {
        place.token("client", 100 * HOUR);
        let named = |is_set: bool| {
            let control_plane = place.control_plane("client");
            match is_set {
                true => control_plane.server_names(names),
                false => control_plane,
            }
        };
        let now = std::sync::Arc::clone(&place.now);
        let xds = config::Xds::istiod(named(for_discovery));
        Mesh::builder()
            .workload("default", "client", "client")
            .transport(place.network.clone())
            .clock(move || now())
            .config(xds.addresses([[10, 0, 0, 1].into()]).rng(7))
            .identity(Istiod::new(named(for_certificates)).rng(7))
            .build()
            .unwrap()
    };
    let told = || (place.istiod.discovery.streams(), place.istiod.calls().len());
    let refused = "expected one of [\"istiod.istio-system.svc\"]";

    let client = mesh(false, false);
    until("both refuse", || {
        pending(&client).matches(refused).count() == 2
    })
    .await;
    sleep(HOUR).await;
    assert_eq!(told(), (0, 0));
    drop(client);

    let client = mesh(true, false);
    until("one refuses", || {
        pending(&client).contains(refused) && told().0 > 0
    })
    .await;
    assert_eq!(told().1, 0);
    drop(client);
    let streams = told().0;

    let client = mesh(false, true);
    until("the other refuses", || {
        pending(&client).contains(refused) && told().1 > 0
    })
    .await;
    assert_eq!(told().0, streams);
    drop(client);

    let client = mesh(true, true);
    until("it is ready", || client.readiness().is_ready()).await;
    let sni = place.istiod.sni();
    assert_eq!(sni.last().unwrap().as_deref(), Some(names[0]));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_refused_by_name_and_the_rest_applies() {
    let place = Place::new();
    let client = place.client();
    client.ready().await.unwrap();
    let good = workload("another", [10, 0, 0, 3], "1");
    let bad = resource(&uid("server"), "2", b"\x0a\xff".to_vec());
    let answers = place.say(&addresses(vec![bad, good], &[])).await;
    let problem = answers[0].ask.error.as_ref().unwrap();
    assert!(problem.message.contains(&uid("server")), "{problem:?}");
    assert!(!problem.message.contains(&uid("another")), "{problem:?}");
    let uids = dump(&client).await["workloads"].to_string();
    assert!(uids.contains(&uid("another")), "{uids}");
    // Its last good version.
    assert!(uids.contains(&uid("server")), "{uids}");
    let problems = client.node().problems().join("; ");
    assert!(problems.contains(&uid("server")), "{problems}");

    // What nobody asked for, and nonsense.
    let stray = Answer {
        type_url: "type.googleapis.com/nobody.asked".to_owned(),
        nonce: "stray".to_owned(),
        ..addresses(vec![workload("x", [10, 0, 0, 9], "1")], &["client"])
    };
    place.istiod.discovery.garble(&stray);
    until("it was refused", || {
        let asked = place.istiod.discovery.asked();
        asked
            .iter()
            .any(|one| one.ask.nonce == "stray" && one.ask.error.is_some())
    })
    .await;
    assert!(client.readiness().is_ready());

    // What comes well again is no problem any more; who joins meanwhile is not kept out.
    let other = place.mesh("another", "client", place.xds("client", [10, 0, 0, 3]));
    other.ready().await.unwrap();
    let well = vec![workload("server", [10, 0, 0, 2], "3")];
    place.say(&addresses(well, &[])).await;
    assert_eq!(client.node().problems(), [""; 0]);
    let _server = place.server().await;
    greet(&client).await;
}

/// Of one response 64 are named. That there are others is told once, however many they come to be.
#[tokio::test(start_paused = true)]
async fn what_was_refused_is_a_problem_though_there_is_no_room_for_its_name() {
    let (lines, _guard) = crate::layers_logs::capture("mesh::config=warn");
    let place = Place::new();
    let client = place.client();
    client.ready().await.unwrap();
    let names: Vec<String> = (0..100).map(|n| format!("bad-{n:02}")).collect();
    let names: Vec<&str> = names.iter().map(|name| &**name).collect();
    let bad = |name: &&str| resource(&uid(name), "1", b"\x0a\xff".to_vec());
    let problems = || client.node().problems();
    let told = |what: &str| lines.text().matches(what).count();
    let others = |many: u32| format!("{many} more of istio.workload.Address stand refused");
    let all = names.iter().map(bad).collect();
    place.say(&addresses(all, &[])).await;
    until("they are told of", || problems().len() == 65).await;
    assert!(problems()[64].contains(&others(36)), "{:?}", problems());
    assert_eq!((told("bad-"), told("stand refused")), (64, 1));

    // Good ones and others that are bad say nothing new of these.
    let good = workload("another", [10, 0, 0, 3], "1");
    place.say(&addresses(vec![good], &[])).await;
    place.say(&addresses(vec![bad(&"one-more")], &[])).await;
    until("it is told of, too", || problems().len() == 66).await;
    place.say(&addresses(Vec::new(), &names[99..])).await;
    until("it is not refused any more", || {
        problems()[65].contains(&others(35))
    })
    .await;
    assert_eq!((told("bad-"), told("stand refused")), (64, 1));
    assert_eq!(told("one-more"), 1);
    place.say(&addresses(Vec::new(), &["one-more"])).await;

    place.say(&addresses(Vec::new(), &names[..64])).await;
    until("those that are named are gone", || problems().len() == 1).await;
    assert!(problems()[0].contains(&others(35)), "{:?}", problems());
    place.say(&addresses(Vec::new(), &names[64..99])).await;
    until("all are", || problems().is_empty()).await;
}

/// What was never good, and goes: while there is a stream, or while there is none.
#[tokio::test(start_paused = true)]
async fn what_was_refused_is_no_problem_any_more_when_it_is_removed() {
    let place = Place::new();
    let client = place.client();
    client.ready().await.unwrap();
    let bad = |name: &str| resource(&uid(name), "1", b"\x0a\xff".to_vec());
    let problems = || client.node().problems();
    place
        .say(&addresses(vec![bad("one"), bad("other")], &[]))
        .await;
    until("both are told of", || problems().len() == 2).await;

    place.say(&addresses(Vec::new(), &["one"])).await;
    until("one is gone", || problems().len() == 1).await;
    assert!(problems()[0].contains(&uid("other")), "{:?}", problems());

    place.kill();
    place
        .istiod
        .discovery
        .say(&addresses(Vec::new(), &["other"]));
    place.revive();
    until("the other is gone, too", || problems().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn health_is_reported_on_every_stream() {
    let place = Place::new();
    let client = place.client();
    client.report_health(AppHealth::Unhealthy("starting".into()));
    let reports = || -> Vec<_> {
        let asked = place.istiod.discovery.asked().into_iter();
        let health = asked.filter(|one| one.ask.type_url == HEALTH);
        health
            .map(|one| (one.stream, one.ask.error.map(|problem| problem.message)))
            .collect()
    };
    until("the first", || reports().len() == 1).await;
    client.report_health(AppHealth::Healthy);
    until("the second", || reports().len() == 2).await;
    place.istiod.discovery.end_streams();
    until("the second again", || reports().len() == 3).await;
    let starting = Some("starting".to_owned());
    assert_eq!(reports(), [(1, starting), (1, None), (2, None)]);
    assert_ne!(place.istiod.discovery.asked()[0].ask.type_url, HEALTH);
}

#[tokio::test(start_paused = true)]
async fn on_demand_only_what_is_dialled_is_here() {
    let place = Place::new();
    let more = (0..200).map(|host| workload(&format!("pod-{host}"), [10, 1, 0, host], "1"));
    place.istiod.discovery.say(&addresses(more.collect(), &[]));
    let _server = place.server().await;
    place.token("client", HOUR);
    // The recorded istiod knows a workload by its address; this one by the names that it is given.
    for (name, address) in [("client", [10, 0, 0, 1]), ("server", [10, 0, 0, 2])] {
        let mut by_address = workload(name, address, "1");
        by_address.aliases = vec![format!("/{}", IpAddr::from(address))];
        place
            .istiod
            .discovery
            .say(&addresses(vec![by_address], &[]));
    }
    let xds = place.xds("client", [10, 0, 0, 1]).on_demand();
    let client = place.mesh("client", "client", xds);
    greet(&client).await;
    let begin = Instant::now();
    let error = client.connect("10.9.9.9:80").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownHost, "{error:?}");
    let error = client.connect("nobody:80").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownHost, "{error:?}");
    assert!(begin.elapsed() < Duration::from_secs(5), "it was told so");
    let error = client.resolve("nobody.at-all").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownHost, "{error:?}");
    assert_eq!(
        dump(&client).await["workloads"].as_array().unwrap().len(),
        2
    );
    let asked = place.istiod.discovery.asked();
    let stream = asked.iter().map(|one| one.stream).max().unwrap();
    let own = asked.iter().filter(|one| one.stream == stream);
    let names: Vec<_> = own.flat_map(|one| one.ask.subscribe.clone()).collect();
    assert_eq!(
        names,
        [
            "/10.0.0.1",
            "/10.0.0.2",
            "/10.9.9.9",
            "default/nobody.default.svc.cluster.local",
            "default/nobody.at-all",
            "at-all/nobody.at-all.svc.cluster.local",
        ]
        .map(str::to_owned)
    );
}

pub(crate) async fn serve(mesh: &Mesh, port: u16) {
    let http = mesh.listen_http(port).await.unwrap();
    tokio::spawn(
        http.serve(service_fn(|_: Request<hyper::body::Incoming>| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
        })),
    );
}

pub(crate) async fn status(client: &Mesh, method: Method, path: &str) -> StatusCode {
    let uri = format!("http://details:9080{path}");
    answer(client, method, &uri).await
}

pub(crate) async fn answer(client: &Mesh, method: Method, uri: &str) -> StatusCode {
    let request = Request::builder().method(method).uri(uri);
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let response = client.http_client().request(request).await;
    response
        .unwrap_or_else(|error| panic!("{error:?}"))
        .status()
}

pub(crate) async fn judged(client: &Mesh, step: &str) {
    let asks = [
        (Method::GET, "/details/1", StatusCode::OK),
        (Method::POST, "/details/1", StatusCode::FORBIDDEN),
        (Method::GET, "/other", StatusCode::FORBIDDEN),
    ];
    for (method, path, expected) in asks {
        let answer = status(client, method.clone(), path).await;
        assert_eq!(answer, expected, "{step}: {method} {path}");
    }
}

pub(crate) async fn listener_of(mesh: &Mesh, port: u16) -> String {
    let target = format!("/explain?format=json&to={port}&from=plaintext");
    let told = get(&mesh.admin(), &target).await.json();
    told["inboundListener"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// On the ambient stream details' policy allows nothing; on its listener, what it says.
#[tokio::test(start_paused = true)]
async fn policies_on_requests_come_whole_from_a_recorded_istiod() {
    let name = "policies_on_requests_come_whole_from_a_recorded_istiod";
    let Some(data) = require::data(name) else {
        return;
    };
    let place = Place::empty();
    let mut messages = recorded(&data.join("istiod/bookinfo/sdk"))
        .into_iter()
        .peekable();
    while let Some(message) = messages.next_if(|message| message.step == "base") {
        place.istiod.discovery.say(&message.answer);
    }
    let join = |name: &str, account: &str, address: [u8; 4]| {
        place.token(account, 100 * HOUR);
        let xds = place.xds(account, address).cluster_id("Kubernetes");
        place.mesh(name, account, xds)
    };
    let details = join("details-v1-1", "bookinfo-details", [10, 10, 2, 11]);
    let page = join("productpage-v1-1", "bookinfo-productpage", [10, 10, 1, 10]);
    serve(&details, 9080).await;
    judged(&page, "base").await;
    let listener = listener_of(&details, 9080).await;
    assert!(listener.contains("whole"), "{listener}");

    // Nobody has a Service for it.
    let begin = Instant::now();
    serve(&details, 9999).await;
    assert!(begin.elapsed() < Duration::from_secs(5), "it was told so");
    let listener = listener_of(&details, 9999).await;
    assert!(listener.contains("no Service names the port"), "{listener}");

    for message in messages {
        place.say(&message.answer).await;
        judged(&page, &message.step).await;
    }
    // And nothing is lost with the stream.
    place.kill();
    sleep(HOUR).await;
    judged(&page, "without istiod").await;
    place.revive();
    sleep(HOUR).await;
    judged(&page, "with istiod again").await;
}

#[tokio::test(start_paused = true)]
async fn a_port_waits_five_seconds_for_a_listener_of_which_nothing_is_said() {
    let place = Place::new();
    place.istiod.discovery.be_silent_of(LISTENER, true);
    place.token("server", HOUR);
    let server = place.mesh("server", "server", place.xds("server", [10, 0, 0, 2]));
    server.ready().await.unwrap();
    let begin = Instant::now();
    let http = server.listen_http(8080).await.unwrap();
    let waited = begin.elapsed();
    let five = Duration::from_secs(5);
    assert!(waited >= five && waited < 2 * five, "{waited:?}");
    let listener = listener_of(&server, 8080).await;
    assert!(
        listener.contains("none from the control plane yet"),
        "{listener}"
    );
    let name = format!(
        "xds.istio.io/grpc/lds/inbound/{}",
        SocketAddr::from(([10, 0, 0, 2], 8080))
    );
    let asks = |subscribed: bool| {
        let asked = place.istiod.discovery.asked();
        asked.iter().any(|one| {
            let names = if subscribed {
                &one.ask.subscribe
            } else {
                &one.ask.unsubscribe
            };
            names.contains(&name)
        })
    };
    assert!(asks(true) && !asks(false));
    drop(http);
    until("it is asked for no more", || asks(false)).await;
}

/// What comes by itself is no reason to look at anything.
#[tokio::test(start_paused = true)]
async fn a_healthy_start_warns_of_nothing() {
    let (lines, _guard) = crate::layers_logs::capture("warn");
    let place = Place::new();
    let _server = place.server().await;
    let client = place.client();
    greet(&client).await;
    assert_eq!(lines.text(), "");
}

/// V031.
#[tokio::test(start_paused = true)]
async fn refusals_of_the_stream_are_told_and_overcome() {
    let place = Place::new();
    place.istiod.discovery.refuse(Some((
        Code::ResourceExhausted,
        "request rate limit exceeded",
    )));
    let client = place.client();
    until("it was refused", || {
        pending(&client).contains("request rate limit exceeded")
    })
    .await;
    // It may be the wrong account that is said, or another's token.
    let forbidden = Some((Code::PermissionDenied, "authorization failed"));
    place.istiod.discovery.refuse(forbidden);
    until("it says as whom", || {
        let told = pending(&client);
        told.contains(
            "authorization failed (said to be spiffe://cluster.local/ns/default/sa/client)",
        )
    })
    .await;
    place.istiod.discovery.refuse(None);
    until("it is ready", || client.readiness().is_ready()).await;
}

#[tokio::test(start_paused = true)]
async fn one_stream_speaks_for_one_workload() {
    let place = Place::new();
    let client = place.client();
    client.ready().await.unwrap();
    let why = |error: mesh_core::Error| {
        assert_eq!(error.kind(), ErrorKind::Config);
        error.detail().unwrap_or_default().to_owned()
    };
    let expected =
        "config::Xds speaks for default/client alone: build a mesh of its own for default/server";
    let another = client.node().workload("default", "server", "server");
    let told = why(another.unwrap_err());
    assert!(told.starts_with(expected), "{told}");
    // The same one may be there twice, and nobody is worse off for the other.
    client
        .node()
        .workload("default", "client", "client")
        .unwrap();
    assert!(client.readiness().is_ready());

    // Made before the source has begun.
    let now = std::sync::Arc::clone(&place.now);
    place.token("client", HOUR);
    let node = mesh_core::Node::builder()
        .clock(move || now())
        .config(place.xds("client", [10, 0, 0, 1]))
        .identity(Istiod::new(place.control_plane("client")).for_node())
        .build_node()
        .unwrap();
    let first = node.workload("default", "client", "client").unwrap();
    let second = node.workload("default", "server", "server").unwrap();
    first.ready().await.unwrap();
    let told = why(second.listen(80).await.unwrap_err());
    assert!(told.starts_with(expected), "{told}");
}
