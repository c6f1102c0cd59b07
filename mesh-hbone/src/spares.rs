//! Buffers of full frames that have left: a busy connection neither allocates nor returns memory for
//! each frame, which would cost page faults where the allocator gives it back to the system.

use std::sync::{Arc, Mutex};

use crate::driver::lock;
use crate::tunnel::FULL;

/// Buffers that a connection keeps, those of one write: 768 KiB, until its next PING is due.
const KEPT: usize = 48;

/// The buffers of one connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spares {
    buffers: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Spares {
    /// An empty buffer, with room if there is one to spare.
    pub(crate) fn take(&self) -> Vec<u8> {
        lock(&self.buffers).pop().unwrap_or_default()
    }

    pub(crate) fn give(&self, mut buffer: Vec<u8>) {
        let mut buffers = lock(&self.buffers);
        if buffers.len() < KEPT && buffer.capacity() >= FULL {
            buffer.clear();
            buffers.push(buffer);
        }
    }

    /// Frees what nobody needed for a while.
    pub(crate) fn clear(&self) {
        let unused = std::mem::take(&mut *lock(&self.buffers));
        drop(unused);
    }
}
