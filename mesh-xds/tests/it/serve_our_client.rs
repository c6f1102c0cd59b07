//! A server and this crate's own client, over a socket.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Uri;
use mesh_xds::ads::{Client, Event, Events, Health, Interest, Node, Settings};
use mesh_xds::decode::{Decoder, ResourceType};
use mesh_xds::model::{
    Batch, Membership, Rejection, ResourceName, Service, ServiceName, Update, Verdict, Workload,
};
use mesh_xds::serve::Server;
use mesh_xds::transport::Channel;
use tokio::net::TcpStream;

use crate::serve::{Tcp, Tokens, batch, channel, serve, start};

const ADDRESS: ResourceType = ResourceType::Address;

fn join(channel: Channel, interest: Interest) -> (Client, Events) {
    let node = Node::new("ztunnel~10.0.0.1~a.default~default.svc.cluster.local");
    let settings = Settings::new(node)
        .with_type(ADDRESS.url(), interest)
        .with_backoff(Duration::from_millis(1), Duration::from_millis(10));
    let (client, events, worker) = Client::new(channel, settings, Decoder::new()).unwrap();
    tokio::spawn(worker.run());
    (client, events)
}

/// The next batch, its names, answered; those that `refused` names are refused.
async fn next(events: &mut Events, refused: &str) -> (BTreeSet<String>, Vec<ResourceName>) {
    loop {
        if let Event::Batch(batch) = events.next().await.unwrap() {
            let (updates, removed, reply) = batch.into_parts();
            let verdict = |update: &Update| match update.name().to_string() == refused {
                true => Verdict::rejected(update.name(), Rejection::new("not this one")),
                false => Verdict::accepted(update.name()),
            };
            reply.send(updates.iter().map(verdict).collect());
            let names = updates.iter().map(|update| update.name().to_string());
            return (names.collect(), removed);
        }
    }
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

#[tokio::test]
async fn a_refusal_names_the_resource_and_the_good_ones_are_in_effect() {
    let server = Server::builder(Tokens).build();
    server.apply(batch(&["a", "b"]));
    let uri = serve(&server, None).await;
    let (_client, mut events) = join(
        channel(&uri, "default/a").build(Tcp).unwrap(),
        Interest::All,
    );
    let refused = "workload c//Pod/default/b";
    let (updates, _) = next(&mut events, refused).await;
    assert_eq!(updates, names(["workload c//Pod/default/a", refused]));
    let text = loop {
        let clients = server.clients();
        let subscription = clients
            .first()
            .and_then(|client| client.subscriptions().first());
        if let Some(refusal) = subscription.and_then(|one| one.refusal()) {
            break refusal.text().to_owned();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    assert_eq!(text, "c//Pod/default/b: not this one");
}

#[tokio::test]
async fn how_an_application_is_reaches_the_server() {
    let server = Server::builder(Tokens).build();
    server.apply(Batch::default());
    let uri = serve(&server, None).await;
    let (client, mut events) = join(
        channel(&uri, "default/a").build(Tcp).unwrap(),
        Interest::All,
    );
    while !matches!(events.next().await.unwrap(), Event::Synced(_)) {}
    assert_eq!(server.clients()[0].health(), None);
    let reports = [
        (
            Health::Unhealthy("no database".to_owned()),
            Err("no database"),
        ),
        (Health::Healthy, Ok(())),
    ];
    for (report, expected) in reports {
        client.report_health(report).await.unwrap();
        while server.clients()[0].health() != Some(expected) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn who_wants_a_service_gets_its_workloads() {
    let server = Server::builder(Tokens).build();
    let name = ServiceName::new("default", "s.default");
    let member = |pod: &str| {
        let workload = Workload::new(format!("c//Pod/default/{pod}"), "default", pod);
        Update::from(workload.with_services(vec![Membership::new(name.clone())]))
    };
    let service = Update::from(Service::new(name.clone()));
    server.apply(Batch::new(vec![service, member("a")], Vec::new()));
    server.apply(batch(&["other"]));
    let uri = serve(&server, None).await;
    let (client, mut events) = join(
        channel(&uri, "default/a").build(Tcp).unwrap(),
        Interest::Named,
    );
    client
        .want(ADDRESS.url(), "default/s.default")
        .await
        .unwrap();
    let (updates, _) = next(&mut events, "").await;
    let expected = names(["service default/s.default", "workload c//Pod/default/a"]);
    assert_eq!(updates, expected);
    server.apply(Batch::new(vec![member("b")], vec![member("a").name()]));
    let (updates, removed) = next(&mut events, "").await;
    assert_eq!(updates, names(["workload c//Pod/default/b"]));
    assert!(removed.contains(&member("a").name()), "{removed:?}");
    client.want(ADDRESS.url(), "/10.9.9.9").await.unwrap();
    let absent = async {
        loop {
            if let Event::Absent { name, .. } = events.next().await.unwrap() {
                return name;
            }
        }
    };
    assert_eq!(absent.await, "/10.9.9.9");
}

/// Dials whatever server is there now.
#[derive(Clone)]
struct Current(Arc<Mutex<Uri>>);

impl tower_service::Service<Uri> for Current {
    type Response = TcpStream;
    type Error = std::io::Error;
    type Future = <Tcp as tower_service::Service<Uri>>::Future;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Tcp.call(self.0.lock().unwrap().clone())
    }
}

#[tokio::test]
async fn a_server_that_was_started_anew_sends_what_differs() {
    let old = Server::builder(Tokens).build();
    old.apply(batch(&["a", "b", "c"]));
    let (uri, running) = start(&old, None).await;
    let current = Current(Arc::new(Mutex::new(uri.clone())));
    let channel = channel(&uri, "default/a").build(current.clone()).unwrap();
    let (_client, mut events) = join(channel, Interest::All);
    assert_eq!(next(&mut events, "").await.0.len(), 3);

    let new = Server::builder(Tokens).build();
    new.apply(batch(&["a", "c", "d"]));
    let changed = Workload::new("c//Pod/default/c", "default", "c").with_node("another");
    new.apply(Batch::new(vec![changed.into()], Vec::new()));
    *current.0.lock().unwrap() = serve(&new, None).await;
    running.abort();
    let (updates, removed) = next(&mut events, "").await;
    let expected = names(["workload c//Pod/default/c", "workload c//Pod/default/d"]);
    assert_eq!(updates, expected, "a is the same");
    assert!(removed.contains(&ResourceName::Workload("c//Pod/default/b".into())));
}

/// V029: of more resources than a request has room to name, everything comes again; and where a request is too
/// large all the same, the next attempt says less.
#[tokio::test]
async fn reconnecting_with_more_than_a_request_can_name_is_no_loop() {
    const MANY: usize = 20_000;
    let name = |number: usize| format!("c//Pod/default/{}-{number}", "n".repeat(230));
    let all = (0..MANY).map(|number| Workload::new(name(number), "default", "w").into());
    let old = Server::builder(Tokens).build();
    old.apply(Batch::new(all.clone().collect(), Vec::new()));
    let new = Server::builder(Tokens).build();
    new.apply(Batch::new(all.clone().skip(1).collect(), Vec::new()));
    // By the default, and with a request that the server refuses.
    for versions in [None, Some(64 << 20)] {
        let (uri, running) = start(&old, None).await;
        let current = Current(Arc::new(Mutex::new(uri.clone())));
        let channel = channel(&uri, "default/a").build(current.clone()).unwrap();
        let node = Node::new("ztunnel~10.0.0.1~a.default~default.svc.cluster.local");
        let mut settings = Settings::new(node)
            .with_type(ADDRESS.url(), Interest::All)
            .with_backoff(Duration::from_millis(1), Duration::from_millis(10));
        if let Some(bytes) = versions {
            settings = settings.with_max_initial_versions(bytes);
        }
        let made = Client::new(channel, settings, Decoder::new());
        let (_client, mut events, worker) = made.unwrap();
        tokio::spawn(worker.run());
        assert_eq!(next(&mut events, "").await.0.len(), MANY);

        *current.0.lock().unwrap() = serve(&new, None).await;
        running.abort();
        let mut attempts = 0;
        let (updates, removed) = loop {
            match events.next().await.unwrap() {
                Event::Disconnected(_) => attempts += 1,
                Event::Batch(batch) => {
                    let (updates, removed, reply) = batch.into_parts();
                    let verdicts = updates.iter().map(|one| Verdict::accepted(one.name()));
                    reply.send(verdicts.collect());
                    break (updates, removed);
                }
                _ => {}
            }
            assert!(attempts < 100, "it is refused again and again");
        };
        assert_eq!(updates.len(), MANY - 1, "all of it comes again");
        assert!(removed.contains(&ResourceName::Workload(name(0).into())));
    }
}
