//! Servers that answer wrongly, or not at all.

use std::io::ErrorKind as Io;
use std::time::Duration;

use mesh_hbone::config::Config;
use mesh_hbone::{ErrorKind, client};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep, timeout};

use super::wire::*;
use super::{Client, Raw, settle};
use crate::authority::pair;
use crate::peers::request;

/// Every violation of the whole connection ends it with its code, and a pool would dial anew.
#[tokio::test(start_paused = true)]
async fn a_violation_of_the_connection_closes_it() {
    let ok = block(&[(":status", "200")]);
    let promise = {
        let mut payload = 2_u32.to_be_bytes().to_vec();
        payload.extend(block(&[
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", "a"),
            (":path", "/"),
        ]));
        frame(PUSH_PROMISE, END_HEADERS, 1, &payload)
    };
    let rows: Vec<(&str, Vec<u8>, u32)> = vec![
        ("PUSH_PROMISE although push is off", promise, PROTOCOL_ERROR),
        (
            "an answer on a stream that we did not open",
            headers(3, 0, &ok),
            PROTOCOL_ERROR,
        ),
        (
            "an answer on an even stream",
            headers(2, 0, &ok),
            PROTOCOL_ERROR,
        ),
        (
            "DATA on a stream that we did not open",
            data(5, 0, b"x"),
            PROTOCOL_ERROR,
        ),
        ("DATA on stream 0", data(0, 0, b"x"), PROTOCOL_ERROR),
        (
            "RST_STREAM on a stream that we did not open",
            rst(5, CANCEL),
            PROTOCOL_ERROR,
        ),
        (
            "WINDOW_UPDATE on a stream that we did not open",
            window_update(5, 1),
            PROTOCOL_ERROR,
        ),
        ("WINDOW_UPDATE 0", window_update(0, 0), PROTOCOL_ERROR),
        (
            "WINDOW_UPDATE overflow",
            [window_update(0, 0x7fff_ffff), window_update(0, 0x7fff_ffff)].concat(),
            FLOW_CONTROL_ERROR,
        ),
        (
            "SETTINGS: a window of 2^31",
            settings(&[(INITIAL_WINDOW_SIZE, 1 << 31)]),
            PROTOCOL_ERROR,
        ),
        (
            "a frame larger than agreed",
            lying(DATA, 0, 1, (16 << 10) + 1),
            FRAME_SIZE_ERROR,
        ),
        (
            "CONTINUATION of nothing",
            frame(CONTINUATION, END_HEADERS, 1, &[]),
            PROTOCOL_ERROR,
        ),
        ("index 0", headers(1, 0, &[0x80]), PROTOCOL_ERROR),
        (
            "GOAWAY on a stream",
            frame(GOAWAY, 0, 1, &[0; 8]),
            PROTOCOL_ERROR,
        ),
        (
            "GOAWAY that takes back what it gave up",
            [goaway(1, NO_ERROR), goaway(9, NO_ERROR)].concat(),
            PROTOCOL_ERROR,
        ),
    ];
    let mut wrong = Vec::new();
    for (what, frames, code) in rows {
        let mut client = Client::new().await;
        let (stream, asked) = client.ask().await;
        assert_eq!(stream, 1);
        client.raw.send(&frames).await;
        let asked = asked.await.unwrap().map(drop);
        let end = client.end().await;
        if end != Ok(code) || !asked.as_ref().is_err_and(|error| !error.is_timeout()) {
            wrong.push(format!("{what}: {end:?}, {asked:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Answers that are none: an error for this tunnel, and the connection goes on.
#[tokio::test(start_paused = true)]
async fn answers_that_open_no_tunnel() {
    let status = |code: &str| block(&[(":status", code)]);
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("no :status", block(&[("x", "y")])),
        ("an empty block", Vec::new()),
        ("status 0", status("0")),
        ("status 99", status("99")),
        ("status 1000", status("1000")),
        ("status 2e2", status("2e2")),
        ("status with a space", status(" 200")),
        (
            "two of them",
            block(&[(":status", "200"), (":status", "200")]),
        ),
        ("a request", connect_block()),
        (
            "an upper-case name",
            block(&[(":status", "200"), ("X", "y")]),
        ),
        (
            "connection: close",
            block(&[(":status", "200"), ("connection", "close")]),
        ),
        (
            "transfer-encoding",
            block(&[(":status", "200"), ("transfer-encoding", "chunked")]),
        ),
        (
            "a pseudo-header after a field",
            block(&[("x", "y"), (":status", "200")]),
        ),
        (
            "a line break",
            block(&[(":status", "200"), ("x", "a\r\nb")]),
        ),
        ("DATA before the answer", Vec::from(b"DATA")),
    ];
    let mut closed = Vec::new();
    for (what, answer) in rows {
        let mut client = Client::new().await;
        let (stream, asked) = client.ask().await;
        if answer == b"DATA" {
            client.raw.send(&data(stream, 0, b"x")).await;
        } else {
            client.raw.send(&headers(stream, 0, &answer)).await;
        }
        let error = asked.await.unwrap().expect_err(what);
        assert!(
            !error.is_timeout() && !error.is_retry_safe(),
            "{what}: {error:?}"
        );
        settle().await;
        if client.sender.is_closed() {
            closed.push(what);
            client.closes(what, PROTOCOL_ERROR).await;
        } else {
            client.goes_on(what).await;
        }
    }
    // What h2 takes for a violation of the whole connection.
    assert_eq!(
        closed,
        [
            "status 0",
            "status 99",
            "status 1000",
            "status 2e2",
            "status with a space",
            "an upper-case name",
            "a line break",
            "DATA before the answer"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn every_status_but_200_is_a_refusal() {
    for code in [
        201_u16, 202, 204, 206, 299, 300, 304, 401, 407, 418, 500, 503, 599, 600, 999,
    ] {
        let mut client = Client::new().await;
        let (stream, asked) = client.ask().await;
        let answer = block(&[(":status", &code.to_string())]);
        // It says that there is more, and that is nothing to anybody.
        client.raw.send(&headers(stream, 0, &answer)).await;
        client.raw.send(&data(stream, 0, &[7; 1000])).await;
        let error = asked.await.unwrap().unwrap_err();
        assert_eq!(error.status().map(|status| status.as_u16()), Some(code));
        let reset = client.raw.until_on(RST_STREAM, stream).await;
        assert!(matches!(reset.code(), CANCEL | NO_ERROR), "{reset:?}");
        client.goes_on("a refusal").await;
    }
}

/// 1xx answers are none. A few are nothing, and more than that are a flood.
#[tokio::test(start_paused = true)]
async fn informational_answers_without_end() {
    for code in ["100", "102", "103", "199"] {
        let mut client = Client::new().await;
        let (stream, asked) = client.ask().await;
        let one = headers(stream, 0, &block(&[(":status", code)]));
        client.raw.send(&one.repeat(100)).await;
        client.raw.send(&accepted(stream)).await;
        let tunnel = asked.await.unwrap().unwrap();
        drop(tunnel);
        let (stream, asked) = client.ask().await;
        let one = headers(stream, 0, &block(&[(":status", code)]));
        client.raw.send(&one.repeat(300)).await;
        asked.await.unwrap().unwrap_err();
        let error = client.outcome().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Flooded, "{code}");
    }
}

/// What every honest server sends is never too much: an answer and trailers for each tunnel.
#[tokio::test(start_paused = true)]
async fn answers_and_trailers_are_owed() {
    let mut client = Client::new().await;
    for _ in 0..1000 {
        let (stream, mut tunnel) = client.open().await;
        let trailers = headers(stream, END_STREAM, &block(&[("x", "y")]));
        assert!(client.raw.send(&trailers).await);
        let mut read = Vec::new();
        tunnel.read_to_end(&mut read).await.unwrap();
        tunnel.shutdown().await.unwrap();
        drop(tunnel);
        client.raw.until_on(DATA, stream).await;
    }
    client.goes_on("a thousand tunnels").await;
}

/// 101 has no meaning in HTTP/2 (RFC 9113 section 8.6): it opens nothing.
#[tokio::test(start_paused = true)]
async fn switching_protocols_opens_nothing() {
    let mut client = Client::new().await;
    let (stream, asked) = client.ask().await;
    client
        .raw
        .send(&headers(stream, 0, &block(&[(":status", "101")])))
        .await;
    let error = asked.await.unwrap().unwrap_err();
    assert!(!error.is_retry_safe(), "{error:?}");
}

/// 200 and the end at once is a tunnel that has nothing to say, and hears what we do.
#[tokio::test(start_paused = true)]
async fn an_answer_with_the_end() {
    let mut client = Client::new().await;
    let (stream, asked) = client.ask().await;
    let answer = headers(stream, END_STREAM, &block(&[(":status", "200")]));
    client.raw.send(&answer).await;
    let mut tunnel = asked.await.unwrap().unwrap();
    let mut read = Vec::new();
    tunnel.read_to_end(&mut read).await.unwrap();
    assert!(read.is_empty());
    tunnel.write_all(b"said").await.unwrap();
    assert_eq!(client.raw.until_on(DATA, stream).await.payload, b"said");
    tunnel.shutdown().await.unwrap();
    drop(tunnel);
    client.goes_on("an answer with the end").await;
}

/// What breaks a tunnel that is open is an error of its read, never an end.
#[tokio::test(start_paused = true)]
async fn no_violation_looks_like_an_end() {
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("RST_STREAM NO_ERROR", rst(1, NO_ERROR)),
        ("RST_STREAM with an unknown code", rst(1, 0xdead_beef)),
        ("RST_STREAM STREAM_CLOSED", rst(1, STREAM_CLOSED)),
        ("a second answer", accepted(1)),
        ("WINDOW_UPDATE 0", window_update(1, 0)),
        ("a stream that depends on itself", priority(1, 1)),
        ("more than the window", data(1, 0, &[7; 16_000]).repeat(20)),
        (
            "a frame larger than agreed",
            lying(DATA, END_STREAM, 1, 1 << 20),
        ),
        ("a frame that makes no sense", window_update(0, 0)),
        (
            "GOAWAY with an error, and the end",
            goaway(1, PROTOCOL_ERROR),
        ),
    ];
    for (what, frames) in rows {
        let mut client = Client::new().await;
        let (stream, mut tunnel) = client.open().await;
        assert_eq!(stream, 1);
        client.raw.send(&data(1, 0, b"before")).await;
        client.raw.send(&frames).await;
        settle().await;
        if what.starts_with("GOAWAY") {
            client.raw.close().await;
        }
        let mut read = Vec::new();
        let error = timeout(Duration::from_secs(60), tunnel.read_to_end(&mut read)).await;
        let error = error.expect(what).expect_err(what);
        assert_eq!(error.kind(), Io::ConnectionReset, "{what}");
        assert!(tunnel.write_all(&[0; 1 << 20]).await.is_err(), "{what}");
    }
}

/// A connection that ends without a word ends no tunnel cleanly, at whatever byte of a frame it does.
#[tokio::test(start_paused = true)]
async fn an_end_within_a_frame_is_no_end_of_a_tunnel() {
    let last = data(1, END_STREAM, b"the end");
    for at in 0..last.len() {
        let mut client = Client::new().await;
        let (_, mut tunnel) = client.open().await;
        client.raw.send(&data(1, 0, b"before")).await;
        client.raw.send(&last[..at]).await;
        client.raw.close().await;
        let mut read = Vec::new();
        let error = tunnel.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(
            (error.kind(), &read[..]),
            (Io::ConnectionReset, &b"before"[..]),
            "{at}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers() {
    let mut client = Client::new().await;
    let start = Instant::now();
    let mut asked = Vec::new();
    for _ in 0..100 {
        asked.push(client.ask().await);
    }
    let one_more = client.sender.connect(request("10.0.0.7:80")).await;
    assert!(one_more.unwrap_err().is_overloaded());
    for (_, asked) in asked {
        let error = asked.await.unwrap().unwrap_err();
        assert!(error.is_timeout() && !error.is_retry_safe());
    }
    assert_eq!(start.elapsed(), Duration::from_secs(10));
    assert_eq!(client.sender.live_streams(), 0);
    // And no PING either: it is given up, although somebody still holds it.
    let _sender = client.sender.clone();
    let error = client.outcome().await.unwrap_err();
    assert!(error.is_timeout());
    assert_eq!(start.elapsed(), Duration::from_secs(20));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_drips() {
    let (near, far) = pair().await;
    let mut raw = Raw::new(far, PREFACE.len());
    raw.listen();
    let start = Instant::now();
    let drip = async {
        for byte in frame(SETTINGS, 0, 0, &[0; 120]) {
            raw.send(&[byte]).await;
            sleep(Duration::from_secs(1)).await;
        }
    };
    let config = Config::default();
    tokio::select! {
        started = client::handshake(near, &config) => {
            let error = started.unwrap_err();
            assert!(error.is_timeout() && error.is_retry_safe());
        }
        () = drip => panic!("nobody stopped it"),
    }
    assert_eq!(start.elapsed(), Duration::from_secs(10));
}

/// A server that allows no stream is none: the handshake says so in time.
#[tokio::test(start_paused = true)]
async fn a_server_that_allows_no_stream() {
    let (near, far) = pair().await;
    let mut raw = Raw::new(far, PREFACE.len());
    raw.listen();
    raw.send(&settings(&[(MAX_CONCURRENT_STREAMS, 0)])).await;
    let error = client::handshake(near, &Config::default())
        .await
        .unwrap_err();
    assert!(error.is_timeout() && error.is_retry_safe());
}

/// S-08, CVE-2021-32780: no stream any more, in the middle of everything.
#[tokio::test(start_paused = true)]
async fn a_server_that_takes_its_streams_back() {
    let mut client = Client::new().await;
    let (stream, mut tunnel) = client.open().await;
    let (_, asked) = client.ask().await;
    let none = settings(&[(MAX_CONCURRENT_STREAMS, 0)]);
    client
        .raw
        .send(&[none, goaway(stream, NO_ERROR)].concat())
        .await;
    // The younger was not looked at, so it may be tried elsewhere; the older goes on.
    let error = asked.await.unwrap().unwrap_err();
    assert!(error.is_retry_safe(), "{error:?}");
    assert!(client.sender.is_closed());
    assert_eq!(client.sender.available_streams(), 0);
    client.raw.send(&data(stream, END_STREAM, b"goes on")).await;
    let mut read = Vec::new();
    tunnel.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, b"goes on");
    tunnel.shutdown().await.unwrap();
    drop(tunnel);
    client.outcome().await.unwrap();
}

/// GOAWAY in the middle: what the server did not look at is safe to try again, the rest is not touched.
#[tokio::test(start_paused = true)]
async fn goaway_with_tunnels_in_flight() {
    for code in [NO_ERROR, ENHANCE_YOUR_CALM, 0xdead_beef] {
        let mut client = Client::new().await;
        let (first, mut tunnel) = client.open().await;
        let (second, asked) = client.ask().await;
        let (_, late) = client.ask().await;
        client.raw.send(&goaway(second, code)).await;
        let error = late.await.unwrap().unwrap_err();
        assert!(error.is_retry_safe(), "{code}: {error:?}");
        // Lower and lower, as it may.
        client.raw.send(&goaway(first, code)).await;
        let error = asked.await.unwrap().unwrap_err();
        assert!(error.is_retry_safe(), "{code}: {error:?}");
        client.raw.send(&data(first, END_STREAM, b"whole")).await;
        let mut read = Vec::new();
        tunnel.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"whole");
        assert!(client.sender.is_closed());
        let error = client
            .sender
            .connect(request("10.0.0.7:80"))
            .await
            .unwrap_err();
        assert!(error.is_retry_safe(), "{code}: {error:?}");
        drop(tunnel);
    }
}
