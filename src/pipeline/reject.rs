//! Reject: dead letters and overflow, each with its reason and coordinate, acknowledged by all replicas.

use rdkafka::types::RDKafkaErrorCode;

use super::retry::until_done;
use super::{Outcome, Partition, Prepared};
use crate::event::{Event, Id, Reason};
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
                None,
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
                    Some(event),
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
            .map(|(event, _)| {
                (
                    event.index,
                    event.offset,
                    topic,
                    Reason::Refused.as_str(),
                    Some(event),
                )
            })
            .collect();
        self.send(prepared, refused).await;
    }

    async fn send(&self, prepared: &Prepared, rejects: Vec<(u32, i64, &str, &str, Option<&Event>)>) {
        if rejects.is_empty() {
            return;
        }
        let rejects: Vec<Reject<'_>> = rejects
            .into_iter()
            .map(|(index, offset, to, reason, event)| Reject {
                to,
                reason,
                record: prepared.block.record(index),
                origin: self.origin(offset),
                uuid: event.filter(|e| e.id == Id::Coordinate).map(|e| e.uuid),
                timestamp: event.filter(|e| e.timed_by_kafka).map(|e| e.timestamp),
            })
            .collect();
        until_done(self.waiter(), Service::Kafka, "send rejects", async || {
            let sent = self.worker.rejects.send(&rejects).await;
            if let Err(error) = &sent
                && error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge)
            {
                tracing::error!(
                    partition = self.number,
                    "a record is too large for the topic of its rejects, which must take whatever the topic of events \
                     takes: raise its max.message.bytes; until then the partition waits"
                );
            }
            sent
        })
        .await;
        faults::moment("after-reject").await;
    }
}
