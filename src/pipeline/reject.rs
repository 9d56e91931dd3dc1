//! Reject: dead letters and overflow, each with its reason and coordinate, acknowledged by all replicas.

use super::retry::until_done;
use super::{Outcome, Partition, Prepared};
use crate::event::Reason;
use crate::faults;
use crate::kafka::producer::Reject;
use crate::telemetry::Service;

/// The reason of a record in the overflow topic.
const OVER_LIMIT: &str = "over_limit";

impl Partition {
    /// Sends what was decided against, and waits until it is acknowledged.
    pub(super) async fn reject(&self, prepared: &Prepared) {
        let kafka = &self.worker.config.kafka;
        let decoded = &prepared.decoding.events;
        let bad = decoded.rejected.iter().map(|r| {
            (
                r.index,
                r.offset,
                kafka.dead_letter_topic.as_str(),
                r.reason.as_str(),
            )
        });
        let over = decoded
            .events
            .iter()
            .zip(&prepared.outcomes)
            .filter(|(_, outcome)| **outcome == Outcome::Over)
            .map(|(event, _)| {
                (
                    event.index,
                    event.offset,
                    kafka.overflow_topic.as_str(),
                    OVER_LIMIT,
                )
            });
        self.send(prepared, bad.chain(over).collect()).await;
    }

    /// Sends the rows that `ClickHouse` refused for good to the dead letters.
    pub(super) async fn reject_refused(&self, prepared: &Prepared) {
        let topic = self.worker.config.kafka.dead_letter_topic.as_str();
        let refused = prepared
            .decoding
            .events
            .events
            .iter()
            .zip(&prepared.outcomes)
            .filter(|(_, outcome)| **outcome == Outcome::Refused)
            .map(|(event, _)| (event.index, event.offset, topic, Reason::Refused.as_str()))
            .collect();
        self.send(prepared, refused).await;
    }

    async fn send(&self, prepared: &Prepared, rejects: Vec<(u32, i64, &str, &str)>) {
        if rejects.is_empty() {
            return;
        }
        let rejects: Vec<Reject<'_>> = rejects
            .into_iter()
            .map(|(index, offset, to, reason)| Reject {
                to,
                reason,
                record: prepared.block.record(index),
                origin: self.origin(offset),
            })
            .collect();
        until_done(Service::Kafka, "send rejects", async || {
            self.worker.rejects.send(&rejects).await
        })
        .await;
        faults::moment("after-reject").await;
    }
}
