//! New tunnels, and bytes on tunnels that live, while one connection floods the server.
//!
//! The server, who attacks it and who is measured are processes of their own, over the loopback. In each round all floods
//! take turns, and each is compared with the quiet server of its round. That they share a machine counts in full against
//! the server, but with `--apart`: the first "flood" is a tunnel at full speed, which anybody may have.

use tokio::time::Instant;

use crate::args::{Flood, say};
use crate::echo::Deployment;
use crate::flooding::FLOODS;
use crate::processes::Process;
use crate::spread::Spread;
use crate::{BoxError, Done, machine};

#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    /// Of bytes on tunnels that live, and of new tunnels: p50 and p99 in milliseconds.
    kept: (f64, f64),
    new: (f64, f64),
    failed: f64,
    /// Of the attacker, per second.
    connections: f64,
    sent: f64,
    /// Of the server: cores, and bytes beyond what it had before.
    cores: f64,
    grown: f64,
}

struct Measured {
    kept: Process,
    new: Process,
    deployment: Deployment,
    millis: u64,
}

impl Measured {
    fn sample(&mut self) -> Result<Sample, BoxError> {
        let server = &self.deployment.server;
        let (cpu, resident) = (server.cpu()?, server.resident()?);
        server.forget_peak()?;
        let begin = Instant::now();
        let read = |process: &mut Process| -> Result<[f64; 4], BoxError> {
            let line = process.line()?;
            let values: Result<Vec<f64>, _> = line.split(' ').map(str::parse).collect();
            let values = values?.try_into();
            values.map_err(|_| format!("expected four figures, got {line:?}").into())
        };
        for process in [&mut self.kept, &mut self.new] {
            process.tell(&self.millis.to_string())?;
        }
        let kept = read(&mut self.kept)?;
        let new = read(&mut self.new)?;
        // Longer than was asked for where somebody had to wait.
        let took = begin.elapsed().as_secs_f64();
        Ok(Sample {
            kept: (kept[0], kept[1]),
            new: (new[0], new[1]),
            failed: kept[3] + new[3],
            cores: (server.cpu()? - cpu) / took,
            grown: server.peak()? - resident,
            ..Sample::default()
        })
    }
}

pub(crate) fn run(of: &Flood) -> Done {
    machine::print();
    let deployment = Deployment::start()?;
    let mut attacker = deployment.member("attacker", &["flooding"])?;
    let mut measured = Measured {
        kept: deployment.clients("kept", of.kept, true)?,
        new: deployment.clients("new", of.rate, false)?,
        deployment,
        millis: of.millis,
    };
    if of.apart {
        let last = std::thread::available_parallelism()?.get() - 1;
        let before = last.checked_sub(1).ok_or("expected two cores or more")?;
        attacker.pin(&last.to_string())?;
        for process in [&measured.kept, &measured.new, &measured.deployment.server] {
            process.pin(&format!("0-{before}"))?;
        }
    }
    let floods: Vec<_> = (0..FLOODS.len())
        .filter(|flood| FLOODS[*flood].0.contains(&of.only))
        .collect();
    let mut quiet = Vec::new();
    let mut samples = vec![Vec::new(); floods.len()];
    let mut ends = vec![String::new(); floods.len()];
    // What is allocated once is not what a flood makes it hold.
    measured.sample()?;
    for _ in 0..of.rounds {
        quiet.push(measured.sample()?);
        for (at, flood) in floods.iter().enumerate() {
            attacker.tell(&flood.to_string())?;
            attacker.line()?;
            let begin = Instant::now();
            let mut sample = measured.sample()?;
            attacker.tell("stop")?;
            let line = attacker.line()?;
            let took = begin.elapsed().as_secs_f64();
            let mut words = line.splitn(3, ' ');
            let mut figure = || words.next().unwrap_or_default().parse::<f64>();
            sample.connections = figure()? / took;
            sample.sent = figure()? / took;
            ends[at] = words.next().unwrap_or_default().to_owned();
            samples[at].push(sample);
        }
    }
    machine::print();
    print(of, &quiet, &floods, &samples, &ends);
    let all = quiet.iter().chain(samples.iter().flatten());
    let failed: f64 = all.map(|sample| sample.failed).sum();
    match failed {
        0.0 => Ok(()),
        _ => Err(format!("{failed} tunnels or bytes of others failed").into()),
    }
}

fn print(of: &Flood, quiet: &[Sample], floods: &[usize], samples: &[Vec<Sample>], ends: &[String]) {
    say(&format!(
        "{} rounds of {} ms; per second {} bytes there and back on tunnels that live, and {} new tunnels{}",
        of.rounds,
        of.millis,
        of.kept,
        of.rate,
        if of.apart {
            "; the attacker on a core of its own"
        } else {
            ""
        }
    ));
    say(&format!(
        "{:<28}{:>20}{:>20}{:>20}{:>20}{:>7}{:>7}{:>9}{:>9}{:>7}{:>9}",
        "",
        "kept p50 ms",
        "kept p99 ms",
        "new p50 ms",
        "new p99 ms",
        "kept",
        "new",
        "conn/s",
        "MB/s",
        "cores",
        "grown MB"
    ));
    let all = [("quiet", quiet)].into_iter();
    let attacked = floods.iter().zip(samples);
    let attacked = attacked.map(|(flood, samples)| (FLOODS[*flood].0, samples.as_slice()));
    for (name, samples) in all.chain(attacked) {
        let spread = |value: fn(&Sample) -> f64| Spread::of(samples.iter().map(value));
        let ratio = |value: fn(&Sample) -> f64| {
            let both = samples.iter().zip(quiet);
            Spread::of(both.map(|(sample, quiet)| value(sample) / value(quiet))).median
        };
        say(&format!(
            "{name:<28}{:>20}{:>20}{:>20}{:>20}{:>7.2}{:>7.2}{:>9.0}{:>9.2}{:>7.2}{:>9.2}",
            spread(|sample| sample.kept.0).to_string(),
            spread(|sample| sample.kept.1).to_string(),
            spread(|sample| sample.new.0).to_string(),
            spread(|sample| sample.new.1).to_string(),
            ratio(|sample| sample.kept.1),
            ratio(|sample| sample.new.1),
            spread(|sample| sample.connections).median,
            spread(|sample| sample.sent).median / 1e6,
            spread(|sample| sample.cores).median,
            spread(|sample| sample.grown).most / 1e6,
        ));
    }
    for (flood, end) in floods.iter().zip(ends) {
        say(&format!("{:<28}{end}", FLOODS[*flood].0));
    }
}
