//! Decode: a pure function of the block's records, off the asynchronous threads.

use super::Partition;
use super::block::Block;
use crate::event::{Decoded, Place, decode};

/// A block's events, and the digest over its records.
#[derive(Debug)]
pub(super) struct Decoding {
    pub(super) events: Decoded,
    pub(super) digest: u128,
}

impl Partition {
    pub(super) async fn decode(&self, block: Block) -> (Block, Decoding) {
        let worker = std::sync::Arc::clone(&self.worker);
        let partition = self.number;
        let work = move || {
            let kafka = &worker.config.kafka;
            let place = Place {
                topic: &kafka.topic,
                incarnation: kafka.incarnation,
                partition,
            };
            let mut events = worker.buffers.take();
            for (index, record) in block.records().enumerate() {
                decode(&place, index as u32, &record, &mut events);
            }
            let digest = block.digest();
            (block, Decoding { events, digest })
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is going down, and this task with it.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

/// Decoded blocks whose memory is used again: fresh pages cost more than the decoding that fills them.
#[derive(Debug, Default)]
pub(super) struct Buffers(std::sync::Mutex<Vec<Decoded>>);

impl Buffers {
    fn take(&self) -> Decoded {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .pop()
            .unwrap_or_default()
    }

    /// Gives a block's memory back.
    pub(super) fn give(&self, mut decoded: Decoded) {
        /// More than the blocks that a worker usually has under way would only hold memory.
        const KEPT: usize = 16;
        decoded.clear();
        let mut kept = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(decoded);
        }
    }
}
