//! Clients with a new tunnel each, so many per second: TCP, TLS with certificates on both sides, HTTP/2, CONNECT, a
//! byte each way. On standard input: for how many milliseconds.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::args::{Newcomers, say};
use crate::echo::{ADMITTED, connect, tunnel};
use crate::{Done, member};

/// A tunnel that is not there by then has failed.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) async fn run(of: Newcomers) -> Done {
    let credentials = Arc::new(member::credentials(&of.folder, ADMITTED)?);
    say("ready");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let count = line.parse::<u64>()? * of.rate / 1000;
        let mut ticks = interval(Duration::from_secs(1) / of.rate as u32);
        // What is late counts as late: from when it was due.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut coming = JoinSet::new();
        for _ in 0..count {
            let due = ticks.tick().await;
            let credentials = Arc::clone(&credentials);
            coming.spawn(async move {
                let come = async {
                    let sender = connect(&credentials).await?;
                    tunnel(&sender).await
                };
                let came = timeout(PATIENCE, come).await;
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
