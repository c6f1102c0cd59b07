//! A client that floods: one connection at a time, as fast as the server takes what it sends, and another as soon as the
//! server has had enough of that. On standard input: the number of a [`FLOODS`] begins it, `stop` ends it, answered by how
//! many connections it took, the bytes that they sent and how the last ones ended.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_hbone::tls::{self, Credentials};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader, split,
};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::args::{Flooding, say};
use crate::certificates::identity;
use crate::echo::{PORT, REFUSED, SERVER, connect, hbone, tunnel};
use crate::wire::{
    CANCEL, CONTINUATION, END_STREAM, Frame, GOAWAY, HEADERS, PREFACE, block, data, frame, headers,
    indexed, ping, rst, settings, settings_ack, window_update,
};
use crate::{BoxError, Done, member};

/// What a client sends without end: its name, and a step by its number.
pub(crate) type Flood = (&'static str, Option<fn(u32) -> Vec<u8>>);

/// The first is what anybody may do: a tunnel that moves as much as it can, both ways.
pub(crate) const FLOODS: [Flood; 12] = [
    ("(a tunnel at full speed)", None),
    (
        "rapid reset",
        Some(|step| [open(step), rst(stream(step), CANCEL)].concat()),
    ),
    (
        "tunnels that end at once",
        Some(|step| [open(step), data(stream(step), END_STREAM, b"")].concat()),
    ),
    (
        "no CONNECT",
        Some(|step| headers(stream(step), END_STREAM, &get())),
    ),
    (
        "1000 fields of a byte each",
        Some(|step| {
            let all = [get(), indexed(ACCEPT_CHARSET).repeat(1000)].concat();
            headers(stream(step), END_STREAM, &all)
        }),
    ),
    (
        "CONTINUATION",
        Some(|step| match step {
            0 => frame(HEADERS, 0, stream(0), &connect_block()),
            _ => frame(CONTINUATION, 0, stream(0), &[]),
        }),
    ),
    ("SETTINGS", Some(|_| settings(&[]))),
    ("PING", Some(|_| ping(0, 7))),
    ("empty DATA", Some(|_| data(FIRST, 0, b""))),
    ("DATA of 1 byte", Some(|_| data(FIRST, 0, b"x"))),
    ("WINDOW_UPDATE", Some(|_| window_update(0, 1))),
    (
        "WINDOW_UPDATE of a tunnel",
        Some(|_| window_update(FIRST, 1)),
    ),
];

/// A name of the static table ([RFC 7541 appendix A](https://www.rfc-editor.org/rfc/rfc7541#appendix-A)), of many letters.
const ACCEPT_CHARSET: usize = 15;

/// The tunnel that is there before.
const FIRST: u32 = 1;

/// Steps that are sent together.
const TOGETHER: u32 = 500;

/// For the server's last word.
const PATIENCE: Duration = Duration::from_secs(1);

fn stream(step: u32) -> u32 {
    3 + 2 * step
}

fn connect_block() -> Vec<u8> {
    let authority = SocketAddr::from((SERVER, PORT)).to_string();
    block(&[(":method", "CONNECT"), (":authority", &authority)])
}

fn get() -> Vec<u8> {
    block(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/"),
    ])
}

fn open(step: u32) -> Vec<u8> {
    headers(stream(step), 0, &connect_block())
}

#[derive(Default)]
struct Tally {
    connections: u64,
    bytes: u64,
    /// How many ended so.
    ends: BTreeMap<String, u64>,
}

type Shared = Arc<Mutex<Tally>>;

fn tally(shared: &Shared) -> MutexGuard<'_, Tally> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) async fn run(of: Flooding) -> Done {
    let credentials = member::credentials(&of.folder, REFUSED)?;
    say("ready");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut going = None;
    let mut shared = Shared::default();
    while let Some(line) = lines.next_line().await? {
        if line != "stop" {
            let (_, step) = *FLOODS.get(line.parse::<usize>()?).ok_or("no such flood")?;
            shared = Shared::default();
            let (credentials, shared) = (credentials.clone(), Arc::clone(&shared));
            going = Some(tokio::spawn(async move {
                loop {
                    let end = match step {
                        Some(step) => flood(&credentials, step, &shared).await,
                        None => honest(&credentials, &shared).await,
                    };
                    let end = end.unwrap_or_else(|error| error.to_string());
                    *tally(&shared).ends.entry(end).or_default() += 1;
                }
            }));
            say("begun");
            continue;
        }
        if let Some(going) = going.take() {
            going.abort();
            // Whatever ended it, it sends nothing more.
            let _ = going.await;
        }
        let tally = tally(&shared);
        let ends: Vec<_> = tally.ends.iter().collect();
        let ends = ends.iter().map(|(end, count)| format!("{count}x {end}"));
        let ends = ends.collect::<Vec<_>>().join(", ");
        say(&format!("{} {} {ends}", tally.connections, tally.bytes));
    }
    Ok(())
}

/// One connection, until the server ends it; says how.
async fn flood(
    credentials: &Credentials,
    step: fn(u32) -> Vec<u8>,
    shared: &Shared,
) -> Result<String, BoxError> {
    let stream = TcpStream::connect(hbone()).await?;
    stream.set_nodelay(true)?;
    let expected = [identity("server").parse()?];
    let stream = tls::connect(stream, credentials, &expected).await?;
    tally(shared).connections += 1;
    let (reads, mut writes) = split(stream);
    let begin = [
        PREFACE,
        &settings(&[]),
        &settings_ack(),
        &headers(FIRST, 0, &connect_block()),
    ];
    writes.write_all(&begin.concat()).await?;
    writes.flush().await?;
    // Not a task: whoever stops the flood stops this as well, and with it goes the connection.
    let mut end = pin!(last_word(reads));
    let mut next = 0;
    let send = async {
        loop {
            let bytes: Vec<u8> = (next..next + TOGETHER).flat_map(step).collect();
            next += TOGETHER;
            if writes.write_all(&bytes).await.is_err() || writes.flush().await.is_err() {
                return;
            }
            tally(shared).bytes += bytes.len() as u64;
        }
    };
    tokio::select! {
        end = &mut end => return Ok(end),
        () = send => {}
    }
    Ok(timeout(PATIENCE, end).await?)
}

/// Reads to the end; what the server said of it.
async fn last_word(mut reads: impl AsyncRead + Unpin) -> String {
    let (mut read, mut end) = (Vec::new(), None);
    let mut some = vec![0; 64 * 1024];
    loop {
        match reads.read(&mut some).await {
            Ok(0) => return end.unwrap_or_else(|| "an end".to_owned()),
            Ok(count) => read.extend_from_slice(&some[..count]),
            Err(error) => return end.unwrap_or_else(|| error.kind().to_string()),
        }
        while let Some(frame) = Frame::take(&mut read) {
            if frame.kind == GOAWAY {
                let said = String::from_utf8_lossy(&frame.payload[8..]).into_owned();
                end = Some(
                    format!("GOAWAY {} {said}", frame.code())
                        .trim_end()
                        .to_owned(),
                );
            }
        }
    }
}

/// A tunnel that sends as fast as it can, and reads what comes back.
async fn honest(credentials: &Credentials, shared: &Shared) -> Result<String, BoxError> {
    let sender = connect(credentials).await?;
    let tunnel = tunnel(&sender).await?;
    tally(shared).connections += 1;
    let (mut reads, mut writes) = split(tunnel);
    let bytes = vec![7; 64 * 1024];
    let send = async {
        while writes.write_all(&bytes).await.is_ok() {
            tally(shared).bytes += bytes.len() as u64;
        }
    };
    let read = async {
        let mut some = vec![0; 64 * 1024];
        while matches!(reads.read(&mut some).await, Ok(1..)) {}
    };
    tokio::select! {
        () = send => {}
        () = read => {}
    }
    sleep(Duration::from_millis(1)).await;
    Ok("an end".to_owned())
}
