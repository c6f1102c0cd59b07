//! The primitives of what is modelled: `tests/models` compiles the same files with loom's.

use std::sync::PoisonError;

pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
pub(crate) use std::sync::{Mutex, MutexGuard};

pub(crate) use tokio::sync::{Notify, watch};

/// Locks it. Nothing panics while what a lock of ours protects is not whole, so that a panic takes it from nobody.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
