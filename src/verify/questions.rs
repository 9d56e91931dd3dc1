//! What Kafka is asked about topics and the group. No question changes anything.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataPartition;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::runtime::Handle;

use crate::config;
use crate::kafka::client_config;
use crate::kafka::producer::CONSUMER_ONLY;

/// Time for each question.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two attempts at a question, and two looks at what will change.
pub(super) const RETRY: Duration = Duration::from_millis(250);

/// The group's offset and metadata of each partition, where it has committed any.
pub(super) type Committed = Vec<(i32, Option<(i64, String)>)>;

pub(super) struct Questions<'a> {
    pub(super) kafka: &'a config::Kafka,
    pub(super) consumer: BaseConsumer,
}

impl Questions<'_> {
    /// A topic's partitions; none if it does not exist.
    pub(super) fn partitions(&self, topic: &str) -> anyhow::Result<Option<Vec<i32>>> {
        let metadata = self
            .consumer
            .fetch_metadata(Some(topic), PATIENCE)
            .with_context(|| format!("Kafka at {} does not answer", self.kafka.brokers))?;
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Ok(None);
        };
        let mut numbers: Vec<i32> = found.partitions().iter().map(MetadataPartition::id).collect();
        numbers.sort_unstable();
        Ok((!numbers.is_empty()).then_some(numbers))
    }

    /// The first offset of a partition, and the one after its last.
    pub(super) fn watermarks(&self, topic: &str, partition: i32) -> anyhow::Result<(i64, i64)> {
        self.consumer
            .fetch_watermarks(topic, partition, PATIENCE)
            .with_context(|| {
                format!("Kafka does not tell where partition {partition} of {topic} begins and ends")
            })
    }

    pub(super) fn committed(&self, partitions: &[i32]) -> anyhow::Result<Committed> {
        let kafka = self.kafka;
        let mut wanted = TopicPartitionList::new();
        for &partition in partitions {
            wanted.add_partition(&kafka.topic, partition);
        }
        let begun = Instant::now();
        let answer = loop {
            match self.consumer.committed_offsets(wanted.clone(), PATIENCE) {
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

    /// The offset of the first record of that time (ms since 1970) or a later one; none if there is no such record.
    pub(super) fn at_time(&self, partition: i32, time_ms: i64) -> anyhow::Result<Option<i64>> {
        let topic = &self.kafka.topic;
        let what = || format!("Kafka does not tell what partition {partition} of {topic} has of a time");
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition_offset(topic, partition, Offset::Offset(time_ms))?;
        let answer = self
            .consumer
            .offsets_for_times(wanted, PATIENCE)
            .with_context(what)?;
        let element = answer.find_partition(topic, partition).with_context(what)?;
        element.error().with_context(what)?;
        Ok(match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        })
    }

    /// Whether the topic is compacted.
    pub(super) fn is_compacted(&self, runtime: &Handle) -> anyhow::Result<bool> {
        let mut client = client_config(self.kafka, &[]);
        for (name, value) in &self.kafka.options {
            if !CONSUMER_ONLY.contains(&name.as_str()) {
                client.set(name, value);
            }
        }
        let admin: AdminClient<DefaultClientContext> = client.create()?;
        let options = AdminOptions::new().request_timeout(Some(PATIENCE));
        let topic = ResourceSpecifier::Topic(&self.kafka.topic);
        let answer = runtime.block_on(admin.describe_configs([&topic], &options))?;
        let config = answer.into_iter().next().context("no answer")??;
        let policy = config
            .get("cleanup.policy")
            .and_then(|entry| entry.value.as_deref());
        Ok(policy.is_some_and(|policy| policy.contains("compact")))
    }
}

fn is_election(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{CoordinatorLoadInProgress, CoordinatorNotAvailable, NotCoordinator};
    matches!(
        error.rdkafka_error_code(),
        Some(NotCoordinator | CoordinatorNotAvailable | CoordinatorLoadInProgress)
    )
}
