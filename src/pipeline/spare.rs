//! Memory that is used again: fresh pages for every block cost more than the work that fills them.

use std::sync::{Mutex, PoisonError};

/// More than the blocks that a worker usually has under way would only hold memory.
const KEPT: usize = 8;

/// Buffers of blocks that are done with.
#[derive(Debug, Default)]
pub(super) struct Spare<T>(Mutex<Vec<T>>);

impl<T: Default> Spare<T> {
    /// One that was given, or a new one.
    pub(super) fn take(&self) -> T {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
            .unwrap_or_default()
    }

    /// Keeps an emptied one.
    pub(super) fn give(&self, buffer: T) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(buffer);
        }
    }
}
