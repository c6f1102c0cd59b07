//! What rounds have in common, and how far they are apart.

use std::fmt;

/// The median, with the least and the most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) median: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// Of no values nothing is known: all three are NaN.
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self {
            least: at(0),
            median: at(values.len() / 2),
            most: at(values.len().saturating_sub(1)),
        }
    }
}

/// Three digits that count.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            least,
            median,
            most,
        } = *self;
        f.pad(&format!(
            "{} ({}..{})",
            digits(median),
            digits(least),
            digits(most)
        ))
    }
}

fn digits(value: f64) -> String {
    let before = if value.abs() < 1.0 {
        1
    } else {
        value.abs().log10() as usize + 1
    };
    format!("{value:.*}", 3_usize.saturating_sub(before))
}
