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
use mesh_xds::{Error, ErrorKind};
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

/// V029: of more resources than a request has room to name, everything comes again, and no request is refused for
/// its size. Where one is, the next says less.
#[tokio::test]
async fn a_hundred_thousand_workloads_come_again_without_a_refusal() {
    reconnect(None, 0).await;
}

#[tokio::test]
async fn a_request_that_was_too_large_is_followed_by_one_that_is_not() {
    reconnect(Some(64 << 20), 1).await;
}

const MANY: usize = 100_000;

/// As istiod has it, of a Deployment's Pod.
fn pod(number: usize) -> String {
    let (app, replica) = (number / 16, number % 16);
    format!(
        "Kubernetes//Pod/team-{}/service-{app}-7c9d5f6b8-x2k{replica:x}p",
        app / 32
    )
}

/// A server with a hundred thousand workloads ends, and another comes, which has one less and takes requests of up
/// to 4 MiB. To name all takes some 7 MB.
async fn reconnect(max_initial_versions: Option<usize>, refused: usize) {
    let all = (0..MANY).map(|number| Workload::new(pod(number), "default", "w").into());
    let old = Server::builder(Tokens).build();
    old.apply(Batch::new(all.clone().collect(), Vec::new()));
    let new = Server::builder(Tokens).build();
    new.apply(Batch::new(all.skip(1).collect(), Vec::new()));
    let (uri, running) = start(&old, None).await;
    let current = Current(Arc::new(Mutex::new(uri.clone())));
    let channel = channel(&uri, "default/a").build(current.clone()).unwrap();
    let node = Node::new("ztunnel~10.0.0.1~a.default~default.svc.cluster.local");
    let mut settings = Settings::new(node)
        .with_type(ADDRESS.url(), Interest::All)
        .with_backoff(Duration::from_millis(1), Duration::from_millis(10));
    if let Some(bytes) = max_initial_versions {
        settings = settings.with_max_initial_versions(bytes);
    }
    let (_client, mut events, worker) = Client::new(channel, settings, Decoder::new()).unwrap();
    tokio::spawn(worker.run());
    assert_eq!(next(&mut events, "").await.0.len(), MANY);

    *current.0.lock().unwrap() = serve(&new, None).await;
    running.abort();
    // Why each stream ended.
    let mut ends = Vec::new();
    let (updates, removed) = loop {
        match events.next().await.unwrap() {
            Event::Disconnected(error) => ends.push(error),
            Event::Batch(batch) => {
                let (updates, removed, reply) = batch.into_parts();
                let verdicts = updates.iter().map(|one| Verdict::accepted(one.name()));
                reply.send(verdicts.collect());
                break (updates, removed);
            }
            _ => {}
        }
        assert!(ends.len() <= 1 + refused, "{ends:?}");
    };
    let is_size = |error: &&Option<Error>| {
        let kind = error.as_ref().map(Error::kind);
        matches!(
            kind,
            Some(ErrorKind::ResourceExhausted | ErrorKind::TooLarge)
        )
    };
    assert_eq!(ends.iter().filter(is_size).count(), refused, "{ends:?}");
    assert_eq!(ends.len(), 1 + refused, "{ends:?}");
    assert_eq!(updates.len(), MANY - 1, "all of it comes again");
    assert!(removed.contains(&ResourceName::Workload(pod(0).into())));
}
