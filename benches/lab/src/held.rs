//! Clients whose tunnels live: one that policies will refuse, and one that they will not.
//!
//! On standard input: `open` opens what is not open; `count <time>` says what came of a change that began then; `alive` how
//! many tunnels of each of the two still echo.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mesh_hbone::Tunnel;
use mesh_hbone::client::Sender;
use mesh_hbone::tls::Credentials;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::args::{Held, say};
use crate::echo::{ADMITTED, REFUSED, connect, now, ping, tunnel};
use crate::{BoxError, Done, member};

/// Handshakes on their way at once.
const AT_ONCE: usize = 32;

/// Longer than any cut takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// In which a tunnel that must not be cut would be.
const AFTER: Duration = Duration::from_millis(300);

struct Client {
    credentials: Credentials,
    tunnels: usize,
    connections: usize,
    senders: Vec<Sender>,
    /// When tunnels ended.
    ended: mpsc::UnboundedReceiver<u64>,
    end: mpsc::UnboundedSender<u64>,
    asked: watch::Sender<()>,
    answered: Arc<AtomicUsize>,
}

impl Client {
    fn new(of: &Held, account: &str) -> Result<Self, BoxError> {
        let (end, ended) = mpsc::unbounded_channel();
        Ok(Self {
            credentials: member::credentials(&of.folder, account)?,
            tunnels: of.tunnels,
            connections: of.connections,
            senders: Vec::new(),
            ended,
            end,
            asked: watch::Sender::new(()),
            answered: Arc::default(),
        })
    }

    /// All tunnels, on new connections, once there is one: that the server admits it again may take a moment.
    async fn open(&mut self) -> Done {
        self.senders.clear();
        let one = async || tunnel(&connect(&self.credentials).await?).await;
        let admitted = async {
            while one().await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, admitted).await?;
        let (mut opening, mut begun) = (JoinSet::new(), 0);
        let each = self.tunnels / self.connections;
        loop {
            while begun < self.connections && opening.len() < AT_ONCE {
                begun += 1;
                let credentials = self.credentials.clone();
                opening.spawn(async move {
                    let sender = connect(&credentials).await?;
                    let mut tunnels = Vec::with_capacity(each);
                    while tunnels.len() < each {
                        tunnels.push(tunnel(&sender).await?);
                    }
                    Ok::<_, BoxError>((sender, tunnels))
                });
            }
            let Some(opened) = opening.join_next().await else {
                return Ok(());
            };
            let (sender, tunnels) = opened??;
            self.senders.push(sender);
            for tunnel in tunnels {
                let asked = self.asked.subscribe();
                let (end, answered) = (self.end.clone(), Arc::clone(&self.answered));
                tokio::spawn(hold(tunnel, asked, end, answered));
            }
        }
    }

    /// How many still echo.
    async fn alive(&self) -> usize {
        self.answered.store(0, Ordering::Relaxed);
        self.asked.send_replace(());
        let all = async {
            while self.answered.load(Ordering::Relaxed) < self.tunnels {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = timeout(PATIENCE, all).await;
        self.answered.load(Ordering::Relaxed)
    }
}

async fn hold(
    mut tunnel: Tunnel,
    mut asked: watch::Receiver<()>,
    end: mpsc::UnboundedSender<u64>,
    answered: Arc<AtomicUsize>,
) {
    loop {
        tokio::select! {
            // Nobody says anything by itself.
            _ = tunnel.read_u8() => break,
            changed = asked.changed() => {
                if changed.is_err() || ping(&mut tunnel).await.is_err() {
                    break;
                }
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    let _ = end.send(now());
}

pub(crate) async fn run(of: Held) -> Done {
    let mut refused = Client::new(&of, REFUSED)?;
    let mut admitted = Client::new(&of, ADMITTED)?;
    admitted.open().await?;
    say("ready");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        if line == "open" {
            refused.open().await?;
            say("open");
            continue;
        }
        if line == "alive" {
            sleep(AFTER).await;
            let alive = (refused.alive().await, admitted.alive().await);
            say(&format!("{} {}", alive.0, alive.1));
            continue;
        }
        let begin = line
            .strip_prefix("count ")
            .ok_or("neither open, alive nor count")?;
        let begin: u64 = begin.parse()?;
        let mut times = Vec::with_capacity(refused.tunnels);
        let all = async {
            while times.len() < refused.tunnels {
                times.extend(refused.ended.recv().await);
            }
        };
        let _ = timeout(PATIENCE, all).await;
        sleep(AFTER).await;
        let alive = admitted.alive().await;
        times.sort_unstable();
        let at = |per_mille: usize| {
            let index = (times.len() * per_mille / 1000).min(times.len().saturating_sub(1));
            let time = times.get(index).copied().unwrap_or(u64::MAX);
            time.saturating_sub(begin) as f64 / 1e3
        };
        let (p50, p99, most) = (at(500), at(990), at(1000));
        say(&format!("{} {alive} {p50} {p99} {most}", times.len()));
    }
    Ok(())
}
