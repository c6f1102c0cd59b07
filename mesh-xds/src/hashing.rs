//! Hashing of what came from outside.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

use foldhash::SharedSeed;
use foldhash::fast::{FoldHasher, SeedableRandomState};

/// What keys are combined with, drawn for each process. With foldhash's published constants, keys could be
/// made that hash alike whatever the table's own seed is.
static SHARED: LazyLock<SharedSeed> =
    LazyLock::new(|| SharedSeed::from_u64(RandomState::new().hash_one(())));

/// Hashes as its seeds say, which nobody knows: one is drawn for each table.
#[derive(Debug, Clone)]
pub(crate) struct Seeded(SeedableRandomState);

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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::Hasher;

    use foldhash::fast::FixedState;

    use super::*;

    /// The constant that foldhash, not seeded by anybody, combines with what is hashed: it would multiply by zero.
    const PUBLISHED: u64 = 0xc0ac_29b7_c97c_50dd;

    fn numbers_alike(hasher: &impl BuildHasher) -> HashSet<u64> {
        (0..1000_u64)
            .map(|low| (u128::from(PUBLISHED) << 64) | u128::from(low))
            .map(|key| hasher.hash_one(key))
            .collect()
    }

    fn bytes_alike(hasher: &impl BuildHasher) -> HashSet<u64> {
        let hash = |bytes: &[u8]| {
            let mut hasher = hasher.build_hasher();
            hasher.write(bytes);
            hasher.finish()
        };
        (0..1000_u64)
            .map(|start| [start, start, PUBLISHED, PUBLISHED].map(u64::to_ne_bytes))
            .map(|words| hash(words.as_flattened()))
            .collect()
    }

    #[test]
    fn keys_made_to_hash_alike_do_not() {
        let published = FixedState::with_seed(1);
        assert_eq!(numbers_alike(&published).len(), 1);
        assert_eq!(bytes_alike(&published).len(), 1);

        for _ in 0..8 {
            let hasher = Seeded::default();
            let (numbers, bytes) = (numbers_alike(&hasher), bytes_alike(&hasher));
            assert!(numbers.len() > 990, "{} hashes", numbers.len());
            assert!(bytes.len() > 990, "{} hashes", bytes.len());
        }
    }
}
