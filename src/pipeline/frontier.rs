//! How far a partition is settled and how far that is committed.
//!
//! Blocks settle in offset order, so the frontier is one offset; nothing beyond it is ever committed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::block::Block;
use crate::kafka::metadata::Previous;

#[derive(Clone, Copy, Debug)]
struct State {
    settled: i64,
    previous: Option<Previous>,
    committed: i64,
}

/// One partition's frontier.
#[derive(Debug)]
pub(super) struct Frontier(Mutex<State>);

impl Frontier {
    /// Begins at the committed offset.
    pub(super) fn new(committed: i64) -> Self {
        Self(Mutex::new(State {
            settled: committed,
            previous: None,
            committed,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything of `block` is acknowledged by its destinations.
    pub(super) fn settled(&self, block: &Block) {
        let mut state = self.lock();
        state.settled = block.end;
        state.previous = block.last;
    }

    /// Kafka has acknowledged a commit of `offset`.
    pub(super) fn committed(&self, offset: i64) {
        self.lock().committed = offset;
    }

    /// The last offset that Kafka has acknowledged.
    pub(super) fn acknowledged(&self) -> i64 {
        self.lock().committed
    }

    /// The offset to commit, and the record before it, where Kafka lags behind.
    pub(super) fn behind(&self) -> Option<(i64, Option<Previous>)> {
        let state = self.lock();
        (state.settled > state.committed).then_some((state.settled, state.previous))
    }
}
