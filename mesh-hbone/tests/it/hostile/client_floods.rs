//! Clients that send more of something than anybody needs.

use mesh_hbone::ErrorKind;
use mesh_hbone::config::Config;

use super::wire::*;
use super::{Application, Server, settle};

/// Streams that a client may use: the odd numbers.
fn stream(at: u32) -> u32 {
    1 + 2 * at
}

/// S-01, CVE-2023-44487, RUSTSEC-2023-0034: streams that are reset before we look at them.
#[tokio::test(start_paused = true)]
async fn rapid_reset() {
    for application in [Application::Echoes, Application::Waits] {
        let mut server = Server::new(Config::default(), application).await;
        let mut pairs = Vec::new();
        for at in 0..1000 {
            pairs.extend(connect(stream(at)));
            pairs.extend(rst(stream(at), CANCEL));
        }
        server.raw.send(&pairs).await;
        settle().await;
        // No more of those that were reset in the queue are borne: the application hears of none beyond.
        assert!(server.asked() <= 20 && server.held() <= 20);
        server.closes("rapid reset", ENHANCE_YOUR_CALM).await;
    }
}

/// S-03, CVE-2025-8671: streams that the client makes *us* reset, while their work would go on.
#[tokio::test(start_paused = true)]
async fn made_you_reset() {
    type Violate = fn(u32) -> Vec<u8>;
    let violations: [(&str, Violate); 2] = [
        ("WINDOW_UPDATE overflow", |id| {
            [
                window_update(id, 0x7fff_ffff),
                window_update(id, 0x7fff_ffff),
            ]
            .concat()
        }),
        ("a dependency on itself", |id| priority(id, id)),
    ];
    for (what, violate) in violations {
        let config = Config::default().max_error_resets(100);
        let mut server = Server::new(config, Application::Echoes).await;
        // What is sent back never leaves, so that no stream ends by itself.
        server
            .raw
            .send(&settings(&[(INITIAL_WINDOW_SIZE, 0)]))
            .await;
        for at in 0..=100 {
            // Each is answered first, so that there is work to undo.
            server.raw.send(&connect(stream(at))).await;
            server.raw.send(&data(stream(at), 0, b"work")).await;
            settle().await;
            assert_eq!(
                server.held(),
                1,
                "{what}: work goes on for a stream that was reset"
            );
            server.raw.send(&violate(stream(at))).await;
            settle().await;
        }
        assert_eq!(server.asked(), 101, "{what}");
        server.closes(what, ENHANCE_YOUR_CALM).await;
    }
}

/// S-04, CVE-2024-27316, CVE-2024-30255, RUSTSEC-2024-0332: header blocks without an end, or with more than five
/// pieces before it.
#[tokio::test(start_paused = true)]
async fn continuation() {
    let some = block(&[("x", "y")]);
    for (what, piece) in [
        ("empty", &[][..]),
        ("small", &some),
        ("incomplete", &[0x00][..]),
    ] {
        let mut server = Server::echoing().await;
        let mut frames = frame(HEADERS, 0, 1, &connect_block());
        for _ in 0..6 {
            frames.extend(frame(CONTINUATION, 0, 1, piece));
        }
        server.raw.send(&frames).await;
        assert_eq!(server.asked(), 0);
        server.closes(what, ENHANCE_YOUR_CALM).await;
    }
    let mut server = Server::echoing().await;
    let mut frames = frame(HEADERS, 0, 1, &connect_block());
    for _ in 0..5 {
        frames.extend(frame(CONTINUATION, 0, 1, &some));
    }
    frames.extend(frame(CONTINUATION, END_HEADERS, 1, &[]));
    server.raw.send(&frames).await;
    settle().await;
    assert_eq!(server.asked(), 1, "five are borne");
}

/// S-05, RUSTSEC-2026-0258: DATA frames without data.
#[tokio::test(start_paused = true)]
async fn empty_data() {
    // h2 counts those that are unread, and has a bound of its own.
    let patient = Config::default().max_control_frames(u32::MAX);
    for application in [Application::Echoes, Application::Stalls, Application::Waits] {
        for (what, empty) in [
            ("empty", data(1, 0, b"")),
            ("nothing but padding", frame(DATA, PADDED, 1, &[3, 0, 0, 0])),
        ] {
            let mut server = Server::new(patient.clone(), application).await;
            server.raw.send(&connect(1)).await;
            server.raw.send(&empty.repeat(1000)).await;
            server.closes(what, ENHANCE_YOUR_CALM).await;
        }
    }
}

/// CVE-2019-9518's other half: DATA of one byte that nobody reads, beyond what it may cost.
#[tokio::test(start_paused = true)]
async fn tiny_data_that_nobody_reads() {
    let config = Config::default().data_frame_budget(255 * 1000);
    let mut server = Server::new(config.clone(), Application::Stalls).await;
    server.raw.send(&connect(1)).await;
    server.raw.send(&data(1, 0, b"x").repeat(1000)).await;
    settle().await;
    // Within the budget it costs nobody anything.
    server.raw.send(&ping(0, 7)).await;
    server.raw.until(PING).await;
    server.raw.send(&data(1, 0, b"x").repeat(2)).await;
    server.closes("tiny DATA", ENHANCE_YOUR_CALM).await;
    // What is read costs nothing.
    let mut server = Server::new(config, Application::Echoes).await;
    server.raw.send(&connect(1)).await;
    for _ in 0..100 {
        assert!(server.raw.send(&data(1, 0, b"x").repeat(100)).await);
        settle().await;
        server.raw.polite().await;
    }
    server.goes_on("tiny DATA that is read", 3).await;
}

/// With frames of which kind, and how many.
type Answered = Option<(u8, usize)>;

/// CVE-2019-9512, -9513, -9515: frames that want nothing or only an answer. Too many close the connection;
/// those that the settings allow cost one answer each, and the connection carries tunnels all the while.
#[tokio::test(start_paused = true)]
async fn frames_that_only_want_an_answer() {
    let shrinking = [
        settings(&[(INITIAL_WINDOW_SIZE, 0), (HEADER_TABLE_SIZE, 0)]),
        settings(&[(INITIAL_WINDOW_SIZE, 65_535), (HEADER_TABLE_SIZE, 4096)]),
    ]
    .concat();
    let rows: Vec<(&str, Vec<u8>, Answered)> = vec![
        ("PING", ping(0, 7), Some((PING, 1))),
        ("SETTINGS", settings(&[]), Some((SETTINGS, 1))),
        ("SETTINGS there and back", shrinking, Some((SETTINGS, 2))),
        ("PRIORITY", priority(1001, 3), None),
        ("unknown frames", frame(0xbe, 0, 0, &[]), None),
    ];
    for (what, one, answered) in rows {
        let mut server = Server::echoing().await;
        server.raw.send(&one.repeat(300)).await;
        server.closes(what, ENHANCE_YOUR_CALM).await;

        let patient = Config::default().max_control_frames(u32::MAX);
        let mut server = Server::new(patient, Application::Echoes).await;
        server.raw.polite().await;
        const COUNT: usize = 10_000;
        for _ in 0..COUNT / 100 {
            assert!(server.raw.send(&one.repeat(100)).await, "{what}");
        }
        settle().await;
        let mut seen = 0;
        while let Ok(frame) = server.raw.frames.try_recv() {
            assert_eq!(
                (frame.flags & ACK, answered.map(|(kind, _)| kind)),
                (ACK, Some(frame.kind)),
                "{what}"
            );
            seen += 1;
        }
        assert_eq!(seen, answered.map_or(0, |(_, each)| each * COUNT), "{what}");
        server.goes_on(what, 101).await;
    }
}

/// Windows open one byte at a time for honest peers too; they only cannot grow without end.
#[tokio::test(start_paused = true)]
async fn window_updates() {
    let mut server = Server::echoing().await;
    for _ in 0..100 {
        assert!(server.raw.send(&window_update(0, 1).repeat(100)).await);
    }
    server.goes_on("WINDOW_UPDATE", 101).await;
}

/// CVE-2019-9512, -9515, -9517: who asks and never reads the answers is not read on, and let go.
#[tokio::test(start_paused = true)]
async fn answers_that_nobody_reads() {
    for (what, one) in [
        ("PING", ping(0, 7)),
        ("SETTINGS", settings(&[])),
        (
            "CONNECT that is refused",
            headers(
                1,
                END_STREAM,
                &block(&[
                    (":method", "GET"),
                    (":scheme", "http"),
                    (":authority", "a"),
                    (":path", "/"),
                ]),
            ),
        ),
    ] {
        let patient = Config::default().max_control_frames(u32::MAX);
        let mut server = Server::silent(patient, Application::Echoes).await;
        let mut hello = PREFACE.to_vec();
        hello.extend(settings(&[]));
        assert!(server.raw.send(&hello).await);
        let mut sent = 0;
        let flood = async {
            let mut at = 0;
            loop {
                let mut frames = Vec::new();
                for _ in 0..100 {
                    let mut next = one.clone();
                    if next[3] == HEADERS {
                        next[5..9].copy_from_slice(&stream(at).to_be_bytes());
                        at += 1;
                    }
                    frames.extend(next);
                }
                sent += frames.len();
                if !server.raw.send(&frames).await {
                    return;
                }
            }
        };
        // It stands as soon as the buffers between us are full.
        let stood = tokio::time::timeout(std::time::Duration::from_secs(3600), flood).await;
        assert!(stood.is_ok(), "{what}: nobody let it go");
        assert!(sent < 4 << 20, "{what}: {sent} bytes were taken");
        let error = server.outcome().await.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Http2),
            "{what}: {error:?}"
        );
    }
}
