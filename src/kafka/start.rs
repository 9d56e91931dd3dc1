//! Asks Kafka where partitions start: what the group has committed, and where the topic begins and ends.
//!
//! Owns these questions and their patience. What the answers mean is decided in [`super::position`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};

use super::position::{self, Refusal, Start};
use crate::config;

/// Time for each question.
const ASK_KAFKA: Duration = Duration::from_secs(5);
const ASK_KAFKA_TRIES: usize = 3;

/// What the group has committed of a partition: offset and metadata. Nobody else commits while the partition is ours.
#[derive(Clone, Debug)]
pub(super) struct Committed {
    pub(super) partition: i32,
    pub(super) offset: Option<(i64, String)>,
}

/// Where a partition starts, or why it does not.
#[derive(Debug)]
pub(super) enum Asked {
    Starts(Start),
    Refused(Refusal),
    /// Nobody tells where it begins and ends: it has no leader. The others must not wait for it.
    Unknown(KafkaError),
}

/// Reads what the group has committed of each of the partitions.
pub(super) fn committed<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partitions: &[i32],
) -> Result<Vec<Committed>, KafkaError> {
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let committed = again(|| {
        let mut tpl = TopicPartitionList::with_capacity(partitions.len());
        for &partition in partitions {
            tpl.add_partition(topic, partition);
        }
        consumer.committed_offsets(tpl, ASK_KAFKA)
    })?;
    let of = |&partition: &i32| {
        let element = committed.find_partition(topic, partition);
        if let Some(Err(error)) = element.as_ref().map(TopicPartitionListElem::error) {
            return Err(error);
        }
        let offset = element.as_ref().and_then(|element| match element.offset() {
            // The client library panics on metadata that is not UTF-8: foreign text, so none of ours.
            Offset::Offset(offset) => Some((
                offset,
                catch_unwind(AssertUnwindSafe(|| element.metadata().to_owned())).unwrap_or_default(),
            )),
            _ => None,
        });
        Ok(Committed { partition, offset })
    };
    partitions.iter().map(of).collect()
}

/// Where a partition starts, as far as Kafka tells within `patience`.
pub(super) fn ask<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    kafka: &config::Kafka,
    committed: &Committed,
    patience: Duration,
) -> Asked {
    // Without any time left it is not asked at all.
    let bounds = if patience.is_zero() {
        Err(KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut))
    } else {
        consumer.fetch_watermarks(&kafka.topic, committed.partition, patience.min(ASK_KAFKA))
    };
    let offset = committed.offset.as_ref().map(|(offset, text)| (*offset, &**text));
    match bounds {
        Err(error) => Asked::Unknown(error),
        Ok((low, high)) => match position::start(offset, low, high, kafka.incarnation) {
            Ok(start) => Asked::Starts(start),
            Err(refusal) => Asked::Refused(refusal),
        },
    }
}

/// Asks up to [`ASK_KAFKA_TRIES`] times.
fn again<T>(ask: impl Fn() -> Result<T, KafkaError>) -> Result<T, KafkaError> {
    let mut outcome = ask();
    for _ in 1..ASK_KAFKA_TRIES {
        if outcome.is_ok() {
            break;
        }
        outcome = ask();
    }
    outcome
}
