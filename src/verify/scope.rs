//! What is settled: from each partition's first offset to the group's; and how far the rejects reach.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataPartition;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::records::{Reader, Span};
use crate::config;
use crate::kafka::metadata;

/// Time for each question to Kafka.
const PATIENCE: Duration = Duration::from_secs(15);

const RETRY: Duration = Duration::from_millis(250);

/// The ranges that are read.
#[derive(Debug, Default)]
pub(super) struct Scope {
    pub(super) records: Vec<Span>,
    pub(super) overflow: Vec<Span>,
    pub(super) dead_letters: Vec<Span>,
    /// Offsets between the group's and the ends.
    pub(super) behind: u64,
    pub(super) notes: Vec<String>,
}

impl Scope {
    /// Asks for the group's offsets first: the destinations have everything below them by then.
    pub(super) fn ask(reader: &Reader<'_>, kafka: &config::Kafka) -> anyhow::Result<Self> {
        let mut scope = Self::default();
        let Some(partitions) = partitions(reader, &kafka.topic)? else {
            bail!("the topic {:?} (kafka.topic) does not exist", kafka.topic);
        };
        let committed = committed(reader, kafka, &partitions)?;
        for (partition, committed) in committed {
            let (low, high) = watermarks(reader, &kafka.topic, partition)?;
            let committed = committed.as_ref().map(|(offset, text)| (*offset, text.as_str()));
            let start = metadata::start(committed, low, high, kafka.incarnation)
                .with_context(|| format!("partition {partition} of {}", kafka.topic))?;
            let end = start.committed.max(low);
            scope.behind += (high - end).max(0) as u64;
            scope.records.push(Span {
                partition,
                start: low,
                end,
            });
        }
        scope.overflow = scope.rejects(reader, &kafka.overflow_topic)?;
        scope.dead_letters = scope.rejects(reader, &kafka.dead_letter_topic)?;
        Ok(scope)
    }

    fn rejects(&mut self, reader: &Reader<'_>, topic: &str) -> anyhow::Result<Vec<Span>> {
        let Some(partitions) = partitions(reader, topic)? else {
            self.notes
                .push(format!("the topic {topic} does not exist: taken for empty"));
            return Ok(Vec::new());
        };
        let mut spans = Vec::with_capacity(partitions.len());
        let mut removed = 0;
        for partition in partitions {
            let (start, end) = watermarks(reader, topic, partition)?;
            removed += start;
            spans.push(Span {
                partition,
                start,
                end,
            });
        }
        if removed > 0 {
            self.notes.push(format!(
                "retention has removed {removed} records of {topic}: those that they were copies of count as missing"
            ));
        }
        Ok(spans)
    }
}

fn partitions(reader: &Reader<'_>, topic: &str) -> anyhow::Result<Option<Vec<i32>>> {
    let metadata = reader
        .consumer
        .fetch_metadata(Some(topic), PATIENCE)
        .with_context(|| format!("Kafka at {} does not answer", reader.kafka.brokers))?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
        return Ok(None);
    };
    let mut numbers: Vec<i32> = found.partitions().iter().map(MetadataPartition::id).collect();
    numbers.sort_unstable();
    Ok((!numbers.is_empty()).then_some(numbers))
}

fn watermarks(reader: &Reader<'_>, topic: &str, partition: i32) -> anyhow::Result<(i64, i64)> {
    reader
        .consumer
        .fetch_watermarks(topic, partition, PATIENCE)
        .with_context(|| {
            format!("Kafka does not tell where partition {partition} of {topic} begins and ends")
        })
}

/// The group's offset and metadata of each partition, where it has committed any.
type Committed = Vec<(i32, Option<(i64, String)>)>;

fn committed(reader: &Reader<'_>, kafka: &config::Kafka, partitions: &[i32]) -> anyhow::Result<Committed> {
    let mut wanted = TopicPartitionList::new();
    for &partition in partitions {
        wanted.add_partition(&kafka.topic, partition);
    }
    let begun = Instant::now();
    let answer = loop {
        match reader.consumer.committed_offsets(wanted.clone(), PATIENCE) {
            // The cluster is choosing who knows: at its first group, or when a broker has gone.
            Err(error) if is_election(&error) && begun.elapsed() < PATIENCE => std::thread::sleep(RETRY),
            answer => break answer,
        }
    }
    .with_context(|| format!("Kafka does not tell the offsets of the group {}", kafka.group_id))?;
    answer
        .elements()
        .iter()
        .map(|element| {
            element
                .error()
                .with_context(|| format!("the committed offset of partition {}", element.partition()))?;
            let Offset::Offset(offset) = element.offset() else {
                return Ok((element.partition(), None));
            };
            // The client library panics on what is not UTF-8, which is none of ours.
            let text = catch_unwind(AssertUnwindSafe(|| element.metadata().to_owned()));
            let text = text.map_err(|_| {
                anyhow!(
                    "the committed offset of partition {} has no text as metadata",
                    element.partition()
                )
            })?;
            Ok((element.partition(), Some((offset, text))))
        })
        .collect()
}

fn is_election(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{CoordinatorLoadInProgress, CoordinatorNotAvailable, NotCoordinator};
    matches!(
        error.rdkafka_error_code(),
        Some(NotCoordinator | CoordinatorNotAvailable | CoordinatorLoadInProgress)
    )
}
