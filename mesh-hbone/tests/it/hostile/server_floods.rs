//! Servers that send more of something than anybody needs.

use std::time::Duration;

use mesh_hbone::ErrorKind;
use mesh_hbone::config::Config;
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

use super::wire::*;
use super::{Client, settle};

/// Frames that want nothing or only an answer: too many close the connection; those that the settings
/// allow cost at most one answer each, and tunnels go on.
#[tokio::test(start_paused = true)]
async fn frames_that_only_want_an_answer() {
    let windows = [
        settings(&[(INITIAL_WINDOW_SIZE, 0), (MAX_CONCURRENT_STREAMS, 1)]),
        settings(&[(INITIAL_WINDOW_SIZE, 65_535), (MAX_CONCURRENT_STREAMS, 100)]),
    ]
    .concat();
    let rows: Vec<(&str, Vec<u8>, usize)> = vec![
        ("PING", ping(0, 7), 1),
        ("SETTINGS", settings(&[]), 1),
        ("SETTINGS there and back", windows, 2),
        ("PRIORITY", priority(1001, 3), 0),
        ("unknown frames", frame(0xbe, 0, 0, &[]), 0),
        ("WINDOW_UPDATE", window_update(0, 1), 0),
        ("PING answers", ping(ACK, 7), 0),
    ];
    for (what, one, answers) in rows {
        if what != "WINDOW_UPDATE" {
            let mut client = Client::new().await;
            client.raw.send(&one.repeat(300)).await;
            settle().await;
            let error = client.outcome().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Flooded, "{what}");
        }
        let patient = Config::default().max_control_frames(u32::MAX);
        let mut client = Client::with(patient, &[]).await;
        const COUNT: usize = 10_000;
        settle().await;
        client.raw.polite().await;
        for _ in 0..COUNT / 100 {
            assert!(client.raw.send(&one.repeat(100)).await, "{what}");
        }
        settle().await;
        let mut seen = 0;
        while let Ok(frame) = client.raw.frames.try_recv() {
            seen += usize::from(frame.flags == ACK && matches!(frame.kind, PING | SETTINGS));
        }
        assert_eq!(seen, answers * COUNT, "{what}");
        client.goes_on(what).await;
    }
}

/// GOAWAY again and again tells nobody anything new.
#[tokio::test(start_paused = true)]
async fn goaway_without_end() {
    let patient = Config::default().max_control_frames(u32::MAX);
    let mut client = Client::with(patient, &[]).await;
    let (stream, mut tunnel) = client.open().await;
    let mut said = goaway(stream, NO_ERROR)[..].to_vec();
    // With all the debug data that a frame can hold.
    said.extend(frame(
        GOAWAY,
        0,
        0,
        &[&stream.to_be_bytes()[..], &[0; 16_000]].concat(),
    ));
    for _ in 0..200 {
        assert!(client.raw.send(&said).await);
    }
    client.raw.send(&data(stream, END_STREAM, b"goes on")).await;
    let mut read = Vec::new();
    tunnel.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, b"goes on");
}

#[tokio::test(start_paused = true)]
async fn continuation() {
    let mut client = Client::new().await;
    let (stream, asked) = client.ask().await;
    let mut frames = frame(HEADERS, 0, stream, &block(&[(":status", "200")]));
    frames.extend(frame(CONTINUATION, 0, stream, &[]).repeat(6));
    client.raw.send(&frames).await;
    asked.await.unwrap().unwrap_err();
    client.closes("CONTINUATION", ENHANCE_YOUR_CALM).await;

    let mut client = Client::new().await;
    let (stream, asked) = client.ask().await;
    let mut frames = frame(HEADERS, 0, stream, &block(&[(":status", "200")]));
    frames.extend(frame(CONTINUATION, 0, stream, &[]).repeat(5));
    frames.extend(frame(CONTINUATION, END_HEADERS, stream, &[]));
    client.raw.send(&frames).await;
    asked.await.unwrap().expect("five are borne");
}

#[tokio::test(start_paused = true)]
async fn empty_data() {
    let patient = Config::default().max_control_frames(u32::MAX);
    let mut client = Client::with(patient, &[]).await;
    let (stream, mut tunnel) = client.open().await;
    client.raw.send(&data(stream, 0, b"").repeat(1000)).await;
    let mut read = Vec::new();
    tunnel.read_to_end(&mut read).await.unwrap_err();
    client.closes("empty DATA", ENHANCE_YOUR_CALM).await;
}

#[tokio::test(start_paused = true)]
async fn tiny_data_that_nobody_reads() {
    let config = Config::default().data_frame_budget(255 * 1000);
    let mut client = Client::with(config, &[]).await;
    let (stream, _tunnel) = client.open().await;
    client.raw.send(&data(stream, 0, b"x").repeat(1001)).await;
    client.closes("tiny DATA", ENHANCE_YOUR_CALM).await;
}

/// A server that makes *us* reset: each violation costs it one of the resets that it may provoke.
#[tokio::test(start_paused = true)]
async fn made_you_reset() {
    let config = Config::default().max_error_resets(20);
    let mut client = Client::with(config, &[]).await;
    for _ in 0..=20 {
        let (stream, asked) = client.ask().await;
        client
            .raw
            .send(&headers(stream, 0, &block(&[("x", "y")])))
            .await;
        asked.await.unwrap().unwrap_err();
    }
    client.closes("made you reset", ENHANCE_YOUR_CALM).await;
}

/// Resets of streams that are long gone are nothing, until there are too many.
#[tokio::test(start_paused = true)]
async fn resets_without_end() {
    let mut client = Client::new().await;
    let (stream, _tunnel) = client.open().await;
    client.raw.send(&rst(stream, CANCEL).repeat(600)).await;
    let error = client.outcome().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Flooded);

    let patient = Config::default().max_resets_per_second(u32::MAX);
    let mut client = Client::with(patient, &[]).await;
    let (stream, mut tunnel) = client.open().await;
    client.raw.send(&rst(stream, CANCEL).repeat(10_000)).await;
    let mut read = Vec::new();
    tunnel.read_to_end(&mut read).await.unwrap_err();
    drop(tunnel);
    client.goes_on("resets").await;
}

/// An answer that is far larger when decoded than we take.
#[tokio::test(start_paused = true)]
async fn an_answer_that_is_a_bomb() {
    for (count, closes) in [(10, false), (30, false), (10_000, true)] {
        let mut client = Client::new().await;
        let (stream, asked) = client.ask().await;
        let mut fields = block(&[(":status", "200")]);
        fields.extend(literal(0x40, "x", &"y".repeat(4000)));
        for _ in 0..count {
            fields.extend(indexed(FIRST_DYNAMIC));
        }
        client.raw.send(&headers(stream, 0, &fields)).await;
        let answer = timeout(Duration::from_secs(5), asked)
            .await
            .unwrap()
            .unwrap();
        match (count, answer) {
            (10, Ok(_)) => {}
            (10, Err(error)) => panic!("{error:?}"),
            (_, Ok(_)) => panic!("{count} fields of 4000 bytes were taken"),
            (_, Err(error)) => assert!(
                matches!(error.kind(), ErrorKind::Http2 | ErrorKind::Reset),
                "{error:?}"
            ),
        }
        if closes {
            client.closes("a bomb", ENHANCE_YOUR_CALM).await;
        } else {
            client.goes_on("a large answer").await;
        }
    }
}

/// So many header fields, and no more.
#[tokio::test(start_paused = true)]
async fn an_answer_with_too_many_fields() {
    for (count, taken) in [(128, true), (129, false), (1300, false)] {
        let mut client = Client::new().await;
        let (stream, asked) = client.ask().await;
        // accept-charset with no value, from the static table
        let fields = [block(&[(":status", "200")]), indexed(15).repeat(count)];
        client.raw.send(&headers(stream, 0, &fields.concat())).await;
        let answer = timeout(Duration::from_secs(5), asked).await.unwrap();
        match answer.unwrap() {
            Ok(_) => assert!(taken, "{count}"),
            Err(error) => {
                assert!(!taken, "{count}: {error:?}");
                assert_eq!(error.kind(), ErrorKind::InvalidHeader);
            }
        }
        client.goes_on("an answer").await;
    }
}
