//! New connections to a service, and how long each takes to its first answer.
//!
//! `until there` and `until gone` are answered by `reached` when a request is answered, or none is any more.
//! `rate <connections per second> <series>` is answered by `begin`, and connections are made until `stop`, which is answered by
//! `end <connections> <failures> <p50 ns> <p99 ns> <p99.9 ns>` of all of the series so far.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader, Lines, Stdin};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::args::{Reach, Road, say};
use crate::load::{Over, Way};
use crate::namespaces::CLIENT;
use crate::{BoxError, Done, member};

/// How long a service may take to come or go, and between attempts.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(1);
/// Longer than this a connection does not take.
const ATTEMPT: Duration = Duration::from_secs(5);

pub(crate) async fn run(of: Reach) -> Done {
    let mesh = async || -> Result<_, BoxError> {
        let own = (CLIENT, 0).into();
        let mesh = member::join_control(&of.folder, "client", of.control, own)?;
        mesh.ready().await?;
        Ok(mesh)
    };
    let over = match of.road {
        Road::Plain => Over::Plain,
        Road::Tunnel => Over::Tunnel(mesh().await?),
        Road::Http => Over::Http(mesh().await?),
        Road::Tls | Road::Connect => return Err("--road: none that a service is found on".into()),
    };
    say("ready");
    let way = Arc::new(Way { to: of.to, over });
    let mut series: HashMap<String, Series> = HashMap::new();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        match line.split_once(' ') {
            Some(("until", what)) => until(&way, what == "there").await?,
            Some(("rate", how)) => {
                let (per_second, name) = how.split_once(' ').ok_or("expected a series")?;
                let series = series.entry(name.to_owned()).or_default();
                rate(&way, per_second.parse()?, &mut lines, series).await?;
            }
            _ => return Err(format!("expected until or rate, got {line:?}").into()),
        }
    }
    Ok(())
}

async fn until(way: &Way, there: bool) -> Done {
    let start = Instant::now();
    loop {
        let answered = timeout(ATTEMPT, way.try_once()).await;
        if answered.is_ok_and(|answered| answered.is_ok()) == there {
            say("reached");
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            return Err("the change does not take effect".into());
        }
        sleep(PAUSE).await;
    }
}

/// What windows of one kind have in common.
#[derive(Default)]
struct Series {
    /// In nanoseconds.
    times: Vec<u64>,
    failures: usize,
}

async fn rate(
    way: &Arc<Way>,
    per_second: u32,
    lines: &mut Lines<BufReader<Stdin>>,
    Series { times, failures }: &mut Series,
) -> Done {
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut ticks = interval(Duration::from_secs(1) / per_second);
    // What is late counts: a stall delays all that would have been made in it.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    say("begin");
    loop {
        tokio::select! {
            due = ticks.tick() => {
                let (way, tell) = (Arc::clone(way), tell.clone());
                tokio::spawn(async move {
                    let answered = timeout(ATTEMPT, way.try_once()).await;
                    let answered = answered.is_ok_and(|answered| answered.is_ok());
                    let _ = tell.send(answered.then(|| due.elapsed().as_nanos() as u64));
                });
            }
            line = lines.next_line() => {
                line?;
                break;
            }
        }
    }
    drop(tell);
    while let Some(time) = told.recv().await {
        match time {
            Some(time) => times.push(time),
            None => *failures += 1,
        }
    }
    times.sort_unstable();
    let at = |share: f64| {
        let index = (times.len() as f64 * share) as usize;
        times.get(index).copied().unwrap_or_default()
    };
    say(&format!(
        "end {} {failures} {} {} {}",
        times.len(),
        at(0.5),
        at(0.99),
        at(0.999)
    ));
    Ok(())
}
