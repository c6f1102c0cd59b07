//! How far a writer gets ahead of a reader that has stopped.

use std::time::Duration;

use mesh_hbone::Tunnel;
use mesh_hbone::config::Config;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

use crate::hostile::{Application, Server, wire};
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
async fn the_bulk_window_is_as_set() {
    for (set, window) in [(512 << 10, 512 << 10), (64 << 10, 256 << 10)] {
        let (mut near, mut far, _sender) = tunnel(config().bulk_window(set)).await;
        moves(&mut near, &mut far, 4 << 20).await;
        let written = ahead(&mut near).await;
        assert!(is_about(written, window), "{set}: {written}");
        assert!(written < 1 << 20, "{set}: {written}");
    }
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

/// whoever holds all of the budget leaves others the least windows, with which they go on.
#[tokio::test(start_paused = true)]
async fn who_holds_the_whole_budget_stops_no_other_connection() {
    let config = config().window_budget(1 << 20);
    let (greedy, mut incoming) = ours(config.clone()).await;
    let mut unread = Vec::new();
    for _ in 0..16 {
        let (mut near, far) = open(&greedy, &mut incoming).await;
        ahead(&mut near).await;
        unread.push((near, far));
    }
    let (sender, mut incoming) = ours(config).await;
    let (mut near, mut far) = open(&sender, &mut incoming).await;
    let began = Instant::now();
    let moves = moves(&mut near, &mut far, 4 << 20);
    timeout(Duration::from_secs(1), moves).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO, "it waits for nobody");
    let written = ahead(&mut near).await;
    assert!(is_about(written, 65_535), "{written}: there was none left");
}

/// A client by hand, which knows how far it may send on its first stream.
struct Sender {
    server: Server,
    window: i64,
    initial: i64,
}

impl Sender {
    const STREAM: u32 = 1;

    async fn new(config: Config) -> Self {
        let mut server = Server::new(config, Application::Echoes).await;
        // The echo is not to wait for us.
        let mut hello = wire::settings(&[(wire::INITIAL_WINDOW_SIZE, (1 << 31) - 1)]);
        hello.extend(wire::window_update(0, (1 << 31) - 1 - 65_535));
        hello.extend(wire::connect(Self::STREAM));
        assert!(server.raw.send(&hello).await);
        server.raw.until_on(wire::HEADERS, Self::STREAM).await;
        Self {
            server,
            window: 256 << 10,
            initial: 256 << 10,
        }
    }

    /// Sends a block and waits until it was read.
    async fn block(&mut self) {
        let block = wire::data(Self::STREAM, 0, &[7; 16 << 10]);
        assert!(self.server.raw.send(&block).await);
        self.window -= 16 << 10;
        assert!(self.window >= 0, "the window was never opened again");
        let mut echoed = 0;
        while echoed < 16 << 10 {
            let frame = self.server.raw.next().await.unwrap();
            match frame.kind {
                wire::DATA => echoed += frame.payload.len(),
                wire::WINDOW_UPDATE if frame.stream == Self::STREAM => {
                    self.window += number(&frame.payload);
                }
                wire::SETTINGS if frame.flags & wire::ACK == 0 => self.acknowledge(&frame).await,
                _ => {}
            }
        }
    }

    /// Takes the server's new initial window.
    async fn acknowledge(&mut self, settings: &wire::Frame) {
        let initial = number(&settings.payload[2..]);
        self.window += initial - self.initial;
        self.initial = initial;
        assert!(self.server.raw.send(&wire::settings_ack()).await);
    }
}

fn number(bytes: &[u8]) -> i64 {
    i64::from(u32::from_be_bytes(bytes.try_into().unwrap()))
}

#[tokio::test(start_paused = true)]
async fn a_window_that_shrank_to_nothing_is_opened_although_all_was_read_before() {
    // No other SETTINGS come to the rescue.
    let config = Config::default().ping_interval(Duration::from_secs(3_600));
    let mut sender = Sender::new(config).await;
    while sender.initial < 1 << 20 {
        sender.block().await;
    }
    // What the smaller window will take away is all that is left, and is too much for h2 to have said
    // anything of what was read.
    while !(700_000..768 << 10).contains(&sender.window) {
        sender.block().await;
    }
    for stream in [3, 5, 7, 9] {
        assert!(sender.server.raw.send(&wire::connect(stream)).await);
    }
    let settings = sender.server.raw.until(wire::SETTINGS).await;
    sender.acknowledge(&settings).await;
    assert_eq!(sender.initial, 256 << 10);
    assert!(sender.window <= 0, "{}", sender.window);

    let opened = sender
        .server
        .raw
        .until_on(wire::WINDOW_UPDATE, Sender::STREAM);
    let opened = timeout(Duration::from_secs(60), opened).await;
    sender.window += number(&opened.expect("a tunnel that stands still").payload);
    assert_eq!(sender.window, 256 << 10);
}
