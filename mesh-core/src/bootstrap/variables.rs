//! `cluster.env`: variables as a shell reads them.

use std::collections::BTreeMap;
use std::path::Path;

use super::wrong;
use crate::Error;

/// Reads `KEY=value` lines, quoted as for a shell; the last of a key counts. Of what a shell does beyond
/// that, nothing is done.
pub(super) fn read(file: &Path, text: &str) -> Result<BTreeMap<String, String>, Error> {
    let mut variables = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let at = format!("line {}", number + 1);
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        let (key, value) = line
            .split_once('=')
            .filter(|(key, _)| is_name(key))
            .ok_or_else(|| wrong(file, &at, "expected KEY=value"))?;
        let value =
            unquote(value).map_err(|problem| wrong(file, &format!("{at}: {key}"), problem))?;
        variables.insert(key.to_owned(), value);
    }
    Ok(variables)
}

fn is_name(key: &str) -> bool {
    !key.is_empty()
        && !key.starts_with(|c: char| c.is_ascii_digit())
        && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A word of a shell (POSIX, 2.2 Quoting).
fn unquote(value: &str) -> Result<String, &'static str> {
    const OPEN: &str = "expected an end of the quotes on the same line";
    let mut word = String::with_capacity(value.len());
    let mut rest = value.chars();
    while let Some(c) = rest.next() {
        match c {
            '\'' => loop {
                match rest.next().ok_or(OPEN)? {
                    '\'' => break,
                    c => word.push(c),
                }
            },
            '"' => loop {
                match rest.next().ok_or(OPEN)? {
                    '"' => break,
                    '\\' => match rest.next().ok_or(OPEN)? {
                        c @ ('"' | '\\' | '$' | '`') => word.push(c),
                        c => word.extend(['\\', c]),
                    },
                    c => word.push(c),
                }
            },
            '\\' => word.push(rest.next().ok_or("expected a character after \\")?),
            c if c.is_whitespace() => {
                let after = rest.as_str().trim_start();
                return match after.is_empty() || after.starts_with('#') {
                    true => Ok(word),
                    false => Err("expected one word: put quotes around it"),
                };
            }
            c => word.push(c),
        }
    }
    Ok(word)
}
