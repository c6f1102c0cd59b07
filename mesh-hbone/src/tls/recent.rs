//! What was found before, for as long as it is of use.

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;

use crate::driver::lock;

/// What is longer is not kept, by who asks. A certificate of a mesh has less than 1 KiB.
pub(super) const LONGEST: usize = 4 * 1024;

/// At most so many results by the bytes that they follow from.
///
/// Two generations: what was of use since the younger began, and what was before. When the younger has half
/// of all, it becomes the older, and what that had goes.
pub(super) struct Recent<V> {
    half: usize,
    seen: Mutex<Seen<V>>,
}

struct Seen<V> {
    young: HashMap<Box<[u8]>, V>,
    old: HashMap<Box<[u8]>, V>,
}

impl<V> fmt::Debug for Recent<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recent")
            .field("half", &self.half)
            .finish_non_exhaustive()
    }
}

impl<V: Clone> Recent<V> {
    /// Room for `most`, rounded up to an even number.
    pub(super) fn new(most: usize) -> Self {
        Self {
            half: most.div_ceil(2),
            seen: Mutex::new(Seen {
                young: HashMap::new(),
                old: HashMap::new(),
            }),
        }
    }

    pub(super) fn is_none(&self) -> bool {
        self.half == 0
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<V> {
        // Dropped after the lock.
        let _gone;
        let mut seen = lock(&self.seen);
        if let Some(value) = seen.young.get(key) {
            return Some(value.clone());
        }
        let (key, value) = seen.old.remove_entry(key)?;
        _gone = self.keep(&mut seen, key, value.clone());
        Some(value)
    }

    pub(super) fn insert(&self, key: Vec<u8>, value: V) {
        if !self.is_none() {
            let _gone = self.keep(&mut lock(&self.seen), key.into_boxed_slice(), value);
        }
    }

    /// What goes for it.
    fn keep(&self, seen: &mut Seen<V>, key: Box<[u8]>, value: V) -> HashMap<Box<[u8]>, V> {
        let full = seen.young.len() >= self.half && !seen.young.contains_key(&key);
        let gone = if full {
            let young = std::mem::take(&mut seen.young);
            std::mem::replace(&mut seen.old, young)
        } else {
            HashMap::new()
        };
        seen.young.insert(key, value);
        gone
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let seen = lock(&self.seen);
        seen.young.len() + seen.old.len()
    }
}
