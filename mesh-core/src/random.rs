use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};

/// Random numbers for choices, not for secrets: splitmix64 over a shared counter, so that drawing one
/// is a single atomic addition, and a seed repeats the sequence.
#[derive(Debug)]
pub(crate) struct Random {
    state: AtomicU64,
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

impl Random {
    pub(crate) fn new(seed: Option<u64>) -> Self {
        // The standard library's hash keys are the random numbers to be had without a dependency.
        let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(0_u8));
        Self {
            state: AtomicU64::new(seed),
        }
    }

    pub(crate) fn next(&self) -> u64 {
        let mut z = self
            .state
            .fetch_add(GOLDEN, Ordering::Relaxed)
            .wrapping_add(GOLDEN);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
