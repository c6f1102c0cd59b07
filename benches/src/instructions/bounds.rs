//! What the counts may be.

use super::{Count, Report};
use crate::floods::{FLOODS, HONEST};

/// Of one evaluation, in whichever way a rule is found or none is, by how many policies of ten rules there are.
const EVALUATION: [(&str, f64); 3] = [
    ("authorization 10", 1_000.0),
    ("authorization 1000", 2_000.0),
    ("authorization 10000", 5_000.0),
];
/// Of one choice among 10 000 endpoints, which are all alike or of which near ones are preferred, by the client that
/// asked first and by others of its zone.
const PICK: [(&str, f64); 3] = [
    ("to any endpoint", 500.0),
    ("to a near endpoint", 500.0),
    ("to an endpoint near another client", 500.0),
];
/// How much more a thing may cost in a mesh that is a hundred times as large.
const RATIO: f64 = 2.0;
/// Of a tunnel and its end, for which any peer that is let in may ask as often as it likes, and its bound.
const TUNNEL: f64 = 30_000.0;
/// What a step of a flood may cost, in such tunnels: nobody makes us work more by breaking the rules. Lists of headers
/// are larger than the 59 bytes of a tunnel: by their size those of names cost less, and those of one byte a field
/// half as much again.
const STEPS: [(&str, f64); FLOODS.len() - 1] = [
    ("PING", 0.125),
    ("SETTINGS", 0.125),
    ("SETTINGS that resize 100 tunnels' windows", 1.0),
    ("PRIORITY", 0.125),
    ("unknown", 0.125),
    ("WINDOW_UPDATE", 0.125),
    ("WINDOW_UPDATE of a tunnel", 0.125),
    ("DATA of 1 byte", 0.125),
    ("RST_STREAM at once", 1.0),
    ("RST_STREAM that we are made to send", 1.0),
    ("a CONNECT in 5 CONTINUATIONs", 1.0),
    ("a request that is no CONNECT", 1.0),
    ("100 fields of a byte each", 5.0),
    ("1000 fields of a byte each", 30.0),
    ("100 names", 10.0),
    ("1000 names", 90.0),
    ("1000 fields of a request that is no CONNECT", 30.0),
];
/// How much more a step of a flood, or a field, may cost when there are ten times as many: so all of them cost at
/// most eleven times as much.
const LINEAR: f64 = 1.1;
/// Lists of headers, the second of which has ten times as many.
const LISTS: [(&str, &str); 2] = [
    ("100 fields of a byte each", "1000 fields of a byte each"),
    ("100 names", "1000 names"),
];
/// Runs to compare, the small one first, and how much more of each operation the large one may have.
const COMPARED: [(&str, &str, f64); 3] = [
    ("pick 100", "pick 10000", RATIO),
    ("mesh 1000 100", "mesh 100000 10000", RATIO),
    ("flood 200", "flood 2000", LINEAR),
];

pub(super) fn broken(report: &Report) -> Vec<String> {
    let mut broken = Vec::new();
    let mut at_most = |count: f64, most: f64, what: String| {
        // What is no number is no proof either.
        if count.is_nan() || count > most {
            broken.push(format!(
                "{what}: {count:.0} instructions, at most {most:.0}"
            ));
        }
    };
    for (run, most) in EVALUATION {
        for (case, count) in cases(report, run) {
            at_most(count.instructions, most, format!("{run}: {case}"));
        }
        // A kind that was not counted is no proof.
        for kind in ["request", "connection"] {
            if !cases(report, run).any(|(case, _)| case.starts_with(kind)) {
                at_most(f64::NAN, most, format!("{run}: {kind}"));
            }
        }
    }
    for (case, most) in PICK {
        let count = report.get(COMPARED[0].1, case);
        let count = count.map_or(f64::NAN, |count| count.instructions);
        at_most(count, most, format!("{}: {case}", COMPARED[0].1));
    }
    let flood = COMPARED[2].1;
    let of_flood = |case| {
        let count = report.get(flood, case);
        count.map_or(f64::NAN, |count| count.instructions)
    };
    let tunnel = of_flood(HONEST);
    at_most(tunnel, TUNNEL, format!("{flood}: {HONEST}"));
    for (case, tunnels) in STEPS {
        at_most(of_flood(case), tunnels * tunnel, format!("{flood}: {case}"));
    }
    for (few, many) in LISTS {
        let most = 10.0 * LINEAR * of_flood(few);
        let what = format!("{flood}: {many}, against {few}");
        at_most(of_flood(many), most, what);
    }
    for (run, _) in EVALUATION {
        for (case, _) in cases(report, run).filter(|(_, count)| count.allocations > 0.0) {
            broken.push(format!("{run}: {case}: allocates"));
        }
    }
    for ratio in ratios(report).filter(|ratio| ratio.value > ratio.most) {
        broken.push(format!("{ratio}, at most {}", ratio.most));
    }
    // What the other bounds stand on.
    let control = |case| report.get("control", case);
    if !control("allocations").is_some_and(|count| count.allocations == 1.0) {
        broken.push("control: one allocation is not seen as one".to_owned());
    }
    if !control("nothing")
        .is_some_and(|count| count.allocations == 0.0 && count.instructions < 20.0)
    {
        broken.push("control: nothing is not nothing".to_owned());
    }
    for run in EVALUATION
        .map(|(run, _)| run)
        .into_iter()
        .chain(COMPARED.map(|(_, run, _)| run))
    {
        if cases(report, run).next().is_none() {
            broken.push(format!("{run}: nothing was counted"));
        }
    }
    broken
}

fn cases<'r>(report: &'r Report, run: &'r str) -> impl Iterator<Item = (&'r str, Count)> {
    let rows = report.rows().filter(move |(of, _, _)| *of == run);
    rows.map(|(_, case, count)| (case, count))
}

/// How much more a case costs in the large run.
pub(super) struct Ratio<'r> {
    case: &'r str,
    runs: (&'static str, &'static str),
    value: f64,
    most: f64,
}

impl std::fmt::Display for Ratio<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (small, large) = self.runs;
        write!(
            f,
            "{:12.2}  times: {} ({large} against {small})",
            self.value, self.case
        )
    }
}

pub(super) fn ratios(report: &Report) -> impl Iterator<Item = Ratio<'_>> {
    COMPARED.into_iter().flat_map(move |(small, large, most)| {
        let runs = (small, large);
        cases(report, runs.1).map(move |(case, large)| Ratio {
            case,
            runs,
            most,
            // What has no counterpart is infinitely more.
            value: report.get(runs.0, case).map_or(f64::INFINITY, |small| {
                large.instructions / small.instructions
            }),
        })
    })
}
