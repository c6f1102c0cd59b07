//! What one client may take of a server, so that something is left for others.

use std::time::{Duration, SystemTime};

use mesh_authz::Identity;
use mesh_xds::ErrorKind;
use mesh_xds::ca::SigningRequest;
use mesh_xds::model::{Batch, ObjectName, WorkloadGroup};
use mesh_xds::serve::{Registrations, Server};
use tonic::Code;

use crate::proto::type_url;
use crate::serve::{Stream, Tokens, authority, batch, node_of, open, open_as, serve};

#[tokio::test]
async fn one_identity_cannot_have_all_streams() {
    let server = Server::builder(Tokens)
        .max_clients(4)
        .max_clients_per_identity(2)
        .build();
    server.apply(batch(&["a"]));
    let uri = serve(&server, None).await;
    let mut stolen = Vec::new();
    for _ in 0..2 {
        stolen.push(open(&uri, "default/stolen").await.unwrap());
    }
    let refused = open(&uri, "default/stolen").await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(
        refused.message(),
        "more than 2 streams of spiffe://cluster.local/ns/default/sa/stolen"
    );
    let mut other = open(&uri, "default/other").await.unwrap();
    other.ask(type_url::ADDRESS, &[]).await;
    assert_eq!(other.next().await.resources.len(), 1);

    // Whoever ends one may open another.
    stolen.pop();
    while server.clients().len() > 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stolen.push(open(&uri, "default/stolen").await.unwrap());
    let refused = open(&uri, "default/stolen").await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let _last = open(&uri, "default/last").await.unwrap();
    let refused = open(&uri, "default/one-more").await.err().unwrap();
    assert_eq!(refused.message(), "more than 4 streams");
}

#[tokio::test]
async fn who_leaves_in_the_middle_of_a_response_is_gone_and_held_up_nobody() {
    let server = Server::builder(Tokens).build();
    // Together more than the 2 MiB of a client's window.
    let names: Vec<_> = (0..10_000).map(|n| format!("pod-{n:060}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    server.apply(batch(&names));
    let uri = serve(&server, None).await;
    // It reads no more than its window.
    let idle = open(&uri, "default/idle").await.unwrap();
    idle.ask(type_url::ADDRESS, &[]).await;
    while !server.clients().iter().any(|client| {
        let mut subscriptions = client.subscriptions().iter();
        subscriptions.any(|of| of.pending().is_some())
    }) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut other = open(&uri, "default/other").await.unwrap();
    other.ask(type_url::ADDRESS, &[]).await;
    assert_eq!(other.next().await.resources.len(), names.len());

    drop(idle);
    while server.clients().len() > 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(server.clients()[0].identity().service_account(), "other");
}

/// A host of a group, which reports what it is told to.
async fn host(server: &Server) -> (Stream, Registrations) {
    let group = WorkloadGroup::new(ObjectName::new("default", "forum"));
    server.apply(Batch::default());
    server.set_workload_groups(vec![group]);
    let uri = serve(server, None).await;
    let id = "sidecar~10.0.0.9~vm.default~default.svc.cluster.local";
    let node = node_of(id, &[("AUTO_REGISTER_GROUP", "forum")]);
    let mut stream = open_as(&uri, "default/forum", node).await.unwrap();
    stream.ask(type_url::ADDRESS, &["x"]).await;
    stream.next().await;
    (stream, server.registrations())
}

fn health(registrations: &Registrations) -> Option<Result<(), String>> {
    let entries = registrations.entries();
    let health = entries[0].health()?;
    Some(health.map_err(str::to_owned))
}

#[tokio::test]
async fn a_host_whose_health_flips_changes_its_entry_once_in_an_interval() {
    let builder = Server::builder(Tokens).host_return(Duration::ZERO);
    let server = builder.health_interval(Duration::MAX).build();
    let (mut stream, registrations) = host(&server).await;
    for why in [None, Some("down"), None, Some("down again")] {
        stream.say(type_url::HEALTH, &[], None, why).await;
    }
    // What is answered later was asked later.
    stream.ask(type_url::AUTHORIZATION, &["x"]).await;
    stream.next().await;
    assert_eq!(health(&registrations), Some(Ok(())));
    let said = server.clients()[0].health().map(|one| one.is_ok());
    assert_eq!(said, Some(false), "what it says is shown");
}

#[tokio::test]
async fn of_reports_that_come_too_soon_the_last_counts() {
    let builder = Server::builder(Tokens).host_return(Duration::ZERO);
    let server = builder.health_interval(Duration::from_millis(50)).build();
    let (stream, mut registrations) = host(&server).await;
    for why in [None, Some("down"), None, Some("down again")] {
        stream.say(type_url::HEALTH, &[], None, why).await;
    }
    while health(&registrations) != Some(Err("down again".to_owned())) {
        registrations.changed().await;
    }
}

#[test]
fn a_lifetime_that_no_clock_can_say_ends_with_the_authority() {
    let identity: Identity = "spiffe://td/ns/a/sa/b".parse().unwrap();
    let request = SigningRequest::new(&identity).unwrap();
    let ca = authority().with_lifetimes(Duration::MAX, Duration::MAX);
    for lifetime in [
        None,
        Some(Duration::MAX),
        Some(Duration::from_secs(i64::MAX.unsigned_abs())),
    ] {
        let chain = ca.sign(request.pem(), &identity, lifetime).unwrap();
        assert_eq!(not_after(&chain[0]), not_after(&chain[1]));
    }
    // And a clock from before all clocks is none.
    let early = authority().with_clock(|| SystemTime::UNIX_EPOCH);
    let refused = early.sign(request.pem(), &identity, None).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
}

fn not_after(pem: &str) -> i64 {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    let certificate = pem.parse_x509().unwrap();
    certificate.validity().not_after.timestamp()
}
