use std::fmt;

use crate::decision::Decision;

/// Tells a person why a decision is what it is.
#[derive(Debug, Clone)]
pub struct Explanation {
    allowed: bool,
    summary: String,
}

impl Explanation {
    pub(crate) fn new(decision: Decision<'_>) -> Self {
        Self {
            allowed: decision.is_allowed(),
            summary: decision.to_string(),
        }
    }

    /// Whether the decision permits.
    pub fn is_allowed(&self) -> bool {
        self.allowed
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary)
    }
}
