//! What threads meet at, of what is modelled: `tests/models` compiles the same files with loom's.

pub(crate) use std::sync::Mutex;

pub(crate) use tokio::sync::oneshot;
pub(crate) use tokio::task::JoinSet;
pub(crate) use tokio::time::timeout;
