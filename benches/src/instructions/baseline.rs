//! What was counted before, by compiler, valgrind and processor, in `baseline.txt`.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use super::Report;

/// How much more than before is a failure.
const MORE: f64 = 0.01;

/// A report beside the baseline.
#[derive(Debug)]
#[non_exhaustive]
pub enum Compared {
    /// There is none for this compiler, valgrind and processor, or the counts do not repeat.
    Incomparable,
    /// What differs by more than 1 %: what costs more, and what costs less.
    To {
        /// What costs more now, and fails.
        more: Vec<String>,
        /// What costs less now, or is new: `--bless` would keep it so.
        less: Vec<String>,
    },
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("baseline.txt")
}

type Sections = BTreeMap<String, BTreeMap<String, f64>>;

/// `[key]`, then `instructions<TAB>run: case` for each case.
fn read() -> io::Result<Sections> {
    let text = match std::fs::read_to_string(path()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        text => text?,
    };
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
        let entry = line
            .split_once('\t')
            .and_then(|(count, case)| Some((case.to_owned(), count.parse().ok()?)));
        match (&mut section, entry) {
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

fn counts(report: &Report) -> BTreeMap<String, f64> {
    let rows = report.rows();
    rows.map(|(run, case, count)| (format!("{run}: {case}"), count.instructions))
        .collect()
}

/// Compares a report with the baseline.
///
/// # Errors
///
/// When the baseline cannot be read.
pub fn compare(report: &Report) -> io::Result<Compared> {
    let sections = read()?;
    let Some(before) = sections.get(&report.key).filter(|_| report.repeatable) else {
        return Ok(Compared::Incomparable);
    };
    let (mut more, mut less) = (Vec::new(), Vec::new());
    for (case, now) in counts(report) {
        let Some(before) = before.get(&case) else {
            less.push(format!("{case}: {now:.0} instructions, new"));
            continue;
        };
        let text = format!("{case}: {now:.0} instructions, before {before:.0}");
        if now > before * (1.0 + MORE) {
            more.push(text);
        } else if now < before * (1.0 - MORE) {
            less.push(text);
        }
    }
    Ok(Compared::To { more, less })
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
    let mut text = String::new();
    for (key, counts) in sections {
        text.push_str(&format!("[{key}]\n"));
        for (case, count) in counts {
            text.push_str(&format!("{count:.1}\t{case}\n"));
        }
        text.push('\n');
    }
    std::fs::write(path(), text)
}
