//! Finds the selectors that choose a set of labels, without trying them all.

use std::collections::HashMap;

use crate::manifest::meta::{Labels, selects};

/// Selectors by namespace and their first pair.
pub(super) struct Selectors<'a, T> {
    by_pair: HashMap<Pair<'a>, Vec<(&'a Labels, T)>>,
}

/// Namespace (none: every one), key, value.
type Pair<'a> = (Option<&'a str>, &'a str, &'a str);

impl<T> Default for Selectors<'_, T> {
    fn default() -> Self {
        Self {
            by_pair: HashMap::new(),
        }
    }
}

impl<'a, T: Copy> Selectors<'a, T> {
    /// Adds a selector; an empty one chooses nothing.
    pub(super) fn insert(&mut self, namespace: Option<&'a str>, selector: &'a Labels, value: T) {
        if let Some((key, first)) = selector.first_key_value() {
            self.by_pair
                .entry((namespace, key, first))
                .or_default()
                .push((selector, value));
        }
    }

    /// The values whose selectors choose the labels. Each once: a selector stands under one pair.
    pub(super) fn choosing(&self, namespace: &str, labels: &Labels) -> Vec<T> {
        let mut chosen = Vec::new();
        for (key, value) in labels {
            for within in [Some(namespace), None] {
                let pair: Pair<'_> = (within, key, value);
                let candidates = self.by_pair.get(&pair).into_iter().flatten();
                chosen.extend(
                    candidates
                        .filter(|(selector, _)| selects(selector, labels))
                        .map(|(_, value)| *value),
                );
            }
        }
        chosen
    }
}
