//! Requests that fail before their server looked at them, and connections that make room for others.

use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Full};
use mesh_core::authz::policy::Action;
use mesh_core::hbone::config::Config;
use mesh_core::xds::model::TunnelProtocol;
use mesh_core::{BoxedIo, Error, ErrorKind, Mesh, MeshBody, MeshListener, MeshStream, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use crate::mesh_requests::{OK, by_hand};
use crate::mesh_world::{PORT, World, policy};

fn request(host: &str, version: Version, body: &'static str) -> Request<Full<Bytes>> {
    let uri = format!("http://{host}:{PORT}/");
    let mut request = Request::post(uri).body(Full::from(body)).unwrap();
    *request.version_mut() = version;
    request
}

pub(crate) async fn ask(
    client: &Mesh,
    host: &str,
    version: Version,
) -> Result<Response<MeshBody>, Error> {
    let client = client.http_client();
    client.request(request(host, version, "")).await
}

pub(crate) async fn whole(response: Response<MeshBody>) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

#[tokio::test(start_paused = true)]
async fn a_failed_http_2_dial_fails_all_who_wait_for_it_and_is_not_repeated_for_each() {
    let (dials, failing) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (count, fail) = (Arc::clone(&dials), Arc::clone(&failing));
    let transport = Transport::new(
        move |_: SocketAddr| {
            count.fetch_add(1, Ordering::Relaxed);
            let fail = Arc::clone(&fail);
            async move {
                fail.notified().await;
                Err::<BoxedIo, _>(io::ErrorKind::ConnectionRefused.into())
            }
        },
        |_| std::future::ready(Err(io::ErrorKind::Unsupported.into())),
    );
    let world = World::with(150, |node| node.transport(transport).connect_attempts(1));
    let (client, _) = world.pair().await;
    let plain = world.workload("server", 2);
    let plain = plain.with_protocol(TunnelProtocol::None);
    world.control.set(vec![plain.into()]).await;

    let requests = (0..20).map(|_| ask(&client, "server", Version::HTTP_2));
    let all = futures_util::future::join_all(requests);
    let fail = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        failing.notify_one();
    };
    let (all, ()) = tokio::join!(all, fail);
    for result in all {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectFailed, "{error:?}");
        assert!(error.is_retry_safe());
        let cause = error.source().expect("the cause is told to each");
        assert!(cause.to_string().contains("refused"), "{cause}");
    }
    assert_eq!(dials.load(Ordering::Relaxed), 1);

    // Failures are not remembered.
    failing.notify_one();
    ask(&client, "server", Version::HTTP_2).await.unwrap_err();
    assert_eq!(dials.load(Ordering::Relaxed), 2);
}

/// What a server does with the first stream of its first connection.
#[derive(Clone, Copy)]
enum First {
    /// Refuses it at once.
    Refuse,
    /// Refuses it when it has seen some of its body.
    RefuseLater,
    /// Leaves, and says that it has not looked at it.
    GoAway,
    /// Has its body and gives it up.
    Cancel,
    /// Has its body and fails.
    Fail,
    /// Has its body, leaves, and says that it may have acted on it.
    GoAwayAfter,
    /// Has its body and is gone.
    Vanish,
}

/// Serves HTTP/2, and counts the streams that came.
fn serve(mut listener: MeshListener, first: First) -> Arc<AtomicUsize> {
    let streams = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&streams);
    tokio::spawn(async move {
        while let Ok(stream) = listener.accept().await {
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let begins = count.load(Ordering::Relaxed) == 0;
                match first {
                    First::GoAway if begins => go_away(stream, &count).await,
                    _ => answer(stream, first, &count).await,
                }
            });
        }
    });
    streams
}

async fn answer(stream: MeshStream, first: First, count: &AtomicUsize) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let begins = count.fetch_add(1, Ordering::Relaxed) == 0;
        let mut body = request.into_body();
        let reason = match first {
            First::Refuse | First::RefuseLater | First::GoAway => Reason::REFUSED_STREAM,
            First::Cancel => Reason::CANCEL,
            First::Fail => Reason::INTERNAL_ERROR,
            First::GoAwayAfter | First::Vanish => Reason::NO_ERROR,
        };
        if begins && reason == Reason::NO_ERROR {
            // Its DATA comes while the connection is driven.
            let seen = tokio::select! {
                seen = body.data() => seen,
                other = connection.accept() => panic!("{other:?}"),
            };
            seen.unwrap().unwrap();
            if matches!(first, First::GoAwayAfter) {
                connection.abrupt_shutdown(Reason::NO_ERROR);
                while connection.accept().await.is_some() {}
            }
            return;
        }
        tokio::spawn(async move {
            if begins {
                if !matches!(first, First::Refuse) {
                    body.data().await.unwrap().unwrap();
                }
                respond.send_reset(reason);
                return;
            }
            let mut said = String::from("answer to ");
            while let Some(data) = body.data().await {
                said.push_str(std::str::from_utf8(&data.unwrap()).unwrap());
            }
            let mut body = respond.send_response(Response::new(()), false).unwrap();
            body.send_data(said.into(), true).unwrap();
        });
    }
}

/// `GOAWAY(last stream 0, NO_ERROR)` at the first HEADERS.
async fn go_away(mut stream: MeshStream, count: &AtomicUsize) {
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await.unwrap();
    stream
        .write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
        .await
        .unwrap();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        stream
            .read_exact(&mut vec![0; length as usize])
            .await
            .unwrap();
        if head[3] == 1 {
            break;
        }
    }
    count.fetch_add(1, Ordering::Relaxed);
    let frame = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    stream.write_all(&frame).await.unwrap();
    stream.shutdown().await.unwrap();
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

#[tokio::test]
async fn a_stream_that_its_server_refused_is_sent_again() {
    for (net, first) in [(151, First::Refuse), (152, First::GoAway)] {
        let world = World::new(net);
        let (client, server) = world.pair().await;
        let streams = serve(server.listen(PORT).await.unwrap(), first);
        let response = ask(&client, "server", Version::HTTP_2).await.unwrap();
        assert_eq!(whole(response).await, "answer to ");
        assert_eq!(streams.load(Ordering::Relaxed), 2);
    }
}

#[tokio::test]
async fn a_refused_stream_whose_body_was_begun_is_sent_again_from_what_is_kept() {
    let world = World::with(153, |node| node.replay_buffer(4));
    let (client, server) = world.pair().await;
    let streams = serve(server.listen(PORT).await.unwrap(), First::RefuseLater);
    let body = request("server", Version::HTTP_2, "body");
    let response = client.http_client().request(body).await.unwrap();
    assert_eq!(whole(response).await, "answer to body");
    assert_eq!(streams.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_refused_stream_of_which_more_was_read_than_is_kept_is_not_sent_again() {
    let world = World::with(161, |node| node.replay_buffer(3));
    let (client, server) = world.pair().await;
    let streams = serve(server.listen(PORT).await.unwrap(), First::RefuseLater);
    let body = request("server", Version::HTTP_2, "body");
    let error = client.http_client().request(body).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RefusedStream, "{error:?}");
    assert_eq!(streams.load(Ordering::Relaxed), 1);
    let response = ask(&client, "server", Version::HTTP_2).await.unwrap();
    assert_eq!(whole(response).await, "answer to ");
}

/// Refuses the first call when it has its message, and answers the next with the same message.
async fn greet(stream: MeshStream, calls: Arc<AtomicUsize>) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let refuses = calls.fetch_add(1, Ordering::Relaxed) == 0;
        tokio::spawn(async move {
            let mut body = request.into_body();
            let mut message = Vec::new();
            while let Some(data) = body.data().await {
                message.extend_from_slice(&data.unwrap());
            }
            if refuses {
                return respond.send_reset(Reason::REFUSED_STREAM);
            }
            let head = Response::builder().header("content-type", "application/grpc");
            let mut body = respond
                .send_response(head.body(()).unwrap(), false)
                .unwrap();
            body.send_data(message.into(), false).unwrap();
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", 0.into());
            body.send_trailers(trailers).unwrap();
        });
    }
}

#[tokio::test]
async fn a_unary_grpc_call_that_its_server_refused_is_sent_again() {
    let world = World::new(45);
    let (client, server) = world.pair().await;
    let mut listener = server.listen(PORT).await.unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    tokio::spawn(async move {
        while let Ok(stream) = listener.accept().await {
            tokio::spawn(greet(stream, Arc::clone(&count)));
        }
    });
    let origin = format!("http://server:{PORT}").parse().unwrap();
    let mut grpc = tonic::client::Grpc::with_origin(client.http_client(), origin);
    grpc.ready().await.unwrap();
    let call = tonic::Request::new("hello".to_owned());
    let path = http::uri::PathAndQuery::from_static("/greeter/greet");
    let answer = grpc.unary(call, path, crate::testing_tonic::Text).await;
    assert_eq!(answer.unwrap().into_inner(), "hello");
    assert_eq!(calls.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_grpc_client_hears_what_went_wrong_in_grpcs_own_words() {
    use tonic::Code;
    let world = World::new(147);
    let (client, server) = world.pair().await;
    let call = |host: &'static str| {
        let origin = format!("http://{host}:{PORT}").parse().unwrap();
        let mut grpc = tonic::client::Grpc::with_origin(client.http_client(), origin);
        async move {
            grpc.ready().await.unwrap();
            let call = tonic::Request::new("hello".to_owned());
            let path = http::uri::PathAndQuery::from_static("/greeter/greet");
            let answer = grpc.unary(call, path, crate::testing_tonic::Text).await;
            answer.map(|_| ()).unwrap_err()
        }
    };
    let nobody = call("server").await;
    assert_eq!(nobody.code(), Code::Unavailable, "{nobody:?}");
    assert!(nobody.message().contains("connecting failed"), "{nobody:?}");
    world
        .control
        .set(vec![policy("none", Action::Allow, vec![])])
        .await;
    let _listener = server.listen(PORT).await.unwrap();
    let denied = call("server").await;
    assert_eq!(denied.code(), Code::PermissionDenied, "{denied:?}");
    // It is the mesh's error still.
    let source = denied.source();
    assert!(source.is_some(), "{denied:?}");
}

/// Answers with one message and no end; when that was read, what carries it is gone, or the stream reset.
async fn break_off(stream: MeshStream, read: Arc<Notify>, reset: Option<Reason>) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
    let head = Response::builder().header("content-type", "application/grpc");
    let head = head.body(()).unwrap();
    let mut body = respond.send_response(head, false).unwrap();
    let message = Bytes::from_static(b"\0\0\0\0\x05hello");
    body.send_data(message, false).unwrap();
    tokio::select! {
        _ = connection.accept() => panic!("it goes on"),
        () = read.notified() => {}
    }
    if let Some(reason) = reset {
        body.send_reset(reason);
        while connection.accept().await.is_some() {}
    }
}

#[tokio::test]
async fn a_grpc_client_hears_why_a_stream_broke_off_too() {
    use tonic::Code;
    for (net, reset, code, word) in [
        (222, None, Code::Unavailable, "reset the tunnel"),
        // What the peer says itself.
        (
            223,
            Some(Reason::ENHANCE_YOUR_CALM),
            Code::ResourceExhausted,
            "",
        ),
    ] {
        let world = World::new(net);
        let (client, server) = world.pair().await;
        let mut listener = server.listen(PORT).await.unwrap();
        let read = Arc::new(Notify::new());
        let was_read = Arc::clone(&read);
        tokio::spawn(async move {
            let stream = listener.accept().await.unwrap();
            break_off(stream, was_read, reset).await;
        });
        let origin = format!("http://server:{PORT}").parse().unwrap();
        let mut grpc = tonic::client::Grpc::with_origin(client.http_client(), origin);
        grpc.ready().await.unwrap();
        let call = tonic::Request::new("hello".to_owned());
        let path = http::uri::PathAndQuery::from_static("/greeter/greet");
        let text = crate::testing_tonic::Text;
        let answer = grpc.server_streaming(call, path, text).await;
        let mut answers = answer.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap().unwrap(), "hello");
        read.notify_one();
        let broken = answers.message().await.unwrap_err();
        assert_eq!(broken.code(), code, "{broken:?}");
        assert!(broken.message().contains(word), "{broken:?}");
    }
}

#[tokio::test]
async fn a_body_that_the_server_may_have_acted_on_is_sent_once() {
    for (net, first) in [
        (162, First::Cancel),
        (163, First::Fail),
        (164, First::GoAwayAfter),
        (165, First::Vanish),
    ] {
        let world = World::new(net);
        let (client, server) = world.pair().await;
        let streams = serve(server.listen(PORT).await.unwrap(), first);
        let body = request("server", Version::HTTP_2, "body");
        let error = client.http_client().request(body).await.unwrap_err();
        assert!(!error.is_retry_safe(), "{error:?}");
        assert_eq!(streams.load(Ordering::Relaxed), 1, "{error:?}");
    }
}

#[tokio::test]
async fn retries_of_refused_streams_end_with_the_attempts() {
    let world = World::with(154, |node| node.connect_attempts(1));
    let (client, server) = world.pair().await;
    let streams = serve(server.listen(PORT).await.unwrap(), First::Refuse);
    let error = ask(&client, "server", Version::HTTP_2).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RefusedStream, "{error:?}");
    assert!(error.is_retry_safe());
    assert_eq!(streams.load(Ordering::Relaxed), 1);
}

/// Three servers beside the client.
pub(crate) async fn three(world: &World) -> (Mesh, [MeshListener; 3]) {
    let mut updates = vec![world.workload("client", 1).into()];
    for (name, host) in [("a", 2), ("b", 3), ("c", 4)] {
        updates.push(world.workload(name, host).into());
        updates.push(world.service(name, host).into());
    }
    world.control.set(updates).await;
    let listeners = [
        world.mesh("a").listen(PORT).await.unwrap(),
        world.mesh("b").listen(PORT).await.unwrap(),
        world.mesh("c").listen(PORT).await.unwrap(),
    ];
    (world.mesh("client"), listeners)
}

#[tokio::test]
async fn idle_http_connections_make_room_for_new_peers_when_all_tunnels_are_taken() {
    let world = World::with(155, |node| node.hbone(Config::default().max_connections(2)));
    let (client, listeners) = three(&world).await;
    for listener in listeners {
        by_hand(listener, OK, usize::MAX);
    }
    for host in ["a", "b", "c", "a", "c", "b"] {
        let response = ask(&client, host, Version::HTTP_11).await.unwrap();
        assert_eq!(whole(response).await, "ok");
    }
    // Those that requests have stay.
    let busy = [
        ask(&client, "a", Version::HTTP_11).await.unwrap(),
        ask(&client, "b", Version::HTTP_11).await.unwrap(),
    ];
    let error = ask(&client, "c", Version::HTTP_11).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    for response in busy {
        assert_eq!(whole(response).await, "ok");
    }
    ask(&client, "c", Version::HTTP_11).await.unwrap();
}

#[tokio::test]
async fn idle_http_2_connections_make_room_too() {
    let world = World::with(156, |node| node.hbone(Config::default().max_connections(2)));
    let (client, listeners) = three(&world).await;
    for listener in listeners {
        let streams = serve(listener, First::Refuse);
        streams.store(1, Ordering::Relaxed);
    }
    for host in ["a", "b", "c", "a", "c", "b"] {
        let response = ask(&client, host, Version::HTTP_2).await.unwrap();
        assert_eq!(whole(response).await, "answer to ");
    }
    // Those that requests have stay.
    let busy = [
        ask(&client, "a", Version::HTTP_2).await.unwrap(),
        ask(&client, "b", Version::HTTP_2).await.unwrap(),
    ];
    let error = ask(&client, "c", Version::HTTP_2).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    for response in busy {
        assert_eq!(whole(response).await, "answer to ");
    }
    ask(&client, "c", Version::HTTP_2).await.unwrap();
}

/// Its tunnel has a place as well.
#[tokio::test]
async fn an_http_2_connection_that_takes_no_more_requests_makes_room() {
    let world = World::with(230, |node| {
        let hbone = Config::default().max_connections(1);
        node.hbone(hbone).connect_attempts(1)
    });
    let (client, [a, b, _]) = three(&world).await;
    serve(a, First::Refuse);
    serve(b, First::Refuse).store(1, Ordering::Relaxed);
    let error = ask(&client, "a", Version::HTTP_2).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RefusedStream, "{error:?}");
    let response = ask(&client, "b", Version::HTTP_2).await.unwrap();
    assert_eq!(whole(response).await, "answer to ");
}

/// It is sent again on another connection, for which there is no place but that of the one whose server refused.
#[tokio::test]
async fn a_retired_http_2_connection_makes_room_for_its_own_successor() {
    let one = Config::default().max_connections(1).max_outgoing_streams(1);
    let world = World::with(206, |node| node.hbone(one));
    let (client, server) = world.pair().await;
    let streams = serve(server.listen(PORT).await.unwrap(), First::Refuse);
    let response = ask(&client, "server", Version::HTTP_2).await.unwrap();
    assert_eq!(whole(response).await, "answer to ");
    assert_eq!(streams.load(Ordering::Relaxed), 2);
}

/// Its connection is not used again, and ends only when its task has had a turn.
#[tokio::test]
async fn a_response_that_is_dropped_unread_makes_room() {
    for (net, version) in [(249, Version::HTTP_11), (250, Version::HTTP_2)] {
        let world = World::with(net, |node| node.hbone(Config::default().max_connections(1)));
        let (client, [a, b, _]) = three(&world).await;
        for listener in [a, b] {
            match version {
                Version::HTTP_2 => serve(listener, First::Refuse).store(1, Ordering::Relaxed),
                _ => drop(by_hand(listener, OK, usize::MAX)),
            }
        }
        for host in ["a", "b", "a"] {
            drop(ask(&client, host, version).await.unwrap());
        }
    }
}

/// Who makes room at once with another is not refused because that one was faster.
#[tokio::test]
async fn all_who_make_room_at_once_have_some() {
    let world = World::with(254, |node| node.hbone(Config::default().max_connections(2)));
    let (client, listeners) = three(&world).await;
    for listener in listeners {
        by_hand(listener, OK, usize::MAX);
    }
    for (name, host) in [("d", 5), ("e", 6)] {
        let more = [
            world.workload(name, host).into(),
            world.service(name, host).into(),
        ];
        world.control.set(more.into()).await;
        by_hand(world.mesh(name).listen(PORT).await.unwrap(), OK, usize::MAX);
    }
    let whole_of = async |host| {
        let response = ask(&client, host, Version::HTTP_11).await.unwrap();
        assert_eq!(whole(response).await, "ok");
    };
    for _ in 0..20 {
        for (one, other) in [("a", "b"), ("c", "c"), ("d", "e"), ("a", "a")] {
            tokio::join!(whole_of(one), whole_of(other));
            // Until their connections are idle.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn only_connections_that_hold_a_tunnel_make_room_and_no_more_than_helps() {
    let world = World::with(148, |node| node.hbone(Config::default().max_connections(1)));
    let (client, listeners) = three(&world).await;
    let plain = world.workload("b", 3).with_protocol(TunnelProtocol::None);
    world.control.set(vec![plain.into()]).await;
    let accepted = listeners.map(|listener| by_hand(listener, OK, usize::MAX));
    let counts = || {
        accepted
            .each_ref()
            .map(|count| count.load(Ordering::Relaxed))
    };
    // The only connection has a request, so there is no room; what is idle is plaintext.
    let response = ask(&client, "b", Version::HTTP_11).await.unwrap();
    assert_eq!(whole(response).await, "ok");
    let busy = ask(&client, "a", Version::HTTP_11).await.unwrap();
    for _ in 0..2 {
        let error = ask(&client, "c", Version::HTTP_11).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Overloaded);
    }
    let response = ask(&client, "b", Version::HTTP_11).await.unwrap();
    assert_eq!(whole(response).await, "ok");
    assert_eq!(counts(), [1, 1, 0]);
    // Now it is idle.
    assert_eq!(whole(busy).await, "ok");
    let response = ask(&client, "c", Version::HTTP_11).await.unwrap();
    assert_eq!(whole(response).await, "ok");
    let response = ask(&client, "b", Version::HTTP_11).await.unwrap();
    assert_eq!(whole(response).await, "ok");
    assert_eq!(counts(), [1, 1, 1]);
}

#[tokio::test]
async fn of_more_idle_connections_than_set_the_least_recently_used_goes() {
    let world = World::with(157, |node| node.max_idle_connections(2));
    let (client, listeners) = three(&world).await;
    let accepted = listeners.map(|listener| by_hand(listener, OK, usize::MAX));
    for host in ["a", "b", "c", "a", "c"] {
        let response = ask(&client, host, Version::HTTP_11).await.unwrap();
        assert_eq!(whole(response).await, "ok");
        // Instants that differ.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let counts = accepted.map(|count| count.load(Ordering::Relaxed));
    assert_eq!(counts, [2, 1, 1]);
}

/// The one that a request looks for does not count.
#[tokio::test]
async fn of_more_idle_http_2_connections_than_set_the_least_recently_used_goes() {
    let world = World::with(231, |node| node.max_idle_connections(1));
    let (client, listeners) = three(&world).await;
    let accepted = listeners.map(|mut listener| {
        let (streams, accepted) = (AtomicUsize::new(1), Arc::new(AtomicUsize::new(0)));
        let (streams, count) = (Arc::new(streams), Arc::clone(&accepted));
        tokio::spawn(async move {
            while let Ok(stream) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let streams = Arc::clone(&streams);
                tokio::spawn(async move { answer(stream, First::Refuse, &streams).await });
            }
        });
        accepted
    });
    for host in ["a", "b", "c", "b", "a", "b", "c"] {
        let response = ask(&client, host, Version::HTTP_2).await.unwrap();
        assert_eq!(whole(response).await, "answer to ");
        // Instants that differ.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let counts = accepted.map(|count| count.load(Ordering::Relaxed));
    assert_eq!(counts, [2, 1, 2]);
}
