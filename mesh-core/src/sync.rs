//! The primitives of what is modelled: `tests/models` compiles the same files with loom's.

pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
pub(crate) use std::sync::{Mutex, MutexGuard};

pub(crate) use tokio::sync::{Notify, watch};
