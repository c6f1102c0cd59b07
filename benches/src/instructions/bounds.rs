//! What the counts may be.

use super::{Count, Report};

/// Of one evaluation, in the mean over the ways in which a rule is found, by how many policies of ten
/// rules there are.
const EVALUATION: [(&str, f64); 3] = [
    ("authorization 10", 1_000.0),
    ("authorization 1000", 2_000.0),
    ("authorization 10000", 5_000.0),
];
/// Of one choice among 10 000 endpoints, which are all alike or of which near ones are preferred.
const PICK: [(&str, f64); 2] = [("to any endpoint", 500.0), ("to a near endpoint", 500.0)];
/// How much more a thing may cost in a mesh that is a hundred times as large.
const RATIO: f64 = 2.0;
/// Runs to compare, the small one first.
const COMPARED: [(&str, &str); 2] = [
    ("pick 100", "pick 10000"),
    ("mesh 1000 100", "mesh 100000 10000"),
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
        for kind in ["request", "connection"] {
            let of_kind = cases(report, run).filter(|(case, _)| case.starts_with(kind));
            let counts: Vec<f64> = of_kind.map(|(_, count)| count.instructions).collect();
            let mean = counts.iter().sum::<f64>() / counts.len() as f64;
            at_most(mean, most, format!("{run}: {kind} in the mean"));
        }
    }
    for (case, most) in PICK {
        let count = report.get(COMPARED[0].1, case);
        let count = count.map_or(f64::NAN, |count| count.instructions);
        at_most(count, most, format!("{}: {case}", COMPARED[0].1));
    }
    for (run, _) in EVALUATION {
        for (case, _) in cases(report, run).filter(|(_, count)| count.allocations > 0.0) {
            broken.push(format!("{run}: {case}: allocates"));
        }
    }
    for ratio in ratios(report).filter(|ratio| ratio.value > RATIO) {
        broken.push(format!("{ratio}, at most {RATIO}"));
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
        .chain(COMPARED.map(|(_, run)| run))
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

/// How much more a case costs in the large mesh.
pub(super) struct Ratio<'r> {
    case: &'r str,
    runs: (&'static str, &'static str),
    value: f64,
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
    COMPARED.into_iter().flat_map(move |runs| {
        cases(report, runs.1).map(move |(case, large)| Ratio {
            case,
            runs,
            // What has no counterpart is infinitely more.
            value: report.get(runs.0, case).map_or(f64::INFINITY, |small| {
                large.instructions / small.instructions
            }),
        })
    })
}
