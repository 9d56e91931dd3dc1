//! How far a partition is settled and how far that is committed.
//!
//! Blocks settle in offset order, so the frontier is one offset; nothing beyond it is ever committed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::block::Block;
use crate::kafka::metadata::Previous;

#[derive(Clone, Copy, Debug)]
struct State {
    settled: i64,
    previous: Option<Previous>,
    sent: i64,
    committed: i64,
}

/// One partition's frontier.
#[derive(Debug)]
pub(super) struct Frontier {
    state: Mutex<State>,
    advanced: Notify,
}

impl Frontier {
    /// Begins at the committed offset.
    pub(super) fn new(committed: i64) -> Self {
        Self {
            state: Mutex::new(State {
                settled: committed,
                previous: None,
                sent: committed,
                committed,
            }),
            advanced: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything of `block` is acknowledged by its destinations.
    pub(super) fn settled(&self, block: &Block) {
        let mut state = self.lock();
        state.settled = block.end;
        state.previous = block.last;
    }

    /// A commit of `offset` is about to be sent.
    pub(super) fn sent(&self, offset: i64) {
        self.lock().sent = offset;
    }

    /// Kafka has acknowledged a commit of `offset`.
    pub(super) fn committed(&self, offset: i64) {
        self.lock().committed = offset;
        self.advanced.notify_waiters();
    }

    /// Waits until Kafka has acknowledged a commit of `offset` or more, if one was sent. Answers whether one was.
    pub(super) async fn reaches(&self, offset: i64) -> bool {
        loop {
            // Before the look: from here on no acknowledgement is missed.
            let advanced = self.advanced.notified();
            let State { sent, committed, .. } = *self.lock();
            if sent < offset {
                return false;
            }
            if committed >= offset {
                return true;
            }
            advanced.await;
        }
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

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn a_commit_that_was_sent_is_waited_for_and_no_other() {
        let frontier = Frontier::new(900);
        assert_eq!(frontier.reaches(900).now_or_never(), Some(true));
        assert_eq!(frontier.reaches(1000).now_or_never(), Some(false));
        frontier.sent(1000);
        let mut waits = std::pin::pin!(frontier.reaches(1000));
        assert_eq!(waits.as_mut().now_or_never(), None);
        frontier.committed(1000);
        assert_eq!(waits.now_or_never(), Some(true));
    }
}
