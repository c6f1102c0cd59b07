//! Hashes for tables that are filled by policies and asked by connections.
//!
//! Every decision asks several tables, and with std's SipHash the hashes were half of what it cost. Who
//! connects only asks, and can make a search no longer than whoever wrote the policies did; a key of
//! its own for each table keeps even those from choosing texts that meet.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

/// A map with this hash.
pub(super) type Map<K, V> = HashMap<K, V, Keyed>;
/// A set with this hash.
pub(super) type Set<K> = HashSet<K, Keyed>;

/// A map of texts. One of a length that no key has need not be hashed.
pub(super) struct Texts<V> {
    /// Of the length of each key, modulo 64, a bit.
    lengths: u64,
    map: Map<Arc<str>, V>,
}

impl<V> Texts<V> {
    /// `false` where [`get`](Self::get) would find nothing, of most texts. In line: a call would cost more.
    #[inline(always)]
    pub(super) fn may_have(&self, text: &str) -> bool {
        self.lengths & bit(text) != 0
    }

    pub(super) fn get(&self, text: &str) -> Option<&V> {
        self.map.get(text)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

impl<V> FromIterator<(Arc<str>, V)> for Texts<V> {
    fn from_iter<I: IntoIterator<Item = (Arc<str>, V)>>(entries: I) -> Self {
        let map: Map<Arc<str>, V> = entries.into_iter().collect();
        Self {
            lengths: map.keys().fold(0, |lengths, key| lengths | bit(key)),
            map,
        }
    }
}

#[inline(always)]
fn bit(text: &str) -> u64 {
    1 << (text.len() % 64)
}

/// Makes hashers with one random key.
#[derive(Clone)]
pub(super) struct Keyed(u64);

impl Default for Keyed {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0_u8))
    }
}

impl BuildHasher for Keyed {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded(self.0)
    }
}

/// Multiplies each eight bytes into the state and folds the product, as wyhash does.
pub(super) struct Folded(u64);

/// An odd number with as many ones as zeros (the golden ratio's fraction).
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

impl Folded {
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * u128::from(FACTOR);
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }
}

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        // The last word overlaps what came before, so the length has to count.
        self.mix(bytes.len() as u64);
        let mut rest = bytes;
        while let Some((word, after)) = rest.split_first_chunk() {
            self.mix(u64::from_le_bytes(*word));
            rest = after;
        }
        if rest.is_empty() {
            return;
        }
        if let Some(word) = bytes.last_chunk() {
            self.mix(u64::from_le_bytes(*word));
        } else if let (Some(low), Some(high)) = (bytes.first_chunk(), bytes.last_chunk()) {
            self.mix(
                u64::from(u32::from_le_bytes(*low)) << 32 | u64::from(u32::from_le_bytes(*high)),
            );
        } else {
            let byte = |at: usize| u64::from(bytes[at]);
            self.mix(byte(0) << 16 | byte(bytes.len() / 2) << 8 | byte(bytes.len() - 1));
        }
    }

    fn write_u8(&mut self, byte: u8) {
        self.0 = self.0.wrapping_add(byte.into());
    }

    fn write_u16(&mut self, number: u16) {
        self.mix(number.into());
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests;
