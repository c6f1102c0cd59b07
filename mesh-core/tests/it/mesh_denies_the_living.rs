//! A policy that comes to bind a workload ends the tunnels that it refuses, all of them and no others.

use std::io::ErrorKind;

use mesh_core::authz::policy::{Action, PolicyName};
use mesh_core::hbone::Tunnel;
use mesh_core::hbone::client::Sender;
use mesh_core::xds::model::{ResourceName, Scope, Update};
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

fn server(world: &World, policies: Vec<PolicyName>) -> Update {
    let workload = world.workload("server", 2);
    workload.with_authorization_policies(policies).into()
}

/// What a change binds, undone by another, for tunnels that live and for those to come.
async fn tunnels_are_refused_by(
    world: &World,
    change: Vec<Update>,
    (undo, gone): (Vec<Update>, Vec<ResourceName>),
) {
    let mut refused = Live::open(world, "refused").await;
    let mut admitted = Live::open(world, "admitted").await;
    world.control.set(change).await;
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
    let world = World::new(175);
    let (_, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let deny = policy("deny", Action::Deny, vec![caller("refused")]);
    let name = ResourceName::Policy(PolicyName::new("default", "deny"));
    tunnels_are_refused_by(&world, vec![deny], (Vec::new(), vec![name])).await;
}

/// permission is taken from those who live.
#[tokio::test]
async fn a_policy_that_is_attached_cuts_all_that_it_refuses_and_nothing_else() {
    let world = World::new(176);
    let (_, mesh) = world.pair().await;
    echo(mesh.listen(PORT).await.unwrap());
    let rules = vec![caller("refused")];
    let deny = scoped_policy("deny", Action::Deny, rules, Scope::Workload);
    world.control.set(vec![deny]).await;
    let attached = server(&world, vec![PolicyName::new("default", "deny")]);
    let detached = server(&world, Vec::new());
    tunnels_are_refused_by(&world, vec![attached], (vec![detached], Vec::new())).await;
}
