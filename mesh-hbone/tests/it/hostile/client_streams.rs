//! Clients that break the rules of frames and streams.

use mesh_hbone::config::Config;

use super::wire::*;
use super::{Application, Server, settle};

/// Every violation of the whole connection ends it, and nothing else.
///
/// h2 says PROTOCOL_ERROR where RFC 9113 has FRAME_SIZE_ERROR or FLOW_CONTROL_ERROR for SETTINGS and other
/// small frames, and takes a stream's WINDOW_UPDATE 0 and DATA
/// after END_STREAM for violations of the connection.
#[tokio::test(start_paused = true)]
async fn a_violation_of_the_connection_closes_it() {
    let get = block(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/"),
    ]);
    let pushed = {
        let mut payload = 2_u32.to_be_bytes().to_vec();
        payload.extend(get);
        payload
    };
    let ping7 = frame(PING, 0, 0, &[0; 7]);
    let opened = |then: Vec<u8>| [connect(1), then].concat();
    let rows: Vec<(&str, Vec<u8>, u32)> = vec![
        ("DATA on stream 0", data(0, 0, b"x"), PROTOCOL_ERROR),
        ("DATA on an idle stream", data(1, 0, b"x"), PROTOCOL_ERROR),
        ("HEADERS on stream 0", connect(0), PROTOCOL_ERROR),
        ("HEADERS on an even stream", connect(2), PROTOCOL_ERROR),
        (
            "HEADERS on an older stream",
            [connect(5), connect(3)].concat(),
            PROTOCOL_ERROR,
        ),
        ("RST_STREAM on stream 0", rst(0, CANCEL), PROTOCOL_ERROR),
        (
            "RST_STREAM on an idle stream",
            rst(1, CANCEL),
            PROTOCOL_ERROR,
        ),
        (
            "RST_STREAM of 3 bytes",
            frame(RST_STREAM, 0, 1, &[0; 3]),
            PROTOCOL_ERROR,
        ),
        (
            "WINDOW_UPDATE on an idle stream",
            window_update(1, 1),
            PROTOCOL_ERROR,
        ),
        (
            "WINDOW_UPDATE 0 on the connection",
            window_update(0, 0),
            PROTOCOL_ERROR,
        ),
        (
            "WINDOW_UPDATE beyond 2^31-1 on the connection",
            [window_update(0, 0x7fff_ffff), window_update(0, 0x7fff_ffff)].concat(),
            FLOW_CONTROL_ERROR,
        ),
        (
            "WINDOW_UPDATE of 5 bytes",
            frame(WINDOW_UPDATE, 0, 0, &[1; 5]),
            PROTOCOL_ERROR,
        ),
        ("PRIORITY on stream 0", priority(0, 1), PROTOCOL_ERROR),
        (
            "PRIORITY of 4 bytes",
            opened(frame(PRIORITY, 0, 1, &[0; 4])),
            PROTOCOL_ERROR,
        ),
        (
            "PUSH_PROMISE from a client",
            opened(frame(PUSH_PROMISE, END_HEADERS, 1, &pushed)),
            PROTOCOL_ERROR,
        ),
        (
            "CONTINUATION of nothing",
            frame(CONTINUATION, END_HEADERS, 1, &[]),
            PROTOCOL_ERROR,
        ),
        (
            "CONTINUATION of another stream",
            [
                frame(HEADERS, 0, 1, &connect_block()),
                frame(CONTINUATION, END_HEADERS, 3, &[]),
            ]
            .concat(),
            PROTOCOL_ERROR,
        ),
        (
            "PING within a header block",
            [frame(HEADERS, 0, 1, &connect_block()), ping(0, 1)].concat(),
            PROTOCOL_ERROR,
        ),
        (
            "HEADERS within a header block",
            [frame(HEADERS, 0, 1, &connect_block()), connect(3)].concat(),
            PROTOCOL_ERROR,
        ),
        ("PING of 7 bytes", ping7, PROTOCOL_ERROR),
        (
            "PING on a stream",
            frame(PING, 0, 1, &[0; 8]),
            PROTOCOL_ERROR,
        ),
        (
            "SETTINGS on a stream",
            frame(SETTINGS, 0, 1, &[]),
            PROTOCOL_ERROR,
        ),
        (
            "SETTINGS of 5 bytes",
            frame(SETTINGS, 0, 0, &[0; 5]),
            PROTOCOL_ERROR,
        ),
        (
            "SETTINGS ACK that says something",
            frame(SETTINGS, ACK, 0, &[0; 6]),
            PROTOCOL_ERROR,
        ),
        (
            "SETTINGS: ENABLE_PUSH 2",
            settings(&[(ENABLE_PUSH, 2)]),
            PROTOCOL_ERROR,
        ),
        (
            "SETTINGS: a window of 2^31",
            settings(&[(INITIAL_WINDOW_SIZE, 1 << 31)]),
            PROTOCOL_ERROR,
        ),
        (
            "SETTINGS: frames of 1 byte",
            settings(&[(MAX_FRAME_SIZE, 1)]),
            PROTOCOL_ERROR,
        ),
        (
            "SETTINGS: frames of 2^24",
            settings(&[(MAX_FRAME_SIZE, 1 << 24)]),
            PROTOCOL_ERROR,
        ),
        (
            "a window that overflows through SETTINGS",
            opened(
                [
                    window_update(1, 0x7fff_0000),
                    settings(&[(INITIAL_WINDOW_SIZE, 0x7fff_ffff)]),
                ]
                .concat(),
            ),
            FLOW_CONTROL_ERROR,
        ),
        (
            "DATA padded beyond its end",
            opened(frame(DATA, PADDED, 1, &[9, 0])),
            PROTOCOL_ERROR,
        ),
        (
            "HEADERS padded beyond their end",
            frame(HEADERS, END_HEADERS | PADDED, 1, &[200, 0]),
            PROTOCOL_ERROR,
        ),
        (
            "a frame larger than agreed",
            lying(DATA, 0, 1, (16 << 10) + 1),
            FRAME_SIZE_ERROR,
        ),
        (
            "a frame of 2^24-1",
            lying(HEADERS, END_HEADERS, 1, 0xff_ffff),
            FRAME_SIZE_ERROR,
        ),
        (
            "an unknown frame larger than agreed",
            lying(0xbe, 0, 0, 0xff_ffff),
            FRAME_SIZE_ERROR,
        ),
        (
            "GOAWAY on a stream",
            frame(GOAWAY, 0, 1, &[0; 8]),
            PROTOCOL_ERROR,
        ),
        (
            "GOAWAY of 7 bytes",
            frame(GOAWAY, 0, 0, &[0; 7]),
            PROTOCOL_ERROR,
        ),
        (
            "WINDOW_UPDATE 0 on a stream",
            opened(window_update(1, 0)),
            PROTOCOL_ERROR,
        ),
        (
            "DATA after END_STREAM",
            opened([data(1, END_STREAM, b"all"), data(1, 0, b"more")].concat()),
            PROTOCOL_ERROR,
        ),
        ("SETTINGS ACK of nothing", settings_ack(), PROTOCOL_ERROR),
        (
            "GOAWAY that takes back what it gave up",
            [goaway(0, NO_ERROR), goaway(8, NO_ERROR)].concat(),
            PROTOCOL_ERROR,
        ),
    ];
    let mut wrong = Vec::new();
    for (what, frames, code) in rows {
        let mut server = Server::echoing().await;
        server.raw.send(&frames).await;
        let end = server.end().await;
        if end != Ok(code) {
            wrong.push(format!("{what}: {end:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Every violation of one stream resets it; its neighbour on the same connection does not notice.
#[tokio::test(start_paused = true)]
async fn a_violation_of_a_stream_resets_only_it() {
    let rows: Vec<(&str, Vec<u8>, u32)> = vec![
        (
            "WINDOW_UPDATE beyond 2^31-1",
            [window_update(3, 0x7fff_ffff), window_update(3, 0x7fff_ffff)].concat(),
            FLOW_CONTROL_ERROR,
        ),
        (
            "a stream that depends on itself",
            priority(3, 3),
            PROTOCOL_ERROR,
        ),
        (
            "HEADERS after END_STREAM",
            [data(3, END_STREAM, b"all"), connect(3)].concat(),
            PROTOCOL_ERROR,
        ),
        ("a second CONNECT on the stream", connect(3), PROTOCOL_ERROR),
    ];
    for (what, frames, code) in rows {
        let mut server = Server::new(Config::default(), Application::Stalls).await;
        server.raw.send(&[connect(1), connect(3)].concat()).await;
        server.raw.until_on(HEADERS, 3).await;
        server.raw.send(&frames).await;
        let reset = loop {
            let frame = server.raw.next().await.expect(what);
            assert_ne!(frame.kind, GOAWAY, "{what}");
            if frame.kind == RST_STREAM {
                break frame;
            }
        };
        assert_eq!((reset.stream, reset.code()), (3, code), "{what}");
        settle().await;
        // The neighbour's window still opens, so somebody still reads its frames.
        assert!(server.raw.send(&data(1, 0, b"x")).await, "{what}");
        assert!(server.raw.send(&ping(0, 7)).await, "{what}");
        server.raw.until(PING).await;
        server.ends().await.unwrap();
    }
}

/// What a peer may say although it means nothing to us.
#[tokio::test(start_paused = true)]
async fn what_means_nothing_is_ignored() {
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("an unknown frame", frame(0xbe, 0xff, 0, &[7; 100])),
        ("an unknown frame on a stream", frame(0x4d, 0xff, 99, &[])),
        (
            "an unknown setting",
            settings(&[(0xbeef, 7), (0, 0), (0xffff, u32::MAX)]),
        ),
        ("PRIORITY of an idle stream", priority(9, 1)),
        (
            "a PING answer that nobody asked for",
            ping(ACK, 0x0b7b_a2f0_8b9b_fe54),
        ),
        (
            "a PING answer with our own payload",
            ping(ACK, 0x3b7c_db7a_0b87_16b4),
        ),
        ("reserved bits", window_update(0x8000_0000, 0x8000_0001)),
        (
            "RST_STREAM after the end",
            [
                connect(1),
                data(1, END_STREAM, b"x"),
                rst(1, CANCEL),
                rst(1, 99),
            ]
            .concat(),
        ),
    ];
    for (what, frames) in rows {
        let mut server = Server::echoing().await;
        assert!(server.raw.send(&frames).await, "{what}");
        settle().await;
        server.goes_on(what, 101).await;
    }
}

/// A client that says GOAWAY opens no more tunnels; those that are open go on.
#[tokio::test(start_paused = true)]
async fn goaway_from_a_client() {
    for (code, clean) in [
        (NO_ERROR, true),
        (ENHANCE_YOUR_CALM, false),
        (0xdead_beef, false),
    ] {
        let mut server = Server::echoing().await;
        server.raw.send(&connect(1)).await;
        for _ in 0..100 {
            assert!(server.raw.send(&goaway(0, code)).await);
        }
        server.raw.send(&data(1, END_STREAM, b"goes on")).await;
        assert_eq!(server.answers("GOAWAY", 1).await.unwrap(), b"goes on");
        let ended = server.outcome().await;
        assert_eq!(ended.is_ok(), clean, "{code}: {ended:?}");
    }
}

/// CVE-2021-32780 and its kin: GOAWAY, SETTINGS and streams in orders that make no sense.
#[tokio::test(start_paused = true)]
async fn goaway_and_settings_in_any_order() {
    let pieces = [
        goaway(0, NO_ERROR),
        goaway(0x7fff_ffff, ENHANCE_YOUR_CALM),
        settings(&[(MAX_CONCURRENT_STREAMS, 0)]),
        settings(&[(INITIAL_WINDOW_SIZE, 0)]),
        settings(&[(HEADER_TABLE_SIZE, 0)]),
        settings(&[(INITIAL_WINDOW_SIZE, 0x7fff_ffff)]),
        rst(1, CANCEL),
    ];
    for first in &pieces {
        for second in &pieces {
            let mut server = Server::echoing().await;
            let frames = [&connect(1)[..], first, second].concat();
            server.raw.send(&frames).await;
            settle().await;
            // Whatever it made of it: no panic, no spin, and it ends with the client.
            let ended = server.ends().await;
            assert!(ended.is_ok() || ended.unwrap_err().kind() == mesh_hbone::ErrorKind::Http2);
        }
    }
}

/// The first stream beyond the limit is refused, which says that it may be tried again.
#[tokio::test(start_paused = true)]
async fn streams_beyond_the_limit_are_refused() {
    let config = Config::default().max_incoming_streams(4);
    let mut server = Server::new(config, Application::Waits).await;
    for at in 0..100 {
        assert!(server.raw.send(&connect(1 + 2 * at)).await);
    }
    for at in 4..100 {
        let reset = server.raw.until(RST_STREAM).await;
        assert_eq!((reset.stream, reset.code()), (1 + 2 * at, REFUSED_STREAM));
    }
    assert_eq!((server.asked(), server.held()), (4, 4));
    server.ends().await.unwrap();
}
