//! Bytes: all of them, in order, whoever stalls.

use std::future::{Future as _, poll_fn};
use std::io::IoSlice;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use mesh_hbone::config::Config;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

use crate::peers::{
    open, ours, ours_over, to_bare_client_with, to_bare_server, to_bare_server_with, tunnel,
};

fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|index| (index * 31 + index / 251) as u8)
        .collect()
}

/// Time stands still while anything can move: a byte that nobody flushes would cost a PING interval.
#[tokio::test(start_paused = true)]
async fn nothing_waits_for_a_flush() {
    let (mut near, mut far, sender) = tunnel(Config::default()).await;
    let start = Instant::now();
    for _ in 0..100 {
        near.write_all(b"a").await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), b'a');
        far.write_all(b"b").await.unwrap();
        assert_eq!(near.read_u8().await.unwrap(), b'b');
    }
    // Window updates: more than the windows, in both directions.
    let all = pattern(3_000_000);
    for (from, to) in [(0, 1), (1, 0)] {
        let mut ends = [&mut near, &mut far];
        let [first, second] = &mut ends;
        let (writer, reader) = if from < to {
            (first, second)
        } else {
            (second, first)
        };
        let mut read = vec![0; all.len()];
        let (written, got) = tokio::join!(writer.write_all(&all), reader.read_exact(&mut read));
        written.unwrap();
        got.unwrap();
        assert!(read == all);
    }
    drop(near);
    assert!(far.read_u8().await.is_err(), "a reset needs its flush too");
    assert_eq!(start.elapsed(), Duration::ZERO);
    drop((far, sender));
}

#[tokio::test]
async fn a_hundred_tunnels_at_once() {
    let (sender, mut incoming) = ours(Config::default()).await;
    let mut tunnels = Vec::new();
    for _ in 0..100 {
        tunnels.push(open(&sender, &mut incoming).await);
    }
    assert_eq!(sender.available_streams(), 0);
    let copies = tunnels
        .into_iter()
        .enumerate()
        .map(|(index, (mut near, mut far))| async move {
            let said = vec![index as u8; 50_000 + index];
            let echo = async {
                let mut read = Vec::new();
                far.read_to_end(&mut read).await.unwrap();
                far.write_all(&read).await.unwrap();
                far.shutdown().await.unwrap();
            };
            let ask = async {
                near.write_all(&said).await.unwrap();
                near.shutdown().await.unwrap();
                let mut read = Vec::new();
                near.read_to_end(&mut read).await.unwrap();
                assert!(read == said);
            };
            tokio::join!(echo, ask);
        });
    join_all(copies).await;
    assert_eq!(sender.live_streams(), 0);
}

/// 99 readers sleep with their windows full; the last tunnel has the whole connection.
#[tokio::test(start_paused = true)]
async fn ninety_nine_stalled_tunnels_do_not_slow_the_last() {
    let (sender, mut incoming) = ours(Config::default()).await;
    let mut stalled = Vec::new();
    for _ in 0..99 {
        let (mut near, far) = open(&sender, &mut incoming).await;
        let block = vec![1; 64 << 10];
        let mut written = 0;
        // Until the window (256 KiB) and the send buffer (384 KiB) are full.
        while let Ok(count) = timeout(Duration::from_millis(1), near.write(&block)).await {
            written += count.unwrap();
        }
        assert!(written >= 256 << 10, "{written}");
        assert!(written <= (256 + 384) << 10, "{written}");
        stalled.push((near, far));
    }
    let (mut near, mut far) = open(&sender, &mut incoming).await;
    let start = Instant::now();
    let all = pattern(8 << 20);
    let mut read = vec![0; all.len()];
    let (written, got) = tokio::join!(near.write_all(&all), far.read_exact(&mut read));
    written.unwrap();
    got.unwrap();
    assert!(read == all);
    assert_eq!(start.elapsed(), Duration::ZERO);
    // And nobody lost anything.
    for (near, mut far) in stalled {
        drop(near);
        let mut read = Vec::new();
        assert!(far.read_to_end(&mut read).await.is_err());
        assert!(read.iter().all(|&byte| byte == 1));
    }
}

/// one of a hundred is written to byte by byte, each in a frame of its own, and not read. It takes what its
/// window and its writer's buffer hold, and nobody else waits for it.
#[tokio::test(start_paused = true)]
async fn one_of_a_hundred_that_is_written_byte_by_byte_and_not_read_harms_nobody() {
    const WINDOW: usize = 8 << 10;
    const BUFFER: usize = 16 << 10;
    let config = Config::default().stream_window(WINDOW as u32);
    let (sender, mut incoming) = ours(config.send_buffer(BUFFER)).await;
    let mut others = Vec::new();
    let (mut near, mut far) = open(&sender, &mut incoming).await;
    for _ in 1..100 {
        others.push(open(&sender, &mut incoming).await);
    }
    let mut written = 0;
    while let Ok(count) = timeout(Duration::from_millis(1), near.write(b"x")).await {
        written += count.unwrap();
        tokio::task::yield_now().await;
    }
    assert!((WINDOW..=WINDOW + BUFFER).contains(&written), "{written}");
    let start = Instant::now();
    let all = pattern(4 * WINDOW);
    let all = &all;
    let moves = others.iter_mut().map(|(near, far)| async move {
        let mut read = vec![0; all.len()];
        let (written, got) = tokio::join!(near.write_all(all), far.read_exact(&mut read));
        written.unwrap();
        got.unwrap();
        assert!(read == *all);
    });
    join_all(moves).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert!(!sender.is_closed());
    let mut read = vec![0; written];
    far.read_exact(&mut read).await.unwrap();
    assert!(read.iter().all(|&byte| byte == b'x'));
}

/// with these windows h2's own budget closes the connection after fewer than 200 of them.
#[tokio::test]
async fn tiny_unread_frames_harm_no_neighbour() {
    const FRAMES: usize = 4_000;
    let small = || {
        Config::default()
            .stream_window(8 << 10)
            .max_incoming_streams(2)
            .max_outgoing_streams(2)
    };
    let (mut tunnel, mut send, _recv, mut client) = to_bare_client_with(small()).await;
    for index in 0..FRAMES {
        send.reserve_capacity(1);
        poll_fn(|cx| send.poll_capacity(cx)).await.unwrap().unwrap();
        send.send_data(Bytes::from(vec![index as u8]), false)
            .unwrap();
        tokio::task::yield_now().await;
    }
    assert!(poll_fn(|cx| client.poll_ready(cx)).await.is_ok());
    let mut read = vec![0; FRAMES];
    tunnel.read_exact(&mut read).await.unwrap();
    assert!(
        read.iter()
            .enumerate()
            .all(|(index, &byte)| byte == index as u8)
    );

    let (mut tunnel, mut send, _recv, sender) = to_bare_server_with(small()).await;
    for index in 0..FRAMES {
        send.send_data(Bytes::from(vec![index as u8]), false)
            .unwrap();
        tokio::task::yield_now().await;
    }
    assert!(!sender.is_closed());
    tunnel.read_exact(&mut read).await.unwrap();
}

/// Bytes that are written one by one while the wire is busy share frames.
#[tokio::test]
async fn small_writes_join() {
    let (mut tunnel, _send, mut recv, _sender) = to_bare_server().await;
    for byte in 0..200 {
        tunnel.write_all(&[byte]).await.unwrap();
    }
    tunnel.shutdown().await.unwrap();
    let (mut frames, mut read) = (0, Vec::new());
    while let Some(chunk) = recv.data().await {
        let chunk = chunk.unwrap();
        frames += usize::from(!chunk.is_empty());
        read.extend_from_slice(&chunk);
    }
    assert_eq!(read, (0..200).collect::<Vec<u8>>());
    assert!(frames <= 5, "{frames} frames");
}

#[tokio::test]
async fn full_frames_fill_a_tls_record_and_slices_join() {
    let (mut tunnel, _send, mut recv, _sender) = to_bare_server().await;
    let all = pattern(60_000);
    let slices: Vec<_> = all.chunks(7).map(IoSlice::new).collect();
    assert_eq!(tunnel.write_vectored(&slices).await.unwrap(), all.len());
    tunnel.shutdown().await.unwrap();
    let (mut sizes, mut read) = (Vec::new(), Vec::new());
    while let Some(chunk) = recv.data().await {
        let chunk = chunk.unwrap();
        sizes.push(chunk.len());
        read.extend_from_slice(&chunk);
    }
    assert!(read == all);
    assert_eq!(&sizes[..4], &[16_375, 16_375, 16_375, 60_000 - 3 * 16_375]);
}

/// A bulk writer leaves no remainders: each would cost a TLS record and a system call.
#[tokio::test]
async fn bulk_writes_leave_in_full_frames() {
    const BLOCK: usize = 64 << 10;
    const BLOCKS: usize = 64;
    let (near, far) = tokio::io::duplex(1 << 20);
    let (told, sizes) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(1 << 20)
            .initial_connection_window_size(1 << 24);
        let mut connection = builder.handshake::<_, Bytes>(far).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        respond
            .send_response(http::Response::new(()), false)
            .unwrap();
        tokio::spawn(async move { while connection.accept().await.is_some() {} });
        let (mut recv, mut sizes) = (request.into_body(), Vec::new());
        while let Some(chunk) = recv.data().await {
            let chunk = chunk.unwrap();
            recv.flow_control().release_capacity(chunk.len()).unwrap();
            sizes.push(chunk.len());
        }
        told.send(sizes).unwrap();
    });
    let (connection, sender) = mesh_hbone::client::handshake(near, &Config::default())
        .await
        .unwrap();
    tokio::spawn(connection);
    let (mut tunnel, _) = sender
        .connect(crate::peers::request("10.0.0.7:80"))
        .await
        .unwrap();
    for _ in 0..BLOCKS {
        tunnel.write_all(&[7; BLOCK]).await.unwrap();
    }
    tunnel.shutdown().await.unwrap();
    let sizes = sizes.await.unwrap();
    assert_eq!(sizes.iter().sum::<usize>(), BLOCK * BLOCKS);
    let full = sizes.iter().filter(|&&size| size == 16_375).count();
    assert!(full >= BLOCK * BLOCKS / 16_375 - 4, "{sizes:?}");
}

#[tokio::test]
async fn a_read_that_is_dropped_has_lost_nothing() {
    let (mut near, mut far, _sender) = tunnel(Config::default().stream_window(1_000)).await;
    let all = pattern(20_000);
    let write = async {
        for (index, chunk) in all.chunks(333).enumerate() {
            near.write_all(chunk).await.unwrap();
            if index % 3 == 0 {
                tokio::task::yield_now().await;
            }
        }
        near.shutdown().await.unwrap();
    };
    let read = async {
        let mut read = Vec::new();
        let mut buffer = [0; 100];
        for turn in 0.. {
            let polled = {
                let mut attempt = pin!(far.read(&mut buffer));
                poll_fn(|cx| Poll::Ready(attempt.as_mut().poll(cx))).await
            };
            match polled {
                Poll::Ready(Ok(0)) => break,
                Poll::Ready(Ok(count)) => read.extend_from_slice(&buffer[..count]),
                Poll::Ready(Err(error)) => panic!("{error}"),
                Poll::Pending => tokio::task::yield_now().await,
            }
            assert!(turn < 1_000_000);
        }
        read
    };
    let ((), read) = tokio::join!(write, read);
    assert!(read == all);
}

#[tokio::test]
async fn a_write_that_is_dropped_has_taken_nothing() {
    let (mut near, mut far, _sender) = tunnel(Config::default().stream_window(1_000)).await;
    let all = pattern(30_000);
    let write = async {
        let mut left = &all[..];
        while !left.is_empty() {
            let polled = {
                let mut attempt = pin!(near.write(&left[..left.len().min(777)]));
                poll_fn(|cx| Poll::Ready(attempt.as_mut().poll(cx))).await
            };
            match polled {
                Poll::Ready(count) => left = &left[count.unwrap()..],
                Poll::Pending => tokio::task::yield_now().await,
            }
        }
        near.shutdown().await.unwrap();
    };
    let mut read = Vec::new();
    let ((), got) = tokio::join!(write, far.read_to_end(&mut read));
    got.unwrap();
    assert!(read == all);
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(future)
}

proptest! {
    // 96 where others try 256, and as much less of `PROPTEST_CASES`: each case is a connection and its traffic.
    #![proptest_config(ProptestConfig { cases: (96 * ProptestConfig::default().cases).div_ceil(256), ..ProptestConfig::default() })]

    /// PT-09: exactly the sent bytes, for any chunking, window, frame and transport size.
    #[test]
    fn exactly_the_bytes_arrive(
        writes in proptest::collection::vec(1usize..40_000, 1..20),
        reads in proptest::collection::vec(1usize..40_000, 1..8),
        window in 1u32..300_000,
        frame in 16_384u32..70_000,
        transport in 1usize..100_000,
        end_first in any::<bool>(),
    ) {
        run(async {
            let window = window.max(u32::try_from(writes.iter().sum::<usize>() / 2_000).unwrap());
            let config = Config::default().stream_window(window).max_frame_size(frame);
            let (sender, mut incoming) = ours_over(config.clone(), config, transport).await;
            let (mut near, mut far) = open(&sender, &mut incoming).await;
            let all = pattern(writes.iter().sum());
            if end_first {
                far.shutdown().await.unwrap();
                assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0);
            }
            let write = async {
                let mut left = &all[..];
                for &len in &writes {
                    let (now, later) = left.split_at(len);
                    near.write_all(now).await.unwrap();
                    left = later;
                }
                near.shutdown().await.unwrap();
            };
            let read = async {
                let mut got = Vec::new();
                for &len in reads.iter().cycle() {
                    let mut buffer = vec![0; len];
                    match far.read(&mut buffer).await.unwrap() {
                        0 => break,
                        count => got.extend_from_slice(&buffer[..count]),
                    }
                }
                got
            };
            let ((), got) = tokio::join!(write, read);
            assert!(got == all);
        });
    }
}
