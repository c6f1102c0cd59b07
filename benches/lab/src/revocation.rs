//! Live tunnels of which half are refused from now on: how long until each client knows, in all ways in which
//! permission is taken.
//!
//! The server and its clients are processes of their own, over the loopback. Times are those from the beginning of the
//! change in the server's process to the moment in which a client's read fails.

use crate::args::{Revocation, say};
use crate::echo::Deployment;
use crate::spread::Spread;
use crate::{BoxError, Done, machine};

/// What takes permission, what gives it back, and what it is.
const CHANGES: [(&str, &str, &str); 7] = [
    ("deny", "allow", "a DENY is added"),
    ("attach", "detach", "a DENY is attached"),
    ("forbid", "permit", "an ALLOW is removed"),
    ("replace", "permit", "an ALLOW names another"),
    ("move", "move away", "a DENY changes namespace"),
    (
        "deny in the mesh",
        "allow in the mesh",
        "a DENY of the root",
    ),
    ("revoke", "restore", "a CRL lists the client"),
];

/// What takes nobody's, and what undoes it.
const DRY: (&str, &str) = ("try", "leave off");

#[derive(Clone)]
struct Sample {
    /// Milliseconds until the change was in effect.
    applied: f64,
    p50: f64,
    p99: f64,
    most: f64,
}

pub(crate) fn run(of: &Revocation) -> Done {
    machine::print();
    let mut deployment = Deployment::start()?;
    let half = |count: usize| (count / 2).max(1).to_string();
    let (tunnels, connections) = (half(of.tunnels), half(of.connections));
    let role = ["held", "--tunnels", &tunnels, "--connections", &connections];
    let mut held = deployment.member("clients", &role)?;
    let affected: usize = tunnels.parse()?;
    let changes: Vec<_> = CHANGES
        .into_iter()
        .filter(|(_, _, name)| name.contains(&of.only))
        .collect();
    let mut samples = vec![Vec::new(); changes.len()];
    // The first round warms up.
    for round in 0..=of.rounds {
        for ((change, undo, _), samples) in changes.iter().zip(&mut samples) {
            held.tell("open")?;
            held.line()?;
            let answer = deployment.ask(change)?;
            let (begin, applied) = answer.split_once(' ').ok_or("no time")?;
            held.tell(&format!("count {begin}"))?;
            let sample = read(&held.line()?, affected, applied.parse()?)
                .map_err(|error| format!("{change}: {error}"))?;
            if round > 0 {
                samples.push(sample);
            }
            deployment.ask(undo)?;
        }
    }
    // Nobody is touched by a policy that only says what it would do, nor by a policy that goes and refused nobody.
    held.tell("open")?;
    held.line()?;
    for change in [DRY.0, DRY.1] {
        deployment.ask(change)?;
        held.tell("alive")?;
        let answer = held.line()?;
        if answer != format!("{affected} {affected}") {
            return Err(format!("{change}: of {affected} each {answer} still echo").into());
        }
    }
    machine::print();
    say(&format!(
        "{} rounds, {} tunnels on {} connections, half of them affected: each was cut, no other, and none by a dry run; \
         milliseconds",
        of.rounds, of.tunnels, of.connections
    ));
    say(&format!(
        "{:<26}{:>24}{:>24}{:>24}{:>24}",
        "", "in effect", "p50", "p99", "the last"
    ));
    for ((_, _, name), samples) in changes.iter().zip(&samples) {
        let of = |value: fn(&Sample) -> f64| Spread::of(samples.iter().map(value)).to_string();
        say(&format!(
            "{name:<26}{:>24}{:>24}{:>24}{:>24}",
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
