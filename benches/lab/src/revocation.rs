//! Live tunnels of which a policy refuses half: how long until each client knows, in both ways in which a policy
//! comes to bind a workload.
//!
//! The server and its clients are processes of their own, over the loopback. Times are those from the beginning of the
//! change in the server's process to the moment in which a client's read fails.

use crate::args::{Revocation, say};
use crate::processes::Process;
use crate::spread::Spread;
use crate::{BoxError, Done, echo, machine};

/// A change, what undoes it, and what it is.
const CHANGES: [(&str, &str, &str); 2] = [
    ("deny", "allow", "a DENY is added"),
    ("attach", "detach", "a DENY is attached"),
];

struct Sample {
    /// Milliseconds until the change was in effect.
    applied: f64,
    p50: f64,
    p99: f64,
    most: f64,
}

pub(crate) fn run(of: &Revocation) -> Done {
    machine::print();
    let folder = tempfile::tempdir()?;
    let path = folder.path();
    echo::prepare(path)?;
    let named = path.to_str().ok_or("a folder whose name is no text")?;
    let mut server = Process::role_here("server", path, &["echo", "--folder", named])?;
    let half = |count: usize| (count / 2).max(1).to_string();
    let (tunnels, connections) = (half(of.tunnels), half(of.connections));
    let mut held = Process::role_here(
        "clients",
        path,
        &[
            "held",
            "--folder",
            named,
            "--tunnels",
            &tunnels,
            "--connections",
            &connections,
        ],
    )?;
    let affected: usize = tunnels.parse()?;
    let mut samples = CHANGES.map(|_| Vec::new());
    // The first round warms up.
    for round in 0..=of.rounds {
        for ((change, undo, _), samples) in CHANGES.into_iter().zip(&mut samples) {
            held.tell("open")?;
            held.line()?;
            server.tell(change)?;
            let answer = server.line()?;
            let (begin, applied) = answer.split_once(' ').ok_or("no time")?;
            held.tell(&format!("count {begin}"))?;
            let sample = read(&held.line()?, affected, applied.parse()?)?;
            if round > 0 {
                samples.push(sample);
            }
            server.tell(undo)?;
            server.line()?;
        }
    }
    machine::print();
    say(&format!(
        "{} rounds, {} tunnels on {} connections, half of them affected: each was cut, no other; milliseconds",
        of.rounds, of.tunnels, of.connections
    ));
    say(&format!(
        "{:<22}{:>24}{:>24}{:>24}{:>24}",
        "", "in effect", "p50", "p99", "the last"
    ));
    for ((_, _, name), samples) in CHANGES.into_iter().zip(&samples) {
        let of = |value: fn(&Sample) -> f64| Spread::of(samples.iter().map(value)).to_string();
        say(&format!(
            "{name:<22}{:>24}{:>24}{:>24}{:>24}",
            of(|sample| sample.applied),
            of(|sample| sample.p50),
            of(|sample| sample.p99),
            of(|sample| sample.most),
        ));
    }
    Ok(())
}

fn read(line: &str, affected: usize, applied: f64) -> Result<Sample, BoxError> {
    let values: Result<Vec<f64>, _> = line.split(' ').map(str::parse).collect();
    let [cut, alive, p50, p99, most] = values?[..] else {
        return Err(format!("expected five figures, got {line:?}").into());
    };
    if (cut, alive) != (affected as f64, affected as f64) {
        return Err(format!(
            "of {affected} that the policy refuses {cut} were cut, of as many others {alive} still echo"
        )
        .into());
    }
    Ok(Sample {
        applied,
        p50,
        p99,
        most,
    })
}
