//! What the group has settled: every record below its committed offsets. For whoever is no member of it.
//!
//! Owns a client that never subscribes, so that asking changes nothing of the group. What a worker has not said itself
//! (an offset that an operator or another program has set) counts for nothing: inserts of before may still land below it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::metadata::MetadataPartition;

use super::client_config;
use super::metadata::Metadata;
use super::start::committed;
use crate::config;

/// Time for the question which partitions there are.
const ASK_KAFKA: Duration = Duration::from_secs(5);
/// For so long it is asked again: at its first group, and when a broker has gone, a cluster is choosing who knows.
const PATIENCE: Duration = Duration::from_secs(15);
const RETRY: Duration = Duration::from_millis(250);

/// The way to the group's offsets.
pub(crate) struct Settled {
    consumer: Arc<BaseConsumer>,
    topic: Arc<str>,
    partitions: Arc<[i32]>,
}

/// A partition, and the offset below which all of its records are settled: they are acknowledged and remembered, and no
/// worker comes back to them unless the group is rewound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Below {
    pub(crate) incarnation: u32,
    pub(crate) partition: i32,
    pub(crate) offset: u64,
}

impl std::fmt::Debug for Settled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settled")
            .field("topic", &self.topic)
            .field("partitions", &self.partitions.len())
            .finish_non_exhaustive()
    }
}

impl Settled {
    /// Makes a client, and asks which partitions there are.
    pub(crate) async fn open(kafka: &config::Kafka) -> Result<Self, KafkaError> {
        let mut client = client_config(
            kafka,
            &[
                ("group.id", &kafka.group_id),
                // See the workers' consumer.
                ("metadata.recovery.strategy", "none"),
            ],
        );
        for (name, value) in &kafka.options {
            client.set(name, value);
        }
        for name in [
            "enable.auto.commit",
            "enable.auto.offset.store",
            "allow.auto.create.topics",
        ] {
            client.set(name, "false");
        }
        let consumer: Arc<BaseConsumer> = Arc::new(client.create()?);
        let topic = Arc::<str>::from(kafka.topic.as_str());
        let (asked, name) = (Arc::clone(&consumer), Arc::clone(&topic));
        let partitions = patiently(move || {
            let metadata = asked.fetch_metadata(Some(&name), ASK_KAFKA)?;
            let found = metadata.topics().iter().find(|found| *found.name() == *name);
            let partitions =
                found.map(|found| found.partitions().iter().map(MetadataPartition::id).collect());
            Ok(partitions.unwrap_or_default())
        })
        .await?;
        Ok(Self {
            consumer,
            topic,
            partitions,
        })
    }

    /// Below which offsets all is settled now.
    pub(crate) async fn below(&self) -> Result<Vec<Below>, KafkaError> {
        let (consumer, topic) = (Arc::clone(&self.consumer), Arc::clone(&self.topic));
        let partitions = Arc::clone(&self.partitions);
        let committed = patiently(move || committed(&consumer, &topic, &partitions)).await?;
        let told = committed
            .iter()
            .filter_map(|committed| below(committed.partition, committed.offset.as_ref()?));
        Ok(told.collect())
    }
}

/// What a commit says, if a worker made it.
fn below(partition: i32, (offset, text): &(i64, String)) -> Option<Below> {
    let metadata = Metadata::decode(text).ok()??;
    Some(Below {
        incarnation: metadata.incarnation,
        partition,
        offset: u64::try_from(*offset).ok()?,
    })
}

/// Asks until there is an answer, for [`PATIENCE`] at the most, where asking does not hold up others.
async fn patiently<T: Send + 'static>(
    ask: impl Fn() -> Result<T, KafkaError> + Clone + Send + 'static,
) -> Result<T, KafkaError> {
    let begun = Instant::now();
    loop {
        let asked = tokio::task::spawn_blocking(ask.clone()).await;
        // It was not asked: the process ends.
        let answer = asked.unwrap_or(Err(KafkaError::Canceled));
        if answer.is_ok() || begun.elapsed() >= PATIENCE {
            return answer;
        }
        tokio::time::sleep(RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_believed_and_nobody_else() {
        let told = |text: &str| below(3, &(41, text.to_owned()));
        let metadata = Metadata {
            incarnation: 2,
            ..Metadata::default()
        };
        let expected = Below {
            incarnation: 2,
            partition: 3,
            offset: 41,
        };
        assert_eq!(told(&metadata.encode()), Some(expected));
        for stranger in ["", "reset by hand", "v9;i=0"] {
            assert_eq!(told(stranger), None, "{stranger}");
        }
    }
}
