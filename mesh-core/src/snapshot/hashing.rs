//! Persistent hash tables with a seed of their own.

use std::hash::{BuildHasher, RandomState};

use foldhash::fast::{FixedState, FoldHasher};
use rpds::HashTrieMapSync;

/// A table whose keys are names out of a mesh: hashing them is a good part of what applying it costs.
pub(super) type HashTable<K, V> = HashTrieMapSync<K, V, Seeded>;

/// Hashes as its seed says, which nobody knows: it is drawn for each table.
#[derive(Clone)]
pub(super) struct Seeded(FixedState);

impl Default for Seeded {
    fn default() -> Self {
        Self(FixedState::with_seed(RandomState::new().hash_one(())))
    }
}

impl BuildHasher for Seeded {
    type Hasher = FoldHasher<'static>;

    fn build_hasher(&self) -> FoldHasher<'static> {
        self.0.build_hasher()
    }
}
