//! Durations as Kubernetes writes them.

use std::time::Duration;

use crate::file::cursor::{Cursor, Result};

/// A Gateway API duration ([GEP-2257](https://gateway-api.sigs.k8s.io/geps/gep-2257/)), or a
/// protobuf one: numbers with a unit of `h`, `m`, `s` or `ms`, such as `1h30m`, `10s` or `0.5s`.
pub(crate) fn duration(at: &Cursor<'_>) -> Result<Duration> {
    let text = at.str()?;
    parse(text).ok_or_else(|| {
        at.invalid(format_args!(
            "expected a duration such as 10s, 1m30s or 100ms, found {text:?}"
        ))
    })
}

fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        // 12 digits are 31 000 years of seconds: enough, and far from overflow.
        let number: f64 = rest
            .get(..digits)
            .filter(|it| it.len() <= 12)?
            .parse()
            .ok()?;
        rest = &rest[digits..];
        let unit = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "h" => number * 3600.0,
            "m" => number * 60.0,
            "s" => number,
            "ms" => number / 1000.0,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(seconds).ok()?)?;
        rest = &rest[unit..];
    }
    Some(total)
}
