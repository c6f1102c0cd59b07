//! Inbound connections: who is admitted, what the others are told, and what happens when policies change.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use http::{Method, Request, StatusCode};
use mesh_core::authz::policy::Action;
use mesh_core::authz::policy::PolicyName;
use mesh_core::hbone::tls;
use mesh_core::xds::model::{ResourceName, Scope};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::handler::to;
use crate::mesh_world::{
    PORT, World, caller, connect_to, echo, identity, ping, policy, refusal, scoped_policy, until,
};

/// S-18, CVE-2021-31921: a tunnel leads to the workload itself, and nowhere else.
#[tokio::test]
async fn a_connect_is_answered_as_ztunnel_answers() {
    let world = World::new(50);
    let (_, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let sender = world.bare_client("client", 2, "server").await;
    let own = |port| SocketAddr::new(world.ip(2), port);
    sender.connect(connect_to(own(PORT))).await.unwrap();
    sender
        .connect(connect_to(format!(
            "server.default.svc.cluster.local:{PORT}"
        )))
        .await
        .unwrap();
    assert_eq!(
        refusal(&sender, own(PORT + 1)).await,
        503,
        "nothing listens"
    );
    assert_eq!(
        refusal(&sender, SocketAddr::new(world.ip(7), PORT)).await,
        400,
        "not ours"
    );
    assert_eq!(
        refusal(&sender, "other.default.svc.cluster.local:80").await,
        503,
        "no such service"
    );

    world
        .control
        .set(vec![policy("none", Action::Allow, vec![])])
        .await;
    assert_eq!(refusal(&sender, own(PORT)).await, 401);
    // Who may not connect learns nothing of who listens.
    assert_eq!(refusal(&sender, own(PORT + 1)).await, 401);
}

#[tokio::test]
async fn an_application_that_is_only_partly_ours_is_forwarded_to() {
    let world = World::with(51, |node| node.forward_unlistened(true));
    let (client, server) = world.pair().await;
    let _listener = server.listen(PORT).await.unwrap();
    let application = TcpListener::bind(SocketAddr::new(world.ip(2), 9999))
        .await
        .unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = application.accept().await {
            let mut said = [0; 4];
            stream.read_exact(&mut said).await.unwrap();
            stream.write_all(&said).await.unwrap();
        }
    });
    let target = SocketAddr::new(world.ip(2), 9999).to_string();
    ping(&mut client.connect(&target).await.unwrap())
        .await
        .unwrap();
    // A tunnel within a tunnel would come from the server's own address, one to a node proxy in its name.
    let sender = world.bare_client("client", 2, "server").await;
    let own = |port| SocketAddr::new(world.ip(2), port);
    let mut proxy = Vec::new();
    for port in [15001, 15006, 15080] {
        proxy.push(TcpListener::bind(own(port)).await.unwrap());
    }
    for port in [15001, 15006, 15008, 15080] {
        assert_eq!(refusal(&sender, own(port)).await, 503, "{port}");
    }
    world
        .control
        .set(vec![policy("none", Action::Allow, vec![])])
        .await;
    assert!(client.connect(&target).await.unwrap_err().is_denied());
}

/// A client that says `early` behind its CONNECT, without waiting for an answer: its status, and what comes back.
async fn hasty(world: &World, target: SocketAddr) -> (StatusCode, Vec<u8>) {
    let credentials = world.credentials("client").await;
    let io = TcpStream::connect(SocketAddr::new(target.ip(), 15008));
    let expected = [identity("server")];
    let stream = tls::connect(io.await.unwrap(), &credentials, &expected)
        .await
        .unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri(target.to_string());
    let (response, mut body) = sender
        .send_request(request.body(()).unwrap(), false)
        .unwrap();
    body.send_data("early".into(), true).unwrap();
    let response = response.await.unwrap();
    let (status, mut said) = (response.status(), Vec::new());
    let mut answer = response.into_body();
    // Of a refusal, a reset may be all that follows.
    while let Some(Ok(data)) = answer.data().await {
        said.extend_from_slice(&data);
    }
    connection.abort();
    (status, said)
}

/// S-09, CVE-2025-64763, CVE-2024-23326, CVE-2026-2833.
#[tokio::test]
async fn nothing_reaches_an_application_before_policy_has_let_it() {
    let world = World::with(226, |node| node.forward_unlistened(true));
    let (_, server) = world.pair().await;
    let mut listener = server.listen(PORT).await.unwrap();
    let ours = SocketAddr::new(world.ip(2), PORT);
    // Of an application that does not know the mesh. The kernel takes connections for it, whether it looks or not.
    let elsewhere = SocketAddr::new(world.ip(2), 9999);
    let application = std::net::TcpListener::bind(elsewhere).unwrap();
    application.set_nonblocking(true).unwrap();
    let denies = |account| policy("deny", Action::Deny, vec![caller(account)]);

    world.control.set(vec![denies("client")]).await;
    for target in [ours, elsewhere] {
        let (status, said) = hasty(&world, target).await;
        assert_eq!((status.as_u16(), said), (401, Vec::new()), "{target}");
    }
    let connected = application.accept().unwrap_err();
    assert_eq!(connected.kind(), std::io::ErrorKind::WouldBlock);
    assert!(listener.accept().now_or_never().is_none());

    // The same bytes come through where policy lets them.
    world.control.set(vec![denies("nobody")]).await;
    let application = TcpListener::from_std(application).unwrap();
    let forwarded = async {
        let mut stream = application.accept().await.unwrap().0;
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await.unwrap();
        stream.write_all(&said).await.unwrap();
    };
    let (answer, ()) = tokio::join!(hasty(&world, elsewhere), forwarded);
    assert_eq!(answer, (StatusCode::OK, b"early".to_vec()));
    echo(listener);
    let answer = hasty(&world, ours).await;
    assert_eq!(answer, (StatusCode::OK, b"early".to_vec()));
}

#[tokio::test]
async fn an_l4_listener_takes_l7_policies_in_their_reduction() {
    let world = World::new(52);
    let (client, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let target = format!("server:{PORT}");
    let get = || to(|operation| operation.methods = vec!["GET".into()]);
    client.connect(&target).await.unwrap();
    // An ALLOW with L7 parts allows nobody.
    world
        .control
        .set(vec![policy("p", Action::Allow, vec![get()])])
        .await;
    assert!(client.connect(&target).await.unwrap_err().is_denied());
    // A DENY loses them and denies everybody.
    world
        .control
        .set(vec![policy("p", Action::Deny, vec![get()])])
        .await;
    assert!(client.connect(&target).await.unwrap_err().is_denied());
    world
        .control
        .set(vec![policy(
            "p",
            Action::Allow,
            vec![get(), caller("client")],
        )])
        .await;
    client.connect(&target).await.unwrap();
}

async fn plaintext(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(b"ping").await?;
    stream.read_exact(&mut [0; 4]).await.map(drop)
}

#[tokio::test]
async fn plaintext_is_taken_unless_policy_or_the_builder_refuses_it() {
    let world = World::new(53);
    let (_, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let port = SocketAddr::new(world.ip(2), PORT);
    plaintext(port).await.unwrap();
    world
        .control
        .set(vec![policy("mtls", Action::Allow, vec![caller("*")])])
        .await;
    plaintext(port).await.unwrap_err();

    let world = World::with(54, |node| node.strict());
    let (client, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    plaintext(SocketAddr::new(world.ip(2), PORT))
        .await
        .unwrap_err();
    ping(&mut client.connect(format!("server:{PORT}")).await.unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_full_queue_is_503_and_frees_itself() {
    let world = World::with(55, |node| node.listener_queue(4));
    let (_, server) = world.pair().await;
    let mut listener = server.listen(PORT).await.unwrap();
    let sender = world.bare_client("client", 2, "server").await;
    let target = SocketAddr::new(world.ip(2), PORT);
    let mut admitted = Vec::new();
    for _ in 0..4 {
        admitted.push(sender.connect(connect_to(target)).await.unwrap());
    }
    for _ in 0..4 {
        assert_eq!(refusal(&sender, target).await, 503);
    }
    let _taken = listener.accept().await.unwrap();
    sender.connect(connect_to(target)).await.unwrap();
}

#[tokio::test]
async fn connections_beyond_the_bound_are_503_or_closed() {
    let world = World::with(56, |node| node.max_connections(4));
    let (_, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    // One socket for all tunnels.
    let sender = world.bare_client("client", 2, "server").await;
    let target = SocketAddr::new(world.ip(2), PORT);
    let mut admitted = Vec::new();
    for _ in 0..4 {
        admitted.push(sender.connect(connect_to(target)).await.unwrap());
    }
    for _ in 0..4 {
        assert_eq!(refusal(&sender, target).await, 503);
        plaintext(target).await.unwrap_err();
    }
    drop(admitted);
    for _ in 0..100 {
        if plaintext(target).await.is_ok() {
            return;
        }
    }
    panic!("the places never became free");
}

/// Those that say nothing give way to each other before all places are taken.
#[tokio::test]
async fn silent_sockets_to_the_port_of_tunnels_lock_no_tunnel_out() {
    let world = World::with(221, |node| node.max_connections(8));
    let (_, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let mut silent = Vec::new();
    for _ in 0..16 {
        let socket = TcpStream::connect(SocketAddr::new(world.ip(2), 15008)).await;
        silent.push(socket.unwrap());
    }
    let mut closed = vec![false; silent.len()];
    until("all but four are closed", || {
        for (stream, closed) in silent.iter_mut().zip(&mut closed) {
            *closed |= stream.read(&mut [0; 1]).now_or_never().is_some();
        }
        closed.iter().filter(|closed| **closed).count() == 12
    })
    .await;
    let sender = world.bare_client("client", 2, "server").await;
    let target = SocketAddr::new(world.ip(2), PORT);
    sender.connect(connect_to(target)).await.unwrap();
}

/// Half of the sockets may be plaintext that has not been admitted: the rest is for tunnels.
#[tokio::test]
async fn sockets_that_wait_for_policies_are_bounded() {
    let world = World::with(57, |node| node.max_connections(8));
    let (_, server) = world.pair().await;
    let mut listener = server.listen(PORT).await.unwrap();
    let waits = world
        .workload("server", 2)
        .with_authorization_policies(vec![PolicyName::new("default", "late")]);
    world.control.set(vec![waits.into()]).await;
    let target = SocketAddr::new(world.ip(2), PORT);
    let mut open = Vec::new();
    for _ in 0..16 {
        open.extend(TcpStream::connect(target).await.ok());
    }
    // Some were closed before the client had looked.
    let early = 16 - open.len();
    let mut closed = vec![false; open.len()];
    until("all but four are closed", || {
        for (stream, closed) in open.iter_mut().zip(&mut closed) {
            *closed |= stream.read(&mut [0; 1]).now_or_never().is_some();
        }
        early + closed.iter().filter(|closed| **closed).count() == 12
    })
    .await;
    world
        .control
        .set(vec![scoped_policy(
            "late",
            Action::Deny,
            vec![],
            Scope::Workload,
        )])
        .await;
    for _ in 0..4 {
        listener.accept().await.unwrap();
    }
}

/// Invariant 5: a list takes effect together with its policies.
#[tokio::test]
async fn a_listed_policy_that_is_not_here_holds_new_connections_and_leaves_live_ones() {
    let world = World::with(58, |node| node.policy_wait(Duration::from_millis(60)));
    let (client, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let target = format!("server:{PORT}");
    let mut live = client.connect(&target).await.unwrap();
    let late = PolicyName::new("default", "late");
    let listed = world
        .workload("server", 2)
        .with_authorization_policies(vec![late.clone()]);
    world.control.set(vec![listed.into()]).await;
    assert!(client.connect(&target).await.unwrap_err().is_denied());
    ping(&mut live).await.unwrap();

    // It comes while somebody waits.
    let comes = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let allow = scoped_policy(
            "late",
            Action::Allow,
            vec![caller("client")],
            Scope::Workload,
        );
        world.control.set(vec![allow]).await;
    };
    let (admitted, ()) = tokio::join!(client.connect(&target), comes);
    ping(&mut admitted.unwrap()).await.unwrap();

    let nobody = scoped_policy(
        "late",
        Action::Allow,
        vec![caller("nobody")],
        Scope::Workload,
    );
    world.control.set(vec![nobody]).await;
    assert!(ping(&mut live).await.is_err());
    assert!(client.connect(&target).await.unwrap_err().is_denied());
    // Removed by name while it is still listed: it is gone, not awaited.
    world
        .control
        .apply(vec![], vec![ResourceName::Policy(late)])
        .await;
    ping(&mut client.connect(&target).await.unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_change_of_attachment_judges_live_connections_again() {
    let world = World::new(59);
    let (client, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let only = scoped_policy(
        "only",
        Action::Allow,
        vec![caller("nobody")],
        Scope::Workload,
    );
    world.control.set(vec![only]).await;
    let target = format!("server:{PORT}");
    let mut live = client.connect(&target).await.unwrap();
    ping(&mut live).await.unwrap();
    // The policy stays what it was; the workload lists it now.
    let listed = world
        .workload("server", 2)
        .with_authorization_policies(vec![PolicyName::new("default", "only")]);
    world.control.set(vec![listed.into()]).await;
    assert!(ping(&mut live).await.is_err());
    assert!(client.connect(&target).await.unwrap_err().is_denied());
    world
        .control
        .set(vec![world.workload("server", 2).into()])
        .await;
    ping(&mut client.connect(&target).await.unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_record_that_comes_back_is_served_again() {
    let world = World::with(60, |node| node.policy_wait(Duration::from_millis(40)));
    let (_, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let sender = world.bare_client("client", 2, "server").await;
    let target = SocketAddr::new(world.ip(2), PORT);
    let (mut live, _) = sender.connect(connect_to(target)).await.unwrap();
    world
        .control
        .apply(vec![], vec![ResourceName::Workload("uid/server".into())])
        .await;
    assert_eq!(refusal(&sender, target).await, 503);
    live.write_all(b"still").await.unwrap();
    live.read_exact(&mut [0; 5]).await.unwrap();
    world
        .control
        .set(vec![world.workload("server", 2).into()])
        .await;
    sender.connect(connect_to(target)).await.unwrap();
}

/// Whoever takes a record away must not take with it what is refused from then on.
#[tokio::test]
async fn without_a_record_its_last_list_goes_on_changing() {
    let world = World::new(149);
    let (client, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let only = |account| {
        let rules = vec![caller(account)];
        scoped_policy("only", Action::Allow, rules, Scope::Workload)
    };
    let listed = world
        .workload("server", 2)
        .with_authorization_policies(vec![PolicyName::new("default", "only")]);
    world.control.set(vec![only("client"), listed.into()]).await;
    let mut live = client.connect(format!("server:{PORT}")).await.unwrap();
    let uid = ResourceName::Workload("uid/server".into());
    world.control.apply(vec![], vec![uid]).await;
    ping(&mut live).await.unwrap();
    world.control.set(vec![only("nobody")]).await;
    assert!(ping(&mut live).await.is_err());
}

/// Connections open while a policy goes back and forth: when it denies, none is left that it denies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_slips_through_a_change_of_policy() {
    let world = Arc::new(World::new(61));
    let (client, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let mut openers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (client, stop) = (client.clone(), Arc::clone(&stop));
        openers.spawn(async move {
            let mut open = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                open.extend(client.connect(format!("server:{PORT}")).await.ok());
                if open.len() > 12 {
                    open.remove(0);
                }
            }
            open
        });
    }
    let allow = |account| policy("p", Action::Allow, vec![caller(account)]);
    for _ in 0..50 {
        world.control.set(vec![allow("client")]).await;
        tokio::time::sleep(Duration::from_millis(3)).await;
        world.control.set(vec![allow("nobody")]).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut seen = 0;
    while let Some(open) = openers.join_next().await {
        for mut stream in open.unwrap() {
            seen += 1;
            assert!(ping(&mut stream).await.is_err());
        }
    }
    assert!(seen > 0, "the test opened nothing");
}

#[tokio::test]
async fn a_dropped_listener_gives_its_port_back_at_once() {
    let world = World::new(62);
    let (client, server) = world.pair().await;
    for _ in 0..20 {
        let listener = server.listen(PORT).await.unwrap();
        assert!(server.listen(PORT).await.is_err(), "one listener a port");
        drop(listener);
    }
    let error = client.connect(format!("server:{PORT}")).await.unwrap_err();
    assert_eq!(error.reply().status(), 503);
}

/// Each change looks at who listens, on another thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_listener_gives_its_port_back_while_configuration_changes() {
    let world = World::new(232);
    let (_, server) = world.pair().await;
    let listens = tokio::spawn(async move {
        for _ in 0..200 {
            drop(server.listen(PORT).await.unwrap());
            drop(server.listen_http(PORT).await.unwrap());
        }
    });
    for revision in ["v2", "v1"].into_iter().cycle() {
        let record = world
            .workload("server", 2)
            .with_canonical_revision(revision);
        world.control.set(vec![record.into()]).await;
        if listens.is_finished() {
            break;
        }
    }
    listens.await.unwrap();
}

#[tokio::test]
async fn the_last_handle_closes_every_socket() {
    let world = World::new(63);
    let (client, server) = world.pair().await;
    let listener = server.listen(PORT).await.unwrap();
    let silent = TcpStream::connect(SocketAddr::new(world.ip(2), 15008))
        .await
        .unwrap();
    let mut stream = client.connect(format!("server:{PORT}")).await.unwrap();
    drop((listener, server));
    // A peer that says nothing, and one with a tunnel, keep nothing alive.
    assert!(stream.read(&mut [0; 1]).await.is_err());
    let addresses = [PORT, 15008].map(|port| SocketAddr::new(world.ip(2), port));
    until("the ports are free", || {
        addresses
            .iter()
            .all(|address| std::net::TcpListener::bind(address).is_ok())
    })
    .await;
    drop(silent);
}
