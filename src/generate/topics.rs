//! Making the topics that a deployment needs, where they are missing.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::types::RDKafkaErrorCode;

use crate::config;

/// Time for the cluster to make and to show them.
const PATIENCE: Duration = Duration::from_secs(30);
/// A reject is its record and our headers: one that just fitted its topic must fit there too.
const REJECT_BYTES: &str = "4194304";

/// Creates the topic and those of rejects with so many partitions, and the brokers' own replication. Those that are
/// there stay as they are. Answers the names of the new ones.
pub async fn create(kafka: &config::Kafka, topic: &str, partitions: i32) -> anyhow::Result<Vec<String>> {
    let admin: AdminClient<DefaultClientContext> = super::send::client(kafka)
        .create()
        .context("the Kafka client could not be made")?;
    // -1: the brokers' own replication factor.
    let new = |name| NewTopic::new(name, partitions, TopicReplication::Fixed(-1));
    let topics = [
        new(topic),
        new(&kafka.overflow_topic).set("max.message.bytes", REJECT_BYTES),
        new(&kafka.dead_letter_topic).set("max.message.bytes", REJECT_BYTES),
    ];
    let options = AdminOptions::new()
        .request_timeout(Some(PATIENCE))
        .operation_timeout(Some(PATIENCE));
    let results = admin
        .create_topics(&topics, &options)
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
