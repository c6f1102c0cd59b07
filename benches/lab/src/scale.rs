//! A mesh of any size, by the same control plane to a member of the mesh and to a ztunnel, in turns: what it takes
//! to be ready, how soon one change is in effect, and connections while everything changes.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use crate::args::{Scale, peer, say};
use crate::fleet::{SERVICE, SERVICE_PORT};
use crate::namespaces::{Pair, SERVER};
use crate::peers::{self, Source};
use crate::processes::Process;
use crate::requests::folder;
use crate::spread::Spread;
use crate::{BoxError, Done, machine};

/// Until allocators have given back what they will.
const SETTLE: Duration = Duration::from_secs(8);
/// Connections a second, while everything changes and while nothing does.
const RATE: u32 = 100;
/// Pushes that follow each other, and the quiet before them, which takes about as long.
const IN_A_ROW: usize = 5;
const QUIET: Duration = Duration::from_secs(18);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Joined {
    Sdk,
    Ztunnel,
}

#[derive(Debug, Default)]
struct Sample {
    /// From the start of the process, in seconds.
    ready: f64,
    /// When it is ready, in seconds.
    cpu: f64,
    /// When it has settled, and the most, in MB.
    resident: f64,
    peak: f64,
    /// From when the control plane is told of a change until it is in effect, in milliseconds.
    changes: Vec<f64>,
}

pub(crate) fn run(of: &Scale) -> Done {
    machine::print();
    let program = peer(of.ztunnel.as_ref(), "PEER_ZTUNNEL");
    if program.is_none() {
        say("PEER_ZTUNNEL names no program: left out");
    }
    let (pair, folder) = (Pair::new("f")?, folder()?);
    let path = folder.path();
    pair.redirect(SERVICE_PORT)?;
    let control_at = SocketAddr::from((SERVER, 15_012));
    let mut control = control(of, &pair, path, control_at)?;
    say(&format!(
        "the control plane: {:.0} MB, {:.1} s of CPU",
        control.resident()? / 1e6,
        control.cpu()?
    ));
    let _server = Process::role(
        "server",
        &pair.server,
        path,
        &[
            "serve",
            "--road",
            "tunnel",
            "--listen",
            "0.0.0.0:8080",
            "--folder",
            text(path)?,
        ],
    )?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..of.rounds {
        let last = round + 1 == of.rounds;
        let stage = Stage {
            of,
            pair: &pair,
            folder: path,
            control_at,
        };
        ours.push(stage.round(&mut control, None, last)?);
        if let Some(program) = &program {
            theirs.push(stage.round(&mut control, Some(program), last)?);
        }
    }
    machine::print();
    report(of, &ours, &theirs);
    Ok(())
}

fn text(path: &Path) -> Result<&str, BoxError> {
    path.to_str().ok_or("a folder that is not UTF-8".into())
}

fn control(of: &Scale, pair: &Pair, path: &Path, at: SocketAddr) -> Result<Process, BoxError> {
    let (listen, workloads) = (at.to_string(), of.workloads.to_string());
    let services = of.services.to_string();
    let arguments = ["control", "--listen", &listen, "--folder", text(path)?];
    let size = ["--workloads", &workloads, "--services", &services];
    let arguments = [&arguments[..], &size].concat();
    Process::role("control", &pair.server, path, &arguments)
}

/// What all rounds have.
struct Stage<'a> {
    of: &'a Scale,
    pair: &'a Pair,
    folder: &'a Path,
    control_at: SocketAddr,
}

impl Stage<'_> {
    /// One process joins, is measured, and goes.
    fn round(
        &self,
        control: &mut Process,
        ztunnel: Option<&std::path::PathBuf>,
        pushes: bool,
    ) -> Result<Sample, BoxError> {
        let start = Instant::now();
        let namespace = &self.pair.client;
        let (joined, name) = match ztunnel {
            Some(program) => {
                let of = (program, self.folder, self.control_at);
                let process =
                    peers::ztunnel(of.0, namespace, of.1, "client", of.2, Source::Discovery)?;
                (process, Joined::Ztunnel)
            }
            None => (self.reach("tunnel")?, Joined::Sdk),
        };
        let mut sample = Sample {
            ready: start.elapsed().as_secs_f64(),
            cpu: joined.cpu()?,
            peak: joined.peak()? / 1e6,
            ..Sample::default()
        };
        pause(SETTLE);
        sample.resident = joined.resident()? / 1e6;
        // Whoever makes connections: the member itself, or an application beside its ztunnel.
        let (mut reach, others) = match name {
            Joined::Sdk => (joined, None),
            Joined::Ztunnel => (self.reach("plain")?, Some(joined)),
        };
        for change in ["there", "gone", "there"].iter().cycle().skip(1) {
            if sample.changes.len() == self.of.changes * 2 {
                break;
            }
            reach.tell(&format!("until {change}"))?;
            let start = Instant::now();
            control.tell(&format!("endpoint {change}"))?;
            expect(&mut reach, "reached")?;
            sample.changes.push(start.elapsed().as_secs_f64() * 1e3);
            expect(control, "done")?;
        }
        if pushes && self.of.pushes > 0 {
            // In turns, so that both see the same machine.
            let (mut quiet, mut pushed) = (Vec::new(), Vec::new());
            let (mut seconds, mut cpu, mut left) = (0.0, 0.0, self.of.pushes);
            while left > 0 {
                quiet = connections(&mut reach, "quiet", || {
                    pause(QUIET);
                    Ok(())
                })?;
                let now = left.min(IN_A_ROW);
                left -= now;
                if self.of.aside {
                    control.aside(true)?;
                }
                let (before, start) = (own_cpu(&reach, others.as_ref())?, Instant::now());
                pushed = connections(&mut reach, "pushed", || {
                    for _ in 0..now {
                        control.tell("push")?;
                        expect(control, "done")?;
                    }
                    Ok(())
                })?;
                control.aside(false)?;
                seconds += start.elapsed().as_secs_f64();
                cpu += own_cpu(&reach, others.as_ref())? - before;
            }
            say(&format!(
                "{name:?}: {} full pushes in {seconds:.1} s, {cpu:.1} s of its CPU; connection set-up p50/p99/p99.9 µs: \
                 {:.0}/{:.0}/{:.0} quiet, {:.0}/{:.0}/{:.0} pushed, p99 {:.2} times; {} and {} made, {} and {} failed",
                self.of.pushes,
                quiet[2] / 1e3,
                quiet[3] / 1e3,
                quiet[4] / 1e3,
                pushed[2] / 1e3,
                pushed[3] / 1e3,
                pushed[4] / 1e3,
                pushed[3] / quiet[3],
                quiet[0],
                pushed[0],
                quiet[1],
                pushed[1],
            ));
        }
        Ok(sample)
    }

    fn reach(&self, road: &str) -> Result<Process, BoxError> {
        let to = SocketAddr::from((SERVICE, SERVICE_PORT)).to_string();
        let control = self.control_at.to_string();
        let arguments = ["--road", road, "--to", &to, "--control", &control];
        let arguments = [&arguments[..], &["--folder", text(self.folder)?]].concat();
        Process::member("client", &self.pair.client, self.folder, &arguments)
    }
}

fn own_cpu(reach: &Process, ztunnel: Option<&Process>) -> Result<f64, BoxError> {
    ztunnel.unwrap_or(reach).cpu()
}

/// Connections at a fixed rate while something is done: of the whole series so far how many, how many failed, and how long they
/// took.
fn connections(
    reach: &mut Process,
    series: &str,
    meanwhile: impl FnOnce() -> Done,
) -> Result<Vec<f64>, BoxError> {
    reach.tell(&format!("rate {RATE} {series}"))?;
    expect(reach, "begin")?;
    meanwhile()?;
    reach.tell("stop")?;
    let line = reach.line()?;
    let numbers = line.split(' ').skip(1).map(str::parse);
    let numbers = numbers.collect::<Result<Vec<f64>, _>>()?;
    if numbers.len() == 5 {
        return Ok(numbers);
    }
    Err(format!("expected five numbers, got {line:?}").into())
}

fn expect(process: &mut Process, word: &str) -> Done {
    let line = process.line()?;
    if line == word {
        return Ok(());
    }
    Err(format!("expected {word}, got {line:?}").into())
}

#[expect(
    clippy::disallowed_methods,
    reason = "the harness has a thread of its own and no runtime"
)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

fn report(of: &Scale, ours: &[Sample], theirs: &[Sample]) {
    say(&format!(
        "{} workloads, {} services, {} rounds",
        of.workloads, of.services, of.rounds
    ));
    say(&format!(
        "{:<10}{:>22}{:>22}{:>22}{:>22}{:>24}",
        "", "ready s", "CPU s", "settled MB", "peak MB", "one change ms"
    ));
    for (name, samples) in [("SDK", ours), ("ztunnel", theirs)] {
        let of = |field: fn(&Sample) -> f64| Spread::of(samples.iter().map(field));
        let changes = samples.iter().flat_map(|sample| &sample.changes).copied();
        say(&format!(
            "{name:<10}{:>22}{:>22}{:>22}{:>22}{:>24}",
            of(|sample| sample.ready),
            of(|sample| sample.cpu),
            of(|sample| sample.resident),
            of(|sample| sample.peak),
            Spread::of(changes),
        ));
    }
    let ratio = |field: fn(&Sample) -> f64| {
        let rounds = ours.iter().zip(theirs);
        Spread::of(rounds.map(|(ours, theirs)| field(ours) / field(theirs)))
    };
    say(&format!(
        "round by round, SDK to ztunnel: ready {} (at most 0.5), CPU {} (at most 0.5), settled {} (at most 0.3), peak {}",
        ratio(|sample| sample.ready),
        ratio(|sample| sample.cpu),
        ratio(|sample| sample.resident),
        ratio(|sample| sample.peak),
    ));
}
