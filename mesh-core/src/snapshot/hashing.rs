//! Persistent hash tables with seeds of their own.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

use foldhash::SharedSeed;
use foldhash::fast::{FoldHasher, SeedableRandomState};
use rpds::HashTrieMapSync;

/// A table whose keys are names out of a mesh: hashing them is a good part of what applying it costs.
pub(super) type HashTable<K, V> = HashTrieMapSync<K, V, Seeded>;

/// What keys are combined with, drawn for each process. With foldhash's published constants, keys could be
/// made that hash alike whatever the table's own seed is.
static SHARED: LazyLock<SharedSeed> =
    LazyLock::new(|| SharedSeed::from_u64(RandomState::new().hash_one(())));

/// Hashes as its seeds say, which nobody knows: one is drawn for each table.
#[derive(Clone)]
pub(super) struct Seeded(SeedableRandomState);

impl Default for Seeded {
    fn default() -> Self {
        let own = RandomState::new().hash_one(());
        Self(SeedableRandomState::with_seed(own, &SHARED))
    }
}

impl BuildHasher for Seeded {
    type Hasher = FoldHasher<'static>;

    fn build_hasher(&self) -> FoldHasher<'static> {
        self.0.build_hasher()
    }
}
