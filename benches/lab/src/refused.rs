//! Clients that policy refuses: a stranger whom nothing ever admits, and the client `refused`, which is admitted now and
//! then, and cut when it is not any more.
//!
//! On standard input: for how many milliseconds. At first `refused` opens what tunnels it may, answered by how many there
//! are. Then the stranger asks, so many times a second, in turns:
//!
//! - for a tunnel on a new connection, which ends properly;
//! - for one on a new connection that is reset a moment later, answered or not;
//! - for one more on a connection that stays;
//! - for an answer in plaintext.
//!
//! In the end the answer is how often it was denied, how many tunnels of `refused` were cut, how often it was not, and
//! why the first time. `leave` ends the connections that stay, answered by `left`.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use mesh_hbone::client::Sender;
use mesh_hbone::tls::Credentials;
use mesh_hbone::{Error as HboneError, Tunnel};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::args::{Refused, say};
use crate::echo::{PORT, REFUSED, SERVER, STRANGER, connect, dial, speak, tunnel};
use crate::{BoxError, Done, member};

/// Tunnels that `refused` has while it may.
const TUNNELS: usize = 8;

/// After which the stranger resets a connection: about as long as an answer takes.
const MOMENT: Duration = Duration::from_millis(1);

/// Who is not denied by then has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a connection ends that the server refuses.
const CLOSED: [ErrorKind; 3] = [
    ErrorKind::ConnectionReset,
    ErrorKind::BrokenPipe,
    ErrorKind::UnexpectedEof,
];

/// A client, and its connection that stays.
struct Client {
    credentials: Credentials,
    stays: Mutex<Option<Sender>>,
}

impl Client {
    fn new(of: &Refused, account: &str) -> Result<Self, BoxError> {
        Ok(Self {
            credentials: member::credentials(&of.folder, account)?,
            stays: Mutex::default(),
        })
    }

    /// The connection that stays; another one if the server has ended it.
    async fn stays(&self) -> Result<Sender, BoxError> {
        let mut stays = self.stays.lock().await;
        match &*stays {
            Some(sender) if !sender.is_closed() => Ok(sender.clone()),
            _ => Ok(stays.insert(connect(&self.credentials).await?).clone()),
        }
    }

    async fn leave(&self) {
        self.stays.lock().await.take();
    }

    /// As many tunnels as it may have: none, as long as it is refused.
    async fn open(&self) -> Vec<Tunnel> {
        let mut tunnels = Vec::new();
        if let Ok(sender) = self.stays().await {
            while tunnels.len() < TUNNELS
                && let Ok(tunnel) = tunnel(&sender).await
            {
                tunnels.push(tunnel);
            }
        }
        tunnels
    }

    /// Fails unless it was denied.
    async fn ask(&self, index: u64) -> Done {
        match index % 4 {
            0 => denied(tunnel(&connect(&self.credentials).await?).await),
            1 => self.reset().await,
            2 => denied(tunnel(&self.stays().await?).await),
            _ => in_plaintext().await,
        }
    }

    async fn reset(&self) -> Done {
        let stream = dial().await?;
        stream.set_zero_linger()?;
        let sender = speak(stream, &self.credentials).await?;
        let answer = timeout(MOMENT, tunnel(&sender)).await;
        sender.abort();
        answer.map_or(Ok(()), denied)
    }
}

fn denied(answer: Result<Tunnel, BoxError>) -> Done {
    let Err(error) = answer else {
        return Err("a tunnel was opened".into());
    };
    let known = error.downcast_ref::<HboneError>();
    match known.and_then(HboneError::status) {
        Some(StatusCode::UNAUTHORIZED) => Ok(()),
        _ => Err(error),
    }
}

async fn in_plaintext() -> Done {
    let answer = async {
        let mut stream = TcpStream::connect((SERVER, PORT)).await?;
        stream.write_all(b"x").await?;
        stream.read_u8().await
    };
    match answer.await {
        Ok(_) => Err("plaintext was answered".into()),
        // It may be closed before it is known to be open.
        Err(error) if CLOSED.contains(&error.kind()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// How many are cut in so much time. The others are let go of.
async fn cut(tunnels: Vec<Tunnel>, time: Duration) -> usize {
    let ends = tunnels.into_iter().map(|mut tunnel| async move {
        // Nobody says anything by itself.
        timeout(time, tunnel.read_u8()).await.is_ok()
    });
    join_all(ends).await.into_iter().filter(|cut| *cut).count()
}

pub(crate) async fn run(of: Refused) -> Done {
    let refused = Client::new(&of, REFUSED)?;
    let stranger = Arc::new(Client::new(&of, STRANGER)?);
    say("ready");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        if line == "leave" {
            refused.leave().await;
            stranger.leave().await;
            say("left");
            continue;
        }
        let millis: u64 = line.parse()?;
        let tunnels = refused.open().await;
        say(&tunnels.len().to_string());
        // None of them is left when what everybody holds is looked at.
        let cut = tokio::spawn(cut(tunnels, Duration::from_millis(millis / 2)));
        let mut ticks = interval(Duration::from_secs(1) / of.rate as u32);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut asking = JoinSet::new();
        for index in 0..millis * of.rate / 1000 {
            ticks.tick().await;
            let stranger = Arc::clone(&stranger);
            asking.spawn(async move { timeout(PATIENCE, stranger.ask(index)).await? });
        }
        let asked = asking.join_all().await;
        let failures: Vec<_> = asked
            .iter()
            .filter_map(|asked| asked.as_ref().err())
            .collect();
        let denied = asked.len() - failures.len();
        let why = failures
            .first()
            .map_or_else(String::new, ToString::to_string);
        say(&format!("{denied} {} {} {why}", cut.await?, failures.len()));
    }
    Ok(())
}
