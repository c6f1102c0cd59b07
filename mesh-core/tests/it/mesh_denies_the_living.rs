//! A policy that comes to bind a workload ends the tunnels that it refuses, all of them and no others.

use std::io::ErrorKind;
use std::sync::Arc;

use mesh_core::authz::policy::istio::AuthorizationPolicy;
use mesh_core::authz::policy::{Action, PolicyName, TrustDomains};
use mesh_core::hbone::Tunnel;
use mesh_core::hbone::client::Sender;
use mesh_core::xds::model::{AttachedPolicy, ResourceName, Scope, Update};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::mesh_world::{PORT, World, caller, connect_to, echo, policy, refusal, scoped_policy};

const CONNECTIONS: usize = 5;
const TUNNELS: usize = 50;

/// A client's connections, and the tunnels on them.
struct Live {
    senders: Vec<Sender>,
    tunnels: Vec<Tunnel>,
}

impl Live {
    async fn open(world: &World, account: &str) -> Self {
        let (mut senders, mut tunnels) = (Vec::new(), Vec::new());
        for _ in 0..CONNECTIONS {
            let sender = world.bare_client(account, 2, "server").await;
            for _ in 0..TUNNELS {
                let request = connect_to(format!("{}:{PORT}", world.ip(2)));
                tunnels.push(sender.connect(request).await.unwrap().0);
            }
            senders.push(sender);
        }
        let mut live = Self { senders, tunnels };
        live.all_echo().await;
        live
    }

    async fn all_echo(&mut self) {
        for tunnel in &mut self.tunnels {
            tunnel.write_all(b"x").await.unwrap();
        }
        for tunnel in &mut self.tunnels {
            assert_eq!(tunnel.read_u8().await.unwrap(), b'x');
        }
    }

    async fn all_are_reset(&mut self) {
        for tunnel in &mut self.tunnels {
            let error = tunnel.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
    }
}

/// With a server that echoes.
async fn echoing(net: u8) -> World {
    let world = World::new(net);
    let (_, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    world
}

fn server(world: &World, policies: Vec<PolicyName>) -> Update {
    let workload = world.workload("server", 2);
    workload.with_authorization_policies(policies).into()
}

fn named(name: &str) -> ResourceName {
    ResourceName::Policy(PolicyName::new("default", name))
}

/// What a change binds, undone by another, for tunnels that live and for those to come.
async fn tunnels_are_refused_by(
    world: &World,
    change: Vec<Update>,
    undo: (Vec<Update>, Vec<ResourceName>),
) {
    tunnels_are_refused_after(world, (change, Vec::new()), undo).await;
}

async fn tunnels_are_refused_after(
    world: &World,
    (change, removed): (Vec<Update>, Vec<ResourceName>),
    (undo, gone): (Vec<Update>, Vec<ResourceName>),
) {
    let mut refused = Live::open(world, "refused").await;
    let mut admitted = Live::open(world, "admitted").await;
    for verdict in world.control.apply(change, removed).await {
        verdict.result().unwrap();
    }
    refused.all_are_reset().await;
    admitted.all_echo().await;
    // Their connections live, for what policy may permit again.
    let authority = format!("{}:{PORT}", world.ip(2));
    for sender in &refused.senders {
        assert_eq!(refusal(sender, &authority).await, 401);
    }
    for verdict in world.control.apply(undo, gone).await {
        verdict.result().unwrap();
    }
    refused.all_are_reset().await;
    admitted.all_echo().await;
    for sender in &refused.senders {
        sender.connect(connect_to(&authority)).await.unwrap();
    }
}

/// permission is taken from those who live.
#[tokio::test]
async fn a_policy_that_is_added_cuts_all_that_it_refuses_and_nothing_else() {
    added(175, Scope::Namespace("default".into())).await;
}

/// R-21d: a policy of the root namespace binds the whole mesh.
#[tokio::test]
async fn a_policy_of_the_mesh_cuts_all_that_it_refuses_and_nothing_else() {
    added(200, Scope::Mesh).await;
}

async fn added(net: u8, scope: Scope) {
    let world = echoing(net).await;
    let deny = scoped_policy("deny", Action::Deny, vec![caller("refused")], scope);
    tunnels_are_refused_by(&world, vec![deny], (Vec::new(), vec![named("deny")])).await;
}

/// permission is taken from those who live.
#[tokio::test]
async fn a_policy_that_is_attached_cuts_all_that_it_refuses_and_nothing_else() {
    let world = echoing(196).await;
    let rules = vec![caller("refused")];
    let deny = scoped_policy("deny", Action::Deny, rules, Scope::Workload);
    world.control.set(vec![deny]).await;
    let attached = server(&world, vec![PolicyName::new("default", "deny")]);
    let detached = server(&world, Vec::new());
    tunnels_are_refused_by(&world, vec![attached], (vec![detached], Vec::new())).await;
}

/// A server with an ALLOW for each of the two clients.
async fn with_an_allow_for_each(net: u8) -> World {
    let world = echoing(net).await;
    let allow = |account| policy(account, Action::Allow, vec![caller(account)]);
    world
        .control
        .set(vec![allow("refused"), allow("admitted")])
        .await;
    world
}

/// R-21a.
#[tokio::test]
async fn an_allow_that_is_removed_cuts_all_that_it_admitted_and_nothing_else() {
    let world = with_an_allow_for_each(197).await;
    let again = policy("refused", Action::Allow, vec![caller("refused")]);
    let removed = (Vec::new(), vec![named("refused")]);
    tunnels_are_refused_after(&world, removed, (vec![again], Vec::new())).await;
}

/// R-21a: the policy stays, and lists another identity.
#[tokio::test]
async fn an_identity_that_an_allow_no_longer_lists_loses_its_tunnels_and_nobody_else() {
    let world = with_an_allow_for_each(198).await;
    let allow = |account| policy("refused", Action::Allow, vec![caller(account)]);
    let undo = (vec![allow("refused")], Vec::new());
    tunnels_are_refused_by(&world, vec![allow("somebody")], undo).await;
}

/// R-21d: a policy that bound another namespace binds this one, and then another again.
#[tokio::test]
async fn a_policy_that_moves_to_the_namespace_cuts_all_that_it_refuses_and_nothing_else() {
    let world = echoing(199).await;
    let deny = |namespace: &str| {
        let scope = Scope::Namespace(namespace.into());
        scoped_policy("deny", Action::Deny, vec![caller("refused")], scope)
    };
    world.control.set(vec![deny("elsewhere")]).await;
    let undo = (vec![deny("elsewhere")], Vec::new());
    tunnels_are_refused_by(&world, vec![deny("default")], undo).await;
}

/// R-21e.
#[tokio::test]
async fn a_dry_run_cuts_nobody() {
    let world = echoing(201).await;
    let mut refused = Live::open(&world, "refused").await;
    let mut admitted = Live::open(&world, "admitted").await;
    let deny = |dry_run: bool| -> Update {
        let mut policy = AuthorizationPolicy::new("default", "deny");
        policy.action = Action::Deny;
        policy.dry_run = dry_run;
        policy.rules = vec![caller("refused")];
        let policy = policy.lower(&TrustDomains::default()).unwrap();
        AttachedPolicy::new(Arc::new(policy), Scope::Mesh).into()
    };
    world.control.set(vec![deny(true)]).await;
    refused.all_echo().await;
    admitted.all_echo().await;
    // The same in earnest does.
    world.control.set(vec![deny(false)]).await;
    refused.all_are_reset().await;
    admitted.all_echo().await;
}
