//! How far a writer gets ahead of a reader that has stopped.

use std::time::Duration;

use mesh_hbone::Tunnel;
use mesh_hbone::config::Config;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::peers::{open, ours, tunnel};

const SEND_BUFFER: usize = 64 << 10;
/// Frames that are whole, and what is on its way where nothing says so.
const SLACK: usize = 48 << 10;

fn config() -> Config {
    Config::default().send_buffer(SEND_BUFFER)
}

async fn moves(near: &mut Tunnel, far: &mut Tunnel, bytes: usize) {
    let (all, mut read) = (vec![1; bytes], vec![0; bytes]);
    let (written, got) = tokio::join!(near.write_all(&all), far.read_exact(&mut read));
    written.unwrap();
    got.unwrap();
}

/// Bytes that are taken while nobody reads.
async fn ahead(near: &mut Tunnel) -> usize {
    let (block, mut written) = (vec![2; 4 << 10], 0);
    // Paused time passes when nothing moves any more.
    while let Ok(count) = timeout(Duration::from_millis(1), near.write(&block)).await {
        written += count.unwrap();
    }
    written
}

/// h2 tells a writer of what was read when that is half of the window.
fn is_about(written: usize, window: usize) -> bool {
    (window / 2..=window + SEND_BUFFER + SLACK).contains(&written)
}

#[tokio::test(start_paused = true)]
async fn an_unread_tunnel_holds_one_stream_window() {
    let (mut near, _far, _sender) = tunnel(config()).await;
    let written = ahead(&mut near).await;
    assert!(is_about(written, 256 << 10), "{written}");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_keeps_up_gets_the_bulk_window() {
    let (mut near, mut far, _sender) = tunnel(config()).await;
    moves(&mut near, &mut far, 4 << 20).await;
    let written = ahead(&mut near).await;
    assert!(is_about(written, 1 << 20), "{written}");
    // What was sent under one window is read under another.
    let mut read = vec![0; written];
    far.read_exact(&mut read).await.unwrap();
    // Two intervals with little to move.
    tokio::time::sleep(Duration::from_secs(25)).await;
    let written = ahead(&mut near).await;
    assert!(is_about(written, 256 << 10), "{written}");
}

#[tokio::test(start_paused = true)]
async fn many_tunnels_have_no_bulk_windows() {
    let (sender, mut incoming) = ours(config()).await;
    let (mut near, mut far) = open(&sender, &mut incoming).await;
    let mut others = Vec::new();
    for _ in 0..4 {
        others.push(open(&sender, &mut incoming).await);
    }
    moves(&mut near, &mut far, 4 << 20).await;
    let written = ahead(&mut near).await;
    assert!(is_about(written, 256 << 10), "{written}");
}

#[tokio::test(start_paused = true)]
async fn beyond_the_budget_windows_are_the_least() {
    let config = config().window_budget(512 << 10);
    let (sender, mut incoming) = ours(config).await;
    let (mut near, _far) = open(&sender, &mut incoming).await;
    let mut others = Vec::new();
    for _ in 0..2 {
        others.push(open(&sender, &mut incoming).await);
    }
    // The SETTINGS that say so.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let written = ahead(&mut near).await;
    assert!(is_about(written, 65_535), "{written}");
}
