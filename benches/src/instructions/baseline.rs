//! What was counted before, by compiler, valgrind and processor, in `baseline.txt`.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use super::{Count, Report};

/// How much more than before is a failure.
const MORE: f64 = 0.01;

/// A report beside the baseline.
#[derive(Debug, PartialEq)]
#[non_exhaustive]
pub enum Compared {
    /// There is none for this compiler, valgrind and processor, or the counts do not repeat.
    Incomparable,
    /// What differs by more than 1 %: what costs more, and what costs less.
    To {
        /// What costs more now or is not counted any more, and fails.
        more: Vec<String>,
        /// What costs less now, or is new: `--bless` would keep it so.
        less: Vec<String>,
    },
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("baseline.txt")
}

type Counts = BTreeMap<String, Count>;
type Sections = BTreeMap<String, Counts>;

fn read() -> io::Result<Sections> {
    match std::fs::read_to_string(path()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Sections::new()),
        text => parse(&text?),
    }
}

/// `[key]`, then `instructions<TAB>allocations<TAB>run: case` for each case.
fn parse(text: &str) -> io::Result<Sections> {
    let mut sections = Sections::new();
    let mut section = None;
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(key) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            section = Some(sections.entry(key.to_owned()).or_default());
            continue;
        }
        match (&mut section, entry(line)) {
            (Some(section), Some((case, count))) => section.insert(case, count),
            _ => {
                return Err(io::Error::other(format!(
                    "baseline.txt: not understood: {line}"
                )));
            }
        };
    }
    Ok(sections)
}

fn entry(line: &str) -> Option<(String, Count)> {
    let (instructions, rest) = line.split_once('\t')?;
    let (allocations, case) = rest.split_once('\t')?;
    let count = Count {
        instructions: instructions.parse().ok()?,
        allocations: allocations.parse().ok()?,
    };
    Some((case.to_owned(), count))
}

fn print(sections: &Sections) -> String {
    let mut text = String::new();
    for (key, counts) in sections {
        text.push_str(&format!("[{key}]\n"));
        for (case, count) in counts {
            let Count {
                instructions,
                allocations,
            } = count;
            text.push_str(&format!("{instructions:.1}\t{allocations:.2}\t{case}\n"));
        }
        text.push('\n');
    }
    text
}

/// As precise as it is kept: rounded by who prints it, since 21 in 200 is less than 0.105.
fn kept(allocations: f64) -> f64 {
    format!("{allocations:.2}").parse().unwrap_or(f64::NAN)
}

fn counts(report: &Report) -> Counts {
    let rows = report.rows();
    rows.map(|(run, case, count)| (format!("{run}: {case}"), count))
        .collect()
}

/// Compares a report with the baseline.
///
/// # Errors
///
/// When the baseline cannot be read.
pub fn compare(report: &Report) -> io::Result<Compared> {
    Ok(compare_to(&read()?, report))
}

fn compare_to(sections: &Sections, report: &Report) -> Compared {
    let Some(before) = sections.get(&report.key).filter(|_| report.repeatable) else {
        return Compared::Incomparable;
    };
    let (mut more, mut less) = (Vec::new(), Vec::new());
    let now = counts(report);
    for (case, now) in &now {
        let Some(before) = before.get(case) else {
            less.push(format!("{case}: {:.0} instructions, new", now.instructions));
            continue;
        };
        for (now, before, what) in [
            (now.instructions, before.instructions, "instructions"),
            (kept(now.allocations), before.allocations, "allocations"),
        ] {
            let text = || format!("{case}: {now:.2} {what}, before {before:.2}");
            if now > before * (1.0 + MORE) {
                more.push(text());
            } else if now < before * (1.0 - MORE) {
                less.push(text());
            }
        }
    }
    let gone = before.keys().filter(|case| !now.contains_key(*case));
    more.extend(gone.map(|case| format!("{case}: not counted any more")));
    Compared::To { more, less }
}

/// Makes a report the baseline of its key.
///
/// # Errors
///
/// When the counts do not repeat, and when the baseline cannot be read or written.
pub fn bless(report: &Report) -> io::Result<()> {
    if !report.repeatable {
        return Err(io::Error::other(
            "without a C compiler counts do not repeat",
        ));
    }
    let mut sections = read()?;
    sections.insert(report.key.clone(), counts(report));
    std::fs::write(path(), print(&sections))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "rustc, valgrind, processor";

    fn report(cases: &[(&str, f64, f64)]) -> Report {
        let counts = cases.iter().map(|&(case, instructions, allocations)| {
            let count = Count {
                instructions,
                allocations,
            };
            (("run".to_owned(), case.to_owned()), count)
        });
        Report {
            key: KEY.to_owned(),
            repeatable: true,
            counts: counts.collect(),
        }
    }

    /// The baseline that a report makes, by way of its text.
    fn baseline(cases: &[(&str, f64, f64)]) -> Sections {
        let sections = Sections::from([(KEY.to_owned(), counts(&report(cases)))]);
        let again = parse(&print(&sections)).unwrap();
        assert_eq!(again, sections);
        again
    }

    fn differences(before: &[(&str, f64, f64)], now: &[(&str, f64, f64)]) -> (usize, usize) {
        match compare_to(&baseline(before), &report(now)) {
            Compared::To { more, less } => (more.len(), less.len()),
            Compared::Incomparable => panic!("the key is the same"),
        }
    }

    #[test]
    fn more_than_one_percent_more_fails_and_less_is_told() {
        let before = [("a", 1_000.0, 0.0)];
        assert_eq!(differences(&before, &[("a", 1_010.0, 0.0)]), (0, 0));
        assert_eq!(differences(&before, &[("a", 1_010.1, 0.0)]), (1, 0));
        assert_eq!(differences(&before, &[("a", 989.9, 0.0)]), (0, 1));
    }

    #[test]
    fn one_allocation_more_in_a_hundred_operations_fails() {
        let before = [("a", 1_000.0, 0.0), ("b", 1_000.0, 1.0)];
        let now = [("a", 1_000.0, 0.01), ("b", 1_000.0, 1.02)];
        assert_eq!(differences(&before, &now), (2, 0));
        assert_eq!(differences(&now, &before), (0, 2));
    }

    #[test]
    fn the_same_count_is_the_same_whichever_way_it_is_rounded() {
        for count in 0..1_000 {
            let now = [("a", 1.0, f64::from(count) / 200.0)];
            let text = print(&Sections::from([(KEY.to_owned(), counts(&report(&now)))]));
            let before = parse(&text).unwrap();
            let nothing = Compared::To {
                more: Vec::new(),
                less: Vec::new(),
            };
            assert_eq!(compare_to(&before, &report(&now)), nothing, "{count}");
        }
    }

    #[test]
    fn a_case_that_is_gone_fails_and_a_new_one_is_told() {
        let (a, b) = (("a", 10.0, 0.0), ("b", 10.0, 0.0));
        assert_eq!(differences(&[a, b], &[a]), (1, 0));
        assert_eq!(differences(&[a], &[a, b]), (0, 1));
    }

    #[test]
    fn another_compiler_or_counts_that_do_not_repeat_are_not_compared() {
        let before = baseline(&[("a", 1.0, 0.0)]);
        let mut other = report(&[("a", 1_000.0, 9.0)]);
        other.key.push('2');
        assert_eq!(compare_to(&before, &other), Compared::Incomparable);
        let mut other = report(&[("a", 1_000.0, 9.0)]);
        other.repeatable = false;
        assert_eq!(compare_to(&before, &other), Compared::Incomparable);
    }

    #[test]
    fn a_baseline_that_is_not_understood_is_an_error_with_its_line() {
        for text in ["1.0\t0.00\ta", "[key]\n1.0\ta", "[key]\nx\t0.00\ta"] {
            let error = parse(text).unwrap_err().to_string();
            let line = text.lines().last().unwrap();
            assert!(error.contains(line), "{error}");
        }
    }
}
