//! What one partition has under way: how many closed blocks, of how many bytes, nobody has settled yet.
//!
//! Owns these two counts and nothing else. The poll loop goes by them; the whole worker's memory is `block::InFlight`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// A partition's blocks that are closed and not settled.
#[derive(Debug, Default)]
pub struct Outstanding {
    blocks: AtomicUsize,
    bytes: AtomicU64,
}

impl Outstanding {
    /// How many there are.
    pub fn blocks(&self) -> usize {
        self.blocks.load(Ordering::Acquire)
    }

    /// The bytes of their records.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Counts a block of so many bytes for as long as the answer lives.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Slot {
        self.blocks.fetch_add(1, Ordering::AcqRel);
        self.bytes.fetch_add(bytes as u64, Ordering::AcqRel);
        Slot {
            outstanding: Arc::clone(self),
            bytes: bytes as u64,
        }
    }
}

/// One block's place among its partition's.
#[derive(Debug)]
pub struct Slot {
    outstanding: Arc<Outstanding>,
    bytes: u64,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.outstanding.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.outstanding.blocks.fetch_sub(1, Ordering::AcqRel);
    }
}
