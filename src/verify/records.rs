//! Reading topics from one offset to another, without a group.
//!
//! The consumer names the group only to ask for its offsets: it assigns partitions to itself, which joins nothing,
//! and commits nothing.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::Watch;
use crate::config;
use crate::event::{Headers, Record};
use crate::kafka::client_config;

/// How long Kafka may be silent before it counts as gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// A range of offsets in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) partition: i32,
    pub(super) start: i64,
    /// The offset after the last.
    pub(super) end: i64,
}

/// Offsets in ranges.
pub(super) fn total(spans: &[Span]) -> u64 {
    spans
        .iter()
        .map(|span| (span.end - span.start).max(0) as u64)
        .sum()
}

/// Reads topics.
pub(super) struct Reader<'a> {
    pub(super) kafka: &'a config::Kafka,
    pub(super) consumer: BaseConsumer,
}

impl<'a> Reader<'a> {
    pub(super) fn new(kafka: &'a config::Kafka) -> anyhow::Result<Self> {
        let mut client = client_config(
            kafka,
            &[
                ("group.id", kafka.group_id.as_str()),
                // Batches are a few times as large once they are decompressed: these keep memory modest, whatever
                // the number of partitions. A batch that is larger still comes, alone.
                ("queued.max.messages.kbytes", "8192"),
                ("fetch.message.max.bytes", "524288"),
                ("fetch.max.bytes", "4194304"),
                ("message.max.bytes", "4194304"),
                ("fetch.queue.backoff.ms", "5"),
            ],
        );
        for (name, value) in &kafka.options {
            client.set(name, value);
        }
        for (name, value) in [
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            // Retention may take the front away meanwhile: what is gone is out of scope.
            ("auto.offset.reset", "earliest"),
            ("enable.partition.eof", "true"),
            ("allow.auto.create.topics", "false"),
        ] {
            client.set(name, value);
        }
        let consumer = client.create().context("the Kafka client could not be made")?;
        Ok(Self { kafka, consumer })
    }

    /// Hands every record in the ranges to `each`, with its partition. Offsets within a partition come in order.
    pub(super) fn each(
        &self,
        topic: &str,
        spans: &[Span],
        watch: &mut dyn Watch,
        mut each: impl FnMut(&Record<'_>, i32) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut open: HashMap<i32, Span> = spans
            .iter()
            .filter(|span| span.start < span.end)
            .map(|span| (span.partition, *span))
            .collect();
        if open.is_empty() {
            return Ok(());
        }
        let mut assignment = TopicPartitionList::new();
        for span in open.values() {
            assignment.add_partition_offset(topic, span.partition, Offset::Offset(span.start))?;
        }
        self.consumer.assign(&assignment)?;
        let all = total(spans);
        let mut left = all;
        let mut headers = Vec::new();
        let mut heard = Instant::now();
        let mut trouble = None;
        while !open.is_empty() {
            // The partition whose range is read to its end.
            let ended = match self.consumer.poll(Duration::from_millis(500)) {
                Some(Ok(message)) => {
                    let partition = message.partition();
                    let Some(span) = open.get_mut(&partition) else {
                        continue;
                    };
                    let offset = message.offset();
                    if offset < span.end {
                        copy_headers(&message, &mut headers);
                        each(&record(&message, &headers), partition)?;
                    }
                    // Gaps count as read.
                    let next = (offset + 1).min(span.end);
                    left = left.saturating_sub((next - span.start).max(0) as u64);
                    span.start = next;
                    watch.done(all - left);
                    // Not before: `each` may have asked other services.
                    heard = Instant::now();
                    (next >= span.end).then_some(partition)
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    heard = Instant::now();
                    Some(partition)
                }
                Some(Err(error)) => {
                    // The client mends its connections itself; patience decides.
                    trouble = Some(error);
                    None
                }
                None => None,
            };
            if let Some(partition) = ended
                && let Some(span) = open.remove(&partition)
            {
                left = left.saturating_sub((span.end - span.start).max(0) as u64);
                let mut done = TopicPartitionList::new();
                done.add_partition(topic, partition);
                self.consumer.incremental_unassign(&done)?;
            }
            if heard.elapsed() > PATIENCE {
                let trouble = trouble.map_or_else(String::new, |error| format!(": {error}"));
                bail!(
                    "Kafka at {} has sent nothing of {topic} for {} s{trouble}",
                    self.kafka.brokers,
                    PATIENCE.as_secs()
                );
            }
        }
        self.consumer.unassign()?;
        Ok(())
    }
}

fn record<'a>(message: &'a BorrowedMessage<'_>, headers: &'a [u8]) -> Record<'a> {
    Record {
        offset: message.offset(),
        timestamp: message.timestamp().to_millis().unwrap_or(-1),
        key: message.key(),
        payload: message.payload(),
        headers: Headers(headers),
    }
}

fn copy_headers(message: &BorrowedMessage<'_>, out: &mut Vec<u8>) {
    out.clear();
    let Some(headers) = message.headers() else {
        return;
    };
    for index in 0..headers.count() {
        // The client library panics on a name that is not UTF-8. No name of ours is such a one.
        let header = catch_unwind(AssertUnwindSafe(|| headers.try_get(index)));
        if let Ok(Some(header)) = header {
            Headers::encode(out, header.key.as_bytes(), header.value);
        }
    }
}
