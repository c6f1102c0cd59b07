//! Finds the selectors that choose a set of labels, without trying them all.

use std::cell::Cell;
use std::collections::HashMap;

use crate::manifest::meta::{Labels, selects};

/// Selectors by namespace and their first pair.
pub(super) struct Selectors<'a, T> {
    by_pair: HashMap<Pair<'a>, Vec<Selector<'a, T>>>,
}

struct Selector<'a, T> {
    labels: &'a Labels,
    value: T,
    /// Whether it chose anything yet.
    chose: Cell<bool>,
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
                .push(Selector {
                    labels: selector,
                    value,
                    chose: Cell::new(false),
                });
        }
    }

    /// The values whose selectors choose the labels. Each once: a selector stands under one pair.
    pub(super) fn choosing(&self, namespace: &str, labels: &Labels) -> Vec<T> {
        let mut chosen = Vec::new();
        for (key, value) in labels {
            for within in [Some(namespace), None] {
                let pair: Pair<'_> = (within, key, value);
                let candidates = self.by_pair.get(&pair).into_iter().flatten();
                for selector in candidates.filter(|selector| selects(selector.labels, labels)) {
                    selector.chose.set(true);
                    chosen.push(selector.value);
                }
            }
        }
        chosen
    }

    /// The values whose selectors chose nothing, in no order.
    pub(super) fn idle(&self) -> impl Iterator<Item = T> {
        let all = self.by_pair.values().flatten();
        all.filter(|selector| !selector.chose.get())
            .map(|selector| selector.value)
    }
}
