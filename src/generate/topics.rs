//! Making the topics that a deployment needs, where they are missing.

use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::types::RDKafkaErrorCode;

use crate::config;
use crate::kafka::topics;

/// Time for the cluster to make and to show them.
const PATIENCE: Duration = Duration::from_secs(30);
/// After so long the settings of a topic that is there are not to be had.
const LOOK_FOR: Duration = Duration::from_secs(5);
/// Between two questions what was made of the topic of events.
const RETRY: Duration = Duration::from_millis(100);
/// Topics of rejects take records of so many bytes at the least, and of more where the topic of events does.
const LEAST_REJECT_BYTES: u64 = 4 << 20;

/// Creates the topic and those of rejects with so many partitions, and the brokers' own replication. Those that are
/// there stay as they are. Answers the names of the new ones.
pub async fn create(kafka: &config::Kafka, topic: &str, partitions: i32) -> anyhow::Result<Vec<String>> {
    let admin: AdminClient<DefaultClientContext> = super::send::client(kafka)
        .create()
        .context("the Kafka client could not be made")?;
    let mut created = make(&admin, &[(topic, None)], partitions, kafka).await?;
    // A reject is its record and our headers: one that just fitted its topic must fit there, too.
    let bytes = of_rejects(&admin, topic).await.to_string();
    let rejects =
        [&kafka.overflow_topic, &kafka.dead_letter_topic].map(|name| (name.as_str(), Some(bytes.as_str())));
    created.extend(make(&admin, &rejects, partitions, kafka).await?);
    Ok(created)
}

/// Creates those of the topics that are missing, each with its `max.message.bytes`.
async fn make(
    admin: &AdminClient<DefaultClientContext>,
    topics: &[(&str, Option<&str>)],
    partitions: i32,
    kafka: &config::Kafka,
) -> anyhow::Result<Vec<String>> {
    let new = topics.iter().map(|&(name, max_message_bytes)| {
        // -1: the brokers' own replication factor.
        let new = NewTopic::new(name, partitions, TopicReplication::Fixed(-1));
        match max_message_bytes {
            Some(bytes) => new.set("max.message.bytes", bytes),
            None => new,
        }
    });
    let new: Vec<_> = new.collect();
    let options = AdminOptions::new()
        .request_timeout(Some(PATIENCE))
        .operation_timeout(Some(PATIENCE));
    let results = admin
        .create_topics(&new, &options)
        .await
        .with_context(|| format!("Kafka at {} does not make topics", kafka.brokers))?;
    let mut created = Vec::new();
    for result in results {
        match result {
            Ok(name) => created.push(name),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, error)) => return Err(anyhow!("topic {name} could not be created: {error}")),
        }
    }
    Ok(created)
}

/// What topics of rejects must take, by the topic of events. A broker may not know yet what another has just made.
async fn of_rejects(admin: &AdminClient<DefaultClientContext>, topic: &str) -> u64 {
    let begun = Instant::now();
    loop {
        let settings = topics::settings(admin, &[topic], PATIENCE).await;
        if let Some(settings) = settings.get(topic) {
            return settings.of_rejects().max(LEAST_REJECT_BYTES);
        }
        if begun.elapsed() > LOOK_FOR {
            tracing::warn!(
                topic,
                "its max.message.bytes may not be asked; the topics of rejects are made for records of {LEAST_REJECT_BYTES} bytes"
            );
            return LEAST_REJECT_BYTES;
        }
        tokio::time::sleep(RETRY).await;
    }
}
