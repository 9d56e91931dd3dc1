//! Randomness with a place for each index: what is drawn for one does not depend on what was drawn for another.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

/// Randomness with a place for each index.
#[derive(Clone, Debug)]
pub(super) struct Draw(ChaCha8Rng);

impl Draw {
    pub(super) fn of_seed(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Goes to the place of an index.
    pub(super) fn seek(&mut self, index: u64) {
        self.0.set_word_pos(0);
        self.0.set_stream(index);
    }

    pub(super) fn bits(&mut self) -> u32 {
        self.0.next_u32()
    }

    pub(super) fn long(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// 0 to below 1.
    pub(super) fn share(&mut self) -> f64 {
        f64::from(self.bits()) / (f64::from(u32::MAX) + 1.0)
    }

    pub(super) fn chance(&mut self, share: f64) -> bool {
        self.share() < share
    }

    /// 0 to below `n`, which is at least 1.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.long()) * u128::from(n)) >> 64) as u64
    }

    /// One of a list that is not empty.
    pub(super) fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[((u64::from(self.bits()) * all.len() as u64) >> 32) as usize]
    }
}
