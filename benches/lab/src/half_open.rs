//! New tunnels while others hold handshakes half open.
//!
//! The server, who attacks it and who is measured are processes of their own, over the loopback, with addresses of their
//! own. In each round all attacks take turns, and each is compared with the quiet server of its round, before or after
//! them. A round in which those two are far apart is told and played again: either something else disturbed it, or what the
//! attacks leave behind, which the figures before and after tell apart.

use crate::args::{HalfOpen, say};
use crate::echo::Deployment;
use crate::spread::Spread;
use crate::{BoxError, Done, machine};

/// What is held, and from how many addresses.
const ATTACKS: [(&str, &str, usize); 6] = [
    ("silent, 1 address", "nothing", 1),
    ("silent, 100 addresses", "nothing", 100),
    ("half a hello, 1 address", "half", 1),
    ("half a hello, 100", "half", 100),
    ("a hello, 1 address", "hello", 1),
    ("a hello, 100 addresses", "hello", 100),
];

/// How many times the p99 of the quiet server at one end of a round may be that at the other.
const APART: f64 = 2.0;

#[derive(Debug, Clone, Copy)]
struct Sample {
    p50: f64,
    p99: f64,
    most: f64,
    failed: f64,
}

pub(crate) fn run(of: &HalfOpen) -> Done {
    machine::print();
    let deployment = Deployment::start()?;
    let mut newcomers = deployment.clients("newcomers", of.rate, false)?;
    let mut measure = || -> Result<Sample, BoxError> {
        newcomers.tell(&of.millis.to_string())?;
        let line = newcomers.line()?;
        let values: Result<Vec<f64>, _> = line.split(' ').map(str::parse).collect();
        let [p50, p99, most, failed] = values?[..] else {
            return Err(format!("expected four figures, got {line:?}").into());
        };
        Ok(Sample {
            p50,
            p99,
            most,
            failed,
        })
    };
    let (count, again) = (of.count.to_string(), of.again.to_string());
    let attacks: Vec<_> = ATTACKS
        .into_iter()
        .filter(|(name, _, _)| name.contains(&of.only))
        .collect();
    let mut quiet = Vec::new();
    let mut samples = vec![Vec::new(); attacks.len()];
    let mut states = vec![String::new(); attacks.len()];
    let (mut disturbed, mut failed) = (0, 0.0);
    measure()?;
    while quiet.len() < of.rounds {
        let before = measure()?;
        let mut round = Vec::with_capacity(attacks.len());
        for (at, (_, stop, sources)) in attacks.iter().enumerate() {
            let sources = sources.to_string();
            let role = [
                "silent",
                "--stop",
                stop,
                "--count",
                &count,
                "--sources",
                &sources,
                "--again",
                &again,
            ];
            let mut silent = deployment.member("silent", &role)?;
            round.push(measure()?);
            silent.tell("?")?;
            states[at] = silent.line()?;
            let seen: Result<Vec<usize>, _> = states[at].split(' ').map(str::parse).collect();
            let made: usize = seen?.iter().sum();
            if made < of.count {
                let name = attacks[at].0;
                return Err(format!("{name}: {made} connections of {} were made", of.count).into());
            }
        }
        // The last attack's connections end meanwhile.
        let settling = measure()?;
        let after = measure()?;
        let all = [before, settling, after];
        failed += all
            .iter()
            .chain(&round)
            .map(|sample| sample.failed)
            .sum::<f64>();
        let apart = before.p99.max(after.p99) / before.p99.min(after.p99);
        if apart > APART {
            disturbed += 1;
            let p99 = |samples: &[Sample]| -> Vec<String> {
                let each = samples.iter();
                each.map(|sample| format!("{:.1}", sample.p99)).collect()
            };
            say(&format!(
                "not counted: p99 in quiet, then and after {:?} ms, under the attacks {:?} ms",
                p99(&all),
                p99(&round)
            ));
            if disturbed > of.rounds {
                break;
            }
            continue;
        }
        // The better of the two, so that no attack is compared with what it left behind.
        quiet.push(if after.p99 < before.p99 {
            after
        } else {
            before
        });
        for (samples, sample) in samples.iter_mut().zip(round) {
            samples.push(sample);
        }
    }
    machine::print();
    say(&format!(
        "{} rounds, and {disturbed} that were disturbed; {} new tunnels per second for {} ms each; {} half open, {} per second opened again",
        quiet.len(),
        of.rate,
        of.millis,
        of.count,
        of.again
    ));
    say(&format!(
        "{:<26}{:>22}{:>22}{:>22}{:>8}{:>22}  open, closed so far",
        "", "p50 ms", "p99 ms", "the last ms", "failed", "p99 to quiet"
    ));
    let nobody = String::new();
    let all = [("quiet", &quiet, &nobody)];
    let attacked = attacks.iter().zip(&samples).zip(&states);
    let attacked = attacked.map(|(((name, _, _), samples), state)| (*name, samples, state));
    for (name, samples, state) in all.into_iter().chain(attacked) {
        let spread = |value: fn(&Sample) -> f64| Spread::of(samples.iter().map(value)).to_string();
        let failed: f64 = samples.iter().map(|sample| sample.failed).sum();
        let ratios = samples.iter().zip(&quiet);
        let ratio = Spread::of(ratios.map(|(sample, quiet)| sample.p99 / quiet.p99)).to_string();
        say(&format!(
            "{name:<26}{:>22}{:>22}{:>22}{failed:>8}{ratio:>22}  {state}",
            spread(|sample| sample.p50),
            spread(|sample| sample.p99),
            spread(|sample| sample.most),
        ));
    }
    match failed {
        0.0 if quiet.len() < of.rounds => Err("too many rounds were disturbed".into()),
        0.0 => Ok(()),
        _ => Err(format!("{failed} tunnels of others failed").into()),
    }
}
