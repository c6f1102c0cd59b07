//! Clients that flood our server with frames, each on one connection, without TLS and in one thread.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use mesh_core::hbone::config::Config;
use mesh_core::hbone::{DeferredFlush, Tunnel, server};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::runtime::{Builder, Runtime};

use crate::wire::{
    ACK, CANCEL, CONTINUATION, END_HEADERS, END_STREAM, HEADERS, INITIAL_WINDOW_SIZE, PING,
    PREFACE, block, connect, connect_block, data, frame, headers, indexed, literal, ping, priority,
    rst, settings, settings_ack, window_update,
};

/// A flood: what one step of it sends, by the number of the step.
#[derive(Debug)]
pub struct Flood {
    /// What it is.
    pub name: &'static str,
    /// Tunnels that are there before it.
    tunnels: u32,
    /// Steps that arrive together.
    together: usize,
    one_in: u32,
    step: fn(u32) -> Vec<u8>,
}

/// Beyond those of the tunnels that are there before.
fn stream(step: u32) -> u32 {
    1001 + 2 * step
}

/// What an honest client does, to compare with: a tunnel, and its end.
pub const HONEST: &str = "a tunnel";

/// Small frames that come together. Of those that open streams each comes alone: resets that outrun whoever takes the
/// tunnels end the connection.
const MANY: usize = 30;

/// Everything that our limits let in again and again, and [`HONEST`].
pub const FLOODS: [Flood; 18] = [
    Flood::new(HONEST, 0, 1, |step| {
        let end = data(stream(step), END_STREAM, b"");
        [connect(stream(step)), end].concat()
    }),
    Flood::new("PING", 0, MANY, |_| ping(0, 7)),
    Flood::new("SETTINGS", 0, MANY, |_| settings(&[])),
    Flood::new(
        "SETTINGS that resize 100 tunnels' windows",
        100,
        MANY,
        |step| settings(&[(INITIAL_WINDOW_SIZE, 65_535 - step % 2)]),
    ),
    Flood::new("PRIORITY", 0, MANY, |_| priority(1001, 3)),
    Flood::new("unknown", 0, MANY, |_| frame(0xbe, 0, 0, &[])),
    Flood::new("WINDOW_UPDATE", 0, MANY, |_| window_update(0, 1)),
    Flood::new("WINDOW_UPDATE of a tunnel", 1, MANY, |_| {
        window_update(1, 1)
    }),
    Flood::new("DATA of 1 byte", 1, MANY, |_| data(1, 0, b"x")),
    Flood::new("RST_STREAM at once", 0, 1, |step| {
        [connect(stream(step)), rst(stream(step), CANCEL)].concat()
    }),
    Flood::new("RST_STREAM that we are made to send", 0, 1, |step| {
        let too_much = window_update(stream(step), 0x7fff_ffff);
        [connect(stream(step)), too_much.clone(), too_much].concat()
    }),
    Flood::new("a CONNECT in 5 CONTINUATIONs", 0, 1, |step| {
        let fields = connect_block();
        let mut frames = frame(HEADERS, 0, stream(step), &fields[..8]);
        for _ in 0..4 {
            frames.extend(frame(CONTINUATION, 0, stream(step), &[]));
        }
        let rest = &fields[8..];
        frames.extend(frame(CONTINUATION, END_HEADERS, stream(step), rest));
        frames.extend(rst(stream(step), CANCEL));
        frames
    }),
    Flood::new("a request that is no CONNECT", 0, 1, |step| {
        headers(stream(step), END_STREAM, &get())
    }),
    Flood::list("100 fields of a byte each", |step| {
        listing(step, indexed(ACCEPT_CHARSET).repeat(100))
    }),
    Flood::list("1000 fields of a byte each", |step| {
        listing(step, indexed(ACCEPT_CHARSET).repeat(1000))
    }),
    Flood::list("100 names", |step| listing(step, names(100))),
    Flood::list("1000 names", |step| listing(step, names(1000))),
    Flood {
        one_in: 10,
        ..Flood::new(
            "1000 fields of a request that is no CONNECT",
            0,
            MANY,
            |step| {
                let all = [get(), indexed(ACCEPT_CHARSET).repeat(1000)].concat();
                headers(stream(step), END_STREAM, &all)
            },
        )
    },
];

fn get() -> Vec<u8> {
    block(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/"),
    ])
}

/// A name of the static table ([RFC 7541 appendix A](https://www.rfc-editor.org/rfc/rfc7541#appendix-A)), of many letters.
const ACCEPT_CHARSET: usize = 15;

fn names(count: u32) -> Vec<u8> {
    let names = (0..count).flat_map(|name| literal(0x00, &format!("x{name:03}"), ""));
    names.collect()
}

/// A CONNECT with more fields, given up at once.
fn listing(step: u32, fields: Vec<u8>) -> Vec<u8> {
    let all = [connect_block(), fields].concat();
    let reset = rst(stream(step), CANCEL);
    [headers(stream(step), 0, &all), reset].concat()
}

impl Flood {
    const fn new(
        name: &'static str,
        tunnels: u32,
        together: usize,
        step: fn(u32) -> Vec<u8>,
    ) -> Self {
        Self {
            name,
            tunnels,
            together,
            one_in: 1,
            step,
        }
    }

    /// Of lists a tenth of the steps is enough to see, for each has many fields.
    const fn list(name: &'static str, step: fn(u32) -> Vec<u8>) -> Self {
        Self {
            one_in: 10,
            ..Self::new(name, 0, 1, step)
        }
    }

    /// How many steps it makes where others make this many.
    pub fn steps(&self, of_others: u32) -> u32 {
        of_others / self.one_in
    }

    /// A server with the tunnels that this flood needs.
    pub fn server(&self) -> Server {
        let mut server = Server::new();
        for tunnel in 0..self.tunnels {
            server.take(connect(1 + 2 * tunnel));
        }
        // All steps are of a length.
        server.wire.state().piece = self.together * (self.step)(0).len();
        server
    }

    /// What these steps send.
    pub fn bytes(&self, steps: std::ops::Range<u32>) -> Vec<u8> {
        steps.flat_map(self.step).collect()
    }
}

/// Our server of one connection, with an application that reads its tunnels to their ends.
#[derive(Debug)]
pub struct Server {
    runtime: Runtime,
    wire: Wire,
}

impl Server {
    /// The default settings, but for those that would end a flood before its cost shows.
    fn new() -> Self {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime of one thread needs nothing");
        let wire = Wire::default();
        wire.state().piece = PREFACE.len();
        let config = Config::default()
            .max_control_frames(u32::MAX)
            .max_resets_per_second(u32::MAX)
            .max_error_resets(usize::MAX);
        let io = wire.clone();
        runtime.spawn(async move {
            let mut connection = server::handshake(io, &config);
            while let Some(Ok(incoming)) = connection.accept().await {
                if let Ok(tunnel) = incoming.accept(None) {
                    tokio::spawn(read(tunnel));
                }
            }
        });
        let mut server = Self { runtime, wire };
        server.take([PREFACE, &settings(&[]), &settings_ack()].concat());
        server
    }

    /// Handles what a client sends, until nothing is left to do.
    pub fn take(&mut self, bytes: Vec<u8>) {
        self.wire.bring(bytes);
        // Its clock moves only when all tasks wait.
        self.runtime.block_on(async {
            tokio::time::sleep(Duration::from_millis(1)).await;
        });
    }

    /// Whether the connection goes on: a PING is answered.
    pub fn goes_on(&mut self) -> bool {
        const WORD: u64 = 0x676f_206f_6e21;
        self.wire.state().kept = Some(Vec::new());
        self.take(ping(0, WORD));
        let kept = self.wire.state().kept.take().unwrap_or_default();
        let answer = frame(PING, ACK, 0, &WORD.to_be_bytes());
        kept.windows(answer.len()).any(|part| part == answer)
    }
}

async fn read(mut tunnel: Tunnel) {
    let mut some = [0; 256];
    loop {
        match tunnel.read(&mut some).await {
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => return,
        }
    }
    // It ends at both ends, or has been reset.
    let _ = tunnel.shutdown().await;
}

/// What a client sends comes in pieces, and what it is sent is gone.
#[derive(Debug, Clone, Default)]
struct Wire(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    at: usize,
    /// How many come together.
    piece: usize,
    /// Whether others had their turn since the last piece.
    rested: bool,
    reader: Option<Waker>,
    /// What is sent, if somebody looks at it.
    kept: Option<Vec<u8>>,
}

impl Wire {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bring(&self, bytes: Vec<u8>) {
        let mut state = self.state();
        (state.bytes, state.at) = (bytes, 0);
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let state = &mut *self.state();
        let left = &state.bytes[state.at..];
        if left.is_empty() {
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.rested = !state.rested;
        if state.rested {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let count = left.len().min(state.piece).min(buf.remaining());
        buf.put_slice(&left[..count]);
        state.at += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(kept) = &mut self.state().kept {
            kept.extend_from_slice(bytes);
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl DeferredFlush for Wire {
    fn poll_flush_now(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
