//! Clients with a new tunnel each, so many per second: TCP, TLS with certificates on both sides, HTTP/2, CONNECT, a
//! byte each way. Or a byte each way on tunnels that live. On standard input: for how many milliseconds.

use std::sync::Arc;
use std::time::Duration;

use mesh_hbone::Tunnel;
use mesh_hbone::client::Sender;
use mesh_hbone::tls::Credentials;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::args::{Newcomers, say};
use crate::echo::{ADMITTED, connect, ping, tunnel};
use crate::{BoxError, Done, member};

/// Tunnels that live, each on a connection of its own.
const KEPT: u64 = 8;

/// What is measured.
enum Client {
    New(Credentials),
    Kept(Vec<(Sender, Mutex<Tunnel>)>),
}

impl Client {
    async fn come(&self, index: u64) -> Done {
        match self {
            Self::New(credentials) => {
                let sender = connect(credentials).await?;
                tunnel(&sender).await?;
            }
            Self::Kept(tunnels) => {
                let (_, tunnel) = &tunnels[(index % KEPT) as usize];
                ping(&mut *tunnel.lock().await).await?;
            }
        }
        Ok(())
    }

    async fn new(of: &Newcomers) -> Result<Self, BoxError> {
        let credentials = member::credentials(&of.folder, ADMITTED)?;
        if !of.kept {
            return Ok(Self::New(credentials));
        }
        let mut tunnels = Vec::new();
        for _ in 0..KEPT {
            let sender = connect(&credentials).await?;
            let tunnel = tunnel(&sender).await?;
            tunnels.push((sender, Mutex::new(tunnel)));
        }
        Ok(Self::Kept(tunnels))
    }
}

/// A tunnel that is not there by then has failed.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) async fn run(of: Newcomers) -> Done {
    let client = Arc::new(Client::new(&of).await?);
    say("ready");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let count = line.parse::<u64>()? * of.rate / 1000;
        let mut ticks = interval(Duration::from_secs(1) / of.rate as u32);
        // What is late counts as late: from when it was due.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut coming = JoinSet::new();
        for index in 0..count {
            let due = ticks.tick().await;
            let client = Arc::clone(&client);
            coming.spawn(async move {
                let came = timeout(PATIENCE, client.come(index)).await;
                matches!(came, Ok(Ok(_))).then(|| Instant::now() - due)
            });
        }
        let came = coming.join_all().await;
        let mut times: Vec<f64> = came.iter().flatten().map(Duration::as_secs_f64).collect();
        times.sort_by(f64::total_cmp);
        let at = |per_mille: usize| {
            let index = (times.len() * per_mille / 1000).min(times.len().saturating_sub(1));
            times.get(index).copied().unwrap_or(f64::NAN) * 1e3
        };
        let failed = came.len() - times.len();
        say(&format!("{} {} {} {failed}", at(500), at(990), at(1000)));
    }
    Ok(())
}
