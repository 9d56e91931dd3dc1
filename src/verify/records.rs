//! Reading topics from one offset to another, without a group.
//!
//! The consumer names the group only to ask for its offsets: it assigns partitions to itself, which joins nothing,
//! and commits nothing.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::pace::Pace;
use crate::config;
use crate::event::{Headers, Record};
use crate::kafka::client_config;

/// How long Kafka may be silent before it counts as gone.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(500);

/// A range of offsets in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Span {
    /// The partition.
    pub partition: i32,
    /// The first offset.
    #[serde(rename = "from")]
    pub start: i64,
    /// The offset after the last.
    #[serde(rename = "to")]
    pub end: i64,
}

impl Span {
    pub(super) fn contains(&self, offset: i64) -> bool {
        (self.start..self.end).contains(&offset)
    }
}

/// Offsets in ranges.
pub(super) fn total(spans: &[Span]) -> u64 {
    spans
        .iter()
        .map(|span| (span.end - span.start).max(0) as u64)
        .sum()
}

/// Whether more of a partition is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum More {
    Wanted,
    Enough,
}

/// Reads topics.
pub(super) struct Reader<'a> {
    kafka: &'a config::Kafka,
    pace: Pace,
}

impl<'a> Reader<'a> {
    pub(super) fn new(kafka: &'a config::Kafka, pace: Pace) -> Self {
        Self { kafka, pace }
    }

    /// A consumer, which belongs to no group.
    pub(super) fn consumer(&self) -> anyhow::Result<BaseConsumer> {
        let kafka = self.kafka;
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
        client.create().context("the Kafka client could not be made")
    }

    /// Those of the ranges in which there is a record. Others hold only what transactions and compaction leave.
    pub(super) fn with_records(&self, topic: &str, spans: &[Span]) -> anyhow::Result<Vec<Span>> {
        let mut found = HashSet::new();
        self.each(topic, spans, &mut |_| {}, |_, partition| {
            found.insert(partition);
            Ok(More::Enough)
        })?;
        Ok(spans
            .iter()
            .filter(|span| found.contains(&span.partition))
            .copied()
            .collect())
    }

    /// Hands every record in the ranges to `each`, with its partition. Offsets within a partition come in order, each
    /// once. `done` is told how many offsets are behind.
    pub(super) fn each(
        &self,
        topic: &str,
        spans: &[Span],
        done: &mut dyn FnMut(u64),
        mut each: impl FnMut(&Record<'_>, i32) -> anyhow::Result<More>,
    ) -> anyhow::Result<()> {
        let mut open = Open::new(spans);
        if open.spans.is_empty() {
            return Ok(());
        }
        // Of its own: what an earlier reading left in its queue, the end of a partition of another topic, say, cannot
        // be told from what belongs to this one.
        let consumer = self.consumer()?;
        let mut assignment = TopicPartitionList::new();
        for span in open.spans.values() {
            assignment.add_partition_offset(topic, span.partition, Offset::Offset(span.start))?;
        }
        consumer.assign(&assignment)?;
        let all = total(spans);
        let mut headers = Vec::new();
        let mut heard = Instant::now();
        let mut trouble = None;
        while !open.spans.is_empty() {
            let ended = match consumer.poll(POLL) {
                Some(Ok(message)) => {
                    let (partition, offset) = (message.partition(), message.offset());
                    let mut more = More::Wanted;
                    if open.is_next(partition, offset) {
                        self.pace.wait();
                        copy_headers(&message, &mut headers);
                        more = each(&record(&message, &headers), partition)?;
                    }
                    let ended = open.read(partition, offset, more);
                    done(all - open.left);
                    // Not before: `each` may have asked other services.
                    heard = Instant::now();
                    ended
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    heard = Instant::now();
                    open.end(partition)
                }
                Some(Err(error)) => {
                    // The client mends its connections itself; patience decides.
                    trouble = Some(error);
                    None
                }
                None => None,
            };
            if let Some(partition) = ended {
                let mut list = TopicPartitionList::new();
                list.add_partition(topic, partition);
                consumer.incremental_unassign(&list)?;
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
        Ok(())
    }
}

/// What is still to be read.
struct Open {
    spans: HashMap<i32, Span>,
    left: u64,
}

impl Open {
    fn new(spans: &[Span]) -> Self {
        Self {
            spans: spans
                .iter()
                .filter(|span| span.start < span.end)
                .map(|span| (span.partition, *span))
                .collect(),
            left: total(spans),
        }
    }

    /// Whether the record is in range and was not read before: a log that was cut off makes the client begin anew.
    fn is_next(&self, partition: i32, offset: i64) -> bool {
        self.spans
            .get(&partition)
            .is_some_and(|span| span.contains(offset))
    }

    /// An offset and what comes before it is read; gaps count as read. Answers the partition if nothing more of it is
    /// to be read.
    fn read(&mut self, partition: i32, offset: i64, more: More) -> Option<i32> {
        let span = self.spans.get_mut(&partition)?;
        let next = (offset + 1).clamp(span.start, span.end);
        self.left -= (next - span.start) as u64;
        span.start = next;
        if more == More::Enough || next >= span.end {
            return self.end(partition);
        }
        None
    }

    /// Nothing more comes of a partition.
    fn end(&mut self, partition: i32) -> Option<i32> {
        let span = self.spans.remove(&partition)?;
        self.left -= (span.end - span.start) as u64;
        Some(partition)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_offset_of_a_range_is_read_once_and_gaps_count_as_read() {
        let span = |partition, start, end| Span {
            partition,
            start,
            end,
        };
        let mut open = Open::new(&[span(0, 10, 20), span(1, 5, 5), span(2, 0, 3)]);
        assert_eq!((open.spans.len(), open.left), (2, 13));
        assert!(open.is_next(0, 10) && open.is_next(0, 19));
        assert!(!open.is_next(0, 9) && !open.is_next(0, 20) && !open.is_next(1, 5) && !open.is_next(7, 0));
        assert_eq!(open.read(0, 12, More::Wanted), None);
        assert_eq!(
            (open.left, open.is_next(0, 12), open.is_next(0, 13)),
            (10, false, true)
        );
        assert_eq!(
            open.read(0, 3, More::Wanted),
            None,
            "read from the beginning once more"
        );
        assert_eq!((open.left, open.is_next(0, 12)), (10, false));
        assert_eq!(open.read(0, 40, More::Wanted), Some(0), "a gap at the end");
        assert_eq!(open.read(0, 41, More::Wanted), None);
        assert_eq!(open.left, 3);
        assert_eq!(open.read(2, 0, More::Enough), Some(2));
        assert_eq!((open.left, open.spans.len(), open.end(2)), (0, 0, None));
    }
}
