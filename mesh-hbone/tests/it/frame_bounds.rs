//! Peers that send frames which carry nothing, or never finish one: byte for byte.

use std::time::Duration;

use mesh_hbone::config::Config;
use mesh_hbone::{Error, ErrorKind, client, server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{Instant, sleep, timeout};

use crate::peers::{Lazy, request};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const UNKNOWN: u8 = 0xfa;

const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const FRAME_SIZE_ERROR: u32 = 6;
const ENHANCE_YOUR_CALM: u32 = 11;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// `CONNECT 10.0.0.7:80` in HPACK, without the dynamic table.
fn connect() -> Vec<u8> {
    let mut block = vec![0x02, 7];
    block.extend_from_slice(b"CONNECT");
    block.extend_from_slice(&[0x01, 11]);
    block.extend_from_slice(b"10.0.0.7:80");
    block
}

/// A client of which a test writes every byte.
struct Raw {
    io: DuplexStream,
    /// How the server's connection ended.
    ended: JoinHandle<Option<Error>>,
    tunnels: mpsc::UnboundedReceiver<mesh_hbone::Tunnel>,
}

impl Raw {
    async fn new(config: Config) -> Self {
        let (mut io, far) = duplex(1 << 20);
        let (accepted, tunnels) = mpsc::unbounded_channel();
        let ended = tokio::spawn(async move {
            let mut connection = server::handshake(Lazy::new(far), &config);
            loop {
                match connection.accept().await {
                    // One that was reset meanwhile is nobody's.
                    Some(Ok(incoming)) => {
                        if let Ok(tunnel) = incoming.accept(None) {
                            accepted.send(tunnel).unwrap();
                        }
                    }
                    Some(Err(error)) => return Some(error),
                    None => return None,
                }
            }
        });
        io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        io.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        io.write_all(&frame(SETTINGS, ACK, 0, &[])).await.unwrap();
        Self { io, ended, tunnels }
    }

    /// Sends a frame; the server has seen it when this returns.
    async fn send(&mut self, frame: &[u8]) {
        // What the server said before would fill the transport.
        let mut said = [0; 1 << 12];
        while futures_util::FutureExt::now_or_never(self.io.read(&mut said))
            .is_some_and(|read| matches!(read, Ok(1..)))
        {}
        let _ = self.io.write_all(frame).await;
        for _ in 0..4 {
            yield_now().await;
        }
    }

    async fn open(&mut self, stream: u32) -> mesh_hbone::Tunnel {
        self.send(&frame(HEADERS, END_HEADERS, stream, &connect()))
            .await;
        self.tunnels.recv().await.unwrap()
    }

    /// How the server ended, and the code of its GOAWAY.
    async fn end(mut self) -> (Option<Error>, Option<u32>) {
        let error = self.ended.await.unwrap();
        let mut said = Vec::new();
        self.io.read_to_end(&mut said).await.unwrap();
        let mut rest = &said[..];
        let mut code = None;
        while let [high, mid, low, kind, _, _, _, _, _, payload @ ..] = rest {
            let length = u32::from_be_bytes([0, *high, *mid, *low]) as usize;
            let (payload, next) = payload.split_at(length);
            if *kind == GOAWAY {
                code = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
            rest = next;
        }
        (error, code)
    }
}

fn is_flooded((error, code): (Option<Error>, Option<u32>)) -> bool {
    assert_eq!(code, Some(ENHANCE_YOUR_CALM));
    error.is_some_and(|error| error.kind() == ErrorKind::Flooded)
}

/// PINGs of our own would mix with the test's frames.
fn silent() -> Config {
    Config::default().ping_interval(Duration::from_secs(1_000_000))
}

#[tokio::test(start_paused = true)]
async fn tunnels_reset_faster_than_the_setting_close_the_connection() {
    let mut raw = Raw::new(silent().max_resets_per_second(2)).await;
    let _stays = raw.open(1).await;
    let mut streams = (3..).step_by(2);
    let mut reset = async |raw: &mut Raw| {
        let stream = streams.next().unwrap();
        let _tunnel = raw.open(stream).await;
        raw.send(&frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])).await;
    };
    for _ in 0..200 {
        reset(&mut raw).await;
        sleep(Duration::from_millis(500)).await;
    }
    assert!(!raw.ended.is_finished(), "the even rate is borne for good");
    for _ in 0..20 {
        assert!(!raw.ended.is_finished());
        reset(&mut raw).await;
    }
    let stream = streams.next().unwrap();
    raw.send(&frame(HEADERS, END_HEADERS, stream, &connect()))
        .await;
    raw.send(&frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])).await;
    assert!(is_flooded(raw.end().await));
}

#[tokio::test(start_paused = true)]
async fn control_frames_beyond_the_setting_close_the_connection() {
    for frame in [
        frame(SETTINGS, 0, 0, &[]),
        frame(PING, 0, 0, &[0; 8]),
        frame(PING, ACK, 0, &[0; 8]),
        frame(PRIORITY, 0, 7, &[0; 5]),
        frame(UNKNOWN, 0, 0, &[0; 32]),
    ] {
        let mut raw = Raw::new(silent()).await;
        let mut tunnel = raw.open(1).await;
        sleep(Duration::from_secs(20)).await;
        for round in 0..2 {
            for _ in 0..200 {
                raw.send(&frame).await;
            }
            assert!(!raw.ended.is_finished(), "{round} of {frame:?}");
            sleep(Duration::from_secs(round * 10 + 10)).await;
        }
        for _ in 0..201 {
            raw.send(&frame).await;
        }
        assert!(is_flooded(raw.end().await), "{frame:?}");
        assert!(tunnel.read(&mut [0; 1]).await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_header_block_that_does_not_end_closes_the_connection_in_time() {
    let limit = Duration::from_secs(7);
    let config = || silent().header_timeout(limit);
    let block = connect();
    let (first, rest) = block.split_at(8);
    for (begins, goes_on) in [
        // Without END_HEADERS; whole by its flags, but without its last byte.
        (frame(HEADERS, 0, 3, first), frame(CONTINUATION, 0, 3, &[])),
        (
            frame(HEADERS, END_HEADERS, 3, &block)[..15].to_vec(),
            vec![block[6]],
        ),
    ] {
        let mut raw = Raw::new(config()).await;
        let _tunnel = raw.open(1).await;
        sleep(Duration::from_secs(60)).await;
        let began = Instant::now();
        raw.send(&begins).await;
        sleep(Duration::from_secs(3)).await;
        // Bytes that come slowly buy no time.
        raw.send(&goes_on).await;
        let (error, _) = raw.end().await;
        assert_eq!(error.unwrap().kind(), ErrorKind::Timeout);
        assert_eq!(began.elapsed().as_secs(), limit.as_secs());
    }

    let mut raw = Raw::new(config()).await;
    let _tunnel = raw.open(1).await;
    raw.send(&frame(HEADERS, 0, 3, first)).await;
    sleep(limit - Duration::from_secs(1)).await;
    raw.send(&frame(CONTINUATION, END_HEADERS, 3, rest)).await;
    let _second = raw.tunnels.recv().await.unwrap();
    sleep(2 * limit).await;
    assert!(!raw.ended.is_finished());
}

#[tokio::test(start_paused = true)]
async fn the_first_header_block_is_bounded_too() {
    let mut raw = Raw::new(silent()).await;
    let began = Instant::now();
    raw.send(&frame(HEADERS, 0, 1, &connect()[..4])).await;
    assert_eq!(raw.end().await.0.unwrap().kind(), ErrorKind::Timeout);
    assert_eq!(began.elapsed().as_secs(), 10);
}

/// The other end may still be reading: a socket closed under what it sends would be reset, and its
/// last bytes with it.
#[tokio::test(start_paused = true)]
async fn an_ended_connection_stays_open_until_its_peer_has_closed_or_had_its_time() {
    for closes in [true, false] {
        let linger = Duration::from_secs(4);
        let (mut near, far) = duplex(1 << 20);
        let config = silent().linger(linger);
        let ended = tokio::spawn(async move {
            let mut connection = server::handshake(Lazy::new(far), &config);
            connection.hasty_shutdown();
            assert!(connection.accept().await.is_none());
        });
        near.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        near.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        // The answer to the PING of the first GOAWAY (h2's own payload).
        near.write_all(&frame(
            PING,
            ACK,
            0,
            &[0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54],
        ))
        .await
        .unwrap();
        let began = Instant::now();
        let mut said = Vec::new();
        near.read_to_end(&mut said).await.unwrap();
        assert_eq!(
            began.elapsed(),
            Duration::ZERO,
            "our side is closed at once"
        );
        sleep(Duration::from_secs(1)).await;
        near.write_all(&frame(8, 0, 0, &[0, 0, 1, 0]))
            .await
            .unwrap();
        sleep(Duration::from_secs(1)).await;
        assert!(!ended.is_finished());
        let _open = (!closes).then_some(near);
        ended.await.unwrap();
        let waited = if closes { 2 } else { linger.as_secs() };
        assert_eq!(began.elapsed().as_secs(), waited);
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_without_settings_is_given_up_after_the_handshake_time_out() {
    let config = silent().handshake_timeout(Duration::from_secs(3));
    let (_peer, far) = duplex(1 << 20);
    let began = Instant::now();
    let mut connection = server::handshake(Lazy::new(far), &config);
    let error = connection.accept().await.unwrap().err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(began.elapsed().as_secs(), 3);

    let (_peer, far) = duplex(1 << 20);
    let outcome = client::handshake(Lazy::new(far), &config).await;
    let error = match outcome {
        Err(error) => error,
        // It is driven to find out.
        Ok((connection, _sender)) => connection.await.unwrap_err(),
    };
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(began.elapsed().as_secs(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_no_ping_is_given_up_after_the_ping_time_out() {
    let config = Config::default()
        .ping_interval(Duration::from_secs(5))
        .ping_timeout(Duration::from_secs(2));
    let mut raw = Raw::new(config).await;
    let began = Instant::now();
    let _tunnel = raw.open(1).await;
    assert_eq!(raw.end().await.0.unwrap().kind(), ErrorKind::Timeout);
    assert_eq!(began.elapsed().as_secs(), 7);
}

/// A server that gives every window, answers one CONNECT, and then reads nothing more.
#[tokio::test(start_paused = true)]
async fn a_writer_gets_ahead_of_the_wire_by_the_send_buffer_that_is_set() {
    let mut taken = Vec::new();
    for set in [64 << 10, 512 << 10] {
        let (near, mut far) = duplex(16 << 10);
        let windows = [
            frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]),
            frame(SETTINGS, ACK, 0, &[]),
            frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]),
        ];
        far.write_all(&windows.concat()).await.unwrap();
        let config = silent().send_buffer(set);
        let opened = client::handshake(Lazy::new(near), &config).await;
        let (connection, sender) = opened.unwrap();
        tokio::spawn(connection);
        let answers = async {
            sleep(Duration::from_millis(1)).await;
            let answer = frame(HEADERS, END_HEADERS, 1, &[0x88]);
            far.write_all(&answer).await.unwrap();
        };
        let (opened, ()) = tokio::join!(sender.connect(request("10.0.0.7:80")), answers);
        let (mut tunnel, _) = opened.unwrap();
        let mut written = 0;
        let moment = Duration::from_millis(1);
        while let Ok(count) = timeout(moment, tunnel.write(&[7; 4 << 10])).await {
            written += count.unwrap();
        }
        taken.push(written);
    }
    // What the transport holds is the same, but for frames that are whole.
    let (more, whole) = (taken[1] - taken[0], 32 << 10);
    let expected = 448 << 10;
    assert!(
        (expected - whole..=expected + whole).contains(&more),
        "{taken:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_frame_beyond_the_setting_closes_the_connection() {
    for (bytes, closes) in [(32 << 10, false), ((32 << 10) + 1, true)] {
        let mut raw = Raw::new(silent().max_frame_size(32 << 10)).await;
        let mut tunnel = raw.open(1).await;
        raw.send(&frame(DATA, 0, 1, &vec![7; bytes])).await;
        if closes {
            assert_eq!(raw.end().await.1, Some(FRAME_SIZE_ERROR));
            continue;
        }
        tunnel.read_exact(&mut vec![0; bytes]).await.unwrap();
        assert!(!raw.ended.is_finished());
    }
}

#[tokio::test(start_paused = true)]
async fn a_header_list_beyond_the_setting_opens_no_tunnel() {
    let mut raw = Raw::new(silent().max_header_list_size(1000)).await;
    let mut block = connect();
    // `x: aa…` without the table, 2 000 bytes of value as HPACK has it: 127, then 1 873 in groups of seven bits.
    block.extend_from_slice(&[0x00, 1, b'x', 0x7f, 0xd1, 0x0e]);
    block.extend_from_slice(&[b'a'; 2000]);
    raw.send(&frame(HEADERS, END_HEADERS, 1, &block)).await;
    sleep(Duration::from_secs(1)).await;
    assert!(raw.tunnels.try_recv().is_err());
    let _tunnel = raw.open(3).await;
    assert!(!raw.ended.is_finished());
}

#[tokio::test(start_paused = true)]
async fn tunnels_reset_before_they_are_taken_beyond_the_setting_close_the_connection() {
    for (resets, closes) in [(3, false), (8, true)] {
        let mut raw = Raw::new(silent().max_pending_resets(4)).await;
        let pairs = (0..resets).flat_map(|at| {
            let stream = 2 * at + 1;
            let reset = frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]);
            [frame(HEADERS, END_HEADERS, stream, &connect()), reset].concat()
        });
        // At once: no tunnel is taken between a reset and the next.
        raw.send(&pairs.collect::<Vec<u8>>()).await;
        sleep(Duration::from_secs(1)).await;
        assert_eq!(raw.ended.is_finished(), closes);
    }
}

#[tokio::test(start_paused = true)]
async fn the_connection_window_is_the_setting() {
    let (mut near, far) = duplex(1 << 20);
    tokio::spawn(async move {
        let config = silent().connection_window(1 << 20);
        server::handshake(Lazy::new(far), &config).accept().await;
    });
    near.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    near.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    let increment = loop {
        let mut head = [0; 9];
        near.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; usize::from(head[2]) + 256 * usize::from(head[1])];
        near.read_exact(&mut payload).await.unwrap();
        if head[3] == WINDOW_UPDATE {
            assert_eq!(head[5..], [0; 4], "the connection's");
            break u32::from_be_bytes(payload.try_into().unwrap());
        }
    };
    assert_eq!(65_535 + increment, 1 << 20);
}
