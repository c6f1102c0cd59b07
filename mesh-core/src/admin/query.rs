//! The parameters of a question.

use std::fmt;
use std::str::FromStr;

/// Says which parameter is wrong and what was expected there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{parameter}: expected {expected}")]
pub(super) struct BadParameter {
    parameter: String,
    expected: String,
}

impl BadParameter {
    pub(super) fn new(parameter: &str, expected: impl fmt::Display) -> Self {
        /// Names of parameters that are not ours are told so far.
        const SHOWN: usize = 40;
        Self {
            parameter: parameter.escape_debug().take(SHOWN).collect(),
            expected: expected.to_string(),
        }
    }
}

/// Parameters by name, decoded, each taken once.
#[derive(Debug)]
pub(super) struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Reads `a=b&c=d` (application/x-www-form-urlencoded).
    pub(super) fn parse(query: &str) -> Result<Self, BadParameter> {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let text = |part| {
                decode(part).ok_or_else(|| {
                    BadParameter::new(name, "UTF-8, percent-encoded where it is not plain")
                })
            };
            Ok((text(name)?, text(value)?))
        });
        Ok(Self {
            pairs: pairs.collect::<Result<_, _>>()?,
        })
    }

    /// Takes a parameter that may be there once.
    pub(super) fn take(&mut self, name: &str) -> Result<Option<String>, BadParameter> {
        let mut values = self.take_all(name);
        let first = values.next();
        match values.next() {
            Some(_) => Err(BadParameter::new(name, "to be there once")),
            None => Ok(first),
        }
    }

    /// Takes all parameters with this name, in order.
    pub(super) fn take_all(&mut self, name: &str) -> impl Iterator<Item = String> + use<> {
        let taken: Vec<_> = self.pairs.extract_if(.., |pair| pair.0 == name).collect();
        taken.into_iter().map(|(_, value)| value)
    }

    /// Takes a parameter and reads it.
    pub(super) fn parsed<T: FromStr>(
        &mut self,
        name: &str,
        expected: &str,
    ) -> Result<Option<T>, BadParameter> {
        let value = self.take(name)?;
        value
            .map(|value| value.parse().map_err(|_| BadParameter::new(name, expected)))
            .transpose()
    }

    /// Ends reading: whatever is left is not known.
    pub(super) fn finish(self, known: &str) -> Result<(), BadParameter> {
        match self.pairs.first() {
            Some((name, _)) => Err(BadParameter::new(name, format_args!("one of {known}"))),
            None => Ok(()),
        }
    }
}

/// `None` for what is not UTF-8, and for a `%` that encodes nothing.
fn decode(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                (high * 16 + low) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_taken() {
        let mut query = Query::parse("a=1&b=x%20y+z&b=%C3%A9&&c").unwrap();
        assert_eq!(query.take("a").unwrap().as_deref(), Some("1"));
        assert_eq!(query.take("a").unwrap(), None);
        let all: Vec<_> = query.take_all("b").collect();
        assert_eq!(all, ["x y z", "é"]);
        assert_eq!(query.take("c").unwrap().as_deref(), Some(""));
        query.finish("none").unwrap();
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |query: &str| Query::parse(query).unwrap_err().to_string();
        for bad in ["to=%", "to=%4", "to=%zz", "to=%ff", "to=%+4", "to=%é1"] {
            assert!(error(bad).starts_with("to: expected UTF-8"), "{bad}");
        }
        let mut twice = Query::parse("to=1&to=2").unwrap();
        let error = twice.take("to").unwrap_err();
        assert_eq!(error.to_string(), "to: expected to be there once");
        let unknown = Query::parse("%1b[2J=1").unwrap().finish("to, from");
        let error = unknown.unwrap_err().to_string();
        assert_eq!(error, "\\u{1b}[2J: expected one of to, from");
    }
}
