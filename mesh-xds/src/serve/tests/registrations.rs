//! In what order entries are told of and what has not come back is given up, by a clock that stands still.

use std::time::Duration;

use mesh_authz::Identity;
use tokio::time::{Instant, timeout};

use super::registry::{RETURN, group, host};
use crate::serve::server::Registered;
use crate::serve::status::{ClientStatus, Features};
use crate::serve::store::Store;
use crate::serve::{Authenticating, Authenticator, Credentials, Server, Unauthenticated};

struct Nobody;

impl Authenticator for Nobody {
    fn authenticate<'a>(&'a self, _: &'a Credentials) -> Authenticating<'a> {
        Box::pin(async { Err(Unauthenticated::new("nobody may")) })
    }
}

/// A host that is registered until this is dropped.
fn joined(server: &Server) -> Registered {
    let client = server.shared.enter(ClientStatus {
        id: 0,
        identity: Identity::new("td", "bank", "forum").unwrap(),
        node_id: String::new(),
        version: None,
        features: Features::default(),
        delta: true,
        subscriptions: Vec::new(),
        health: None,
    });
    let mut client = client.expect("a place");
    client.register(host("10.0.0.1")).unwrap();
    client
}

#[tokio::test(start_paused = true)]
async fn hosts_have_the_time_to_come_back_that_is_set() {
    let seconds = Duration::from_secs;
    let server = Server::builder(Nobody)
        .host_return(seconds(7))
        .registration_grace(seconds(3))
        .build();
    let mut registrations = server.registrations();
    server.set_workload_groups(vec![group("forum")]);
    let looks = seconds(1);
    // Those of a server before this one.
    let began = Instant::now();
    while server.shared.read(Store::is_waiting) {
        let _ = timeout(looks, registrations.changed()).await;
    }
    let waited = began.elapsed();
    assert!((seconds(7)..=seconds(9)).contains(&waited), "{waited:?}");
    // And its own.
    drop(joined(&server));
    let began = Instant::now();
    while !registrations.entries().is_empty() {
        let _ = timeout(looks, registrations.changed()).await;
    }
    let waited = began.elapsed();
    assert!((seconds(3)..=seconds(5)).contains(&waited), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn who_came_back_at_the_last_moment_is_told_of_before_the_others_are_gone() {
    let server = Server::builder(Nobody).host_return(RETURN).build();
    let mut registrations = server.registrations();
    server.set_workload_groups(vec![group("forum")]);
    let _client = joined(&server);
    tokio::time::advance(RETURN).await;
    registrations.changed().await;
    assert_eq!(registrations.entries().len(), 1);
    assert!(server.shared.read(Store::is_waiting), "it is to be applied");
    // Whoever asks again has applied it.
    let again = timeout(Duration::from_secs(1), registrations.changed());
    assert!(again.await.is_err(), "nothing changed");
    assert!(!server.shared.read(Store::is_waiting));
}
