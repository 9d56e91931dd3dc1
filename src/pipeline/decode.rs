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
            let mut events: Decoded = worker.decoded.take();
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
