//! In what order entries are told of and what has not come back is given up, by a clock that stands still.

use std::time::Duration;

use mesh_authz::Identity;

use super::registry::{RETURN, group, host};
use crate::serve::status::ClientStatus;
use crate::serve::store::Store;
use crate::serve::{Authenticating, Authenticator, Credentials, Server, Unauthenticated};

struct Nobody;

impl Authenticator for Nobody {
    fn authenticate<'a>(&'a self, _: &'a Credentials) -> Authenticating<'a> {
        Box::pin(async { Err(Unauthenticated::new("nobody may")) })
    }
}

#[tokio::test(start_paused = true)]
async fn who_came_back_at_the_last_moment_is_told_of_before_the_others_are_gone() {
    let server = Server::builder(Nobody).host_return(RETURN).build();
    let mut registrations = server.registrations();
    server.set_workload_groups(vec![group("forum")]);
    let mut client = server.shared.enter(ClientStatus {
        id: 0,
        identity: Identity::new("td", "bank", "forum").unwrap(),
        node_id: String::new(),
        version: None,
        delta: true,
        subscriptions: Vec::new(),
        health: None,
    });
    let client = client.as_mut().expect("a place");
    client.register(host("10.0.0.1")).unwrap();
    tokio::time::advance(RETURN).await;
    registrations.changed().await;
    assert_eq!(registrations.entries().len(), 1);
    assert!(server.shared.read(Store::is_waiting), "it is to be applied");
    // Whoever asks again has applied it.
    let again = tokio::time::timeout(Duration::from_secs(1), registrations.changed());
    assert!(again.await.is_err(), "nothing changed");
    assert!(!server.shared.read(Store::is_waiting));
}
