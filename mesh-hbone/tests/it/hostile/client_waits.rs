//! Clients that take their time, or all of ours.

use std::time::Duration;

use mesh_hbone::config::Config;
use mesh_hbone::{ErrorKind, Side};
use tokio::time::{Instant, sleep, timeout};

use super::wire::*;
use super::{Application, Server, settle};

/// Says `bytes` one by one, a second apart; until when nobody listened any more.
async fn drip(server: &mut Server, bytes: &[u8]) {
    for byte in bytes {
        if !server.raw.send(&[*byte]).await {
            return;
        }
        sleep(Duration::from_secs(1)).await;
    }
}

async fn times_out(server: Server, start: Instant, after: u64) {
    let error = server.outcome().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.side()),
        (ErrorKind::Timeout, Side::Downstream)
    );
    let elapsed = start.elapsed();
    let after = Duration::from_secs(after);
    assert!(
        elapsed >= after && elapsed <= after + Duration::from_secs(1),
        "{elapsed:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_preface_byte_by_byte() {
    let mut server = Server::silent(Config::default(), Application::Echoes).await;
    let start = Instant::now();
    drip(&mut server, &PREFACE[..15]).await;
    times_out(server, start, 10).await;
}

#[tokio::test(start_paused = true)]
async fn a_preface_without_settings() {
    let mut server = Server::silent(Config::default(), Application::Echoes).await;
    server.raw.listen();
    let start = Instant::now();
    server.raw.send(PREFACE).await;
    sleep(Duration::from_secs(8)).await;
    drip(&mut server, &settings(&[])[..4]).await;
    times_out(server, start, 10).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_no_preface() {
    for hello in [
        &b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r",
        &[0; 24],
        b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n",
    ] {
        let mut server = Server::silent(Config::default(), Application::Echoes).await;
        server.raw.listen();
        server.raw.send(hello).await;
        let error = timeout(Duration::from_secs(1), server.outcome())
            .await
            .unwrap();
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Http2, "{hello:?}");
    }
}

/// A first frame that is not SETTINGS (RFC 9113 section 3.4).
#[tokio::test(start_paused = true)]
async fn a_preface_followed_by_something_else() {
    for (what, then) in [
        ("HEADERS", connect(1)),
        ("PING", ping(0, 1)),
        ("SETTINGS ACK", settings_ack()),
    ] {
        let mut server = Server::silent(Config::default(), Application::Stalls).await;
        server.raw.listen();
        server.raw.send(&[PREFACE, &then].concat()).await;
        settle().await;
        // h2 overlooks that the SETTINGS did not come first. They never come, and nobody answers for who is silent:
        // within the time-outs it is over.
        let outcome = timeout(Duration::from_secs(21), server.outcome()).await;
        let error = outcome.expect(what).unwrap_err();
        assert_eq!(
            (error.kind(), error.side()),
            (ErrorKind::Timeout, Side::Downstream),
            "{what}"
        );
    }
}

/// The first CONNECT has a time in which it must be whole.
#[tokio::test(start_paused = true)]
async fn headers_byte_by_byte() {
    let mut server = Server::new(Config::default(), Application::Echoes).await;
    let start = Instant::now();
    drip(&mut server, &connect(1)[..12]).await;
    times_out(server, start, 10).await;

    let mut server = Server::new(Config::default(), Application::Echoes).await;
    let start = Instant::now();
    server
        .raw
        .send(&frame(HEADERS, 0, 1, &connect_block()))
        .await;
    drip(
        &mut server,
        &frame(CONTINUATION, END_HEADERS, 1, &block(&[("x", "y")]))[..12],
    )
    .await;
    times_out(server, start, 10).await;
}

/// What is no request does not count as the first CONNECT.
#[tokio::test(start_paused = true)]
async fn pings_instead_of_a_connect() {
    let mut server = Server::new(Config::default(), Application::Echoes).await;
    let start = Instant::now();
    drip(&mut server, &ping(0, 1).repeat(2)[..12]).await;
    times_out(server, start, 10).await;
}

/// A client that answers no PING is gone, however many tunnels it has.
#[tokio::test(start_paused = true)]
async fn a_client_that_falls_silent() {
    let mut server = Server::new(Config::default(), Application::Echoes).await;
    let start = Instant::now();
    server.raw.send(&[connect(1), connect(3)].concat()).await;
    settle().await;
    assert_eq!(server.held(), 2);
    let held = std::sync::Arc::clone(&server.held);
    times_out(server, start, 20).await;
    settle().await;
    assert_eq!(held.load(std::sync::atomic::Ordering::SeqCst), 0);
}

/// Windows that never open stall their own streams and nobody else's.
#[tokio::test(start_paused = true)]
async fn windows_that_never_open() {
    let mut server = Server::new(Config::default(), Application::Echoes).await;
    server
        .raw
        .send(&settings(&[(INITIAL_WINDOW_SIZE, 0)]))
        .await;
    for stream in [1, 3, 5] {
        server.raw.send(&connect(stream)).await;
        // Echoed as far as our buffers go, which is not at all over the wire.
        server.raw.send(&data(stream, 0, &[7; 10_000])).await;
    }
    server.raw.send(&connect(7)).await;
    server.raw.send(&window_update(7, 100)).await;
    server.raw.send(&data(7, END_STREAM, b"still here")).await;
    assert_eq!(
        server.answers("a window of its own", 7).await.unwrap(),
        b"still here"
    );
    // A byte at a time, for as long as it likes.
    for _ in 0..100 {
        server.raw.send(&window_update(1, 1)).await;
        let frame = server.raw.until_on(DATA, 1).await;
        assert_eq!(frame.payload, [7]);
    }
    server.ends().await.unwrap();
}

/// A client that has ended its side and waits for ever holds its stream, and can be let go by it.
#[tokio::test(start_paused = true)]
async fn a_half_that_was_closed_holds_only_its_stream() {
    let mut server = Server::new(Config::default(), Application::Stalls).await;
    server
        .raw
        .send(&headers(1, END_STREAM, &connect_block()))
        .await;
    server.raw.until_on(HEADERS, 1).await;
    for _ in 0..100 {
        sleep(Duration::from_secs(5)).await;
        server.raw.polite().await;
    }
    assert_eq!(server.held(), 1);
    server.raw.send(&rst(1, CANCEL)).await;
    server.raw.send(&connect(3)).await;
    server.raw.until_on(HEADERS, 3).await;
    server.ends().await.unwrap();
}

/// CVE-2025-64763 and its kin: what follows a CONNECT at once waits for the decision, and a refusal
/// drops it.
#[tokio::test(start_paused = true)]
async fn data_before_the_decision() {
    let mut server = Server::new(Config::default(), Application::Waits).await;
    server
        .raw
        .send(&[connect(1), data(1, 0, &[7; 16_000])].concat())
        .await;
    settle().await;
    assert_eq!(server.held(), 1);
    // Nobody reads, so the window does not open again.
    while let Ok(frame) = server.raw.frames.try_recv() {
        assert!(
            frame.kind != WINDOW_UPDATE || frame.stream != 1,
            "{frame:x?}"
        );
    }
    let refused = block(&[
        METHOD_GET,
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/"),
    ]);
    server
        .raw
        .send(&[headers(3, 0, &refused), data(3, 0, b"for nobody")].concat())
        .await;
    let answer = server.raw.until_on(HEADERS, 3).await;
    assert_eq!(answer.flags & END_STREAM, END_STREAM);
    server.ends().await.unwrap();
}

const METHOD_GET: (&str, &str) = (":method", "GET");
